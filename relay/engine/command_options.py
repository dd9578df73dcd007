"""The options of a tunnel of a command or of ``relay.toml``: those of tunnels, and those about the end of a process."""

from __future__ import annotations

from dataclasses import dataclass

from .options import FINITE_OR_ZERO, TIME_OR_ZERO, TunnelOptions, again, declare


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandOptions(TunnelOptions):
    """The options of a tunnel of a command or a file, and those about the end of its connections.

    Where ``None`` is the default here, it stands for what goes with the route, or for no limit.
    """

    timeout: float | None = again("timeout", None)
    connect_timeout: float | None = again("connect_timeout", None)
    linger: float | None = again("linger", None)
    drain: float = declare(
        TIME_OR_ZERO,
        30.0,
        "seconds for open connections to finish after a signal",
        command="Maximum time for open connections to finish after SIGTERM or SIGINT.",
        topic="end",
        key="Maximum time in seconds for open connections to finish after a signal. Default: 30.",
    )
    drain_spread: float = declare(
        FINITE_OR_ZERO,
        0.0,
        "seconds at the end of ``drain`` over which the connections that are left end, one after the other",
        command="End the connections that are left one after the other, over this last part of --drain.",
        topic="end",
        key="Seconds at the end of `drain` over which relay ends the connections that are left, one after the other, "
        "so that their clients do not all reconnect at once. Default: 0.",
    )
