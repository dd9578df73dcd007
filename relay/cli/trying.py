"""What a command tries beside its work, in threads: to listen, and to go over the hops of a way."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

from ..carrier import SAME
from ..errors import ConnectError, can_retry
from ..link import State
from .output import carriers_quiet

__all__ = ["Attempt", "SLOW", "SessionTrial", "Trial", "say_slow"]

logger = logging.getLogger("relay.cli")

SLOW = 3.0  # seconds after which a user who waits reads what for
AGAIN = (1.0, 30.0)  # seconds until the next attempt to listen: the first pause, and the longest


class Attempt:
    """A call that opens something, in a thread of its own, repeated with growing pauses while a retry can fix it.

    :param call: returns what has a ``close``.
    :param over: called in the thread when there is an outcome.
    :param postponed: called in the thread with each error that a retry may fix and the seconds until that;
        ``None`` to make one attempt.
    """

    def __init__(
        self,
        call: Callable[[], Any],
        over: Callable[[], object],
        postponed: Callable[[Exception, float], object] | None = None,
    ) -> None:
        self._call = call
        self._over = over
        self._postponed = postponed
        self._given_up = threading.Event()
        self._stages: list[str] = []  # of the login at which the attempts in a row have ended
        self._made: Any = None
        self._error: Exception | None = None
        threading.Thread(target=self._run, name="relay-listen", daemon=True).start()

    def _run(self) -> None:
        pause, longest = AGAIN
        while not self._is_over(pause):
            pause = min(2 * pause, longest)
        if self._given_up.is_set():
            self.give_up()
        self._over()

    def _is_over(self, pause: float) -> bool:
        """Make one attempt, and pause after one that is to be repeated."""
        try:
            self._made = self._call()
        except Exception as error:  # noqa: BLE001  (it is raised where the outcome is waited for)
            if self._postponed is not None and can_retry(error) and not self._is_repeated(error):
                self._postponed(error, pause)
                if not self._given_up.wait(pause):
                    return False
            self._error = error
        return True

    def _is_repeated(self, error: Exception) -> bool:
        """Whether the server has ended the connection three times in a row at the same point of the login."""
        self._stages = [*self._stages[1 - SAME :], getattr(error, "stage", "")]
        return len(self._stages) == SAME and self._stages == [self._stages[0]] * SAME and self._stages[0] != ""

    def outcome(self) -> Any:
        """What was opened, once it is over.

        :raises Exception: what the call raised.
        """
        if self._error is not None:
            raise self._error
        return self._made

    def give_up(self) -> None:
        """Make no further attempt, and close what was opened, now or when it is."""
        self._given_up.set()
        if self._made is not None:
            self._made.close()


class Trial:
    """Tries the hops while the tunnel already listens, so that a wrong key is known before the first client comes.

    A server that cannot be reached is not the end: its carrier logs that and retries. What it finds out before it was
    up for the first time counts as the start, too.

    :param make_send: the factory; one without ``ready`` has no hops.
    :param timeout: seconds; ``None`` for as long as it takes.
    :param failed: called, in a thread, at a failure that a retry cannot fix; :attr:`error` has it.
    :param fail_fast: whether every failure counts as one of those.
    """

    def __init__(
        self, make_send: Any, timeout: float | None, failed: Callable[[], object], *, fail_fast: bool = False
    ) -> None:
        self.error: Exception | None = None
        self._make_send = make_send
        self._timeout = timeout
        self._failed = failed
        self._fail_fast = fail_fast
        self._waits = False  # until the carrier is up or has failed for good
        self._has_waited = False
        if hasattr(make_send, "ready"):
            self._begin()

    def _begin(self) -> None:
        threading.Thread(target=self._try, name="relay-trial", daemon=True).start()

    def _try(self) -> None:
        left_out: list[logging.LogRecord] = []
        try:
            with carriers_quiet(logging.WARNING if self._fail_fast else logging.ERROR) as left_out:
                self._ready(self._make_send, self._timeout)
        except (OSError, ValueError, TypeError) as error:
            if self._fail_fast or not can_retry(error):
                self.error = error
                self._failed()
                return
            # A carrier logs it when it retries; where each stream has its own connection, there is none.
            logger.log(logging.WARNING if self._state == "up" else logging.DEBUG, "%s", error)
            if not self._has_waited:
                self._wait()
        for record in left_out:  # it was no failure after all, or one after which the carrier retries
            logging.getLogger(record.name).handle(record)

    def _ready(self, make_send: Any, timeout: float | None) -> None:
        make_send.ready(timeout)

    @property
    def _state(self) -> str:
        return str(getattr(self._make_send, "state", ""))

    def _wait(self) -> None:
        """Try again once the carrier has failed for good, unless it was up before that."""
        self._waits = self._has_waited = True
        self._make_send.subscribe(self._on_state)
        if self._state == State.FAILED.value:  # since before that
            self._on_state(State.FAILED, None)

    def _on_state(self, state: State, _: Exception | None) -> None:
        if self._waits and state in (State.UP, State.FAILED):
            self._waits = False
            if state is State.FAILED:
                self._begin()


class SessionTrial(Trial):
    """The same for a session at a SAM bridge: it takes as long as it takes, and says so."""

    def _ready(self, make_send: Any, timeout: float | None) -> None:
        try:
            make_send.ready(SLOW)
        except ConnectError as error:
            if error.reason != "connect_timeout":
                raise
            say_slow()
            make_send.ready(None)
            logger.info("the session is up")


def say_slow() -> None:
    """Say why nothing happens yet."""
    logger.info("the router makes a session and builds tunnels for it, which may take a minute")
