"""Somebody who waits for a carrier to be up, until a deadline."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

from ..errors import ConnectError, RelayError
from ..eventloop.loop import Timer, Timers

__all__ = ["Waiter", "without"]

logger = logging.getLogger("relay")

AnyLink = TypeVar("AnyLink", bound=Any)


class Awaited(Protocol):
    """What a waiter needs of the carrier that it waits for."""

    name: str
    error: Exception | None  # why it is not up

    def call(self, function: Callable[[], object], /) -> bool:
        """Have a function called in the carrier's thread."""

    def drop(self, waiter: Waiter[Any], /) -> None:
        """Forget a waiter; in the carrier's thread."""


class Waiter(Generic[AnyLink]):
    """Somebody who waits for a carrier to be up."""

    __slots__ = ("_carrier", "_deadline", "_done", "_lock", "_timer", "patient")

    def __init__(
        self,
        carrier: Awaited,
        done: Callable[[AnyLink | Exception], object],
        deadline: float | None,
        patient: bool,
    ) -> None:
        self.patient = patient
        self._carrier = carrier
        self._deadline = deadline
        self._done: Callable[[AnyLink | Exception], object] | None = done
        self._lock = threading.Lock()
        self._timer: Timer | None = None

    def start(self, timers: Timers) -> None:
        """Begin to watch the clock."""
        if self._deadline is not None:
            self._timer = Timer(timers, self._expired)
            self._timer.start(self._deadline, time.monotonic())

    def tell(self, outcome: AnyLink | Exception) -> None:
        """The wait is over."""
        self._stop()
        with self._lock:
            done, self._done = self._done, None
        if done is not None:
            try:
                done(outcome)
            except Exception:  # others wait, too
                logger.exception("%s: somebody who waited for it failed", self._carrier.name)

    def give_up(self) -> None:
        """Tell nobody; from any thread, idempotent, and without effect once somebody was told."""
        with self._lock:
            done, self._done = self._done, None
        if done is not None:
            self._carrier.call(self._forget)

    def _forget(self) -> None:
        self._stop()
        self._carrier.drop(self)

    def _stop(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.stop()

    def _expired(self, now: float) -> None:
        carrier = self._carrier
        carrier.drop(self)
        error, prefix = carrier.error, f"{carrier.name}: "
        if isinstance(error, RelayError) and not str(error).startswith(prefix):  # it belongs to a hop before
            text = f"{error} (not connected in time)"
        else:
            why = without(carrier.name, error) if error is not None else "no answer yet"
            text = f"{prefix}not connected in time: {why}"
        self.tell(ConnectError(text, reason="connect_timeout"))


def without(name: str, error: Exception) -> str:
    """What an error says, for a line that begins with the name already."""
    return str(error).removeprefix(f"{name}: ")
