"""The tunnels of one process: opened side by side, watched, and drained together.

============ =============================== ============ ============================================================
state        event                           next state   action
============ =============================== ============ ============================================================
running      a successor asks for sockets    handing over offer them
running      a signal, or the end            ending       close the listeners; open connections may finish
handing over a change by operators           handing over refuse it
handing over a reload, or another successor  handing over refuse it
handing over the upgrade fails               running      open again what was closed for it
handing over the successor is ready          ending       accept no client from now on; the same as a signal
handing over a signal                        ending       the successor ends as well
ending       a reload, or a successor        ending       refuse it
ending       another signal                  ending       the next step: close now, then end at once
============ =============================== ============ ============================================================

The table of the states of one tunnel is in :mod:`.member`. Two parts have tables of their own: the reloads of a group
that has a file (:mod:`.change.reload`), and the upgrade of one that takes the place of another process
(:mod:`.change.take_over`).
"""

from __future__ import annotations

import functools
import logging
import math
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from ..engine.outlets import Outlets
from ..engine.records import Stats
from ..eventloop import garbage
from ..streams import exit_drain
from ..transports.tcp import Inherited
from .drains import Drains
from .failures import ConflictError, NotFoundError, ReloadError, describe_error, status_of
from .hop_trials import HopTrials
from .member import Member, MemberState, Snapshot
from .plan import Ends
from .preflight import Preflight
from .probes import BackgroundCall, CallThread
from .reporter import Reporter, Supervisor
from .signals import UNDER_WAY, MainThread, Signals
from .status import ReloadStatus, UpgradeReport, total
from .worker_processes import WorkerProcesses

if TYPE_CHECKING:  # a command starts in half the time without them
    from .change.reload import ReloadResult, Reloads
    from .change.take_over import TakeOver

logger = logging.getLogger("relay.cli")

_DELIVERY = 5.0  # seconds at least for what ended connections have sent; fleet.md promises an end in drain + 10 s

Result = TypeVar("Result")


class Upgrades(Protocol):
    """The hand-over of a group to another process."""

    def start(self) -> UpgradeReport:
        """Start the command again, and hand over to it; return its process ID and its version."""

    def serve(self, connection: socket.socket, first: bytes) -> None:
        """Hand over to a process that has connected."""

    def give_up(self, why: str) -> None:
        """End a hand-over that has not succeeded yet: the group is ending. In the main thread."""


