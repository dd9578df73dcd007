"""Parse hops: ``ssh://me@bastion``, ``i2p:?sam=…``, ``exec:nc %h %p`` to values of :mod:`relay.addresses.hops`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

from .address_parser import KNOWN, AddressParser
from .hops import Command, Hop, Proxy, ProxyListen, ProxyProtocol, Route
from .https import HTTPSListen, HTTPSProxy
from .i2p_parser import read_i2p_hop
from .options import Option, options_of
from .redact import redact
from .ssh import SSHServer

Value = TypeVar("Value")

_HTTPS_PORT = 443
_I2P = re.compile(r"i2p:?(//)?(\?.*)?", re.IGNORECASE)


class SSHParser(AddressParser):
    """The parser of addresses with an SSH server."""

    def server(self, user: str | None, place: str, options: dict[str, Any]) -> SSHServer:
        """Return an SSH server from its parts, which it checks itself."""
        if "/" in place or "#" in place:
            self.fail("something follows the host", "parameters begin with a question mark: ssh://host?keyfile=FILE")
        host, colon, port = self.ssh_place(place)
        if not host:
            self.fail("the host is empty", "write it out: ssh://user@host")
        number = self.port(port, 1) if colon else None
        return make(self, SSHServer, host=host, user=user, port=number, **options)

    def ssh_place(self, place: str) -> tuple[str, str, str]:
        """Split ``host`` or ``host:port``, the colon apart."""
        if not place.startswith("["):
            host, colon, port = place.partition(":")
            if ":" in port:
                self.fail("too many colons", "an IPv6 address is written in brackets: [::1]:22")
            return self.ascii(host), colon, port
        host, bracket, port = place[1:].partition("]")
        if not bracket or not host or (port and not port.startswith(":")):
            self.fail("a broken IPv6 address", "an IPv6 address is written [::1] or [::1]:22")
        return self.ipv6(host, encoded=False), port[:1], port[1:]

    def ssh_url(self, rest: str, more: Mapping[str, Option] | None = None) -> tuple[SSHServer, dict[str, Any]]:
        """Parse the part after ``ssh://``.

        :param more: further options, whose values are returned beside the server.
        """
        place, _, query = rest.partition("?")
        given = self.options("ssh://", query, {**options_of(SSHServer), **(more or {})})
        others = {name: given.pop(name) for name in more or () if name in given}
        # The last `@`: a password may hold one, a host cannot.
        user, sign, place = place.rpartition("@")
        user, colon, password = user.partition(":")
        if sign and not user:
            self.fail("the user is empty", "write it before the @, or leave both out")
        if colon:
            if "password" in given or not password:
                self.fail("a password that is empty or given twice", "give one, or leave the colon out")
            given["password"] = self.decoded(password)
        return self.server(self.decoded(user) or None, place, given), others


def read_proxy(
    parser: AddressParser, protocol: ProxyProtocol, rest: str, owner: type[Proxy] | type[ProxyListen]
) -> dict[str, Any]:
    """Parse a proxy, after ``socks5://``, ``http://`` or ``https://``.

    :param owner: the class with its options, which checks them; see :func:`make`.
    :returns: the parameters of that class.
    :raises AddressError: in one line: what, where, and what is allowed.
    """
    place, _, query = rest.partition("?")
    user, sign, place = place.rpartition("@")
    user, colon, password = user.partition(":")
    if sign and not user:
        parser.fail("the user is empty", "write it before the @, or leave both out")
    given: dict[str, Any] = parser.options(f"{protocol}://", query, options_of(owner))
    if colon:
        if "password" in given or not password:
            parser.fail("a password that is empty or given twice", "give one, or leave the colon out")
        given["password"] = parser.decoded(password)
    place = place.removesuffix("/")
    if owner is HTTPSProxy and (place.endswith("]") or ":" not in place):
        place += f":{_HTTPS_PORT}"
    host, port, _ = parser.place(protocol, place)
    return {"protocol": protocol, "host": host, "port": port, "user": parser.decoded(user) or None, **given}


def make(parser: AddressParser, create: Callable[..., Value], **given: Any) -> Value:
    """Create a value, which checks its parameters itself.

    :raises AddressError: in one line: what, where, and what is allowed.
    """
    try:
        return create(**given)
    except ValueError as error:
        problem, _, allowed = str(error).partition("; ")
        parser.fail(f"{problem.partition(':')[0]}: that cannot be one" if parser.hidden else problem, allowed)


def read_command(parser: AddressParser, text: str) -> Command:
    """Parse a program, after ``exec:``.

    :raises AddressError: in one line: what, where, and what is allowed.
    """
    try:
        return Command(text)
    except ValueError as error:
        problem, _, allowed = str(error).removeprefix("exec: ").partition("; ")
        parser.fail(problem, allowed)


def _read_proxy(protocol: ProxyProtocol, owner: type[Proxy] = Proxy) -> Callable[[AddressParser, str], Proxy]:
    return lambda parser, rest: make(parser, owner, **read_proxy(parser, protocol, rest, owner))


def read_proxy_listen(parser: AddressParser, scheme: str, rest: str) -> ProxyListen:
    """Parse a proxy to listen on, after ``socks5://``, ``http://`` or ``https://``.

    :raises AddressError: in one line: what, where, and what is allowed.
    """
    protocol: ProxyProtocol = "socks5" if scheme == "socks5" else "http" if scheme == "http" else "https"
    owner = HTTPSListen if protocol == "https" else ProxyListen
    given = read_proxy(parser, protocol, rest, owner)
    if owner is HTTPSListen and "cert" not in given:
        parser.fail("no certificate", "it needs https://host:port?cert=FILE, and key=FILE if it is elsewhere")
    return make(parser, owner, **given)


def _listed(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}"


FORMS: dict[str, tuple[str, Callable[[Any, str], Hop]]] = {
    "ssh": ("ssh://[user@]host[:port]", lambda parser, rest: parser.ssh_url(rest)[0]),
    "i2p": ("i2p:?sam=host:port", read_i2p_hop),
    "socks5": ("socks5://[user@]host:port", _read_proxy("socks5")),
    "http": ("http://[user@]host:port", _read_proxy("http")),
    "https": ("https://[user@]host[:port]", _read_proxy("https", HTTPSProxy)),
    "exec": ("exec:command %h %p", read_command),
}
"""Of each scheme: its form, for errors, and the function that parses what follows the scheme; a new transport adds its
line here, and one in :data:`relay.transports.chain.KINDS`."""


class HopParser(SSHParser):
    """The parser of hops.

    :param follows: the address after it, for errors.
    """

    example = "ssh://bastion"
    schemes: tuple[str, ...] = tuple(FORMS)
    forms = f"a hop is {_listed([form for form, _ in FORMS.values()])}"
    takes_i2p = True

    def __init__(self, text: str, what: str, *, follows: str = "", given: Mapping[str, Any] | None = None) -> None:
        super().__init__(text, what, given=given)
        self._follows = follows

    def plain(self) -> tuple[str, str]:
        """Split an address without ``//``."""
        if "i2p" in self.schemes and (found := _I2P.fullmatch(self.text)):
            return "i2p", found[2] or ""
        return super().plain()

    def unknown(self, scheme: str) -> NoReturn:
        """Reject a scheme that no hop has."""
        if scheme in KNOWN and scheme not in HopParser.schemes:
            last = "only the last address of a route is one" + (
                f", and {self._follows} follows" if self._follows else ""
            )
            self.fail(f"{scheme}:// is a target, not a hop", f"{last}; {self.forms}")
        super().unknown(scheme)

    def unknown_parameter(self, scheme: str, name: str, redacted_name: str, names: Any) -> NoReturn:
        """Reject a parameter that no hop has."""
        if name in ("listen", "accept", "allow", "deny"):
            self.fail(f"{name}= makes it a place to listen at, not a hop", "listen there, or leave the parameter out")
        super().unknown_parameter(scheme, name, redacted_name, names)

    def read(self) -> Hop:
        """Parse the address."""
        scheme, rest = self.split()
        if not scheme:
            self.fail("it has no scheme", self.forms)
        return FORMS[scheme][1](self, rest)


