"""The file of the unit: where it is, and whether relay may overwrite it."""

from __future__ import annotations

import os
import re
import zlib

NAME = "relay.service"

_SYSTEM = "/etc/systemd/system"
_MARK = "# Written by relay service install ({:08x}); for changes use: systemctl {}edit relay\n"
_MARKED = re.compile(r"# Written by relay service install \(([0-9a-f]{8})\).*\n")


def path_of(*, is_users: bool) -> str:
    """Return the path of the unit.

    Source: systemd.unit(5), "Unit File Load Path".
    """
    if not is_users:
        return os.path.join(_SYSTEM, NAME)
    base = os.environ.get("XDG_CONFIG_HOME", "")
    folder = base if os.path.isabs(base) else os.path.expanduser("~/.config")
    return os.path.join(folder, "systemd/user", NAME)


def marked(text: str, *, is_users: bool) -> str:
    """Return the text of a unit with the line that says that relay has written it."""
    return _MARK.format(_checksum(text), "--user " if is_users else "") + text


def write(path: str, text: str, *, force: bool) -> None:
    """Write a unit atomically; a unit that relay has not written, or that was changed since, stays.

    :param path: of the unit.
    :param text: with its mark.
    :param force: whether to overwrite any unit.
    :raises ValueError: if there is such a unit.
    :raises OSError: if it cannot be written.
    """
    if os.path.lexists(path):
        check_ours(path, force=force, remedy="--force overwrites it")
    folder = os.path.dirname(path)
    os.makedirs(folder, exist_ok=True)
    # In the same directory, because a rename is atomic only within one file system.
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        with open(temporary, "x", encoding="utf-8", opener=_open) as file:
            file.write(text)
        os.replace(temporary, path)
    except OSError:
        if os.path.lexists(temporary):
            os.unlink(temporary)
        raise


def check_ours(path: str, *, force: bool, remedy: str) -> None:
    """Check that relay has written a unit, and that it was not changed since.

    :param path: of the unit.
    :param force: whether any unit will do.
    :param remedy: the end of the message otherwise.
    :raises ValueError: if there is no such unit, or another one.
    """
    if not os.path.lexists(path):
        raise ValueError(f"{path}: no such unit; check --user and --system")
    if not force and not _is_ours(path):
        raise ValueError(f"{path}: relay has not written this unit, or it was changed; {remedy}")


def _open(path: str, flags: int) -> int:
    return os.open(path, flags, 0o644)


def _is_ours(path: str) -> bool:
    # systemctl mask and link make links; relay did not write what they point to.
    if os.path.islink(path):
        return False
    with open(path, encoding="utf-8", errors="replace") as file:
        mark, text = file.readline(), file.read()
    found = _MARKED.fullmatch(mark)
    return found is not None and int(found[1], 16) == _checksum(text)


def _checksum(text: str) -> int:
    return zlib.crc32(text.encode())
