"""Several targets for one tunnel: each new stream goes to one of them, and to the next one if that fails."""

from __future__ import annotations

import copy
import errno
import functools
import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from ..addresses.hops import Route
from ..errors import ConnectError, can_retry
from ..streams.dialer import Dialer, Engine
from ..streams.promise import Abort, CallbackChain, OnResult
from ..streams.source import Source
from ..streams.stream import Stream
from .members import LOCAL, NO_PORT, Members, Probe, ProbeOutcome, Selection, TargetState
from .probe import ProbeSchedule

__all__ = ["ProbeOutcome", "ProbeSchedule", "Selection", "TargetGroup", "TargetState"]

logger = logging.getLogger("relay")


_ATTEMPT = 10.0  # seconds for one target at most, if there are others to try
_FAIR = 1.0  # seconds that a target must have had before it counts at once as one that does not answer


def probe_by_connect(dialer: Dialer, deadline: float, done: OnResult) -> Abort:
    """Begin to test a target by a connect."""
    return dialer.dial(deadline, done, self_contained=True, wait_for_reconnect=False)


def _place(dialer: Dialer) -> tuple[str, Route]:
    """Return where a dialer leads, and how."""
    return dialer.target, dialer.route


class TargetGroup(Dialer):
    """Makes streams to one of several targets.

    A target is taken out when the connect of a client fails. It gets streams again once a probe has passed, which is
    tried after a back-off of 0.5 to 30 s. A client whose target fails gets the next one. If no target is up, it fails
    at once. With :meth:`probe_every`, targets that are up are probed as well, and taken out after three failures in a
    row, or a refusal. To know which one is the fastest, a connect measures each of them every 30 s, as long as streams
    are asked for.

    :param dialers: of the targets, in the order of preference.
    :param selection: the order in which they are tried.
    :param probe: begins to test a target: called with its dialer, the deadline (monotonic seconds) and a callback for a
        stream or an error; returns a function that gives it up. Default: a connect.
    :param name: of the tunnel, for the log.
    :param names: of the targets, if those of the dialers are not unique.
    :raises ValueError: if there is no target.
    """

    def __init__(
        self,
        dialers: Sequence[Dialer],
        selection: Selection = Selection.FIRST,
        *,
        probe: Probe = probe_by_connect,
        name: str = "relay",
        names: Sequence[str] = (),
    ) -> None:
        if not dialers:
            raise ValueError("target: expected at least one")
        super().__init__(", ".join(dict.fromkeys(dialer.target for dialer in dialers)))
        self._names = tuple(names) or tuple(dialer.target for dialer in dialers)
        self._members = Members(list(zip(self._names, dialers, strict=True)), selection, probe, name)
        self.alternatives = tuple(dialers)

    def dial(
        self, deadline: float | None, done: OnResult, *, self_contained: bool = False, wait_for_reconnect: bool = True
    ) -> Abort:
        """Begin to make a stream to the target whose turn it is; see :meth:`Dialer.dial`."""
        self._members.reopen()
        self._members.measure()
        return _Attempts(self, deadline, done, self_contained, wait_for_reconnect).begin()

    def bound(self, source: Source) -> Dialer:
        """Return one whose connections come from an address of this machine; see :meth:`Dialer.bound`."""
        other = copy.copy(self)
        # The copy shares the members: what is up is a fact about the targets, whatever the source of a stream is.
        other.alternatives = tuple(dialer.bound(source) for dialer in self.alternatives)
        return other

    def always_bound(self, source: Source) -> Dialer:
        """Return one whose connections come from an address, as those of the probes do; see :meth:`Dialer.bound`."""
        other = self.bound(source)
        self._members.probe_by(other.alternatives)
        return other

    @property
    def introduces(self) -> bool:  # type: ignore[override]
        """True if a header goes under a session of some of the targets; see :meth:`Dialer.introducing`."""
        return any(dialer.introduces for dialer in self.alternatives)

    def introducing(self, header: bytes) -> Dialer:
        """Return one that sends a header below the sessions; see :meth:`Dialer.introducing`."""
        other = copy.copy(self)
        other.alternatives = tuple(dialer.introducing(header) for dialer in self.alternatives)
        return other

    def introduce_probes(self, header: bytes) -> None:
        """Begin each probe of a target with a header; see :meth:`Dialer.introduce_probes`."""
        self._members.header = header

    def on(self, engine: Engine) -> Dialer:
        """Return one whose dialers work in the thread of an engine; see :meth:`Dialer.on`."""
        other = copy.copy(self)
        other.alternatives = tuple(dialer.on(engine) for dialer in self.alternatives)
        return other

    def states(self) -> list[TargetState]:
        """Return the states of all targets, in their order. From any thread."""
        return self._members.states()

    def probe_every(self, schedule: ProbeSchedule | None) -> None:
        """Probe each target from now on, now and then. From any thread.

        One that refuses a probe, or fails the third one in a row, gets no streams until it passes, and so does one
        that fails the first one of all; after a failure the next one comes soon. A target that is down is probed as
        often at least. At most one probe of a target is under way.

        :param schedule: ``None`` to connect only, and only to targets that are down. The same one again changes
            nothing. When it is not wanted any more, all probes end: the targets stay as they are until there is another
            one, or a stream is asked for.
        """
        if schedule is not None:
            self._members.reopen()
        self._members.probe_every(schedule)

    def take_over(self, other: TargetGroup) -> None:
        """Take the place of another group: its last outcome counts until there is one of a target here.

        A target that was down there stays so until a probe passes, which begins soon. The latency and the failures of
        each one stay. Targets are the same if their addresses and the hops to them are. Call it before
        :meth:`probe_every`; each first probe of a target that is up begins at once then.

        :param other: has its probes still.
        """
        known = {_place(dialer): state for dialer, state in zip(other.alternatives, other.states(), strict=True)}
        self._members.take_over(other.probe_outcome(), [known.get(_place(dialer)) for dialer in self.alternatives])

    def probe_outcome(self) -> ProbeOutcome | None:
        """Return the outcome of the last probes: the latest one of a target that is up, else why none is.

        From any thread.

        :returns: ``None`` without :meth:`probe_every`.
        """
        return self._members.probe_outcome()

    def set_enabled(self, target: str, enabled: bool) -> None:
        """Give a target no new streams, or give it streams again after a probe has passed. From any thread.

        :param target: its name in :meth:`states`.
        :raises KeyError: if there is none.
        """
        if target not in self._names:
            raise KeyError(target)
        self._members.set_enabled(self._names.index(target), enabled)

    @property
    def state(self) -> str:
        """The state of the first shared connection that is up, else of the first that has not failed for good."""
        states = [dialer.state for dialer in self.alternatives]
        return "up" if "up" in states else next((state for state in states if state != "failed"), "failed")

    @property
    def last_error(self) -> str | None:
        """The reason why no target gets streams, or why none is reached for now; ``None`` if one is."""
        if not any(one.state == "up" for one in self.states()):
            return self._members.problem()
        if self.state == "up":
            return None
        return next((problem for dialer in self.alternatives if (problem := dialer.last_error)), None)

    def subscribe(self, watcher: Callable[[Any, Exception | None], object]) -> None:
        """Call ``watcher(state, error)`` at each change of a shared connection; see :meth:`Dialer.subscribe`."""
        for dialer in self.alternatives:
            dialer.subscribe(watcher)

    def ready(self, timeout: float | None = 30.0) -> None:
        """Open the shared connections side by side, and wait for one of them; see :meth:`Dialer.ready`.

        An error that no retry can fix is logged if it is not raised, unless it was logged before.

        :raises OSError: the error of the first target, if none can be opened; one that a retry may mend goes first.
        """
        if len(self.alternatives) == 1:
            return self.alternatives[0].ready(timeout)
        return _Opening(self.target, self.alternatives, timeout).wait()

    def close_when_idle(self) -> None:
        """Release the shared connections once they have no streams."""
        for dialer in self.alternatives:
            dialer.close_when_idle()

    def close(self) -> None:
        """End the probes, and release the shared connections. Idempotent."""
        self._members.close()
        for dialer in self.alternatives:
            dialer.close()


