"""The tables of ``relay.toml``: their keys and the type of each."""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PlainSerializer,
    PlainValidator,
    Tag,
    WithJsonSchema,
    create_model,
)

from ..access.limit import Limit, check_limits
from ..access.senders import Senders
from ..addresses.duration import PATTERN, parse_duration
from ..addresses.hops import Proxy
from ..addresses.https import HTTPSProxy
from ..addresses.i2p import I2PRouter
from ..addresses.options import Kind, Option, options_of
from ..addresses.printable import shown
from ..addresses.size import PATTERN as SIZE_PATTERN
from ..addresses.size import parse_size
from ..addresses.ssh import SSHServer
from ..addresses.tor import TorProxy
from ..addresses.websocket import WSSProxy
from ..engine.command_options import CommandOptions
from ..engine.options import (
    COUNT,
    ENTRIES,
    FINITE,
    FINITE_OR_ZERO,
    HEADER,
    NETWORKS,
    TIME,
    TIME_OR_ZERO,
    WARM,
    tunnel_options,
)
from ..engine.options import LIMITS as LIMITS_KIND
from ..streams.checks import MOST_WORKERS, check_count, check_time, check_warm, check_workers
from .lines import Path

_OPTIONS = {name: option for name, option in tunnel_options(CommandOptions).items() if option.key}
LIMITS = tuple(name for name, option in _OPTIONS.items() if option.kind.plain in (int, float))
"""The options of tunnels that are numbers, and so always have a value."""
LISTS = tuple(name for name, option in _OPTIONS.items() if option.kind is ENTRIES)
OTHERS = tuple(name for name in _OPTIONS if name not in (*LIMITS, *LISTS))
"""Those that are neither numbers nor access lists."""


