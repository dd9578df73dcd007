"""The effective settings as a file: the defaults are in each tunnel, and secrets are hidden."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import tomli_w

from ..addresses.hops import Command, Route, owner_of_keys
from ..addresses.options import inline_secrets
from ..addresses.redact import is_program, redact
from ..transports.dynamic import Rule
from .checking import Entry
from .models import LIMITS, File, Hop

_SECRETS = ("password", "passphrase")
_HIDDEN = "***"


def as_toml(
    file: File,
    values: Mapping[str, object],
    tunnels: Sequence[tuple[Entry, Mapping[str, Any]]],
) -> str:
    """Return a file with the same meaning, in which secrets are hidden, and so are the words of programs.

    :param file: its keys and its hops, as they are written.
    :param values: the hops by their names, as values.
    :param tunnels: each with its limits, all of them settled; ``None`` is no limit.
    """
    keys = file.model_dump(exclude_none=True, exclude={"defaults", "hops", "tunnels"})
    document: dict[str, Any] = {name: _plain(value) for name, value in keys.items()}
    if file.hops:
        document["hops"] = {name: _hop(hop, values[name]) for name, hop in file.hops.items()}
    document["tunnels"] = {entry.name: _tunnel(entry, limits) for entry, limits in tunnels}
    return tomli_w.dumps(document)


def _hop(hop: str | Hop, value: object) -> Any:
    if isinstance(hop, str):
        return _without_secrets(hop, value)
    table = {name: _plain(each) for name, each in hop.model_dump(exclude_none=True).items()}
    table |= {name: _HIDDEN for name in _SECRETS if name in table}
    return table | {"address": _without_secrets(hop.address, value)}


def _tunnel(entry: Entry, limits: Mapping[str, Any]) -> dict[str, Any]:
    tunnel = entry.tunnel
    # The limits come from the plan, where those that depend on the route, such as over I2P, have their values.
    given = tunnel.model_dump(exclude_none=True, exclude=set(LIMITS))
    table = {name: _plain(value) for name, value in given.items()}
    table["listen"] = _listen(tunnel.listen, entry.listen)
    if tunnel.target is not None and not entry.is_proxy:
        table["target"] = _targets(tunnel.target, entry)
    if "via" in table:
        table["via"] = _ways(table["via"], entry)
    if "listen_via" in table:
        table["listen_via"] = _hops(table["listen_via"], entry.listen_via)
    if "rule" in table:
        table["rule"] = [_rule(text, rule) for text, rule in zip(table["rule"], entry.rules, strict=True)]
    if "password" in table:
        table["password"] = _HIDDEN
    if (owner := owner_of_keys(entry.listen)) is not None:
        kept = tunnel.transient or tunnel.keys or tunnel.session or owner.keys or owner.session
        table |= {} if kept else {"session": "resume-server" if entry.resumes else str(entry.target)}
    left_out = set() if limits["warm"] else {"warm", "warm_for"}  # nothing is warm
    left_out |= set() if limits["drain_spread"] else {"drain_spread"}
    said = {name: value for name, value in limits.items() if name not in left_out}
    return table | {name: "none" if value is None else _plain(value) for name, value in said.items()}


def _targets(text: str | list[str], entry: Entry) -> str | list[str]:
    """Return the targets of a tunnel; each is there once for each route."""
    if isinstance(text, str):
        return _without_secrets(text, entry.target)
    values = [entry.target, *(end for _, end in entry.others)]
    step = len(values) // len(text)
    return [_without_secrets(one, value) for one, value in zip(text, values[::step], strict=True)]


def _ways(words: list[Any], entry: Entry) -> list[Any]:
    """Return the hops of a tunnel, by one route or by several."""
    if not words or isinstance(words[0], str):
        return _hops(words, entry.via)
    routes = [entry.via, *(route for route, _ in entry.others)]
    return [_hops(one, route) for one, route in zip(words, routes, strict=False)]


def _hops(words: list[str], route: Route) -> list[str]:
    return [_without_secrets(word, hop) for word, hop in zip(words, route, strict=True)]


def _plain(value: Any) -> Any:
    return "none" if value == math.inf else value


def _listen(text: str, value: object) -> str:
    """Return an address to listen on, with the host of a bare port."""
    text = _without_secrets(text, value)
    return f"127.0.0.1:{text.removeprefix(':')}" if text.removeprefix(":").isdigit() else text


def _rule(text: str, rule: Rule) -> str:
    pattern, _, route = text.partition("=")
    has_words = any(isinstance(hop, Command) and hop.text in route for hop in rule.route or ())  # not by its name
    return f"{pattern}={_HIDDEN}" if has_words or any(map(inline_secrets, rule.route or ())) else text


def _without_secrets(text: str, value: object) -> str:
    return redact(text) if inline_secrets(value) or is_program(text) else text
