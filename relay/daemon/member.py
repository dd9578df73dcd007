"""One tunnel of a group: its states, what it has opened, and its figures.

It is opened in a thread of its own, because that takes time: files are read, servers are asked. That thread gets the
plan, which does not change, and hands over what it has opened (:class:`~relay.daemon.plan.Ends`) through the queue of
the main thread. The main thread alone changes the state, so it has no lock. Others read :attr:`Member.now`, which is
replaced as a whole.

========= =========== ========= ======================================================================================
state     event       next      action
                      state
========= =========== ========= ======================================================================================
opening   postponed   waiting   note the problem: the server at which it is to listen cannot be reached
opening   opened      listening nothing
opening   failed      failed    note the problem
opening   close       closed    give up the opening
waiting   postponed   waiting   note the problem
waiting   opened      listening forget the problem
waiting   failed      failed    note the problem
waiting   close       closed    give up the opening
listening pause       paused    accept no client; open connections go on
listening resume      listening nothing
listening drain       draining  close the listener; open connections may finish
listening failed      failed    close the tunnel; note the problem, which is that of a hop
listening close       closed    close the tunnel
paused    pause       paused    nothing
paused    resume      listening accept clients
paused    drain       draining  close the listener; open connections may finish
paused    failed      failed    close the tunnel; note the problem
paused    close       closed    close the tunnel
draining  drain       draining  end sooner, if that is sooner
draining  drained     closed    nothing
draining  failed      draining  nothing: no client needs the hop any more
draining  close       closed    close the tunnel
failed    failed      failed    nothing
failed    close       failed    nothing
closed    failed      closed    nothing
closed    close       closed    nothing
========= =========== ========= ======================================================================================

Each other pair is an error (:class:`ConflictError`).
"""

from __future__ import annotations

import dataclasses
import enum
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from ..engine.records import ConnectionRecord, Metrics, Stats
from ..engine.tunnel import Tunnel
from ..eventloop.sockets import format_address
from .drains import Drains
from .failures import ConflictError
from .plan import Ends, Plan
from .probes import BackgroundCall

if TYPE_CHECKING:  # a command starts faster without them
    from ..spawning.pool_tunnel import PoolTunnel
    from ..streams.dialer import Dialer
    from ..streams.listener import TunnelListener


class MemberState(enum.Enum):
    """The state of a tunnel of a group; the docstring of this module has the table."""

    OPENING = "opening"
    WAITING = "waiting"
    LISTENING = "listening"
    PAUSED = "paused"
    DRAINING = "draining"
    FAILED = "failed"
    CLOSED = "closed"

    @property
    def is_over(self) -> bool:
        """True if it does not change any more."""
        return self in _OVER

    @property
    def is_before(self) -> bool:
        """True while it has not been open."""
        return self in _BEFORE

    @property
    def accepts(self) -> bool:
        """True while the listener is open."""
        return self in _OPEN


_OPEN = frozenset({MemberState.LISTENING, MemberState.PAUSED})
_OVER = frozenset({MemberState.FAILED, MemberState.CLOSED})
_BEFORE = frozenset({MemberState.OPENING, MemberState.WAITING})


class _Figures(NamedTuple):
    """The parts of the figures: replaced as a whole, as any thread may read them."""

    metrics: Callable[[], Metrics]
    recent: Callable[[], Sequence[ConnectionRecord]]
    is_over: bool
    before: ContinuedFigures | None


