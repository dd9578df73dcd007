"""The messages that the package can show, collected from its source: errors, and lines of the log."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import relay

PACKAGE = Path(relay.__file__).parent
_LOGGED = {"info", "warning", "error", "exception", "critical"}
_NAMES = {"text", "problem", "why"}  # what a message is often put together from


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
        return re.sub(r"%[sdr]|%\.\df", "…", node.value) if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return (_template(node.left) or "…") + (_template(node.right) or "…")
    if isinstance(node, ast.IfExp):
        return _template(node.body) or _template(node.orelse)
    return ""
