"""The options of a tunnel: one field each, from which all follows that names them.

These are the keywords of :class:`relay.Tunnel`, :class:`relay.aio.Tunnel`, :func:`relay.spawn` and the tunnels of I2P,
their types and docstrings; the options of the commands; the keys of ``relay.toml``, their schema and their reference;
what a reload does with them, and the message to a worker. Those that are files are written by
``docs/write_reference.py``. What a new option *does* is all that has to be written elsewhere.
"""

# ruff: noqa: RUF009  (the function makes a field)

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

from ..addresses.options import OPTION, Kind, Option, options_of
from ..addresses.printable import printable
from ..streams.checks import WARM_FOR, check_count, check_time, check_warm

if TYPE_CHECKING:  # a command starts faster without them
    from ..access.limit import LimitsLike
    from ..access.policy import Admit, ClientPolicy, Entries
    from .observer import OnEnd


_LONGEST_LABEL = 64  # characters


@dataclass(frozen=True, slots=True, eq=False, repr=False)  # as those of addresses
class TunnelOption(Option):
    """The declaration of an option of tunnels; its ``help`` and ``details`` are those of the keyword.

    :param command: its help as an option of commands; empty if it is none.
    :param topic: the group of options in which commands have it.
    :param key: its meaning as a key of ``relay.toml``, if that has other words than ``command``; empty if it is none.
    :param is_default: whether ``[defaults]`` has the key, too.
    :param effect: what a reload does that changes it: ``tuned`` (it changes in place), ``rerouted`` (it holds for new
        connections only) or ``moved`` (the tunnel is replaced).
    :param workers: how several worker processes have it: ``each`` as it is, ``part`` (divided among them), ``one``
        (all clients may have to be counted in one process) or ``none`` (it cannot be sent to another process).
    """

    command: str = ""
    topic: str = "limits"
    key: str = ""
    is_default: bool = True
    effect: Literal["tuned", "rerouted", "moved"] = "tuned"
    workers: Literal["each", "part", "one", "none"] = "each"


def tunnel_options(owner: type[TunnelOptions]) -> Mapping[str, TunnelOption]:
    """Return the options by name, in the order of their fields."""
    return cast("Mapping[str, TunnelOption]", options_of(owner))


def declare(kind: Kind, default: Any, help: str, details: str = "", **others: Any) -> Any:  # noqa: A002
    """Return the field of an option; see :class:`TunnelOption`."""
    others.setdefault("key", others.get("command", ""))  # a key may mean the same in the same words
    return dataclasses.field(
        default=default, metadata={OPTION: TunnelOption(kind, help, details, default=default, **others)}
    )


def again(name: str, default: Any) -> Any:
    """Return the field of an option that has another default or a narrower type in a subclass."""
    return dataclasses.field(default=default, metadata=TunnelOptions.__dataclass_fields__[name].metadata)


def _finite(name: str, value: Any) -> Any:
    check_warm(0, value)
    return value


def _warm(name: str, value: Any) -> Any:
    check_warm(value, WARM_FOR)
    return value


def _source(name: str, value: Any) -> Any:
    from ..streams.source import parse_source

    parse_source(value)
    return value


def _limits(name: str, value: Any) -> Any:
    from ..access.limit import check_limits

    return check_limits(value)


def _networks(name: str, value: Any) -> Any:
    from ..access.senders import parse_senders

    parse_senders(value)
    return value


def _header(name: str, value: Any) -> Any:
    if value not in HEADER.plain:
        raise ValueError(f"{name}: expected v1 or v2, got {value!r}")
    return value


def _name(name: str, value: Any) -> Any:
    if not isinstance(value, str):
        raise TypeError(f"{name}: expected text, got {type(value).__name__}")
    return value


def _label(name: str, value: Any) -> Any:
    if not isinstance(value, str):
        raise TypeError(f"{name}: expected text, got {type(value).__name__}")
    if len(value) > _LONGEST_LABEL or not value.isprintable():
        raise ValueError(
            f"{name}: '{printable(value, _LONGEST_LABEL)}' is too long or has a control character; "
            f"at most {_LONGEST_LABEL} printable characters are allowed"
        )
    return value


