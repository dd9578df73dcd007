"""WebSockets as values, apart from the others so that a program without one does not load them."""

from __future__ import annotations

import dataclasses
import ipaddress
import re
from dataclasses import dataclass, field
from typing import Any

from .address_parser import AddressParser, make
from .hops import Proxy, ProxyListen
from .options import FILE, Kind, changed_options, check_options, option, options_of, written
from .values import (
    CA,
    CERT,
    CLIENT_CA,
    CLIENT_CERT,
    KEY,
    KEY_GROUPS,
    SERVERNAME,
    ListenAtPort,
    TargetOverTCP,
    TCPAddress,
    TLSTarget,
    WithCertificate,
    check_host_port,
    is_i2p,
    quoted,
)

_PATH = re.compile(r"/(?:[A-Za-z0-9._~!$&'()*+,;=:@/-]|%[0-9A-Fa-f]{2})*")
_LONGEST_PATH = 2048  # characters
_TOKEN = r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,255}"  # noqa: S105  (RFC 9110, section 5.6.2)
_ORIGIN = r"\*|null|[a-z][a-z0-9+.-]*://[A-Za-z0-9.:\[\]_-]{1,255}"  # RFC 6454, section 6.2
_HOST = r"[a-z0-9.:\[\]_-]{1,255}"
_MOST = 64  # entries of a list


def _kind(placeholder: str, pattern: str, allowed: str, check_one: Any = None) -> Kind:
    """Return the type of an option whose value is a list of words with commas between them."""

    def parse(text: str) -> str:
        words = text.split(",")
        if len(words) > _MOST or not all(re.fullmatch(pattern, word) for word in words):
            raise ValueError(allowed)
        try:
            for word in words if check_one is not None else ():
                check_one(word)
        except ValueError:
            raise ValueError(allowed) from None
        return text

    def check(name: str, value: str) -> None:
        if not isinstance(value, str):
            raise TypeError(f"{name}: expected a str, got {type(value).__name__}")
        try:
            parse(value)
        except ValueError as error:
            raise ValueError(f"{name}: {value!r}: {error}") from None

    return Kind(str, "str", placeholder, check, parse)


_SUBPROTOCOL = _kind("NAME", _TOKEN, "the name of a subprotocol is allowed, such as binary")
_ORIGINS = _kind("ORIGIN,…", _ORIGIN, "origins with commas between them are allowed, such as https://app.example, or *")
_HOSTS = _kind("HOST,…", _HOST, "names in lower case with commas between them are allowed, such as relay.example")
_NETWORKS = _kind(
    "NETWORK,…",
    r"[0-9A-Fa-f.:/]{1,50}",
    "networks with commas between them are allowed, such as 10.0.0.0/8",
    ipaddress.ip_network,
)

HEADER_FILE = option(
    FILE,
    "file with headers of the request",
    "Each line is Name: value. Make it owner-only (mode 0600) if it has a secret.",
)
SUBPROTOCOL = option(_SUBPROTOCOL, "subprotocol to offer, or to answer", "Two relays do not use it.")
ORIGIN = option(
    _ORIGINS,
    "origins of web pages that may connect",
    "Without it relay rejects every page.",
    example="https://app.example",
)
HOSTS = option(_HOSTS, "names that requests must ask for", example="relay.example")
TRUSTED_PROXIES = option(
    _NETWORKS,
    "networks of reverse proxies",
    "From them, X-Forwarded-For says who the client is.",
    example="127.0.0.1,10.0.0.0/8",
)


def _check_place(host: str, port: int, path: str, least: int = 1) -> None:
    check_host_port("websocket" if is_i2p(host) else host, port, least=least)
    if not isinstance(path, str):
        raise TypeError(f"path: expected a str, got {type(path).__name__}")
    if not _PATH.fullmatch(path) or len(path) > _LONGEST_PATH:
        raise ValueError(
            f"path: {path!r} is not the path of a URL; it begins with a slash, and other characters are %XX"
        )


def _text(scheme: str, value: Any) -> str:
    query = "&".join(f"{name}={quoted(written(given))}" for name, given in changed_options(value).items())
    place = f"{scheme}://{TCPAddress(value.host.replace('%', '%25'), value.port)}{value.path}"
    return f"{place}?{query}" if query else place


