"""Addresses as values: ``tls://db.internal:5432?ca=db.pem`` and the like; :mod:`relay.addresses.parse` reads them.

Pure: nothing here does I/O. Every value is frozen, and ``str(value)`` is an address that parses to an equal value.
"""

from __future__ import annotations

import ipaddress
import os
import sys
from dataclasses import dataclass, field
from typing import Any, ClassVar
from urllib.parse import quote

from ..errors import AddressError
from .options import CONTROL, FILE, FLAG, GROUPS, MODE, PRINTABLE, PROTOCOLS, changed_options, option, written
from .printable import printable

LONGEST_UNIX_PATH = 107 if sys.platform == "linux" else 103  # bytes; unix(7): sun_path without its final NUL


_MPTCP = option(FLAG, "whether to use Multipath TCP (RFC 8684)", "Linux only; a peer without it gets TCP.")
KEY_GROUPS = option(
    GROUPS, "groups of the key exchange, best first", "Python before 3.15 can set one.", example="X25519"
)
SERVERNAME = option(PRINTABLE, "name that the certificate must have")
CA = option(FILE, "certificates of the authorities to trust")
CLIENT_CERT = option(FILE, "client certificate")
CERT = option(FILE, "certificate")
KEY = option(FILE, "private key of cert, unless it is in that file")
CLIENT_CA = option(FILE, "authorities that client certificates must have")


@dataclass(frozen=True, slots=True)
class TCPAddress:
    """``host:port`` or ``tcp://host:port``; an IPv6 host is without its brackets here."""

    host: str
    port: int
    mptcp: bool = field(default=False, metadata=_MPTCP)

    def __str__(self) -> str:
        place = f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"
        return f"tcp://{place}?mptcp=yes" if self.mptcp else place


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """``unix:///path``."""

    path: str

    def __str__(self) -> str:
        return f"unix://{quoted(self.path)}"


@dataclass(frozen=True, slots=True)
class UnixListen(UnixAddress):
    """``unix:///path?mode=…`` to listen at, for clients of other users; without these options only the owner's."""

    mode: str | None = field(
        default=None,
        metadata=option(MODE, "rights of the socket's file", "A client needs the right to write.", usual="0600"),
    )
    group: str | None = field(
        default=None, metadata=option(PRINTABLE, "group of the socket's file, by name or number", example="GROUP")
    )

    def __str__(self) -> str:
        query = "&".join(f"{name}={quoted(given)}" for name, given in changed_options(self).items())
        place = f"unix://{quoted(self.path)}"
        return f"{place}?{query}" if query else place


@dataclass(frozen=True, slots=True)
class SystemdListen:
    """``systemd:NAME`` to listen at: a socket that systemd has opened (``FileDescriptorName`` of systemd.socket(5))."""

    name: str

    def __str__(self) -> str:
        return f"systemd:{self.name}"


@dataclass(frozen=True, slots=True)
class TLSTarget:
    """``tls://host:port``; files are paths of PEM files, without ``ca``, relay trusts the authorities of the system."""

    host: str
    port: int
    servername: str | None = field(default=None, metadata=SERVERNAME)
    ca: str | None = field(default=None, metadata=CA)
    cert: str | None = field(default=None, metadata=CLIENT_CERT)
    key: str | None = field(default=None, metadata=KEY)
    groups: str | None = field(default=None, metadata=KEY_GROUPS)
    mptcp: bool = field(default=False, metadata=_MPTCP)

    def __str__(self) -> str:
        return _tls_text(self)


@dataclass(frozen=True, slots=True)
class TLSListen:
    """``tls://host:port`` to listen at; files are paths of PEM files, and ``cert`` may hold the key as well."""

    host: str
    port: int
    cert: str = field(metadata=CERT)
    key: str | None = field(default=None, metadata=KEY)
    client_ca: str | None = field(default=None, metadata=CLIENT_CA)
    alpn: str | None = field(
        default=None,
        metadata=option(PROTOCOLS, "protocols to offer (ALPN), the preferred one first", example="h2,http/1.1"),
    )
    groups: str | None = field(default=None, metadata=KEY_GROUPS)
    mptcp: bool = field(default=False, metadata=_MPTCP)

    def __str__(self) -> str:
        return _tls_text(self)


class TargetOverTCP:
    """The base of further targets, whose modules ``import relay`` does not load. They are dataclasses."""

    __slots__ = ()
    host: str
    port: int
    __dataclass_fields__: ClassVar[dict[str, Any]]


class WithCertificate:
    """The base of those of the next ones at which clients speak TLS."""

    __slots__ = ()
    cert: str
    key: str | None
    client_ca: str | None
    groups: str | None
    __dataclass_fields__: ClassVar[dict[str, Any]]


class ListenAtPort:
    """The base of further addresses to listen on at a port of this machine, as above."""

    __slots__ = ()
    host: str
    port: int
    __dataclass_fields__: ClassVar[dict[str, Any]]


