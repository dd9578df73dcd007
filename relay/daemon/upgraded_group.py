"""The tunnels of a file, in a process that takes the place of another one (an upgrade).

They start paused. When all of them have started, and their hops were tried once, this process takes over, and lets the
clients in.

=========== =========================== =========== ==================================================================
state       event                       next state  action
=========== =========================== =========== ==================================================================
starting    a tunnel has started        starting    keep it paused; try its hops
starting    the last one was tried      taking over decide that this process goes on; resume the tunnels
starting    a trial takes long          starting    wait for it no more
starting    a tunnel fails              over        end; the other process goes on
starting    the other one goes on       over        end
starting    a signal                    over        say so to the other process, which goes on; end
taking over the other one has stopped   running     serve operators
taking over it has ended, or is late    running     serve operators
taking over it goes on, or is ending    over        end; open connections may finish
taking over a signal                    over        say so to the other process, which may go on; end
running     a late tunnel has started   running     resume it
=========== =========================== =========== ==================================================================

A tunnel fails if a retry cannot help, also if that is so for one of its hops: a rejected login, a changed host key. If
the hop has failed in the other process as well, or fails after *starting*, that is only logged: the clients get the
error. So an upgrade ends nothing that has worked. A hop that cannot be reached counts as tried. So does one that was
not up in the other process.

A tunnel that was paused in the other process stays so, and so does a target that was disabled. A reload is refused
until *running*.
"""

from __future__ import annotations

import functools
import logging
import math
import time
from collections.abc import Sequence

from ..addresses.hops import listens_at_server
from .change.keyed_sessions import keys_to_targets
from .change.predecessor import Predecessor
from .change.upgrade_channel import UNDER_WAY, UpgradeError
from .disabled_targets import disable
from .failures import describe_error
from .file_group import FileGroup
from .group import Probe
from .main_thread import GroupOverError
from .member import Member, MemberState
from .plan import Opened
from .probes import BackgroundCall
from .reporter import Reporter
from .signals import Signals
from .tunnel_file import TunnelFile

__all__ = ["UpgradedGroup"]

logger = logging.getLogger("relay.cli")

_TRIAL_TIME = 30.0  # seconds after the last tunnel has started for the first attempts to connect its hops
_SHORT_TRIAL_TIME = 5.0  # the same if clients wait, because the other process has closed what only one can have