class ContinuedFigures:
    """The figures of a tunnel until another one took its place; its open connections may still add to them.

    :param tunnel: the tunnel.
    :param before: the figures that it has continued itself; ``None`` if there are none.
    """

    def __init__(self, tunnel: Tunnel | PoolTunnel, before: ContinuedFigures | None) -> None:
        self._parts = _Figures(tunnel.metrics, tunnel.recent, False, before)

    def end(self) -> None:
        """Keep the last figures, and forget the tunnel, which has ended."""
        parts = self._parts
        metrics, recent = parts.metrics(), parts.recent()
        self._parts = _Figures(lambda: metrics, lambda: recent, True, parts.before)

    def metrics(self, own: Metrics) -> Metrics:
        """Return the sums of these counters and those of the other tunnel."""
        from ..spawning.totals import add_metrics

        parts = self._folded()
        found = add_metrics([parts.metrics(), own])
        return found if parts.before is None else parts.before.metrics(found)

    def recent(self, own: Sequence[ConnectionRecord]) -> Sequence[ConnectionRecord]:
        """Return the last connections that ended, of these and those of the other tunnel."""
        from ..spawning.totals import last_of

        parts = self._folded()
        found = last_of([parts.recent(), own])
        return found if parts.before is None else parts.before.recent(found)

    def _folded(self) -> _Figures:
        """Return the parts, as one where nothing adds to them any more: there may be a reload each minute."""
        parts = self._parts
        if parts.is_over and parts.before is not None and parts.before.is_over:
            metrics, recent = parts.before.metrics(parts.metrics()), parts.before.recent(parts.recent())
            parts = self._parts = _Figures(lambda: metrics, lambda: recent, True, None)
        return parts

    @property
    def is_over(self) -> bool:
        """True if nothing adds to the figures any more."""
        parts = self._folded()
        return parts.is_over and parts.before is None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A tunnel of a group at one time.

    :param plan: how it is opened.
    :param state: its state.
    :param problem: why it waits or has failed; empty if it does neither.
    :param status: the exit status that stands for why it has failed; 0 if it has not.
    :param since: when the state last changed, in seconds since 1970.
    :param ends: its listener, its factory and what relays between them, once it has been open, also after its end.
    :param title: its listening address and its target; empty before it has been open.
    :param before: the figures that it continues, of tunnels in whose place it is; ``None`` if there are none.
    :param is_continued: whether another tunnel continues its figures, and shows them.
    """

    plan: Plan
    state: MemberState = MemberState.OPENING
    problem: str = ""
    status: int = 0
    since: float = dataclasses.field(default_factory=time.time)
    ends: Ends | None = None
    title: str = ""
    before: ContinuedFigures | None = None
    is_continued: bool = False

    @property
    def name(self) -> str:
        """The tunnel's name."""
        return self.plan.name

    @property
    def has_opened(self) -> bool:
        """True once it has been open, also after its end. All that follows is of such a tunnel."""
        return self.ends is not None

    @property
    def relay(self) -> Tunnel | PoolTunnel:
        """The relaying part: the engine's tunnel, or that of the workers."""
        assert self.ends is not None, "it has been open"
        assert self.ends.relay is not None, "it relays"
        return self.ends.relay

    @property
    def receive(self) -> TunnelListener:
        """Its listener."""
        assert self.ends is not None, "it has been open"
        return self.ends.receive

    @property
    def make_send(self) -> Dialer:
        """Its factory."""
        assert self.ends is not None, "it has been open"
        return self.ends.make_send

    def metrics(self) -> Metrics:
        """Return all counters, also of the tunnels whose figures it continues."""
        own = self.relay.metrics()
        return own if self.before is None else self.before.metrics(own)

    def stats(self) -> Stats:
        """Return the same figures in brief."""
        return self.metrics().stats()

    def recent(self) -> Sequence[ConnectionRecord]:
        """Return the last connections that ended, also of those tunnels."""
        own = self.relay.recent()
        return own if self.before is None else self.before.recent(own)

    @property
    def live(self) -> int:
        """The number of open connections; asks no worker."""
        return self.relay.stats().active if isinstance(self.relay, Tunnel) else sum(self.relay.loads())

    @property
    def reset_count(self) -> int:
        """The number of connections that have ended because relay closed them: at the end of a drain."""
        return self.relay.metrics().ended["closed"]


