""":func:`relay.spawn`: a tunnel in an interpreter of its own."""

from __future__ import annotations

import contextlib
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from ..engine.acceptor import check_listener
from ..process import end, start_python
from ..streams.checks import WARM_FOR, check_count, check_time, check_warm
from .parent import ChildTunnel
from .wire import Message

__all__ = ["spawn", "start_child"]

Child = TypeVar("Child", bound=ChildTunnel)

_END = 1.0  # seconds for a child that failed to start to end by itself and remove its files

# Everything that the child must know comes over a socket: other users can read arguments and environment.
_CHILD = """
import json, os, socket, sys
control = socket.socket(fileno=os.dup(0))
descriptors = socket.recv_fds(control, 1, 2)[1]
with control.makefile("rb") as lines:
    request = json.loads(lines.readline() or sys.exit())
sys.path[:] = request["path"]
from relay.spawning.child import main
main(control, descriptors, request)
"""


def spawn(
    listen: str | socket.socket,
    target: str,
    *,
    via: Sequence[str] = (),
    nconnect: int = -1,
    timeout: float | None = None,
    connect_timeout: float | None = 30.0,
    idle_timeout: float | None = None,
    linger: float | None = 60.0,
    warm: int = 0,
    warm_for: float = WARM_FOR,
    name: str | None = None,
) -> ChildTunnel:
    """Relay in a child process: a :class:`~relay.Tunnel` that the program's own threads cannot slow down.

    Python runs one thread at a time, and a tunnel's thread beside a busy one waits for its turn with every message.
    Here the tunnel has an interpreter of its own. The child ends with the program, also when that is killed. Its log
    records come out of this program's own loggers; a level of ``relay`` that is set later reaches it with the next call
    of :meth:`~ChildTunnel.stats` or any other member that asks it.

    There is no ``on_end``: a callable cannot be sent to another process. :meth:`~ChildTunnel.recent` returns the last
    100 connections that ended, and the log has a line at INFO for each.

    :param listen: an address as for :func:`relay.listen`, or a bound, listening :class:`socket.socket`, which belongs
        to the result from then on.
    :param target: an address as for :func:`relay.target`.
    :param via: the hops on the way, the nearest first.
    :param nconnect: the most connections at one time, connecting ones included; −1 for no limit.
    :param timeout: seconds that a connection may last, whatever it does; ``None`` for ever.
    :param connect_timeout: seconds to get the outgoing stream; ``None`` for ever.
    :param idle_timeout: seconds without a byte moved in either direction; ``None`` for ever.
    :param linger: seconds without a byte moved in the other direction after one has ended; ``None`` for ever.
    :param warm: the streams to keep open for clients to come; see :class:`~relay.Tunnel`.
    :param warm_for: seconds after which such a stream is replaced if no client has come.
    :param name: for the log and ``repr``.
    :returns: the tunnel, once it listens.
    :raises AddressError: if an address cannot be understood.
    :raises ValueError: if a limit is out of its range, or the socket does not listen.
    :raises TypeError: if an argument is of the wrong type.
    :raises OSError: if the address cannot be had.
    :raises RelayError: if the child cannot be started.
    """
    receive = _check_listen(listen)
    if not isinstance(target, str):
        raise TypeError(f"target: expected an address, got {type(target).__name__}; a factory needs a Tunnel")
    if name is not None and not isinstance(name, str):
        raise TypeError(f"name: expected text, got {type(name).__name__}")
    check_warm(warm, warm_for)
    options = {
        "nconnect": check_count(nconnect),
        "timeout": check_time("timeout", timeout),
        "connect_timeout": check_time("connect_timeout", connect_timeout),
        "idle_timeout": check_time("idle_timeout", idle_timeout),
        "linger": check_time("linger", linger, zero=True),
        "warm": warm,
        "warm_for": warm_for,
        "name": name,
    }
    request = {"listen": None if receive else listen, "target": target, "via": via, "options": options}
    return start_child(ChildTunnel, request, receive)


def start_child(kind: type[Child], request: Message, receive: socket.socket | None = None) -> Child:
    """Start a child process with a tunnel in it.

    :param kind: what to make of it, a class of the program's side.
    :param request: what the child is to do; see :func:`relay.spawning.child.main`.
    :param receive: the socket to listen with, if there is one.
    :raises Exception: as for :func:`spawn`.
    """
    with contextlib.ExitStack() as undo:
        ours, theirs = socket.socketpair()
        undo.callback(ours.close)
        with theirs:
            process = start_python(_CHILD, theirs.fileno())
        undo.callback(end, process, _END)
        child = kind(process, ours, receive, {**request, "path": _path()})
        undo.pop_all()
    return child


def _check_listen(listen: Any) -> socket.socket | None:
    """The socket to hand to the child, if ``listen`` is one."""
    if isinstance(listen, socket.socket):
        check_listener(listen, "listen")
        return listen
    if not isinstance(listen, str):
        raise TypeError(f"listen: expected an address or a listening socket, got {type(listen).__name__}")
    return None


def _path() -> list[str]:
    """The module search path of this program, with this package on it."""
    path = [entry for entry in sys.path if isinstance(entry, str)]
    home = str(Path(__file__).absolute().parents[2])
    return path if home in path else [*path, home]
