"""The options that the relaying commands share."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from ..addresses.duration import parse_duration
from ..daemon.options import Options
from ..streams.checks import MOST_WORKERS, WARM_FOR, check_count, check_warm, check_workers
from ..streams.source import parse_source

if TYPE_CHECKING:  # for tunnels with limits only
    from ..access.limit import Limit

__all__ = [
    "SECONDS",
    "allow",
    "connect_timeout",
    "control",
    "debug",
    "deny",
    "fail_fast",
    "finite_seconds",
    "idle_timeout",
    "in_workers",
    "of_clients",
    "linger",
    "log_file",
    "log_format",
    "log_interval",
    "sandbox",
    "seconds",
    "seconds_or_zero",
    "shutdown_delay",
    "status",
    "verbose",
    "via",
    "warm",
    "watch",
    "with_options",
    "workers",
]

SECONDS = "SECONDS"


def seconds(value: Any) -> float:
    """Parse a duration: a number of seconds, a number followed by ms, s, m, h, d or w, or none for no limit.

    :param value: the text, or a default.
    :raises click.BadParameter: if it is not greater than 0.
    """
    number = seconds_or_zero(value)
    if number == 0:
        raise click.BadParameter(f"must be greater than 0, got {value}; leave the option out for the default")
    return number


def seconds_or_zero(value: Any) -> float:
    """Parse a duration that may be 0.

    :raises click.BadParameter: if it is not a duration, or negative.
    """
    try:
        number = parse_duration(str(value).strip())
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
    if number < 0:
        raise click.BadParameter(f"must not be negative, got {value}; leave the option out for the default")
    return number


def count(value: Any) -> int:
    """Parse a maximum number of connections.

    :raises click.BadParameter: if it is neither positive nor -1.
    """
    try:
        return check_count(int(value))
    except ValueError:
        raise click.BadParameter(f"must be at least 1, or -1 for no limit, got '{value}'") from None


def warm_count(value: Any) -> int:
    """Parse a number of warm streams.

    :raises click.BadParameter: if it is negative or too large.
    """
    try:
        check_warm(int(value), WARM_FOR)
    except ValueError:
        raise click.BadParameter(f"must be a whole number from 0 to 1024, got '{value}'") from None
    return int(value)


def source_address(value: Any) -> str:
    """Parse the address from which relay connects.

    :raises click.BadParameter: if it is neither ``peer`` nor an IP address.
    """
    try:
        parse_source(value)
    except ValueError as error:
        raise click.BadParameter(str(error).partition(": ")[2]) from None
    return str(value)


def client_limit(value: Any) -> Limit:
    """Parse a limit of clients.

    :raises click.BadParameter: if it cannot be understood.
    """
    from ..access.limit import Limit

    if isinstance(value, Limit):
        return value
    try:
        return Limit.parse(str(value))
    except ValueError as error:
        raise click.BadParameter(str(error).partition(": ")[2]) from None


def _no_name_twice(context: click.Context, parameter: click.Parameter, limits: tuple[Limit, ...]) -> tuple[Limit, ...]:
    """Check that the limits of a tunnel have different names."""
    if limits:
        from ..access.limit import check_limits

        try:
            check_limits(limits)
        except ValueError as error:
            raise click.BadParameter(str(error).partition(": ")[2]) from None
    return limits


def finite_seconds(value: Any) -> float:
    """Parse a duration that has a limit.

    :raises click.BadParameter: if it is not a duration greater than 0.
    """
    return _finite(seconds(value), value)


def finite_seconds_or_zero(value: Any) -> float:
    """Parse a duration that may be 0 and has a limit.

    :raises click.BadParameter: if it is not a duration, negative or without limit.
    """
    return _finite(seconds_or_zero(value), value)


def _finite(number: float, value: Any) -> float:
    if math.isinf(number):
        raise click.BadParameter(f"must have a limit, got {value}; leave the option out for the default")
    return number


def worker_count(value: Any) -> int:
    """Parse a number of workers.

    :raises click.BadParameter: if it is neither from 1 to 128 nor ``auto``.
    """
    try:
        return check_workers(value if value == "auto" else int(value))
    except ValueError:
        raise click.BadParameter(f"must be from 1 to {MOST_WORKERS}, or auto, got '{value}'") from None


# Each is a decorator of a command.
via = click.option(
    "--via",
    metavar="HOP",
    multiple=True,
    help="A hop on the way: ssh://[USER@]HOST[:PORT], i2p:, socks5://HOST:PORT, http://HOST:PORT or "
    "exec:COMMAND %h %p. Repeatable, nearest hop first.",
)
nconnect = click.option(
    "--nconnect",
    metavar="N",
    type=count,
    default=-1,
    show_default=True,
    help="Maximum number of open connections; -1 for no limit. Further clients wait.",
)
timeout = click.option("--timeout", metavar=SECONDS, type=seconds, help="Maximum lifetime of a connection [no limit].")
connect_timeout = click.option(
    "--connect-timeout",
    metavar=SECONDS,
    type=seconds,
    help="Maximum time to connect to the target, hops included [30; over I2P 90].",
)
idle_timeout = click.option(
    "--idle-timeout",
    metavar=SECONDS,
    type=seconds,
    help="Close a connection after this long without traffic [no limit].",
)
linger = click.option(
    "--linger", metavar=SECONDS, type=seconds_or_zero, help="Idle timeout after a half-close [60; over I2P 5]."
)
first_byte_timeout = click.option(
    "--first-byte-timeout",
    metavar=SECONDS,
    type=seconds,
    help="Maximum time from the client's first byte to the target's first one [no limit].",
)
drain = click.option(
    "--drain",
    metavar=SECONDS,
    type=seconds_or_zero,
    default=30.0,
    show_default=True,
    help="Maximum time for open connections to finish after SIGTERM or SIGINT.",
)
drain_spread = click.option(
    "--drain-spread",
    metavar=SECONDS,
    type=finite_seconds_or_zero,
    default=0.0,
    show_default=True,
    help="End the connections that are left one after the other, over this last part of --drain.",
)
shutdown_delay = click.option(
    "--shutdown-delay",
    metavar=SECONDS,
    type=finite_seconds_or_zero,
    help="Go on accepting clients for this long after SIGTERM or SIGINT; /readyz fails meanwhile [0].",
)
fail_fast = click.option(
    "--fail-fast", is_flag=True, help="Exit with status 1 at the first failure at the start; do not retry."
)
control = click.option("--control", metavar="PATH", help="Listen for relay ctl on this Unix socket (mode 0600).")
status = click.option(
    "--status",
    metavar="ADDRESS",
    help="Serve status and health over HTTP on PORT, IP:PORT (loopback only) or unix:///PATH.",
)
_warm = click.option(
    "--warm",
    metavar="N",
    type=warm_count,
    default=0,
    show_default=True,
    help="Streams to TARGET to keep open for clients to come, which then do not wait for a connect.",
)
_warm_for = click.option(
    "--warm-for",
    metavar=SECONDS,
    type=finite_seconds,
    default=WARM_FOR,
    show_default=True,
    help="Replace such a stream after this long without a client.",
)
_source = click.option(
    "--source",
    metavar="ADDRESS",
    type=source_address,
    help="Connect to TARGET from this address, or with peer from one of the loopback that stands for the client.",
)
_limit = click.option(
    "--limit",
    metavar="KEY=VALUE,…",
    type=client_limit,
    multiple=True,
    callback=_no_name_twice,
    help="Limit clients, as in per=ip/24,rate=20/10s,ban=10m; also concurrent, bandwidth, quota, action. Repeatable.",
)
allow = click.option(
    "--allow",
    metavar="RULE",
    multiple=True,
    help="Allow only these clients: cidr:10.0.0.0/8, user:NAME, dns:*.svc, uri:, cn:, spki:sha256:HASH, "
    "i2p:NAME.b32.i2p, login:NAME, ssh:SERVER, or a file of such rules. Repeatable.",
)
deny = click.option(
    "--deny",
    metavar="RULE",
    multiple=True,
    help="Reject these clients, in the same form; wins over --allow. Repeatable.",
)
verbose = click.option("--verbose", "-v", is_flag=True, help="Log one line for each finished connection.")
watch = click.option("--watch", is_flag=True, help="Show a live table of the connections.")
log_format = click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="Format of the log on standard error. Standard output stays text.",
)
log_file = click.option(
    "--log-file",
    metavar="PATH",
    help="Append a line of JSON for each connection to this file (mode 0600). SIGUSR1 opens it again.",
)
log_interval = click.option(
    "--log-interval",
    metavar=SECONDS,
    type=seconds,
    help="Time between two such lines of an open connection [600].",
)
workers = click.option(
    "--workers",
    metavar="N",
    type=worker_count,
    help="Relay in this many processes, one for each processor with auto [1].",
)
_carriers = click.option(
    "--carriers",
    type=click.Choice(["shared", "per-worker"]),
    help="Whether workers make connections over SSH and I2P of their own; else such a tunnel stays in one process "
    "[shared].",
)
sandbox = click.option(
    "--sandbox",
    type=click.Choice(["auto", "on", "off"]),
    help="Give up access to other files and ports (Landlock); auto does so where that is possible [off].",
)
debug = click.option("--debug", is_flag=True, help="Log at debug level, with tracebacks.")


_SHARED = (
    nconnect, timeout, connect_timeout, idle_timeout, linger, first_byte_timeout, drain, drain_spread, shutdown_delay,
    allow, deny, fail_fast, control, status, verbose, watch, log_format, log_file, log_interval, sandbox, debug,
)  # fmt: skip


def warm(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command with one target the options of its streams; goes above :func:`with_options`."""
    return _warm(_warm_for(_source(command)))


def of_clients(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the limits of clients; goes above :func:`with_options`."""
    return _limit(command)


def in_workers(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of workers; goes above :func:`with_options`."""
    return workers(_carriers(command))


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of :class:`Options`, which it gets as its keyword ``options``."""

    @functools.wraps(command)
    def collect(**arguments: Any) -> None:
        names = [field.name for field in dataclasses.fields(Options) if field.name in arguments]
        given = {name: arguments.pop(name) for name in names}
        if "allow" in given:
            given["allow"] = given["allow"] or None  # without the option all clients are
        options = Options(**given)
        command(**arguments, options=options)

    for option in reversed(_SHARED):  # the decorator that is applied last is first in the help
        option(collect)
    return collect