class Member:
    """One tunnel of a group. Belongs to the main thread, except :attr:`now`, which is replaced as a whole.

    :param plan: how it is opened.
    """

    def __init__(self, plan: Plan) -> None:
        self.now = Snapshot(plan)
        """The current state; read it from any thread, and once for all that must fit together."""
        self.continued: ContinuedFigures | None = None
        """Its figures, once another tunnel continues them."""
        self._attempt: BackgroundCall | None = None
        self._reset_before: int | None = None  # connections before the drain; None if it gave them no time to finish

    @property
    def name(self) -> str:
        """The tunnel's name."""
        return self.now.plan.name

    @property
    def plan(self) -> Plan:
        """The plan by which it is opened."""
        return self.now.plan

    @property
    def state(self) -> MemberState:
        """Its state."""
        return self.now.state

    @property
    def has_opened(self) -> bool:
        """True once it has been open, also after its end. The next three are of such a tunnel."""
        return self.now.has_opened

    @property
    def relay(self) -> Tunnel | PoolTunnel:
        """The relaying part: the engine's tunnel, or that of the workers."""
        return self.now.relay

    @property
    def receive(self) -> TunnelListener:
        """Its listener."""
        return self.now.receive

    @property
    def make_send(self) -> Dialer:
        """Its factory."""
        return self.now.make_send

    def begin(self, attempt: BackgroundCall) -> None:
        """Note the call that opens it; :meth:`outcome` has what comes of it."""
        self._attempt = attempt

    def outcome(self) -> Ends:
        """Return what the call has opened.

        :raises OSError: if the tunnel cannot be opened, as the following do.
        :raises ValueError: if the user has to change something first.
        :raises TypeError: if a value is of a wrong kind.
        :raises RuntimeError: if the system has no thread left.
        """
        assert self._attempt is not None, "it has begun"
        # Taken away: close() must not give up what the caller owns from now on.
        attempt, self._attempt = self._attempt, None
        made: Ends = attempt.outcome()
        return made

    def change(self, plan: Plan, receive: TunnelListener, make_send: Dialer) -> None:
        """Take another plan, by which the tunnel runs already."""
        ends = Ends(receive, make_send, self.relay)
        self.now = dataclasses.replace(self.now, plan=plan, ends=ends, title=_title(plan, ends))

    def relisten(self, receive: TunnelListener) -> None:
        """Take another listener, from which the tunnel accepts already."""
        self.now = dataclasses.replace(self.now, ends=Ends(receive, self.make_send, self.relay))

    def continue_in(self, other: Member) -> None:
        """Leave the figures to a tunnel that takes its place, if it is open or drains."""
        if self.has_opened and not self.state.is_over:
            self.continued = ContinuedFigures(self.relay, self.now.before)
            self.now = dataclasses.replace(self.now, is_continued=True)
            other.now = dataclasses.replace(other.now, before=self.continued)

    # -- the events of the table ------------------------------------------------------------------------------------

    def on_postponed(self, problem: str) -> None:
        """Take a failure after which the opening is tried again."""
        self._expect("wait", *_BEFORE)
        self._become(MemberState.WAITING, problem=problem)

    def on_opened(self, ends: Ends) -> None:
        """Take what has been opened."""
        self._expect("open", *_BEFORE)
        self._become(MemberState.LISTENING, problem="", ends=ends, title=_title(self.plan, ends))

    def on_failed(self, problem: str, status: int) -> None:
        """Take a failure that a retry cannot fix.

        :param problem: the failure, in one line.
        :param status: the exit status that stands for it.
        """
        if self.state.is_over or self.state is MemberState.DRAINING:
            return
        self._become(MemberState.FAILED, problem=problem, status=status)
        self._close_ends()

    def on_drained(self) -> int:
        """Take the end of the drain; return the number of connections that were reset because their time was over."""
        if self.state is MemberState.DRAINING:
            self._become(MemberState.CLOSED, problem="")
        before, self._reset_before = self._reset_before, None
        return self.now.reset_count - before if before is not None else 0

    def pause(self) -> None:
        """Accept no client until :meth:`resume`. In force when it returns.

        :raises ConflictError: if it does not listen.
        """
        self._expect("pause", *_OPEN)
        self.relay.pause()
        self._become(MemberState.PAUSED)

    def resume(self) -> None:
        """Accept clients again. In force when it returns.

        :raises ConflictError: if it does not listen.
        """
        self._expect("resume", *_OPEN)
        self.relay.resume()
        self._become(MemberState.LISTENING)

    def drain(self, seconds: float | None, drained: Callable[[], object], drains: Drains) -> None:
        """Close the listener; open connections may finish. Does not wait.

        :param seconds: the most that they may take; those that are left are reset, perhaps one after the other over
            the last seconds (``drain_spread`` of the plan). ``None`` for the tunnel's own limit.
        :param drained: called at the end, perhaps on another thread; must not block.
        :param drains: closes the tunnel.
        :raises ConflictError: if it is not open.
        """
        self._expect("drain", *_OPEN, MemberState.DRAINING)
        seconds = self.plan.options.drain if seconds is None else seconds
        if seconds and self.state is not MemberState.DRAINING:
            # Workers are not asked, which takes time: a reload replaces their tunnels, so they have reset none before.
            self._reset_before = self.now.reset_count if isinstance(self.relay, Tunnel) else 0
        self._become(MemberState.DRAINING)
        drains.begin(self.relay, seconds, drained, self.plan.options.drain_spread)

    def close(self) -> None:
        """End it at once, and wait until all is closed."""
        if self._attempt is not None:
            self._attempt.give_up()
        if not self.state.is_over:
            self._become(MemberState.CLOSED, problem="")
        self._close_ends()

    def _close_ends(self) -> None:
        if self.now.ends is not None:
            self.now.ends.close()

    def _expect(self, event: str, *states: MemberState) -> None:
        if self.state not in states:
            remedy = "wait until it listens" if self.state in _BEFORE else "relay ctl reload opens it again"
            raise ConflictError(f"{self.name}: cannot {event}: it is {self.state.value}; {remedy}")

    def _become(self, state: MemberState, **changes: object) -> None:
        since = self.now.since if state is self.state else time.time()
        self.now = dataclasses.replace(self.now, state=state, since=since, **changes)  # type: ignore[arg-type]


def _title(plan: Plan, ends: Ends) -> str:
    assert ends.relay is not None, "it relays"
    return plan.title(format_address(ends.relay.address), ends.make_send.target)
