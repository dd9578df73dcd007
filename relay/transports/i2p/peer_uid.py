"""User IDs of local TCP connections: which user has opened the other end of a connection within this machine."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import socket
import struct
from typing import Any

from ..sock_diag import SockDiag

# linux/tcp_states.h: FIN_WAIT1, LAST_ACK, CLOSING. In FIN_WAIT2, TIME_WAIT and SYN_RECV the kernel keeps less than a
# socket, and reports root.
_CLOSED_STATES = (4, 9, 11)
_OTHER_USER = 65534  # any user that is not root
_PROBE = 5.0  # seconds to connect to a socket of this process

# linux/filter.h: load the byte of the flags of a TCP header; drop the packet if it has FIN, else keep all of it.
_FILTER = b"".join(
    struct.pack("=HBBI", *instruction)
    for instruction in ((0x30, 0, 0, 13), (0x45, 0, 1, 0x01), (0x06, 0, 0, 0), (0x06, 0, 0, 0xFFFFFFFF))
)
_ATTACH_FILTER = getattr(socket, "SO_ATTACH_FILTER", 26)
_DETACH_FILTER = getattr(socket, "SO_DETACH_FILTER", 27)


_remembered = False  # whether the kernel reports the user of a closed end


def remember_kernel() -> None:
    """Find out now what the kernel reports, before a sandbox prevents connections to any port.

    A lookup that cannot find out trusts less.
    """
    global _remembered  # noqa: PLW0603  (there is one kernel)
    with contextlib.suppress(OSError):
        lookup = PeerUidLookup()
        _remembered = lookup.knows_closed
        lookup.close()


class PeerUidLookup:
    """Looks up the user of the other end of a connection, if both ends are on this machine (sock_diag(7)).

    A lookup takes microseconds and needs no privilege. Every method is safe from any thread. The constructor may block
    for a moment, because it opens a connection within this process.

    :raises OSError: if the system does not report users.
    """

    def __init__(self) -> None:
        self.knows_closed = False
        self._kernel = SockDiag()
        with contextlib.suppress(OSError):
            self.knows_closed = _remembered or self._find_closed()

    def of(self, connection: socket.socket) -> int | None:
        """Return the user of the other end of a connection.

        :param connection: a connected TCP socket.
        :returns: the user ID; ``None`` if the kernel does not report it, because the other end is closed or on another
            machine.
        """
        if connection.family not in (socket.AF_INET, socket.AF_INET6):
            return None
        try:
            return self.between(connection.family, connection.getpeername(), connection.getsockname())
        except OSError:
            return None

    def between(self, family: int, theirs: tuple[Any, ...], ours: tuple[Any, ...]) -> int | None:
        """Return the user of one end of a connection between two addresses.

        :param family: address family of both.
        :param theirs: address of the end to look up, as sockets report it.
        :param ours: address of the other end.
        :returns: the user ID; ``None`` if the kernel does not report it or fails.
        """
        try:
            user, inode, state = self._query(family, theirs, ours)
        except OSError:
            return None
        # A socket without inode was closed by its program. Older kernels report such a connection as root's.
        return user if inode or (self.knows_closed and state in _CLOSED_STATES) else None

    def close(self) -> None:
        """Close the netlink socket. Idempotent."""
        self._kernel.close()

    def _find_closed(self) -> bool:
        """Find out, with a connection within this process, whether the kernel reports the user of a closed end."""
        user = os.geteuid()
        with socket.create_server(("127.0.0.1", 0)) as listening:
            hold_end(listening)
            with socket.create_connection(listening.getsockname(), _PROBE) as near:
                if user == 0:  # old kernels report root for every closed end
                    user = _OTHER_USER
                    # So that the answer of an old kernel, which is root, differs from the right one.
                    os.fchown(near.fileno(), user, -1)
                there = near.getsockname()
            found, inode, state = self._query(near.family, there, listening.getsockname())
            return found == user and not inode and state in _CLOSED_STATES

    def _query(self, family: int, source: tuple[Any, ...], destination: tuple[Any, ...]) -> tuple[int, int, int]:
        """Return user, inode and state of one end of a connection.

        :raises OSError: if the kernel does not report them.
        """
        found = self._kernel.ask(family, source, destination)
        # Without such a connection the kernel may report the socket that listens at the port.
        if found is None or not found.is_between(family, source, destination):
            raise OSError(errno.ENOENT, "no such connection")
        return found.user, found.inode, found.state


def hold_end(listening: socket.socket) -> None:
    """Make the kernel ignore the FIN of each connection to this socket until :func:`release_end`.

    A program may write a few bytes and close at once. The kernel knows the user of a closed end only until its FIN is
    acknowledged. The other side repeats the FIN, so nothing is lost.

    :param listening: a listening TCP socket; its connections inherit this.
    :raises OSError: if the kernel rejects the filter.
    """
    # Kept in a local until the call is over: the option takes its address, and the kernel copies it.
    code = ctypes.create_string_buffer(_FILTER, len(_FILTER))
    listening.setsockopt(
        socket.SOL_SOCKET, _ATTACH_FILTER, struct.pack("@HP", len(_FILTER) // 8, ctypes.addressof(code))
    )


def release_end(connection: socket.socket) -> None:
    """Accept the FIN of a connection from now on.

    :param connection: accepted from a socket of :func:`hold_end`.
    :raises OSError: if the kernel cannot remove the filter.
    """
    connection.setsockopt(socket.SOL_SOCKET, _DETACH_FILTER, 0)
