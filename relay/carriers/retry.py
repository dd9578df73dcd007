"""The retries of a carrier: the back-off after failures in a row, and the failures that no retry repairs."""

from __future__ import annotations

import math

from ..errors import AuthenticationError, CarrierError, ConnectError
from ..eventloop import backoff

RETRY_FAILED_AFTER = 10.0  # seconds after a final failure until a client that asks starts another attempt
RETRY_REJECTED_AFTER = 300.0  # the same after a rejected or ended login: servers ban a client whose logins fail often
_BACKOFF = (0.5, 30.0)  # seconds after the first failure in a row, and at most
_MAX_BACKOFF_WITH_WAITERS = 2.0  # seconds of back-off at most while a caller waits
_STABLE_AFTER = 10.0  # seconds after which a link that was up counts as a success
_MAX_SAME_STAGE = 3  # times in a row that a server may end the connection at the same point of the login
_MAX_REPEATED_LOGS = 5  # times in a row that the same failure is logged as a warning


def pause_after(error: Exception) -> float:
    """Return the seconds after a final failure until a client that asks starts another attempt.

    Many clients may ask, so that they cannot start one each.

    :param error: the failure.
    """
    # A server that ends the login may reject the password by that.
    is_login = isinstance(error, AuthenticationError) or (isinstance(error, CarrierError) and bool(error.stage))
    return RETRY_REJECTED_AFTER if is_login else RETRY_FAILED_AFTER


class RetryPolicy:
    """The failures in a row of one carrier. Belongs to the carrier's thread.

    :param max_backoff: seconds of back-off at most after a :class:`~relay.ConnectError`, where another attempt costs
        little; ``math.inf`` for the same limit as after any other error.
    :param repeated_logs: times in a row that the same failure is logged as a warning.
    """

    __slots__ = ("_backoff", "_max_backoff", "_repeated_logs", "_stage", "_stage_repeats", "_was_up")

    def __init__(self, max_backoff: float = math.inf, repeated_logs: int = _MAX_REPEATED_LOGS) -> None:
        self._max_backoff = max_backoff
        self._repeated_logs = repeated_logs
        self._backoff = backoff.Backoff(*_BACKOFF, jitter=True)
        self._stage = ""  # of the login at which the last attempt has ended
        self._stage_repeats = 0  # attempts in a row that have ended there
        self._was_up = False

    def connected(self) -> bool:
        """Note that there is a link.

        :returns: whether a failure or another link came before, so that this one is a recovery.
        """
        is_recovery = self._was_up or self.has_failures
        self._was_up = True
        return is_recovery

    def lost(self, seconds: float) -> None:
        """Note the loss of a link.

        :param seconds: that it was up. A link that lasted ends the row of failures; one that did not is one of them.
        """
        # A server may accept each login and end it at once: to begin anew each time would be a loop without pauses.
        if seconds > _STABLE_AFTER:
            self._backoff.reset()

    def give_up_on(self, error: Exception) -> CarrierError | None:
        """Return the final error if a server has ended the login too often at the same point.

        This counts until the first link: a server that has accepted the login before has a passing problem.

        :param error: of the attempt.
        """
        stage = error.stage if isinstance(error, CarrierError) and not self._was_up else ""
        self._stage_repeats = 1 if stage != self._stage else self._stage_repeats + 1
        self._stage = stage
        if not stage or self._stage_repeats < _MAX_SAME_STAGE:
            return None
        final = CarrierError(f"{error}; {self._stage_repeats} times in a row", stage=stage)
        final.final = True
        return final

    def next_delay(self, error: Exception, *, has_waiters: bool) -> float:
        """Count a failure, and return the seconds until the next attempt: twice as many each time, up to a limit.

        An error with a ``pause`` of its own is not counted.

        :param error: the failure.
        :param has_waiters: whether a caller waits for the link.
        """
        if isinstance(error, CarrierError) and error.pause is not None:
            return backoff.jittered(error.pause)
        longest = _MAX_BACKOFF_WITH_WAITERS if has_waiters else math.inf
        if isinstance(error, ConnectError):
            longest = min(longest, self._max_backoff)
        return self._backoff.next(longest)

    def delay_with_waiter(self) -> float:
        """Return the seconds in which the next attempt starts at the latest while a caller waits for it."""
        return backoff.jittered(_MAX_BACKOFF_WITH_WAITERS)

    @property
    def has_failures(self) -> bool:
        """``True`` if there is a row of failures."""
        return self._backoff.failures > 0

    def has_logged_enough(self) -> bool:
        """Return whether the same failure need not be logged as a warning any more."""
        return self._backoff.failures > self._repeated_logs