class ServerParser(HopParser):
    """The parser of names of SSH servers."""

    example = "user@host"
    schemes = ("ssh",)
    forms = "allowed are [user@]host[:port], an alias of the SSH configuration and ssh://[user@]host[:port]"

    def read(self) -> SSHServer:
        """Parse the address."""
        scheme, rest = self.split()
        return self.ssh_url(rest)[0] if scheme else self.bare(rest)

    def bare(self, text: str) -> SSHServer:
        """Parse a server without a scheme."""
        user, sign, place = text.rpartition("@")
        if "?" in text or ":" in user:
            self.fail("a parameter or a password", "only the form with ssh:// has them")
        if sign and not user:
            self.fail("the user is empty", "write it before the @, or leave both out")
        return self.server(user or None, place, {})


def read_hops(via: Sequence[str], target: str | None, named: Mapping[str, Hop]) -> Route:
    """Parse a chain of hops, the nearest first; see :func:`relay.addresses.parse.parse_hops`."""
    if isinstance(via, str) or not isinstance(via, Sequence):
        raise TypeError(f"via: expected a list of addresses, got {type(via).__name__}")
    count = len(via)
    found: list[Hop] = []
    for number, text in enumerate(via, 1):
        if isinstance(text, str) and text in named:
            found.append(named[text])
            continue
        behind = via[number] if number < count else target
        follows = redact(behind) if isinstance(behind, str) else ""
        parser = HopParser(text, f"hop {number} of {count}" if count > 1 else "hop", follows=follows)
        found.append(parser.read())
    return tuple(found)
