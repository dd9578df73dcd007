"""List every name that docs/stability.md promises; docs/write_reference.py writes the list."""

from __future__ import annotations

import enum
import inspect
import json
import logging
import re
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import click

from relay import config
from relay.addresses.parse import parse_hop, parse_listen, parse_target
from relay.cli.commands import COMMANDS, command
from relay.cli.commands.help import TOPICS
from relay.cli.commands.run import FIELDS, variable
from relay.cli.doctor.report import Check, Report, Section, Status
from relay.cli.output import JSONFormatter
from relay.daemon.access_log import LoggedTunnel, entry
from relay.engine.records import REASONS, ConnectionRecord
from relay.errors import AddressError
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
ADDRESSES: dict[str, tuple[Callable[[str], object], str]] = {
    "hop": (
        parse_hop,
        "ssh://h i2p: socks5://h:1 http://h:1 https://h tor: ws://h/p wss://h/p exec:p port:p{port} resume:tls://h:1",
    ),
    "target": (parse_target, "tcp://h:1 unix:///p tls://h:1 ws://h/p wss://h/p i2p://h.i2p exec:p port:p{port}"),
    "listener": (
        parse_listen,
        (
            "tcp://h:1 unix:///p tls://h:1 ws://h:1/p wss://h:1/p ssh://h i2p: tor: socks5://h:1 http://h:1 "
            "https://h:1 sni://h:1 redirect://h:1 systemd:n resume:unix:///p"
        ),
    ),
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
        "exit statuses": ("0 done", "1 a failure at run time", "2 something has to be changed first"),
        "topics of relay help": TOPICS,
        "relay run": _run(),
        "relay doctor --json": _doctor(),
        "addresses": _parameters(),
        "the control API": _control(),
        "metrics": (f"{one.name} {one.kind} {' '.join(one.labels)}".rstrip() for one in FAMILIES),
        "the access log": _log(),
        "the log with --log-format json": _lines(),
        "reasons": REASONS,
    }
    return HEAD + "".join(f"\n[{title}]\n" + "".join(f"{line}\n" for line in lines) for title, lines in parts.items())


def _python() -> Iterator[str]:
    yield "relay.__version__"
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
    places: dict[str, Any] = {"": schema, "defaults.": "Defaults", "hops.NAME.": "Hop", "tunnels.NAME.": "Tunnel"}
    for place, owner in places.items():
        table = schema["$defs"][owner] if isinstance(owner, str) else owner
        yield from (f"{place}{name}" for name in table["properties"])


def _parameters() -> Iterator[str]:
    """Each scheme by its place, and the parameters that the error about an unknown one lists there."""
    for place, (parse, addresses) in ADDRESSES.items():
        for address in addresses.split():
            name, _, rest = address.partition(":")
            scheme = f"{name}://" if rest.startswith("//") else f"{name}:"
            yield f"{place} {scheme}"
            if scheme.startswith("resume:"):  # the parameters are those of the address in it
                continue
            try:
                parse(f"{address}?no-parameter=1")
            except AddressError as error:
                found = re.search("takes (.*=)$", str(error))
                yield from (f"{place} {scheme} {one}" for one in re.findall("([a-z_]+)=", found[1] if found else ""))


def _control() -> Iterator[str]:
    described = document()
    for path, operations in described["paths"].items():
        yield from (f"{method.upper()} {path}" for method in operations if method != "parameters")
    for name, schema in described["components"]["schemas"].items():
        yield from (f"{name}.{key}" for key in schema.get("properties", ()))


def _run() -> Iterator[str]:
    """What a program of ``relay run`` finds in its environment, and in its words."""
    for field in ("host", "port", "path"):
        yield variable(f"name-{field}").replace("NAME", "{NAME}")
    yield from (f"{{NAME.{field}}}" for field in FIELDS)


def _doctor() -> Iterator[str]:
    check = Check("", "", Status.OK, "")
    section = Section("", "", [check])
    report = Report([section]).as_json()
    yield from report
    yield from (f"sections.{name}" for name in report["sections"][0])
    yield from (f"sections.checks.{name}" for name in report["sections"][0]["checks"][0])


def _lines() -> Iterator[str]:
    """The fields of a line of the program's log in JSON."""
    record = logging.LogRecord("relay", logging.INFO, "", 0, "", None, (ValueError, ValueError(), None))
    connection = ConnectionRecord(("127.0.0.1", 1), "", 0.0, 0, 0, "", "")
    vars(record).update(connection=connection, stats=connection)
    yield from json.loads(JSONFormatter().format(record))


def _log() -> Iterator[str]:
    record = ConnectionRecord(("127.0.0.1", 1), "", 0.0, 0, 0, "", "")
    yield from entry(LoggedTunnel("", "", (), tuple), record)
