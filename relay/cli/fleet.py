"""Many tunnels in one process: opened side by side, watched, and drained together."""

from __future__ import annotations

import functools
import logging
import queue
import signal
import threading
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from . import startup
from .i2p_options import tell_published
from .output import closing, complain, reason, say, status_of, summary, total
from .plan import Opened, Plan
from .preflight import Preflight
from .probes import Attempt, Trial
from .signals import Signals

if TYPE_CHECKING:
    from .live import LiveTable
    from .views import FleetView, Watched

__all__ = ["Fleet", "Member"]

logger = logging.getLogger("relay.cli")

REFRESH = 0.5  # seconds between two states of the live table


@dataclass(slots=True)
class Member:
    """One of the tunnels. All but the plan belongs to the main thread.

    :param plan: how it is opened.
    :param is_required: whether all end if it cannot start.
    """

    plan: Plan
    is_required: bool
    attempt: Attempt | None = None
    opened: Opened | None = None
    problem: str = ""
    """Why it is not open."""
    status: int = 0
    """The exit status that stands for why it has ended; 0 as long as it is open or may be."""

    @property
    def name(self) -> str:
        """The tunnel's name."""
        return self.plan.name

    @property
    def is_over(self) -> bool:
        """Whether it has ended."""
        return self.status != 0


