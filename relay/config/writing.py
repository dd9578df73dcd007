"""What holds in the end, as a file: the defaults in every tunnel, and no secrets."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tomli_w

from ..addresses.i2p import I2PListen
from ..addresses.options import inline_secrets
from ..addresses.parse import parse_hop, parse_listen, parse_target
from ..addresses.redact import redact
from ..transports.dynamic import parse_rule
from .checking import Entry
from .models import Defaults, Hop

__all__ = ["as_toml"]

_SECRETS = ("password", "passphrase")
_HIDDEN = "***"


def as_toml(hops: Mapping[str, str | Hop], tunnels: Sequence[tuple[Entry, Mapping[str, Any]]]) -> str:
    """A file that says the same, but for secrets, which are hidden in it.

    :param hops: the hops by their names.
    :param tunnels: each with its limits, all of them settled; ``None`` is no limit.
    """
    document: dict[str, Any] = {"hops": {name: _hop(hop) for name, hop in hops.items()}} if hops else {}
    document["tunnels"] = {entry.name: _tunnel(entry, limits) for entry, limits in tunnels}
    return tomli_w.dumps(document)


def _hop(hop: str | Hop) -> Any:
    if isinstance(hop, str):
        return _without_secrets(hop, parse_hop)
    table = {name: _plain(value) for name, value in hop.model_dump(exclude_none=True).items()}
    table |= {name: _HIDDEN for name in _SECRETS if name in table}
    return table | {"address": _without_secrets(hop.address, parse_hop)}


def _tunnel(entry: Entry, limits: Mapping[str, Any]) -> dict[str, Any]:
    tunnel = entry.tunnel
    said = tunnel.model_dump(exclude_none=True, exclude=set(Defaults.model_fields) - {"sam", "required"})
    table = {name: _plain(value) for name, value in said.items()}
    table["listen"] = _listen(tunnel.listen)
    if tunnel.target is not None and not entry.is_proxy:
        table["target"] = _without_secrets(tunnel.target, parse_target)
    for name in ("via", "listen_via"):
        if name in table:
            table[name] = [_without_secrets(word, parse_hop) if ":" in word else word for word in table[name]]
    if "rule" in table:
        table["rule"] = [_rule(rule, read) for rule, read in zip(table["rule"], entry.rules, strict=True)]
    if "password" in table:
        table["password"] = _HIDDEN
    if isinstance(place := parse_listen(tunnel.listen), I2PListen):
        kept = tunnel.transient or tunnel.keys or tunnel.session or place.router.keys or place.router.session
        table |= {} if kept else {"session": str(parse_target(tunnel.target or ""))}
    return table | {name: "none" if value is None else _plain(value) for name, value in limits.items()}


def _plain(value: Any) -> Any:
    return "none" if value == math.inf else value


def _listen(text: str) -> str:
    """An address to listen at, with the loopback written out."""
    text = _without_secrets(text, parse_listen)
    return f"127.0.0.1:{text.removeprefix(':')}" if text.removeprefix(":").isdigit() else text


def _rule(text: str, read: str) -> str:
    hops = parse_rule(read).route or ()
    return f"{text.partition('=')[0]}={_HIDDEN}" if any(map(inline_secrets, hops)) else text


def _without_secrets(text: str, parse: Callable[[str], Any]) -> str:
    value = parse(text)
    inner = getattr(value, "server", getattr(value, "router", value))
    return redact(text) if inline_secrets(inner) else text
