"""Starts the interpreter of a child process, and tells it what to do."""

from __future__ import annotations

import contextlib
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from ..process import Process, end, start_python
from .parent import ChildProcess
from .wire import Message

__all__ = ["start_child"]

Child = TypeVar("Child", bound=ChildProcess)
Maker = Callable[[Process, socket.socket, "socket.socket | None", Message], Child]

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


def start_child(kind: Maker[Child], request: Message, receive: socket.socket | None = None) -> Child:
    """Start a child process.

    :param kind: what to make of it, a class of the program's side, or a function that makes an object of one.
    :param request: what the child is to do; see :func:`relay.spawning.child.main`.
    :param receive: the socket to listen with, if there is one.
    :raises Exception: as for :class:`ChildProcess`.
    :raises RelayError: if this program has no Python interpreter.
    :raises OSError: if the system has no room for another process.
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


def _path() -> list[str]:
    """The module search path of this program, with this package on it."""
    path = [entry for entry in sys.path if isinstance(entry, str)]
    home = str(Path(__file__).absolute().parents[2])
    return path if home in path else [*path, home]
