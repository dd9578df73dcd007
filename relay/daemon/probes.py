"""Calls and probes on background threads: open a tunnel, connect the hops of a route."""

from __future__ import annotations

import collections
import contextlib
import functools
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from ..carriers.link import CarrierState
from ..errors import ConnectError, can_retry
from ..streams.dialer import Dialer
from .failures import carriers_quiet, describe_error

logger = logging.getLogger("relay.cli")

SLOW = 3.0  # seconds before relay explains what the user waits for
RETRIES = (CarrierState.BACKING_OFF.value, CarrierState.CONNECTING.value)  # with an error: it retries


class CallThread:
    """One thread for calls that need no answer, made one after the other; it ends when there is none left.

    Belongs to the thread that makes the calls known, except what runs in its own.

    :param name: of the thread.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()  # for the two that follow
        self._calls: collections.deque[Callable[[], object]] = collections.deque()
        self._is_running = False

    def submit(self, call: Callable[[], object]) -> None:
        """Make a call in the thread; it must not raise.

        :raises RuntimeError: if the system has no thread left.
        """
        with self._lock:
            if not self._is_running:
                # With the lock held: the thread that runs looks for calls, and says that there is none, under it.
                threading.Thread(target=self._run, name=self._name, daemon=True).start()
                self._is_running = True
            self._calls.append(call)

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._calls:
                    self._is_running = False
                    return
                call = self._calls.popleft()
            call()


class BackgroundCall:
    """A call that opens something, on another thread.

    :param call: gets a function to call with a listener that it starts to open, which takes until a server can be
        reached; returns an object with ``close``.
    :param over: called on that thread when there is an outcome.
    :param postponed: called on any thread with each error after which that listener retries.
    :param thread: makes the call in turn with others; ``None`` for a thread of its own.
    :raises RuntimeError: if the system has no thread left.
    """

    def __init__(
        self,
        call: Callable[[Callable[[Any], object]], Any],
        over: Callable[[], object],
        postponed: Callable[[Exception], object],
        thread: CallThread | None = None,
    ) -> None:
        self._call = call
        self._over = over
        self._postponed = postponed
        self._given_up = threading.Event()
        self._is_over = False
        self._opening: Any = None
        self._made: Any = None
        self._error: Exception | None = None
        # Daemons, as are the others here: a server that never answers must not hold up the end of the program.
        (thread or CallThread("relay-listen")).submit(self._run)

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

    It does not fail if a server cannot be reached: the carrier logs that and retries. A permanent error of a route
    counts as one of the start until that route was up for the first time, whatever the other routes of the factory do.

    :param make_send: the factory; its ``ready`` does nothing without hops.
    :param timeout: seconds; ``None`` for no limit.
    :param failed: called on another thread after an error that a retry cannot fix; :attr:`error` has it.
    :param tried: called on another thread after an attempt that has ended in another way.
    :param fail_fast: whether every error counts as one that a retry cannot fix.
    """

    def __init__(
        self,
        make_send: Dialer,
        timeout: float | None,
        failed: Callable[[], object],
        tried: Callable[[], object] = lambda: None,
        *,
        fail_fast: bool = False,
    ) -> None:
        self.error: Exception | None = None
        self._timeout = timeout
        self._failed = failed
        self._tried = tried
        self._fail_fast = fail_fast
        self._routes: Sequence[Dialer] = make_send.per_route or (make_send,)
        self._watched: set[Dialer] = set()
        self._were_up: set[Dialer] = set()
        self._waiting: set[Dialer] = set()  # routes that are tried again once they have failed permanently
        self._begin(self._try_first)

    def _begin(self, attempt: Callable[[], object]) -> None:
        try:
            threading.Thread(target=attempt, name="relay-trial", daemon=True).start()
        except RuntimeError as error:  # the system has no thread left
            targets = ", ".join(route.target for route in self._routes)
            logger.warning("%s: the hops are not tried before a client connects: %s", targets, error)
            self._tried()

    def _try_first(self) -> None:
        for route in self._try(self._routes):
            self._wait(route)

    def _try(self, routes: Sequence[Dialer]) -> Sequence[Dialer]:
        """Try some routes; return those with an error, unless the probe has failed."""
        deadline = None if self._timeout is None else time.monotonic() + self._timeout
        errors: dict[Dialer, Exception] = {}
        # The carriers log the same failures from their threads; which of the two reports one is decided below.
        with carriers_quiet(logging.WARNING if self._fail_fast else logging.ERROR) as held_back:
            for route in routes:  # they connect side by side, and none is up for the first time unseen
                self._watch(route)
            for route in routes:
                try:
                    self._ready(route, None if deadline is None else max(0.001, deadline - time.monotonic()))
                    self._were_up.add(route)
                except (OSError, ValueError, TypeError) as problem:
                    errors[route] = problem
        final = [error for route, error in errors.items() if not can_retry(error) and route not in self._were_up]
        if self._fail_fast:
            final += errors.values()
        if final and self.error is None:
            self.error = final[0]
            self._waiting.clear()
            self._failed()
            return ()
        for route, error in errors.items():
            # A carrier logs it when it retries; without a carrier, each stream has its own connection.
            is_logged = route.state != CarrierState.UP.value and can_retry(error)
            logger.log(logging.DEBUG if is_logged else logging.WARNING, "%s", error)
        for record in held_back:  # the carrier retries, or has succeeded
            logging.getLogger(record.name).handle(record)
        self._tried()
        return tuple(errors)

    def _ready(self, make_send: Dialer, timeout: float | None) -> None:
        make_send.ready(timeout)

    def _watch(self, route: Dialer) -> None:
        # Before the attempt only: after it, to subscribe would open a connection again that its tunnel has closed.
        if route not in self._watched:
            with contextlib.suppress(OSError):  # no thread or descriptor is left, which the attempt tells
                route.subscribe(functools.partial(self._on_state, route))
                self._watched.add(route)

    def _wait(self, route: Dialer) -> None:
        """Try a route again once it has failed permanently, unless it was up before, or has been closed."""
        self._waiting.add(route)
        if route in self._were_up or route.state == CarrierState.UP.value:  # before it was waited for
            self._waiting.discard(route)
        else:
            self._try_if_failed(route)

    def _on_state(self, route: Dialer, state: CarrierState, _: Exception | None) -> None:
        if state is CarrierState.UP:
            self._were_up.add(route)
            self._waiting.discard(route)
        elif route in self._waiting:
            self._try_if_failed(route)

    def _try_if_failed(self, route: Dialer) -> None:
        if route.state == CarrierState.FAILED.value:  # a route with alternatives when all of them have
            with contextlib.suppress(KeyError):  # the other thread tries it
                self._waiting.remove(route)
                self._begin(functools.partial(self._try, (route,)))


