"""The commands, and how their errors are told."""

from __future__ import annotations

import io
import itertools
import sys
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import typer
from typer.core import TyperGroup

from .command_loader import COMMANDS, command
from .help_format import show_help
from .output import complain, drop_stdout, reason, set_format

__all__ = ["app", "run"]


class _Commands(Mapping[str, Any]):
    """The commands; the module of one is loaded when that one is asked for, so that each starts fast."""

    def __getitem__(self, name: str) -> Any:
        if name not in COMMANDS:
            raise KeyError(name)
        return command(name)

    def __iter__(self) -> Iterator[str]:
        return iter(COMMANDS)

    def __len__(self) -> int:
        return len(COMMANDS)


class _Group(TyperGroup):
    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = _Commands()  # type: ignore[assignment]  # none is ever added


app = typer.Typer(
    cls=_Group,
    help="Relay streams: TCP, Unix sockets, TLS, SSH and I2P, from one listening address to another.",
    epilog="relay help COMMAND tells more of each; relay help hops and relay help exit-status are for all of them.",
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"relay {version('relay-toolkit')}")
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    version: bool = typer.Option(
        False, "--version", "-V", help="Show the version.", callback=_show_version, is_eager=True
    ),
) -> None:
    if context.invoked_subcommand is None:
        show_help(context)


def _masked(message: str) -> str:
    """A message that may repeat a word of the command line, with the secrets of an address masked."""
    from ..addresses.redact import redact

    for word in sorted(sys.argv[1:], key=len, reverse=True):  # one may be a part of another
        message = message.replace(word, redact(word))
    return message


def _told(error: Any) -> str:
    """What is wrong with a command line, and where its help is."""
    near = get_close_matches(getattr(error, "option_name", None) or "", getattr(error, "possibilities", None) or (), 1)
    text = f"{error.message}; did you mean {near[0]}?" if near else error.format_message()
    problem = " ".join(_masked(text).split()).rstrip(".")
    path = error.ctx.command_path if getattr(error, "ctx", None) is not None else "relay"
    where = f"relay {path.removeprefix('relay').strip()} --help".replace("  ", " ")
    return f"{problem} See {where}" if problem.endswith("?") else f"{problem}; see {where}"


def _log_format(words: Sequence[str]) -> str:
    """How failures are printed, which must be known before the command line is understood."""
    said = [*itertools.takewhile(lambda word: word != "--", words)]
    is_json = "--log-format=json" in said or ("--log-format", "json") in itertools.pairwise(said)
    return "json" if is_json else "text"


def run() -> int:
    """Run the command with the program's arguments.

    :returns: the exit status: 0 done, 1 a failure at run time, 2 a wrong command line.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # where an arrow cannot be written, a question mark can
    set_format(_log_format(sys.argv[1:]))
    try:
        status = app(standalone_mode=False, prog_name="relay")
        if sys.stdout is not None:
            sys.stdout.flush()
    except typer.TyperException as error:
        complain(_told(error))
        return error.exit_code
    except (typer.Abort, KeyboardInterrupt):
        return 1
    except BrokenPipeError:
        drop_stdout()
        return 1
    except OSError as error:  # a command reports its own
        drop_stdout()
        complain(f"standard output: {reason(error)}")
        return 1
    return status if isinstance(status, int) else 0
