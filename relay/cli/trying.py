"""What a command tries beside its work, in threads: to listen, and to go over the hops of a way."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

from ..errors import CarrierError, ConnectError
from .output import carriers_quiet

__all__ = ["Attempt", "SLOW", "SessionTrial", "Trial", "say_slow"]

logger = logging.getLogger("relay.cli")

SLOW = 3.0  # seconds after which whoever waits is told what for


class Attempt:
    """A call that opens something, in a thread of its own.

    :param call: returns what has a ``close``.
    :param over: called in the thread when there is an outcome.
    """

    def __init__(self, call: Callable[[], Any], over: Callable[[], object]) -> None:
        self._call = call
        self._over = over
        self._given_up = False
        self._made: Any = None
        self._error: Exception | None = None
        threading.Thread(target=self._run, name="relay-listen", daemon=True).start()

    def _run(self) -> None:
        try:
            self._made = self._call()
        except Exception as error:  # noqa: BLE001  (it is raised where the outcome is waited for)
            self._error = error
        if self._given_up:
            self.give_up()
        self._over()

    def outcome(self) -> Any:
        """What was opened, once it is over.

        :raises Exception: what the call raised.
        """
        if self._error is not None:
            raise self._error
        return self._made

    def give_up(self) -> None:
        """Close what was opened, now or when it is."""
        self._given_up = True
        if self._made is not None:
            self._made.close()


class Trial:
    """Tries the hops while the tunnel already listens, so that a wrong key is known before the first client comes.

    A server that cannot be reached is not the end: its carrier says so and tries again.

    :param make_send: the factory; one without ``ready`` has no hops.
    :param timeout: seconds; ``None`` for as long as it takes.
    :param failed: called, in a thread, when something failed that another try would not mend; :attr:`error` has it.
    """

    mended: tuple[type[OSError], ...] = (ConnectError, CarrierError)
    """What another try may mend."""
    said = logging.ERROR
    """From which level on this says what a carrier would say."""

    def __init__(self, make_send: Any, timeout: float | None, failed: Callable[[], object]) -> None:
        self.error: Exception | None = None
        self._failed = failed
        if hasattr(make_send, "ready"):
            threading.Thread(target=self._try, args=(make_send, timeout), name="relay-trial", daemon=True).start()

    def _try(self, make_send: Any, timeout: float | None) -> None:
        left_out: list[logging.LogRecord] = []
        try:
            with carriers_quiet(self.said) as left_out:
                self._ready(make_send, timeout)
        except self.mended as error:
            # A carrier says it itself when it tries again; where each stream has its own connection, nobody else does.
            logger.log(logging.WARNING if getattr(make_send, "state", "") == "up" else logging.DEBUG, "%s", error)
        except (OSError, ValueError, TypeError) as error:
            self.error = error
            self._failed()
            return
        for record in left_out:  # it was no failure after all, or one that the carrier mends
            logging.getLogger(record.name).handle(record)

    def _ready(self, make_send: Any, timeout: float | None) -> None:
        make_send.ready(timeout)


class SessionTrial(Trial):
    """The same for a session at a SAM bridge: where there is none in the beginning, there may never be one.

    It takes as long as it takes, and says so.
    """

    mended = (CarrierError,)
    said = logging.WARNING

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
