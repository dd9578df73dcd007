"""The place of control sockets: the runtime directory of the user, and the names in it."""

from __future__ import annotations

import os
import re
import stat
import zlib
from collections.abc import Iterator

from ..access.regular_file import distrust_directory

SUFFIX = ".sock"
LONGEST_PATH = 107  # bytes of the path of a Unix socket, on Linux

_OTHER = re.compile(r"[^A-Za-z0-9_.-]")


def runtime_directories() -> list[str]:
    """Return the directories in which a control socket may be, the one to make it in first.

    In a systemd unit it is ``$RUNTIME_DIRECTORY`` alone: no other relay is meant. Else it is ``$XDG_RUNTIME_DIR/relay``
    if that is the user's own, then ``/run/relay``, in which only root makes one.

    Source: systemd.exec(5), "RuntimeDirectory="; the XDG Base Directory Specification.
    """
    unit = os.environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]
    if os.path.isabs(unit):
        return [unit]
    found = []
    users = os.environ.get("XDG_RUNTIME_DIR", "")
    if os.path.isabs(users) and _is_own(users):
        found.append(os.path.join(users, "relay"))
    return [*found, "/run/relay"]


def default_path(file: str) -> str | None:
    """Return the path of the control socket for a file of tunnels.

    Two files with the same name have different ones: it has a checksum of the whole path.

    :param file: the path of the file.
    :returns: ``None`` if there is no directory in which this user may make one.
    """
    directory = runtime_directories()[0]
    if directory == "/run/relay" and os.geteuid() != 0 and "RUNTIME_DIRECTORY" not in os.environ:
        return None
    real = os.path.realpath(file)
    stem = _OTHER.sub("-", os.path.basename(real).removesuffix(".toml"))[:32] or "relay"
    path = os.path.join(directory, f"{stem}-{zlib.crc32(os.fsencode(real)):08x}{SUFFIX}")
    return path if len(os.fsencode(path)) <= LONGEST_PATH else None


def make_directory(path: str) -> None:
    """Make the directory of a socket if there is none, owner-only, and reject one in which others may put files.

    :param path: of the socket.
    :raises OSError: if it cannot be made.
    :raises ValueError: if it belongs to a user who is neither this one nor root, or if others may write in it, and it
        has no sticky bit (mode 1777, as ``/tmp`` has).
    """
    directory = os.path.dirname(os.path.abspath(path))
    try:
        os.mkdir(directory, 0o700)
    except FileExistsError:
        pass
    if problem := distrust_directory(directory):
        raise ValueError(problem)


def control_sockets() -> Iterator[str]:
    """Yield the paths of the sockets in the directories, in the order of their names. A program may listen or not."""
    for directory in runtime_directories():
        try:
            names = sorted(os.listdir(directory))
        except OSError:
            continue
        for name in names:
            path = os.path.join(directory, name)
            if name.endswith(SUFFIX) and _is_socket(path):
                yield path


def _is_own(directory: str) -> bool:
    try:
        return os.stat(directory).st_uid == os.geteuid()
    except OSError:
        return False


def _is_socket(path: str) -> bool:
    try:
        return stat.S_ISSOCK(os.lstat(path).st_mode)
    except OSError:
        return False
