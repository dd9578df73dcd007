"""The commands, and how their errors are told."""

from __future__ import annotations

import io
import itertools
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from .output import complain, drop_stdout, set_format

__all__ = ["COMMANDS", "command", "run"]

# Each is the module of its name, with a function of the same name and perhaps EXAMPLES, or with an ``app``.
COMMANDS = ("forward", "expose", "socks", "up", "check", "pipe", "demo", "keys")


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


def command(name: str) -> Any:
    """One of the commands, as Click has it."""
    module = import_module(f".{name}", __package__)
    app = getattr(module, "app", None)
    if app is None:
        app = typer.Typer(add_completion=False)
        app.command(epilog=getattr(module, "EXAMPLES", None))(getattr(module, name))
    made = get_command(app)
    made.name = name
    return made


class _Group(TyperGroup):
    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = _Commands()  # type: ignore[assignment]  # none is ever added


app = typer.Typer(
    cls=_Group,
    help="Relay streams: TCP, Unix sockets, TLS, SSH and I2P, from one listening address to another.",
    epilog="relay COMMAND --help tells more of each.",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"relay {version('relay-toolkit')}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(False, "--version", help="Show the version.", callback=_show_version, is_eager=True),
) -> None:
    pass


def _masked(message: str) -> str:
    """A message that may repeat a word of the command line, with the secrets of an address masked."""
    from ..address import masked

    for word in sorted(sys.argv[1:], key=len, reverse=True):  # one may be a part of another
        message = message.replace(word, masked(word))
    return message


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
        problem = " ".join(_masked(error.format_message()).split()).rstrip(".")
        complain(f"{problem}; relay --help tells what is allowed")
        return error.exit_code
    except (typer.Abort, KeyboardInterrupt):
        return 1
    except BrokenPipeError:
        drop_stdout()
        return 1
    return status if isinstance(status, int) else 0
