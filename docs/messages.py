"""The messages that the package can show, collected from its source: errors, and lines of the log.

``docs/write_reference.py`` writes :func:`index` to ``docs/reference/messages.md``.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PACKAGE = Path(__file__).parents[1] / "relay"
_LOGGED = {"info", "warning", "error", "exception", "critical"}
_NAMES = {"text", "problem", "why"}  # what a message is often put together from

# Errors that name the value and what it must be, or the part of a protocol that a peer has broken.
_OF_VALUES = {"ValueError", "TypeError", "AddressError", "AttributeError"}
_OF_PROTOCOLS = {"MessageError", "ControlError", "ProxyHeaderError", "UpgradeProtocolError"}
_SHOWN = {"exception": "error, with a traceback", "critical": "error", "text": "part of a line"}

# The beginnings of paths in the package, the longest first among those that begin alike, and the page of each area.
_AREAS = {
    "daemon/change/": ("Reload and upgrade", "reload.md"),
    "daemon/sandbox": ("The sandbox", "security.md#the-sandbox"),
    "daemon/systemd": ("systemd", "signals.md#systemd"),
    "daemon/service": ("systemd", "signals.md#systemd"),
    "cli/service/": ("systemd", "signals.md#systemd"),
    "daemon/": ("relay up and relay ctl", "status.md"),
    "operations/": ("relay up and relay ctl", "status.md"),
    "access/": ("Who may connect", "access.md"),
    "targets/": ("Several targets", "chains.md#several-targets-several-routes"),
    "spawning/": ("Workers and spawned tunnels", "workers.md"),
    "transports/ssh/": ("SSH", "ssh.md"),
    "transports/i2p/": ("I2P", "i2p.md"),
    "api/i2p": ("I2P", "i2p.md"),
    "cli/i2p": ("I2P", "i2p.md"),
    "transports/tls/": ("TLS", "tls.md"),
    "transports/websocket/": ("WebSockets", "websockets.md"),
    "transports/proxies/": ("Proxies", "transports.md#socks-and-http-proxies"),
    "transports/dynamic": ("Proxies", "transports.md#socks-and-http-proxies"),
    "streams/proxy": ("Proxies", "transports.md#socks-and-http-proxies"),
    "compat/": ("Drop-in modules", "compat.md"),
    "cli/": ("The command", "reference/cli.md"),
    "": ("Connections and listeners", "limits.md"),
}

_TOP = """<!-- made by docs/write_reference.py -->

# Messages

Every line that relay can log or print, from its source; `…` stands for a name or a number.
[Troubleshooting](../troubleshooting.md) explains those that people meet most. Not here are errors that a wrong value
raises (exit status 2): they name the value and what it must be.

| kind | what it means |
| --- | --- |
| `info` | a report: you need to do nothing |
| `warning` | relay goes on; what to do, if there is something, follows the semicolon |
| `error` | relay could not do what it was to do; with a traceback: a bug of relay, or an error in an object of yours |
| an exception | the reason why a connection, a tunnel or a command failed |
| part of a line | one of several causes or remedies that other messages are put together from |"""


class Message(NamedTuple):
    """One message; ``…`` stands for each of its values."""

    where: str
    kind: str  # the class of the exception, or the level of the log
    text: str


def messages() -> list[Message]:
    """Every message, without those of the doubles in :mod:`relay.testing`."""
    return _found(PACKAGE)[0]


def strings() -> list[str]:
    """Every string of the package with a space in it: messages are also put together from parts and tables."""
    return _found(PACKAGE)[1]


def index() -> str:
    """Return the page with every message, by the part of relay that it comes from."""
    found: dict[tuple[str, str], dict[str, set[str]]] = {}
    for where, kind, text in messages():
        path = where.partition("/")[2]
        if kind in _OF_VALUES | _OF_PROTOCOLS or len(text.split()) < 3:
            continue
        if kind == "text" and path.startswith(("addresses/", "config/")):
            continue
        area = next(area for begin, area in _AREAS.items() if path.startswith(begin))
        shown = " ".join(text.split()).replace("|", "\\|")
        found.setdefault(area, {}).setdefault(shown, set()).add(_SHOWN.get(kind, kind))
    parts = [_TOP]
    for (title, page), rows in sorted(found.items()):
        link = page.removeprefix("reference/") if page.startswith("reference/") else f"../{page}"
        parts.append(f"## {title}\n\nSee [{page.partition('#')[0]}]({link}).")
        lines = [f"| `{text}` | {', '.join(sorted(kinds))} |" for text, kinds in sorted(rows.items(), key=_order)]
        parts.append("\n".join(["| message | kind |", "| --- | --- |", *lines]))
    return "\n\n".join(parts) + "\n"


def _order(row: tuple[str, object]) -> str:
    return row[0].strip("…: ").lower()


@functools.cache
def _found(package: Path) -> tuple[list[Message], list[str]]:
    said: list[Message] = []
    texts: list[str] = []
    for path in sorted(package.rglob("*.py")):
        name = str(path.relative_to(package.parent))
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant | ast.JoinedStr) and " " in (text := _template(node)):
                texts.append(text)
            for kind, value in _values(node) if not name.startswith("relay/testing/") else ():
                text = _template(value)
                if len(re.findall(r"[A-Za-z]{2,}", text)) > 1:
                    said.append(Message(f"{name}:{value.lineno}", kind, text))
    return said, texts


def _values(node: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    if isinstance(node, ast.Call):
        function = ast.unparse(node.func)
        owner, _, last = function.rpartition(".")
        if (last.endswith("Error") and last[0].isupper()) or (last in _LOGGED and "log" in owner.lower()):
            yield from ((last, value) for value in node.args[:2])
    elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id in _NAMES:
        yield "text", node.value


def _template(node: ast.expr) -> str:
    """A string with ``…`` for each of its values; empty if it is none."""
    if isinstance(node, ast.Constant):
        return re.sub(r"%[sdrg]|%\.\df", "…", node.value) if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(_template(part) if isinstance(part, ast.Constant) else "…" for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return (_template(node.left) or "…") + (_template(node.right) or "…")
    if isinstance(node, ast.IfExp):
        return _template(node.body) or _template(node.orelse)
    return ""
