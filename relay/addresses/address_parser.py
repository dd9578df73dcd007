"""The parser that all addresses share: a scheme, a host and a port or a path, and parameters.

Pure: nothing here does I/O. Every error is one line (what, where, what is allowed) and shows no secret.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from typing import Any, NoReturn, TypeVar
from urllib.parse import unquote_to_bytes

from ..errors import AddressError
from .options import CONTROL, Option
from .printable import shown
from .redact import is_ambiguous, is_program, redact, redact_parameters
from .values import LONGEST_UNIX_PATH, is_i2p

Value = TypeVar("Value")

LONGEST_NAME = 253  # RFC 1035, section 2.3.4, without the root's dot
LONGEST_ADDRESS = 8192  # characters

KNOWN = ("exec", "http", "https", "i2p", "port", "resume", "socks5", "ssh", "tcp", "tls", "tor", "unix", "ws", "wss")

_OVER_TLS = ("https", "ssl")  # schemes that users write instead of tls://

_PORTS = {
    "https": 443,
    "redirect": 1081,
    "sni": 443,
    "socks5": 1080,
    "tls": 443,
    "wss": 443,
}  # of examples; others have 8080

# An argument of ssh -L: [BIND:]PORT:HOST:PORT. No IPv6 address without its brackets has so few colons, one by one.
FORWARD = re.compile(r"((?:(?:[^\s:]+|\[\S+\]):)?[0-9]+):([^:/]+|\[\S+\]):([0-9]+)")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMERIC_LABEL = re.compile(r"[0-9]+|0x[0-9a-f]*")
_ZONE = re.compile(r"[A-Za-z0-9._~-]{1,64}")
_BROKEN_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")


class AddressParser:
    """The parser of one address.

    :param text: the address.
    :param what: its role, for errors.
    :param hidden: whether it may be a part of a password.
    :param given: options that are given outside the address: values by name.
    """

    example = "localhost:8080"
    usual_port: int | None = None  # of an example, where that of the scheme is none
    schemes: tuple[str, ...] = ("tcp", "tls", "unix")
    forms = "allowed are host:port, tcp://host:port, unix:///path and tls://host:port"
    i2p_names = "it is not looked up in the DNS; only i2p://NAME leads there"
    least_port = 1
    takes_i2p = False  # whether a host may be a name of I2P

    def __init__(self, text: str, what: str, *, hidden: bool = False, given: Mapping[str, Any] | None = None) -> None:
        self.what = what
        if not isinstance(text, str):
            raise TypeError(f"{what}: expected a str such as '{self.example}', got {type(text).__name__}")
        self.text = text
        self.shown = "***" if hidden else redact(text)
        # Where a password may be, no part is shown, not even in the error that says what is wrong.
        self.hidden = hidden or is_ambiguous(text)
        self.given = given or {}

    def part(self, text: str) -> str:
        """Return a part of the address for an error, or ``***`` if it may belong to a password."""
        return "***" if self.hidden else shown(text)

    def fail(self, problem: str, allowed: str) -> NoReturn:
        """Reject the address.

        :raises AddressError: always.
        """
        name = f"({self.shown})" if " of " in self.what else f"'{self.shown}'"
        raise AddressError(f"{self.what} {name}: {problem}; {allowed}")

    def split(self) -> tuple[str, str]:
        """Split off the scheme, which may be empty."""
        if len(self.text) > LONGEST_ADDRESS:
            self.fail(f"it is {len(self.text)} characters long", f"at most {LONGEST_ADDRESS} are allowed")
        if not self.text:
            self.fail("it is empty", self.forms)
        if not self.text.isprintable():
            self.fail("a control character or unprintable byte", "percent-encode it where it belongs to a path")
        if self.text != self.text.strip():
            self.fail("a space at its beginning or end", "leave it out")
        found = _SCHEME.fullmatch(self.text)
        if found is None:
            return self.plain()
        scheme = found[1].lower()
        if scheme not in self.schemes:
            self.unknown(scheme)
        return scheme, found[2]

    def plain(self) -> tuple[str, str]:
        """Split an address without ``//``; the name of another scheme before the colon is an error."""
        scheme, colon, rest = self.text.partition(":")
        if colon and not rest.isdigit() and scheme.lower() in KNOWN:
            if is_program(self.text) or scheme.lower() == "resume":
                scheme = scheme.lower()
                return (scheme, rest) if scheme in self.schemes else self.unknown(scheme)
            slash = "/" if rest[:1] == "/" else ""  # what follows may be a password; one slash of it is no secret
            self.fail(f"{scheme}:{slash} without //", self.forms)
        return "", self.text

    def unknown(self, scheme: str) -> NoReturn:
        """Reject a scheme that is none of :attr:`schemes`."""
        is_tls = scheme in _OVER_TLS and "tls" in self.schemes
        near = ["tls"] if is_tls else get_close_matches(scheme, self.schemes, 1)
        self.fail(f"unknown scheme {scheme}://" + (f" (did you mean {near[0]}://?)" if near else ""), self.forms)

    def path(self, rest: str) -> str:
        """Parse the path after ``unix://``."""
        path, mark, _ = rest.partition("?")
        if mark:
            self.fail("unix:// takes no parameters", "a ? that belongs to the path is written %3F")
        if not path.startswith("/"):
            self.fail("the path is not absolute", "three slashes begin it: unix:///run/app.sock")
        return self.socket_path(self.decoded(path))

    def socket_path(self, path: str) -> str:
        """Check the path of a Unix socket (unix(7))."""
        length = len(path.encode("utf-8", "surrogateescape"))
        if length > LONGEST_UNIX_PATH:
            self.fail(f"the path is {length} bytes long", f"a Unix socket's path has at most {LONGEST_UNIX_PATH}")
        if path.endswith("/"):
            self.fail("the path ends with a slash", "it names the socket itself: unix:///run/app.sock")
        return path

    def place(self, scheme: str, rest: str) -> tuple[str, int, str]:
        """Split ``host:port?query``."""
        place, _, query = rest.partition("?")
        if "@" in place:
            self.fail(f"{scheme or 'tcp'}:// takes no user or password", self.forms)
        if "/" in place or "#" in place:
            self.fail("something follows the port", self.forms)
        usual = self.usual_port or _PORTS.get(scheme, 8080)
        host, port = self.bracketed(place, usual) if place.startswith("[") else self.named(place, usual)
        if not host:
            return self.without_host(port), self.port(port), query
        if place.startswith("["):
            return self.ipv6(host, encoded=bool(scheme)), self.port(port), query
        return self.host(host), self.port(port), query

    def without_host(self, port: str) -> str:
        """Return the default host, or reject an address without one."""
        self.fail("the host is empty", f"write it out: 127.0.0.1:{self.part(port)}")

    def bracketed(self, place: str, usual: int) -> tuple[str, str]:
        """Split ``[v6]:port``."""
        host, bracket, port = place[1:].partition("]")
        if not bracket or not port.startswith(":") or not host:
            self.fail("a broken IPv6 address or no port", f"an IPv6 address is written [::1]:{usual}")
        return host, port[1:]

    def named(self, place: str, usual: int) -> tuple[str, str]:
        """Split ``host:port``."""
        host, colon, port = place.rpartition(":")
        if ":" in host:
            if found := FORWARD.fullmatch(place):
                self.fail("this is ssh's spelling", f"write two addresses: {found[1]} {found[2]}:{found[3]}")
            self.fail("too many colons", f"an IPv6 address is written in brackets: [::1]:{usual}")
        if not colon:
            host = "127.0.0.1" if place.isdigit() else self.part(place) or "host"
            self.fail("no port", f"write it after a colon: {host}:{usual}")
        return host, port

    def port(self, text: str, least: int | None = None) -> int:
        """Check a port."""
        least = self.least_port if least is None else least
        if not (text.isascii() and text.isdigit() and len(text) <= 5 and least <= int(text) <= 65535):
            part = self.part(text)
            part = f"'{part}'" if part.strip() != part else part  # a space would not be seen
            self.fail(f"port {part or '(empty)'}", f"a port is a number from {least} to 65535")
        return int(text)

    def ipv6(self, host: str, *, encoded: bool) -> str:
        """Check the address in brackets; in a URL ``%25`` begins the zone (RFC 6874, section 2)."""
        literal, percent, zone = host.partition("%25" if encoded else "%")
        if "%" in literal or (percent and not _ZONE.fullmatch(zone)):
            self.fail("a broken zone", "a zone is an interface: [fe80::1%eth0]:80, in a URL [fe80::1%25eth0]:80")
        try:
            return str(ipaddress.IPv6Address(literal)) + (f"%{zone}" if percent else "")
        except ValueError:
            self.fail(f"[{self.part(host)}] is not an IPv6 address", "brackets hold one, as in [::1]:8080")

    def host(self, host: str) -> str:
        """Check an IPv4 address or a name."""
        if (length := len(host.removesuffix("."))) > LONGEST_NAME:
            self.fail(f"a host of {length} characters", f"a name has at most {LONGEST_NAME}")
        if host == "*":
            self.fail("* is not a host", "0.0.0.0 is every IPv4 interface and [::] every one")
        labels = self.ascii(host).lower().removesuffix(".").split(".")
        # A last label of digits is an address to every resolver: `127.1` would else be a name here, and 127.0.0.1
        # there.
        if _NUMERIC_LABEL.fullmatch(labels[-1]):
            return self.ipv4(host)
        if len(".".join(labels)) > LONGEST_NAME or not all(map(_LABEL.fullmatch, labels)):
            allowed = "a name is letters, digits, - and _ between dots, at most 63 in a row, and begins with no -"
            self.fail(f"'{self.part(host)}' is not a host name", allowed)
        self.refuse_i2p(".".join(labels))
        return ".".join(labels) + ("." if host.endswith(".") else "")

    def refuse_i2p(self, host: str) -> None:
        """Reject a name of I2P: the DNS would learn which site the user visits."""
        if is_i2p(host) and not self.takes_i2p:
            self.fail(f"'{self.part(host)}' is a name of I2P", self.i2p_names)

    def ascii(self, host: str) -> str:
        """Return a name in another script in its ASCII form (RFC 3490)."""
        if host.isascii():
            return host
        try:
            return host.encode("idna").decode("ascii")
        except UnicodeError:
            self.fail(f"'{self.part(host)}' is not a host name", "a name in another script follows RFC 3490 (IDNA)")

    def ipv4(self, host: str) -> str:
        """Check an IPv4 address."""
        try:
            return str(ipaddress.IPv4Address(host))
        except ValueError:
            self.fail(
                f"'{self.part(host)}' is not an IPv4 address", "one is four numbers from 0 to 255, as in 127.0.0.1"
            )

    def options(
        self,
        scheme: str,
        query: str,
        declared: Mapping[str, Option],
        is_further: Callable[[str], bool] = lambda _: False,
    ) -> dict[str, Any]:
        """Parse the parameters after the question mark; a ``+`` is a plus sign.

        :param declared: the options that are allowed.
        :param is_further: returns whether another name is allowed, whose value stays text.
        :returns: the values by name, with those given outside the address.
        """
        found: dict[str, Any] = {}
        for parameter, redacted in zip(query.split("&"), redact_parameters(query), strict=True) if query else ():
            name, _, text = parameter.partition("=")
            option = declared.get(name)
            if option is None and not is_further(name):
                self.unknown_parameter(scheme, name, redacted.partition("=")[0], declared)
            is_repeatable = option is not None and option.kind.is_repeatable
            if name in found and not is_repeatable:
                self.fail(f"{name}= is written twice", "once is enough")
            text = self.decoded(text)
            if not text:
                self.fail(f"{name}= is empty", "give it a value or leave it out")
            value = text if option is None else self.value(name, text, option)
            found[name] = (*found.get(name, ()), value) if is_repeatable else value
        for name, value in self.given.items():
            if name not in declared and not is_further(name):
                self.unknown_parameter(scheme, name, name, declared)
            if name in found:
                self.fail(f"{name}= is written twice", "once is enough")
            found[name] = value
        return found

    def value(self, name: str, text: str, option: Option) -> Any:
        """Parse the value of an option."""
        try:
            return option.kind.parse(text)
        except ValueError as error:
            self.fail(f"{name}={self.part(text)}", str(error))

    def unknown_parameter(self, scheme: str, name: str, redacted_name: str, names: Iterable[str]) -> NoReturn:
        """Reject a parameter that is none of ``names``."""
        near = get_close_matches(name, names, 1)
        problem = f"unknown parameter '{self.part(redacted_name)}'" + (f" (did you mean {near[0]}=?)" if near else "")
        allowed = ", ".join(f"{known}=" for known in names)
        self.fail(problem, f"{scheme} takes {allowed or 'none'}")

    def decoded(self, text: str) -> str:
        """Undo the percent-encoding; bytes that are not UTF-8 become surrogates, as in Python's paths."""
        if _BROKEN_PERCENT.search(text):
            self.fail("a broken percent-encoding", "% is followed by two hexadecimal digits; % itself is %25")
        value = unquote_to_bytes(text).decode("utf-8", "surrogateescape")
        if CONTROL.search(value):
            self.fail("a control character", "paths and names have none")
        return value


def make(parser: AddressParser, create: Callable[..., Value], **given: Any) -> Value:
    """Create a value, which checks its parameters itself.

    :raises AddressError: in one line: what, where, and what is allowed.
    """
    try:
        return create(**given)
    except ValueError as error:
        problem, _, allowed = str(error).partition("; ")
        parser.fail(f"{problem.partition(':')[0]}: that cannot be one" if parser.hidden else problem, allowed)
