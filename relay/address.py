"""Addresses as text and as values: ``tls://db.internal:5432?ca=db.pem`` and the like. Pure: nothing here does I/O.

Every value is frozen, and ``str(value)`` is an address that parses to an equal value.
"""

from __future__ import annotations

import ipaddress
import os
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import NoReturn
from urllib.parse import quote, unquote_to_bytes

from .errors import AddressError

__all__ = [
    "Listen",
    "SSHServer",
    "Secret",
    "TCPAddress",
    "TLSListen",
    "TLSTarget",
    "Target",
    "UnixAddress",
    "check_place",
    "masked",
    "parse_listen",
    "parse_target",
    "unix_path",
]

LONGEST_UNIX_PATH = 107 if sys.platform == "linux" else 103  # bytes; unix(7): sun_path without its final NUL
LONGEST_NAME = 253  # RFC 1035, section 2.3.4, without the root's dot
LONGEST_ADDRESS = 8192  # characters; as long as a chain of addresses can sensibly be
LONGEST_SHOWN = 120  # characters of an address that an error repeats

LATER = ("exec", "http", "i2p", "socks5", "ssh")
TARGET_PARAMETERS = ("servername", "ca", "cert", "key")
LISTEN_PARAMETERS = ("cert", "key", "client_ca")
SHOWN_PARAMETERS = {*TARGET_PARAMETERS, *LISTEN_PARAMETERS, "password_file", "password_env"}

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMERIC_LABEL = re.compile(r"[0-9]+|0x[0-9a-f]*")
_ZONE = re.compile(r"[A-Za-z0-9._~-]{1,64}")
_BROKEN_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


@dataclass(frozen=True, slots=True)
class TCPAddress:
    """``host:port`` or ``tcp://host:port``; an IPv6 host is without its brackets here."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """``unix:///path``."""

    path: str

    def __str__(self) -> str:
        return f"unix://{_quoted(self.path)}"


@dataclass(frozen=True, slots=True)
class TLSTarget:
    """``tls://host:port``; files are paths of PEM files, and without ``ca`` the system's authorities are trusted."""

    host: str
    port: int
    servername: str | None = None
    ca: str | None = None
    cert: str | None = None
    key: str | None = None

    def __str__(self) -> str:
        return _tls_text(self.host, self.port, [(name, getattr(self, name)) for name in TARGET_PARAMETERS])


@dataclass(frozen=True, slots=True)
class TLSListen:
    """``tls://host:port`` to listen at; files are paths of PEM files, and ``cert`` may hold the key as well."""

    host: str
    port: int
    cert: str
    key: str | None = None
    client_ca: str | None = None

    def __str__(self) -> str:
        return _tls_text(self.host, self.port, [(name, getattr(self, name)) for name in LISTEN_PARAMETERS])


Secret = str | Callable[..., str]


@dataclass(frozen=True, slots=True)
class SSHServer:
    """``ssh://[user@]host[:port]?…``, ``[user@]host[:port]`` or an alias of the user's SSH configuration.

    Equal values share one connection. ``str`` of it shows no secret, so it is the one value that may not parse back.
    """

    host: str
    user: str | None = None
    port: int | None = None
    backend: str | None = None  # paramiko or openssh
    keyfile: str | None = None
    passphrase: Secret | None = field(default=None, repr=False)
    passphrase_file: str | None = None
    passphrase_env: str | None = None
    password: Secret | None = field(default=None, repr=False)
    password_file: str | None = None
    password_env: str | None = None
    known_hosts: str | None = None
    config: str | None = None
    hostkey: str | None = None  # SHA256:…
    accept_new: bool = False
    keepalive: float | None = 15.0  # seconds
    compress: bool | None = None

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        user = f"{self.user}@" if self.user else ""
        return f"ssh://{user}{host}{f':{self.port}' if self.port else ''}"


Target = TCPAddress | UnixAddress | TLSTarget
Listen = TCPAddress | UnixAddress | TLSListen


def parse_target(text: str) -> Target:
    """Read the address of something to connect to.

    :param text: ``host:port``, ``tcp://host:port``, ``unix:///path`` or
        ``tls://host:port?servername=…&ca=…&cert=…&key=…``; IPv6 in brackets.
    :returns: the address as a value.
    :raises AddressError: in one line: what, where, and what is allowed.
    :raises TypeError: if ``text`` is not a ``str``.
    """
    return _Parser(text, listens=False).target()


