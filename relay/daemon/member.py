"""One tunnel of a group, and its states.

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
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .continued_figures import ContinuedFigures
from .drains import Drains
from .failures import ConflictError
from .plan import Opened, Plan
from .probes import BackgroundCall

if TYPE_CHECKING:  # only a reload compares and changes
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


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A tunnel of a group at one time.

    :param plan: how it is opened.
    :param state: its state.
    :param problem: why it waits or has failed; empty if it does neither.
    :param status: the exit status that stands for why it has failed; 0 if it has not.
    :param opened: the tunnel, once it has been open, also after its end.
    :param since: when the state last changed, in seconds since 1970.
    """

    plan: Plan
    state: MemberState = MemberState.OPENING
    problem: str = ""
    status: int = 0
    opened: Opened | None = None
    since: float = dataclasses.field(default_factory=time.time)

    @property
    def name(self) -> str:
        """The tunnel's name."""
        return self.plan.name


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
    def opened(self) -> Opened | None:
        """The tunnel, once it has been open, also after its end."""
        return self.now.opened

    def begin(self, attempt: BackgroundCall) -> None:
        """Note the call that opens it; :meth:`outcome` has what comes of it."""
        self._attempt = attempt

    def outcome(self) -> Opened:
        """Return what the call has opened.

        :raises OSError: if the tunnel cannot be opened, as the following do.
        :raises ValueError: if the user has to change something first.
        :raises TypeError: if a value is of a wrong kind.
        :raises RuntimeError: if the system has no thread left.
        """
        assert self._attempt is not None, "it has begun"
        # Taken away: close() must not give up what the caller owns from now on.
        attempt, self._attempt = self._attempt, None
        made: Opened = attempt.outcome()
        return made

    def change(self, plan: Plan, receive: TunnelListener, make_send: Dialer) -> None:
        """Take another plan, by which the tunnel runs already."""
        assert self.opened is not None, "only an open tunnel changes in place"
        opened = plan.opened(self.opened.tunnel, receive, make_send)
        opened = dataclasses.replace(opened, before=self.opened.before)
        self.now = dataclasses.replace(self.now, plan=plan, opened=opened)

    def relisten(self, receive: TunnelListener) -> None:
        """Take another listener, from which the tunnel accepts already."""
        assert self.opened is not None, "it runs"
        self.now = dataclasses.replace(self.now, opened=dataclasses.replace(self.opened, receive=receive))

    def continue_in(self, opened: Opened) -> Opened:
        """Return a tunnel that takes its place, with its figures, if it is open or drains."""
        if self.opened is None or self.state.is_over:
            return opened
        self.continued = ContinuedFigures(self.opened.tunnel, self.opened.before)
        self.now = dataclasses.replace(self.now, opened=dataclasses.replace(self.opened, is_continued=True))
        return dataclasses.replace(opened, before=self.continued)

    # -- the events of the table ------------------------------------------------------------------------------------

    def on_postponed(self, problem: str) -> None:
        """Take a failure after which the opening is tried again."""
        self._expect("wait", *_BEFORE)
        self._become(MemberState.WAITING, problem=problem)

    def on_opened(self, opened: Opened) -> None:
        """Take the open tunnel."""
        self._expect("open", *_BEFORE)
        self._become(MemberState.LISTENING, problem="", opened=opened)

    def on_failed(self, problem: str, status: int) -> None:
        """Take a failure that a retry cannot fix.

        :param problem: the failure, in one line.
        :param status: the exit status that stands for it.
        """
        if self.state.is_over or self.state is MemberState.DRAINING:
            return
        opened = self.opened
        self._become(MemberState.FAILED, problem=problem, status=status)
        if opened is not None:
            opened.close()

    def on_drained(self) -> None:
        """Take the end of the drain."""
        if self.state is MemberState.DRAINING:
            self._become(MemberState.CLOSED, problem="")

    def pause(self) -> None:
        """Accept no client until :meth:`resume`. In force when it returns.

        :raises ConflictError: if it does not listen.
        """
        opened = self._expect("pause", *_OPEN)
        opened.tunnel.pause()
        self._become(MemberState.PAUSED)

    def resume(self) -> None:
        """Accept clients again. In force when it returns.

        :raises ConflictError: if it does not listen.
        """
        opened = self._expect("resume", *_OPEN)
        opened.tunnel.resume()
        self._become(MemberState.LISTENING)

    def drain(self, seconds: float, drained: Callable[[], object], drains: Drains) -> None:
        """Close the listener; open connections may finish. Does not wait.

        :param seconds: the most that they may take; those that are left are reset, perhaps one after the other over
            the last seconds (``drain_spread`` of the plan).
        :param drained: called at the end, perhaps on another thread; must not block.
        :param drains: closes the tunnel.
        :raises ConflictError: if it is not open.
        """
        opened = self._expect("drain", *_OPEN, MemberState.DRAINING)
        self._become(MemberState.DRAINING)
        drains.begin(opened.tunnel, seconds, drained, self.plan.options.drain_spread)

    def close(self) -> None:
        """End it at once, and wait until all is closed."""
        if self._attempt is not None:
            self._attempt.give_up()
        if not self.state.is_over:
            self._become(MemberState.CLOSED, problem="")
        if self.opened is not None:
            self.opened.close()

    def _expect(self, event: str, *states: MemberState) -> Opened:
        if self.state not in states:
            remedy = "wait until it listens" if self.state in _BEFORE else "relay ctl reload opens it again"
            raise ConflictError(f"{self.name}: cannot {event}: it is {self.state.value}; {remedy}")
        return self.now.opened  # type: ignore[return-value]  # there is one in all states after those before

    def _become(self, state: MemberState, **changes: object) -> None:
        since = self.now.since if state is self.state else time.time()
        self.now = dataclasses.replace(self.now, state=state, since=since, **changes)  # type: ignore[arg-type]
