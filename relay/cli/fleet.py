"""Tunnels in one process: opened side by side, watched, and drained together.

A command line is a group of one tunnel (:class:`SingleTunnel`), which differs in what is printed.
"""

from __future__ import annotations

import functools
import logging
import queue
import signal
import threading
from collections.abc import Callable, Hashable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .i2p_options import tell_published
from .output import closing, describe_error, print_error, print_line, status_of, summary, total
from .plan import Opened, Plan
from .preflight import Preflight
from .probes import SLOW, BackgroundCall, HopProbe, report_slow
from .signals import Signals

if TYPE_CHECKING:  # a command starts in half the time without them
    from .live import LiveTable, View
    from .views import Watched

__all__ = ["Member", "SingleTunnel", "TunnelGroup"]

logger = logging.getLogger("relay.cli")

REFRESH = 0.5  # seconds between two states of the live table


@dataclass(slots=True)
class Member:
    """One of the tunnels. All but the plan belongs to the main thread.

    :param plan: how it is opened.
    :param is_required: whether all end if it cannot start.
    """

    plan: Plan
    is_required: bool = False
    attempt: BackgroundCall | None = None
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
        """True if it has ended."""
        return self.status != 0


class TunnelGroup:
    """Tunnels that run until a signal. Other threads put what happens there in a queue; the main thread handles it.

    :param members: the tunnels.
    :param signals: those that end it.
    """

    def __init__(self, members: Sequence[Member], signals: Signals) -> None:
        self._members = members
        self._signals = signals
        self._events: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._ending = threading.Event()
        self._preflight = Preflight(names=False)
        self._without_result = len(members)  # those that have neither opened nor failed yet
        self._trials: dict[Hashable, tuple[HopProbe, list[Member]]] = {}
        self._draining: int | None = None  # tunnels that still drain; None before the first signal
        self._done = False
        self._status = 0
        self._terminal = ExitStack()  # restores the terminal
        self._table: LiveTable | None = None

    def run(self, *, watch: bool) -> int:
        """Open all, and relay until a signal.

        :param watch: whether there is a live table.
        :returns: the exit status: 0 after a signal; else 2 if the user has to change the configuration of what failed
            (of every tunnel, if none is left), 1 for another failure.
        """
        with self._terminal:
            if watch:
                from .views import FleetView

                self._show(FleetView(self._watched))
            for member in self._members:
                self._begin(member)
            while not self._done:
                heard = self._wait()
                if heard:
                    self._on_signal(heard)
                while not self._events.empty():
                    self._events.get()()
                if self._table is not None and heard != 0:
                    self._table.refresh()
        self._close()
        self._log_summary()
        return self._status

    def _show(self, view: View) -> None:
        from .live import live_table

        table = live_table(view)
        if table is not None:
            self._table = self._terminal.enter_context(table)

    def _wait(self) -> int | None:
        return self._signals.wait(REFRESH if self._table is not None else None)

    def _later(self, event: Callable[..., None], *arguments: Any) -> None:
        """Call something in the main thread; from any thread."""
        self._events.put(functools.partial(event, *arguments))
        self._signals.wake()

    # -- the beginning ------------------------------------------------------------------------------------------------

    def _begin(self, member: Member) -> None:
        opened = functools.partial(self._later, self._on_outcome, member)
        postponed = functools.partial(self._later, self._on_postponed, member)
        try:
            opening = functools.partial(member.plan.open, self._preflight)
            member.attempt = BackgroundCall(opening, opened, postponed)
        except RuntimeError as error:  # the system has no thread left
            self._give_up(member, error)
            self._on_first_result()

    def _on_postponed(self, member: Member, error: Exception) -> None:
        """A tunnel waits for the server at which it is to listen."""
        if member.attempt is None or self._ending.is_set():
            return
        is_news, member.problem = not member.problem, f"{describe_error(error)}; trying again"
        if is_news:
            print_error(f"{member.name}: {member.problem}")
            self._on_first_result()

    def _on_outcome(self, member: Member) -> None:
        """A tunnel has opened or has failed."""
        assert member.attempt is not None, "it has begun"
        is_news, attempt, member.attempt = not member.problem, member.attempt, None
        try:
            opened: Opened = attempt.outcome()
        except (OSError, ValueError, TypeError, RuntimeError) as error:
            if not self._ending.is_set():
                self._give_up(member, error)
        else:
            if self._ending.is_set():
                opened.close()
            else:
                member.opened, member.problem = opened, ""
                self._on_opened(member, opened)
        if is_news:
            self._on_first_result()

    def _on_opened(self, member: Member, opened: Opened) -> None:
        print_line(f"{member.name}: listening on {opened.title}")
        tell_published(opened.receive, f"{member.name}: ")
        self._try_hops(member, opened)

    def _on_first_result(self) -> None:
        """A tunnel has opened, has failed or waits; after the last of these all have begun."""
        self._without_result -= 1
        if not self._without_result and not self._ending.is_set():
            self._log_count()

    def _log_count(self) -> None:
        count = sum(member.opened is not None for member in self._members)
        failed = len(self._members) - count
        logger.info("%d of %d tunnels listen%s", count, len(self._members), f"; {failed} do not" if failed else "")

    def _give_up(self, member: Member, error: Exception) -> None:
        """End a tunnel that a retry cannot help, and all of them if it is required."""
        member.status, member.problem = status_of(error), describe_error(error)
        if member.opened is not None:
            member.opened.close()
        print_error(f"{member.name}: {member.problem}")
        if member.is_required or member.plan.options.fail_fast:
            self._end(member.status)
        elif all(other.is_over for other in self._members):
            print_error("there is no tunnel left")
            self._end(min(other.status for other in self._members))

    def _try_hops(self, member: Member, opened: Opened) -> None:
        """Try the hops on the way to the target, once for all tunnels that have the same."""
        key = member.plan.way
        if key in self._trials:
            trial, members = self._trials[key]
            members.append(member)
            if trial.error is not None:
                self._later(self._on_refused, key)
            return
        options = member.plan.options
        failed = functools.partial(self._later, self._on_refused, key)
        trial = member.plan.trial(opened.make_send, options.connect_timeout, failed, fail_fast=options.fail_fast)
        self._trials[key] = trial, [member]

    def _on_refused(self, key: Hashable) -> None:
        """A hop has failed, and a retry cannot help."""
        trial, members = self._trials[key]
        assert trial.error is not None, "that is what it failed with"
        for member in members:
            if not member.is_over:
                self._give_up(member, trial.error)

    # -- the end ------------------------------------------------------------------------------------------------------

    def _on_signal(self, number: int) -> None:
        """The first signal drains, the second one ends."""
        if self._draining is not None:
            self._done = True
            return
        self._ending.set()
        opened = [member for member in self._members if member.opened is not None]
        live = sum(member.opened.tunnel.stats().active for member in opened if member.opened)
        longest = max((member.plan.options.drain for member in opened), default=0)
        wait = closing(live, longest)
        logger.info("%s: %s", signal.Signals(number).name, wait)
        if self._table is not None:
            self._table.view.closing = wait
        self._draining = len(opened)
        self._done = not opened
        for member in opened:
            threading.Thread(target=self._drain, args=(member,), name="relay-drain", daemon=True).start()

    def _drain(self, member: Member) -> None:
        assert member.opened is not None, "only those that are open are drained"
        member.opened.tunnel.close(member.plan.options.drain)
        self._later(self._on_drained)

    def _on_drained(self) -> None:
        assert self._draining is not None, "a signal has come"
        self._draining -= 1
        self._done = self._done or self._draining == 0

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

    def _log_summary(self) -> None:
        stats = total(member.opened.tunnel.stats() for member in self._members if member.opened)
        logger.info("%s", summary(stats), extra={"stats": stats})

    def _watched(self) -> list[Watched]:
        """The tunnels, for the live table."""
        return [_watched(member) for member in self._members]


