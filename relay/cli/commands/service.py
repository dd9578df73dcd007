"""``relay service``: a unit of systemd for the tunnels of a file."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ..options import debug
from ..output import failures_reported, print_line, show_help

EXAMPLES = """Examples:

relay service show --user (the unit for ~/.config/relay/relay.toml)

relay service install --user --config tunnels.toml

sudo relay service install --system (the unit for /etc/relay/relay.toml)

sudo relay service uninstall --system
"""


@click.group(invoke_without_command=True, subcommand_metavar="COMMAND [ARGS]...", epilog=EXAMPLES)
@click.pass_context
def service(context: click.Context) -> None:
    """Write a systemd unit for relay up, with a sandbox.

    The unit starts, reloads, watches and restarts relay; its sandbox allows what the tunnels of the file need.
    """
    if context.invoked_subcommand is None:
        show_help(context)


def _with_manager(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that select the service manager."""
    for option in (
        debug,
        click.option("--system", "manager", flag_value="system", help="For the service manager of the machine."),
        click.option("--user", "manager", flag_value="user", help="For your own service manager."),
    ):
        function = option(function)
    return function


_config = click.option(
    "--config",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="The file of the tunnels [~/.config/relay/relay.toml, or /etc/relay/relay.toml with --system].",
)


@service.command
@_with_manager
@_config
@click.option("--force", is_flag=True, help="Overwrite a unit that relay has not written.")
def install(manager: str | None, config: Path | None, force: bool, debug: bool) -> None:
    """Write the unit, and print the two commands that activate it.

    The unit is relay.service in ~/.config/systemd/user, or with --system in /etc/systemd/system. With --system it runs
    as a user that systemd makes, or as the owner of FILE if that is in a home directory or not readable for all users.

    Install it again after a change of FILE that needs other privileges: a file to write, a port below 1024, a program.
    """
    with failures_reported(debug=debug):
        from ..service.writing import path_of, write

        is_users = _is_users(manager)
        text, writes = _text(config, is_users=is_users)
        path = path_of(is_users=is_users)
        write(path, text, force=force)
        for folder in writes if is_users else ():
            os.makedirs(folder, 0o700, exist_ok=True)
        option = " --user" if is_users else ""
        print_line(f"wrote {path}; now run:\nsystemctl{option} daemon-reload\nsystemctl{option} enable --now relay")


@service.command
@_with_manager
@_config
def show(manager: str | None, config: Path | None, debug: bool) -> None:
    """Print the unit that install would write."""
    with failures_reported(debug=debug):
        text, _ = _text(config, is_users=_is_users(manager))
        print_line(text.rstrip())


@service.command
@_with_manager
@click.option("--purge", is_flag=True, help="Also remove the keys of I2P destinations, the bans and the quotas.")
@click.option("--force", is_flag=True, help="Remove a unit that relay has not written.")
def uninstall(manager: str | None, purge: bool, force: bool, debug: bool) -> None:
    """Stop and disable the service, and remove its unit.

    Open connections get their drain. The file of the tunnels stays, and so do keys and state unless you say --purge: a
    new key is another I2P destination.
    """
    with failures_reported(debug=debug):
        from ..service.removing import uninstall as remove
        from ..service.writing import path_of

        is_users = _is_users(manager)
        for line in remove(path_of(is_users=is_users), is_users=is_users, force=force, purge=purge):
            print_line(line)


def _is_users(manager: str | None) -> bool:
    if manager is None:
        raise ValueError("--user or --system: missing; choose one of them")
    return manager == "user"


def _text(config: Path | None, *, is_users: bool) -> tuple[str, tuple[str, ...]]:
    """Return the unit, and the directories in which it writes."""
    from ..service.making import default_config, make_unit, systemd_version
    from ..service.unit import text_of
    from ..service.writing import marked

    path = str(config) if config is not None else default_config(is_users=is_users)
    unit = make_unit(path, is_users=is_users, version=systemd_version())
    return marked(text_of(unit), is_users=is_users), unit.sandbox.writes
