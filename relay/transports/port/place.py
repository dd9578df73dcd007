"""The place at which a program listens: a port of the loopback, or a Unix socket; and whether the program has it.

Any program of this machine may take a free port, so relay asks the kernel to whom a socket belongs. A place is asked
before each connection, and after it, when the kernel has chosen the socket to which it goes:

- a port: the socket that listens there must be one that a process of the program has (sock_diag(7), proc(5)), and the
  same one before and after the connect. Each socket has a cookie, which no other one ever gets. Only programs of one
  user can listen at one port side by side, and only if each of them sets ``SO_REUSEPORT``;
- a path: the kernel reports the process that listens for each connection (``SO_PEERCRED`` of unix(7)).
"""

from __future__ import annotations

import os
import socket
import stat
import struct
import tempfile
from collections.abc import Hashable
from typing import Protocol

from ...addresses.values import LONGEST_UNIX_PATH
from ...errors import RelayError
from ...eventloop.sockets import Endpoint
from ..sock_diag import SockDiag
from .processes import HiddenProcessError, has_socket, is_below, listens_at

LOOPBACK = "127.0.0.1"
_UCRED = struct.Struct("3i")  # of SO_PEERCRED: process, user, group


class StrangerError(RelayError):
    """The socket at a place does not belong to the program."""

    reason = "denied"


class UnknownOwnerError(StrangerError):
    """It cannot be known to whom the socket belongs, and another start would not change that."""


class ListeningPlace(Protocol):
    """A place for one start of a program. Every method is safe from any thread, and takes a moment."""

    folder: str
    """The private directory; empty if there is none."""
    word: str
    """The place for the argument list."""
    endpoint: Endpoint

    def find(self, root: int) -> Hashable:
        """Return the identity of the socket that the program listens with; ``None`` if none listens there.

        :param root: the process above those of the program.
        :raises StrangerError: if the socket there is not the program's.
        :raises OSError: if the kernel does not answer.
        """

    def leads_to(self, connection: socket.socket, found: Hashable, root: int) -> bool:
        """Return whether a connection goes to the socket that was found before it; if not, another one may.

        :raises StrangerError: if it is not the program's.
        :raises OSError: if the kernel does not answer.
        """

    def close(self) -> None:
        """Close what it needs. Idempotent."""


class Port:
    """A port of the loopback that is free now.

    :raises OSError: if the kernel does not report to whom a socket belongs.
    """

    folder = ""

    def __init__(self) -> None:
        try:
            self._kernel = SockDiag()
        except OSError as error:
            raise RelayError(
                f"the system does not say who listens at a port (sock_diag: {error.strerror}); use {{path}} if the "
                "program can listen on a Unix socket, or run it yourself"
            ) from error
        # The program takes it a moment later; if another one was faster, relay chooses the next.
        with socket.socket() as free:
            free.bind((LOOPBACK, 0))
            self._port: int = free.getsockname()[1]
        self.word = str(self._port)
        self.endpoint = Endpoint(socket.AF_INET, (LOOPBACK, self._port))
        self._known: bytes | None = None

    def find(self, root: int) -> Hashable:
        """Return the cookie of the socket that listens there; see :class:`ListeningPlace`."""
        found = self._kernel.listener(LOOPBACK, self._port)
        if found is None:
            return None
        # The look into the processes of the program takes milliseconds, and is needed once for each socket.
        if found.cookie != self._known:
            try:
                is_ours = has_socket(found.inode, root)
            except HiddenProcessError as error:
                raise UnknownOwnerError(
                    f"{self.endpoint}: a program of user {found.user} listens there, and {error}; run relay as that "
                    "user, or the program without sudo"
                ) from error
            if not is_ours:
                raise StrangerError(f"{self.endpoint}: another program, of user {found.user}, listens there")
            self._known = found.cookie
        return found.cookie

    def leads_to(self, connection: socket.socket, found: Hashable, root: int) -> bool:
        """Look at the socket again; see :class:`ListeningPlace`."""
        return self.find(root) == found

    def close(self) -> None:
        """Close the netlink socket."""
        self._kernel.close()


class PrivatePath:
    """A path for a Unix socket, in a directory that only this user may enter.

    :raises RelayError: if the path of the directory is too long.
    :raises OSError: if it cannot be made.
    """

    def __init__(self) -> None:
        self.folder = tempfile.mkdtemp(prefix="relay-port-")
        self.word = os.path.join(self.folder, "socket")
        if len(os.fsencode(self.word)) > LONGEST_UNIX_PATH:
            os.rmdir(self.folder)
            raise RelayError(f"{self.word}: path too long for a socket; set TMPDIR to a directory with a shorter path")
        self.endpoint = Endpoint(socket.AF_UNIX, self.word)
        self._known: int | None = None

    def find(self, root: int) -> Hashable:
        """Return the number of the socket's file; see :class:`ListeningPlace`."""
        try:
            file = os.lstat(self.word)
        except FileNotFoundError:
            return None
        if file.st_ino != self._known:
            if not stat.S_ISSOCK(file.st_mode) or not self._is_heard():
                return None
            self._known = file.st_ino
        return file.st_ino

    def leads_to(self, connection: socket.socket, found: Hashable, root: int) -> bool:
        """Ask who listens for the connection; see :class:`ListeningPlace`."""
        process, user, _ = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
        if not is_below(process, root):
            raise StrangerError(f"{self.endpoint}: another program, of user {user}, listens there (process {process})")
        return True

    def close(self) -> None:
        """Remove the socket and the directory."""
        for remove, path in ((os.unlink, self.word), (os.rmdir, self.folder)):
            try:
                remove(path)
            except OSError:
                pass  # the program has, or it was never there

    def _is_heard(self) -> bool:
        with open("/proc/net/unix", encoding="utf-8", errors="surrogateescape") as file:
            return listens_at(self.word, file.read()) is not None
