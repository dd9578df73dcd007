"""The probes of a group of tunnels, for those that have one.

A tunnel with several targets probes each of them itself, so that one that is down gets no clients: see
:class:`~relay.targets.group.TargetGroup`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .disabled_targets import target_group
from .group import Group
from .member import MemberState, Snapshot

if TYPE_CHECKING:  # a group without probes does not need them
    from ..targets.group import ProbeSchedule, TargetGroup
    from .probing import Prober, ProbeTarget
    from .status import ProbeStatus

_LISTENING = (MemberState.LISTENING, MemberState.PAUSED)


class TunnelProbes:
    """The probes of a group; the first tunnel that has one starts them.

    :param group: the tunnels.
    """

    def __init__(self, group: Group) -> None:
        self._group = group
        self._prober: Prober | None = None
        group.on_change = self._on_change

    def status(self, member: Snapshot) -> ProbeStatus | None:
        """Return the probe of a tunnel; ``None`` if it has none. From any thread."""
        options, group = member.plan.options, _targets_of(member)
        found = self._prober.status(member.name) if self._prober is not None and group is None else None
        if found is not None or options.probe is None or not _has_probe(member):
            return found
        from .probing import DEFAULT_INTERVAL
        from .status import ProbeStatus

        kind, interval = options.probe.partition(":")[0], options.probe_interval or DEFAULT_INTERVAL
        outcome = group.probe_outcome() if group is not None else None
        return ProbeStatus(kind, interval, *outcome) if outcome is not None else ProbeStatus(kind, interval)

    def close(self) -> None:
        """Give up the probes under way."""
        if self._prober is not None:
            self._prober.close()

    def _on_change(self, changed: Sequence[Snapshot]) -> None:
        for member in changed:
            group = _targets_of(member)
            if group is not None and member.state in _LISTENING:  # else the probes are not wanted any more, and end
                group.probe_every(self._schedule_of(member, group))
        if self._prober is None:
            if not any(_has_probe(member) and _targets_of(member) is None for member in changed):
                return
            from .probing import Prober

            self._prober = Prober(self._target_of)
        self._prober.wake(member.name for member in changed)

    def _schedule_of(self, member: Snapshot, group: TargetGroup) -> ProbeSchedule | None:
        """Return the probes of each target of a tunnel that has several."""
        from ..targets.group import ProbeSchedule

        if not _has_probe(member):
            return None
        return ProbeSchedule(*_settings_of(member), functools.partial(self._is_wanted, member.name, group))

    def _is_wanted(self, name: str, group: TargetGroup) -> bool:
        """Return whether a tunnel still has these targets and serves clients. From any thread."""
        member = self._group.member(name)
        if member is None or name in self._group.without_probes:
            return False
        return member.state in _LISTENING and _targets_of(member) is group

    def _target_of(self, name: str) -> ProbeTarget | None:
        from ..access.proxy_header import build_local
        from .probing import ProbeTarget

        member = self._group.member(name)
        if member is None or member.state not in _LISTENING or not _has_probe(member):
            return None
        if name in self._group.without_probes or _targets_of(member) is not None:  # these are probed one by one
            return None
        dial, version = member.make_send, member.plan.options.send_proxy
        header = b"" if version is None else build_local(version)
        return ProbeTarget(name, *_settings_of(member), dial, str(dial.target), header)


def _settings_of(member: Snapshot) -> tuple[str, float, float]:
    """Return what a probe is, the seconds between two, and those for one at most."""
    from .probing import DEFAULT_INTERVAL

    options = member.plan.options
    assert options.probe is not None, "it has one"
    interval = options.probe_interval or DEFAULT_INTERVAL
    return options.probe, interval, min(interval, options.connect_timeout or interval)


def _targets_of(member: Snapshot) -> TargetGroup | None:
    """Return the targets of a tunnel; ``None`` unless it is open and has several."""
    return target_group(member.make_send) if member.has_opened else None


def _has_probe(member: Snapshot) -> bool:
    """Return whether a tunnel has a probe; a proxy has no target to probe."""
    has_target = not member.plan.rules and all(end is not None for _, end in member.plan.routes.out)
    return member.plan.options.probe not in (None, "none") and has_target and bool(member.plan.routes.out)