def _checked(expected: str, check: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return a validator that calls a function, which raises if a value is not allowed."""

    def validate(value: Any) -> Any:
        try:
            return check(value)
        # Pydantic takes a TypeError of a validator for a bug in it and raises it; a ValueError becomes a problem with a
        # line.
        except TypeError:
            raise ValueError(f"expected {expected}") from None
        except ValueError as error:
            raise ValueError(str(error).partition(": ")[2].replace("use None", "use 'none'")) from None

    return validate


def _time(value: Any, *, zero: bool) -> float:
    """Seconds; infinity for no limit."""
    seconds = check_time("time", _in_seconds(value), zero=zero)
    return math.inf if seconds is None else seconds


def _in_seconds(value: Any) -> Any:
    """The seconds of a text such as ``10m``; any other value as it is."""
    if not isinstance(value, str):
        return value
    try:
        return parse_duration(value)
    except ValueError as error:
        raise ValueError(f"time: {error}") from None


def _number(value: Any) -> float:
    """Seconds, or infinity, with its sign, for a number that is too large for a float."""
    value = _in_seconds(value)
    # true is 1 for Python, and would be a second.
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _session_option(value: Any) -> Any:
    if not isinstance(value, (str, int)):
        raise TypeError
    return value


def _address(value: Any) -> Any:
    """A port may be written as a number, as on a command line."""
    # In Python, true is a number.
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _in_schema(least: dict[str, Any], *words: str) -> WithJsonSchema:
    text = {"type": "string", "pattern": f"^{PATTERN}$"}
    return WithJsonSchema({"anyOf": [{"type": "number", **least}, text, *({"const": word} for word in words)]})


def _memory(value: Any) -> str:
    """The size of the memory of resumable streams, as text."""
    if not isinstance(value, str):
        raise TypeError
    try:
        parse_size(value, 1 << 20)
    except ValueError as error:
        raise ValueError(f"resume_memory: {error}") from None
    return value


def _probe(value: Any) -> str:
    """The name of a probe, or a path of HTTP after ``http://``."""
    if not isinstance(value, str):
        raise TypeError
    if value not in ("none", "connect", "banner") and not re.fullmatch(r"http://[!-~]*", value):
        raise ValueError(f"probe: expected {_PROBES}, got '{shown(value)}'")
    return value


def _interval(value: Any) -> float:
    """Seconds between two probes."""
    seconds = _number(value)
    if not 1 <= seconds < math.inf:
        raise ValueError(f"time: must be at least 1 second, got {value}")
    return seconds


def _warm(value: Any) -> int:
    """A number of warm streams."""
    check_warm(value, 1.0)
    return int(value)


def _limits(value: Any) -> tuple[Limit, ...]:
    """Limits of clients."""
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise TypeError
    for number, one in enumerate(value, start=1):
        try:
            check_limits([one])
        except (TypeError, ValueError) as error:
            text = str(error)
            if len(value) > 1:  # their lines are not known
                text = f"limit: table {number}: {text.removeprefix('limit: ')}"
            raise ValueError(text) from None
    return check_limits(value)


def _finite_seconds(value: Any) -> float:
    """Seconds without infinity."""
    seconds = _number(value)
    if not 0 <= seconds < math.inf:
        raise ValueError(f"time: must be at least 0 and have a limit, got {value}; use 0 for none")
    return seconds


def _warm_for(value: Any) -> float:
    """Seconds for which one is kept."""
    seconds = _in_seconds(value)
    check_warm(0, seconds)
    return float(seconds)


_LIMIT_SCHEMA: dict[str, Any] = {
    **{key: {"type": "string"} for key in ("per", "rate", "quota", "name")},
    "concurrent": {"type": "integer", "minimum": 1},
    **{key: {"type": ["string", "number"]} for key in ("bandwidth", "ban")},
    "action": {"enum": ["reset", "close", "tarpit"]},
}
_PROBES = "connect, banner, http://PATH or none"
_PROBE_SCHEMA = {"type": "string", "anyOf": [{"enum": ["none", "connect", "banner"]}, {"pattern": "^http://"}]}
_SIZE = "a size such as '64MiB'"
_FINITE = "a number of seconds, or a time such as '10m'"
_SECONDS = f"{_FINITE} or 'none'"
Seconds = Annotated[
    float,
    PlainValidator(_checked(_SECONDS, lambda value: _time(value, zero=False))),
    _in_schema({"exclusiveMinimum": 0}, "none"),
]
SecondsOrZero = Annotated[
    float,
    PlainValidator(_checked(_SECONDS, lambda value: _time(value, zero=True))),
    _in_schema({"minimum": 0}, "none"),
]
Count = Annotated[
    int,
    PlainValidator(_checked("a whole number", check_count)),
    WithJsonSchema({"type": "integer", "anyOf": [{"minimum": 1}, {"const": -1}]}),
]
Warm = Annotated[
    int,
    PlainValidator(_checked("a whole number", _warm)),
    WithJsonSchema({"type": "integer", "minimum": 0, "maximum": 1024}),
]
WarmFor = Annotated[
    float,
    PlainValidator(_checked(_FINITE, _warm_for)),
    _in_schema({"exclusiveMinimum": 0}),
]
Memory = Annotated[
    str,
    PlainValidator(_checked(_SIZE, _memory)),
    WithJsonSchema({"type": "string", "pattern": f"^{SIZE_PATTERN}$"}),
]
FiniteSeconds = Annotated[
    float,
    PlainValidator(_checked(_FINITE, _finite_seconds)),
    _in_schema({"minimum": 0}),
]
AcceptProxy = Annotated[
    list[str],
    PlainValidator(_checked("a list of networks", lambda value: list(Senders(value).entries))),
    WithJsonSchema({"type": "array", "items": {"type": "string"}, "minItems": 1}),
]
ClientLimits = Annotated[
    tuple[Limit, ...],
    PlainValidator(_checked("a list of tables", _limits)),
    PlainSerializer(lambda limits: [limit.as_table() for limit in limits]),
    WithJsonSchema(
        {"type": "array", "items": {"type": "object", "properties": _LIMIT_SCHEMA, "additionalProperties": False}}
    ),
]
Workers = Annotated[
    int,
    PlainValidator(_checked("a whole number or 'auto'", check_workers)),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 1, "maximum": MOST_WORKERS}, {"const": "auto"}]}),
]
SessionOption = Annotated[
    str | int | bool,
    PlainValidator(_checked("text, a whole number, true or false", _session_option)),
    WithJsonSchema({"type": ["string", "integer", "boolean"]}),
]
Targets = Annotated[
    Annotated[str, Tag("text")] | Annotated[list[str], Field(min_length=1), Tag("list")],
    # Without the tags a wrong value would be reported twice, once for each type that it might have had.
    Discriminator(lambda value: "list" if isinstance(value, list) else "text"),
]
Routes = Annotated[
    Annotated[list[str], Tag("hops")] | Annotated[list[list[str]], Tag("routes")],
    Discriminator(
        lambda value: "routes" if isinstance(value, list) and value and isinstance(value[0], list) else "hops"
    ),
]
Address = Annotated[str, BeforeValidator(_address, json_schema_input_type=str | int)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True)


