"""The commands of ``relay``, one module each, imported when the command is used."""

from __future__ import annotations

from importlib import import_module

import click

__all__ = ["COMMANDS", "command"]

# Each is the module of its name, with a command of the same name. The help of relay shows these lines, so that it
# imports none of the modules.
COMMANDS = {
    "forward": "Listen at one address and relay every connection to another.",
    "expose": "Publish a local service on an SSH server or on I2P.",
    "socks": "Run a SOCKS or HTTP proxy.",
    "up": "Open all the tunnels of a file.",
    "run": "Open tunnels for as long as a program runs.",
    "ctl": "Show and control a running relay.",
    "service": "Write a systemd unit for the tunnels of a file.",
    "check": "Check a file, or a command line, and connect to nothing.",
    "doctor": "Test a route hop by hop, and name the step that fails.",
    "pipe": "Connect standard input and output to a target.",
    "resume-server": "Serve streams that outlive a lost connection.",
    "demo": "Relay a web server over SSH and I2P, and compare every byte.",
    "keys": "Make and show the keys of I2P destinations.",
    "help": "Show the help of relay, of a command, or of a topic.",
}


def command(name: str) -> click.Command:
    """Import one of the commands.

    :param name: one of :data:`COMMANDS`.
    """
    module = name.replace("-", "_")
    found = getattr(import_module(f".{module}", __package__), module)
    assert isinstance(found, click.Command)
    return found
