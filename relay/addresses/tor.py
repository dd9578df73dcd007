"""The addresses of Tor, apart from the others so that a program without one does not load them."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

from ..errors import AddressError
from .address_parser import AddressParser
from .hops import Password, Proxy, ProxyProtocol
from .options import CONTROL, FILE, PRINTABLE, Kind, option, options_of
from .printable import shown
from .values import LONGEST_UNIX_PATH, TCPAddress, UnixAddress, check_port, is_loopback

Value = TypeVar("Value")

_SOCKS = "127.0.0.1:9050"  # tor(1), SocksPort
CONTROL_PORT = "127.0.0.1:9051"  # the port that pages about tor use
CONTROL_SOCKET = "/run/tor/control"  # Debian's tor
_LONGEST_NAME = 200  # characters of the name of a key


class _Port(AddressParser):
    """A port of tor."""

    schemes = ()

    def read(self) -> TCPAddress:
        """Parse the address."""
        host, port, query = self.place("", self.split()[1])
        if query:
            self.fail("something follows the port", "")
        return TCPAddress(host, port)


def _read_port(text: str) -> TCPAddress:
    try:
        return _Port(text, "port").read()
    except AddressError:
        raise ValueError(f"host:port is allowed, as in {_SOCKS}") from None


def _parse_port(text: str) -> str:
    return str(_read_port(text))


def _check_port(name: str, value: str) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{name}: expected a str, got {type(value).__name__}")
    try:
        _read_port(value)
    except ValueError as error:
        raise ValueError(f"{name}: {shown(value)} is no port of a host; {error}") from None


def _check_control(name: str, value: str) -> None:
    if isinstance(value, str) and value.startswith("/"):
        if CONTROL.search(value) or len(os.fsencode(value)) > LONGEST_UNIX_PATH:
            raise ValueError(f"{name}: it is too long or holds a control character; give the path of a Unix socket")
        return
    _check_port(name, value)
    if not is_loopback(_read_port(value).host):
        raise ValueError(f"{name}: {shown(value)} is on another machine; tor connects to relay, so it must be here")


def _parse_control(text: str) -> str:
    if text.startswith("/"):
        return text
    try:
        return _parse_port(text)
    except ValueError:
        raise ValueError(f"host:port and /path are allowed, as in {CONTROL_PORT} and {CONTROL_SOCKET}") from None


def _check_virtual(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: expected an int, got {type(value).__name__}")
    check_port(value, 1)


def _parse_virtual(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and 1 <= int(text) <= 65535):
        raise ValueError("a number from 1 to 65535 is allowed")
    return int(text)


_CONTROL = Kind(str, "str", "HOST:PORT", _check_control, _parse_control)
_VIRTUAL = Kind(int, "int", "PORT", _check_virtual, _parse_virtual)
_PORT = Kind(str, "str", "HOST:PORT", _check_port, _parse_port)


@dataclass(frozen=True, slots=True)
class TorProxy(Proxy):
    """``tor:`` or ``tor:?socks=host:port``: a tor, which resolves names and leads to onion services.

    :param socks: its SOCKS port, ``host:port``.
    :raises TypeError: if it is not text.
    :raises ValueError: if it is no such address.
    """

    is_tor: ClassVar[bool] = True

    protocol: ProxyProtocol = field(default="socks5", init=False)
    host: str = field(default="", init=False)
    port: int = field(default=0, init=False)
    # relay logs in by itself, and tor takes every login.
    user: None = field(default=None, init=False)
    password: None = field(default=None, init=False, repr=False)
    password_file: None = field(default=None, init=False)
    password_env: None = field(default=None, init=False)
    socks: str = field(
        default=_SOCKS,
        metadata=option(
            _PORT,
            "SOCKS port of tor",
            "Each tunnel has a login of its own there, so that tor gives it circuits of its own.",
        ),
    )

    def __post_init__(self) -> None:
        _check_port("socks", self.socks)
        place = _read_port(self.socks)
        for name, value in (("socks", str(place)), ("host", place.host), ("port", place.port)):
            object.__setattr__(self, name, value)

    def __str__(self) -> str:
        return f"tor:?socks={self.socks}"


@dataclass(frozen=True, slots=True)
class TorListen(Password):
    """``tor:?keys=…`` to listen at: an onion service (version 3) of the tor on this machine.

    :param port: the port that clients of the service name.
    :raises TypeError: if one has the wrong type; the error names the argument and shows no secret.
    :raises ValueError: if one has a value that is not allowed.

    The other parameters are the options of an address.
    """

    is_tor: ClassVar[bool] = True

    control: str | None = field(
        default=None,
        metadata=option(
            _CONTROL,
            "as LISTEN or --on: control port, or /SOCKET",
            f"Or the path of its control socket; by default {CONTROL_SOCKET}, or {CONTROL_PORT}. Tor connects to "
            "relay, so it must be on this machine.",
        ),
    )
    port: int = field(default=80, metadata=option(_VIRTUAL, "as LISTEN or --on: port of the onion service"))
    session: str = field(
        default="",
        metadata=option(
            PRINTABLE, "as LISTEN or --on: name of the key", "relay stores the key under it. Empty for a new address."
        ),
    )
    keys: str | None = field(
        default=None,
        metadata=option(
            FILE,
            "as LISTEN or --on: file with the private key",
            "relay creates it if it is missing (mode 0600) and locks it while it is in use. It has the form of tor's "
            "``hs_ed25519_secret_key``.",
        ),
    )

    def __post_init__(self) -> None:
        if self.control is not None:
            _check_control("control", self.control)
        check_port(self.port, 1)
        if not self.session.isprintable() or len(self.session) > _LONGEST_NAME:
            raise ValueError(f"session: it is not printable or too long; {_LONGEST_NAME} characters are allowed")
        for name, one in options_of(TorListen).items():
            value = getattr(self, name)
            if value is not None and name not in ("control", "port", "session"):
                one.kind.check(name, value)
        if sum(value is not None for value in (self.password, self.password_file, self.password_env)) > 1:
            raise ValueError("password: it is given twice; one of password, password_file and password_env is enough")

    def __str__(self) -> str:
        return "tor:" if self.control is None else f"tor:?control={self.control}"


def control_of(place: TorListen) -> TCPAddress | UnixAddress:
    """Return the address of the control port: the given one, else the control socket if it exists."""
    text = place.control or (CONTROL_SOCKET if os.path.exists(CONTROL_SOCKET) else CONTROL_PORT)
    return UnixAddress(text) if text.startswith("/") else _read_port(text)


def read_tor_listen(parser: AddressParser, rest: str) -> TorListen:
    """Parse an address to listen on, after ``tor:``.

    :param parser: the parser of the whole address.
    :param rest: the parameters after a question mark, if any.
    :raises AddressError: in one line: what, where, and what is allowed.
    """
    return _read(parser, TorListen, rest, "the keys give the address: tor: or tor:?keys=FILE")


def read_tor_hop(parser: AddressParser, rest: str) -> TorProxy:
    """Parse a hop, after ``tor:``.

    :param parser: the parser of the whole address.
    :param rest: the parameters after a question mark, if any.
    :raises AddressError: in one line: what, where, and what is allowed.
    """
    return _read(parser, TorProxy, rest, "it leads to the target: tor: alone, or tor:?socks=HOST:PORT")


def _read(parser: AddressParser, owner: type[Value], rest: str, allowed: str) -> Value:
    if rest and not rest.startswith("?"):
        parser.fail("tor: names no host", allowed)
    given: dict[str, Any] = parser.options("tor:", rest[1:], options_of(owner))
    try:
        return owner(**given)
    except ValueError as error:
        problem, _, allowed = str(error).partition("; ")
        parser.fail(problem, allowed)
