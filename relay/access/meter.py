"""A bandwidth that several flows share: a token bucket, from which they take in turn.

A flow asks the meter before it reads. The meter grants a number of bytes, or lets the flow wait and calls it back. The
flow says afterwards how many bytes it has read. Those that wait are served in the order in which they came, each with
the same share, so all flows that always have bytes get the same, and a flow with few bytes never waits for long.

The bucket holds an eighth of a second. So the bytes of any time of ten seconds or more exceed the limit by at most 1.3
per cent. Bytes are counted when they are read, by the monotonic clock: jumps of the wall clock change nothing.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Protocol

from ..eventloop.loop import Timer, Timers

_HELD = 0.125  # seconds of the bandwidth that the bucket holds
_ROUND = 0.25  # seconds after which each of many waiting flows has had its turn
_TURN = 0.0625  # seconds of the bandwidth that one turn takes at most; half of what the bucket holds
_QUICK_ROUND = 0.1  # seconds for the same, if each turn then has more than the following
_SHARED = 1 << 16  # bytes of a turn while others wait; each costs relay some 100 us, whatever it moves
_LEAST = 32  # bytes of a turn: less is not worth a system call
_MOST = 1 << 20  # bytes of a turn: what the largest pipe holds. A flow that reads less at once goes on with its turn.
_TURNS = 100  # that are served in one turn of the loop, of 20 us each; the next ones follow a millisecond later
_SERVED = 8 << 20  # bytes that are served in one turn of the loop: a splice of 1 MiB takes 250 us


class Waiter(Protocol):
    """A flow, as its meter sees it."""

    def granted(self, now: float, /) -> None:
        """Read now: the next :meth:`Meter.take` grants bytes."""


class Meter:
    """A token bucket with a queue of those that wait for tokens. Belongs to one thread.

    :param rate: bytes a second.
    :param timers: of the thread's loop.
    :param level: what :attr:`level` was of the meter that this one continues; ``None`` for a full bucket.
    """

    __slots__ = ("rate", "_tokens", "_filled", "_waiting", "_granted", "_owed", "_timers", "_timer")

    def __init__(self, rate: float, timers: Timers, level: tuple[float, float] | None = None) -> None:
        self.rate = rate
        # The second one is when the tokens were counted last, in monotonic seconds.
        self._tokens, self._filled = (rate * _HELD, -math.inf) if level is None else level
        self._waiting: OrderedDict[Waiter, None] = OrderedDict()  # the oldest first
        self._granted: dict[Waiter, int] = {}  # bytes that a flow may read, and has not read yet
        self._owed: dict[Waiter, int] = {}  # bytes of its turn that a flow could not read at once, while others wait
        self._timers = timers
        self._timer: Timer | None = None  # while flows wait: it refers to this, and only the collector would free both

    def take(self, waiter: Waiter, now: float) -> int:
        """Return how many bytes a flow may read now. At 0 it must wait: the meter calls its ``granted`` later."""
        granted = self._granted.get(waiter)
        if granted is not None:
            return granted
        if waiter in self._waiting:
            return 0
        self._fill(now)
        turn = self._turn()
        # Behind those that wait, also where there are tokens: they came first.
        if self._tokens >= turn and not self._waiting:
            self._owed.pop(waiter, None)
            return self._grant(waiter, turn)
        self._waiting[waiter] = None
        if waiter in self._owed:
            # It has not had its whole turn, because it copies and reads less at once: it goes on with it.
            self._waiting.move_to_end(waiter, last=False)
        if len(self._waiting) == 1:
            self._start(now)
        return 0

    def spend(self, waiter: Waiter, size: int) -> None:
        """Count the bytes that a flow has read; it gives back what it has left of its grant.

        :param size: may be more than was granted: those that come later wait the longer.
        """
        granted = self._granted.pop(waiter, 0)
        # What was read beyond the grant makes the bucket negative, so that the sum is right over any longer time.
        self._tokens += granted - size
        if 0 < size < granted and self._waiting:
            self._owed[waiter] = granted - size

    def leave(self, waiter: Waiter) -> None:
        """Forget a flow that has ended. Idempotent."""
        self._tokens += self._granted.pop(waiter, 0)
        self._owed.pop(waiter, None)
        if waiter in self._waiting:
            del self._waiting[waiter]
            if not self._waiting and self._timer is not None:
                self._timer.stop()
                self._timer = None

    def change(self, rate: float) -> None:
        """Use another rate from the next turn on."""
        self.rate = rate

    @property
    def level(self) -> tuple[float, float]:
        """Its state once all flows have left, as plain numbers: for a meter that continues it."""
        return self._tokens, self._filled

    def _turn(self) -> int:
        """Return the bytes of one turn: fewer if many flows wait, so that each has its turn soon."""
        count = len(self._waiting)
        share = self.rate * min(_TURN, _ROUND / (count + 1))
        if count > 1:
            share = min(share, max(_SHARED, self.rate * _QUICK_ROUND / (count + 1)))
        return int(min(max(share, _LEAST), _MOST))

    def _fill(self, now: float) -> None:
        if now > self._filled:
            if self._filled > -math.inf:
                self._tokens = min(self._tokens + (now - self._filled) * self.rate, self.rate * _HELD)
            self._filled = now

    def _grant(self, waiter: Waiter, size: int) -> int:
        self._tokens -= size
        self._granted[waiter] = size
        return size

    def _start(self, now: float) -> None:
        """Wake up when the tokens for the first turn are there."""
        if self._timer is None:
            self._timer = Timer(self._timers, self._serve)
        missing = self._turn() - self._tokens
        self._timer.start(now + max(missing / self.rate, 0.0), now)

    def _serve(self, now: float) -> None:
        """Give those that wait their turns, as far as the tokens go, but not for so long that other handlers wait."""
        self._fill(now)
        waiting, turn = self._waiting, self._turn()
        # After a delay the bucket may be full: its bytes are served over several turns of the loop.
        least = max(turn, self._tokens - _SERVED)
        for _ in range(_TURNS):
            if self._tokens < least or not waiting:
                break
            # Taken out before it is called: it asks again within the call, and then has its place at the end.
            waiter, _ = waiting.popitem(last=False)
            self._grant(waiter, min(turn, self._owed.pop(waiter, turn)))
            waiter.granted(now)
        if waiting:
            self._start(now)
        else:
            self._timer = None
