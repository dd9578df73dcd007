"""``relay keys``: make the keys of an I2P destination, and show its address."""

from __future__ import annotations

from pathlib import Path

import click

from ...daemon.failures import configuration_read
from ..output import failures_reported, print_line, show_help


@click.group(invoke_without_command=True, subcommand_metavar="COMMAND [ARGS]...")
@click.pass_context
def keys(context: click.Context) -> None:
    """Make and show the keys of I2P destinations."""
    if context.invoked_subcommand is None:
        show_help(context)


file_argument = click.argument(
    "file", metavar="FILE", type=click.Path(path_type=Path), help="The file of the private key"
)


@keys.command
@file_argument
def new(file: Path) -> None:
    """Make the keys of a new I2P destination and write them to FILE, owner-only (mode 0600).

    Prints the destination's address, and never overwrites a file. No router is needed; i2pd can use the file as well.
    """
    with failures_reported(debug=False):
        from ...addresses.destinations import PrivateKey
        from ...transports.i2p.key_file import write

        key = PrivateKey.generate()
        write(file, key)
        print_line(f"{key.b32}\nkeys in {file}")


@keys.command
@file_argument
def show(file: Path) -> None:
    """Show the address and the destination of the keys in FILE; never the private key."""
    with failures_reported(debug=False):
        from ...transports.i2p.key_file import read

        with configuration_read():
            key = read(file)
        print_line(f"{key.b32}\n{key.destination}")