@dataclass(frozen=True, slots=True)
class WSTarget(TargetOverTCP):
    """``ws://host[:port]/path``: a WebSocket (RFC 6455); without a port it is 80, without a path ``/``.

    :param host: a name, or an IPv4 or IPv6 address (no brackets).
    :param port: from 1 to 65535.
    :param path: as the request has it.
    :raises TypeError: if one has the wrong type.
    :raises ValueError: if one has a value that is not allowed.
    """

    host: str
    port: int
    path: str = "/"
    header_file: str | None = field(default=None, kw_only=True, metadata=HEADER_FILE)
    subprotocol: str | None = field(default=None, kw_only=True, metadata=SUBPROTOCOL)

    def __post_init__(self) -> None:
        _check_place(self.host, self.port, self.path)
        check_options(self)

    def __str__(self) -> str:
        return _text("ws", self)


@dataclass(frozen=True, slots=True)
class WSSTarget(WSTarget):
    """``wss://host[:port]/path``: a WebSocket over TLS, which relay verifies; without a port it is 443.

    :param servername: the name that its certificate must have; ``None`` for ``host``. The files are PEM files.
    """

    servername: str | None = field(default=None, kw_only=True, metadata=SERVERNAME)
    ca: str | None = field(default=None, kw_only=True, metadata=CA)
    cert: str | None = field(default=None, kw_only=True, metadata=CLIENT_CERT)
    key: str | None = field(default=None, kw_only=True, metadata=KEY)

    @property
    def server(self) -> TLSTarget:
        """The address of the server, with the options of TLS."""
        return TLSTarget(self.host, self.port, self.servername, self.ca, self.cert, self.key)

    def __str__(self) -> str:
        return _text("wss", self)


@dataclass(frozen=True, slots=True)
class WSProxy(Proxy):
    """``ws://[user@]host[:port]/path`` as a hop: a SOCKS5 proxy in each WebSocket, such as ``relay socks ws://…``.

    The other parameters and the errors are those of :class:`WSTarget` and of :class:`Proxy`.
    """

    path: str = field(default="/", kw_only=True)
    header_file: str | None = field(default=None, kw_only=True, metadata=HEADER_FILE)
    subprotocol: str | None = field(default=None, kw_only=True, metadata=SUBPROTOCOL)

    def __post_init__(self) -> None:
        Proxy.__post_init__(self)
        _check_place(self.host, self.port, self.path)

    @property
    def websocket(self) -> WSTarget:
        """The address of the WebSockets."""
        return WSTarget(self.host, self.port, self.path, header_file=self.header_file, subprotocol=self.subprotocol)

    def __str__(self) -> str:
        return f"{Proxy.__str__(self)}{self.path}"


@dataclass(frozen=True, slots=True)
class WSSProxy(WSProxy):
    """``wss://[user@]host[:port]/path`` as a hop: the same over TLS, which relay verifies.

    The other parameters and the errors are those of :class:`WSSTarget` and of :class:`Proxy`.
    """

    servername: str | None = field(default=None, kw_only=True, metadata=SERVERNAME)
    ca: str | None = field(default=None, kw_only=True, metadata=CA)
    cert: str | None = field(default=None, kw_only=True, metadata=CLIENT_CERT)
    key: str | None = field(default=None, kw_only=True, metadata=KEY)

    @property
    def websocket(self) -> WSSTarget:
        """The address of the WebSockets."""
        names = ("path", *options_of(WSSTarget))
        return WSSTarget(self.host, self.port, **{name: getattr(self, name) for name in names})


@dataclass(frozen=True, slots=True)
class WSListen(ListenAtPort):
    """``ws://host:port/path`` to listen on, for WebSockets from the loopback or from a reverse proxy.

    :param host: and ``path``: as for :class:`WSTarget`; clients must ask for that path.
    :param port: from 0 to 65535; 0 picks a free one.
    """

    host: str
    port: int
    path: str = "/"
    origin: str | None = field(default=None, kw_only=True, metadata=ORIGIN)
    hosts: str | None = field(default=None, kw_only=True, metadata=HOSTS)
    subprotocol: str | None = field(default=None, kw_only=True, metadata=SUBPROTOCOL)
    trusted_proxies: str | None = field(default=None, kw_only=True, metadata=TRUSTED_PROXIES)

    def __post_init__(self) -> None:
        _check_place(self.host, self.port, self.path, least=0)
        check_options(self)

    def as_proxy(self, login: dict[str, Any]) -> WSProxyListen:
        """Return the address for clients that name their targets.

        :param login: the options of the user who may, of :class:`ProxyListen`.
        """
        kind, protocol = (WSSProxyListen, "wss") if isinstance(self, WSSListen) else (WSProxyListen, "ws")
        own = {one.name: getattr(self, one.name) for one in dataclasses.fields(self)}
        return kind(protocol=protocol, **own, **login)  # type: ignore[arg-type]

    def __str__(self) -> str:
        return _text("ws", self)


