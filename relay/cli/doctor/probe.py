"""The test of one route: dial its target as a tunnel would, and say which step failed."""

from __future__ import annotations

import contextlib
import math
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from ...addresses.destinations import PrivateKey
from ...addresses.hops import Command, Route
from ...addresses.i2p import I2PListen, I2PRouter, I2PTarget
from ...addresses.printable import shown
from ...addresses.ssh import SSHServer
from ...addresses.values import Target, TCPAddress
from ...carriers.dialer import wait_until_up
from ...errors import ConnectError
from ...streams.dialer import Dialer, Network
from ...streams.stream import Stream
from ...streams.trace import Stage
from ...transports.chain import network, numbered
from .explain import LIMITS, checks_of, limit_error
from .recorder import RecordedStep, Recorder
from .report import Check, Status
from .wording import ADVICE, split

FIRST_BYTES = 1.0  # seconds for a target that speaks first; most wait for the client, and that is no failure
_LONGEST = 256  # bytes of what it says
_PUBLISHING = 180.0  # seconds for a lease set to spread, and for two probes
_GRACE = 1.0  # seconds that a dial gets after the deadline: the test ends first, and names the step
# They stand for the targets that clients name, and are not connected to.
_NOWHERE, _NOWHERE_AT_I2P = TCPAddress("127.0.0.1", 9), I2PTarget("nowhere.i2p")

Destination = Target | I2PTarget | Command | None
Outcome = Stream | Exception | None


@dataclass(frozen=True, slots=True)
class _Dialed:
    """The end of a dial: the stream, the error, or neither if only the hops are tested."""

    outcome: Outcome


