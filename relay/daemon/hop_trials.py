"""The trials of the hops of a group: tunnels that have the same route to their targets share one."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Hashable
from dataclasses import dataclass

from .member import Member
from .probes import HopProbe


@dataclass(slots=True)
class _Trial:
    """A trial of hops, and the tunnels that it is for: each with whether a failure ends it."""

    members: list[tuple[Member, bool]]
    probe: HopProbe | None = None
    is_tried: bool = False  # whether the first attempt has ended


class HopTrials:
    """Belongs to the main thread. A probe has threads of its own; what it finds comes through the queue.

    :param later: calls a function in the main thread, and does not wait.
    :param on_refused: called there with each open tunnel whose hops have failed so that a retry cannot help, with the
        error, and with whether it ends the tunnel.
    """

    def __init__(self, later: Callable[..., object], on_refused: Callable[[Member, Exception, bool], object]) -> None:
        self._later = later
        self._on_refused = on_refused
        self._trials: dict[Hashable, _Trial] = {}

    def begin(self, member: Member, *, fatal: bool = True) -> None:
        """Try the hops to the target, once for all tunnels that have the same.

        :param fatal: whether the tunnel ends after an error that a retry cannot fix; else it is only reported.
        """
        key = member.plan.route_key
        if key in self._trials:
            trial = self._trials[key]
            trial.members.append((member, fatal))
            # It holds the connection, too: the tunnel of the trial may go first.
            with contextlib.suppress(OSError):  # no thread or descriptor is left: its first client connects
                member.make_send.subscribe(_hear_nothing)
            # The probe has failed already, and reports only once.
            if trial.probe is not None and trial.probe.error is not None:
                self._later(self._report, trial)
            return
        options = member.plan.options
        trial = self._trials[key] = _Trial([(member, fatal)])
        failed = functools.partial(self._later, self._report, trial)
        tried = functools.partial(self._later, self._on_tried, trial)
        trial.probe = member.plan.trial(
            member.make_send, options.connect_timeout, failed, tried, fail_fast=options.fail_fast
        )

    def is_over(self, member: Member) -> bool:
        """Return whether the first attempt to connect the hops of a tunnel is over, whatever its outcome."""
        trial = self._trials.get(member.plan.route_key)
        return trial is None or trial.is_tried

    def forget(self) -> None:
        """Try hops anew that have failed: that may have been fixed."""
        self._trials.clear()

    def _on_tried(self, trial: _Trial) -> None:
        """The first attempt has ended; it may be that the hops are up only later."""
        trial.is_tried = True

    def _report(self, trial: _Trial) -> None:
        """A hop has failed, and a retry cannot help."""
        error = trial.probe.error if trial.probe is not None else None
        assert error is not None, "that is what it failed with"
        trial.is_tried = True
        # Taken out: a tunnel that joins this trial later is reported by a call of its own.
        members, trial.members = trial.members, []
        for member, fatal in members:
            if member.state.accepts:
                self._on_refused(member, error, fatal)


def _hear_nothing(state: object, error: Exception | None) -> None:
    pass
