"""Unix sockets: connecting to one, and listening at one."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import grp
import logging
import os
import select
import socket
import stat
import struct
import sys
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from ..access.regular_file import distrust_directory
from ..addresses.printable import shown
from ..addresses.values import UnixAddress, unix_path
from ..errors import AddressError
from ..eventloop.sockets import Endpoint
from ..streams.connect import SocketDialer
from .tcp import BACKLOG, Inherited

logger = logging.getLogger("relay")


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
_DENIED = (errno.EACCES, errno.EPERM)
_PATIENCE = 10.0  # seconds for the workers of a program that was killed to end
_UCRED = struct.Struct("3i")  # of SO_PEERCRED: process, user, group
_NO_RIGHT = "a socket lies there that this user may not use or replace; remove it, or use another path"
_TAKEN = "another program has removed or replaced it at once; stop that program, or use another path"
_DESCRIPTORS = "/proc/self/fd/"
_LAST_GROUP = 2**32 - 2  # chown(2): the number after it leaves the group as it is


def listen_unix(
    path: str | os.PathLike[str],
    mode: str | None = None,
    group: str | None = None,
    kind: type[UnixListener] | None = None,
    inherited: Inherited | None = None,
) -> UnixListener:
    """Listen on a Unix stream socket that its owner alone may use, unless other rights are given.

    It has mode 0600 from its first moment, and other rights only once it has its group. No other file gets them, also
    if another user may replace the socket, as the owner of its directory may: one WARNING says so.

    A socket that is already there is replaced if no program listens on it; any other file is left alone.

    :param path: where to make it; a relative path is taken from the working directory of now.
    :param mode: the rights of the file, such as ``"0660"``; ``None`` for ``"0600"``. A client needs the right to write.
    :param group: of the file, by name or number; ``None`` for that of the process, or of its directory.
    :param kind: the class of the socket.
    :param inherited: as for :func:`~relay.transports.tcp.listen_tcp`.
    :returns: a bound, listening socket, whose ``close()`` removes the file; the caller owns it.
    :raises TypeError: if ``path`` is not a path.
    :raises ValueError: if it is empty, holds a control character or is longer than a Unix socket's may be.
    :raises AddressError: if there is no such group.
    :raises OSError: if it cannot be made there (``errno`` tells, such as EADDRINUSE), or may not have the group.
    """
    place = unix_path(path)
    kind = kind or UnixListener
    rights = _rights(place, mode, group)
    if problem := distrust_directory(os.path.dirname(place) or os.curdir):
        logger.warning("%s: another user can replace the socket: %s", UnixAddress(place), problem)
    known = inherited.take(socket.AF_UNIX, place) if inherited is not None else None
    if known is not None:
        listening = kind(fileno=known.detach())  # its file stays that of the other owner
        listening.setblocking(False)  # the other owner relies on it
        listening.borrow(place, rights)
        return listening
    made = kind(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _guard(place):
            _remove_stale(place)
            _bind_private(made, place)
            # Before it listens: no client can connect while the file has the rights of the moment.
            made.own(place, rights)
            made.listen(BACKLOG)
    except OSError as error:
        made.close()
        raise _explained(error, place, group) from error
    return made


def _explained(error: OSError, path: str, group: str | None) -> OSError:
    hint = "; make its directory first" if error.errno == errno.ENOENT else ""
    if error.errno == errno.EPERM and group is not None:
        hint = f"; only its members may give it the group '{shown(group)}'"
    return OSError(error.errno, f"{UnixAddress(path)}: {error.strerror}{hint}")


def check_group(path: str, group: str | None) -> int:
    """Return the number of the group of a socket; -1 for ``None``.

    :param path: of the socket, for errors.
    :param group: its name or number.
    :raises AddressError: if there is no such group, or the number is none of a group.
    """
    try:
        return group_number(group)
    except ValueError as error:
        raise AddressError(f"{UnixAddress(path)}: {error}") from None


def group_number(group: str | None) -> int:
    """Return the number of a group; -1 for ``None``.

    :param group: its name or number.
    :raises ValueError: if there is no such group, or the number is none of a group.
    """
    if group is None:
        return -1
    if group.isascii() and group.isdigit():
        number = group.lstrip("0") or "0"
        if len(number) > len(str(_LAST_GROUP)) or int(number) > _LAST_GROUP:  # int() takes no thousands of digits
            raise ValueError(f"group: {shown(group)} is no number of a group; the last one is {_LAST_GROUP}")
        return int(number)
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise ValueError(f"group: this machine has no group {shown(group)}; see getent group") from None


class _Rights(NamedTuple):
    """The rights of the file of a listening socket."""

    mode: int
    group: int
    """Its number; -1 to leave the group as it is."""

    def renew(self, path: str, file: tuple[int, int]) -> None:
        """Give the rights to a file that has others: with no group, that of a new file.

        :param path: where it lies.
        :param file: its device and its inode; another file, which has taken its place, is left alone.
        :raises OSError: if it may not have them.
        """
        with _held(path) as (name, found):
            if (found.st_dev, found.st_ino) != file or not stat.S_ISSOCK(found.st_mode):
                return
            folder = os.stat(os.path.dirname(path) or os.curdir)
            usual = folder.st_gid if folder.st_mode & stat.S_ISGID else os.getegid()
            wanted = usual if self.group == -1 else self.group
            _Rights(self.mode, -1 if wanted == found.st_gid else wanted).apply(name, found)

    def apply(self, name: str, found: os.stat_result) -> None:
        """Give a file the rights.

        :param name: of the file, as :func:`_held` yields it.
        :param found: the facts of the file.
        :raises OSError: if it may not have them.
        """
        is_held = name.startswith(_DESCRIPTORS)
        if self.group != -1:
            os.chown(name, -1, self.group, follow_symlinks=is_held)
        if self.mode != stat.S_IMODE(found.st_mode):  # after the group, which would have them otherwise
            if not is_held and os.chmod not in os.supports_follow_symlinks:
                raise OSError(errno.ENOSYS, "its mode cannot be set without /proc; mount it, or leave mode= out")
            os.chmod(name, self.mode, follow_symlinks=is_held)


@contextlib.contextmanager
def _held(path: str) -> Iterator[tuple[str, os.stat_result]]:
    """Yield a name of the file at a path that stays its name, also if it is renamed, and its facts. Links stay links.

    Elsewhere than on Linux that is the path itself; ``chmod`` and ``chown`` follow no link there.
    """
    if not _LINUX:
        yield path, os.lstat(path)
        return
    descriptor = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield f"{_DESCRIPTORS}{descriptor}" if os.path.exists(_DESCRIPTORS) else path, os.fstat(descriptor)
    finally:
        os.close(descriptor)


def _rights(path: str, mode: str | None, group: str | None) -> _Rights:
    """Return the rights that an address names; the parameters and the errors are those of :func:`listen_unix`."""
    return _Rights(0o600 if mode is None else int(mode, 8), check_group(path, group))


def _put_back(path: str, file: tuple[int, int], rights: _Rights) -> None:
    with contextlib.suppress(OSError):  # another program has removed it
        rights.renew(path, file)


def _nothing() -> None:
    pass


class UnixListener(socket.socket):
    """A listening Unix socket that removes its file when it is closed by the process that made it."""

    _file: tuple[str, int, int] | None = None
    _borrowed: tuple[str, int, int] | None = None  # the file of another owner of the socket
    _rights: _Rights | None = None  # for that file
    _owner = 0

    @property
    def file_id(self) -> tuple[int, int] | None:
        """The device and the inode of the file that it owns; ``None`` for none."""
        return self._file[1:] if self._file is not None else None

    def own(self, path: str, rights: _Rights) -> None:
        """Remember the file that ``bind`` made, to know it again, and give it its rights.

        :raises OSError: if it may not have them, or if another file has taken its place (EADDRINUSE).
        """
        try:
            with _held(path) as (name, found):
                # No program listens at it yet. EACCES: a security module, or a server of files.
                if not stat.S_ISSOCK(found.st_mode) or _answer(name) not in (errno.ECONNREFUSED, errno.EACCES):
                    raise OSError(errno.EADDRINUSE, _TAKEN)
                self._file, self._owner = (path, found.st_dev, found.st_ino), os.getpid()
                rights.apply(name, found)
        except FileNotFoundError:
            raise OSError(errno.EADDRINUSE, _TAKEN) from None

    def borrow(self, path: str, rights: _Rights) -> None:
        """Remember the file of another owner of the socket, and the rights that it is to have, for :meth:`adopt`."""
        self._rights = rights
        with contextlib.suppress(OSError):  # another program has removed it
            self._borrowed = _file_at(path)

    def adopt(self, file: object = None) -> None:
        """Own the file that it has borrowed, if there is one: the owner before has left it to this one.

        :param file: its device and its inode as the owner before knew them, a list; ``None`` if that is not known.
            Another file is left alone.
        """
        borrowed, self._borrowed = self._borrowed, None
        if borrowed is None or (file is not None and file != list(borrowed[1:])):
            return
        self._file, self._owner = borrowed, os.getpid()
        try:
            if self._rights is not None:
                self._rights.renew(borrowed[0], borrowed[1:])
        except OSError as error:
            logger.warning("%s: its mode and group stay as they were: %s", UnixAddress(borrowed[0]), error.strerror)

    def change_rights(self, mode: str | None, group: str | None) -> Callable[[], None]:
        """Give its own file other rights; a file that is not, or is no longer, its own is left alone.

        :param mode: as for :func:`listen_unix`.
        :param group: as for :func:`listen_unix`; ``None`` for that of a new file.
        :returns: gives it the rights of before again.
        :raises AddressError: if there is no such group.
        :raises OSError: if it may not have them; it has those of before.
        """
        if self._file is None:
            return _nothing
        path, file = self._file[0], self._file[1:]
        rights = _rights(path, mode, group)
        try:
            found = os.lstat(path)
        except OSError:
            return _nothing
        if (found.st_dev, found.st_ino) != file:
            return _nothing
        back = functools.partial(_put_back, path, file, _Rights(stat.S_IMODE(found.st_mode), found.st_gid))
        try:
            rights.renew(path, file)
        except OSError as error:
            back()
            raise _explained(error, path, group) from error
        return back

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
                # Before the unlock, so that a program which waits for it finds another file, and tries again.
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
            # The lock may be on a file that its last holder has removed since: such a lock excludes no other program.
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

    :raises OSError: if one does, if it is no socket, or if this user may not find out or remove it.
    """
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if stat.S_ISDIR(mode):
        raise OSError(errno.EADDRINUSE, "that is a directory; name a file in it")
    if not stat.S_ISSOCK(mode):
        raise OSError(
            errno.EADDRINUSE, "a file that is not a socket lies there; it is left alone: remove it, or use another path"
        )
    # Asked by a connect: only the kernel knows whether a program listens at it.
    result = _answer(path, _PATIENCE)
    if result in _DENIED:
        raise OSError(errno.EADDRINUSE, _NO_RIGHT)
    if result != errno.ECONNREFUSED:
        raise OSError(errno.EADDRINUSE, "another program listens there; stop it, or use another path")
    try:
        os.unlink(path)
    except PermissionError:  # another user's, in a directory such as /tmp
        raise OSError(errno.EADDRINUSE, _NO_RIGHT) from None


def _answer(path: str, patience: float = 0.0) -> int:
    """Connect to a socket, and return the number of the error; 0 if it was accepted.

    If the program that made the listener is dead, others still have it: its workers, which end a moment later.

    :param path: of the socket.
    :param patience: seconds to wait for their end. They may as well be the successors of the program, which stay.
    """
    until = time.monotonic() + patience
    while True:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            result = probe.connect_ex(path)
            left = until - time.monotonic()
            if result or left <= 0 or not _is_of_dead_program(probe):
                return result
            waiting = select.poll()
            waiting.register(probe, 0)  # for a hang-up alone
            waiting.poll(left * 1000)


def _is_of_dead_program(connected: socket.socket) -> bool:
    """Return whether the process that made the listener of a connected socket does not exist any more."""
    if not hasattr(socket, "SO_PEERCRED"):
        return False
    process, _, _ = _UCRED.unpack(connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    try:
        os.kill(process or os.getpid(), 0)  # 0 is a process that is not seen from here
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False


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
