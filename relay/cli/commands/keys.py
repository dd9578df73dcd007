"""``relay keys``: make the keys of an I2P destination, and show its address."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..help_format import PlainCommand, show_help
from ..output import configuration_read, failures_reported, say

__all__ = ["app"]

app = typer.Typer(help="Make and show the keys of I2P destinations.", add_completion=False, rich_markup_mode=None)


@app.callback(invoke_without_command=True)
def _group(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        show_help(context)


File = Annotated[Path, typer.Argument(metavar="FILE", help="The file of the private key")]


@app.command(cls=PlainCommand)
def new(file: File) -> None:
    """Make the keys of a new I2P destination and write them to FILE, owner-only (mode 0600).

    Prints the destination's address, and never overwrites a file. No router is needed; i2pd can use the file as well.
    """
    with failures_reported(debug=False):
        from ...addresses.destinations import PrivateKey
        from ...transports.i2p.key_file import write

        key = PrivateKey.generate()
        write(file, key)
        say(f"{key.b32}\nkeys in {file}")


@app.command(cls=PlainCommand)
def show(file: File) -> None:
    """Show the address and the destination of the keys in FILE; never the private key."""
    with failures_reported(debug=False):
        from ...transports.i2p.key_file import read

        with configuration_read():
            key = read(file)
        say(f"{key.b32}\n{key.destination}")