# Pydantic looks for the source of a class in all modules; a class that code has made has none.
_WRITTEN_BY_CODE = {"use_attribute_docstrings": False}

_TYPES: Mapping[Kind, Any] = {
    COUNT: Count,
    TIME: Seconds,
    TIME_OR_ZERO: SecondsOrZero,
    FINITE: WarmFor,
    FINITE_OR_ZERO: FiniteSeconds,
    WARM: Warm,
    LIMITS_KIND: ClientLimits,
    NETWORKS: AcceptProxy,
    HEADER: Literal["v1", "v2"],
    ENTRIES: list[str],
}


def _with_options(base: type[_Table], name: str, *, is_default: bool) -> Any:
    """Return a table that has options of tunnels as keys, too, after its own.

    :param is_default: whether they are those that ``[defaults]`` has.
    """
    keys: dict[str, Any] = {
        key: (_type_of(option) | None, Field(default=None, description=option.key))
        for key, option in _OPTIONS.items()
        if option.is_default is is_default
    }
    return create_model(name, __base__=base, __doc__=base.__doc__, __cls_kwargs__=_WRITTEN_BY_CODE, **keys)


def _type_of(option: Option) -> Any:
    """Return the type of a key; an option of a kind of its own is a text that this allows."""
    text = Annotated[
        str,
        PlainValidator(_checked("text", functools.partial(option.kind.check, "text"))),
        WithJsonSchema({"type": "string"}),
    ]
    return _TYPES.get(option.kind, text)


if TYPE_CHECKING:

    class _OfDefaults(_Table):
        """Options of tunnels, which are asked for by name."""

        def __getattr__(self, name: str) -> Any: ...

else:
    _OfDefaults = _with_options(_Table, "_OfDefaults", is_default=True)


class Defaults(_OfDefaults, use_attribute_docstrings=True):
    """Values for all tunnels; a tunnel can override them."""

    carrier_sharing: Literal["shared", "per-worker"] | None = None
    """Whether a tunnel whose streams share a connection over SSH or I2P stays in one process (`shared`), or each worker
    makes a connection of its own (`per-worker`). Default: shared."""
    sam: Targets | None = None
    """SAM bridge of the I2P router, for addresses of I2P without one. A list has those of several routers: a session is
    at the first one that answers, and moves to the next one when it is lost. Default: 127.0.0.1:7656."""
    required: bool | None = None
    """Whether relay up ends with status 1 if the tunnel cannot start, and is not ready without it. Default: false."""
    on_reload: Literal["keep", "drain", "cut"] | None = None
    """Open connections when a reload reroutes, moves or removes their tunnel: they go on with `keep`, are reset
    after the time of `drain` with `drain`, and at once with `cut`. Default: keep."""
    probe: Annotated[str, PlainValidator(_checked(_PROBES, _probe)), WithJsonSchema(_PROBE_SCHEMA)] | None = None
    """How relay tests the route to the target for `/readyz`: `connect`, `banner` (wait for a byte), `http://PATH`
    (GET, wait for a status below 500) or `none`. Each probe is a connection at the target. With several targets, one
    gets no clients after three failed probes in a row, or the first one while nothing has succeeded there, or if it
    refuses one. Not for proxies. Default: none."""
    probe_interval: (
        Annotated[
            float,
            PlainValidator(_checked(_FINITE, _interval)),
            _in_schema({"minimum": 1}),
        ]
        | None
    ) = None
    """Seconds between two probes, and for one at most. Default: 30."""


INHERITED = tuple(Defaults.model_fields)
"""The keys that a tunnel has from the defaults."""


