"""Calls and probes on background threads: open a tunnel, connect the hops of a route."""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from ..carriers.link import CarrierState
from ..errors import ConnectError, can_retry
from .output import carriers_quiet, describe_error

__all__ = ["BackgroundCall", "SLOW", "SessionProbe", "HopProbe", "WarmUp", "report_slow"]

logger = logging.getLogger("relay.cli")

SLOW = 3.0  # seconds before relay explains what the user waits for
RETRIES = (CarrierState.BACKING_OFF.value, CarrierState.CONNECTING.value)  # with an error: it retries


class BackgroundCall:
    """A call that opens something, on its own thread.

    :param call: gets a function to call with a listener that it starts to open, which takes until a server can be
        reached; returns an object with ``close``.
    :param over: called on that thread when there is an outcome.
    :param postponed: called on any thread with each error after which that listener retries.
    """

    def __init__(
        self,
        call: Callable[[Callable[[Any], object]], Any],
        over: Callable[[], object],
        postponed: Callable[[Exception], object],
    ) -> None:
        self._call = call
        self._over = over
        self._postponed = postponed
        self._given_up = threading.Event()
        self._is_over = False
        self._opening: Any = None
        self._made: Any = None
        self._error: Exception | None = None
        threading.Thread(target=self._run, name="relay-listen", daemon=True).start()

    def _run(self) -> None:
        try:
            self._made = self._call(self._begin)
        except Exception as error:  # noqa: BLE001  (it is raised where the outcome is waited for)
            self._error = error
        self._is_over = True
        if self._given_up.is_set():
            self.give_up()
        self._over()

    def _begin(self, listener: Any) -> None:
        listener.subscribe(functools.partial(self._on_state, listener))
        self._opening = listener
        if self._given_up.is_set():
            listener.close()

    def _on_state(self, listener: Any, _: object, error: Exception | None) -> None:
        if error is not None and not self._is_over and listener.state in RETRIES:
            self._postponed(error)

    def outcome(self) -> Any:
        """Return what was opened, after ``over`` was called.

        :raises Exception: what the call raised.
        """
        if self._error is not None:
            raise self._error
        return self._made

    def give_up(self) -> None:
        """Close what was opened, now or as soon as it is."""
        self._given_up.set()
        for one in (self._opening, self._made):
            if one is not None:
                one.close()


class HopProbe:
    """A probe of the hops while the tunnel already listens: a wrong key is reported before the first client connects.

    It does not fail if a server cannot be reached: the carrier logs that and retries. A permanent error counts as one
    of the start until the carrier was up for the first time.

    :param make_send: the factory, a :class:`~relay.streams.dialer.Dialer`; its ``ready`` does nothing without hops.
    :param timeout: seconds; ``None`` for no limit.
    :param failed: called on another thread after an error that a retry cannot fix; :attr:`error` has it.
    :param tried: called on another thread after an attempt that has ended in another way.
    :param fail_fast: whether every error counts as one that a retry cannot fix.
    """

    def __init__(
        self,
        make_send: Any,
        timeout: float | None,
        failed: Callable[[], object],
        tried: Callable[[], object] = lambda: None,
        *,
        fail_fast: bool = False,
    ) -> None:
        self.error: Exception | None = None
        self._make_send = make_send
        self._timeout = timeout
        self._failed = failed
        self._tried = tried
        self._fail_fast = fail_fast
        self._waits = False  # until the carrier is up or has failed permanently
        self._has_waited = False
        self._begin()

    def _begin(self) -> None:
        threading.Thread(target=self._try, name="relay-trial", daemon=True).start()

    def _try(self) -> None:
        held_back: list[logging.LogRecord] = []
        try:
            with carriers_quiet(logging.WARNING if self._fail_fast else logging.ERROR) as held_back:
                self._ready(self._make_send, self._timeout)
        except (OSError, ValueError, TypeError) as error:
            if self._fail_fast or not can_retry(error):
                self.error = error
                self._failed()
                return
            # A carrier logs it when it retries; without a carrier, each stream has its own connection.
            logger.log(logging.WARNING if self._state == "up" else logging.DEBUG, "%s", error)
            if not self._has_waited:
                self._wait()
        for record in held_back:  # the carrier retries, or has succeeded
            logging.getLogger(record.name).handle(record)
        self._tried()

    def _ready(self, make_send: Any, timeout: float | None) -> None:
        make_send.ready(timeout)

    @property
    def _state(self) -> str:
        return str(getattr(self._make_send, "state", ""))

    def _wait(self) -> None:
        """Probe again once the carrier has failed permanently, unless it was up before."""
        self._waits = self._has_waited = True
        self._make_send.subscribe(self._on_state)
        if self._state == CarrierState.FAILED.value:  # before the subscription
            self._on_state()

    def _on_state(self, *_: object) -> None:
        state = self._state  # of all carriers: the one that has changed may be one of several
        if self._waits and state in (CarrierState.UP.value, CarrierState.FAILED.value):
            self._waits = False
            if state == CarrierState.FAILED.value:
                self._begin()


class SessionProbe(HopProbe):
    """A probe of a SAM session, without a time limit; it explains a long wait."""

    def _ready(self, make_send: Any, timeout: float | None) -> None:
        try:
            make_send.ready(SLOW)
        except ConnectError as error:
            if error.reason != "connect_timeout":
                raise
            report_slow()
            make_send.ready(None)
            logger.info("the session is up")


class WarmUp:
    """The connecting of the hops of another route, while clients still use the old one.

    :param name: of the tunnel, for the log.
    :param make_send: the factory of the other route.
    :param timeout: seconds to wait for its hops.
    :raises OSError: if no thread or descriptor is available.
    """

    def __init__(self, name: str, make_send: Any, timeout: float) -> None:
        self._name = name
        self._deadline = time.monotonic() + timeout
        self._error: Exception | None = None
        self._settled = threading.Event()
        ways = getattr(make_send, "alternatives", ()) or (make_send,)
        self._connecting = set(range(len(ways)))  # the ways whose first attempt has not ended
        self._lock = threading.Lock()
        for number, way in enumerate(ways):
            way.subscribe(functools.partial(self._on_state, number))
            if way.state != CarrierState.CONNECTING.value:
                self._end(number, None, is_up=way.state == CarrierState.UP.value)

    def wait(self) -> None:
        """Wait until the hops are up, the first attempt of each way has failed, or the time is over."""
        is_settled = self._settled.wait(max(0.0, self._deadline - time.monotonic()))
        if self._error is not None:
            problem = describe_error(self._error)
        elif not is_settled:
            problem = "not connected in time"
        else:
            return
        logger.warning("%s: its new route is not up yet: %s; new clients wait for it", self._name, problem)

    def _on_state(self, number: int, state: CarrierState, error: Exception | None) -> None:
        if state is CarrierState.UP or error is not None:
            self._end(number, error, is_up=state is CarrierState.UP)

    def _end(self, number: int, error: Exception | None, *, is_up: bool) -> None:
        """Note that an attempt has ended; the first way that is up is enough."""
        with self._lock:
            if self._settled.is_set() or number not in self._connecting:
                return
            self._connecting.discard(number)
            self._error = None if is_up else self._error or error
            if is_up or not self._connecting:
                self._settled.set()


def report_slow() -> None:
    """Explain a long wait for an I2P session."""
    logger.info("the router makes a session and builds tunnels for it, which may take a minute")
