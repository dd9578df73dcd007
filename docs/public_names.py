"""List every name that docs/stability.md promises; docs/write_reference.py writes the list."""

from __future__ import annotations

import enum
import inspect
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import click

from relay import config
from relay.addresses.i2p import I2PListen, I2PRouter
from relay.addresses.options import options_of
from relay.addresses.ssh import SSHServer
from relay.cli.commands import COMMANDS, command
from relay.daemon.access_log import LoggedTunnel, entry
from relay.engine.records import REASONS, ConnectionRecord
from relay.operations.metric_families import FAMILIES
from relay.operations.openapi import document

DROP_INS = ("relay.compat.rforward", "relay.compat.sshtunnel", "relay.compat.zmqssh")
MODULES = ("relay", "relay.aio", "relay.types", "relay.testing", *DROP_INS)

# Of classes that other parts of relay use, too, a program may use these. All attributes of the others are public.
_OF_TUNNELS = "address close connections join kill metrics pause recent resume stats"
_OF_WORKERS = f"{_OF_TUNNELS} loads pids problem state workers"
_OF_FORWARDS = "cancel_port_forward notify pause resume stop_thread"
OPEN = {
    "CarrierState": "",
    "ChildTunnel": f"{_OF_WORKERS} pid",
    "Dialer": "close close_when_idle last_error open_socket ready state subscribe",
    "PoolTunnel": _OF_WORKERS,
    "RevFwTunnel": _OF_FORWARDS,
    "Stream": "close failure fileno half_close identity on_close reset server_name socket target",
    "Tunnel": f"{_OF_TUNNELS} name",
    "TunnelListener": "accept close",
    "X2GoRevFwTunnel": _OF_FORWARDS,
}
HEAD = """# Every public name; see docs/stability.md.
# Written by docs/write_reference.py, so that a review sees each change of it.
"""


def public_names() -> str:
    """The list, one name a line."""
    parts = {
        "Python": _python(),
        "the command line": _command_line(),
        "relay.toml": _keys(),
        "parameters of addresses": _parameters(),
        "the control API": _control(),
        "metrics": (f"{one.name} {one.kind} {' '.join(one.labels)}".rstrip() for one in FAMILIES),
        "the access log": _log(),
        "reasons": REASONS,
    }
    return HEAD + "".join(f"\n[{title}]\n" + "".join(f"{line}\n" for line in lines) for title, lines in parts.items())


def _python() -> Iterator[str]:
    for name in MODULES:
        module = import_module(name)
        for each in module.__all__:
            value = getattr(module, each)
            is_made_by_relay = name == "relay.types" and inspect.isclass(value)
            yield f"{name}.{each}{'' if is_made_by_relay else _signature(value)}"
            if inspect.isclass(value) and value.__module__.startswith("relay"):
                yield from (f"{name}.{each}.{line}" for line in _members(value))


def _members(owner: type) -> Iterator[str]:
    """The attributes that relay itself has declared, and that a program may use."""
    declared = {name for each in owner.__mro__ if each.__module__.startswith("relay") for name in vars(each)}
    fields = getattr(owner, "_fields", ()) or getattr(owner, "__dataclass_fields__", ())
    for name in sorted(OPEN[owner.__name__].split() if owner.__name__ in OPEN else declared | {*fields}):
        if not name.startswith("_"):
            value = inspect.getattr_static(owner, name, None)
            yield name + (_signature(value) if inspect.isroutine(value) else "")
    if issubclass(owner, enum.Enum):
        yield from (f"{one.name} = {one.value!r}" for one in owner)


def _signature(value: Any) -> str:
    """The parameters, without their types: those have their own tests."""
    if isinstance(value, classmethod | staticmethod):
        value = value.__func__
    if inspect.isclass(value) and (not value.__module__.startswith("relay") or issubclass(value, enum.Enum)):
        return ""
    try:
        parameters = inspect.signature(value).parameters.values()
    except (TypeError, ValueError):
        return ""
    kept = [one.replace(annotation=one.empty) for one in parameters if one.name not in ("self", "cls")]
    return str(inspect.Signature(kept))


def _command_line() -> Iterator[str]:
    yield from _options("relay", import_module("relay.cli.app").app)
    for name in COMMANDS:
        yield from _options(f"relay {name}", command(name))


def _options(path: str, found: click.Command) -> Iterator[str]:
    arguments = [one.make_metavar(click.Context(found)) for one in found.params if isinstance(one, click.Argument)]
    yield " ".join([path, *arguments])
    for one in found.params:
        if isinstance(one, click.Option) and not one.hidden:
            yield f"{path} {' '.join([*one.opts, *one.secondary_opts])}"
    for name, nested in getattr(found, "commands", {}).items():
        yield from _options(f"{path} {name}", nested)


def _keys() -> Iterator[str]:
    schema = config.schema()
    places = {"": schema, "defaults.": "Defaults", "hops.NAME.": "Hop", "tunnels.NAME.": "Tunnel"}
    for place, owner in places.items():
        table = schema["$defs"][owner] if isinstance(owner, str) else owner
        yield from (f"{place}{name}" for name in table["properties"])


def _parameters() -> Iterator[str]:
    for kind, owner in {"ssh": SSHServer, "i2p": I2PRouter, "i2p listener": I2PListen}.items():
        yield from (f"{kind} {name}" for name in options_of(owner))


def _control() -> Iterator[str]:
    described = document()
    for path, operations in described["paths"].items():
        yield from (f"{method.upper()} {path}" for method in operations if method != "parameters")
    for name, schema in described["components"]["schemas"].items():
        yield from (f"{name}.{key}" for key in schema.get("properties", ()))


def _log() -> Iterator[str]:
    record = ConnectionRecord(("127.0.0.1", 1), "", 0.0, 0, 0, "", "")
    yield from entry(LoggedTunnel("", "", (), tuple), record)
