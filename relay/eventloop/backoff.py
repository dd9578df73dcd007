"""Pauses between attempts that fail: twice as long each time, up to a maximum."""

from __future__ import annotations

_MOST_DOUBLINGS = 30  # beyond any maximum; a float has no room for those of a year


class Backoff:
    """The pauses after failures in a row. It has no lock: one thread at a time uses it.

    :param first: seconds after the first failure.
    :param longest: seconds at most.
    :param jitter: whether each pause is shortened by chance; see :func:`jittered`.
    """

    __slots__ = ("_first", "_jitter", "_longest", "failures")

    def __init__(self, first: float, longest: float, *, jitter: bool = False) -> None:
        self._first = first
        self._longest = longest
        self._jitter = jitter
        self.failures = 0
        """The number of failures in a row."""

    def next(self, at_most: float | None = None) -> float:
        """Count a failure, and return the seconds until the next attempt.

        :param at_most: the maximum of this pause, if it is shorter than that of the others; ``None`` for theirs.
        """
        longest = self._longest if at_most is None else min(at_most, self._longest)
        pause = min(longest, self._first * 2.0 ** min(self.failures, _MOST_DOUBLINGS))
        self.failures += 1
        return jittered(pause) if self._jitter else pause

    def reset(self) -> None:
        """End the row of failures after a success."""
        self.failures = 0


def jittered(seconds: float) -> float:
    """Return between a half and all of ``seconds``, so that fifty programs do not try again at the same moment."""
    import random  # late, as most tunnels never back off, and need no random numbers

    return seconds * random.uniform(0.5, 1.0)  # noqa: S311  (this needs no secrecy)
