"""The processes that a program has started, and which of them has a socket, as ``/proc`` shows them (proc(5))."""

from __future__ import annotations

import os

_ACCEPTS = 0x10000  # of the flags in /proc/net/unix: the socket listens
_DEEPEST = 4096  # processes above one that are looked at


class HiddenProcessError(PermissionError):
    """A process into which this user may not look."""


def has_socket(inode: int, root: int) -> bool:
    """Return whether a process that another one has started, or one that such a process has started, has a socket.

    :param inode: the number of the socket's file.
    :param root: the process above them; its own sockets do not count.
    :raises HiddenProcessError: if one of them cannot be looked into, and none of the others has it.
    """
    link = f"socket:[{inode}]"
    # Twice: proc(5) says that a process may be missing in the list while one of its siblings ends.
    processes = [*_below(root), *_below(root)]
    hidden = 0
    for process in dict.fromkeys(processes):
        folder = f"/proc/{process}/fd"
        try:
            names = os.listdir(folder)
        except PermissionError:
            hidden = process
            continue
        except OSError:  # it has ended
            continue
        for name in names:
            try:
                if os.readlink(f"{folder}/{name}") == link:
                    return True
            except OSError:  # it was closed
                continue
    if hidden:
        raise HiddenProcessError(f"process {hidden} of it belongs to another user, or hides what it has")
    return False


def is_below(process: int, root: int) -> bool:
    """Return whether a process was started by another one, or by one that this has started."""
    for _ in range(_DEEPEST):
        above = _parent(process)
        if above is None or above == root:
            return above == root
        process = above
    return False


def listens_at(path: str, table: str) -> int | None:
    """Return the number of the socket that listens at a path; ``None`` if there is none.

    :param path: of the Unix socket.
    :param table: the text of ``/proc/net/unix``. Other users choose the paths in it, which may have line breaks.
    """
    for line in table.split("\n"):
        # Num, RefCount, Protocol, Flags, Type, St, Inode, Path
        words = line.split(None, 7)
        if len(words) == 8 and words[7] == path:
            flags, inode = words[3], words[6]
            if _is_hex(flags) and int(flags, 16) & _ACCEPTS and _is_number(inode):
                return int(inode)
    return None


def parent_in(status: bytes) -> int | None:
    """Return the number of the parent process; ``None`` if the text is none of a process.

    :param status: the text of ``/proc/PID/stat``. The program chooses the name in it, which may have any byte.
    """
    words = status.rpartition(b")")[2].split()
    return int(words[1]) if len(words) > 1 and len(words[1]) < 20 and words[1].isdigit() else None


def _below(root: int) -> list[int]:
    found, waiting = [], [root]
    while waiting:
        above = waiting.pop()
        try:
            for task in os.listdir(f"/proc/{above}/task"):
                with open(f"/proc/{above}/task/{task}/children", encoding="ascii") as file:
                    waiting += map(int, file.read().split())
        except OSError:  # it has ended
            continue
        found.append(above)
    return found[1:]


def _parent(process: int) -> int | None:
    try:
        with open(f"/proc/{process}/stat", "rb") as file:
            return parent_in(file.read())
    except OSError:  # it has ended
        return None


def _is_hex(word: str) -> bool:
    return len(word) <= 8 and all(digit in "0123456789abcdefABCDEF" for digit in word)


def _is_number(word: str) -> bool:
    return len(word) < 20 and word.isascii() and word.isdigit()