class UpgradedGroup(FileGroup):
    """The tunnels of such a process.

    :param members: the tunnels.
    :param signals: those that end it, and those that reload.
    :param file: where they come from.
    :param predecessor: the other process.
    :param reporter: what is said of them goes there.
    """

    def __init__(
        self,
        members: Sequence[Member],
        signals: Signals,
        file: TunnelFile,
        predecessor: Predecessor,
        reporter: Reporter | None = None,
    ) -> None:
        super().__init__(members, signals, file, reporter)
        self._old = predecessor
        self._first = frozenset(members)
        self._starting = {*members}
        self._held: set[Member] = set()  # those that accept no client before this process has taken over
        self._trial_time = _SHORT_TRIAL_TIME if any(map(_has_moved, members)) else _TRIAL_TIME
        self._trial_end = math.inf  # when it waits for the hops no more, in monotonic seconds

    def _begin(self, member: Member) -> None:
        old = self._old
        if old.has_taken_over:
            return super()._begin(member)
        self._held.add(member)
        bound = old.take_bound(member.name)
        if bound is None:
            return super()._begin(member)
        start = functools.partial(member.plan.start, bound, paused=True)
        outcome = functools.partial(self._main_thread.later, self._on_outcome, member)
        try:
            member.begin(BackgroundCall(lambda _: start(), outcome, lambda _: None))
        except RuntimeError as error:  # the system has no thread left
            bound.close()
            self._give_up(member, error)
            self._on_first_result()
        return None

    def _on_opened(self, member: Member, opened: Opened) -> None:
        if not self._old.has_taken_over:
            self._trial_end = time.monotonic() + self._trial_time
        if member in self._first:
            disable(opened.make_send, self._old.disabled_targets(member.name))
        super()._on_opened(member, opened)
        if member in self._held:
            member.pause()
            self._release(member)

    def _let_in(self, member: Member, opened: Opened) -> None:
        if member not in self._held:
            super()._let_in(member, opened)

    def _on_outcome(self, member: Member) -> None:
        super()._on_outcome(member)
        self._on_started(member)

    def _on_postponed(self, member: Member, error: Exception) -> None:
        super()._on_postponed(member, error)
        self._on_started(member)

    def _give_up(self, member: Member, error: Exception) -> None:
        super()._give_up(member, error)
        if not self._old.has_taken_over:
            self._leave(f"{member.name}: {describe_error(error)}")

    def _try_hops(self, member: Member, opened: Opened, *, fatal: bool = True) -> None:
        fatal = fatal and not (member in self._first and self._old.was_failing(member.name))
        super()._try_hops(member, opened, fatal=fatal)

    def _on_tried(self, probe: Probe) -> None:
        super()._on_tried(probe)
        for member, _ in probe.members:
            self._on_started(member)

    def _on_refused(self, probe: Probe) -> None:
        members = [member for member, _ in probe.members]
        if self._old.has_taken_over:
            probe.members = [(member, fatal and member not in self._first) for member, fatal in probe.members]
        super()._on_refused(probe)
        for member in members:
            self._on_started(member)

    def _timeouts(self) -> list[float | None]:
        left = self._trial_end - time.monotonic()
        return [*super()._timeouts(), max(0.0, left) if left < math.inf else None]

    def _turn(self) -> None:
        super()._turn()
        if self._trial_end <= time.monotonic():
            self._trial_end = math.inf
            for member in tuple(self._starting):
                self._on_started(member, is_late=True)

    def _on_started(self, member: Member, *, is_late: bool = False) -> None:
        """A tunnel could accept clients, or waits for its server; after the last one, this process takes over.

        :param is_late: whether its hops have had their time.
        """
        old = self._old
        if old.has_taken_over or self.is_ending or member.state is MemberState.OPENING:
            return None
        if member.state is not MemberState.WAITING and not is_late and not self._is_tried(member):
            return None
        self._starting.discard(member)
        if not self._starting:
            self._trial_end = math.inf
            try:
                old.take_over()
            except UpgradeError as error:
                self.reporter.on_upgrade_failed(str(error))
                return self._leave(str(error))
            for each in tuple(self._held):
                self._release(each)
            old.wait_for_release(functools.partial(self._main_thread.later, self._on_released))
        return None

    def _is_tried(self, member: Member) -> bool:
        """Return whether its hops were tried, or had no connection in the other process that could be lost."""
        if self._old.was_down(member.name):
            return True
        probe = self._probes.get(member.plan.way)
        return probe is None or probe.is_tried

    def _leave(self, why: str) -> None:
        """End, and leave the clients to the other process."""
        self._old.fail(why)
        self._end(1)

    def _release(self, member: Member) -> None:
        """Let the clients of a tunnel in, if this process has taken over and the other one did so."""
        old = self._old
        if old.has_taken_over and member.state is MemberState.PAUSED:
            self._held.discard(member)
            if not old.was_paused(member.name):
                member.resume()

    def _on_released(self, error: UpgradeError | None) -> None:
        """Go on as the only process; or end, if the other one goes on."""
        old = self._old
        if not old.is_waiting:
            return
        if not old.goes_on_after(error):
            self.reporter.on_upgrade_failed(str(error))
            old.fail(str(error))
            self._status = 1
            return self.end_for(str(error))  # the clients that it has accepted may finish
        old.finish()
        logger.info("taken over from process %d", old.pid)
        return None

    def _begin_end(self, why: str) -> None:
        # The connections of this process may take long to finish, and the other one must not leave its clients to it.
        if self._old.is_waiting:
            self._old.fail(f"the new process is ending: {why}")
        super()._begin_end(why)

    def _check_time_for_reload(self) -> None:
        super()._check_time_for_reload()
        if self._old.is_waiting:
            raise GroupOverError(UNDER_WAY)


def _has_moved(member: Member) -> bool:
    """Return whether the other process has closed its listener or its session, so that this one can open it."""
    routes = member.plan.routes
    return listens_at_server(routes.where) or bool(keys_to_targets(routes))
