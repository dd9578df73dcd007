"""The commands, and how their errors are told."""

from __future__ import annotations

import io
import itertools
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

import click

from .commands import COMMANDS, command
from .output import complain, drop_stdout, reason, set_format, show_help

__all__ = ["app", "run"]


class _Commands(click.Group):
    """A group that imports a command only when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Name the commands in the order of the help."""
        return [*COMMANDS]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command; ``None`` if there is none of that name."""
        return command(cmd_name) if cmd_name in COMMANDS else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or suggest the one that is spelled most like it.

        :raises click.exceptions.NoSuchCommand: if there is none of that name.
        """
        if args[0] not in COMMANDS and not args[0].startswith("-"):
            raise click.exceptions.NoSuchCommand(args[0], possibilities=COMMANDS, ctx=ctx)
        return super().resolve_command(ctx, args)


def _show_version(context: click.Context, parameter: click.Parameter, is_given: bool) -> None:
    if is_given:
        from importlib.metadata import version

        print(f"relay {version('relay-toolkit')}")
        context.exit()


@click.group(
    cls=_Commands,
    epilog="relay help COMMAND tells more of each; relay help hops and relay help exit-status are for all of them.",
    invoke_without_command=True,
    subcommand_metavar="COMMAND [ARGS]...",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "--version", "-V", is_flag=True, expose_value=False, is_eager=True, callback=_show_version, help="Show the version."
)
@click.pass_context
def app(context: click.Context) -> None:
    """Relay streams: TCP, Unix sockets, TLS, SSH and I2P, from one listening address to another."""
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
    text = f"{error.message.rstrip('.')}; did you mean {near[0]}?" if near else error.format_message()
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
    except click.ClickException as error:
        complain(_told(error))
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return 1
    except BrokenPipeError:
        drop_stdout()
        return 1
    except OSError as error:  # a command reports its own
        drop_stdout()
        complain(f"standard output: {reason(error)}")
        return 1
    return status if isinstance(status, int) else 0