def _callable(name: str, value: Any) -> Any:
    from .observer import check_callback

    check_callback(value, name)
    return value


COUNT = Kind(int, "int", "N", lambda name, value: check_count(value))
TIME = Kind(float, "float | None", "SECONDS", check_time)
TIME_OR_ZERO = Kind(float, "float | None", "SECONDS", functools.partial(check_time, zero=True))
FINITE = Kind(float, "float", "SECONDS", _finite)
FINITE_OR_ZERO = Kind(float, "float", "SECONDS", TIME_OR_ZERO.check)
WARM = Kind(int, "int", "N", _warm)
_SOURCE = Kind(str, "str", "ADDRESS", _source)
LIMITS = Kind(list[dict[str, Any]], "LimitsLike", "KEY=VALUE,…", _limits)
NETWORKS = Kind(list[str], "Collection[str]", "NETWORK,...", _networks)
HEADER = Kind(("v1", "v2"), 'Literal["v1", "v2"]', "v1|v2", _header)
ENTRIES = Kind(list[str], "Entries", "RULE", lambda name, value: value)  # they are read with their files
_NAME = Kind(str, "str", "NAME", _name)
_ON_END = Kind(object, "OnEnd", "", _callable)
LABEL = Kind(str, "str", "TEXT", _label)
"""A text that the tunnel does nothing with: operators see it wherever they see the tunnel."""
_ADMIT = Kind(object, "Admit", "", lambda name, value: value)  # checked with the lists


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class TunnelOptions:
    """Plain data: the options of a tunnel, each a field; ``None`` stands for none, or for no limit.

    The defaults are those of :class:`relay.Tunnel`. :func:`made_of` checks what a caller gives.
    """

    nconnect: int = declare(
        COUNT,
        -1,
        "the most connections at one time, connecting ones included; −1 for no limit",
        "At the limit clients wait in the listen backlog. Half-open ones do not count: a proxy's clients that have not "
        "named their target.",
        command="Maximum number of open connections; -1 for no limit. Further clients wait.",
        key="Maximum number of open connections; further clients wait. -1 is no limit. Default: -1.",
    )
    timeout: float | None = declare(
        TIME,
        60.0,
        "seconds that a connection may last from its acceptance, also while bytes move; ``None`` for no limit",
        command="Maximum lifetime of a connection [no limit].",
        key="Maximum lifetime of a connection in seconds. Default: none.",
    )
    connect_timeout: float | None = declare(
        TIME,
        30.0,
        "seconds to get the outgoing stream, every handshake included; ``None`` for no limit",
        command="Maximum time to connect to the target, hops included [30; over I2P or Tor 90].",
        key="Maximum time in seconds to connect to the target, hops included. Default: 30, over I2P or Tor 90.",
    )
    idle_timeout: float | None = declare(
        TIME,
        None,
        "seconds without a byte moved in either direction; ``None`` for no limit",
        command="Close a connection after this long without traffic [no limit].",
        key="Seconds without traffic after which relay closes a connection. Default: none.",
    )
    linger: float | None = declare(
        TIME_OR_ZERO,
        60.0,
        "seconds without a byte moved in the other direction after one has ended; 0 is allowed; ``None`` for no limit",
        command="Idle timeout after a half-close [60; over I2P or Tor 5].",
        key="The same after a half-close. Default: 60, over I2P or Tor 5.",
    )
    first_byte_timeout: float | None = declare(
        TIME,
        None,
        "seconds in which the target must send its first byte after the client's first one was passed to it, or end "
        "its side; ``None`` for no limit",
        "An upload that gets its answer at the end takes longer.",
        command="Maximum time from the client's first byte to the target's first one [no limit].",
        key="Seconds in which the target must send its first byte after the client's first one. Default: none.",
    )
    warm: int = declare(
        WARM,
        0,
        "the streams to keep open for the next clients, at most 1024",
        "A client gets the oldest one, without the wait for a connect, and the next one is opened at once. If none is "
        "ready, the client waits as without ``warm``. What a server sends first is kept. ``nconnect`` does not count "
        "these streams. Not for a target that counts connections or ends idle ones.",
        command="Streams to TARGET to keep open for the next clients, which then do not wait for a connect.",
        topic="streams",
        key="Streams to the target that relay keeps open for the next clients, which do not wait for a connect then. "
        "Not for proxies. Default: 0.",
        workers="part",
    )
    warm_for: float = declare(
        FINITE,
        WARM_FOR,
        "seconds after which such a stream is replaced if no client has come",
        command="Replace such a stream after this long without a client.",
        topic="streams",
        key="Seconds after which relay replaces such a stream if no client has come. Default: 30.",
    )
    source: str | None = declare(
        _SOURCE,
        None,
        'the address of this machine from which relay connects to the target, or ``"peer"`` for an address of the '
        "loopback that is made of the client's identity, so that the target's own log and limits tell clients apart",
        "``None`` for the address that the system chooses. Not for a target behind hops, nor for one that is not "
        "reached over TCP.",
        command="Connect to TARGET from this address, or with peer from one of the loopback that stands for the "
        "client.",
        topic="streams",
        key='Address of this machine from which relay connects to the target, or `"peer"` for an address of the '
        "loopback that stands for the client. Only for a target over TCP without hops. Default: the system chooses.",
        is_default=False,
    )
    limit: LimitsLike | None = declare(
        LIMITS,
        None,
        "limits of the clients: how often they may connect, how many at a time, how fast and how much they may send "
        "and receive",
        "Each is a :class:`relay.Limit`, or a mapping with its keywords.",
        command="Limit clients, as in per=ip/24,rate=20/10s,ban=10m; also concurrent, bandwidth, quota, action. "
        "Repeatable.",
        topic="clients",
        key="Limits of the clients: tables with `rate`, `concurrent`, `bandwidth` or `quota`, and `per`, `ban`, "
        "`action` and `name`. A list of a tunnel replaces that of the defaults; `[]` is none.",
        workers="one",
    )
    accept_proxy: Collection[str] | None = declare(
        NETWORKS,
        None,
        "the balancers that may connect: addresses, networks such as ``10.0.0.0/8``, and ``unix`` for the clients of a "
        "Unix socket",
        "Each of their connections begins with a header of the PROXY protocol, whose address is the client's; every "
        "other one is denied. ``None`` for clients without a header.",
        command="Accept connections from these balancers only, each with a header of the PROXY protocol, which names "
        "the client. unix stands for the programs at a Unix socket.",
        topic="balancers",
        key="Balancers that may connect: addresses, networks, and `unix` for the programs at a Unix socket. Each "
        "connection begins with a header of the PROXY protocol, which names the client. Not for `ssh://` and `i2p:`. "
        "Default: clients connect without a header.",
        is_default=False,
    )
    send_proxy: Literal["v1", "v2"] | None = declare(
        HEADER,
        None,
        "the version of the header of the PROXY protocol that relay sends to the target, before the first byte of each "
        "client; over TLS before the handshake; ``None`` for none",
        command="Tell TARGET who the client is, by a header of the PROXY protocol before its first byte.",
        topic="introduction",
        key="Version of the PROXY protocol's header with which relay tells the target who the client is, before its "
        "first byte. Not for proxies. Default: none.",
        is_default=False,
    )
    name: str | None = declare(_NAME, None, "in the log, in ``repr`` and of the thread")
    tag: str | None = declare(
        LABEL,
        None,
        "a text of at most 64 characters, such as who owns the tunnel; records of its connections have it",
        command="A text of at most 64 characters that logs, lists and metrics show.",
    )
    allow: Entries = declare(
        ENTRIES,
        None,
        'only these clients may connect: rules such as ``"cidr:10.0.0.0/8"``, ``"user:www-data"`` or ``"dns:*.svc"``, '
        "and files of rules, which are read again when they change; ``None`` for all",
        "relay decides before it calls ``make_send``.",
        command="Allow only these clients: cidr:10.0.0.0/8, user:NAME, dns:*.svc, uri:, cn:, spki:sha256:HASH, "
        "i2p:NAME.b32.i2p, login:NAME, ssh:SERVER, or a file of such rules. Repeatable.",
        topic="lists",
        key='Only these clients may connect: rules such as `"cidr:10.0.0.0/8"` or `"user:www-data"`, and files of '
        "rules. See [access lists](access.md#access-lists). A list of a tunnel replaces that of the defaults.",
    )
    deny: Entries = declare(
        ENTRIES,
        None,
        "these clients may not connect, in the same form; it wins over ``allow``",
        command="Reject these clients, in the same form; wins over --allow. Repeatable.",
        topic="lists",
        key="These clients may not connect: rules, and files of rules. It wins over `allow`. `[]` is none.",
    )
    admit: Admit | None = declare(
        _ADMIT,
        None,
        "called with the :class:`relay.Identity` of each client that the lists allow, or with ``None`` where nothing "
        "is known of it; returns whether it may connect",
        "It is called on another thread, for several clients at a time. An error, or no answer within five seconds, "
        "means no. A :class:`relay.Limit`, or a list of them, means yes, if these limits let the client in: they apply "
        "to it after those of ``limit``. Clients for whom equal limits were returned count together, as their ``per`` "
        "says.",
        workers="none",
    )
    on_end: OnEnd | None = declare(
        _ON_END,
        None,
        "called with the :class:`~relay.engine.records.ConnectionRecord` of each connection that has ended, in the "
        "order in which they ended, on one thread of its own",
        "It may block; 10,000 records wait for it, and further ones are dropped with a warning in the log. What it "
        "raises is logged. :meth:`close`, with ``drain`` or without, and :meth:`join` return after it has been called "
        "for every connection. They wait at most five seconds for a slow one; then a warning is logged, and the thread "
        "goes on with the rest.",
        workers="none",
    )

    def policy(self) -> ClientPolicy:
        """Return what is demanded of clients; reads the files of the access lists.

        :raises TypeError: if an option has the wrong type.
        :raises ValueError: if one has a wrong value, or a file is invalid.
        """
        from ..access.options import check_policy

        return check_policy(
            allow=self.allow, deny=self.deny, admit=self.admit, limit=self.limit, accept_proxy=self.accept_proxy
        )

    @property
    def labels(self) -> dict[str, Any]:
        """The labels of the tunnel by the name of their option; those that are not given are left out."""
        return {name: value for name in LABELS if (value := getattr(self, name))}

    def as_message(self) -> dict[str, Any]:
        """Return the keywords for a tunnel in another process: plain data, without what cannot be sent there."""
        return {name: _plain(getattr(self, name)) for name in _SENT}


