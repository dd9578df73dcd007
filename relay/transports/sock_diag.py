"""Questions to the kernel about one TCP socket of this machine: its user, its state and its identity (sock_diag(7))."""

from __future__ import annotations

import errno
import socket
import struct
import sys
import threading
from typing import Any, NamedTuple

# linux/netlink.h, linux/sock_diag.h, linux/inet_diag.h.
_SOCK_DIAG = 4  # the netlink protocol
_BY_FAMILY = 20  # the one kind of message
_REQUEST = 1  # NLM_F_REQUEST: about one socket, because it is without NLM_F_DUMP
_HEAD = struct.Struct("=IHHII")  # of a message: length, kind, flags, number, port
_QUERY = struct.Struct("=BBBxI")  # family, protocol, extensions, a pad, states
_ID = struct.Struct("=4s32sI8s")  # two ports and two addresses, as in packets; interface, cookie
_REPLY = struct.Struct("=BB2x4s32s4x8s12xII")  # family, state, ports, addresses, cookie, user, inode
_ANY = 0xFFFFFFFF
_NO_COOKIE = b"\xff" * 8
_LONGEST = 4096
_MAPPED = b"\0" * 10 + b"\xff\xff"
_ANYONE = ("0.0.0.0", 0)  # noqa: S104  (the other end of a socket that has none)
LISTEN = 10
"""The state of a socket that listens (linux/tcp_states.h)."""


class FoundSocket(NamedTuple):
    """A socket as the kernel reports it."""

    family: int
    state: int
    ports: bytes
    addresses: bytes
    cookie: bytes
    """The identity of the socket, which no other one gets until the next start of the machine."""
    user: int
    inode: int
    """The number of its file; 0 if no process has it."""

    def is_between(self, family: int, source: tuple[Any, ...], destination: tuple[Any, ...]) -> bool:
        """Return whether it is that end of a connection; the parameters are those of :meth:`SockDiag.ask`."""
        ports, addresses = _ends(family, source, destination)
        return self.ports == ports and _as_ipv6(self.family, self.addresses) == _as_ipv6(family, addresses)


class SockDiag:
    """A netlink socket for such questions, which take microseconds and need no privilege. Safe from any thread.

    :raises OSError: if the system does not report sockets, or does not allow such questions.
    """

    def __init__(self) -> None:
        if sys.platform != "linux":
            raise OSError(errno.EOPNOTSUPP, "only Linux reports the user of a connection")
        self._lock = threading.Lock()
        self._number = 0
        # The kernel answers within the send, so that a receive that would block means that no answer comes.
        self._netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, _SOCK_DIAG)

    def ask(self, family: int, source: tuple[Any, ...], destination: tuple[Any, ...]) -> FoundSocket | None:
        """Return the socket that has an address: one end of a connection, or one that listens.

        :param family: address family of both.
        :param source: address of the socket, as sockets report it.
        :param destination: address of the other end; unspecified, with port 0, for a socket that listens.
        :returns: the socket to which a packet from ``destination`` would go; ``None`` if there is none.
        :raises OSError: if the kernel does not answer.
        """
        ports, addresses = _ends(family, source, destination)
        request = _QUERY.pack(family, socket.IPPROTO_TCP, 0, _ANY) + _ID.pack(ports, addresses, 0, _NO_COOKIE)
        answer = self._exchange(request)
        if _HEAD.unpack_from(answer)[1] != _BY_FAMILY:
            return None
        return FoundSocket(*_REPLY.unpack_from(answer, _HEAD.size))

    def listener(self, host: str, port: int) -> FoundSocket | None:
        """Return the socket that listens at an address of this machine; ``None`` if there is none.

        :param host: an IPv4 address; a socket that listens at all addresses counts.
        :param port: the port.
        :raises OSError: if the kernel does not answer.
        """
        found = self.ask(socket.AF_INET, (host, port), _ANYONE)
        return found if found is not None and found.state == LISTEN else None

    def close(self) -> None:
        """Close the netlink socket. Idempotent."""
        self._netlink.close()

    def _exchange(self, request: bytes) -> bytes:
        with self._lock:
            number = self._number = (self._number + 1) & _ANY
            self._netlink.send(_HEAD.pack(_HEAD.size + len(request), _BY_FAMILY, _REQUEST, number, 0) + request)
            while True:
                answer = self._netlink.recv(_LONGEST)
                # An answer to an earlier question may be left, if its asker was interrupted before it had read it.
                if _HEAD.unpack_from(answer)[3] == number:
                    return answer


def _ends(family: int, source: tuple[Any, ...], destination: tuple[Any, ...]) -> tuple[bytes, bytes]:
    """Return the two ports and the two addresses of a connection, as in packets."""
    ports = struct.pack(">HH", source[1], destination[1])
    return ports, _packed(family, source[0]) + _packed(family, destination[0])


def _packed(family: int, host: str) -> bytes:
    return socket.inet_pton(family, host.partition("%")[0]).ljust(16, b"\0")


def _as_ipv6(family: int, addresses: bytes) -> bytes:
    """Return two addresses in the form of IPv6, because an IPv6 socket may have IPv4 addresses."""
    if family == socket.AF_INET6:
        return addresses
    return b"".join(_MAPPED + addresses[start : start + 4] for start in (0, 16))