class _Tunnel(Defaults):
    """One tunnel, from where it listens to its target."""

    listen: Address
    """Address to listen on: `8080`, `:0`, `HOST:PORT`, `unix:///PATH`, `systemd:NAME`, `tls://HOST:PORT?cert=FILE`,
    `ssh://HOST?listen=HOST:PORT`, `i2p:` or `tor:`; for a proxy `socks5://HOST:PORT`, `http://HOST:PORT`,
    `https://HOST:PORT?cert=FILE`, `sni://HOST:PORT` or `redirect://HOST:PORT`; for WebSockets
    `wss://HOST:PORT/PATH?cert=FILE` or `ws://HOST:PORT/PATH`."""
    workers: Workers | None = None
    """Processes that relay it, as for the file. Default: that of the file."""
    listen_via: list[str] | None = None
    """Hops to an `ssh://` or `i2p:` address of listen, nearest first: names of `[hops]`, or addresses."""
    target: Targets | None = None
    """Address to connect to: `HOST:PORT`, `unix:///PATH`, `tls://HOST:PORT?ca=FILE`, `wss://HOST/PATH`,
    `i2p://NAME.i2p`, `exec:COMMAND` or `port:PROGRAM {port}`. A list has several targets: a client gets one by
    `policy`, and the next one if that fails. A proxy has none; with `"anywhere"`, a listener that is no proxy by its
    address is a SOCKS proxy too."""
    via: Routes | None = None
    """Hops to the target, nearest first: names of `[hops]`, or addresses. A list of such lists has several routes."""
    policy: Literal["first", "spread", "fastest"] | None = None
    """For several targets or routes: the order of those that are up. `first` is that of the list, `spread` begins with
    the one with the fewest connections, `fastest` with the one whose connects take the least time. Default: first."""
    mptcp: bool | None = None
    """Whether relay listens and connects to its targets by Multipath TCP (RFC 8684): to peers that have it. What is
    after a hop stays plain TCP. Linux only; not for proxies. Default: false."""
    rule: list[str] | None = None
    """For a proxy: `PATTERN=ROUTE`, the first match wins. `ROUTE` is `direct`, `refuse`, or hops between commas, the
    last of which may be a target, `tcp://HOST:PORT` or `unix:///PATH`, instead of what the client asks for."""
    user: str | None = None
    """For a proxy: the only user that is allowed, with a password."""
    password: str | None = None
    """For a proxy: password of the user. Allowed only in a file that is owner-only (mode 0600)."""
    password_file: str | None = None
    """For a proxy: file with the password. It must be owner-only (mode 0600)."""
    password_env: str | None = None
    """For a proxy: environment variable with the password."""
    keys: str | None = None
    """For `listen = "i2p:"` or `"tor:"`: file with the private key."""
    session: str | None = None
    """For `listen = "i2p:"` or `"tor:"`: name under which the key is stored. Default: the text of target."""
    transient: bool | None = None
    """For `listen = "i2p:"` or `"tor:"`: whether the address is new and not stored. Default: false."""


if TYPE_CHECKING:
    Tunnel = _Tunnel
else:
    Tunnel = _with_options(_Tunnel, "Tunnel", is_default=False)


class _Hop(_Table):
    """A hop with its options, which may also be in the address."""

    address: str
    """`ssh://[USER@]HOST[:PORT]`, `i2p:`, `socks5://[USER@]HOST:PORT`, `http://[USER@]HOST:PORT`,
    `https://[USER@]HOST[:PORT]`, `wss://[USER@]HOST[:PORT]/PATH`, `tor:`, `exec:COMMAND %h %p` or
    `port:PROGRAM {port}`."""


_SCHEMES: dict[type, str] = {
    SSHServer: "ssh",
    I2PRouter: "i2p",
    Proxy: "socks5 and http",
    HTTPSProxy: "https",
    TorProxy: "tor",
    WSSProxy: "wss",
}
_SESSION = {"inbound": "such as quantity", "outbound": "such as quantity", "i2cp": "such as leaseSetEncType"}


def _hop_keys() -> dict[str, Any]:
    """Return the keys of a hop: the options of every kind, and the tables of further options of an I2P session."""
    owners: dict[str, list[type]] = {}
    for owner in _SCHEMES:
        for name in options_of(owner):
            owners.setdefault(name, []).append(owner)
    keys = {name: _hop_key(options_of(found[0])[name], found) for name, found in owners.items()}
    for name, example in _SESSION.items():
        description = f"For i2p hops: further {name} options of the session, {example}."
        keys[name] = dict[str, SessionOption] | None, Field(default=None, description=description)
    return keys


