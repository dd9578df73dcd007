"""The options that the relaying commands share."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import click

from ..addresses.duration import parse_duration
from ..addresses.options import Kind, Option
from ..addresses.size import parse_size
from ..daemon.options import Options
from ..engine.command_options import CommandOptions
from ..engine.options import (
    COUNT,
    ENTRIES,
    FINITE,
    FINITE_OR_ZERO,
    HEADER,
    LIMITS,
    NETWORKS,
    TIME,
    TIME_OR_ZERO,
    WARM,
    tunnel_options,
)
from ..streams.checks import MOST_WORKERS, WARM_FOR, check_count, check_warm, check_workers
from .output import print_warning

if TYPE_CHECKING:  # for tunnels with limits only
    from ..access.limit import Limit

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


def size(value: Any, least: int = 0) -> int:
    """Parse a size of memory, in bytes.

    :param value: the text, or a default.
    :param least: the smallest one that is allowed.
    :raises click.BadParameter: if it is not a size, or too small.
    """
    try:
        return parse_size(str(value).strip(), least)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


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


def networks(value: Any) -> tuple[str, ...]:
    """Parse a list of networks with commas between them.

    :raises click.BadParameter: if an entry is none.
    """
    from ..access.senders import parse_senders

    entries = tuple(part.strip() for part in str(value).split(","))
    try:
        parse_senders(entries)
    except ValueError as error:
        raise click.BadParameter(str(error).partition(": ")[2]) from None
    return entries


def allowed_by(option: Option) -> Callable[[Any], Any]:
    """Return a function that parses the texts that the kind of an option allows."""

    def parse(value: Any) -> Any:
        try:
            return option.kind.check("", str(value))
        except ValueError as error:
            raise click.BadParameter(str(error).partition(": ")[2]) from None

    return parse


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


# The option of a command, by its kind; an option of another kind is a text that this allows.
_TYPES: Mapping[Kind, dict[str, Any]] = {
    COUNT: {"type": count},
    TIME: {"type": seconds},
    TIME_OR_ZERO: {"type": seconds_or_zero},
    FINITE: {"type": finite_seconds},
    FINITE_OR_ZERO: {"type": finite_seconds_or_zero},
    WARM: {"type": warm_count},
    LIMITS: {"type": client_limit, "multiple": True, "callback": _no_name_twice},
    NETWORKS: {"type": networks},
    HEADER: {"type": click.Choice(HEADER.plain), "metavar": None},
    ENTRIES: {"type": str, "multiple": True},
}


# Of a command with dozens of options; what is in none of them comes last.
_GROUPS = {
    "Route": "on via resume target rule policy mptcp sam keys session transient",
    "Clients": "allow deny user password-file password-env accept-proxy limit nconnect",
    "Streams to the target": "send-proxy source warm warm-for workers carrier-sharing",
    "Time": "timeout connect-timeout idle-timeout linger first-byte-timeout drain drain-spread shutdown-delay",
}


UNITS = f"{SECONDS} may have a unit: 90, 1.5s, 10m, 2h."


class GroupedCommand(click.Command):
    """A command whose help has its options in groups."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, each group below its own head."""
        groups = {name: head for head, names in _GROUPS.items() for name in names.split()}
        written: dict[str, list[tuple[str, str]]] = {head: [] for head in (*_GROUPS, "Other options")}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and isinstance(parameter, click.Option):
                written[groups.get(parameter.opts[0].lstrip("-"), "Other options")].append(record)
        for head, records in written.items():
            if records:
                with formatter.section(head):
                    formatter.write_dl(records)
        formatter.write_paragraph()
        formatter.write_text(UNITS)


def option_of_tunnel(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return the decorator that gives a command an option of tunnels."""
    option = _OPTIONS[name]
    settings: dict[str, Any] = {"metavar": option.placeholder, "type": allowed_by(option)}
    settings |= _TYPES.get(option.kind, {})
    if isinstance(option.default, (int, float)):
        settings |= {"default": option.default, "show_default": True}
    return click.option(f"--{name.replace('_', '-')}", help=option.command, **settings)


def options_about(topic: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator that gives a command the options of tunnels about something, in the order of their fields."""
    found = [option_of_tunnel(name) for name, option in _OPTIONS.items() if option.topic == topic and option.command]
    return lambda command: functools.reduce(lambda made, option: option(made), reversed(found), command)


_OPTIONS = tunnel_options(CommandOptions)

_RESUME = "relay.resume"


def _note_resume(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    ctx.meta[_RESUME] = value


def _with_resume(ctx: click.Context, parameter: click.Parameter, hops: tuple[str, ...]) -> tuple[str, ...]:
    """Return the hops, the last one as ``--resume`` wants it."""
    if not ctx.meta.get(_RESUME):
        return hops
    if not hops:
        raise click.UsageError("--resume: there is no hop; add --via ssh://HOST, or another relay's address")
    last = hops[-1]
    scheme, query = last.partition(":")[0], last.partition("?")[2]
    if scheme == "resume" or any(option.startswith("resume=") for option in query.split("&")):
        return hops
    if scheme == "ssh":
        return *hops[:-1], f"{last}{'&' if query else '?'}resume=yes"
    return *hops[:-1], f"resume:{last}"


def via(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options of its route."""
    return _via(_resume(command))


# Each is a decorator of a command.
_resume = click.option(
    "--resume",
    is_flag=True,
    is_eager=True,  # before the hops, which it changes
    expose_value=False,
    callback=_note_resume,
    help="Streams outlive a lost connection to the last hop: ssh://HOST, where relay has to be installed, or the "
    "address of a relay resume-server.",
)
_via = click.option(
    "--via",
    metavar="HOP",
    multiple=True,
    callback=_with_resume,
    help="A hop of the route: ssh://[USER@]HOST[:PORT], i2p:, socks5://HOST:PORT, http://HOST:PORT, https://HOST, "
    "wss://HOST/PATH, tor:, exec:COMMAND %h %p or port:PROGRAM {port}. Repeatable, nearest hop first.",
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
_SHARING = ("shared", "per-worker")
_carrier_sharing = click.option(
    "--carrier-sharing",
    type=click.Choice(_SHARING),
    help="Whether workers make connections over SSH and I2P of their own; else such a tunnel stays in one process "
    "[shared].",
)


def _renamed(context: click.Context, _: click.Parameter, value: str | None) -> None:
    """Take the value of an option that has another name now.

    :raises click.BadParameter: for another value, such as the number of a hop's carriers.
    """
    if value is not None:
        if value not in _SHARING:
            raise click.BadParameter("their number is a parameter of the hop: ssh://HOST?carriers=2")
        context.params["carrier_sharing"] = value
        print_warning("--carriers: it is --carrier-sharing now; relay 0.3 will not know it")


_carriers = click.option(  # until 0.3
    "--carriers",
    callback=_renamed,
    expose_value=False,
    hidden=True,
)
sandbox = click.option(
    "--sandbox",
    type=click.Choice(["auto", "on", "off"]),
    help="Give up access to other files and ports (Landlock); auto does so where that is possible [off].",
)
debug = click.option("--debug", is_flag=True, help="Log at debug level, with tracebacks.")


_SHARED = (
    options_about("limits"), options_about("end"), shutdown_delay, options_about("lists"), fail_fast, control, status,
    verbose, watch, log_format, log_file, log_interval, sandbox, debug,
)  # fmt: skip


def in_workers(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of workers; goes above :func:`with_options`."""
    return workers(_carrier_sharing(_carriers(command)))


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
