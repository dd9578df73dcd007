"""The commands of ``relay``, one module each, imported when the command is used."""

from __future__ import annotations

from importlib import import_module

import click

__all__ = ["COMMANDS", "command"]

# Each is the module of its name, with a command of the same name.
COMMANDS = ("forward", "expose", "socks", "up", "check", "pipe", "demo", "keys", "help")


def command(name: str) -> click.Command:
    """Import one of the commands.

    :param name: one of :data:`COMMANDS`.
    """
    found = getattr(import_module(f".{name}", __package__), name)
    assert isinstance(found, click.Command)
    return found
