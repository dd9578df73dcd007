"""The options of a tunnel and of its command, as values."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from ..addresses.i2p import CONNECT_TIMEOUT, LINGER
from ..streams.checks import WARM_FOR

if TYPE_CHECKING:  # for tunnels in workers or with limits only
    from ..access.limit import Limit
    from .worker_processes import WorkerProcesses

__all__ = ["LOG_INTERVAL", "Options"]

LOG_INTERVAL = 600.0  # seconds; the default of --log-interval


@dataclasses.dataclass(frozen=True, slots=True)
class Options:
    """Plain data: the limits of the connections, and the options for what is printed."""

    nconnect: int = -1
    timeout: float | None = None
    connect_timeout: float | None = None
    idle_timeout: float | None = None
    linger: float | None = None
    first_byte_timeout: float | None = None
    drain: float = 30.0
    drain_spread: float = 0.0
    shutdown_delay: float | None = None
    fail_fast: bool = False
    verbose: bool = False
    watch: bool = False
    log_format: Literal["text", "json"] = "text"
    log_file: str | None = None
    log_interval: float | None = None
    sandbox: Literal["auto", "on", "off"] | None = None
    debug: bool = False
    control: str | None = None
    status: str | None = None
    probe: str | None = None
    probe_interval: float | None = None
    warm: int = 0
    warm_for: float = WARM_FOR
    source: str | None = None
    limit: tuple[Limit, ...] = ()
    accept_proxy: Sequence[str] | None = None
    send_proxy: Literal["v1", "v2"] | None = None
    workers: int | None = None
    carriers: Literal["shared", "per-worker"] | None = None
    allow: tuple[str, ...] | None = None
    deny: tuple[str, ...] = ()
    processes: WorkerProcesses | None = dataclasses.field(default=None, compare=False)

    def of_tunnel(self, name: str) -> dict[str, Any]:
        """Return the keywords of a :class:`~relay.Tunnel`, or of one in workers."""
        limits = ("nconnect", "timeout", "connect_timeout", "idle_timeout", "linger", "first_byte_timeout")
        others = ("warm", "warm_for", "source", "accept_proxy", "send_proxy")
        found = {option: getattr(self, option) for option in (*limits, *others)}
        lists = {"allow": None if self.allow is None else list(self.allow), "deny": list(self.deny)}
        return {"name": name, **found, **lists, "limit": [limit.as_table() for limit in self.limit]}

    def settled(self, *, over_i2p: bool, at_i2p: bool | None = None) -> Options:
        """Return the same with the defaults of the limits that were not given.

        :param over_i2p: whether a hop, the target or the listener is at I2P.
        :param at_i2p: whether the target or the listener is; ``None`` for the same as ``over_i2p``.
        """
        connect_timeout = CONNECT_TIMEOUT if over_i2p else 30.0
        linger = LINGER if (over_i2p if at_i2p is None else at_i2p) else 60.0
        return dataclasses.replace(
            self,
            connect_timeout=connect_timeout if self.connect_timeout is None else self.connect_timeout,
            linger=linger if self.linger is None else self.linger,
        )
