"""``relay up``: all tunnels of a file, in one process."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from ...daemon.failures import configuration_read
from ...daemon.options import Options
from ...daemon.signals import Signals
from ...eventloop import reserve
from ..options import (
    GroupedCommand,
    control,
    debug,
    fail_fast,
    log_file,
    log_format,
    log_interval,
    sandbox,
    shutdown_delay,
    status,
    verbose,
    workers,
)
from ..output import failures_reported, log_stopped, logged_to_stderr
from ..run import load_server

if TYPE_CHECKING:  # the help is faster without them
    from ...daemon.change.predecessor import Predecessor
    from ...daemon.group import Group
    from ...daemon.kept_state import KeptState
    from ...daemon.member import Member
    from ...daemon.operator_sockets import OperatorSockets
    from ...daemon.options import EndpointPlan, LogPlan
    from ...daemon.sandbox import Sandbox
    from ...daemon.tunnel_file import TunnelFile

EXAMPLES = """A file:

\b
[defaults]
idle_timeout = 3600

\b
[hops]
bastion = "ssh://me@bastion?keyfile=~/.ssh/work"

\b
[tunnels.db]
listen = "127.0.0.1:5432"
target = "db.internal:5432"
via = ["bastion"]

\b
[tunnels.site]
listen = "ssh://me@server?listen=:8080"
target = "127.0.0.1:8000"

\b
[tunnels.proxy]
listen = "socks5://127.0.0.1:1080"
rule = ["*.corp.example=bastion", "*=direct"]