def parse_listen(text: str) -> Listen:
    """Read an address to listen at: on the loopback unless another host is written out.

    :param text: ``:port``, ``port``, ``host:port``, ``tcp://host:port``, ``unix:///path`` or
        ``tls://host:port?cert=…&key=…&client_ca=…``; IPv6 in brackets, port 0 for any that is free.
    :returns: the address as a value.
    :raises AddressError: in one line: what, where, and what is allowed.
    :raises TypeError: if ``text`` is not a ``str``.
    """
    return _Parser(text, listens=True).listen()


def check_place(host: str, port: int, *, least: int = 1) -> None:
    """Check the two arguments that every factory and listener over TCP takes.

    :param host: an IPv4 or IPv6 address (no brackets, a zone is allowed) or a name.
    :param port: from ``least`` to 65535.
    :param least: 1 to connect, 0 to listen.
    :raises TypeError: if one has the wrong type; it names the argument.
    :raises ValueError: if one has a value that cannot be right; it names the argument.
    """
    if not isinstance(host, str):
        raise TypeError(f"host: a str is wanted, not {type(host).__name__}")
    if not isinstance(port, int) or isinstance(port, bool):
        raise TypeError(f"port: an int is wanted, not {type(port).__name__}")
    if not host or host.startswith("-") or not host.isprintable() or any(c in host for c in " []/@"):
        raise ValueError(f"host: {host!r} is neither an address nor a name; 127.0.0.1, ::1 and db.internal are")
    if not least <= port <= 65535:
        raise ValueError(f"port: {port} is out of range; a port is a number from {least} to 65535")


def unix_path(path: str | os.PathLike[str]) -> str:
    """The absolute path of a Unix socket; a relative one is taken from the working directory of now.

    :raises TypeError: if ``path`` is not a path.
    :raises ValueError: if it is empty, holds a control character or is longer than a Unix socket's may be (unix(7)).
    """
    if not isinstance(path, (str, os.PathLike)) or not isinstance(os.fspath(path), str):
        raise TypeError(f"path: a str or pathlib.Path is wanted, not {type(path).__name__}")
    text = os.fspath(path)
    if not text or _CONTROL.search(text):
        raise ValueError(f"path: {text!r} is empty or holds a control character")
    absolute = os.path.abspath(text)
    length = len(absolute.encode("utf-8", "surrogateescape"))
    if length > LONGEST_UNIX_PATH:
        raise ValueError(f"path: {absolute} has {length} bytes; a Unix socket's path has at most {LONGEST_UNIX_PATH}")
    return absolute


def masked(text: str) -> str:
    """An address fit to be printed: on one line, short, passwords and the values of unknown parameters replaced."""
    head, mark, query = text.partition("?")
    at = text.rfind("@")
    if at > len(head):
        head, mark, query = text, "", ""  # a password may hold a question mark
    scheme, slashes, rest = head.rpartition("://") if "@" not in head.split("://")[0] else ("", "", head)
    user, sign, place = rest.rpartition("@")
    name, colon, _ = user.partition(":")
    head = f"{scheme}{slashes}{name}{colon and ':***'}{sign}{place}"
    if mark:
        head = f"{head}?{'&'.join(map(_masked_parameter, query.split('&')))}"
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in head[:LONGEST_SHOWN])
    return shown + "…" if len(head) > LONGEST_SHOWN else shown


def _masked_parameter(parameter: str) -> str:
    name, sign, value = parameter.partition("=")
    return f"{name}{sign}{value if name in SHOWN_PARAMETERS else '***'}" if sign else name