@dataclass(frozen=True, slots=True)
class WSSListen(WSListen, WithCertificate):
    """``wss://host:port/path`` to listen on: the same over TLS; ``cert`` may hold the key as well."""

    cert: str = field(kw_only=True, metadata=CERT)
    key: str | None = field(default=None, kw_only=True, metadata=KEY)
    client_ca: str | None = field(default=None, kw_only=True, metadata=CLIENT_CA)
    groups: str | None = field(default=None, kw_only=True, metadata=KEY_GROUPS)

    def __str__(self) -> str:
        return _text("wss", self)


@dataclass(frozen=True, slots=True)
class WSProxyListen(ProxyListen):
    """``ws://host:port/path`` to listen on for clients that name their targets by SOCKS in each WebSocket.

    The parameters are those of :class:`WSListen` and of :class:`ProxyListen`.
    """

    path: str = field(default="/", kw_only=True)
    origin: str | None = field(default=None, kw_only=True, metadata=ORIGIN)
    hosts: str | None = field(default=None, kw_only=True, metadata=HOSTS)
    subprotocol: str | None = field(default=None, kw_only=True, metadata=SUBPROTOCOL)
    trusted_proxies: str | None = field(default=None, kw_only=True, metadata=TRUSTED_PROXIES)

    def __str__(self) -> str:
        return f"{ProxyListen.__str__(self)}{self.path}"


@dataclass(frozen=True, slots=True)
class WSSProxyListen(WSProxyListen, WithCertificate):
    """``wss://host:port/path`` to listen on for the same over TLS."""

    cert: str = field(kw_only=True, metadata=CERT)
    key: str | None = field(default=None, kw_only=True, metadata=KEY)
    client_ca: str | None = field(default=None, kw_only=True, metadata=CLIENT_CA)
    groups: str | None = field(default=None, kw_only=True, metadata=KEY_GROUPS)


def _split(parser: AddressParser, scheme: str, rest: str, usual: bool) -> tuple[str, int, str, str]:
    """Split ``host[:port][/path][?query]``; ``usual`` says whether the port may be left out."""
    place, _, query = rest.partition("?")
    place, slash, path = place.partition("/")
    if usual and (place.endswith("]") or ":" not in place):
        place += ":443" if scheme == "wss" else ":80"
    host, port, _ = parser.place(scheme, place)
    return host, port, slash + path or "/", query


def read_ws_target(parser: AddressParser, scheme: str, rest: str) -> WSTarget:
    """Parse a target, after ``ws://`` or ``wss://``.

    :raises AddressError: in one line: what, where, and what is allowed.
    """
    owner = WSSTarget if scheme == "wss" else WSTarget
    host, port, path, query = _split(parser, scheme, rest, usual=True)
    return make(
        parser, owner, host=host, port=port, path=path, **parser.options(f"{scheme}://", query, options_of(owner))
    )


def read_ws_listen(parser: AddressParser, scheme: str, rest: str) -> WSListen:
    """Parse an address to listen on, after ``ws://`` or ``wss://``.

    :raises AddressError: in one line: what, where, and what is allowed.
    """
    owner = WSSListen if scheme == "wss" else WSListen
    host, port, path, query = _split(parser, scheme, rest, usual=False)
    given = parser.options(f"{scheme}://", query, options_of(owner))
    if owner is WSSListen and "cert" not in given:
        parser.fail("no certificate", "it needs wss://host:port/path?cert=FILE, and key=FILE if it is elsewhere")
    return make(parser, owner, host=host, port=port, path=path, **given)


def read_ws_hop(parser: AddressParser, scheme: str, rest: str) -> WSProxy:
    """Parse a hop, after ``ws://`` or ``wss://``.

    :raises AddressError: in one line: what, where, and what is allowed.
    """
    owner = WSSProxy if scheme == "wss" else WSProxy
    before, mark, query = rest.partition("?")
    user, sign, place = before.rpartition("@")
    user, colon, password = user.partition(":")
    if sign and not user:
        parser.fail("the user is empty", "write it before the @, or leave both out")
    host, port, path, query = _split(parser, scheme, place + mark + query, usual=True)
    given: dict[str, Any] = parser.options(f"{scheme}://", query, options_of(owner))
    if colon:
        if "password" in given or not password:
            parser.fail("a password that is empty or given twice", "give one, or leave the colon out")
        given["password"] = parser.decoded(password)
    return make(
        parser, owner, protocol=scheme, host=host, port=port, path=path, user=parser.decoded(user) or None, **given
    )