def _hop_key(option: Option, owners: Sequence[type]) -> tuple[Any, Any]:
    plain = option.kind.plain
    kind = Literal[plain] if isinstance(plain, tuple) else Seconds if plain is float else plain
    kind = Targets if option.kind.is_repeatable else kind
    description = f"For {', '.join(_SCHEMES[owner] for owner in owners)} hops: {option.help}."
    if option.details and len(owners) == 1:
        description += f" {option.details.replace('``', '`')}"
    if option.is_secret:
        description += " Allowed only in a file that is owner-only (mode 0600)."
    default = option.usual or option.default
    if default not in (None, ""):
        shown = default if option.kind.plain is str or option.usual else json.dumps(default).removesuffix(".0")
        description += f" Default: {shown}."
    return kind | None, Field(default=None, description=description)


if TYPE_CHECKING:
    Hop = _Hop
else:
    # Made from the options of the addresses, so that a new option is a key of the file without another line; a type
    # checker cannot see such a class.
    Hop = create_model("Hop", __base__=_Hop, __doc__=_Hop.__doc__, __cls_kwargs__=_WRITTEN_BY_CODE, **_hop_keys())


def _kind(value: Any) -> str:
    return "table" if isinstance(value, (dict, Hop)) else "text"


class File(_Table):
    """A file of tunnels, for relay up and relay check."""

    defaults: Defaults = Defaults()
    """Values for all tunnels; a tunnel can override them."""
    hops: dict[str, Annotated[Annotated[str, Tag("text")] | Annotated[Hop, Tag("table")], Discriminator(_kind)]] = {}
    """Hops by name, for via, listen_via and rule: an address, or a table."""
    tunnels: dict[str, Tunnel] = {}
    """Tunnels by name."""
    shutdown_delay: FiniteSeconds | None = None
    """Seconds for which relay goes on accepting clients after a signal to end. `/readyz` fails meanwhile, so that a
    balancer sends new clients elsewhere. Default: 0."""
    log_file: str | None = None
    """File to which relay appends a line of JSON for each connection. It is created with mode 0600. Default: none."""
    log_interval: Seconds | None = None
    """Seconds between two such lines of an open connection. Default: 600."""
    state: str | None = None
    """File in which relay keeps the bans and quotas of `limit` over a restart. It is created with mode 0600.
    Default: none."""
    control: str | None = None
    """Path of the control socket, for relay ctl, or `"none"`. Default: in the runtime directory of the user."""
    status: str | None = None
    """Address of the status server: `PORT`, `IP:PORT` or `unix:///PATH`. Default: none."""
    status_public: bool | None = None
    """Whether other machines may reach the status server; it then needs status_token_file. Default: false."""
    status_token_file: str | None = None
    """Owner-only file (mode 0600) with the token that clients of the status server send."""
    workers: Workers | None = None
    """Processes that relay the tunnels: a number, or `"auto"` for one on each processor. Default: 1, which is relay
    itself."""
    resume_memory: Memory | None = None
    """Memory of all streams with `resume`, at most, in each process. Default: 256MiB."""
    sandbox: Literal["auto", "on", "off"] | None = None
    """Whether relay gives up access to other files and ports than those of the file (Landlock): with `auto` where that
    is possible, with `on` it does not run without. Default: off."""


def keys_at(path: Path) -> Iterable[str]:
    """Return the known keys of the table at a path."""
    tables: dict[str, type[_Table]] = {"defaults": Defaults, "hops": Hop, "tunnels": Tunnel}
    return (tables[str(path[0])] if path else File).model_fields


def hop_options(hop: Hop) -> dict[str, Any]:
    """Return the options of a hop beside its address: values by name."""
    given: dict[str, Any] = hop.model_dump(exclude={"address"}, exclude_none=True)
    for name in _SESSION:
        given |= {f"{name}.{further}": value for further, value in given.pop(name, {}).items()}
    # TOML has no null: 'none' is infinity in here, and no limit is None in the addresses.
    return {name: None if value == math.inf else value for name, value in given.items()}


def schema() -> dict[str, Any]:
    """Return the JSON schema of a file, for editors. TOML has no null, so that it has none either."""
    made: dict[str, Any] = _without_nulls(File.model_json_schema())
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **made, "title": "relay.toml"}


def _without_nulls(node: Any) -> Any:
    if isinstance(node, list):
        return [_without_nulls(each) for each in node if each != {"type": "null"}]
    if not isinstance(node, dict):
        return node
    found = {name: _without_nulls(value) for name, value in node.items() if name != "default"}
    if isinstance(found.get("title"), str):
        del found["title"]
    if len(found.get("anyOf", ())) == 1:
        found |= found.pop("anyOf")[0]
    return found
