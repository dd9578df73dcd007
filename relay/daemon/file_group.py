"""The tunnels of a file: a group that can be reloaded, and whose process can be replaced (an upgrade).

============ =============================== ============ ============================================================
state        event                           next state   action
============ =============================== ============ ============================================================
running      a reload is asked for           running      compare the file with the tunnels, and change these
running      a successor asks for sockets    handing over offer them
handing over a reload, or another successor  handing over refuse it
handing over the successor is ready          over         stop accepting clients; end when the open connections have
handing over the upgrade fails               running      open again what was closed for it
============ =============================== ============ ============================================================

:mod:`relay.daemon.upgraded_group` is one in a process that takes the place of another one.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ..config.models import File
from ..engine.records import Stats
from ..eventloop import reserve
from .change.reload import ReloadResult, Reloads, prepared, prepared_parts, verdicts
from .change.replacement import Replacement, undo_all
from .change.upgrade_channel import UNDER_WAY
from .failures import ReloadError, describe_error
from .figures import ReloadFigures, total
from .group import TunnelGroup
from .main_thread import GroupOverError
from .member import Member, MemberState, Snapshot
from .reporter import Reporter
from .signals import Signals
from .top_keys import KeyEffect, Swap
from .tunnel_file import Reread, TunnelFile
from .verdicts import Verdict

if TYPE_CHECKING:  # at the first reload
    from .sandbox import Sandbox

__all__ = ["FileGroup"]

logger = logging.getLogger("relay.cli")


class FileGroup(TunnelGroup):
    """The tunnels of a file, which a reload compares with it again.

    :param members: the tunnels.
    :param signals: those that end it, and those that reload.
    :param file: where they come from.
    :param reporter: what is said of them goes there.
    """

    def __init__(
        self, members: Sequence[Member], signals: Signals, file: TunnelFile, reporter: Reporter | None = None
    ) -> None:
        super().__init__(members, signals, reporter)
        self.processes = file.processes
        self.parts: Sequence[Callable[[File], Swap | None]] = ()
        """Prepare what belongs to the keys at the top of the file: the sockets of operators, the access log."""
        self.sandbox: Sandbox | None = None
        """The sandbox of the process, which a reload cannot change."""
        self.is_handing_over = False
        """Whether another process is about to take the place of this one; what operators change waits for that."""
        self.is_reloading = False
        """Whether a reload prepares or makes its changes. Set in the main thread, reset by the thread that reloads."""
        self._file = file
        self._reloads_lock = threading.Lock()  # for the following one, which the first reload makes
        self._reloads: Reloads | None = None
        self._is_signalled = False  # a thread is about to reload for a signal
        self._figures = ReloadFigures(last_success=time.time())
        self._leaving: dict[Member, None] = {}  # in their order
        self._removed = Stats(0, 0, 0, 0, {})  # the figures of tunnels that have gone
        self._late: dict[Member, Replacement] = {}  # those whose next listener waits for its server

    # -- from any thread --------------------------------------------------------------------------------------------

    @property
    def leaving(self) -> tuple[Snapshot, ...]:
        """The tunnels that a reload has removed, while their open connections finish."""
        return tuple(member.now for member in tuple(self._leaving))  # the main thread may change them meanwhile

    @property
    def reload_figures(self) -> ReloadFigures:
        """The figures of the reloads."""
        return self._figures

    @property
    def shutdown_delay(self) -> float:
        """That of the file, or of the command line."""
        return self._file.shutdown_delay

    def stats(self) -> Stats:
        """Return the figures of all tunnels since the start, also of those that a reload has removed."""
        opened = [one.opened for one in (*self.members, *self.leaving) if one.opened is not None]
        return total([self._removed, *(one.stats() for one in opened if not one.is_continued)])

    def reload(self, dry_run: bool = False) -> ReloadResult:
        """Read the file again; see :meth:`TunnelGroup.reload`."""
        if dry_run:
            with reserve.lent():
                new = self._read_again()
            return ReloadResult(tuple(verdicts(self._members, new.settings)), new.keys)
        with self._reloads_lock:
            reloads = self._reloads = self._reloads or Reloads(self._reload)
        return reloads.run()

    def check_operable(self) -> None:
        """Check that no other process is about to take the place of this one: it knows the state of the tunnels.

        :raises GroupOverError: if one is.
        """
        if self.is_handing_over:
            raise GroupOverError(UNDER_WAY)

    def _reload(self) -> ReloadResult:
        self.supervisor.on_reload()
        try:
            with reserve.lent():
                return self._reload_now()
        finally:
            self.supervisor.on_reloaded(was_successful=self._figures.was_successful)

    def _reload_now(self) -> ReloadResult:
        self._is_signalled = False  # a signal that comes from now on may be about a later version of the file
        try:
            self.call(self._begin_reload)
            new = self._read_again()
            parts = prepared_parts(self.parts, new.file)
            try:
                replacements = prepared(self._members, new.settings, self.supervisor.on_vacated, self.call)
                self.processes.share_secrets()
                try:
                    self.call(self._commit, new, parts, replacements)
                except GroupOverError:
                    for problem in undo_all(replacements, self.call):
                        logger.error("reload: %s", problem)
                    raise
            except (ReloadError, GroupOverError):
                parts.undo()
                raise
        except (ReloadError, GroupOverError) as error:
            for line in getattr(error, "lines", (str(error),)):
                logger.error("reload: %s", line)
            logger.error("reload: nothing has changed")
            self._figures = self._figures._replace(failed=self._figures.failed + 1, was_successful=False)
            raise
        finally:
            self.is_reloading = False
        self._figures = ReloadFigures(self._figures.succeeded + 1, self._figures.failed, last_success=time.time())
        changed = [each.settings for each in replacements if each.verdict is not Verdict.SAME]
        new.warn_of_rules(one for one in changed if one is not None)
        return ReloadResult(tuple(each.change for each in replacements), new.keys)

    def _read_again(self) -> Reread:
        """Read the file again, and check that the sandbox allows what has changed.

        :raises ReloadError: if it has problems, or needs a restart.
        """
        if self.sandbox is None:
            return self._file.again()
        from .sandboxed import forbidden, unreadable

        if problem := unreadable(self.sandbox, self._file.path):
            raise ReloadError([problem], 1)
        new = self._file.again()
        changed = {each.name for each in verdicts(self._members, new.settings) if each.verdict is not Verdict.SAME}
        plans = [one.plan for one in new.settings if one.name in changed]
        if lines := forbidden(self.sandbox, plans, self._file.endpoints(new.file), self._file.log(new.file)):
            raise ReloadError(lines, 1)
        return new

    def _on_reload_signal(self) -> None:
        """Reload on a thread of its own; what goes wrong has been printed."""
        try:
            with contextlib.suppress(ReloadError, GroupOverError):
                self.reload()
        except OSError as error:  # no descriptor is left for a module that is read now
            logger.error("reload: %s; nothing has changed", describe_error(error))
        finally:
            self._is_signalled = False  # also if it has not begun, so that the next signal reloads

    # -- the main thread --------------------------------------------------------------------------------------------

    def _on_signal(self, number: int) -> None:
        if number not in self._signals.reloading:
            super()._on_signal(number)
        elif self.is_ending:  # it is no second request to end
            logger.error("reload: relay is ending; start it again")
        elif not self._is_signalled:
            self._is_signalled = True
            try:
                threading.Thread(target=self._on_reload_signal, name="relay-reload", daemon=True).start()
            except RuntimeError as error:  # the system has no thread left
                self._is_signalled = False
                logger.error("reload: %s; nothing has changed", error)

    # -- the end ----------------------------------------------------------------------------------------------------

    def _begin_end(self, why: str) -> None:
        if self.upgrades is not None:
            self.upgrades.give_up(f"relay is ending: {why}")
        super()._begin_end(why)

    @property
    def _everyone(self) -> tuple[Member, ...]:
        return (*self._members, *self._leaving)

    def _commit(self, new: Reread, parts: Swap, replacements: Sequence[Replacement]) -> None:
        """Change the tunnels and the other parts; everything that they need is open."""
        self._check_time_for_reload()
        parts.commit()
        self._file.current = new.file
        for key in new.keys:
            logger.log(logging.INFO if key.effect is KeyEffect.TUNED else logging.WARNING, "reload: %s", key)
        self._probes.clear()  # what has failed may have been fixed
        before = {member.name: member for member in self._members}
        kept = [each for each in replacements if each.verdict is not Verdict.GONE]
        after = [before[each.change.name] if each.error is not None else self._changed(each) for each in kept]
        remaining = {*after}
        removed = [member for member in before.values() if member not in remaining]
        for member in removed:
            self._remove(member)
        self._set_members(after)
        for each in replacements:
            logger.log(logging.DEBUG if each.verdict is Verdict.SAME else logging.INFO, "reload: %s", each.change)
        changed = sum(each.verdict is not Verdict.SAME for each in replacements)
        logger.info("reload: %d of %d tunnels changed", changed, len(replacements))
        self.on_change((*self.members, *(member.now for member in removed)))

    def _begin_reload(self) -> None:
        """Keep upgrades out: some of what they hand over may be closed or new."""
        self._check_time_for_reload()
        self.is_reloading = True

    def _check_time_for_reload(self) -> None:
        """Check that nothing is in the way of a reload.

        :raises GroupOverError: if something is.
        """
        if self.is_ending:
            raise GroupOverError("relay is ending; start it again")
        self.check_operable()

    def _changed(self, each: Replacement) -> Member:
        """Return the tunnel for a change: the one that runs, or a new one."""
        member, settings = each.member, each.settings
        assert settings is not None, "it is in the file"
        if member is None or each.is_deferred or each.is_replaced:
            made = Member(settings.plan, bool(settings.entry.tunnel.required), settings)
            if member is not None and each.is_deferred:
                member.close()
            self._open(made, each)
            return made
        if each.verdict is not Verdict.SAME:
            self._give_up_late(member)
            if not self._apply(each):
                return member
            if each.is_postponed:
                self._late[member] = each
                postponed = functools.partial(self._main_thread.later, self._on_late_problem, member)
                each.hand_over(
                    functools.partial(self._main_thread.later, self._on_late_listener, member, each), postponed
                )
            elif each.verdict >= Verdict.REROUTED and member.opened is not None:
                self.reporter.on_changed(member.name, member.opened)
                self._try_hops(member, member.opened, fatal=False)
        return member

    def _open(self, member: Member, each: Replacement) -> None:
        """Open a new tunnel, whose listener is open already or waits for its server."""
        if each.bound is not None:
            self._start(member, each)
        elif each.is_postponed:
            opened = functools.partial(self._main_thread.later, self._on_bound, member, each)
            member.begin(each.hand_over(opened, functools.partial(self._main_thread.later, self._on_postponed, member)))
        else:
            self._begin(member)

    def _start(self, member: Member, each: Replacement) -> None:
        assert each.bound is not None, "it listens"
        try:
            opened = member.plan.start(each.bound)
        except (OSError, RuntimeError) as error:
            self._give_up(member, error)
        else:
            if each.is_replaced and each.member is not None:
                opened = each.member.continue_in(opened)
            member.on_opened(opened)
            self._on_opened(member, opened)
            self.on_change([member.now])

    def _on_bound(self, member: Member, each: Replacement) -> None:
        """The listener of a new tunnel has opened after a while, or cannot be opened."""
        each.wait()
        if member.state.is_over or self.is_ending:
            each.discard()
        elif each.error is not None:
            self._give_up(member, each.error)
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
            self.reporter.on_failed(member.name, each.error)
        elif self._apply(each):
            assert member.opened is not None, "it is open"
            self.reporter.on_changed(member.name, member.opened)

    def _apply(self, each: Replacement) -> bool:
        """Change a tunnel that runs; return whether it has changed, or has ended meanwhile."""
        try:
            each.apply()
        except (OSError, ValueError, TypeError, RuntimeError) as error:
            # The system has no thread left, or a worker cannot read a file that could be read a moment before. Some
            # tunnels have changed already, so the others do, too.
            why = describe_error(error)
            logger.error("%s: %s; it goes on as it was until the next reload", each.change.name, why)
            return False
        return True

    def _give_up_late(self, member: Member) -> None:
        if (late := self._late.pop(member, None)) is not None:
            late.discard()  # what it has closed has another listener since the commit, or is gone

    def _remove(self, member: Member) -> None:
        """End a tunnel that is not in the file any more, or has another one in its place."""
        self._give_up_late(member)
        if not member.state.accepts and member.state is not MemberState.DRAINING:
            member.close()
            self._count_removed(member)
            return
        self._leaving[member] = None
        if member.state.accepts:
            assert member.settings is not None, "it is of a file"
            assert member.opened is not None, "it is open"
            # The tunnel closes the listener a little later. One that has inherited its socket serves the next client.
            member.opened.tunnel.pause()
            seconds = member.settings.drain_on_reload
            self._drain(member, math.inf if seconds is None else seconds)

    def _on_drained(self, member: Member) -> None:
        super()._on_drained(member)
        if member in self._leaving:
            self._count_removed(member)
            del self._leaving[member]

    def _count_removed(self, member: Member) -> None:
        if member.continued is not None:
            member.continued.end()
        elif member.opened is not None:
            self._removed = total([self._removed, member.opened.stats()])
