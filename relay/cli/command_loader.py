"""The commands by name; each one's module is imported when that command is used, so that each starts fast."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import typer
from typer.main import get_command

from .help_format import PlainCommand

__all__ = ["COMMANDS", "command"]

# Each is the module of its name, with a function of the same name and perhaps EXAMPLES, or with an ``app``.
COMMANDS = ("forward", "expose", "socks", "up", "check", "pipe", "demo", "keys", "help")


def command(name: str) -> Any:
    """One of the commands, as Click has it."""
    module = import_module(f".commands.{name}", __package__)
    app = getattr(module, "app", None)
    if app is None:
        app = typer.Typer(add_completion=False, rich_markup_mode=None)
        app.command(cls=PlainCommand, epilog=getattr(module, "EXAMPLES", None))(getattr(module, name))
    made = get_command(app)
    made.name = name
    return made
