"""The options of a tunnel and of its command, and what the command opens for operators, as values."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from ..addresses.i2p import CONNECT_TIMEOUT, LINGER
from ..engine.command_options import CommandOptions
from ..engine.options import again

if TYPE_CHECKING:  # for tunnels in workers or with limits only
    from ..access.limit import Limit
    from .worker_processes import WorkerProcesses

NOT_NONE = ("connect_timeout", "linger", "drain")
"""Times for which ``None`` is not the word for no limit: infinity is."""

LOG_INTERVAL = 600.0  # seconds; the default of --log-interval


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Options(CommandOptions):
    """Plain data: the options of the tunnel, as commands and files have them, and those for what is printed."""

    limit: tuple[Limit, ...] = again("limit", ())
    allow: tuple[str, ...] | None = again("allow", None)
    deny: tuple[str, ...] = again("deny", ())
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
    workers: int | None = None
    carrier_sharing: Literal["shared", "per-worker"] | None = None
    processes: WorkerProcesses | None = dataclasses.field(default=None, compare=False)

    def of_tunnel(self, name: str) -> dict[str, Any]:
        """Return the keywords of a :class:`~relay.Tunnel`, or of one in workers."""
        return {**self.as_message(), "name": name}

    def settled(self, *, slow: bool, ends_whole: bool) -> Options:
        """Return the same with the defaults of the limits that were not given.

        :param slow: whether a hop, the target or the listener is at I2P or Tor.
        :param ends_whole: whether the streams of the target or of the listener have no half-close.
        """
        connect_timeout = CONNECT_TIMEOUT if slow else 30.0
        linger = LINGER if ends_whole else 60.0
        return dataclasses.replace(
            self,
            connect_timeout=connect_timeout if self.connect_timeout is None else self.connect_timeout,
            linger=linger if self.linger is None else self.linger,
        )


class EndpointPlan(NamedTuple):
    """The addresses at which a command listens for operators, before they are opened.

    :param control: the path of the control socket, or ``none``; ``None`` for the default one if there is a file.
    :param status: the address of the status server; ``None`` for none.
    :param is_public: whether that may be one that other machines can reach.
    :param token_file: the file with the token of its clients.
    :param config: the absolute path of the file of the tunnels; empty for a command line.
    """

    control: str | None = None
    status: str | None = None
    is_public: bool = False
    token_file: str | None = None
    config: str = ""


class LogPlan(NamedTuple):
    """The access log of a command, before it is opened, and the other file that it writes.

    :param path: of the file; ``None`` for no access log.
    :param interval: seconds between two lines of an open connection; ``None`` for none.
    :param state: the file of bans and quotas; ``None`` for none.
    """

    path: str | None
    interval: float | None
    state: str | None = None
