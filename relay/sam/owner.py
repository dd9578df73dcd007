"""Whose the other end of a TCP connection within this machine is."""

from __future__ import annotations

import errno
import socket
import struct
import sys
import threading
from typing import Any

__all__ = ["Owners"]

# linux/netlink.h, linux/sock_diag.h, linux/inet_diag.h; see sock_diag(7).
_SOCK_DIAG = 4  # the netlink protocol
_BY_FAMILY = 20  # the one kind of message
_REQUEST = 1  # NLM_F_REQUEST: about one socket, for there is no NLM_F_DUMP
_HEAD = struct.Struct("=IHHII")  # of a message: length, kind, flags, number, port
_ASKED = struct.Struct("=BBBxI")  # family, protocol, extensions, a pad, states
_ID = struct.Struct("=4s32sI8s")  # two ports and two addresses, as in packets; interface, cookie
_TOLD = struct.Struct("=B3x4s32s24xII")  # family, ports, addresses, user, inode; not what lies between
_ANY = 0xFFFFFFFF
_NO_COOKIE = b"\xff" * 8
_LONGEST = 4096
_MAPPED = b"\0" * 10 + b"\xff\xff"


class Owners:
    """Asks the kernel whose the other end of a connection is, where both ends are on this machine.

    That is a matter of microseconds, and needs no privilege. Every method may be called from any thread.

    :raises OSError: where the system does not tell.
    """

    def __init__(self) -> None:
        if sys.platform != "linux":
            raise OSError(errno.EOPNOTSUPP, "only Linux tells whose a connection is")
        self._lock = threading.Lock()
        self._number = 0
        self._netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, _SOCK_DIAG)

    def of(self, connection: socket.socket) -> int | None:
        """Whose the other end is.

        :param connection: a connected TCP socket.
        :returns: the user's id; ``None`` if that cannot be told: it is closed already, or elsewhere.
        """
        if connection.family not in (socket.AF_INET, socket.AF_INET6):
            return None
        try:
            return self.between(connection.family, connection.getpeername(), connection.getsockname())
        except OSError:
            return None

    def between(self, family: int, theirs: tuple[Any, ...], ours: tuple[Any, ...]) -> int | None:
        """The same for a connection between two places.

        :param family: of both.
        :param theirs: the address of the end whose user is asked for, as sockets tell it.
        :param ours: that of the other one.
        """
        try:
            return self._ask(family, theirs, ours)
        except OSError:
            return None

    def close(self) -> None:
        """Ask no more. Idempotent."""
        self._netlink.close()

    def _ask(self, family: int, source: tuple[Any, ...], destination: tuple[Any, ...]) -> int | None:
        ports = struct.pack(">HH", source[1], destination[1])
        addresses = _packed(family, source[0]) + _packed(family, destination[0])
        request = _ASKED.pack(family, socket.IPPROTO_TCP, 0, _ANY) + _ID.pack(ports, addresses, 0, _NO_COOKIE)
        answer = self._exchange(request)
        if _HEAD.unpack_from(answer)[1] != _BY_FAMILY:
            return None
        told_family, told_ports, told_addresses, user, inode = _TOLD.unpack_from(answer, _HEAD.size)
        # Where there is no such connection the kernel may tell of what listens at the port. What has no inode nobody
        # has open any more; of that only newer kernels tell the user, and older ones 0.
        same = told_ports == ports and _alike(told_family, told_addresses) == _alike(family, addresses)
        return user if same and (inode or user) else None

    def _exchange(self, request: bytes) -> bytes:
        with self._lock:
            number = self._number = (self._number + 1) & _ANY
            self._netlink.send(_HEAD.pack(_HEAD.size + len(request), _BY_FAMILY, _REQUEST, number, 0) + request)
            while True:
                answer = self._netlink.recv(_LONGEST)
                if _HEAD.unpack_from(answer)[3] == number:
                    return answer


def _packed(family: int, host: str) -> bytes:
    return socket.inet_pton(family, host.partition("%")[0]).ljust(16, b"\0")


def _alike(family: int, addresses: bytes) -> bytes:
    """Two addresses as those of IPv6; a socket of IPv6 can have those of IPv4."""
    if family == socket.AF_INET6:
        return addresses
    return b"".join(_MAPPED + addresses[start : start + 4] for start in (0, 16))
