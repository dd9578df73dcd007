"""The opening of a listener for a reload, which waits for it, and may leave it to the main thread before it is over.

========= ========= ========= ========================================================================================
state     event     next      action
                    state
========= ========= ========= ========================================================================================
OPENING   postponed POSTPONED end the wait: the listener waits for its server, and counts as open
OPENING   outcome   OVER      end the wait: it is open, or has failed
POSTPONED postponed POSTPONED none
POSTPONED outcome   OVER      none
========= ========= ========= ========================================================================================

After the main thread has taken it over, each event also calls its handler. Events that came before call theirs then.
"""

from __future__ import annotations

import enum
import threading
from collections.abc import Callable

from ..plan import Bound
from ..probes import BackgroundCall

__all__ = ["ListenerOpening", "OpeningState"]


class OpeningState(enum.Enum):
    """The state of an opening; the docstring of the module has the table."""

    OPENING, POSTPONED, OVER = range(3)


class ListenerOpening:
    """The opening of one listener, on a thread of its own.

    :param opening: opens it; called with a function for postponements, as by
        :class:`relay.daemon.probes.BackgroundCall`.
    """

    def __init__(self, opening: Callable[..., Bound]) -> None:
        self._lock = threading.Lock()  # for the state and the handlers
        self._state = OpeningState.OPENING
        self._settled = threading.Event()
        self._problem: Exception | None = None  # of the last postponement
        self._handlers: tuple[Callable[[], object], Callable[[Exception], object]] | None = None
        self._call = BackgroundCall(opening, self._on_outcome, self._on_postponed)

    def wait(self) -> Bound | None:
        """Wait until the listener is open; ``None`` if it is postponed.

        :raises Exception: why it cannot be opened.
        """
        self._settled.wait()
        with self._lock:
            is_over = self._state is OpeningState.OVER
        return self._call.outcome() if is_over else None

    def give_up(self) -> None:
        """Do not open it any more, or close it."""
        self._call.give_up()

    def hand_over(self, outcome: Callable[[], object], postponed: Callable[[Exception], object]) -> BackgroundCall:
        """Return the call that still opens the listener, and pass its events on from now on."""
        with self._lock:
            self._handlers = outcome, postponed
            is_over, problem = self._state is OpeningState.OVER, self._problem
        if problem is not None:
            postponed(problem)
        if is_over:
            outcome()
        return self._call

    def _on_outcome(self) -> None:
        with self._lock:
            self._state = OpeningState.OVER
            handlers = self._handlers
        self._settled.set()
        if handlers is not None:
            handlers[0]()

    def _on_postponed(self, error: Exception) -> None:
        with self._lock:
            if self._state is OpeningState.OPENING:
                self._state = OpeningState.POSTPONED
            self._problem = error
            handlers = self._handlers
        self._settled.set()
        if handlers is not None:
            handlers[1](error)