class SingleTunnel(TunnelGroup):
    """The tunnel of a command line: no name in what is printed, and its failure is raised.

    :param plan: how it is opened.
    :param signals: those that end it.
    :param title: printed before where it listens and where that leads to.
    """

    def __init__(self, plan: Plan, signals: Signals, title: str) -> None:
        super().__init__([Member(plan)], signals)
        self._title = title
        self._explains_wait = plan.at_i2p  # until it is open, or the log says what it waits for
        self._error: Exception | None = None

    def relay(self) -> None:
        """Open it, relay until a signal, and drain.

        :raises Exception: what a retry cannot fix, or the first failure if the options say so.
        """
        self.run(watch=False)
        if self._error is not None:
            raise self._error

    def _wait(self) -> int | None:
        if not self._explains_wait:
            return super()._wait()
        heard = self._signals.wait(SLOW)
        if heard is None:
            self._explains_wait = False
            report_slow()
        return heard

    def _on_postponed(self, member: Member, error: Exception) -> None:
        self._explains_wait = False  # the log does

    def _on_opened(self, member: Member, opened: Opened) -> None:
        self._explains_wait = False
        line = f"{self._title}{opened.title}"
        print_line(line)
        tell_published(opened.receive)
        self._try_hops(member, opened)
        if member.plan.options.watch:
            from .views import TunnelView, hop_state

            hops = functools.partial(hop_state, opened.receive, opened.make_send)
            self._show(TunnelView(opened.tunnel, line, hops))

    def _log_count(self) -> None:
        pass

    def _give_up(self, member: Member, error: Exception) -> None:
        self._error = error
        self._end(status_of(error))

    def _on_signal(self, number: int) -> None:
        if self._members[0].opened is not None:
            super()._on_signal(number)
            return
        logger.info("%s: closing before there was an answer", signal.Signals(number).name)
        self._end(0)

    def _log_summary(self) -> None:
        if self._error is None and self._members[0].opened is not None:
            super()._log_summary()


def _watched(member: Member) -> Watched:
    from .views import Watched, hop_state

    if member.opened is None or member.is_over:
        state = "failed" if member.is_over else "waiting" if member.problem else "opening"
        return Watched(member.name, state, member.plan.configured, member.problem)
    state, problem = hop_state(member.opened.receive, member.opened.make_send)
    return Watched(member.name, state, member.opened.title, problem, member.opened.tunnel)
