"""Unix sockets: connecting to one, and listening at one."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
import sys
from collections.abc import Iterator

from ..addresses.values import UnixAddress, unix_path
from ..eventloop.sockets import Endpoint
from ..streams.connect import SocketDialer
from .tcp import BACKLOG, inherited

__all__ = ["UnixListener", "listen_unix", "unix"]


def unix(path: str | os.PathLike[str]) -> SocketDialer:
    """A factory that connects to a Unix stream socket.

    :param path: where it lies; a relative path is taken from the working directory of now.
    :returns: a callable for :class:`relay.Tunnel` that returns a connected :class:`relay.Stream`, and raises
        :class:`relay.ConnectError` if it cannot.
        It takes the keywords ``peer``, ``deadline`` and ``cancel``, as all factories do; see :func:`relay.target`.
    :raises TypeError: if ``path`` is not a path.
    :raises ValueError: if it is empty, holds a control character or is longer than a Unix socket's may be.
    """
    endpoint = Endpoint(socket.AF_UNIX, unix_path(path))
    return SocketDialer(str(UnixAddress(endpoint.address)), lambda: (endpoint,), literal=True)


_LINUX: bool = sys.platform == "linux"


def listen_unix(path: str | os.PathLike[str]) -> UnixListener:
    """Listen on a Unix stream socket that its owner alone may use (mode 0600, from its first moment).

    A socket that is already there is replaced if no program listens on it; any other file is left alone.

    :param path: where to make it; a relative path is taken from the working directory of now.
    :returns: a bound, listening socket, whose ``close()`` removes the file; the caller owns it.
    :raises TypeError: if ``path`` is not a path.
    :raises ValueError: if it is empty, holds a control character or is longer than a Unix socket's may be.
    :raises OSError: if it cannot be made there (``errno`` tells, such as EADDRINUSE).
    """
    place = unix_path(path)
    if (known := inherited(socket.AF_UNIX, place)) is not None:  # its file stays that of the other owner
        listening = UnixListener(fileno=known.detach())
        listening.setblocking(False)  # the other owner relies on it
        listening.borrow(place)
        return listening
    made = UnixListener(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _guard(place):
            _remove_stale(place)
            _bind_private(made, place)
            made.own(place)
            made.listen(BACKLOG)
    except OSError as error:
        made.close()
        hint = "; make its directory first" if error.errno == errno.ENOENT else ""
        raise OSError(error.errno, f"{UnixAddress(place)}: {error.strerror}{hint}") from error
    return made


class UnixListener(socket.socket):
    """A listening Unix socket that removes its file when it is closed by the process that made it."""

    _file: tuple[str, int, int] | None = None
    _borrowed: tuple[str, int, int] | None = None  # the file of another owner of the socket
    _owner = 0

    @property
    def file_id(self) -> tuple[int, int] | None:
        """The device and the inode of the file that it owns; ``None`` for none."""
        return self._file[1:] if self._file is not None else None

    def own(self, path: str) -> None:
        """Remember the file that ``bind`` made, to know it again."""
        self._file = _file_at(path)
        self._owner = os.getpid()

    def borrow(self, path: str) -> None:
        """Remember the file of another owner of the socket, for :meth:`adopt`."""
        with contextlib.suppress(OSError):  # another program has removed it
            self._borrowed = _file_at(path)

    def adopt(self) -> None:
        """Own the file that it has borrowed, if there is one: the owner before has left it to this one."""
        borrowed, self._borrowed = self._borrowed, None
        if borrowed is not None:
            self._file, self._owner = borrowed, os.getpid()

    def disown(self) -> None:
        """Leave the file to another owner of the socket."""
        self._file = None

    def close(self) -> None:
        """Remove the file, if it is still ours and this is no forked child, and close the socket. Idempotent."""
        # The open socket holds its inode, so that the number cannot be another file's until it is closed.
        file, self._file = self._file, None
        if file is not None and self._owner == os.getpid():
            try:
                now = os.lstat(file[0])
                if file[1:] == (now.st_dev, now.st_ino):
                    os.unlink(file[0])
            except OSError:
                pass  # another process was faster, or removed the directory
        super().close()


def _file_at(path: str) -> tuple[str, int, int]:
    found = os.lstat(path)
    return path, found.st_dev, found.st_ino


@contextlib.contextmanager
def _guard(path: str) -> Iterator[None]:
    """Of several programs that find the same stale socket let one alone replace it.

    A file beside the socket is locked for that moment and then removed. Only who may make files there can hold it up,
    and who could as well lie down in the place of the socket. A program that is killed leaves at most the empty file,
    which the next one takes over: the lock went with the process.

    :raises OSError: if another program has the lock (EADDRINUSE), or the file cannot be made.
    """
    folder, name = os.path.split(path)
    file = os.path.join(folder, f".{name}.relay-lock")
    descriptor = _lock(file)
    try:
        yield
    finally:
        if descriptor is not None:
            with contextlib.suppress(OSError):
                os.unlink(file)
            with contextlib.suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_UN)  # a child that was forked meanwhile has the descriptor, too
            os.close(descriptor)


def _lock(file: str) -> int | None:
    """A descriptor that holds the lock; ``None`` if the file is another user's, which prevents no listener."""
    while True:
        try:
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
        except OSError:
            if _is_anothers(file):
                return None
            raise
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            if _is_anothers(file):
                return None
            raise OSError(
                errno.EADDRINUSE, "another program is about to listen there; stop it, or use another path"
            ) from None
        except OSError:
            return descriptor  # a file system without locks
        try:
            if os.path.samestat(os.fstat(descriptor), os.lstat(file)):
                return descriptor
        except FileNotFoundError:
            pass
        os.close(descriptor)  # the holder of the lock has removed the file meanwhile


def _is_anothers(file: str) -> bool:
    try:
        return os.lstat(file).st_uid != os.geteuid()
    except OSError:
        return False


def _remove_stale(path: str) -> None:
    """Remove a socket on which no program listens.

    :raises OSError: if one does, or it is no socket.
    """
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise OSError(
            errno.EADDRINUSE, "a file that is not a socket lies there; it is left alone: remove it, or use another path"
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        if probe.connect_ex(path) != errno.ECONNREFUSED:
            raise OSError(errno.EADDRINUSE, "another program listens there; stop it, or use another path")
    os.unlink(path)


def _bind_private(made: socket.socket, path: str) -> None:
    if _LINUX:
        os.fchmod(made.fileno(), 0o600)  # bind() takes the file's rights from the socket's
        made.bind(path)
        return
    before = os.umask(0o177)
    try:
        made.bind(path)
    finally:
        os.umask(before)
