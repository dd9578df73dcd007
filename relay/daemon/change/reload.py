"""The reload of a group of tunnels: one at a time, and all of it or nothing.

========= ====================================== ========= ===========================================================
state     event                                  next      action
                                                 state
========= ====================================== ========= ===========================================================
idle      SIGHUP                                 asked     start a thread that reloads
idle      a caller asks                          preparing on its thread: read the file, and open what it needs
asked     SIGHUP                                 asked     nothing: the thread has not read the file yet
asked     it is the turn of the thread           preparing as above
preparing SIGHUP, or a caller asks               preparing it waits for its turn; those after it share its result
preparing all is open                            idle      in the main thread: change the tunnels
preparing a problem, or the end                  idle      close what was opened, open again what was closed
========= ====================================== ========= ===========================================================

A thread of its own prepares, because to read files and to open listeners takes time, and the main thread must hear
signals meanwhile. The main thread makes the changes, because it owns the tunnels. It waits for nothing then, and no
other thread sees a half of them.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...config.models import File
from ...eventloop import reserve
from ..failures import ConflictError, ReloadError, describe_error, status_of
from ..group import Group
from ..member import Member, MemberState
from ..plan import Plan
from ..preflight import Preflight
from ..status import ReloadStatus
from ..top_keys import KeyChange, KeyEffect
from ..tunnel_file import Reread, TunnelFile
from ..verdicts import Change, Verdict, compare
from .old_listener import OPENING_ERRORS, Call
from .replacement import Leaving, Replacement
from .transition import Step, Transition, TransitionState, side_by_side

if TYPE_CHECKING:  # most have none
    from ..sandbox import Sandbox

logger = logging.getLogger("relay.cli")


@dataclass(frozen=True, slots=True)
class ReloadResult:
    """The effect of a reload, or of one that would be done.

    :param changes: a verdict for each tunnel: those of the file in its order, then those that are gone.
    :param keys: the keys at the top of the file that have changed.
    """

    changes: tuple[Change, ...]
    keys: tuple[KeyChange, ...] = ()


class Turns:
    """Runs reloads one after the other. At most one waits; those that come meanwhile get its result.

    :param work: does one.
    """

    def __init__(self, work: Callable[[], ReloadResult]) -> None:
        self._work = work
        self._turn = threading.Lock()
        self._lock = threading.Lock()  # for the next one
        self._next: Future[ReloadResult] | None = None  # that has not begun

    def run(self) -> ReloadResult:
        """Reload, or wait for the one that has not begun.

        :raises BaseException: what the work raises.
        """
        with self._lock:
            known = self._next
            future = self._next = known or Future()
        if known is not None:
            return future.result()
        with self._turn:
            with self._lock:
                self._next = None
            try:
                future.set_result(self._work())
            except BaseException as error:  # noqa: BLE001  (it is raised below, and where others wait)
                future.set_exception(error)
        return future.result()


class Reloads:
    """The reloads of a group: it has the tunnels of a file.

    :param group: the tunnels.
    :param file: where they come from.
    """

    def __init__(self, group: Group, file: TunnelFile) -> None:
        self.file = file
        """Where the tunnels come from."""
        self.parts: Sequence[Callable[[File], Step | Transition | None]] = ()
        """Prepare what belongs to the keys at the top of the file: the sockets of operators, the access log."""
        self.sandbox: Sandbox | None = None
        """The sandbox of the process, which a reload cannot change."""
        self.is_under_way = False
        """Whether a reload prepares or makes its changes. The main thread alone sets it: it keeps upgrades out then."""
        self.figures = ReloadStatus(last_success=time.time())
        """Replaced as a whole by the thread that reloads, of which there is one at a time."""
        self._group = group
        self._turns = Turns(self._reload)
        self._is_asked = False  # a thread is about to reload for a signal; as above
        self._late: dict[Member, Replacement] = {}  # those whose next listener waits for its server

    # -- from any thread but the main thread --------------------------------------------------------------------------

    def run(self) -> ReloadResult:
        """Read the file again, and change the tunnels that it changes; see :meth:`relay.daemon.group.Group.reload`."""
        return self._turns.run()

    def dry_run(self) -> ReloadResult:
        """Read the file again, and compare it with the tunnels."""
        with reserve.lent():
            new = self._read_again()
        return ReloadResult(tuple(verdicts(self._group.tunnels, new.plans)), new.keys)

    def _reload(self) -> ReloadResult:
        supervisor = self._group.supervisor
        supervisor.on_reload()
        try:
            with reserve.lent():
                return self._reload_now()
        finally:
            supervisor.on_reloaded(was_successful=self.figures.was_successful)

    def _reload_now(self) -> ReloadResult:
        group, change = self._group, Transition()
        try:
            # In the main thread, which also begins upgrades: so only one of the two is under way.
            group.call(self._begin)
            new = self._read_again()
            # The keys at the top first: they are few, and what fails is known before a tunnel is opened.
            self._prepare_parts(change, new.file)
            tunnels = TunnelChanges(group.tunnels, new.plans, group.supervisor.on_vacated, group.call)
            change.add(Step(tunnels.vacate, functools.partial(self._change, new, tunnels.all), tunnels.restore))
            tunnels.prepare()
            change.vacate()  # at the latest moment: clients of these listeners are refused from here on
            # Before the commit: a worker that starts a program for the new configuration must know which variables to
            # keep from it.
            group.processes.share_secrets()
            group.call(self._commit, change)
        except BaseException as error:
            problems = change.restore() if change.state is not TransitionState.COMMITTED else []
            with contextlib.suppress(ConflictError):
                group.call(self._end)
            if not isinstance(error, ReloadError | ConflictError):
                raise
            lines = [*error.lines, *problems] if isinstance(error, ReloadError) else [*problems, str(error)]
            for line in lines:
                logger.error("reload: %s", line)
            logger.error("reload: nothing has changed")
            self.figures = self.figures._replace(failed=self.figures.failed + 1, was_successful=False)
            if isinstance(error, ReloadError):
                raise ReloadError(lines, error.status) from error
            raise
        self.figures = ReloadStatus(self.figures.succeeded + 1, self.figures.failed, last_success=time.time())
        changed = [each.plan for each in tunnels.all if each.verdict is not Verdict.SAME]
        new.warn_of_rules(one for one in changed if one is not None)
        return ReloadResult(tuple(each.change for each in tunnels.all), new.keys)

    def _prepare_parts(self, change: Transition, file: File) -> None:
        """Open what the keys at the top of the file need.

        :raises ReloadError: if something cannot be opened.
        """
        try:
            for prepare in self.parts:
                change.add(prepare(file))
        except (OSError, ValueError) as error:
            raise ReloadError([describe_error(error)], status_of(error)) from error

    def _read_again(self) -> Reread:
        """Read the file again, and check that the sandbox allows what has changed.

        :raises ReloadError: if it has problems, or needs a restart.
        """
        if self.sandbox is None:
            return self.file.again()
        from ..sandboxed import forbidden, unreadable

        if problem := unreadable(self.sandbox, self.file.path):
            raise ReloadError([problem], 1)
        new = self.file.again()
        found = verdicts(self._group.tunnels, new.plans)
        changed = {each.name for each in found if each.verdict is not Verdict.SAME}
        plans = [plan for plan in new.plans if plan.name in changed]
        if lines := forbidden(self.sandbox, plans, self.file.endpoints(new.file), self.file.log(new.file)):
            raise ReloadError(lines, 1)
        return new

    def _run_for_signal(self) -> None:
        """Reload on a thread of its own; what goes wrong has been printed."""
        try:
            with contextlib.suppress(ReloadError, ConflictError):
                self.run()
        except OSError as error:  # no descriptor is left for a module that is read now
            logger.error("reload: %s; nothing has changed", describe_error(error))
            self._group.later(self._forget_signal)  # it has not begun, and the next signal reloads

    # -- the main thread ----------------------------------------------------------------------------------------------

    def on_signal(self) -> None:
        """Reload on a thread of its own, unless one has been started that has not read the file yet."""
        if self._group.is_ending:  # it is no second request to end
            logger.error("reload: relay is ending; start it again")
        elif not self._is_asked:
            try:
                threading.Thread(target=self._run_for_signal, name="relay-reload", daemon=True).start()
            except RuntimeError as error:  # the system has no thread left
                logger.error("reload: %s; nothing has changed", error)
            else:
                self._is_asked = True  # the thread cannot have begun: that takes a turn of this one

    def _begin(self) -> None:
        """Keep upgrades out: some of what they hand over may be closed or new."""
        self._forget_signal()  # one that comes from now on may be about a later version of the file
        self._group.check_reloadable()
        self.is_under_way = True

    def _forget_signal(self) -> None:
        self._is_asked = False

    def _end(self) -> None:
        self.is_under_way = False

    def _commit(self, change: Transition) -> None:
        """Make all changes; everything that they need is open."""
        self._group.check_reloadable()  # again: a signal or another process may have come meanwhile
        change.commit()
        self._end()

    def _change(self, new: Reread, replacements: Sequence[Replacement]) -> None:
        """Change the tunnels: the step of the commit."""
        group = self._group
        self.file.current = new.file
        for key in new.keys:
            logger.log(logging.INFO if key.effect is KeyEffect.TUNED else logging.WARNING, "reload: %s", key)
        group.hop_trials.forget()  # what has failed may have been fixed
        before = {member.name: member for member in group.tunnels}
        kept = [each for each in replacements if each.verdict is not Verdict.GONE]
        after = [before[each.change.name] if each.error is not None else self._changed(each) for each in kept]
        remaining = {*after}
        for member in before.values():
            if member not in remaining:
                self._give_up_late(member)
        removed = group.replace(after)
        for each in replacements:
            logger.log(logging.DEBUG if each.verdict is Verdict.SAME else logging.INFO, "reload: %s", each.change)
        changed = sum(each.verdict is not Verdict.SAME for each in replacements)
        logger.info("reload: %d of %d tunnels changed", changed, len(replacements))
        group.on_change((*group.members, *(member.now for member in removed)))

    def _changed(self, each: Replacement) -> Member:
        """Return the tunnel for a change: the one that runs, or a new one."""
        member, plan = each.member, each.plan
        assert plan is not None, "it is in the file"
        if member is None or each.is_deferred or each.is_replaced:
            made = Member(plan)
            if member is not None and each.is_deferred:
                member.close()  # its outcome may be in the queue of this thread already, and finds it closed
            self._open(made, each)
            return made
        if each.verdict is not Verdict.SAME:
            self._give_up_late(member)
            if not self._apply(each):
                return member
            if each.is_postponed:
                self._late[member] = each
                later = self._group.later
                postponed = functools.partial(later, self._on_late_problem, member)
                each.hand_over(functools.partial(later, self._on_late_listener, member, each), postponed)
            elif each.verdict >= Verdict.REROUTED and member.has_opened:
                self._group.reporter.on_changed(member.now)
                self._group.hop_trials.begin(member, fatal=False)
        return member

    def _open(self, member: Member, each: Replacement) -> None:
        """Open a new tunnel, whose listener is open already or waits for its server."""
        if each.bound is not None:
            self._start(member, each)
        elif each.is_postponed:
            later = self._group.later
            opened = functools.partial(later, self._on_bound, member, each)
            member.begin(each.hand_over(opened, functools.partial(later, self._group.on_postponed, member)))
        else:
            self._group.begin(member)

    def _start(self, member: Member, each: Replacement) -> None:
        assert each.bound is not None, "it listens"
        try:
            ends = member.plan.start(each.bound, outlets=self._group.outlets, paused=True)
        except (OSError, RuntimeError) as error:
            self._group.give_up(member, error)
        else:
            if each.is_replaced and each.member is not None:
                each.member.continue_in(member)
            self._group.start(member, ends)

    def _on_bound(self, member: Member, each: Replacement) -> None:
        """The listener of a new tunnel has opened after a while, or cannot be opened."""
        each.wait()
        if member.state.is_over or self._group.is_ending:
            each.discard()
        elif each.error is not None:
            self._group.give_up(member, each.error)
        else:
            self._start(member, each)

    def _on_late_problem(self, member: Member, error: Exception) -> None:
        if member in self._late:
            logger.warning("%s: still listens at its old address: %s; trying again", member.name, describe_error(error))

    def _on_late_listener(self, member: Member, each: Replacement) -> None:
        """The next listener of a tunnel has opened after a while, or cannot be opened."""
        if self._late.get(member) is not each:
            return
        del self._late[member]
        each.wait()
        if each.error is not None:
            self._group.reporter.on_failed(member.name, each.error)
        elif self._apply(each):
            self._group.reporter.on_changed(member.now)

    def _apply(self, each: Replacement) -> bool:
        """Change a tunnel that runs; return whether it has changed, or has ended meanwhile."""
        try:
            each.apply()
        except OPENING_ERRORS as error:
            # The system has no thread left, or a worker cannot read a file that could be read a moment before. Some
            # tunnels have changed already, so the others do, too.
            why = describe_error(error)
            logger.error("%s: %s; it goes on as it was until the next reload", each.change.name, why)
            return False
        return True

    def _give_up_late(self, member: Member) -> None:
        if (late := self._late.pop(member, None)) is not None:
            late.discard()  # what it has closed has another listener since the commit, or is gone


def verdicts(members: Sequence[Member], plans: Sequence[Plan]) -> list[Change]:
    """Return the verdicts for tunnels that run; those that have failed, drain or are closed count as new."""
    return compare([one.plan for one in _running(members)], plans)


class TunnelChanges:
    """The changes of all tunnels by one reload: a step of its transition, without the commit.

    :param members: the tunnels of the group.
    :param plans: those of the file.
    :param vacated: called with the name of a tunnel whose listener had to close first.
    :param call: calls a function in the main thread, and waits for it.
    """

    def __init__(
        self,
        members: Sequence[Member],
        plans: Sequence[Plan],
        vacated: Callable[[str], object],
        call: Call,
    ) -> None:
        running = {one.name: one for one in _running(members)}
        new = {plan.name: plan for plan in plans}
        self.all: list[Replacement] = []
        """The changes, in the order of the verdicts. One with an error is a tunnel that had failed before, in the same
        way: it stays as it is."""
        for each in verdicts(members, plans):
            self.all.append(Replacement(each, new.get(each.name), running.get(each.name)))
        self._call = call
        self._hopeless = {one.name: one.plan for one in members if one.state is MemberState.FAILED}
        self._preflight = Preflight(names=False)
        self._leaving = Leaving(self.all, vacated)
        self._later: list[Replacement] = []  # those in whose way is a listener that has to close

    def prepare(self) -> None:
        """Check and open everything that the new plans need, but for :meth:`vacate`.

        :raises ReloadError: if one cannot be opened.
        """
        now: list[Replacement] = []
        for each in self.all:
            (self._later if each.must_vacate(self._leaving) else now).append(each)
        self._prepare(now)

    def vacate(self) -> None:
        """Close the listeners that are in the way of others, and open those; everything else has been opened.

        :raises ReloadError: if one cannot be opened.
        """
        self._prepare(self._later)

    def restore(self) -> list[str]:
        """Close what was opened, and open again what was closed."""
        for each in self.all:
            each.discard()
        calls = [functools.partial(old.restore, self._call) for old in self._leaving.vacated]
        return [problem for problem in side_by_side(calls) if problem]

    def _prepare(self, replacements: Sequence[Replacement]) -> None:
        """Prepare changes side by side."""
        for each in replacements:  # all of them begin before the first one is waited for
            each.prepare(self._preflight, self._leaving)
        for each in replacements:
            each.wait()
        failed = [each for each in replacements if each.error is not None]
        problems = [each for each in failed if not _is_known(self._hopeless.get(each.change.name), each.plan)]
        if problems:
            found = [(each.change.name, each.error) for each in problems if each.error is not None]
            lines = [f"{name}: {describe_error(error)}" for name, error in found]
            raise ReloadError(lines, max(status_of(error) for _, error in found))


def _is_known(old: Plan | None, new: Plan | None) -> bool:
    """Return whether a tunnel that cannot start has failed before, by the same plan."""
    return old is not None and new is not None and compare([old], [new])[0].verdict is Verdict.SAME


def _running(members: Sequence[Member]) -> list[Member]:
    return [one for one in members if not one.state.is_over and one.state is not MemberState.DRAINING]
