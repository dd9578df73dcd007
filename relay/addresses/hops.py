"""Hops as values: the servers, routers, proxies and programs on a route; :mod:`relay.addresses.parse` reads them.

Pure: nothing here does I/O. Every value is frozen and checked when it is made, equal values are the same route, and
``str`` of one is its name, without secrets, for errors and the log.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal, Self, TypeAlias, TypeGuard
from urllib.parse import quote

from ..errors import AddressError, ConnectError
from .i2p import I2PListen, I2PRouter, I2PTarget
from .options import CONTROL, FILE, SECRET, VARIABLE, Secret, check_options, option
from .resume import ResumeListen, ResumeServer, place_of
from .ssh import SSHListen, SSHServer
from .values import (
    ListenAtPort,
    SystemdListen,
    TCPAddress,
    TLSListen,
    UnixAddress,
    UnixListen,
    check_host_port,
    has_mptcp,
    is_i2p,
)

if TYPE_CHECKING:  # a program without Tor does not load it
    from .tor import TorListen

ProxyProtocol = Literal["socks5", "http", "https", "ws", "wss", "sni", "redirect"]
UNASKED = ("sni", "redirect")
"""The protocols of listeners only, whose clients do not know that they are there, and so cannot log in."""

_LONGEST_LOGIN = 255  # bytes of a user or a password; RFC 1929, section 2
_LONGEST_COMMAND = 4096  # characters


@dataclass(frozen=True, slots=True, kw_only=True)
class Password:
    """The options that give a password.

    :raises TypeError: if one has the wrong type; the error names the argument and shows no secret.
    :raises ValueError: if one has a value that is not allowed, or there are two of them.
    """

    password: Secret | None = field(default=None, repr=False, metadata=option(SECRET, "password"))
    password_file: str | None = field(
        default=None, metadata=option(FILE, "file with the password", "It must be owner-only (mode 0600).")
    )
    password_env: str | None = field(
        default=None,
        metadata=option(
            VARIABLE,
            "environment variable with the password",
            "Programs that relay starts do not inherit it.",
        ),
    )

    def __post_init__(self) -> None:
        check_options(self)

    @property
    def has_password(self) -> bool:
        """``True`` if there is a password, or a place that has it."""
        return any((self.password, self.password_file, self.password_env))


@dataclass(frozen=True, slots=True)
class _ProxyAddress(Password):
    protocol: ProxyProtocol
    host: str
    port: int
    user: str | None = None

    def __post_init__(self) -> None:
        is_listen = isinstance(self, ProxyListen)
        if self.protocol not in (*("socks5", "http", "https", "ws", "wss"), *(UNASKED if is_listen else ())):
            allowed = "socks5, http, https, ws, wss, sni or redirect" if is_listen else "socks5, http, https, ws or wss"
            raise ValueError(f"protocol: must be {allowed}, got {self.protocol!r}")
        if self.protocol in UNASKED and (self.user is not None or self.has_password):
            raise ValueError(f"user: the clients of {self.protocol}:// cannot log in; use allow and deny")
        least = 0 if is_listen else 1
        check_host_port("proxy" if is_i2p(self.host) else self.host, self.port, least=least)
        check_options(self)
        if self.user is None:
            if self.has_password:
                raise ValueError("password: no user is given; a proxy needs both, user@ and a password")
            return
        _check_user(self.user, self.protocol)
        if not self.has_password:
            raise ValueError("user: password missing; set password_file= or password_env=")


@dataclass(frozen=True, slots=True)
class Proxy(_ProxyAddress):
    """``socks5://[user@]host:port`` (RFC 1928) or ``http://[user@]host:port`` (CONNECT; RFC 9110, section 9.3.6).

    :param protocol: ``socks5`` or ``http``.
    :param host: a name, or an IPv4 or IPv6 address (no brackets); one in ``.i2p`` is reached over I2P.
    :param port: from 1 to 65535.
    :param user: the user to log in as; ``None`` for no login.
    :raises TypeError: if one has the wrong type; the error names the argument and shows no secret.
    :raises ValueError: if one has a value that is not allowed.
    """

    is_tor: ClassVar[bool] = False  # its streams have no half-close then

    @property
    def place(self) -> TCPAddress:
        """The address of the proxy."""
        return TCPAddress(self.host, self.port)

    def __str__(self) -> str:
        user = f"{quote(self.user)}@" if self.user else ""
        return f"{self.protocol}://{user}{self.place}"


@dataclass(frozen=True, slots=True)
class ProxyListen(_ProxyAddress):
    """``socks5://[user@]host:port`` or ``http://[user@]host:port`` to listen on: clients name their targets.

    Those of ``sni://host:port`` name it in the first message of TLS. Those of ``redirect://host:port`` have connected
    to it, and a firewall has redirected them. The parameters are those of :class:`Proxy`; port 0 picks a free one.
    """

    def __str__(self) -> str:
        return f"{self.protocol}://{TCPAddress(self.host, self.port)}"


@dataclass(frozen=True, slots=True)
class Command:
    """``exec:command %h %p``: a program whose standard input and output is the stream; relay uses no shell.

    As a hop, ``%h`` and ``%p`` are the host and the port to connect to, as in the ``ProxyCommand`` of
    ssh_config(5); ``%%`` is a percent sign. After an SSH server it runs there.

    :param text: the words, quoted as in a POSIX shell, but without its variables, pipes or globs.
    :raises TypeError: if it is not text.
    :raises ValueError: if it is empty, too long or badly quoted, or has an unknown percent sequence.
    """

    scheme: ClassVar[str] = "exec"
    example: ClassVar[str] = "exec:nc %h %p"
    text: str
    argv: tuple[str, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.text, str):
            raise TypeError(f"{self.scheme}: expected a str, got {type(self.text).__name__}")
        if CONTROL.search(self.text) or len(self.text) > _LONGEST_COMMAND:
            allowed = f"{_LONGEST_COMMAND} characters are allowed"
            raise ValueError(f"{self.scheme}: a control character, or too long; {allowed}")
        try:
            argv = tuple(shlex.split(self.text))
        except ValueError as error:
            raise ValueError(f"{self.scheme}: {str(error).lower()}; words are quoted as in a shell") from None
        if not argv or not argv[0]:
            raise ValueError(f"{self.scheme}: no command is given; for example {self.example}")
        for word in argv:
            _fill(word, "", "", self.scheme)
        object.__setattr__(self, "argv", argv)

    @property
    def is_hop(self) -> bool:
        """``True`` if it has ``%h`` or ``%p``."""
        return any(_fill(word, "x", "x") != _fill(word, "", "") for word in self.argv)

    def to(self, place: TCPAddress) -> Self:
        """Return the command with the host and the port of an address filled in.

        :raises ValueError: if the host could be taken for an option.
        """
        # The host comes from a proxy's client, perhaps, and must not begin with a dash, where the program would read an
        # option.
        check_host_port("host" if is_i2p(place.host) else place.host, place.port)
        # Quoted again: the result is a Command as well, whose words are filled once more.
        argv = [_fill(word, place.host, str(place.port)).replace("%", "%%") for word in self.argv]
        return type(self)(shlex.join(argv))

    @property
    def words(self) -> tuple[str, ...]:
        """The argument list, with ``%%`` as a percent sign. For a hop, use that of :meth:`to`."""
        return tuple(_fill(word, "", "") for word in self.argv)

    def __str__(self) -> str:
        # Only the program: its arguments may hold a secret.
        return f"{self.scheme}:{os.path.basename(self.argv[0])}{' …' if len(self.argv) > 1 else ''}"


Hop = SSHServer | I2PRouter | Proxy | Command | ResumeServer
Route = tuple[Hop, ...]
if TYPE_CHECKING:
    _AtServer: TypeAlias = SSHListen | I2PListen | TorListen
    _AtMachine: TypeAlias = TCPAddress | UnixListen | TLSListen | ProxyListen | SystemdListen | ListenAtPort
    Listen: TypeAlias = _AtMachine | _AtServer | ResumeListen
else:
    _AtMachine = TCPAddress | UnixListen | TLSListen | ProxyListen | SystemdListen | ListenAtPort
    Listen = _AtMachine | SSHListen | I2PListen | ResumeListen
AT_PORT = TCPAddress | TLSListen | ProxyListen | ListenAtPort
"""The addresses to listen on that have a port of this machine."""
Place = TCPAddress | UnixAddress | Command


def listens_at_server(address: object) -> TypeGuard[SSHListen | I2PListen | TorListen]:
    """Return whether a server listens for relay: only one listener can be there, and no socket can be handed over."""
    return isinstance(address, SSHListen | I2PListen) or listens_at_tor(address)


def listens_at_tor(address: object) -> TypeGuard[TorListen]:
    """Return whether an address to listen on is an onion service."""
    return getattr(address, "is_tor", False) and not isinstance(address, Proxy)


def owner_of_keys(address: object) -> I2PRouter | TorListen | None:
    """Return the value with the options ``keys`` and ``session`` of an address to listen on; ``None`` without them."""
    if isinstance(address, I2PListen):
        return address.router
    return address if listens_at_tor(address) else None


def is_slow(route: Sequence[Hop], *places: object) -> bool:
    """Return whether a route uses I2P or Tor, which take longer.

    :param route: the hops.
    :param places: the other addresses on it.
    """
    return any(
        isinstance(one, I2PRouter | I2PTarget) or getattr(one, "is_tor", False) or is_i2p(getattr(one, "host", ""))
        for one in (*map(place_of, route), *places)
    )


def to_i2p(route: Route, place: object) -> bool:
    """Return whether the stream to a target is a SAM stream, which has no half-close.

    :param route: the hops.
    :param place: the target.
    """
    if isinstance(place, I2PTarget):
        return True
    last = route[-1] if route else None
    is_name = isinstance(place, TCPAddress) and is_i2p(place.host)
    return isinstance(place, TCPAddress) and (
        isinstance(last, I2PRouter) or (is_name and not isinstance(last, Proxy | Command))
    )


def keeps_half_close(route: Route, place: object) -> bool:
    """Return whether the stream to a target can end in one direction alone: not at I2P, and not at Tor.

    :param route: the hops.
    :param place: the target.
    """
    for hop in reversed(route if isinstance(place, TCPAddress) else ()):
        if not isinstance(hop, Proxy) or hop.protocol == "https":  # TLS has ends of its own
            break
        if hop.is_tor:
            return False
    return not to_i2p(route, place)


def hop_of(error: object, route: Sequence[object]) -> int | None:
    """Return the number of the hop, from 1, that an error begins with; ``None`` if it names no hop."""
    text = str(error)
    for number, hop in enumerate(route, 1):
        if text.startswith(f"{hop}: "):
            return number
    return None


def check_route(route: Route, place: object) -> None:
    """Reject a chain in which a hop cannot lead to the next address. Opens nothing.

    An alias of an SSH configuration after ``i2p:`` is accepted, because its host is not known yet.

    :param route: the hops, the nearest first.
    :param place: the address after the last one.
    :raises AddressError: if the chain is impossible; it names the two addresses.
    """
    if not route:
        return
    if has_mptcp(place):
        raise AddressError(f"{place}: {route[-1]} connects to it over plain TCP; leave mptcp out")
    count = len(route)
    for number, (hop, after) in enumerate(zip(route, (*route[1:], place), strict=True), 1):
        if problem := _misfit(hop, place_of(after)):
            what = f"hop {number + 1} of {count} ({after})" if number < count else f"{after}"
            before = f"hop {number} of {count} ({hop})" if count > 1 else f"the hop {hop}"
            raise AddressError(f"{what}: {problem.format(before)}")


def _misfit(hop: Hop, place: object) -> str:
    """Return why a hop cannot lead to an address, with ``{}`` for the hop; empty if it can."""
    if isinstance(place, Command) and place.scheme == "port":
        return "it runs on this machine alone, where nothing is before it; {} is: leave that out"
    if isinstance(place, (Command, UnixAddress)) and isinstance(hop, ResumeServer):
        return "the relay at {} dials hosts and ports only"
    if isinstance(place, (Command, UnixAddress)) and getattr(hop, "resume", None) is not None:
        return "the relay at {} dials hosts and ports only; leave resume out for this target"
    here = "is on this machine, or on a server directly behind an ssh:// hop;"
    if isinstance(place, (Command, UnixAddress)) and not isinstance(hop, SSHServer):
        what = "a command" if isinstance(place, Command) else "a Unix socket"
        return f"{what} {here} {{}} leads to hosts and ports only"
    if isinstance(hop, I2PRouter) and not _may_be_i2p(place):
        return "what follows i2p: has a name in .i2p; {} leads nowhere else"
    return ""


def _may_be_i2p(place: object) -> bool:
    if isinstance(place, I2PTarget):
        return place.router == I2PRouter() or _may_be_i2p(place.router)
    if isinstance(place, I2PRouter):
        return any(is_i2p(bridge.host) for bridge in place.sam)
    host = getattr(place, "host", "")
    is_alias = isinstance(place, SSHServer) and "." not in host and ":" not in host
    return is_alias or is_i2p(host)


def with_hop(error: OSError, hop: Hop, before: Route) -> OSError:
    """Return an error with the name of its hop: a hop before it, if the error names one."""
    if not isinstance(error, ConnectError) or hop_of(error, (*before, hop)) is not None:
        return error
    return ConnectError(f"{hop}: {error}", reason=error.reason)


def _check_user(user: str, protocol: str) -> None:
    if not isinstance(user, str):
        raise TypeError(f"user: expected a str, got {type(user).__name__}")
    if not user or not user.isprintable() or len(user.encode()) > _LONGEST_LOGIN:
        raise ValueError(f"user: it is empty, not printable or too long; {_LONGEST_LOGIN} bytes are allowed")
    if protocol != "socks5" and ":" in user:
        raise ValueError("user: must not contain a colon; the password begins there (RFC 7617, section 2)")


def _fill(word: str, host: str, port: str, scheme: str = "exec") -> str:
    """Return a word of a command with its percent sequences replaced."""
    parts = word.split("%")
    found = [parts[0]]
    pending = iter(parts[1:])
    for part in pending:
        if part.startswith("h"):
            found.append(host + part[1:])
        elif part.startswith("p"):
            found.append(port + part[1:])
        elif not part and (rest := next(pending, None)) is not None:
            found.append(f"%{rest}")
        else:
            raise ValueError(f"{scheme}: %{part[:1]} is unknown; %h is the host, %p the port, %% a percent sign")
    return "".join(found)
