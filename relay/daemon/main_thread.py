"""The calls of other threads in the main thread, which runs them between two signals."""

from __future__ import annotations

import functools
import queue
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from .failures import ConflictError

if TYPE_CHECKING:  # a command starts in half the time without it
    from concurrent.futures import Future

UNDER_WAY = "an upgrade is under way; try again after it"

Result = TypeVar("Result")


class MainThread:
    """The calls that wait for the main thread. Until :meth:`enter` it is the thread that has made the object.

    :param wake: ends the wait of the main thread; called from any thread.
    """

    def __init__(self, wake: Callable[[], object]) -> None:
        self._wake = wake
        self._thread = threading.current_thread()
        self._events: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._lock = threading.Lock()  # for the following one
        self._waiting: set[Future[Any]] | None = set()  # the threads that wait for a result; None after the end

    # -- from any thread --------------------------------------------------------------------------------------------

    def later(self, function: Callable[..., object], *arguments: Any) -> None:
        """Call a function in the main thread, and do not wait."""
        self._events.put(functools.partial(function, *arguments))
        self._wake()  # second: the main thread empties the queue after a wake, not before it

    def call(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Call a function in the main thread, and wait for it; from the main thread, at once.

        :param function: called with the arguments. It must not wait for long: no signal is handled meanwhile.
        :returns: its result.
        :raises ConflictError: if the end comes before that.
        :raises BaseException: what it raises.
        """
        # The queue is emptied by this very thread, so it would wait for itself.
        if threading.current_thread() is self._thread:
            return function(*arguments)
        from concurrent.futures import Future

        future: Future[Result] = Future()
        with self._lock:
            # The end takes the set away under this lock: a call is in the set and gets its error, or comes later and
            # raises here.
            if self._waiting is None:
                raise ConflictError("relay is ending; start it again")
            self._waiting.add(future)
        self.later(self._answer, future, functools.partial(function, *arguments))
        return future.result()

    @property
    def has_callers(self) -> bool:
        """True if a thread waits for a result."""
        return bool(self._waiting)

    @property
    def is_over(self) -> bool:
        """True after the end: no call waits or comes any more."""
        return self._waiting is None

    # -- the main thread --------------------------------------------------------------------------------------------

    def enter(self) -> None:
        """Make the current thread the main thread."""
        self._thread = threading.current_thread()

    def run_next(self) -> bool:
        """Call the next function; return false if there is none."""
        if self._events.empty():  # no other thread takes from it, so what is there now stays there
            return False
        self._events.get()()
        return True

    def close(self) -> None:
        """Raise in the threads that still wait, and in those that come later."""
        with self._lock:  # a call that comes from now on raises at once, instead of waiting for ever
            waiting, self._waiting = self._waiting or (), None
        # Outside the lock, because a result wakes the thread that waits, and that may call again.
        for future in waiting:
            future.set_exception(ConflictError("relay is ending; start it again"))

    def _answer(self, future: Future[Result], function: Callable[[], Result]) -> None:
        """Call a function for a thread that waits for its result."""
        # close() may have answered it while it was in the queue: that thread goes on, and does not expect its effect.
        with self._lock:
            if self._waiting is None or future not in self._waiting:
                return
            self._waiting.discard(future)
        try:
            future.set_result(function())
        except BaseException as error:  # noqa: BLE001  (it is raised in the thread that waits)
            future.set_exception(error)
