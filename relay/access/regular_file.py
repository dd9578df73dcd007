"""Files and directories that another user may have chosen: opening them without blocking, and whether to trust them."""

from __future__ import annotations

import errno
import os
import stat
from typing import BinaryIO

_MOST_LINKS = 40  # that lead to each other, as in the kernel


def open_regular(path: str) -> BinaryIO:
    """Open a regular file to read; a pipe would keep us waiting, and a device might have no end.

    :param path: its path.
    :returns: the file, to be closed by the caller.
    :raises OSError: if it cannot be opened or is not regular; its ``strerror`` says which.
    """
    try:
        # Opened first and looked at then: a look at the path may be of another file than the one that is opened.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except ValueError:  # a NUL, or what the file system's encoding does not have
        raise OSError(errno.EINVAL, "not a path", path) from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", path)
    return open(descriptor, "rb")


def open_own(path: str, flags: int, *, of_any_user: bool = False) -> int:
    """Open a file to write, and create it with mode 0600 if there is none; a pipe without a reader is an error.

    Another user may be able to put something else at its path. So it must be root's or this user's, and so must a link
    that is there be. A name of an open descriptor, such as ``/dev/stdout``, leads to whatever this program was given.

    :param path: its path. The directories on the way may be links.
    :param flags: of ``os.open``, such as ``os.O_WRONLY``.
    :param of_any_user: whether the file, but no link, may be another user's.
    :returns: a descriptor, non-blocking, to be closed by the caller.
    :raises OSError: if it cannot be opened, or is another user's (EPERM).
    """
    flags |= os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
    own = (0, os.geteuid())
    for _ in range(_MOST_LINKS):
        link = _link_at(path)
        if link is None:
            break
        status, target = link
        if status.st_uid not in own:
            raise OSError(errno.EPERM, f"a link of another user (ID {status.st_uid}) lies there", path)
        if _is_of_descriptor(status):
            return os.open(path, flags, 0o600)
        # One link after the other, each with its owner; the kernel would follow all of them without a question.
        path = os.path.join(os.path.dirname(path), target)
    # O_NOFOLLOW, as a link may have been put there since the last one was looked at.
    descriptor = os.open(path, flags | os.O_NOFOLLOW, 0o600)
    status = os.fstat(descriptor)
    if status.st_uid not in own and not of_any_user and not stat.S_ISCHR(status.st_mode):  # such as a terminal
        os.close(descriptor)
        raise OSError(errno.EPERM, f"it belongs to another user (ID {status.st_uid})", path)
    return descriptor


def _link_at(path: str) -> tuple[os.stat_result, str] | None:
    """Return the facts of a link and where it leads, of one and the same; ``None`` if there is none."""
    try:
        if not hasattr(os, "O_PATH"):
            status = os.lstat(path)
            return (status, os.readlink(path)) if stat.S_ISLNK(status.st_mode) else None
        descriptor = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        status = os.fstat(descriptor)
        return (status, os.readlink("", dir_fd=descriptor)) if stat.S_ISLNK(status.st_mode) else None
    finally:
        os.close(descriptor)


def _is_of_descriptor(status: os.stat_result) -> bool:
    """Return whether a link is of procfs: it leads to an open file, not to the text that it shows."""
    try:
        return status.st_dev == os.stat("/proc/self/fd").st_dev
    except OSError:
        return False


def distrust(status: os.stat_result, owner: int, power: str) -> str:
    """Return why a file is not trusted; empty if it is.

    :param status: of the opened file.
    :param owner: the user who may own it, beside root.
    :param power: what the file can do, as in "it can name programs to start".
    """
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o022:
        return f"others can write to it (mode {mode:04o}), and it {power}; chmod go-w it"
    if status.st_uid not in (0, owner):
        return f"it is neither yours nor the administrator's, and it {power}; make a copy of your own"
    return ""


def distrust_directory(path: str) -> str:
    """Return why another user can replace the files of a directory, and what to do; empty if no other user can.

    In one with a sticky bit, as ``/tmp`` has, only the owner of a file can do that, and the owner of the directory.

    :param path: of the directory; one that is not there is trusted.
    """
    try:
        status = os.stat(path)
    except OSError:
        return ""
    mode = stat.S_IMODE(status.st_mode)
    if status.st_uid not in (0, os.geteuid()):
        return f"{path} belongs to another user ({status.st_uid}); choose a directory of yours or root's"
    if mode & 0o022 and not mode & stat.S_ISVTX:
        return f"others can write to {path} (mode {mode:04o}); chmod go-w it, or choose another path"
    return ""
