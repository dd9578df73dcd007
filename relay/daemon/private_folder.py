"""A private directory that is removed whatever becomes of this process."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from ..process import start_python

_USUAL = "/tmp"  # noqa: S108  (the name in it cannot be guessed)
_LONGEST = 30  # bytes of the directory above it: with 77 more a path of a Unix socket has as many as it may

# Reads the path of the directory, then waits for the end of the process that has written it.
_KEEPER = """
import os, sys
path = sys.stdin.buffer.read()
for folder, _, names in os.walk(path, topdown=False):
    for name in names:
        os.unlink(os.path.join(folder, name))
    os.rmdir(folder)
"""


@contextmanager
def private_folder() -> Iterator[str]:
    """Make a directory (mode 0700) for files that are gone when this process is, also if it is killed.

    It is in ``TMPDIR``, or in ``/tmp`` if that is not set or too long for the paths of sockets.

    :returns: a context manager that gives its path. Leaving it removes the directory; a child process does that, which
        is there before the directory.
    :raises OSError: if it cannot be made.
    :raises RelayError: if this program has no Python interpreter to start the child with.
    """
    # Python's tempfile would make a file, to see whether it can, and leave that if it is killed at this moment.
    parent = os.path.abspath(os.environ.get("TMPDIR") or _USUAL)
    path = os.path.join(parent if len(os.fsencode(parent)) <= _LONGEST else _USUAL, f"relay-{secrets.token_hex(6)}")
    reader, writer = os.pipe()
    with open(writer, "wb", buffering=0) as held:
        with open(reader, "rb", buffering=0):
            keeper = start_python(_KEEPER, reader)
        try:
            held.write(os.fsencode(path))
            os.mkdir(path, 0o700)
            yield path
        finally:
            held.close()
            keeper.wait()
            shutil.rmtree(path, ignore_errors=True)  # the child may have been killed
