"""The options that every relaying command has."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import re
from collections.abc import Callable
from typing import Annotated, Any, Literal, get_type_hints

import typer

from ..addresses.i2p import CONNECT_TIMEOUT, LINGER
from ..streams.checks import check_count

__all__ = ["FAIL_FAST", "LOG_FORMAT", "SECONDS", "Options", "Via", "seconds", "seconds_or_zero", "with_options"]

SECONDS = "SECONDS"

Via = Annotated[
    list[str] | None,
    typer.Option(
        "--via",
        metavar="HOP",
        help="A hop on the way: ssh://[USER@]HOST[:PORT], i2p:, socks5://HOST:PORT, http://HOST:PORT or "
        "exec:COMMAND %h %p. Repeatable, nearest hop first.",
    ),
]

_TIME = re.compile(r"\s*(.*?)\s*(ms|s|m|h|d)?\s*", re.DOTALL)
_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}


def seconds(value: Any) -> float:
    """Read a time of the command line: seconds, or a number with ms, s, m, h or d after it.

    :param value: the text, or a default.
    :raises typer.BadParameter: if it is not more than zero.
    """
    number = seconds_or_zero(value)
    if number == 0:
        raise typer.BadParameter(f"must be greater than 0, got {value}; leave the option out for the default")
    return number


def seconds_or_zero(value: Any) -> float:
    """The same where zero is allowed.

    :raises typer.BadParameter: if it is not a time, or negative.
    """
    found = _TIME.fullmatch(str(value))
    try:
        number = float(found[1]) * _UNITS[found[2] or "s"] if found else math.nan
    except ValueError:
        number = math.nan
    if math.isnan(number):
        raise typer.BadParameter(f"expected a time such as 90, 1.5s, 10m or 2h, got '{value}'")
    if number < 0:
        raise typer.BadParameter(f"must not be negative, got {value}; leave the option out for the default")
    return number


def count(value: Any) -> int:
    """Read a limit of connections.

    :raises typer.BadParameter: if it is not a number that is allowed.
    """
    try:
        return check_count(int(value))
    except ValueError:
        raise typer.BadParameter(f"must be at least 1, or -1 for no limit, got '{value}'") from None


LOG_FORMAT = typer.Option(help="Format of the log on standard error. Standard output stays text.")
FAIL_FAST = typer.Option("--fail-fast", help="Exit with status 1 at the first failure at the start; do not retry.")


@dataclasses.dataclass(frozen=True, slots=True)
class Options:
    """What the command line says of the connections and of what is printed about them."""

    nconnect: Annotated[
        int,
        typer.Option(
            metavar="N", parser=count, help="Maximum number of open connections; -1 for no limit. Further clients wait."
        ),
    ] = -1
    timeout: Annotated[
        float | None,
        typer.Option(metavar=SECONDS, parser=seconds, help="Maximum lifetime of a connection [no limit]."),
    ] = None
    connect_timeout: Annotated[
        float | None,
        typer.Option(
            metavar=SECONDS,
            parser=seconds,
            help="Maximum time to connect to the target, hops included [30; over I2P 90].",
        ),
    ] = None
    idle_timeout: Annotated[
        float | None,
        typer.Option(
            metavar=SECONDS, parser=seconds, help="Close a connection after this long without traffic [no limit]."
        ),
    ] = None
    linger: Annotated[
        float | None,
        typer.Option(
            metavar=SECONDS,
            parser=seconds_or_zero,
            help="Idle timeout after a half-close [60; over I2P 5].",
        ),
    ] = None
    drain: Annotated[
        float,
        typer.Option(
            metavar=SECONDS,
            parser=seconds_or_zero,
            help="Maximum time for open connections to finish after SIGTERM or SIGINT.",
        ),
    ] = 30.0
    fail_fast: Annotated[bool, FAIL_FAST] = False
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log one line for each finished connection.")] = False
    watch: Annotated[bool, typer.Option("--watch", help="Show a live table of the connections.")] = False
    log_format: Annotated[Literal["text", "json"], LOG_FORMAT] = "text"
    debug: Annotated[bool, typer.Option("--debug", help="Log at debug level, with tracebacks.")] = False

    def settled(self, *, over_i2p: bool, at_i2p: bool | None = None) -> Options:
        """The same, with the limits that were not given as they are usual.

        :param over_i2p: whether something on the way is reached over I2P.
        :param at_i2p: whether one of the two ends is itself at I2P; ``None`` for the same.
        """
        connect_timeout = CONNECT_TIMEOUT if over_i2p else 30.0
        linger = LINGER if (over_i2p if at_i2p is None else at_i2p) else 60.0
        return dataclasses.replace(
            self,
            connect_timeout=connect_timeout if self.connect_timeout is None else self.connect_timeout,
            linger=linger if self.linger is None else self.linger,
        )


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """Make a command of a function whose keyword ``options`` is an :class:`Options`: each field is one option."""
    signature = inspect.signature(command, eval_str=True)
    own = [parameter for parameter in signature.parameters.values() if parameter.name != "options"]
    hints = get_type_hints(Options, include_extras=True)
    more = [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name]
        )
        for field in dataclasses.fields(Options)
    ]

    @functools.wraps(command)
    def spread(**arguments: Any) -> None:
        options = Options(**{parameter.name: arguments.pop(parameter.name) for parameter in more})
        command(**arguments, options=options)

    spread.__signature__ = signature.replace(parameters=[*own, *more])  # type: ignore[attr-defined]
    spread.__annotations__ = {parameter.name: parameter.annotation for parameter in (*own, *more)}
    return spread
