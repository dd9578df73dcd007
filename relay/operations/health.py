"""Health: whether the process is alive, and whether its tunnels are ready.

Both are read from what is known. Liveness depends on nothing outside of the process, so that a network failure never
makes a supervisor restart it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from ..daemon.failures import NotFoundError
from ..daemon.instance import Instance
from ..daemon.status import TURN, TunnelStatus

DRAINING = "the program is ending"


@dataclass(frozen=True, slots=True)
class Health:
    """An answer to a health check.

    :param problems: what is wrong, by the names of the tunnels; empty if nothing is.
    :param draining: whether the program is about to end, which makes it not ready.
    """

    problems: Mapping[str, str] = field(default_factory=dict)
    draining: bool = False

    @property
    def is_ok(self) -> bool:
        """True if nothing is wrong."""
        return not self.problems and not self.draining


def liveness(instance: Instance) -> Health:
    """Return whether the loop of each tunnel turns within 5 seconds. Waits for them.

    A worker process that does not answer makes nothing worse: relay replaces it, and need not be restarted.
    """
    return Health(dict.fromkeys(instance.stuck_loops(TURN), f"its loop did not turn within {TURN:g} s"))


def readiness(instance: Instance, name: str | None = None) -> Health:
    """Return whether the required tunnels are ready.

    They listen, in workers that answer; of several targets one is up; the last probe succeeded and is recent.

    :param name: only of this tunnel, whether it is required or not.
    :raises NotFoundError: if there is no such tunnel.
    """
    tunnels: Iterable[TunnelStatus] = instance.tunnels(figures=False)
    if name is None:
        asked = [tunnel for tunnel in tunnels if tunnel.required]
    else:
        asked = [tunnel for tunnel in tunnels if tunnel.name == name]
        if not asked:
            raise NotFoundError(f"{name}: there is no such tunnel")
    found = {tunnel.name: problem for tunnel in asked if (problem := problem_of(tunnel, time.time()))}
    return Health(found, instance.status().draining)


def problem_of(tunnel: TunnelStatus, now: float) -> str:
    """Return why a tunnel is not ready; empty if it is.

    :param now: the time in seconds since 1970.
    """
    if tunnel.state != "listening":
        return f"{tunnel.state}: {tunnel.problem}" if tunnel.problem else tunnel.state
    if tunnel.stuck:
        return tunnel.problem
    if tunnel.targets and not any(one.state == "up" for one in tunnel.targets):
        return f"no target is up: {tunnel.problem}"
    probe = tunnel.probe
    if probe is None:
        return ""
    if probe.finished is None:
        return "no probe has ended yet"
    if probe.problem:
        return f"probe: {probe.problem}"
    age = now - probe.finished
    return f"the last probe was {age:.0f} s ago" if age > 2 * probe.interval else ""
