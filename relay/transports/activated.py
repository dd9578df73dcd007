"""Sockets that systemd has opened for this process: socket activation, and the file descriptor store.

Source: sd_listen_fds(3). The first descriptor is 3. A socket of a socket unit stays open for as long as the process,
because systemd does not pass it again; each listener gets a duplicate.
"""

from __future__ import annotations

import functools
import os
import socket
import threading
from collections.abc import MutableMapping

from ..errors import RelayError

__all__ = ["listen_systemd", "received", "take_over"]

_FIRST = 3
_VARIABLES = ("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")

_lock = threading.Lock()  # for the next one


def received() -> dict[str, list[socket.socket]]:
    """Return the sockets that systemd has passed to this process, by their names; the first call takes them over."""
    with _lock:
        return _received()


@functools.cache
def _received() -> dict[str, list[socket.socket]]:
    return take_over(os.environ)


def take_over(environment: MutableMapping[str, str], first: int = _FIRST) -> dict[str, list[socket.socket]]:
    """Take the passed sockets over, and remove the variables, so that no child takes them for its own.

    :param environment: of the process.
    :param first: the number of the first descriptor.
    :returns: the sockets by their names; a descriptor that is no socket is left out.
    """
    count, owner, names = (environment.pop(name, "") for name in _VARIABLES)
    found: dict[str, list[socket.socket]] = {}
    if owner != str(os.getpid()) or not (count.isascii() and count.isdigit()):
        return found
    words = names.split(":") if names else []
    for number in range(int(count)):
        name = words[number] if number < len(words) else "unknown"
        try:
            os.set_inheritable(first + number, False)
            made = socket.socket(fileno=first + number)
        except OSError:
            continue  # of another kind, or closed by someone else
        found.setdefault(name, []).append(made)
    return found


def listen_systemd(name: str) -> socket.socket:
    """Listen at a socket that systemd has opened.

    :param name: the ``FileDescriptorName`` of the socket unit; by default the unit's name with ``.socket``.
    :returns: a duplicate of the socket; the caller owns it.
    :raises RelayError: if systemd has passed none of that name, several, or one that does not listen for streams.
    """
    sockets = received()
    what = f"systemd:{name}"
    of_name = sockets.get(name, [])
    if not of_name:
        known = ", ".join(sorted(sockets)) or "none"
        problem = f"systemd has passed no socket of this name ({known})"
        raise RelayError(f"{what}: {problem}; set FileDescriptorName={name} in the socket unit, and start the socket")
    if len(of_name) > 1:
        problem = f"systemd has passed {len(of_name)} sockets of this name"
        raise RelayError(
            f"{what}: {problem}; give each socket unit one ListenStream= and a FileDescriptorName of its own"
        )
    only = of_name[0]
    if only.type != socket.SOCK_STREAM or not _listens(only):
        raise RelayError(f"{what}: not a socket that listens for streams; set ListenStream= and Accept=no")
    return only.dup()


def _listens(one: socket.socket) -> bool:
    return bool(one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