class _Parser:
    """One address while it is read."""

    def __init__(self, text: str, *, listens: bool) -> None:
        self.what = "listen address" if listens else "target"
        if not isinstance(text, str):
            raise TypeError(f"{self.what}: a str such as 'localhost:8080' is wanted, not {type(text).__name__}")
        self.text = text
        self.listens = listens

    def part(self, text: str) -> str:
        """A part of the address for an error; none where an ``@`` tells that it may be a part of a password."""
        return "***" if "@" in self.text else masked(text)

    def fail(self, problem: str, allowed: str) -> NoReturn:
        raise AddressError(f"{self.what} '{masked(self.text)}': {problem}; {allowed}")

    def target(self) -> Target:
        scheme, rest = self.split()
        if scheme == "unix":
            return UnixAddress(self.path(rest))
        host, port, query = self.place(scheme, rest)
        if scheme == "tcp":
            self.parameters("tcp://", query, ())
            return TCPAddress(host, port)
        given = self.parameters("tls://", query, TARGET_PARAMETERS)
        if "servername" in given:
            given["servername"] = self.host(given["servername"])
        if "key" in given and "cert" not in given:
            self.fail("key= without cert=", "a client certificate is cert=FILE, and key=FILE if its key is elsewhere")
        return TLSTarget(host, port, **given)

    def listen(self) -> Listen:
        if self.text.isascii() and self.text.isdigit():
            return TCPAddress("127.0.0.1", self.port(self.text))
        scheme, rest = self.split()
        if scheme == "unix":
            return UnixAddress(self.path(rest))
        host, port, query = self.place(scheme, rest)
        if scheme == "tcp":
            self.parameters("tcp://", query, ())
            return TCPAddress(host, port)
        given = self.parameters("tls://", query, LISTEN_PARAMETERS)
        if "cert" not in given:
            self.fail(
                "no certificate", "a TLS listener needs tls://host:port?cert=FILE, and key=FILE if it is elsewhere"
            )
        return TLSListen(host, port, **given)

    def split(self) -> tuple[str, str]:
        """Split off the scheme, which is ``tcp`` where none is written."""
        if len(self.text) > LONGEST_ADDRESS:
            self.fail(f"it is {len(self.text)} characters long", f"at most {LONGEST_ADDRESS} are allowed")
        if not self.text:
            self.fail("it is empty", self.forms())
        if not self.text.isprintable():
            self.fail("a control character or unprintable byte", "percent-encode it where it belongs to a path")
        found = _SCHEME.fullmatch(self.text)
        if found is None:
            return "tcp", self.plain()
        scheme = found[1].lower()
        if scheme not in ("tcp", "tls", "unix"):
            self.unknown(scheme)
        return scheme, found[2]

    def plain(self) -> str:
        """An address without ``//``; what looks like another scheme is told apart from ``host:port``."""
        scheme, colon, rest = self.text.partition(":")
        if colon and not rest.isdigit() and scheme.lower() in ("tcp", "tls", "unix", *LATER):
            if scheme.lower() in LATER:
                self.unknown(scheme.lower())
            self.fail(f"{scheme}: without //", self.forms())
        return self.text

    def unknown(self, scheme: str) -> NoReturn:
        if scheme in LATER:
            self.fail(f"{scheme} is not available in this version", self.forms())
        near = get_close_matches(scheme, ("tcp", "tls", "unix"), 1)
        self.fail(f"unknown scheme {scheme}://" + (f" (did you mean {near[0]}://?)" if near else ""), self.forms())

    def forms(self) -> str:
        own = ":port, host:port" if self.listens else "host:port, tcp://host:port"
        return f"allowed are {own}, unix:///path and tls://host:port"

    def path(self, rest: str) -> str:
        path, mark, _ = rest.partition("?")
        if mark:
            self.fail("unix:// takes no parameters", "a ? that belongs to the path is written %3F")
        if not path.startswith("/"):
            self.fail("the path is not absolute", "three slashes begin it: unix:///run/app.sock")
        path = self.decoded(path)
        length = len(path.encode("utf-8", "surrogateescape"))
        if length > LONGEST_UNIX_PATH:
            self.fail(f"the path is {length} bytes long", f"a Unix socket's path has at most {LONGEST_UNIX_PATH}")
        if path.endswith("/"):
            self.fail("the path ends with a slash", "it names the socket itself: unix:///run/app.sock")
        return path

    def place(self, scheme: str, rest: str) -> tuple[str, int, str]:
        """Split ``host:port?query``; an empty host is the loopback for a listener."""
        place, _, query = rest.partition("?")
        if "@" in place:
            self.fail(f"{scheme}:// takes no user or password", self.forms())
        if "/" in place or "#" in place:
            self.fail("something follows the port", self.forms())
        host, port = self.bracketed(place) if place.startswith("[") else self.named(place)
        if not host:
            if not self.listens:
                self.fail("the host is empty", f"write it out: 127.0.0.1:{port}")
            return "127.0.0.1", self.port(port), query
        if place.startswith("["):
            return self.ipv6(host, encoded=self.text.lower().startswith(scheme + "://")), self.port(port), query
        return self.host(host), self.port(port), query

    def bracketed(self, place: str) -> tuple[str, str]:
        host, bracket, port = place[1:].partition("]")
        if not bracket or not port.startswith(":") or not host:
            self.fail("a broken IPv6 address or no port", "an IPv6 address is written [::1]:8080")
        return host, port[1:]

    def named(self, place: str) -> tuple[str, str]:
        host, colon, port = place.rpartition(":")
        if ":" in host:
            self.fail("too many colons", "an IPv6 address is written in brackets: [::1]:8080")
        if not colon:
            self.fail("no port", f"write it after a colon: {'127.0.0.1' if place.isdigit() else 'host'}:8080")
        return host, port

    def port(self, text: str) -> int:
        least = 0 if self.listens else 1
        if not (text.isascii() and text.isdigit() and len(text) <= 5 and least <= int(text) <= 65535):
            self.fail(f"port {self.part(text) or '(empty)'}", f"a port is a number from {least} to 65535")
        return int(text)

    def ipv6(self, host: str, *, encoded: bool) -> str:
        """Check what stands in brackets; in a URL ``%25`` begins the zone (RFC 6874, section 2)."""
        literal, percent, zone = host.partition("%25" if encoded else "%")
        if "%" in literal or (percent and not _ZONE.fullmatch(zone)):
            self.fail("a broken zone", "a zone is an interface: [fe80::1%eth0]:80, in a URL [fe80::1%25eth0]:80")
        try:
            return str(ipaddress.IPv6Address(literal)) + (f"%{zone}" if percent else "")
        except ValueError:
            self.fail(f"[{self.part(host)}] is not an IPv6 address", "brackets hold one, as in [::1]:8080")

    def host(self, host: str) -> str:
        """Check an IPv4 address or a name; a name in another script becomes its ASCII form (RFC 3490)."""
        if len(host) > LONGEST_NAME + 1:
            self.fail(f"a host of {len(host)} characters", f"a name has at most {LONGEST_NAME}")
        if host == "*":
            self.fail("* is not a host", "0.0.0.0 is every IPv4 interface and [::] every one")
        labels = self.ascii(host).removesuffix(".").split(".")
        if _NUMERIC_LABEL.fullmatch(labels[-1]):
            return self.ipv4(host)
        if len(".".join(labels)) > LONGEST_NAME or not all(map(_LABEL.fullmatch, labels)):
            allowed = "a name is letters, digits, - and _ between dots, at most 63 in a row, and begins with no -"
            self.fail(f"'{self.part(host)}' is not a host name", allowed)
        if labels[-1] == "i2p":
            self.unknown("i2p")  # looked up in the DNS it would tell the resolver whom the user visits
        return ".".join(labels) + ("." if host.endswith(".") else "")

    def ascii(self, host: str) -> str:
        if host.isascii():
            return host.lower()
        try:
            return host.encode("idna").decode("ascii").lower()
        except UnicodeError:
            self.fail(f"'{self.part(host)}' is not a host name", "a name in another script follows RFC 3490 (IDNA)")

    def ipv4(self, host: str) -> str:
        try:
            return str(ipaddress.IPv4Address(host))
        except ValueError:
            self.fail(
                f"'{self.part(host)}' is not an IPv4 address", "one is four numbers from 0 to 255, as in 127.0.0.1"
            )

    def parameters(self, scheme: str, query: str, names: tuple[str, ...]) -> dict[str, str]:
        given: dict[str, str] = {}
        for parameter in query.split("&") if query else ():
            name, _, value = parameter.partition("=")
            if name not in names:
                self.unknown_parameter(scheme, name, names)
            if name in given:
                self.fail(f"{name}= is written twice", "once is enough")
            given[name] = self.decoded(value)
            if not value:
                self.fail(f"{name}= is empty", "give it a value or leave it out")
        return given

    def unknown_parameter(self, scheme: str, name: str, names: Iterable[str]) -> NoReturn:
        near = get_close_matches(name, names, 1)
        problem = f"unknown parameter '{self.part(name)}'" + (f" (did you mean {near[0]}=?)" if near else "")
        allowed = ", ".join(f"{known}=" for known in names)
        self.fail(problem, f"{scheme} takes {allowed or 'none'}")

    def decoded(self, text: str) -> str:
        """Undo the percent-encoding; bytes that are not UTF-8 become surrogates, as everywhere in Python's paths."""
        if _BROKEN_PERCENT.search(text):
            self.fail("a broken percent-encoding", "% is followed by two hexadecimal digits; % itself is %25")
        value = unquote_to_bytes(text).decode("utf-8", "surrogateescape")
        if _CONTROL.search(value):
            self.fail("a control character", "paths and names have none")
        return value


def _quoted(value: str) -> str:
    return quote(value.encode("utf-8", "surrogateescape"), safe="/:@,+=~")


def _tls_text(host: str, port: int, parameters: Iterable[tuple[str, str | None]]) -> str:
    query = "&".join(f"{name}={_quoted(value)}" for name, value in parameters if value is not None)
    place = str(TCPAddress(host.replace("%", "%25"), port))
    return f"tls://{place}?{query}" if query else f"tls://{place}"
