"""Parse hops and targets: ``ssh://me@bastion``, ``i2p:?sam=…``, ``tls://host:port`` to values.

They are those of :mod:`relay.addresses.hops`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from .address_parser import KNOWN, AddressParser, make
from .hops import UNASKED, Command, Hop, Proxy, ProxyListen, ProxyProtocol, Route
from .https import HTTPSListen, HTTPSProxy
from .i2p import I2PTarget
from .i2p_parser import read_i2p_hop, read_i2p_target
from .options import Option, options_of
from .redact import redact
from .resume import INSTEAD, ResumeServer
from .ssh import SSHServer
from .values import Target, TCPAddress, TLSTarget, UnixAddress, is_i2p

_HTTPS_PORT = 443
_WITHOUT_HOST = re.compile(r"(i2p|tor):?(?://)?(\?.*)?", re.IGNORECASE)


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


def read_command(parser: AddressParser, text: str, owner: type[Command] = Command) -> Command:
    """Parse a program, after ``exec:`` or ``port:``.

    :param owner: its class, which checks it.
    :raises AddressError: in one line: what, where, and what is allowed.
    """
    try:
        return owner(text)
    except ValueError as error:
        problem, _, allowed = str(error).removeprefix(f"{owner.scheme}: ").partition("; ")
        parser.fail(problem, allowed)


def read_port(parser: AddressParser, text: str) -> Command:
    """Parse a program that listens, after ``port:``.

    :raises AddressError: in one line: what, where, and what is allowed.
    """
    # Here and not above: a program that has none does not load it.
    from .port import PortProgram

    return read_command(parser, text, PortProgram)


def _read_proxy(protocol: ProxyProtocol, owner: type[Proxy] = Proxy) -> Callable[[AddressParser, str], Proxy]:
    return lambda parser, rest: make(parser, owner, **read_proxy(parser, protocol, rest, owner))


def _read_ws(scheme: str) -> Callable[[AddressParser, str], Proxy]:
    def read(parser: AddressParser, rest: str) -> Proxy:
        from .websocket import read_ws_hop  # few hops are one

        return read_ws_hop(parser, scheme, rest)

    return read


def read_proxy_listen(parser: AddressParser, protocol: ProxyProtocol, rest: str) -> ProxyListen:
    """Parse a proxy to listen on, after ``socks5://``, ``http://``, ``https://``, ``sni://`` or ``redirect://``.

    :raises AddressError: in one line: what, where, and what is allowed.
    """
    if protocol in UNASKED:
        host, port, query = parser.place(protocol, rest)
        return ProxyListen(protocol, host, port, **parser.options(f"{protocol}://", query, {}))
    owner = HTTPSListen if protocol == "https" else ProxyListen
    given = read_proxy(parser, protocol, rest, owner)
    if owner is HTTPSListen and "cert" not in given:
        parser.fail("no certificate", "it needs https://host:port?cert=FILE, and key=FILE if it is elsewhere")
    return make(parser, owner, **given)


def _read_tor(parser: AddressParser, rest: str) -> Proxy:
    from .tor import read_tor_hop  # a program without Tor does not load it

    return read_tor_hop(parser, rest)


def _read_resume(parser: AddressParser, rest: str) -> ResumeServer:
    """Parse a resume server, after ``resume:``: a target, which has the options that are given for the hop."""
    if rest.partition("://")[0].lower() == "ssh":
        parser.fail("an SSH server resumes by an option of its own", "write ssh://host?resume=yes")
    if rest.partition(":")[0].lower() in ("socks5", "http", "https", "tor"):
        parser.fail("a proxy keeps no streams, and here a relay must", INSTEAD)
    inner = TargetParser(rest, parser.what, None, given=parser.given)
    return make(inner, ResumeServer, place=inner.read())


def _listed(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}"


FORMS: dict[str, tuple[str, Callable[[Any, str], Hop]]] = {
    "ssh": ("ssh://[user@]host[:port]", lambda parser, rest: parser.ssh_url(rest)[0]),
    "i2p": ("i2p:?sam=host:port", read_i2p_hop),
    "socks5": ("socks5://[user@]host:port", _read_proxy("socks5")),
    "http": ("http://[user@]host:port", _read_proxy("http")),
    "https": ("https://[user@]host[:port]", _read_proxy("https", HTTPSProxy)),
    "tor": ("tor:", _read_tor),
    "ws": ("ws://[user@]host[:port]/path", _read_ws("ws")),
    "wss": ("wss://[user@]host[:port]/path", _read_ws("wss")),
    "exec": ("exec:command %h %p", read_command),
    "port": ("port:program {port}", read_port),
    "resume": ("resume:ADDRESS", _read_resume),
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
        if (found := _WITHOUT_HOST.fullmatch(self.text)) and (scheme := found[1].lower()) in self.schemes:
            return scheme, found[2] or ""
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


class TargetParser(AddressParser):
    """The parser of targets.

    :param before: the hop that leads to it; see :func:`relay.addresses.parse.parse_target`.
    """

    schemes = ("tcp", "tls", "unix", "i2p", "exec", "port", "ws", "wss")
    forms = (
        "allowed are host:port, port, tcp://host:port, unix:///path, tls://host:port, wss://host/path, "
        "i2p://name.i2p, exec:command and port:program {port}"
    )
    takes_i2p = True

    def __init__(
        self, text: str, what: str, before: Hop | None = None, *, given: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(text, what, given=given)
        self._takes_names = isinstance(before, (Proxy, Command))

    def unknown(self, scheme: str) -> NoReturn:
        """Reject a scheme that no target has."""
        if scheme in HopParser.schemes:
            hop = {"tor": "tor:", "resume": "resume:ADDRESS"}.get(scheme, f"{scheme}://host")
            use = f"it leads to one: give it as --via {hop} (via=[…] in Python), and as the target what is behind"
            self.fail(f"{scheme}:{'' if scheme == 'resume' else '//'} is a hop, not a target", use)
        super().unknown(scheme)

    def read(self) -> Target | I2PTarget | Command:
        """Parse the address."""
        scheme, rest = self.split()
        if self.given and scheme in ("unix", "exec", "port"):
            self.fail(f"{next(iter(self.given))}= is no option of {scheme}:", "leave it out")
        if not scheme and rest.isascii() and rest.isdigit():
            return TCPAddress("127.0.0.1", self.port(rest))
        if scheme == "unix":
            return UnixAddress(self.path(rest))
        if scheme in ("exec", "port"):
            return self.command((read_command if scheme == "exec" else read_port)(self, rest))
        if scheme in ("ws", "wss"):
            from .websocket import read_ws_target

            return read_ws_target(self, scheme, rest)
        is_name = scheme in ("", "tcp") and is_i2p(rest.partition("?")[0].partition(":")[0])
        if scheme == "i2p" or (is_name and not self._takes_names):
            return read_i2p_target(self, rest)
        host, port, query = self.place(scheme, rest)
        if scheme != "tls":
            return TCPAddress(host, port, **self.options("tcp://", query, options_of(TCPAddress)))
        given = self.options("tls://", query, options_of(TLSTarget))
        if "servername" in given:
            given["servername"] = self.host(given["servername"])
        if "key" in given and "cert" not in given:
            self.fail("key= without cert=", "a client certificate is cert=FILE, and key=FILE if its key is elsewhere")
        return TLSTarget(host, port, **given)

    def command(self, command: Command) -> Command:
        """Check a program, which is the target itself and gets no host or port."""
        if command.is_hop:
            self.fail("%h and %p have no meaning in a target", "a percent sign is written %%; as a hop it has both")
        return command


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
