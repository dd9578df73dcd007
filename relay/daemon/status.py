"""The state of a running tunnel as all who show it read it: of its hops, and of its workers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for tunnels in workers only
    from ..engine.tunnel import Tunnel
    from ..spawning.pool_tunnel import PoolTunnel

__all__ = ["UP", "hop_state", "worker_problem"]

UP = ("up", "published")  # the states of a carrier that works


def hop_state(receive: Any, make_send: Any) -> tuple[str, str]:
    """Return the state of the carriers under a tunnel, and the last error of one that is not up.

    :returns: ``up`` and an empty text if all are up; why no target is, if there are several.
    """
    for end in (make_send, receive):
        state = getattr(end, "state", "up")
        if state not in UP:
            return str(state), getattr(end, "last_error", None) or ""
    return "up", (make_send.last_error or "") if hasattr(make_send, "states") else ""


def worker_problem(tunnel: Tunnel | PoolTunnel) -> str:
    """Return which workers of a tunnel do not answer; empty if it has none or all answer. Asks no worker."""
    problem: str = getattr(tunnel, "problem", "")
    return problem
