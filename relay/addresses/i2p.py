"""I2P addresses as values: ``i2p://name.i2p:81?sam=…`` and ``i2p:?keys=…``; :mod:`relay.addresses.parse` reads them.

Pure: nothing here does I/O. Every value is frozen and checked when it is made.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from .reader import AddressReader
from .values import (
    TARGET_PARAMETERS,
    Secret,
    TCPAddress,
    TLSTarget,
    check_file,
    check_port,
    check_secret,
    check_variable,
    is_i2p,
)

__all__ = [
    "CONNECT_TIMEOUT",
    "I2PListen",
    "I2PRouter",
    "I2PTarget",
    "LINGER",
    "SAM",
    "is_option",
    "parse_sam",
    "router_of",
]

SAM = "127.0.0.1:7656"  # where routers have their bridge, unless they are told otherwise
CONNECT_TIMEOUT = 90.0  # seconds that are usual in I2P: a session may have to be made first
LINGER = 5.0  # seconds: its streams have no half-close

_MOST_HOPS = 7  # I2P's own limit of hops in a tunnel
_LONGEST_NAME = 200  # characters of a session's name
_LONGEST_VALUE = 1000  # characters of an option's value
_OPTION = re.compile(r"(i2cp|inbound|outbound)\.[A-Za-z0-9_.-]{1,100}")


@dataclass(frozen=True, slots=True)
class I2PRouter:
    """A router's SAM bridge and the session that is made there: ``i2p:?sam=…``. Equal values share a session.

    ``str`` of it is its name, without parameters, for errors and the log.

    :param sam: where the bridge is: ``host:port`` or ``tls://host:port?servername=…&ca=…&cert=…&key=…``.
    :param session: the session's name; empty for a transient one.
    :param keys: a file with the destination's private key.
    :param in_depth: hops of the tunnels through which bytes come in, 0 to 7; ``None`` for the router's default (3).
    :param out_depth: of those through which they go out.
    :param user: who logs in at the bridge.
    :param password: text or a callable.
    :param password_file: a file that holds it.
    :param password_env: an environment variable that holds it.
    :param options: further ones of the session, such as ``inbound.quantity``: pairs, sorted.
    :raises TypeError: if one has the wrong type; it names the argument, and shows no secret.
    :raises ValueError: if one has a value that cannot be right; likewise.
    """

    sam: str = SAM
    session: str = ""
    keys: str | None = None
    in_depth: int | None = None
    out_depth: int | None = None
    user: str | None = None
    password: Secret | None = field(default=None, repr=False)
    password_file: str | None = None
    password_env: str | None = None
    options: tuple[tuple[str, str], ...] = field(default=(), repr=False)  # some are secrets

    def __post_init__(self) -> None:
        object.__setattr__(self, "sam", str(parse_sam(self.sam)))
        _check_session(self.session)
        for name in ("keys", "password_file"):
            check_file(name, getattr(self, name))
        for name in ("in_depth", "out_depth"):
            _check_depth(name, getattr(self, name))
        if self.user is not None:
            _check_text("user", self.user)
        check_variable("password_env", self.password_env)
        check_secret("password", self.password, self.password_file, self.password_env)
        if self.user is None and any((self.password, self.password_file, self.password_env)):
            raise ValueError("password: there is no user; SAM wants both, user= and a password")
        for name, value in self.options:
            _check_option(name, value)

    @property
    def inline_secrets(self) -> tuple[str, ...]:
        """The names of those parameters that hold a secret as text."""
        return ("password",) if isinstance(self.password, str) else ()

    def __str__(self) -> str:
        return f"i2p:?sam={self.sam.partition('?')[0]}"


@dataclass(frozen=True, slots=True)
class I2PTarget:
    """``i2p://name.i2p[:port]?sam=…``, ``….b32.i2p`` or a full base64 destination.

    :param dest: where to; see :func:`relay.addresses.destinations.check_destination`.
    :param port: the virtual port there (SAM's ``TO_PORT``); ``None`` to say nothing.
    :param router: through which router and session.
    :raises TypeError: if one has the wrong type; it names the argument.
    :raises ValueError: if one has a value that cannot be right; likewise, and it says what is wrong.
    """

    dest: str
    port: int | None = None
    router: I2PRouter = field(default_factory=I2PRouter)

    def __post_init__(self) -> None:
        from .destinations import check_destination

        if not isinstance(self.dest, str):
            raise TypeError(f"dest: expected a str, got {type(self.dest).__name__}")
        try:
            # The dot of the DNS's root means nothing here.
            dest = self.dest.removesuffix(".") if is_i2p(self.dest) else self.dest
            object.__setattr__(self, "dest", check_destination(dest))
        except ValueError as error:
            raise ValueError(f"dest: {error}") from None
        if self.port is not None:
            check_port(self.port, 1)

    def __str__(self) -> str:
        port = "" if self.port is None else f":{self.port}"
        return f"i2p://{self.dest}{port}"


@dataclass(frozen=True, slots=True)
class I2PListen:
    """``i2p:?keys=…``: a destination of ours, at which others connect to us.

    :param router: at which router, and the session.
    :param accept: ``accept`` or ``forward``; ``None`` for what the router shows it can do.
    :param allow: destinations, or files of them: who is let in; ``None`` for everybody.
    :param deny: likewise: who is not.
    :raises ValueError: if ``accept`` is neither.
    """

    router: I2PRouter = field(default_factory=I2PRouter)
    accept: str | None = None
    allow: tuple[str, ...] | None = None
    deny: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.accept not in (None, "accept", "forward"):
            raise ValueError(f"accept: must be accept or forward, got {self.accept!r}; leave it out for the default")

    def __str__(self) -> str:
        return str(self.router)


def parse_sam(text: str) -> TCPAddress | TLSTarget:
    """Read where a SAM bridge is.

    :param text: ``host:port``, ``tcp://host:port`` or ``tls://host:port?servername=…&ca=…&cert=…&key=…``.
    :returns: the address as a value.
    :raises AddressError: in one line: what, where, and what is allowed.
    :raises TypeError: if ``text`` is not a ``str``.
    """
    return _Sam(text, "sam").read()


class _Sam(AddressReader):
    example = SAM
    schemes = ("tcp", "tls")
    forms = f"allowed are host:port, as in {SAM}, and tls://host:port?ca=FILE"
    takes_i2p = True

    def read(self) -> TCPAddress | TLSTarget:
        scheme, rest = self.split()
        host, port, query = self.place(scheme, rest)
        given = self.parameters(f"{scheme or 'tcp'}://", query, TARGET_PARAMETERS if scheme == "tls" else ())
        return TLSTarget(host, port, **given) if scheme == "tls" else TCPAddress(host, port)


def router_of(options: Mapping[str, Any]) -> I2PRouter:
    """A router of keywords: its fields, and options of the session with their dots.

    :raises TypeError: if one is unknown or has the wrong type.
    :raises ValueError: if one has a value that cannot be right.
    """
    known = {one.name for one in fields(I2PRouter)} - {"options"}
    given = {name: os.fspath(value) if isinstance(value, os.PathLike) else value for name, value in options.items()}
    given = {name: value for name, value in given.items() if name in known}
    further = {name: value for name, value in options.items() if name not in known}
    for name in further:
        if not is_option(name):
            raise TypeError(f"{name}: there is no such keyword; i2cp.*, inbound.* and outbound.* are further options")
    return I2PRouter(**given, options=tuple(sorted((name, _written(name, value)) for name, value in further.items())))


def is_option(name: str) -> bool:
    """Whether this is the name of an option of a session: ``i2cp.…``, ``inbound.…`` or ``outbound.…``."""
    return _OPTION.fullmatch(name) is not None


def _written(name: str, value: Any) -> str:
    """The value of an option as SAM has it."""
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, (str, int, float)):
        raise TypeError(f"{name}: expected text, a number, True or False, got {type(value).__name__}")
    return str(value)


def _check_option(name: str, value: str) -> None:
    if not is_option(name):
        raise ValueError(f"{name}: that is no option of a session; i2cp.*, inbound.* and outbound.* are")
    if not value or not value.isprintable() or len(value) > _LONGEST_VALUE:
        raise ValueError(
            f"{name}: its value is empty, not printable or too long; {_LONGEST_VALUE} characters are allowed"
        )


def _check_session(name: str) -> None:
    if not isinstance(name, str):
        raise TypeError(f"session: expected a str, got {type(name).__name__}")
    if not name.isprintable() or len(name) > _LONGEST_NAME:
        raise ValueError(f"session: {name[:40]!r} is no name; one is printable, {_LONGEST_NAME} characters at most")


def _check_text(name: str, value: str) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{name}: expected a str, got {type(value).__name__}")
    if not value or not value.isprintable():
        raise ValueError(f"{name}: {value!r} is empty or not printable; printable text is allowed")


def _check_depth(name: str, depth: int | None) -> None:
    if depth is None:
        return
    if isinstance(depth, bool) or not isinstance(depth, int):
        raise TypeError(f"{name}: expected a number of hops, got {type(depth).__name__}")
    if not 0 <= depth <= _MOST_HOPS:
        raise ValueError(f"{name}: {depth} is out of range; 0 to {_MOST_HOPS} hops")