class RouteProbe:
    """Tests the targets of one route, one after the other; its hops are connected once for all of them.

    :param hops: the nearest first.
    :param cancelled: ends the tests when set.
    """

    def __init__(self, hops: Route, cancelled: threading.Event) -> None:
        self._events: queue.SimpleQueue[_Dialed | None] = queue.SimpleQueue()
        self._recorder = Recorder(self.wake)
        self._hops = hops
        self._cancelled = cancelled
        self._network: Network = network(hops, self._recorder)
        self._dialers: list[Dialer] = []

    def wake(self) -> None:
        """Look at the steps and at the cancellation again; in any thread."""
        self._events.put(None)

    def close(self) -> None:
        """Close the hops."""
        for dialer in reversed(self._dialers):
            dialer.close()

    @contextlib.contextmanager
    def listening(self, place: TCPAddress, deadline: float) -> Iterator[tuple[TCPAddress, str]]:
        """Listen on the last hop, an SSH server, for a moment.

        :param place: the address, with port 0.
        :param deadline: monotonic seconds.
        :returns: the address at which it listens, and the name or address of the server.
        :raises OSError: if the server does not allow it, or cannot bind the address.
        """
        # Imported here, because it imports the SSH libraries, which a test without an SSH hop does not need.
        from ...transports.ssh.config.settings import resolve_settings
        from ...transports.ssh.connector import Holder

        *before, server = self._hops
        assert isinstance(server, SSHServer)
        holder = Holder(server, network(tuple(before), self._recorder))
        try:
            link = wait_until_up(holder.carrier(), deadline, None, wait_for_reconnect=False)
            # A client that finds the port in this moment gets an end of file: doctor relays nothing.
            bound = link.listen(place, lambda stream, _: stream.close(), deadline)
            assert isinstance(bound, TCPAddress)
            try:
                yield bound, resolve_settings(server, behind=bool(before)).hostname
            finally:
                link.stop_listening(bound)
        finally:
            holder.close()

    def published(self, address: str, deadline: float) -> Check:
        """Check whether other routers find a destination; the last hop is a router.

        :param address: its b32 address.
        :param deadline: monotonic seconds.
        """
        made = self._network.to(I2PTarget(address))
        self._dialers.append(made)
        begun = time.monotonic()
        try:
            made.look_up(max(0.1, min(60.0, deadline - begun)))  # type: ignore[attr-defined]  # of I2PFactory
        except OSError as error:
            detail, _ = split("published", error, address)
            advice = "it is published while relay runs this tunnel; if it does, wait some minutes and look at its log"
            return Check("published", address, Status.SKIPPED, detail, advice, time.monotonic() - begun)
        detail = "a router finds its lease set: a running relay has published it"
        return Check("published", address, Status.OK, detail, seconds=time.monotonic() - begun)

    def other_relay(self, key: PrivateKey, deadline: float) -> Check:
        """Check that the relay that serves a destination has the time of this machine, which may take over from it.

        The last hop is a router.

        :param key: of the destination.
        :param deadline: monotonic seconds.
        """
        from ...transports.i2p.standby import CLOCKS, Standby, clock_problem

        begun = time.monotonic()
        *before, router = self._hops
        assert isinstance(router, I2PRouter)
        standby = Standby(key.b32, router, network(tuple(before), self._recorder))
        standby.open(key, math.inf)
        try:
            other = standby.find(deadline)
        except OSError as error:
            detail, advice = split("standby", error, key.b32)
            return Check("standby", key.b32, Status.FAILED, detail, advice, time.monotonic() - begun)
        seconds = time.monotonic() - begun
        if other is None:
            return Check("standby", key.b32, Status.SKIPPED, "no relay answers at this destination now", "", seconds)
        if abs(other.ahead) > CLOCKS:
            detail, _, advice = clock_problem(other).rpartition("; ")
            return Check("standby", key.b32, Status.FAILED, detail, advice, seconds)
        return Check("standby", key.b32, Status.OK, "a relay serves it; its clock agrees with this one", "", seconds)

    def prove(self, place: I2PListen, deadline: float) -> Check:
        """Publish a new destination for a moment, and check that a stream from a second session reaches it.

        :param place: the address to listen on, with the last hop as its router.
        :param deadline: monotonic seconds.
        """
        from ...transports.i2p.listener import I2PListener

        begun = time.monotonic()
        subject = "a new destination"
        listener = I2PListener(place, network(self._hops[:-1], self._recorder), subject)
        try:
            listener.start(max(0.1, deadline - begun))
            is_published = listener.wait_published(max(0.1, min(deadline - time.monotonic(), _PUBLISHING)))
        except OSError as error:
            detail, advice = split("published", error, subject)
            return Check("published", subject, Status.FAILED, detail, advice, time.monotonic() - begun)
        finally:
            listener.close()
        seconds = time.monotonic() - begun
        if is_published:
            return Check("published", subject, Status.OK, "a stream from a second session has arrived", "", seconds)
        detail = "no stream from a second session has arrived: its lease set does not spread"
        return Check("published", subject, Status.FAILED, detail, ADVICE["published"], seconds)

    def test(self, target: Destination, deadline: float) -> list[Check]:
        """Test one target.

        :param target: as seen from the last hop; ``None`` to test the hops alone.
        :param deadline: monotonic seconds.
        :returns: the checks, in the order of the route.
        """
        # The steps of the target before; those of the hops are not repeated, because their connections stay open.
        self._recorder.clear()
        what = str(target) if target is not None else str(self._hops[-1])
        try:
            made = self._network.to(self._nowhere() if target is None else target)
        except (OSError, ValueError) as error:
            detail, advice = split("configuration", error, what)
            return [Check("configuration", what, Status.FAILED, detail, advice)]
        self._dialers.append(made)
        begun = time.monotonic()
        give_up = self._begin(made, deadline, hops_only=target is None)
        stream: Stream | None = None
        try:
            outcome = self._wait(deadline)
            if isinstance(outcome, Stream):
                stream = outcome
                checks = self._checks(None)
                return [*checks, *first_bytes(stream, what, deadline)]
            if isinstance(outcome, _LateError):
                return self._checks(outcome.__cause__, outcome.step)
            return self._checks(outcome) or [_unnamed(what, outcome, time.monotonic() - begun)]
        finally:
            # Also after a success, where it does nothing; after a limit of one step the dial is still under way.
            give_up()
            if stream is not None:
                stream.close()

    def _nowhere(self) -> TCPAddress | I2PTarget:
        return _NOWHERE_AT_I2P if isinstance(self._hops[-1], I2PRouter) else _NOWHERE

    def _begin(self, made: Dialer, deadline: float, *, hops_only: bool) -> Callable[[], object]:
        deadline += _GRACE
        if hops_only:

            def get_ready() -> None:
                try:
                    made.ready(max(0.1, deadline - time.monotonic()))
                except Exception as error:  # noqa: BLE001  (it is reported)
                    self._events.put(_Dialed(error))
                else:
                    self._events.put(_Dialed(None))

            threading.Thread(target=get_ready, name="relay-doctor hops", daemon=True).start()
            # To end what ready() waits for, in its own thread: it takes no token to cancel it.
            return made.close

        return made.dial(
            deadline, lambda outcome: self._events.put(_Dialed(outcome)), self_contained=True, wait_for_reconnect=False
        )

    def _wait(self, deadline: float) -> Outcome:
        """Wait for the outcome, until the deadline or the limit of the step that runs."""
        while True:
            step = self._running()
            limit = deadline if step is None else min(deadline, step.begun + LIMITS[step.stage][0])
            try:
                event = self._events.get(timeout=max(0.0, limit - time.monotonic()))
            except queue.Empty:
                # Looked up again: the step that has taken too long may have ended, and a new one have begun, since the
                # limit was set.
                step = self._running()
                if step is not None and time.monotonic() >= min(deadline, step.begun + LIMITS[step.stage][0]):
                    return _LateError(step)
                if time.monotonic() >= deadline:
                    return ConnectError("no answer in time; give it more with --timeout", reason="connect_timeout")
                continue
            if event is not None:
                return event.outcome
            # An event without a value says only that something has changed: a step, or the cancellation.
            if self._cancelled.is_set():
                return ConnectError("cancelled")

    def _running(self) -> RecordedStep | None:
        """Return the innermost step that is not over."""
        # An outer step, such as a session, runs as long as the connect inside it; the limit of the inner one is the
        # right one.
        return max((step for step in self._steps() if step.is_running), key=lambda step: step.begun, default=None)

    def _steps(self) -> list[RecordedStep]:
        """Return the steps, without further connections to a SAM bridge: a session keeps some in reserve."""
        found: list[RecordedStep] = []
        repeated: list[RecordedStep] = []
        for step in self._recorder.steps():
            is_known = any(_is_same(step, each) and _succeeded(each) for each in found)
            if is_known and (step.stage is Stage.BRIDGE or any(_encloses(each, step) for each in repeated)):
                repeated.append(step)
            else:
                found.append(step)
        # Those that are parts of others end, and are shown, before these.
        return sorted(found, key=lambda step: math.inf if step.ended is None else step.ended)

    def _checks(self, error: BaseException | None, failing: RecordedStep | None = None) -> list[Check]:
        steps = self._steps()
        if error is not None and failing is None:
            failing = _failing(steps)
            error = numbered(error, self._hops) if isinstance(error, OSError) else error
        checks: list[Check] = []
        for step in steps:
            if step is failing:
                checks += checks_of(step, error, Status.FAILED)
            elif step.error is not None and not _encloses(failing, step) and not _encloses(step, failing):
                checks += checks_of(step, step.error, Status.WARNING)  # what followed has made up for it
            elif _succeeded(step):
                checks += checks_of(step, None, Status.OK)
        if error is not None and failing is None and checks:
            checks.append(_unnamed(checks[-1].subject, error, None))
        return checks