class Group:
    """Tunnels that run until a signal. Other threads put what happens there in a queue; the main thread handles it.

    So no state of a tunnel or of the group has a lock: the main thread alone changes them, between two signals. What
    other threads read of them is replaced as a whole (:attr:`members`).

    The members of the first part may be called from any thread, the others from the main thread, which is the one that
    runs the group.

    :param members: the tunnels.
    :param signals: those that end it.
    :param reporter: what is said of it goes there.
    """

    def __init__(self, members: Sequence[Member], signals: Signals, reporter: Reporter | None = None) -> None:
        self.reopen_logs: Callable[[], object] = lambda: None
        """Opens the log file again; from any thread. Set by the one who opens the file."""
        self.on_change: Callable[[Sequence[Snapshot]], object] = lambda _: None
        """Called in the main thread with a tunnel that has opened; after a reload, with all and those that are gone."""
        self.reporter = reporter or Reporter()
        """What is said of the group goes there."""
        self.supervisor = Supervisor()
        """The events for a service manager."""
        self.outlets = Outlets()
        """The access log and the store of its tunnels in this process. Set by the ones who open them."""
        self.preparations: list[Callable[[], object]] = []
        """Called in the main thread once a tunnel listens: what operators need later is imported and opened then."""
        self.reloads: Reloads | None = None
        """Reads the file of the tunnels again; ``None`` if the command has none."""
        self.take_over: TakeOver | None = None
        """Takes the place of another process; ``None`` if there is none. Set before :meth:`run`."""
        self.upgrades: Upgrades | None = None
        """Hands the listening sockets over to another process; ``None`` if the command has no file."""
        self.is_handing_over = False
        """Whether another process is about to take the place of this one; what operators change waits for that.

        Set in the main thread, so that no reload begins beside it. The thread of an upgrade that has failed resets it.
        """
        self.without_probes: frozenset[str] = frozenset()
        """The tunnels whose targets are not probed now, because another process is about to have their session."""
        self.processes = WorkerProcesses()
        """The workers of its tunnels. Set by the one who ends them."""
        self.started = time.time()
        """When it was made, in seconds since 1970."""
        self._set_members(members)
        self._signals = signals
        self._main_thread = MainThread(signals.wake)
        self._ending = threading.Event()
        self._preflight = Preflight(names=False)
        self._openings = CallThread("relay-listen")  # thousands of threads at once would keep each other waiting
        self._leaving: dict[Member, None] = {}  # those that a reload has removed, in their order
        self._removed = Stats(0, 0, 0, 0, {})  # the figures of those that have gone
        self._without_result = len(members)  # those that have neither opened nor failed yet
        self.hop_trials = HopTrials(self._main_thread.later, self._on_refused)
        """The trials of the hops of its tunnels."""
        self._is_told_to_end = False  # since the first signal
        self._closes_at: float | None = None  # monotonic seconds; while the end waits to close the listeners
        self._closing = "closing"
        self._drains = Drains()
        self._draining: set[Member] = set()
        self._reset = 0  # connections that were reset because the drain was over, since the first signal
        self._drained_by = 0.0  # monotonic seconds
        self._done = False
        self._status = 0

    # -- from any thread --------------------------------------------------------------------------------------------

    @property
    def members(self) -> tuple[Snapshot, ...]:
        """The tunnels, in the order of the file."""
        return tuple(member.now for member in self._members)

    def member(self, name: str) -> Snapshot | None:
        """Return a tunnel by its name; ``None`` if there is none."""
        found = self._by_name.get(name)
        return found.now if found is not None else None

    @property
    def leaving(self) -> tuple[Snapshot, ...]:
        """The tunnels that a reload has removed, while their open connections finish."""
        return tuple(member.now for member in tuple(self._leaving))  # the main thread may change them meanwhile

    @property
    def reload_figures(self) -> ReloadStatus:
        """The figures of the reloads."""
        return ReloadStatus() if self.reloads is None else self.reloads.figures

    def stats(self) -> Stats:
        """Return the figures of all tunnels since the start, also of those that a reload has removed."""
        counted = [one for one in (*self.members, *self.leaving) if one.has_opened and not one.is_continued]
        return total([self._removed, *(one.stats() for one in counted)])

    @property
    def is_ending(self) -> bool:
        """True from the first signal on."""
        return self._ending.is_set()

    @property
    def shutdown_delay(self) -> float:
        """Seconds from the first signal until the listeners close; it is not ready meanwhile."""
        if self.reloads is not None:
            return self.reloads.file.shutdown_delay
        return max((member.plan.options.shutdown_delay or 0.0 for member in self._members), default=0.0)

    def wait_for_end(self, seconds: float) -> bool:
        """Wait for the first signal, for some seconds at most; return whether it has come."""
        return self._ending.wait(seconds)

    def call(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Run a function in the main thread, and wait for it. In the main thread it is run at once.

        :param function: called with the arguments. It must not wait for long: no signal is handled meanwhile.
        :returns: its result.
        :raises ConflictError: if the group has ended before that.
        :raises BaseException: what it raises.
        """
        return self._main_thread.call(function, *arguments)

    def later(self, function: Callable[..., object], *arguments: Any) -> None:
        """Run a function in the main thread, and do not wait."""
        self._main_thread.later(function, *arguments)

    def pause(self, name: str) -> None:
        """Accept no client at a tunnel until :meth:`resume`; clients wait in the listen backlog.

        :param name: of the tunnel.
        :raises NotFoundError: if there is none of that name, as the following do.
        :raises ConflictError: if it does not listen, the group has ended, or another process takes its place.
        """
        self.call(lambda: self._operated(name).pause())

    def resume(self, name: str) -> None:
        """Accept clients again; the errors are those of :meth:`pause`."""
        self.call(lambda: self._operated(name).resume())

    def drain(self, name: str, seconds: float | None = None) -> None:
        """Close the listener of a tunnel; its open connections may finish. Does not wait for them.

        :param name: of the tunnel.
        :param seconds: the most that they may take; those that are left are reset. ``None`` for the tunnel's own limit.

        The errors are those of :meth:`pause`.
        """
        self.call(lambda: self._drain(self._operated(name), seconds))

    def check_operable(self) -> None:
        """Check that no other process is about to take the place of this one: it knows the state of the tunnels.

        :raises ConflictError: if one is.
        """
        if self.is_handing_over:
            raise ConflictError(UNDER_WAY)

    def check_reloadable(self) -> None:
        """Check that nothing is in the way of a reload; in the main thread.

        :raises ConflictError: if something is.
        """
        if self.is_ending:
            raise ConflictError("relay is ending; start it again")
        self.check_operable()
        if self.take_over is not None and self.take_over.is_waiting:
            raise ConflictError(UNDER_WAY)

    def stop(self) -> None:
        """End as after SIGTERM: each further call begins the next step. Does not wait."""
        self._main_thread.later(self._on_signal, signal.SIGTERM)

    def reload(self, dry_run: bool = False) -> ReloadResult:
        """Read the file again, and change the tunnels that it changes. Not in the main thread, which does the work.

        One reload runs at a time. At most one waits for it; further calls get the result of the one that waits.

        :param dry_run: whether only to compare, and to change nothing.
        :returns: a verdict for each tunnel.
        :raises ReloadError: if the file has problems, or a tunnel cannot be opened. Nothing has changed then.
        :raises ConflictError: if the group has ended.
        """
        if self.reloads is None:
            raise ReloadError(["this command has no file to reload; relay up has one"])
        return self.reloads.dry_run() if dry_run else self.reloads.run()

    # -- the main thread --------------------------------------------------------------------------------------------

    def run(self) -> int:
        """Open all, and relay until a signal.

        :returns: the exit status: 0 after a signal; else 2 if the user has to change the configuration of what failed
            (of every tunnel, if none is left), 1 for another failure.
        """
        self._main_thread.enter()
        try:
            try:
                self.reporter.on_start(lambda: self.members)
                for member in self._members:
                    self.begin(member)
                while not self._done:
                    self._turn()
            finally:
                self.reporter.stop()
            self._close()
        finally:
            self._main_thread.close()
        self.reporter.on_ended(self.stats())
        return self._status

    def _turn(self) -> None:
        """Handle a signal, or what other threads have put into the queue."""
        heard = self._wait()
        if heard:  # first: the end must not wait until hundreds of tunnels that have just opened were let in
            self._on_signal(heard)
        # All that is there, since one wake may stand for several calls.
        while not self._done and self._main_thread.run_next():
            pass
        if self.take_over is not None:
            self.take_over.on_turn()  # after what other threads have found, which may be the last thing it waits for
        if self._closes_at is not None and time.monotonic() >= self._closes_at:
            self._close_listeners("the shutdown delay is over")
        self.reporter.on_turn()
        self.supervisor.on_turn()

    def _wait(self) -> int | None:
        return self._signals.wait(min((one for one in self._timeouts() if one is not None), default=None))

    def _timeouts(self) -> list[float | None]:
        """Return the seconds until each of the next turns is due; ``None`` if one is not."""
        taking_over = self.take_over.timeout() if self.take_over is not None else None
        return [self.supervisor.timeout(), self.reporter.timeout(), self.closes_in, taking_over]

    def _find(self, name: str) -> Member:
        if (found := self._by_name.get(name)) is None:
            raise NotFoundError(f"{name}: there is no such tunnel; relay ctl list prints all of them")
        return found

    @property
    def closing(self) -> str:
        """The step of the end, in words."""
        return self._closing

    @property
    def closes_in(self) -> float | None:
        """Seconds until the listeners close, while the end waits for that; else ``None``."""
        return None if self._closes_at is None else max(0.0, self._closes_at - time.monotonic())

    def _operated(self, name: str) -> Member:
        """Return a tunnel that an operator is about to change."""
        self.check_operable()
        return self._find(name)

    @property
    def tunnels(self) -> tuple[Member, ...]:
        """The tunnels, in the order of the file."""
        return self._members

    def _set_members(self, members: Sequence[Member]) -> None:
        self._members = tuple(members)
        self._by_name = {member.name: member for member in members}

    # -- a reload -----------------------------------------------------------------------------------------------------

    def replace(self, members: Sequence[Member]) -> Sequence[Member]:
        """Take these tunnels from now on, in this order; those that are not among them end.

        :returns: the tunnels that end.
        """
        remaining = {*members}
        removed = [member for member in self._members if member not in remaining]
        for member in removed:
            self._remove(member)
        self._set_members(members)
        return removed

    def _remove(self, member: Member) -> None:
        """End a tunnel that is not in the file any more, or has another one in its place."""
        if not member.state.accepts and member.state is not MemberState.DRAINING:
            member.close()
            self._count_removed(member)
            return
        self._leaving[member] = None
        if member.state.accepts:
            # The tunnel closes the listener a little later. One that has inherited its socket serves the next client.
            member.relay.pause()
            seconds = member.plan.drain_on_reload
            self._drain(member, math.inf if seconds is None else seconds)

    def _count_removed(self, member: Member) -> None:
        if member.continued is not None:
            member.continued.end()
        elif member.has_opened:
            self._removed = total([self._removed, member.now.stats()])

    # -- the beginning ------------------------------------------------------------------------------------------------

    def begin(self, member: Member) -> None:
        """Begin to open a tunnel. It accepts no client before the main thread knows it, and so can drain it."""
        opened = functools.partial(self._main_thread.later, self._on_outcome, member)
        postponed = functools.partial(self._main_thread.later, self.on_postponed, member)
        opening = self.take_over.opening_of(member) if self.take_over is not None else None
        if opening is None:
            inherited = Inherited(self.supervisor.sockets_of(member.name))
            opening = functools.partial(
                member.plan.open, self._preflight, inherited=inherited, outlets=self.outlets, paused=True
            )
        try:
            thread = self._openings if member.plan.opens_alone else None
            member.begin(BackgroundCall(opening, opened, postponed, thread))
        except RuntimeError as error:  # the system has no thread left
            self.give_up(member, error)
            self._on_first_result()

    def on_postponed(self, member: Member, error: Exception) -> None:
        """A tunnel waits for the server at which it is to listen."""
        if not member.state.is_before or self._ending.is_set():
            return
        is_news = member.state is MemberState.OPENING
        member.on_postponed(f"{describe_error(error)}; trying again")
        self.reporter.on_postponed(member.name, member.now.problem, is_first=is_news)
        if is_news:
            self._on_first_result()

    def _on_outcome(self, member: Member) -> None:
        """A tunnel has opened or has failed."""
        is_news = member.state is MemberState.OPENING
        try:
            ends = member.outcome()
        except (OSError, ValueError, TypeError, RuntimeError) as error:
            if not self._ending.is_set() and not member.state.is_over:  # a reload may have removed it
                self.give_up(member, error)
        else:
            if self._ending.is_set() or member.state.is_over:
                # The end has come, or a reload has removed it, while it opened on its thread.
                ends.close()
            else:
                self.start(member, ends)
                self._main_thread.later(self._prepare)  # after the tunnels that have opened meanwhile
        if is_news:
            self._on_first_result()

    def start(self, member: Member, ends: Ends) -> None:
        """Take a tunnel that has opened, and let its clients in, unless they are those of another process still."""
        member.on_opened(ends)
        is_held = self.take_over is not None and self.take_over.on_opened(member)
        # Printed before the first client is let in: a test or a script that reads the line may connect and signal at
        # once.
        self.reporter.on_opened(member.now)
        if is_held:
            member.pause()
        else:
            member.relay.resume()
        self.hop_trials.begin(member)
        self.on_change([member.now])

    def _prepare(self) -> None:
        """Prepare for operators, once."""
        while self.preparations and not self._done:
            self.preparations.pop()()

    def _on_first_result(self) -> None:
        """A tunnel has opened, has failed or waits; after the last of these all have begun."""
        self._without_result -= 1
        if not self._without_result and not self._ending.is_set():
            listening = sum(member.has_opened for member in self._members)
            self.reporter.on_all_tried(listening, len(self._members))
            garbage.keep_all()

    def give_up(self, member: Member, error: Exception) -> None:
        """End a tunnel that a retry cannot help, and all of them if it is required."""
        member.on_failed(describe_error(error), status_of(error))
        self.reporter.on_failed(member.name, error)
        if member.plan.is_required or member.plan.options.fail_fast:
            self.end(status_of(error))
        elif all(other.state is MemberState.FAILED for other in self._members):
            self.reporter.on_none_left()
            self.end(min(other.now.status for other in self._members))
        if self.take_over is not None:
            self.take_over.on_failed(member, error)

    def _on_refused(self, member: Member, error: Exception, fatal: bool) -> None:
        """A hop of a tunnel has failed, and a retry cannot help."""
        if fatal and not (self.take_over is not None and self.take_over.spares(member)):
            self.give_up(member, error)
        else:
            self.reporter.on_failed(member.name, error)

    # -- the end ------------------------------------------------------------------------------------------------------

    def _on_signal(self, number: int) -> None:
        """The first signal begins the end; each further one begins the next step: the drain, then the end at once."""
        if number in self._signals.reloading and self.reloads is not None:
            return self.reloads.on_signal()
        why = signal.Signals(number).name
        if self._is_told_to_end and self._closes_at is None:
            self._done = True
        elif not self._is_told_to_end and (delay := self.shutdown_delay) and self._listens:
            self._begin_end(why)
            self._closes_at = time.monotonic() + delay
            self._report_end(why, f"not ready; closing in {delay:g} s; again to close now")
        else:
            self.end_for(why)
        return None

    @property
    def _listens(self) -> bool:
        return any(member.state is MemberState.LISTENING for member in self._members)

    def end_for(self, why: str, status: int = 0) -> None:
        """End as after a signal, without a delay, if none has come; in the main thread.

        :param why: for the log.
        :param status: the exit status.
        """
        self._status = status or self._status
        if not self._is_told_to_end:
            self._begin_end(why)
            self._close_listeners(why)
        elif self._closes_at is not None:
            self._close_listeners(why)

    def _begin_end(self, why: str) -> None:
        """Be ready no more.

        :param why: for the log.
        """
        # Open connections may take long to finish. The process before this one must not leave its clients to it, and
        # the one after it must not wait for this one.
        if self.take_over is not None:
            self.take_over.on_end(why)
        if self.upgrades is not None:
            self.upgrades.give_up(f"relay is ending: {why}")
        self._is_told_to_end = True
        self._ending.set()

    def _close_listeners(self, why: str) -> None:
        """Close all listeners; open connections may finish.

        :param why: for the log.
        """
        self._closes_at = None
        drained = [one for one in self._everyone if one.state.accepts or one.state is MemberState.DRAINING]
        live = sum(member.now.live for member in drained)
        longest = max((member.plan.options.drain for member in drained), default=0)
        self._report_end(why, _closing(live, longest))
        self._drained_by = time.monotonic() + longest
        for member in drained:
            self._drain(member)
        self._done = not drained

    def _report_end(self, why: str, step: str) -> None:
        self._closing = step
        self.reporter.on_end(why, step)

    def _drain(self, member: Member, seconds: float | None = None) -> None:
        member.drain(seconds, functools.partial(self._main_thread.later, self._on_drained, member), self._drains)
        self._draining.add(member)

    def _on_drained(self, member: Member) -> None:
        count = member.on_drained()
        self._draining.discard(member)
        if member in self._leaving:
            self._count_removed(member)
            del self._leaving[member]
        if not self._is_told_to_end:
            _log_reset(f"{member.name}: ", count)
            return
        self._reset += count  # one line for all tunnels, before the sums
        if self._closes_at is None and not self._draining and not self._done:
            _log_reset("", self._reset)
            self._done = True

    def end(self, status: int) -> None:
        """End all at once.

        :param status: the exit status.
        """
        self._status = status
        self._ending.set()
        self._done = True

    def _close(self) -> None:
        self._ending.set()
        # Connections that have ended may have sent what a server has not taken yet. It gets what is left of the drain.
        left = 0.0 if self._draining else self._drained_by - time.monotonic()
        # Before the tunnels close: what they have sent is delivered by the threads that this limits.
        exit_drain.limit(max(left, _DELIVERY))
        for member in self._everyone:
            member.close()

    @property
    def _everyone(self) -> tuple[Member, ...]:
        """All tunnels that have not ended."""
        return (*self._members, *self._leaving)


def _closing(live: int, seconds: float) -> str:
    """Return the step of the end after the first signal, in words.

    :param live: the number of open connections.
    :param seconds: the time that they have to finish.
    """
    if not live or not seconds:
        return "closing"
    return f"closing; {live} open, {seconds:g} s to finish; again to end at once"


def _log_reset(name: str, count: int) -> None:
    """Log that connections were reset because the time of their drain was over, if there were some."""
    if count:
        connections = f"{count} connection{'' if count == 1 else 's'}"
        logger.warning("%sdrain over: %s reset; raise drain to give them longer", name, connections)
