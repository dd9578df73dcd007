"""Leak checks: descriptors, threads and child processes that a piece of code leaves behind."""

from __future__ import annotations

import os
import socket
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["Leaks", "check_leaks"]

# The second one is that of macOS and the BSDs.
_DESCRIPTORS = "/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"


class Leaks:
    """Snapshot of the process's descriptors, threads and children, for a later comparison.

    Descriptors are compared by the file behind them and not by number, so a number that was closed and reused is
    found. Child processes, including zombies, are found on Linux only.
    """

    def __init__(self) -> None:
        self._descriptors = _descriptors()
        self._children = _children()
        self._threads = set(threading.enumerate())

    def left(self, timeout: float = 2.0) -> list[str]:
        """Return what has been added since the snapshot and still exists.

        :param timeout: seconds to wait for it to end: a thread that is stopping needs a moment.
        :returns: one line of description for each; empty if nothing is left.
        """
        deadline = time.monotonic() + timeout
        # Joined first, all against the same deadline: most of what is left then belonged to a thread that had not ended
        # yet.
        for thread in self._new_threads():
            with suppress(RuntimeError):  # it is about to start
                thread.join(max(0.0, deadline - time.monotonic()))
        while (found := self._found()) and time.monotonic() < deadline:
            threading.Event().wait(0.01)  # no event reports a closed descriptor or a reaped child
        return found

    def _new_threads(self) -> list[threading.Thread]:
        mine = (threading.current_thread(), threading.main_thread())
        now = threading.enumerate()
        foreign = threading._DummyThread  # not made by Python: it cannot be joined
        return [t for t in now if t not in self._threads and t not in mine and not isinstance(t, foreign)]

    def _found(self) -> list[str]:
        threads = [f"thread {thread.name!r}" for thread in self._new_threads()]
        children = [f"child {pid}: {name}" for pid, name in _children().items() if pid not in self._children]
        descriptors = [
            f"descriptor {number}: {_describe(number, what)}"
            for number, what in _descriptors().items()
            if self._descriptors.get(number) != what
        ]
        return threads + children + descriptors


@contextmanager
def check_leaks(timeout: float = 2.0) -> Iterator[None]:
    """Fail if the body of the ``with`` leaves a descriptor, a thread or a child process behind.

    :param timeout: seconds to wait for them to end after the body.
    :raises AssertionError: with one line for each leak. An exception of the body passes unchanged.
    """
    leaks = Leaks()
    yield
    left = leaks.left(timeout)
    if left:
        raise AssertionError("left behind:\n  " + "\n  ".join(left))


def _descriptors() -> dict[int, str]:
    """Return each open descriptor and a text of its identity: equal texts mean the same file, pipe or socket."""
    found = {}
    for number in map(int, os.listdir(_DESCRIPTORS)):
        with suppress(OSError):  # the descriptor of the listing itself is gone by now
            found[number] = _identity(number)
    return found


def _identity(number: int) -> str:
    if _DESCRIPTORS.startswith("/proc"):
        # The text has the inode of a socket or pipe, so a number that was closed and reused has another text.
        return os.readlink(f"{_DESCRIPTORS}/{number}")
    status = os.fstat(number)
    return f"device {status.st_dev}, inode {status.st_ino}, mode {status.st_mode:o}"


def _describe(number: int, what: str) -> str:
    """Return ``what``, and the two addresses of a socket."""
    try:
        if not stat.S_ISSOCK(os.fstat(number).st_mode):
            return what
        # A copy, because closing the object closes its descriptor, and this one belongs to the code under test.
        with socket.socket(fileno=os.dup(number)) as copy:
            own, peer = copy.getsockname(), ""
            with suppress(OSError):
                peer = f" to {copy.getpeername()!r}"
            return f"{what} {copy.family.name} {own!r}{peer}"
    except OSError:
        return what  # closed since


def _children() -> dict[int, str]:
    """Return the process IDs of the direct children, with their names."""
    found = {}
    # The kernel lists the children by the thread that made them.
    for task in Path("/proc/self/task").glob("*/children"):
        with suppress(OSError):  # the thread has ended since
            for pid in map(int, task.read_text().split()):
                found[pid] = Path(f"/proc/{pid}/comm").read_text().strip()
    return found