class SessionProbe(HopProbe):
    """A probe of a SAM session, without a time limit; it explains a long wait."""

    def _ready(self, make_send: Dialer, timeout: float | None) -> None:
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

    def __init__(self, name: str, make_send: Dialer, timeout: float) -> None:
        self._name = name
        self._deadline = time.monotonic() + timeout
        self._error: Exception | None = None
        self._settled = threading.Event()
        routes = make_send.alternatives or (make_send,)
        self._connecting = set(range(len(routes)))  # the routes whose first attempt has not ended
        self._lock = threading.Lock()
        for number, route in enumerate(routes):
            route.subscribe(functools.partial(self._on_state, number))
            # It may have been up, or have failed, before it was watched: then no event comes.
            if route.state != CarrierState.CONNECTING.value:
                self._end(number, None, is_up=route.state == CarrierState.UP.value)

    def wait(self) -> None:
        """Wait until the hops are up, the first attempt of each route has failed, or the time is over."""
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
        """Note that an attempt has ended; the first route that is up is enough."""
        with self._lock:
            if self._settled.is_set() or number not in self._connecting:
                return
            self._connecting.discard(number)
            self._error = None if is_up else self._error or error
            if is_up or not self._connecting:
                self._settled.set()


def report_slow(*, standby: bool = False) -> None:
    """Explain a long wait for an I2P session.

    :param standby: whether relay asks before whether another one serves the destination.
    """
    if standby:
        logger.info("asking whether another relay serves the destination, which may take two minutes")
    else:
        logger.info("the router makes a session and builds tunnels for it, which may take a minute")