class _Opening:
    """Opens the shared connections of several targets, each on a thread of its own.

    :param target: name of all, for the log.
    :param dialers: of the targets.
    :param timeout: as for :meth:`Dialer.ready`.
    """

    def __init__(self, target: str, dialers: Sequence[Dialer], timeout: float | None) -> None:
        self._target = target
        self._timeout = timeout
        self._left = len(dialers)
        self._errors: dict[int, Exception] = {}
        self._is_decided = False  # by the first success, or the last failure
        self._lock = threading.Lock()  # for the above
        self._raised: Exception | None = None
        self._is_over = threading.Event()  # decided, and logged
        for number, dialer in enumerate(dialers):
            run = functools.partial(self._open, number, dialer)
            try:
                threading.Thread(target=run, name="relay-ready", daemon=True).start()
            except RuntimeError as error:
                self._ended(number, OSError(errno.EAGAIN, str(error)))

    def wait(self) -> None:
        """Wait for the first one that is open.

        :raises OSError: see :meth:`TargetGroup.ready`.
        """
        self._is_over.wait()  # each one has the timeout
        if self._raised is not None:
            raise self._raised

    def _open(self, number: int, dialer: Dialer) -> None:
        try:
            dialer.ready(self._timeout)
        except Exception as error:  # noqa: BLE001  (it is raised where the outcome is waited for)
            self._ended(number, error)
        else:
            self._ended(number, None)

    def _ended(self, number: int, error: Exception | None) -> None:
        with self._lock:
            self._left -= 1
            if error is not None:
                self._errors[number] = error
            errors = [] if error is None else [error]
            if not self._is_decided:
                if error is not None and self._left:
                    return
                self._is_decided = True
                # In the order of the targets, so that the same failures give the same error each time.
                errors = [self._errors[each] for each in sorted(self._errors)]
                if error is not None:
                    self._raised = next(filter(can_retry, errors), errors[0])
        for other in errors:
            is_logged = getattr(other, "said", False)  # by a carrier, for which no caller waited
            if other is not self._raised and not can_retry(other) and not is_logged:
                logger.error("%s: %s", self._target, other)
        self._is_over.set()


