"""The probes of a group of tunnels, for those that have one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .group import TunnelGroup
from .member import MemberState, Snapshot

if TYPE_CHECKING:  # a group without probes does not need them
    from ..operations.instance import ProbeStatus
    from ..operations.probing import Prober, ProbeTarget

__all__ = ["TunnelProbes"]

_LISTENING = (MemberState.LISTENING, MemberState.PAUSED)


class TunnelProbes:
    """The probes of a group; the first tunnel that has one starts them.

    :param group: the tunnels.
    """

    def __init__(self, group: TunnelGroup) -> None:
        self._group = group
        self._prober: Prober | None = None
        group.on_change = self._on_change

    def status(self, member: Snapshot) -> ProbeStatus | None:
        """Return the probe of a tunnel; ``None`` if it has none. From any thread."""
        from ..operations.instance import ProbeStatus
        from ..operations.probing import DEFAULT_INTERVAL

        found = self._prober.status(member.name) if self._prober is not None else None
        options = member.plan.options
        if found is not None or options.probe is None or not _has_probe(member):
            return found
        return ProbeStatus(options.probe.partition(":")[0], options.probe_interval or DEFAULT_INTERVAL)

    def close(self) -> None:
        """Give up the probes under way."""
        if self._prober is not None:
            self._prober.close()

    def _on_change(self, changed: Sequence[Snapshot]) -> None:
        if self._prober is None:
            if not any(map(_has_probe, changed)):
                return
            from ..operations.probing import Prober

            self._prober = Prober(self._target_of)
        self._prober.wake(member.name for member in changed)

    def _target_of(self, name: str) -> ProbeTarget | None:
        from ..access.proxy_header import build_local
        from ..operations.probing import DEFAULT_INTERVAL, ProbeTarget

        member = self._group.member(name)
        if member is None or member.opened is None or member.state not in _LISTENING or not _has_probe(member):
            return None
        if name in self._group.without_probes:
            return None
        opened, options = member.opened, member.plan.options
        assert options.probe is not None, "it has one"
        interval = options.probe_interval or DEFAULT_INTERVAL
        timeout = min(interval, options.connect_timeout or interval)
        header = b"" if options.send_proxy is None else build_local(options.send_proxy)
        dial = opened.make_send
        return ProbeTarget(name, options.probe, interval, timeout, dial, str(dial.target), header)


def _has_probe(member: Snapshot) -> bool:
    """Return whether a tunnel has a probe; a proxy has no target to probe."""
    has_target = all(end is not None for _, end in member.plan.routes.out)
    return member.plan.options.probe not in (None, "none") and has_target and bool(member.plan.routes.out)
