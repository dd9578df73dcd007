"""Opening a file that another user may have chosen, without blocking on it."""

from __future__ import annotations

import errno
import os
import stat
from typing import BinaryIO

__all__ = ["distrust", "open_regular"]


def open_regular(path: str) -> BinaryIO:
    """Open a regular file to read; a pipe would keep us waiting, and a device might have no end.

    :param path: its path.
    :returns: the file, to be closed by the caller.
    :raises OSError: if it cannot be opened or is not regular; its ``strerror`` says which.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except ValueError:  # a NUL, or what the file system's encoding does not have
        raise OSError(errno.EINVAL, "not a path", path) from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", path)
    return open(descriptor, "rb")


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
