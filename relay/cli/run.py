"""The work of ``relay forward`` and ``relay expose``: make a plan, and relay until a signal."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

from ..addresses.hops import Command, Listen, Route
from ..addresses.i2p import I2PTarget
from ..addresses.values import Target
from ..daemon.failures import describe_error
from ..daemon.loops import find_loops
from ..daemon.options import LOG_INTERVAL, Options
from ..daemon.plan import Plan, make_plan
from ..daemon.routed_targets import RoutedTarget
from ..daemon.signals import Signals
from ..daemon.worker_processes import WorkerProcesses
from ..errors import AddressError, RelayError
from ..eventloop import reserve
from ..streams.listener import TunnelListener
from .output import failures_reported, log_stopped, logged_to_stderr

if TYPE_CHECKING:  # a command without operators does not need them
    from ..daemon.instance import Instance
    from ..daemon.sockets import Endpoint
    from ..daemon.waiting import Stop


def serve(
    where: Listen,
    end: Target | I2PTarget | Command,
    options: Options,
    *,
    name: str,
    title: str,
    via: Route = (),
    listen_via: Route = (),
    others: Sequence[RoutedTarget] = (),
    policy: str = "first",
    hint: str = "",
) -> None:
    """Listen, relay until a signal, and drain.

    :param where: the address to listen on.
    :param end: the address to connect to.
    :param options: the limits, and what is printed.
    :param name: of the tunnel.
    :param title: printed before where it listens and where that leads to.
    :param via: the hops to the target, the nearest first.
    :param listen_via: those to where it listens.
    :param others: further targets, and the hops to them.
    :param policy: the order in which they are tried.
    :param hint: what to add to the reason why it cannot listen.
    :raises click.exceptions.Exit: with the status, if it fails; one line has been printed then.
    """
    with (
        logged_to_stderr(options.log_format, verbose=options.verbose, debug=options.debug),
        failures_reported(debug=options.debug),
        Signals() as signals,
        closing(WorkerProcesses(options.workers or 1)) as processes,
    ):
        reserve.keep()
        options = dataclasses.replace(options, processes=processes)
        made = make_plan(where, end, options, name=name, via=via, listen_via=listen_via, others=others, policy=policy)
        if hint:
            made = dataclasses.replace(made, listen=functools.partial(_hinted, made.listen, hint))
        relay_one(made, signals, title)


def relay_one(plan: Plan, signals: Signals, title: str) -> None:
    """Relay the tunnel of a command line until a signal, with its control and status sockets.

    :param plan: how it is opened; its options have the addresses of the sockets.
    :param signals: those that end it.
    :param title: printed before where it listens and where that leads to.
    :raises Exception: why it cannot relay.
    """
    from ..daemon.connection_log import connections_logged
    from ..daemon.group import Group
    from ..daemon.member import Member
    from ..daemon.operator_sockets import operated
    from ..daemon.options import EndpointPlan, LogPlan
    from .reporters import OneTunnel

    for loop in find_loops([plan]):
        raise AddressError(loop.text)
    options = plan.options
    reporter = OneTunnel(title, watch=options.watch, where=plan.routes.where)
    group = Group([Member(plan)], signals, reporter)
    if options.allow or options.deny or options.accept_proxy:
        from ..daemon.rule_notices import warn_of_rules

        warn_of_rules(plan)
    if options.processes is not None:
        group.processes = options.processes
    endpoints = EndpointPlan(options.control, options.status)
    log = LogPlan(options.log_file, options.log_interval or LOG_INTERVAL)
    with operated(group, signals, endpoints, load_server):
        if options.sandbox not in (None, "off"):
            from ..daemon.sandboxed import sandboxed

            with log_stopped():
                sandboxed(options.sandbox, [plan], endpoints, log)
        with connections_logged(group, signals, log):
            group.run()
    if reporter.error is not None:
        raise reporter.error


def load_server() -> Callable[[Instance, Sequence[Endpoint], Stop], None]:
    """Import the server of operators, which takes a while."""
    from ..operations.server import serve

    return serve


def _hinted(listen: Callable[..., TunnelListener], hint: str, *given: Any) -> TunnelListener:
    try:
        return listen(*given)
    except OSError as error:
        raise RelayError(f"{describe_error(error)}; {hint}") from error