class _LateError(ConnectError):
    """A step took longer than its limit."""

    def __init__(self, step: RecordedStep) -> None:
        super().__init__("late", reason="connect_timeout")
        self.step = step
        self.__cause__ = limit_error(step)


def _failing(steps: list[RecordedStep]) -> RecordedStep | None:
    """Return the step that a failed dial ended with: the innermost one, but a SAM bridge for a connect to it."""
    bad = [step for step in steps if step.error is not None or step.is_running]
    bad.sort(key=lambda step: step.begun)
    if len(bad) > 1 and bad[-2].stage is Stage.BRIDGE and bad[-1].stage is Stage.CONNECT:
        return bad[-2]
    return bad[-1] if bad else None


def _is_same(one: RecordedStep, other: RecordedStep) -> bool:
    return (one.stage, one.subject) == (other.stage, other.subject)


def _succeeded(step: RecordedStep) -> bool:
    return not step.is_running and step.error is None


def _encloses(outer: RecordedStep | None, inner: RecordedStep | None) -> bool:
    """Return whether one step was a part of another one, whose error is the same."""
    if outer is None or inner is None or inner.begun < outer.begun:
        return False
    return outer.ended is None or (inner.ended is not None and inner.ended <= outer.ended)


def _unnamed(subject: str, error: BaseException | None, seconds: float | None) -> Check:
    """Return the check for a dial without a step that failed, such as a program that does not start."""
    if error is None:
        return Check("connect", subject, Status.OK, "connected", seconds=seconds)
    name = "configuration" if isinstance(error, ValueError) else "connect"
    detail, advice = split(name, error, subject)
    return Check(name, subject, Status.FAILED, detail, advice, seconds)


def first_bytes(stream: Stream, subject: str, deadline: float) -> list[Check]:
    """Read what the target says first, if it says something.

    :param stream: connected; it stays open.
    """
    begun = time.monotonic()
    name, made = "first bytes", stream.socket
    made.settimeout(max(0.05, min(FIRST_BYTES, deadline - begun)))
    problem: Any = None
    try:
        data = made.recv(_LONGEST)
    except TimeoutError:
        detail = f"none within {FIRST_BYTES:g} s, as for every service that waits for its client"
        return [Check(name, subject, Status.OK, detail, facts={"length": 0})]
    except OSError as error:
        data, problem = b"", error
    seconds = time.monotonic() - begun
    if data:
        detail = data.decode("utf-8", "replace").strip()
        return [Check(name, subject, Status.OK, shown(detail), seconds=seconds, facts={"length": len(data)})]
    # An end of file may be a cut of the carrier, which only the stream itself knows.
    failure = stream.failure() if stream.failure is not None else None
    if failure is None and problem is None:
        detail, advice = "closed without data", "check that the service accepts connections from the last hop"
        return [Check(name, subject, Status.WARNING, detail, advice, seconds)]
    detail, advice = split(name, failure or problem, subject)
    return [Check(name, subject, Status.FAILED, detail, advice, seconds)]