Target = TCPAddress | UnixAddress | TLSTarget | TargetOverTCP


def has_mptcp(address: object) -> bool:
    """Return whether relay is to use Multipath TCP at an address."""
    return isinstance(address, TCPAddress | TLSTarget | TLSListen) and address.mptcp


def check_host_port(host: str, port: int, *, least: int = 1) -> None:
    """Check the two arguments that every factory and listener over TCP takes.

    :param host: an IPv4 or IPv6 address (no brackets, a zone is allowed) or a name.
    :param port: from ``least`` to 65535.
    :param least: 1 to connect, 0 to listen.
    :raises TypeError: if one has the wrong type; it names the argument.
    :raises ValueError: if one has a value that is not allowed; the error names the argument.
    """
    if not isinstance(host, str):
        raise TypeError(f"host: expected a str, got {type(host).__name__}")
    if not host or host.startswith("-") or not host.isprintable() or not set(host).isdisjoint(" []/@"):
        raise ValueError(f"host: {host!r} is neither an address nor a name; 127.0.0.1, ::1 and db.internal are")
    if is_i2p(host):
        raise ValueError(f"host: {host!r} is a name of I2P, which is not looked up in the DNS; relay.i2p leads there")
    check_port(port, least)


def is_i2p(host: str) -> bool:
    """Return whether a host is a name of I2P, which must not be looked up in the DNS."""
    return _top_level(host) == "i2p"


def is_onion(host: str) -> bool:
    """Return whether a host is a name of Tor, which must not be looked up in the DNS (RFC 7686)."""
    return _top_level(host) == "onion"


def refuse_onion(host: str) -> None:
    """Reject a name of Tor, before the system's resolver gets it: the DNS would learn which site the user visits.

    :raises AddressError: if it is one.

    Source: RFC 7686, section 2.
    """
    if is_onion(host):
        remedy = "give Tor as the hop before it, --via tor:"
        raise AddressError(f"{printable(host)}: a name of Tor, which relay does not look up in the DNS; {remedy}")


def _top_level(host: str) -> str:
    """Return the last label of a host; other scripts have further dots and letters that mean the same (RFC 3490)."""
    if not host.isascii():
        try:
            host = host.encode("idna").decode("ascii")
        except UnicodeError:
            pass  # there is no such name
    return host.lower().rstrip(".").rpartition(".")[2]


def unix_path(path: str | os.PathLike[str]) -> str:
    """Return the absolute path of a Unix socket; a relative one starts at the current working directory.

    :raises TypeError: if ``path`` is not a path.
    :raises ValueError: if it is empty, holds a control character or is longer than a Unix socket's may be (unix(7)).
    """
    if not isinstance(path, (str, os.PathLike)) or not isinstance(os.fspath(path), str):
        raise TypeError(f"path: expected a str or pathlib.Path, got {type(path).__name__}")
    text = os.fspath(path)
    if not text or CONTROL.search(text):
        raise ValueError(f"path: {text!r} is empty or holds a control character")
    absolute = os.path.abspath(text)
    length = len(absolute.encode("utf-8", "surrogateescape"))
    if length > LONGEST_UNIX_PATH:
        raise ValueError(f"path: {absolute} has {length} bytes; a Unix socket's path has at most {LONGEST_UNIX_PATH}")
    return absolute


def check_port(port: int, least: int) -> None:
    """Check a port.

    :param least: the lowest that is allowed.
    :raises TypeError: if it is not an integer; the error names the argument.
    :raises ValueError: if it is out of range.
    """
    if not isinstance(port, int) or isinstance(port, bool):
        raise TypeError(f"port: expected an int, got {type(port).__name__}")
    if not least <= port <= 65535:
        raise ValueError(f"port: {port} is out of range; a port is a number from {least} to 65535")


def is_ip_address(host: str) -> bool:
    """Return whether a host is an IP address and not a name, with or without a zone."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def is_ipv6(host: str) -> bool:
    """Return whether a host is an IPv6 address, with or without a zone."""
    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Return whether a host is the loopback of its machine: by an address, with or without a zone, or as ``localhost``.

    No name is looked up. An IPv4 address that IPv6 maps counts as IPv4, as the system connects by IPv4 then.
    """
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host.lower() == "localhost"
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def quoted(value: str, safe: str = "/:@,+=~") -> str:
    """Return the value of a parameter as a URL has it."""
    return quote(value.encode("utf-8", "surrogateescape"), safe=safe)


def _tls_text(value: TLSTarget | TLSListen) -> str:
    query = "&".join(f"{name}={quoted(written(given))}" for name, given in changed_options(value).items())
    place = str(TCPAddress(value.host.replace("%", "%25"), value.port))
    return f"tls://{place}?{query}" if query else f"tls://{place}"
