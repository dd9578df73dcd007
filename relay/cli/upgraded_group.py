"""The tunnels of a file, in a process that takes the place of another one (an upgrade).

They start paused. When all of them have started, this process takes over, and lets the clients in.

=========== =========================== =========== ==================================================================
state       event                       next state  action
=========== =========================== =========== ==================================================================
starting    a tunnel has started        starting    keep it paused
starting    the last one has started    taking over decide that this process goes on; resume the tunnels
starting    a tunnel fails              over        end; the other process goes on
starting    the other one goes on       over        end
starting    a signal                    over        say so to the other process, which goes on; end
taking over the other one has stopped   running     serve operators
taking over it has ended, or is late    running     serve operators
taking over it goes on, or is ending    over        end; open connections may finish
taking over a signal                    over        say so to the other process, which may go on; end
running     a late tunnel has started   running     resume it
=========== =========================== =========== ==================================================================

A tunnel that was paused in the other process stays so. A reload is refused until *running*.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence

from ..operations.upgrade_channel import UNDER_WAY, UpgradeError
from .file_group import FileGroup
from .main_thread import GroupOverError
from .member import Member, MemberState
from .output import describe_error, print_error
from .plan import Opened
from .predecessor import Predecessor
from .probes import BackgroundCall
from .signals import Signals
from .tunnel_file import TunnelFile

__all__ = ["UpgradedGroup"]

logger = logging.getLogger("relay.cli")


class UpgradedGroup(FileGroup):
    """The tunnels of such a process.

    :param members: the tunnels.
    :param signals: those that end it, and those that reload.
    :param file: where they come from.
    :param predecessor: the other process.
    """

    def __init__(self, members: Sequence[Member], signals: Signals, file: TunnelFile, predecessor: Predecessor) -> None:
        super().__init__(members, signals, file)
        self._old = predecessor
        self._starting = {*members}
        self._held: set[Member] = set()  # those that accept no client before this process has taken over

    def _begin(self, member: Member, *, paused: bool = False) -> None:
        old = self._old
        if old.has_taken_over:
            return super()._begin(member, paused=paused)
        self._held.add(member)
        bound = old.take_bound(member.name)
        if bound is None:
            return super()._begin(member, paused=True)
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
        super()._on_opened(member, opened)
        if member in self._held:
            member.pause()
            self._release(member)

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

    def _on_started(self, member: Member) -> None:
        """A tunnel could accept clients, or waits for its server; after the last one, this process takes over."""
        old = self._old
        if old.has_taken_over or self.is_ending or member.state is MemberState.OPENING:
            return None
        self._starting.discard(member)
        if not self._starting:
            try:
                old.take_over()
            except UpgradeError as error:
                print_error(f"upgrade: {error}")
                return self._leave(str(error))
            for each in tuple(self._held):
                self._release(each)
            old.wait_for_release(functools.partial(self._main_thread.later, self._on_released))
        return None

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
            print_error(f"upgrade: {error}")
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
