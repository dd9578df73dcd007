"""The state of a running tunnel as all who show it read it: of its hops, and of its workers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..streams.dialer import Dialer
from ..streams.listener import TunnelListener
from .disabled_targets import target_group

if TYPE_CHECKING:  # for tunnels in workers only
    from ..engine.tunnel import Tunnel
    from ..spawning.pool_tunnel import PoolTunnel

__all__ = ["UP", "hop_state", "worker_problem"]

UP = ("up", "published")  # the states of a carrier that works


def hop_state(receive: TunnelListener, make_send: Dialer) -> tuple[str, str]:
    """Return the state of the carriers under a tunnel, and the last error of one that is not up.

    :returns: ``up`` and an empty text if all are up; why no target is, if there are several.
    """
    if (state := make_send.state) not in UP:
        return state, make_send.last_error or ""
    if (state := receive.state) not in UP:
        return state, ""
    return "up", (make_send.last_error or "") if target_group(make_send) is not None else ""


def worker_problem(tunnel: Tunnel | PoolTunnel) -> str:
    """Return which workers of a tunnel do not answer; empty if it has none or all answer. Asks no worker."""
    problem: str = getattr(tunnel, "problem", "")
    return problem
