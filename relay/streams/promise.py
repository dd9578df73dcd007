"""Outcomes that come later: one that a thread waits for, steps that are begun one after the other, cancellation."""

from __future__ import annotations

import copy
import logging
import os
import select
import threading
import time
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

from ..errors import ConnectError
from .stream import Stream


class Cancel(Protocol):
    """A request to give an attempt up, as a factory sees it."""

    def is_set(self) -> bool:
        """Return whether the attempt was given up."""

    def fileno(self) -> int:
        """Return a descriptor that becomes readable when the attempt is given up."""


class Cancellation:
    """A :class:`Cancel` that a tunnel sets; its descriptor is made by the first call of :meth:`fileno`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._set = False
        self._pipe: tuple[int, int] | None = None

    def is_set(self) -> bool:
        """Return whether the attempt was given up."""
        return self._set

    def fileno(self) -> int:
        """Return a descriptor that becomes readable when the attempt is given up; valid until the factory returns."""
        with self._lock:
            # Most attempts never ask for it, and a pipe costs two descriptors of each client.
            if self._pipe is None:
                self._pipe = os.pipe()
                # It was set before there was a pipe: the waiter must see it all the same.
                if self._set:
                    os.write(self._pipe[1], b"\0")
            return self._pipe[0]

    def set(self) -> None:
        """Give the attempt up."""
        with self._lock:
            was_set, self._set = self._set, True  # first: the thread that is woken looks at it
            if not was_set and self._pipe is not None:
                os.write(self._pipe[1], b"\0")

    def close(self) -> None:
        """Close the descriptor; the factory has returned."""
        with self._lock:
            self._set = True
            # Under the lock, so that `set` writes to no number that is another file's by then.
            self.abandon()

    def abandon(self) -> None:
        """In a forked child: close the descriptors; the lock may be held forever."""
        pipe, self._pipe = self._pipe, None
        for descriptor in pipe or ():
            os.close(descriptor)


logger = logging.getLogger("relay")

Value = TypeVar("Value")
Error = TypeVar("Error", bound=Exception)
OnResult = Callable[[Stream | OSError], object]
Abort = Callable[[], object]

LATE = 1.0  # seconds after the deadline until a waiting thread stops relying on the callback


class Promise(Generic[Value]):
    """One outcome, for a thread that waits for it or does something else. A stream that comes too late is closed."""

    def __init__(self) -> None:
        self._there = Cancellation()
        self._lock = threading.Lock()
        self._outcome: Value | Exception | None = None
        self._unwanted = False
        self.cancelled = False
        """Whether the wait has ended because it was cancelled."""

    def put(self, outcome: Value | Exception) -> bool:
        """Set the outcome; from any thread.

        :returns: ``False`` if the wait has ended.
        """
        with self._lock:
            unwanted = self._unwanted
            if not unwanted:
                self._outcome = outcome
                self._there.set()
        # Without the lock: a close may block, or call back.
        if unwanted and isinstance(outcome, Stream):
            outcome.close()
        return not unwanted

    def get(self, deadline: float | None, cancel: Cancel | None) -> Value | None:
        """Wait for the outcome; this is called once.

        :param deadline: monotonic seconds, the wait ends soon after; ``None`` for no limit.
        :param cancel: ends the wait when set.
        :returns: the value; ``None`` if nothing came in time.
        :raises Exception: if that is the outcome.
        """
        try:
            self._wait(deadline, cancel)
        except BaseException:
            # An interrupt (Ctrl-C) ends the wait, and the stream that comes afterwards has no owner.
            self.refuse()
            raise
        return self.take()

    def take(self) -> Value | None:
        """Return the outcome as it is now, and end the wait.

        :returns: the value; ``None`` if there is none.
        :raises Exception: if that is the outcome.
        """
        outcome = self._end()
        if isinstance(outcome, Exception):
            raise copy_error(outcome)
        return outcome

    def refuse(self) -> None:
        """End the wait, and close the outcome if it is a stream."""
        outcome = self._end()
        if isinstance(outcome, Stream):
            outcome.close()

    def _end(self) -> Value | Exception | None:
        with self._lock:
            outcome, self._outcome = self._outcome, None
            self._unwanted = True
            self._there.close()
        return outcome

    def _wait(self, deadline: float | None, cancel: Cancel | None) -> None:
        if self._there.is_set():
            return
        poller = select.poll()
        poller.register(self._there.fileno(), select.POLLIN)
        if cancel is not None:
            poller.register(cancel.fileno(), select.POLLIN)
        # The dialer watches the same deadline and has the better error; this limit is only for one that never calls
        # back.
        events = poller.poll(None if deadline is None else max(0.0, deadline + LATE - time.monotonic()) * 1000)
        self.cancelled = cancel is not None and any(descriptor == cancel.fileno() for descriptor, _ in events)


def copy_error(error: Error) -> Error:
    """Return a copy of an error that several callers get, for one of them to raise or to change."""
    try:
        # Each raise adds to the traceback of its error; one error raised in many threads would show the frames of all.
        made = copy.copy(error)
    except Exception:  # noqa: BLE001  (an exception that cannot be copied)
        return error
    made.__cause__ = error.__cause__
    return made


class CallbackChain(Generic[Value]):
    """Steps that are begun one after the other until there is an outcome, and that can be given up.

    Every method may be called from any thread.

    :param done: called once with the outcome, unless it was given up.
    """

    __slots__ = ("_done", "_given_up", "_lock", "_number", "_undo")

    def __init__(self, done: Callable[[Value | OSError], object]) -> None:
        self._done: Callable[[Value | OSError], object] | None = done
        self._lock = threading.Lock()
        self._given_up = False
        self._number = 0
        self._undo: Abort | None = None

    def begin(
        self,
        begin: Callable[[Callable[[Any], object]], Abort],
        then: Callable[[Any], object],
        *,
        owned: type[Any] = Stream,
    ) -> bool:
        """Begin the next step.

        :param begin: takes a callback for the outcome of the step, which it may call at once; returns a function that
            gives the step up.
        :param then: called with the outcome, unless all was given up: begins the next step, or finishes. If it raises,
            which is a bug, that is logged, and ``done`` gets an error that says so.
        :param owned: class of an outcome that is closed if ``then`` was not called, or raised.
        :returns: whether it was begun: ``False`` if all was given up, and if ``begin`` raised, which is the outcome.
        """
        with self._lock:
            if self._given_up:
                return False
            self._number += 1
            number = self._number
            # The undo of the step before is void: a `give_up` from now on waits for that of this one, below.
            self._undo = None

        def on_outcome(outcome: Any) -> None:
            # Without the lock: it never becomes False again, and if it becomes True later, `finish` or `then` finds
            # `_done` gone.
            if self._given_up:
                if isinstance(outcome, owned):
                    outcome.close()
                return
            try:
                then(outcome)
            except Exception:
                # `done` was called and has raised: nothing is left to report to but the caller.
                if self._done is None:
                    raise
                logger.exception("a step of a connect failed; this is a bug in relay")
                self.finish(ConnectError("a bug in relay; the log has it", reason="factory_error"))
                if isinstance(outcome, owned):
                    outcome.close()

        try:
            # Without the lock: it may call back at once, in this thread, and begin the step after.
            undo = begin(on_outcome)
        except OSError as error:
            self.finish(error)
            return False
        with self._lock:
            if number != self._number:
                return True  # it was over before it returned, and the next one may have begun
            self._undo = undo
            is_given_up = self._done is None  # else the number would be another one
        if is_given_up:
            # It was given up between the two locks, when there was nothing to undo yet.
            undo()
        return True

    def finish(self, outcome: Value | OSError) -> None:
        """Call ``done``; there is no further step."""
        with self._lock:
            done, self._done = self._done, None
            self._number += 1
            self._undo = None
        if done is not None:
            done(outcome)
        elif isinstance(outcome, Stream):
            outcome.close()

    def give_up(self) -> None:
        """Give up: ``done`` is not called any more. Idempotent, and without effect once it is finished."""
        with self._lock:
            self._given_up = True
            self._done = None
            undo, self._undo = self._undo, None
        if undo is not None:
            undo()
