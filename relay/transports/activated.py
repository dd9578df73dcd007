"""Sockets that systemd has opened for this process: socket activation, and the file descriptor store.

A socket of a socket unit stays open for as long as the process, because systemd does not pass it again; each listener
gets a duplicate.

Source: sd_listen_fds(3). The first descriptor is 3.
"""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import MutableMapping

from ..addresses.printable import shown
from ..errors import AddressError
from ..eventloop.sockets import duplicate

Sockets = dict[str, list[socket.socket]]

_FIRST = 3
_VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")
_MOST = 1 << 16  # descriptors; far more than systemd passes


class _Received:
    """The outcome of the first :func:`received`."""

    def __init__(self) -> None:
        self.outcome: Sockets | AddressError | None = None
        self._lock = threading.Lock()

    def get(self) -> Sockets | AddressError:
        with self._lock:
            if self.outcome is None:
                try:
                    self.outcome = take_over(os.environ)
                except AddressError as error:
                    self.outcome = error
            return self.outcome


_received = _Received()


def received() -> Sockets:
    """Return the sockets that systemd has passed to this process, by their names; the first call takes them over.

    :raises AddressError: at each call, if the variables of systemd are malformed.
    """
    outcome = _received.get()
    if isinstance(outcome, AddressError):
        raise outcome
    return outcome


def add_received(name: str, one: socket.socket) -> None:
    """Treat a socket as one that systemd has passed to this process: the process before it got it.

    :param name: of the socket.
    :param one: the socket, which stays open.
    :raises AddressError: as :func:`received`.
    """
    received().setdefault(name, []).append(one)


def take_over(environment: MutableMapping[str, str], first: int = _FIRST) -> Sockets:
    """Take the passed sockets over, and remove the variables, so that no child process uses them.

    :param environment: of the process.
    :param first: the number of the first descriptor.
    :returns: the sockets by their names; none if they are for another process. A descriptor that is no socket is left
        out.
    :raises AddressError: if a variable is malformed, or a descriptor is not open.
    """
    owner, count, given = (environment.pop(name, "") for name in _VARIABLES)
    if not owner or not count or _number("LISTEN_PID", owner, 1 << 31) != os.getpid():
        return {}
    number = _number("LISTEN_FDS", count, _MOST)
    names = given.split(":") if given else ["unknown"] * number
    if len(names) != number:
        raise AddressError(f"LISTEN_FDNAMES: it has {len(names)} names for {number} descriptors; {_REMEDY}")
    found: Sockets = {}
    for descriptor, name in enumerate(names, first):
        try:
            # systemd passes them inheritable; a child of this process would keep the port open after its end.
            os.set_inheritable(descriptor, False)
            made = socket.socket(fileno=descriptor)
        except OSError as error:
            if error.errno == errno.EBADF:
                raise AddressError(f"LISTEN_FDS: descriptor {descriptor} is not open; {_REMEDY}") from error
            # Such as a FIFO of the same unit: it is for another part of the program, and no error here.
            continue
        found.setdefault(name, []).append(made)
    return found


_REMEDY = "only systemd sets this variable, unset it elsewhere"


def _number(name: str, text: str, limit: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 10 and int(text) < limit):
        raise AddressError(f"{name}: expected a number, got '{shown(text[:80])}'; {_REMEDY}")
    return int(text)


def listen_systemd(name: str) -> socket.socket:
    """Listen at a socket that systemd has opened.

    :param name: the ``FileDescriptorName`` of the socket unit; by default the unit's name with ``.socket``.
    :returns: a duplicate of the socket; the caller owns it.
    :raises AddressError: if systemd has passed none of that name, several, or one that does not listen for streams; or
        if its variables are malformed.
    """
    sockets = received()
    what = f"systemd:{name}"
    of_name = sockets.get(name, [])
    if not of_name:
        known = ", ".join(map(shown, sorted(sockets))) or "none"
        problem = f"systemd has passed no socket of this name ({known})"
        raise AddressError(f"{what}: {problem}; set FileDescriptorName={name} in the socket unit, and start the socket")
    if len(of_name) > 1:
        problem = f"systemd has passed {len(of_name)} sockets of this name"
        raise AddressError(
            f"{what}: {problem}; give each socket unit one ListenStream= and a FileDescriptorName of its own"
        )
    only = of_name[0]
    if only.type != socket.SOCK_STREAM or not only.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise AddressError(f"{what}: not a socket that listens for streams; set ListenStream= and Accept=no")
    return duplicate(only)
