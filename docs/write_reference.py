"""Write everything that is made from the options of addresses and the schema of relay.toml.

``python docs/write_reference.py`` rewrites files in place: the reference in ``docs/configuration.md``, the tables of
parameters in ``docs/ssh.md``, ``docs/i2p.md`` and ``docs/tor.md``, ``docs/reference/public.txt`` and ``messages.md``,
and the modules of keywords. With ``--check`` it writes nothing, lists the files that are out of date, and exits with
status 1 if there are any.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from messages import index
from public_names import public_names

from relay import config
from relay.addresses.duration import PATTERN
from relay.addresses.i2p import I2PListen, I2PRouter
from relay.addresses.options import Option, options_of, written
from relay.addresses.signatures import annotation
from relay.addresses.ssh import SSHServer
from relay.addresses.tor import TorListen, TorProxy
from relay.api.i2p_tunnels import NOT_OF_A_CLIENT, NOT_OF_A_SERVER
from relay.engine.options import TunnelOptions, tunnel_options

ROOT = Path(__file__).parents[1]
_TYPES = {
    "string": "text",
    "boolean": "true or false",
    "integer": "integer",
    "number": "number",
    "array": "list of texts",
    "object": "table",
}
_MARKED = re.compile(r"(<!-- made by docs/write_reference.py -->\n).*?(<!-- end -->)", re.DOTALL)

TOP = """Keys before the first table. An option of the command line with the same name overrides its key. A reload
changes what they set up; if one needs an upgrade or a restart, relay logs that."""

HOPS = """`[hops]` has the address of each hop under its name. A hop with options is a table. The pages about
[SSH](ssh.md#parameters), [I2P](i2p.md#parameters), [Tor](tor.md#parameters), [WebSockets](websockets.md) and
[TLS](tls.md) have more of each key."""
_PAGES = {
    "allow": "[access lists](access.md#access-lists)",
    "sam": "[several routers](i2p.md#several-routers)",
    "policy": "[several targets](chains.md#several-targets-several-routes)",
    "mptcp": "[Multipath TCP](transports.md#multipath-tcp)",
    "accept_proxy": "[the PROXY protocol](proxy-protocol.md)",
    "rule": "[proxies](transports.md#socks-and-http-proxies)",
    "limit": "[limits of clients](rates.md)",
    "source": "[source addresses](access.md#source-addresses)",
}  # with all about a key of a tunnel: the table has the first sentence only
_SENTENCE = re.compile(r"(?<=\.) (?=[A-Z`]|relay )")

KEYWORDS = '''"""The keywords of the options, for type checkers; docs/write_reference.py writes this file."""

from __future__ import annotations

import os
from typing import Literal, TypedDict

from ..access.limit import LimitsLike
from ..access.policy import Admit, Entries
from ..addresses.options import Secret
from ..engine.observer import OnEnd
'''


OF_TUNNELS = '''"""The keywords of tunnels, for type checkers; docs/write_reference.py writes this file."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal, TypedDict

from ..access.limit import LimitsLike
from ..access.policy import Admit, Entries
from .observer import OnEnd
'''


def keywords() -> str:
    """The module with the keywords of the public functions."""
    of_session, by_position = ("sam", "session"), ("nconnect", "timeout")
    parts = (
        ("SSHKeywords", "TypedDict", "Options of SSH servers.", SSHServer, ()),
        ("I2PKeywords", "TypedDict", "Options of I2P routers and sessions.", I2PRouter, of_session),
        ("ServerKeywords", "I2PKeywords", "And of a server.", TunnelOptions, (*NOT_OF_A_SERVER, *by_position)),
        ("ClientKeywords", "I2PKeywords", "And of a client.", TunnelOptions, (*NOT_OF_A_CLIENT, *by_position)),
    )
    return KEYWORDS + "".join(
        _typed(name, base, text, [one for one in options_of(owner).items() if one[0] not in left_out])
        for name, base, text, owner, left_out in parts
    )


def keywords_of_tunnels() -> str:
    """The module with the keywords of :class:`relay.Tunnel` that no other one has by position."""
    options = [one for one in tunnel_options(TunnelOptions).items() if one[0] not in ("nconnect", "timeout")]
    shared = [(name, one) for name, one in options if one.workers != "none"]
    text = "Options that a tunnel may have in another process, too, without nconnect and timeout."
    others = [one for one in options if one not in shared]
    return (
        OF_TUNNELS
        + _typed("SharedKeywords", "TypedDict", text, shared)
        + _typed("TunnelKeywords", "SharedKeywords", "All options, without nconnect and timeout.", others)
    )


def _typed(name: str, base: str, text: str, options: Sequence[tuple[str, Option]]) -> str:
    keys = "".join(f"    {key}: {annotation(option)}\n" for key, option in options)
    return f'\n\nclass {name}({base}, total=False):\n    """{text}"""\n\n{keys}'


def parameters(*owners: type) -> str:
    """The table of the parameters of an address."""
    rows = ["| parameter | meaning | default |", "| --- | --- | --- |"]
    for owner in owners:
        rows += [_row(name, option) for name, option in options_of(owner).items() if not option.is_secret]
    return "\n".join(rows)


def _row(name: str, option: Option) -> str:
    default = option.usual or ("" if option.default in (None, "", ()) else written(option.default))
    shown = f"`{name}={option.placeholder}`".replace("|", "`, `" + f"{name}=")
    return f"| {shown} | {_sentences(option)} | {default and f'`{default}`'} |"


def _sentences(option: Option) -> str:
    text = f"{option.help[0].upper()}{option.help[1:]}. {option.details}".rstrip()
    return text.replace("``", "`")


def configuration() -> str:
    """The reference of relay.toml, from its schema."""
    schema = config.schema()
    tables = schema["$defs"]
    defaults = set(tables["Defaults"]["properties"])
    own = {name: key for name, key in tables["Tunnel"]["properties"].items() if name not in defaults}
    top = {name: key for name, key in schema["properties"].items() if name not in ("defaults", "hops", "tunnels")}
    return "\n\n".join(
        [
            "### The top of the file",
            TOP,
            _keys(top, ()),
            "### `[defaults]`",
            f"{tables['Defaults']['description']} All keys are optional.",
            _keys(tables["Defaults"]["properties"], ()),
            "### `[hops]` and `[hops.NAME]`",
            HOPS,
            _keys_of_hops(tables["Hop"]["properties"], tables["Hop"]["required"]),
            "### `[tunnels.NAME]`",
            f"{tables['Tunnel']['description']} The keys of `[defaults]` are allowed here as well.",
            _keys(own, tables["Tunnel"]["required"]),
        ]
    )


def _keys(keys: Mapping[str, Any], required: Sequence[str]) -> str:
    rows = ["| key | type | meaning | default |", "| --- | --- | --- | --- |"]
    for name, key in keys.items():
        text, default = _described(key)
        if name in _PAGES:
            text = f"{_SENTENCE.split(text)[0]} See {_PAGES[name]}."
        rows.append(f"| `{name}` | {_type(key)} | {text} | {'required' if name in required else default} |")
    return "\n".join(rows)


def _keys_of_hops(keys: Mapping[str, Any], required: Sequence[str]) -> str:
    """The keys with their kinds of hops, in a sentence each: the pages of these kinds have the rest."""
    rows = ["| key | hops | type | meaning | default |", "| --- | --- | --- | --- | --- |"]
    for name, key in keys.items():
        text, default = _described(key)
        kinds, _, meaning = text.removeprefix("For ").rpartition(" hops: ")
        first, *others = _SENTENCE.split(meaning)
        shown = " ".join([f"{first[0].upper()}{first[1:]}", *(one for one in others if "mode 0600" in one)])
        kinds = kinds.replace(" and ", ", ") or "all"
        rows.append(f"| `{name}` | {kinds} | {_type(key)} | {shown} | {'required' if name in required else default} |")
    return "\n".join(rows)


def _described(key: Mapping[str, Any]) -> tuple[str, str]:
    """The meaning of a key, and its default."""
    text, _, default = " ".join(key["description"].split()).partition(" Default: ")
    return text, _code(default.removesuffix("."))


def _code(default: str) -> str:
    return f"`{default}`" if default and not set(" `") & set(default) else default


def _type(key: Mapping[str, Any]) -> str:
    """The type of a key in words."""
    if "enum" in key:
        return " or ".join(f'`"{one}"`' for one in key["enum"])
    if key.get("type") == "array" and key["items"].get("type") == "object":
        return "list of tables"
    kinds = [key] if "type" in key else key.get("anyOf") or key["oneOf"]
    return " or ".join(dict.fromkeys(map(_kind, kinds))).replace("number or duration", "duration")


def _kind(kind: Mapping[str, Any]) -> str:
    if "const" in kind:
        return f'`"{kind["const"]}"`'
    if kind.get("pattern") == f"^{PATTERN}$":
        return "duration"
    is_nested = kind["type"] == "array" and kind["items"].get("type") == "array"
    return "list of lists" if is_nested else _TYPES[kind["type"]]


def files() -> dict[Path, str]:
    """The files with what they should hold."""
    return {
        ROOT / "relay/api/keywords.py": keywords(),
        ROOT / "relay/engine/keywords.py": keywords_of_tunnels(),
        ROOT / "docs/ssh.md": _page("ssh.md", parameters(SSHServer)),
        ROOT / "docs/configuration.md": _page("configuration.md", configuration()),
        ROOT / "docs/reference/public.txt": public_names(),
        ROOT / "docs/reference/messages.md": index(),
        ROOT / "docs/i2p.md": _page("i2p.md", parameters(I2PRouter, I2PListen)),
        ROOT / "docs/tor.md": _page("tor.md", parameters(TorProxy, TorListen)),
    }


def _page(name: str, text: str) -> str:
    return _MARKED.sub(lambda found: f"{found[1]}\n{text}\n\n{found[2]}", (ROOT / "docs" / name).read_text())


def main(words: list[str]) -> int:
    """Write or compare the files; the exit status."""
    stale = [path for path, text in files().items() if not path.exists() or path.read_text() != text]
    for path in stale:
        sys.stdout.write(f"{path.relative_to(ROOT)}\n")
        if "--check" not in words:
            path.write_text(files()[path])
    return int(bool(stale) and "--check" in words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
