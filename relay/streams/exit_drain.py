"""The wait at the interpreter's exit, until what was sent on streams of this process has left it.

The kernel delivers what was written to its sockets also after their process has ended. relay moves the bytes of some
streams in threads of this process (TLS, SSH, programs, I2P), which end with it. So the exit counts as the close of
every stream whose caller has the socket alone, and waits for all streams that were closed, as long as bytes leave and
:func:`limit` allows.
"""

from __future__ import annotations

import atexit
import logging
import math
import os
import threading
import time
import weakref
from collections.abc import Callable
from typing import Protocol

logger = logging.getLogger("relay")


class Sender(Protocol):
    """A connection or a stream whose bytes a thread of this process moves."""

    @property
    def quiet(self) -> float | None:
        """Seconds without progress after which the exit waits no more; ``None`` if the sender gives up by itself."""

    def when_sent(self, done: Callable[[], object]) -> bool:
        """Call ``done`` once nothing waits here that was sent on a closed stream. From any thread.

        :param done: called in any thread, perhaps before this returns, perhaps twice; must not block.
        :returns: whether it will be called; ``False`` if the sender has ended.
        """

    def progress(self) -> object:
        """Return a value that changes while bytes leave. From any thread."""


CARRIERS, OVER_CARRIERS, SESSIONS = range(3)
_senders: tuple[weakref.WeakSet[Sender], ...] = (weakref.WeakSet(), weakref.WeakSet(), weakref.WeakSet())  # by level
_lock = threading.Lock()  # other threads add senders while the exit lists them
_until = math.inf  # monotonic seconds; the exit waits no longer


def track(sender: Sender, *, level: int = CARRIERS) -> None:
    """Wait for a sender at exit, while it exists.

    :param sender: is not kept alive by this.
    :param level: the streams below it are of senders of a lower level; those of a higher one are waited for first.
    """
    with _lock:
        _senders[level].add(sender)


def limit(seconds: float) -> None:
    """Let the exit of this process wait so long at most, for all senders together.

    :param seconds: from now on.
    """
    global _until  # noqa: PLW0603  (there is one exit)
    _until = time.monotonic() + seconds


def drain() -> None:
    """Wait until all senders have sent what they had, or send no more, or the user interrupts the program again.

    The wait has a time limit after :func:`limit`.
    """
    try:
        # The highest level first: a TLS session hands what it holds to the SSH channel below, which only then has it to
        # send.
        for senders in reversed(_senders):
            with _lock:
                # A WeakSet may change while it is walked through, as other threads still make streams.
                found = tuple(senders)
            # All of a level begin before the first one is waited for: they leave side by side, and the slowest sets the
            # time.
            waits = [_Wait(sender) for sender in found]
            for one in waits:
                one.wait()
    except KeyboardInterrupt:
        pass  # it exits anyway


class _Wait:
    """The wait for one sender."""

    def __init__(self, sender: Sender) -> None:
        self._sender = sender
        self._sent = threading.Event()
        # Before the question: what leaves between the two counts as progress.
        self._mark = sender.progress()
        self._began = time.monotonic()
        self._is_needed = sender.when_sent(self._sent.set)

    def wait(self) -> None:
        """Wait until it has sent everything, or has made no progress for too long."""
        if not self._is_needed:
            return
        quiet = math.inf if self._sender.quiet is None else self._sender.quiet
        until = self._began + quiet
        while not self._wait_until(min(until, _until)):
            # The limit of the exit came first, and not the sender's own.
            if time.monotonic() < until:
                text = "exit: %s has not taken everything in time, and the rest may be lost; check the target"
                logger.warning(text, self._sender)
                return
            mark = self._sender.progress()
            if mark == self._mark:
                logger.warning(
                    "exit: %s has taken nothing for %g s, and what it has not taken may be lost; check the target",
                    self._sender,
                    quiet,
                )
                return
            self._mark, until = mark, time.monotonic() + quiet

    def _wait_until(self, until: float) -> bool:
        """Return whether everything was sent, at that time at the latest."""
        return self._sent.wait(None if until == math.inf else max(0.0, until - time.monotonic()))


def run_before_others() -> None:
    """Let the wait run before every handler of the exit that is registered by now.

    A library such as paramiko ends its connections in a handler of its own, and the last one registered runs first.
    """
    atexit.unregister(drain)
    atexit.register(drain)


def _after_fork_in_child() -> None:
    global _lock, _until  # noqa: PLW0603  (another thread may have held it)
    _lock = threading.Lock()
    _until = math.inf
    for senders in _senders:
        # They are of the parent, whose threads move their bytes; the child's exit must not wait for them.
        senders.clear()


run_before_others()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
