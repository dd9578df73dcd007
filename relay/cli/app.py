"""The group of commands, and the one line for an error of the command line."""

from __future__ import annotations

import io
import itertools
import re
import sys
from collections.abc import Sequence

import click

from ..daemon.failures import describe_error
from .commands import COMMANDS, command
from .output import drop_stdout, print_error, set_format, show_help


class _Commands(click.Group):
    """A group that imports a command only when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Name the commands in the order of the help."""
        return [*COMMANDS]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of the commands; importing all of them would take most of the time of the help."""
        with formatter.section("Commands"):
            formatter.write_dl([*COMMANDS.items()])

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
    epilog="relay help COMMAND describes one of them; relay help hops, tls, redirect and exit-status are topics.",
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


# What people write who know ssh, and what says the same here.
_FROM_SSH = {
    "-L": "ssh -L 8080:db:80 bastion is relay forward 8080 db:80 --via ssh://bastion",
    "-R": "ssh -R 8080:localhost:80 server is relay expose localhost:80 --on 'ssh://server?listen=:8080'",
    "-D": "ssh -D 1080 bastion is relay socks 1080 --via ssh://bastion",
    "-W": "ssh -W db:80 bastion is relay pipe db:80 --via ssh://bastion",
    "-J": "write --via ssh://HOST for each hop, the nearest first",
    "-N": "leave it out: relay starts no shell",
    "-f": "leave it out: relay service writes a systemd unit",
    "-i": "write ssh://HOST?keyfile=FILE",
    "-p": "write ssh://HOST:PORT",
}
_SERVER = re.compile(r"[^\s@/]+@[^\s@/]+")


def _hint(words: Sequence[str]) -> str:
    """Return how to write what a command line has in ssh's spelling; empty if it has nothing of it."""
    from ..addresses.address_parser import FORWARD

    command, *words = words[2:] if words[:2] == ["check", "--"] else words or [""]
    words = [*itertools.takewhile(lambda word: word != "--", words)]
    for word in words:
        if word[:2] in _FROM_SSH and not word.startswith("--"):
            return f"{word[:2]} is ssh's: {_FROM_SSH[word[:2]]}"
    for word in words:
        if found := FORWARD.fullmatch(word):
            if command == "expose":
                return f"'{word}' is ssh's spelling; write {found[2]}:{found[3]} --on 'ssh://HOST?listen=:{found[1]}'"
            return f"'{word}' is ssh's spelling; write {found[1]} {found[2]}:{found[3]}"
    return ""


def _masked(message: str) -> str:
    """Mask the secrets of addresses in a message that may repeat words of the command line."""
    from ..addresses.redact import redact

    for word in sorted(sys.argv[1:], key=len, reverse=True):  # a word may be a part of another
        message = message.replace(word, redact(word))
    return message


def _problem(error: click.ClickException) -> str:
    """Return what is wrong with a command line, as ``<what>: <problem>``."""
    match error:
        case click.MissingParameter(param=click.Parameter() as parameter):
            return f"{_name(parameter)}: missing"
        case click.BadParameter(param=click.Parameter() as parameter):
            return f"{_name(parameter)}: {error.message}"
        case click.NoSuchOption():
            return f"{error.option_name}: no such option"
        case click.exceptions.NoSuchCommand():
            return f"{error.command_name}: no such command"
        case click.BadOptionUsage() if "requires an argument" in error.message:
            return f"{error.option_name}: value missing"
    found = re.fullmatch(r"Got unexpected extra arguments? \((.*)\)\.?", error.message, re.DOTALL)
    if found is None:
        return error.format_message()
    hint = f"; a server to go over is --via ssh://{found[1]}" if _SERVER.fullmatch(found[1]) else ""
    return f"{found[1]}: unexpected argument{hint}"


def _name(parameter: click.Parameter) -> str:
    """Return the name of a parameter as help shows it."""
    return max(parameter.opts, key=len) if isinstance(parameter, click.Option) else str(parameter.metavar)


def _describe(error: click.ClickException) -> str:
    """Describe what is wrong with a command line, and name the command that shows its help."""
    problem = " ".join(_masked(_problem(error)).split()).rstrip(".")
    context = getattr(error, "ctx", None)  # Click's parser gives none
    words = context.command_path.split() if context else [word for word in sys.argv[1:2] if word in COMMANDS]
    see = " ".join(["see relay", *(word for word in words if word != "relay"), "--help"])
    is_about_words = isinstance(error, click.NoSuchOption | click.MissingParameter | click.BadParameter)
    if is_about_words and (hint := _masked(_hint(sys.argv[1:]))):
        return f"{problem}; {hint}"
    near = getattr(error, "possibilities", None)
    return f"{problem}; did you mean {near[0]}? {see.capitalize()}" if near else f"{problem}; {see}"


def _log_format(words: Sequence[str]) -> str:
    """Find the format of errors before the command line is parsed: parsing may fail."""
    words_before = [*itertools.takewhile(lambda word: word != "--", words)]
    is_json = "--log-format=json" in words_before or ("--log-format", "json") in itertools.pairwise(words_before)
    return "json" if is_json else "text"


def run() -> int:
    """Run the command with the program's arguments.

    :returns: the exit status: 0 done, 1 a failure at run time, 2 a wrong command line.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # an encoding without arrows gets question marks
    set_format(_log_format(sys.argv[1:]))
    try:
        status = app(standalone_mode=False, prog_name="relay")
        if sys.stdout is not None:
            sys.stdout.flush()
    except click.ClickException as error:
        print_error(_describe(error))
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return 1
    except BrokenPipeError:
        drop_stdout()
        return 1
    except OSError as error:  # a command reports its own errors; this one is of standard output
        drop_stdout()
        print_error(f"standard output: {describe_error(error)}")
        return 1
    return status if isinstance(status, int) else 0