class _Attempts:
    """The attempts for one stream, one target after the other.

    :param group: of the targets; the other parameters are those of :meth:`Dialer.dial`.
    """

    def __init__(
        self, group: TargetGroup, deadline: float | None, done: OnResult, self_contained: bool, wait: bool
    ) -> None:
        self._group = group
        self._deadline = deadline
        self._steps = CallbackChain(done)
        self._self_contained = self_contained
        self._wait = wait
        self._tried: list[int] = []
        self._error: OSError | None = None
        self._current: int | None = None
        self._lock = threading.Lock()

    def begin(self) -> Abort:
        """Begin the first attempt; return what gives all up."""
        self._next()
        return self._give_up

    def _next(self) -> None:
        members = self._group._members
        number = members.chosen(self._tried)
        if number is None:
            return self._steps.finish(self._error or self._no_target())
        self._tried.append(number)
        with self._lock:
            self._current = number
        others = members.left(self._tried)
        now = time.monotonic()
        deadline = self._deadline
        if others:
            left = math.inf if deadline is None else deadline - now
            # Each of the targets that are left has its share, so that one which hangs cannot use up the client's whole
            # time.
            deadline = now + min(left / (others + 1), _ATTEMPT)
        # Else a target behind a hop would count as reached as soon as the hop has the stream, and the next one never be
        # tried.
        dialer = self._group.alternatives[number].confirming()
        dial = functools.partial(
            dialer.dial, deadline, self_contained=self._self_contained, wait_for_reconnect=self._wait and not others
        )
        if not self._steps.begin(dial, functools.partial(self._tried_one, number, now)):
            self._leave(number)
        return None

    def _no_target(self) -> ConnectError:
        members = self._group._members
        return ConnectError(f"{self._group.target}: no target is up ({members.problem()})", reason="unreachable")

    def _tried_one(self, number: int, begun: float, outcome: Stream | OSError) -> None:
        members, now = self._group._members, time.monotonic()
        if isinstance(outcome, Stream):
            with self._lock:
                current, self._current = self._current, None
            if current is None:  # given up, and counted, since this call began
                return outcome.close()
            members.succeeded(number, now - begun)
            route = self._group.alternatives[number].route
            if outcome.path is not None and outcome.path.route is None:
                outcome.path = outcome.path._replace(route=route)
            if self._self_contained:
                members.ended(number)  # nothing tells when it is over
            else:
                outcome.on_close = _Ending(members, number, outcome.on_close)
            return self._steps.finish(outcome)
        self._error = outcome
        if outcome.errno in LOCAL:
            self._leave(number)
            return self._steps.finish(outcome)
        is_short = now - begun < _FAIR and getattr(outcome, "reason", "") == "connect_timeout"
        if outcome.errno != NO_PORT:
            members.failed(number, outcome, is_short=is_short)
        self._leave(number)
        if self._deadline is not None and now >= self._deadline:
            return self._steps.finish(outcome)
        return self._next()

    def _leave(self, number: int) -> None:
        """Count the end of an attempt, once."""
        with self._lock:
            current, self._current = self._current, None
        # A give-up on another thread may have counted this attempt already.
        if current == number:
            self._group._members.ended(number)

    def _give_up(self) -> None:
        self._steps.give_up()
        with self._lock:
            current = self._current
        if current is not None:
            self._leave(current)


class _Ending:
    """Counts the end of a stream, and then does what its own transport does.

    :param members: of the group.
    :param number: of the target.
    :param on_close: of the stream.
    """

    __slots__ = ("_members", "_number", "_on_close", "nonblocking")

    def __init__(self, members: Members, number: int, on_close: Callable[[], object] | None) -> None:
        self._members = members
        self._number = number
        self._on_close = on_close
        self.nonblocking = on_close is None or getattr(on_close, "nonblocking", False)

    def is_withdrawn(self) -> bool:
        """Return whether the target gets no new clients now, so that a stream without one is of no use."""
        return not self._members.is_up(self._number)

    def __call__(self) -> None:
        self._members.ended(self._number)
        if self._on_close is not None:
            self._on_close()