def _plain(value: Any) -> Any:
    """Return a value as JSON has it."""
    if value is None or isinstance(value, (int, float, str)):
        return value
    if hasattr(value, "as_table"):
        return value.as_table()
    return list(map(_plain, value)) if isinstance(value, (list, tuple, set, frozenset)) else value


def made_of(function: str, /, *left_out: str, **given: Any) -> TunnelOptions:
    """Return the options that the keywords of a function say, each as a tunnel takes it: infinite times are ``None``.

    :param function: its name, for the error.
    :param left_out: the options that it does not take.
    :raises TypeError: if a keyword is none of them, or a value has the wrong type.
    :raises ValueError: if a value is not allowed.
    """
    known = tunnel_options(TunnelOptions)
    checked: dict[str, Any] = {}
    for name, value in given.items():
        option = known.get(name)
        if option is None or name in left_out:
            raise TypeError(f"{function}() got an unexpected keyword argument {name!r}")
        checked[name] = value if value is None and option.default is None else option.kind.check(name, value)
    return TunnelOptions(**checked)


def part_of(message: Mapping[str, Any], workers: int) -> dict[str, Any]:
    """Return the keywords for one of several workers: of what is divided it gets its part, rounded up."""
    parts = {name for name, one in tunnel_options(TunnelOptions).items() if one.workers == "part"}
    return {name: -(-value // workers) if name in parts else value for name, value in message.items()}


_SENT = tuple(name for name, one in tunnel_options(TunnelOptions).items() if one.workers != "none")

LABELS = tuple(name for name, one in tunnel_options(TunnelOptions).items() if one.kind is LABEL)
"""The options of tunnels that are labels."""
