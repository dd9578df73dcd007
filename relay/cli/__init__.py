"""The command ``relay``: the only place that prints, exits or configures logging."""

from __future__ import annotations

import io
import sys

import typer

from ..address import masked
from . import demo, expose, forward, keys
from .output import complain, drop_stdout

__all__ = ["main"]

app = typer.Typer(
    help="Relay streams: TCP, Unix sockets, TLS, SSH and I2P, from one listening address to another.",
    epilog="relay COMMAND --help tells more of each.",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
app.command(epilog=forward.EXAMPLES)(forward.forward)
app.command(epilog=expose.EXAMPLES)(expose.expose)
app.command()(demo.demo)
app.add_typer(keys.app, name="keys", help="Make and show the keys of I2P destinations.")


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
    for word in sorted(sys.argv[1:], key=len, reverse=True):  # one may be a part of another
        message = message.replace(word, masked(word))
    return message


def main() -> int:
    """Run the command with the program's arguments.

    :returns: the exit status: 0 done, 1 a failure at run time, 2 a wrong command line.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # where an arrow cannot be written, a question mark can
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