relay check --schema prints all keys for editors, and relay check --print -- forward … a file for a command line.
"""


@click.command(cls=GroupedCommand, epilog=EXAMPLES)
@click.argument(
    "file",
    metavar="[FILE]",
    required=False,
    type=click.Path(path_type=Path),
    help="The file [./relay.toml, else ~/.config/relay/relay.toml].",
)
@shutdown_delay
@fail_fast
@control
@status
@click.option("--watch", is_flag=True, help="Show a live table of the tunnels.")
@verbose
@log_format
@log_file
@log_interval
@workers
@sandbox
@click.option(
    "--upgrade",
    is_flag=True,
    help="Take over the listening sockets of the relay that runs with FILE, which then drains and ends.",
)
@debug
def up(
    file: Path | None,
    shutdown_delay: float | None,
    fail_fast: bool,
    control: str | None,
    status: str | None,
    watch: bool,
    verbose: bool,
    log_format: Literal["text", "json"],
    log_file: str | None,
    log_interval: float | None,
    workers: int | None,
    sandbox: Literal["auto", "on", "off"] | None,
    upgrade: bool,
    debug: bool,
) -> None:
    """Open all the tunnels of FILE and relay, until SIGINT or SIGTERM.

    Prints one line for each: the address it listens on, or why it cannot. relay retries until a server can be reached,
    at the start and after a loss. If a retry cannot help (a host key, a login, an address in use, a missing file), that
    tunnel ends, and with required = true all of them do. Paths in FILE are relative to it.

    relay reports every problem in FILE at once, one line each, and then opens nothing (status 2).

    After a signal, open connections may finish (drain); a second signal closes them. With --shutdown-delay, relay goes
    on accepting clients for that long first, and /readyz fails; a second signal then ends the delay.

    SIGHUP reloads FILE: relay changes only the tunnels that it changes, and their open connections go on (on_reload).
    If FILE has a problem, or a tunnel cannot be opened, nothing changes. On a terminal that closes, SIGHUP ends relay.
    """
    shown = Options(fail_fast=fail_fast, verbose=verbose, watch=watch, log_format=log_format, debug=debug)
    with (
        logged_to_stderr(log_format, verbose=verbose, debug=debug, named=True),
        failures_reported(debug=debug),
        Signals(reload=True) as signals,
    ):
        options = {
            "control": _absolute(control),
            "status": status,
            "log_file": _absolute(log_file),
            "log_interval": log_interval,
            "shutdown_delay": shutdown_delay,
            "sandbox": sandbox,
            "workers": workers,
        }
        given = {key: value for key, value in options.items() if value is not None}
        result = _relay(file, given, shown, signals, upgrade=upgrade)
    if result:
        raise click.exceptions.Exit(result)


def _relay(file: Path | None, given: Mapping[str, object], shown: Options, signals: Signals, *, upgrade: bool) -> int:
    """Open the tunnels of a file, and relay until a signal.

    :param file: its path; ``None`` for the usual places.
    :param given: the keys at the top of the file that options override, with their values.
    :param shown: the options of output.
    :param signals: those that end it, and those that reload.
    :param upgrade: whether to take the place of the relay that runs with the file.
    :returns: the exit status.
    :raises ProblemsError: if the file has problems.
    :raises ValueError: if a value is wrong.
    :raises OSError: if the file cannot be read, or a socket for operators cannot be opened.
    """
    from ...config import find
    from ...daemon.change.hand_over import HandOver
    from ...daemon.change.predecessor import Predecessor
    from ...daemon.change.reload import Reloads
    from ...daemon.change.successor import Program
    from ...daemon.connection_log import connections_logged
    from ...daemon.group import Group
    from ...daemon.operator_sockets import operated
    from ...daemon.tunnel_file import TunnelFile
    from ..reporters import ManyTunnels

    reserve.keep()
    program = Program.of_this_process()
    with configuration_read():
        name = str(file or find())
    config = TunnelFile(os.path.abspath(name), shown, name, given)
    with contextlib.ExitStack() as stack:
        predecessor = stack.enter_context(Predecessor(signals)) if upgrade else None
        members = _first(config, predecessor)
        stack.enter_context(contextlib.chdir(os.path.dirname(config.path)))
        stack.enter_context(contextlib.closing(config.processes))
        group = Group(members, signals, ManyTunnels(shown.watch))
        group.processes = config.processes
        reloads = group.reloads = Reloads(group, config)
        endpoints, log_plan = config.endpoints(config.current), config.log(config.current)
        first = endpoints if predecessor is None else _take_over(group, predecessor, endpoints)
        sockets = stack.enter_context(operated(group, signals, first, load_server, predecessor))
        reloads.sandbox = _sandboxed(config, members, endpoints, log_plan)
        log = stack.enter_context(connections_logged(group, signals, log_plan))
        state = stack.enter_context(_state_kept(group, log_plan, predecessor, sockets, endpoints))
        reloads.parts = (
            lambda top: sockets.prepare(config.endpoints(top)),
            lambda top: log.prepare(config.log(top)),
        )
        group.upgrades = HandOver(group, reloads, sockets, state, program)
        return group.run()


def _take_over(group: Group, predecessor: Predecessor, endpoints: EndpointPlan) -> EndpointPlan:
    """Connect to the process whose place a group takes; return where to listen for operators until it releases them.

    :param endpoints: where the other process listens for them.
    """
    from ...daemon.change.take_over import TakeOver
    from ...daemon.operator_sockets import control_path
    from ...daemon.options import EndpointPlan

    group.take_over = TakeOver(group, predecessor)
    predecessor.connect(control_path(endpoints))  # before anything is opened: it has the sockets
    return EndpointPlan("none", config=endpoints.config)


@contextlib.contextmanager
def _state_kept(
    group: Group,
    log_plan: LogPlan,
    predecessor: Predecessor | None,
    sockets: OperatorSockets,
    endpoints: EndpointPlan,
) -> Iterator[KeptState]:
    """Keep the bans and quotas of the tunnels, those of the process before this one as well."""
    from ...daemon.kept_state import state_kept

    if predecessor is None:
        with state_kept(group.outlets, log_plan.state) as state:
            yield state
        return
    # Returns once the other one has vacated what is exclusive, such as the file that is opened next.
    ledgers = predecessor.prepare(group.tunnels, sockets, endpoints)
    with state_kept(group.outlets, log_plan.state, ledgers) as state:
        predecessor.keep(state)
        yield state


def _sandboxed(
    config: TunnelFile, members: Sequence[Member], endpoints: EndpointPlan, log_plan: LogPlan
) -> Sandbox | None:
    """Restrict this process to what its tunnels need, as the file says; return the sandbox, if there is one."""
    if config.sandbox in (None, "off"):
        return None
    from ...daemon.sandboxed import sandboxed

    with log_stopped():
        return sandboxed(config.sandbox, [one.plan for one in members], endpoints, log_plan)


def _first(config: TunnelFile, predecessor: Predecessor | None) -> list[Member]:
    """Read the file, and report what is wrong with it to the process that has started this one."""
    from ...daemon.change.upgrade_channel import ENVIRONMENT

    if predecessor is not None and (path := os.environ.pop(ENVIRONMENT, None)) is not None:
        predecessor.connect(path)
    with configuration_read():
        return config.first()


def _absolute(path: str | None) -> str | None:
    """Return a path of the command line, to which the folder of the file does not matter."""
    if path is None or path in ("", "none") or path.startswith("unix:"):  # the last one is an error, and so named
        return path
    return os.path.abspath(path)
