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
from collections.abc import Callable
from typing import Any

from ...addresses.hops import listens_at_server
from ..disabled_targets import disable
from ..failures import describe_error
from ..group import Group
from ..member import Member, MemberState
from ..plan import Ends
from .keyed_sessions import keys_to_targets
from .predecessor import Predecessor
from .upgrade_channel import UpgradeError

logger = logging.getLogger("relay.cli")

_TRIAL_TIME = 30.0  # seconds after the last tunnel has started for the first attempts to connect its hops
_SHORT_TRIAL_TIME = 5.0  # the same if clients wait, because the other process has closed what only one can have


class TakeOver:
    """The part of a group that takes the place of another process. Belongs to the main thread.

    :param group: the tunnels, before they are opened.
    :param predecessor: the other process.
    """

    def __init__(self, group: Group, predecessor: Predecessor) -> None:
        self._group = group
        self._old = predecessor
        self._first = frozenset(group.tunnels)  # those that start before it takes over
        self._starting = {*self._first}
        self._held = {*self._first}  # those that accept no client before this process has taken over
        self._trial_time = _SHORT_TRIAL_TIME if any(map(_has_moved, self._first)) else _TRIAL_TIME
        self._trial_end = math.inf  # when it waits for the hops no more, in monotonic seconds

    # -- the events of a tunnel ---------------------------------------------------------------------------------------

    def opening_of(self, member: Member) -> Callable[[Any], Ends] | None:
        """Return what starts a tunnel whose socket the other process has handed over; ``None`` for one without."""
        old = self._old
        if not old.has_bound(member.name):
            return None
        # Taken by the thread that starts it: without one, it is closed with the others.
        outlets = self._group.outlets
        return lambda _: member.plan.start(old.take_bound(member.name), outlets=outlets, paused=True)

    def on_opened(self, member: Member) -> bool:
        """Take a tunnel that has opened; return whether it accepts no client yet."""
        old = self._old
        if member in self._first:
            disable(member.make_send, old.disabled_targets(member.name))
        if not old.has_taken_over:
            self._trial_end = time.monotonic() + self._trial_time
            return True  # a client that it accepted now would be reset if the upgrade fails
        if member not in self._held:
            return False
        self._held.discard(member)
        return old.was_paused(member.name)

    def on_failed(self, member: Member, error: Exception) -> None:
        """Leave the clients to the other process after a failure that it did not have."""
        if not self._old.has_taken_over:
            self._leave(f"{member.name}: {describe_error(error)}")

    def spares(self, member: Member) -> bool:
        """Return whether a problem of the hops of a tunnel is only logged, so that an upgrade ends nothing."""
        return member in self._first and (self._old.has_taken_over or self._old.was_failing(member.name))

    # -- the events of the group --------------------------------------------------------------------------------------

    @property
    def is_waiting(self) -> bool:
        """True until the other process has released its sockets."""
        return self._old.is_waiting

    def timeout(self) -> float | None:
        """Return the seconds until it waits for the hops no more; ``None`` if it does not wait."""
        return max(0.0, self._trial_end - time.monotonic()) if self._trial_end < math.inf else None

    def on_turn(self) -> None:
        """Take over once each tunnel could accept clients, or waits for its server."""
        if self._old.has_taken_over or self._group.is_ending:
            return
        is_late = self._trial_end <= time.monotonic()
        if is_late:
            self._trial_end = math.inf
        self._starting = {member for member in self._starting if not self._has_started(member, is_late=is_late)}
        if not self._starting:
            self._take_over()

    def on_end(self, why: str) -> None:
        """Tell the other process, if it has its clients still, not to leave them to this one."""
        if self._old.is_waiting:
            self._old.fail(f"the new process is ending: {why}")

    def _has_started(self, member: Member, *, is_late: bool) -> bool:
        """Return whether a tunnel could accept clients, or waits for its server.

        :param is_late: whether its hops have had their time.
        """
        if member.state is MemberState.OPENING:
            return False
        # Hops that were down in the other process have no connection that could be lost.
        is_tried = is_late or self._old.was_down(member.name) or self._group.hop_trials.is_over(member)
        return is_tried or member.state is MemberState.WAITING

    def _take_over(self) -> None:
        self._trial_end = math.inf
        old, group = self._old, self._group
        try:
            old.take_over()
        except UpgradeError as error:
            group.reporter.on_upgrade_failed(str(error))
            return self._leave(str(error))
        # Not before: the other process could still go on. Not later: clients wait in the backlog for one of the two.
        for member in tuple(self._held):
            if member.state is MemberState.PAUSED:  # the others may open later
                self._held.discard(member)
                if not old.was_paused(member.name):
                    member.resume()
        return old.wait_for_release(functools.partial(group.later, self._on_released))

    def _leave(self, why: str) -> None:
        """End, and leave the clients to the other process."""
        self._old.fail(why)
        self._group.end(1)

    def _on_released(self, error: UpgradeError | None) -> None:
        """Go on as the only process; or end, if the other one goes on."""
        old = self._old
        if not old.is_waiting:
            return
        if not old.goes_on_after(error):
            self._group.reporter.on_upgrade_failed(str(error))
            old.fail(str(error))
            return self._group.end_for(str(error), 1)  # the clients that it has accepted may finish
        old.finish()
        logger.info("taken over from process %d", old.pid)
        return None


def _has_moved(member: Member) -> bool:
    """Return whether the other process has closed its listener or its session, so that this one can open it."""
    routes = member.plan.routes
    return listens_at_server(routes.where) or bool(keys_to_targets(routes))