class Fleet:
    """Tunnels that run until a signal. What happens elsewhere is put in a queue and handled in the main thread.

    :param members: the tunnels.
    :param signals: those that end it.
    """

    def __init__(self, members: Sequence[Member], signals: Signals) -> None:
        self._members = members
        self._signals = signals
        self._events: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._ending = threading.Event()
        self._preflight = Preflight(names=False)
        self._unheard = len(members)  # of those that have not said yet how they began
        self._trials: dict[Hashable, tuple[Trial, list[Member]]] = {}
        self._draining = False
        self._drained = 0
        self._done = False
        self._status = 0
        self._view: FleetView | None = None

    def run(self, *, watch: bool) -> int:
        """Open all, and relay until a signal.

        :param watch: whether there is a live table.
        :returns: the exit status: 0 after a signal; else 2 if the user has to change the configuration of what failed
            (of every tunnel, if none is left), 1 for another failure.
        """
        with self._live_table() if watch else nullcontext() as table:
            for member in self._members:
                self._begin(member)
            startup.is_over()
            while not self._done:
                heard = self._signals.wait(REFRESH if table is not None else None)
                if heard:
                    self._on_signal(heard)
                self._handle_events()
                if table is not None and heard != 0:
                    table.refresh()
        self._close()
        stats = total(member.opened.tunnel.stats() for member in self._members if member.opened)
        logger.info("%s", summary(stats), extra={"stats": stats})
        return self._status

    def _handle_events(self) -> None:
        while not self._events.empty():
            self._events.get()()

    def _later(self, event: Callable[..., None], *arguments: Any) -> None:
        """Have something done in the main thread; from any thread."""
        self._events.put(functools.partial(event, *arguments))
        self._signals.wake()

    # -- the beginning ------------------------------------------------------------------------------------------------

    def _begin(self, member: Member) -> None:
        tried = functools.partial(self._later, self._tried, member)
        postponed = functools.partial(self._later, self._postponed, member)
        try:
            opening = functools.partial(member.plan.open, self._preflight)
            member.attempt = Attempt(opening, tried, postponed)
        except RuntimeError as error:  # there is no thread to be had
            self._give_up(member, error)
            self._heard_of(member)

    def _postponed(self, member: Member, error: Exception) -> None:
        """A tunnel waits for the server at which it is to listen."""
        if member.attempt is None or self._ending.is_set():
            return
        is_news, member.problem = not member.problem, f"{reason(error)}; trying again"
        if is_news:
            complain(f"{member.name}: {member.problem}")
            self._heard_of(member)

    def _tried(self, member: Member) -> None:
        """A tunnel is open, or will not be."""
        assert member.attempt is not None, "it has begun"
        is_news, attempt, member.attempt = not member.problem, member.attempt, None
        try:
            opened: Opened = attempt.outcome()
        except (OSError, ValueError, TypeError, RuntimeError) as error:
            if not self._ending.is_set():
                self._give_up(member, error)
        else:
            self._up(member, opened)
        if is_news:
            self._heard_of(member)

    def _up(self, member: Member, opened: Opened) -> None:
        if self._ending.is_set():
            opened.close()
            return
        member.opened, member.problem = opened, ""
        say(f"{member.name}: listening on {opened.title}")
        tell_published(opened.receive, f"{member.name}: ")
        self._try_hops(member, opened)

    def _heard_of(self, member: Member) -> None:
        """The first news of a tunnel; with the last of these all have begun."""
        self._unheard -= 1
        if self._unheard or self._ending.is_set():
            return
        count = sum(member.opened is not None for member in self._members)
        failed = len(self._members) - count
        logger.info("%d of %d tunnels listen%s", count, len(self._members), f"; {failed} do not" if failed else "")

    def _fail(self, member: Member, problem: str) -> None:
        member.problem = problem
        complain(f"{member.name}: {problem}")

    def _give_up(self, member: Member, error: Exception) -> None:
        """End a tunnel for what a retry cannot fix, and all of them if that is asked for."""
        member.status = status_of(error)
        if member.opened is not None:
            member.opened.close()
        self._fail(member, reason(error))
        if member.is_required or member.plan.options.fail_fast:
            self._end(member.status)
        elif all(other.is_over for other in self._members):
            complain("there is no tunnel left")
            self._end(min(other.status for other in self._members))

    def _try_hops(self, member: Member, opened: Opened) -> None:
        """Try the hops on the way to the target, once for all tunnels that have the same."""
        if not hasattr(opened.make_send, "ready"):
            return
        key = member.plan.way
        if key in self._trials:
            trial, members = self._trials[key]
            members.append(member)
            if trial.error is not None:
                self._later(self._refused, key)
            return
        options = member.plan.options
        failed = functools.partial(self._later, self._refused, key)
        trial = member.plan.trial(opened.make_send, options.connect_timeout, failed, fail_fast=options.fail_fast)
        self._trials[key] = trial, [member]

    def _refused(self, key: Hashable) -> None:
        """A hop does not let us in, and never will."""
        trial, members = self._trials[key]
        assert trial.error is not None, "that is what it failed with"
        for member in members:
            if not member.is_over:
                self._give_up(member, trial.error)

    # -- the end ------------------------------------------------------------------------------------------------------

    def _on_signal(self, number: int) -> None:
        """The first one drains, the second one ends."""
        if self._draining:
            self._done = True
            return
        self._draining = True
        self._ending.set()
        opened = [member for member in self._members if member.opened is not None]
        live = sum(member.opened.tunnel.stats().active for member in opened if member.opened)
        longest = max((member.plan.options.drain for member in opened), default=0)
        wait = closing(live, longest)
        logger.info("%s: %s", signal.Signals(number).name, wait)
        if self._view is not None:
            self._view.closing = wait
        self._drained = len(opened)
        self._done = not opened
        for member in opened:
            threading.Thread(target=self._drain, args=(member,), name="relay-drain", daemon=True).start()

    def _drain(self, member: Member) -> None:
        assert member.opened is not None, "only those that are open are drained"
        member.opened.tunnel.close(member.plan.options.drain)
        self._later(self._one_drained)

    def _one_drained(self) -> None:
        self._drained -= 1
        self._done = self._done or self._drained == 0

    def _end(self, status: int) -> None:
        """End all at once."""
        self._status = status
        self._ending.set()
        self._done = True

    def _close(self) -> None:
        self._ending.set()
        for member in self._members:
            if member.attempt is not None:
                member.attempt.give_up()
            if member.opened is not None:
                member.opened.close()

    # -- the live table -----------------------------------------------------------------------------------------------

    def _live_table(self) -> AbstractContextManager[LiveTable | None]:
        from .live import live_table
        from .views import FleetView

        self._view = FleetView(self._watched)
        return live_table(self._view) or nullcontext()

    def _watched(self) -> list[Watched]:
        """The tunnels, for the live table."""
        return [_watched(member) for member in self._members]


def _watched(member: Member) -> Watched:
    from .views import Watched, hop_state

    if member.opened is None or member.is_over:
        state = "failed" if member.is_over else "waiting" if member.problem else "opening"
        return Watched(member.name, state, member.plan.configured, member.problem)
    state, problem = hop_state(member.opened.receive, member.opened.make_send)
    return Watched(member.name, state, member.opened.title, problem, member.opened.tunnel)
