"""I2P addresses as values: ``i2p://name.i2p:81?sam=…`` and ``i2p:?keys=…``; :mod:`relay.addresses.parse` reads them.

Pure: nothing here does I/O. Every value is frozen and checked when it is made.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from .options import (
    CARRIERS,
    DEPTH,
    DESTINATIONS,
    FILE,
    FLAG,
    PRINTABLE,
    SECONDS,
    SECRET,
    TEXT,
    VARIABLE,
    Kind,
    Secret,
    check_hop_options,
    check_options,
    choice,
    option,
)
from .values import TCPAddress, TLSTarget, check_port, is_i2p

_SAM = TCPAddress("127.0.0.1", 7656)
SAM = str(_SAM)  # where routers have their bridge by default
CONNECT_TIMEOUT = 90.0  # seconds; a session may have to be created first
LINGER = 5.0  # seconds; SAM streams have no half-close

_MOST_BRIDGES = 8
_LONGEST_NAME = 200  # characters of a session's name
_LONGEST_VALUE = 1000  # characters of an option's value
_OPTION = r"(i2cp|inbound|outbound)\.[A-Za-z0-9_.-]{1,100}"


Bridges = tuple[TCPAddress | TLSTarget, ...]
"""The SAM bridges of routers, in the order in which they are tried."""


def _check_bridges(name: str, value: Any) -> None:
    if not isinstance(value, tuple) or not all(isinstance(one, TCPAddress | TLSTarget) for one in value):
        raise TypeError(f"{name}: expected a tuple of TCPAddress and TLSTarget, got {type(value).__name__}")
    if not 1 <= len(value) <= _MOST_BRIDGES:
        raise ValueError(f"{name}: {len(value)} bridges are given; 1 to {_MOST_BRIDGES} are allowed")
    if twice := next((one for one in value if value.count(one) > 1), None):
        raise ValueError(f"{name}: {twice} is written twice; once is enough")


# :mod:`relay.addresses.i2p_parser` makes the value of the text.
BRIDGES = Kind(str | list[str], "str | Sequence[str]", "HOST:PORT", _check_bridges, is_repeatable=True)


@dataclass(frozen=True, slots=True)
class I2PRouter:
    """The SAM bridge of a router, or of several, and a session there: ``i2p:?sam=…``. Equal values share a session.

    ``str`` of it is its name, without options, for errors and the log.

    :param options: further options of the session, such as ``inbound.quantity``: pairs, sorted.
    :raises TypeError: if one has the wrong type; the error names the argument and shows no secret.
    :raises ValueError: if one has a value that is not allowed.

    The other fields are the options of an address.
    """

    sam: Bridges = field(
        default=(_SAM,),
        metadata=option(
            BRIDGES,
            "SAM bridge of the router",
            "``host:port`` or ``tls://host:port?servername=…&ca=…&cert=…&key=…``; in an address, write ``&`` as "
            "``%26``. Repeatable: the session is at the first router that answers, and moves to the next one when it "
            "is lost.",
            usual=SAM,
        ),
    )
    session: str = field(
        default="",
        metadata=option(
            TEXT,
            "name of the session",
            "A listener's name keeps its destination. A client has a new destination unless ``keys`` is set.",
        ),
    )
    keys: str | None = field(
        default=None,
        metadata=option(
            FILE,
            "file with the private key of the destination",
            "relay creates it if it is missing (mode 0600) and locks it while it is in use.",
        ),
    )
    carriers: int = field(
        default=1,
        metadata=option(
            CARRIERS,
            "sessions side by side, 1 to 8",
            "New streams use the healthiest one. A session that is lost ends its own streams only. Not with ``keys``.",
        ),
    )
    renew_after: float | None = field(
        default=None,
        metadata=option(
            SECONDS,
            "seconds until another session takes over",
            "It takes new streams; the old session ends with its last stream. Not with ``keys``.",
        ),
    )
    in_depth: int | None = field(default=None, metadata=option(DEPTH, "hops of inbound tunnels, 0 to 7", usual="3"))
    out_depth: int | None = field(default=None, metadata=option(DEPTH, "hops of outbound tunnels, 0 to 7", usual="3"))
    user: str | None = field(default=None, metadata=option(PRINTABLE, "user, for a SAM bridge with authentication"))
    password: Secret | None = field(
        default=None,
        repr=False,
        metadata=option(SECRET, "password of that user"),
    )
    password_file: str | None = field(
        default=None,
        metadata=option(FILE, "file with the password", "It must be owner-only (mode 0600)."),
    )
    password_env: str | None = field(
        default=None,
        metadata=option(
            VARIABLE,
            "environment variable with the password",
            "Programs that relay starts do not inherit it.",
        ),
    )
    options: tuple[tuple[str, str], ...] = field(default=(), repr=False)  # some are secrets

    def __post_init__(self) -> None:
        check_options(self)
        if not self.session.isprintable() or len(self.session) > _LONGEST_NAME:
            problem = f"{self.session[:40]!r} is no name; one is printable, {_LONGEST_NAME} characters at most"
            raise ValueError(f"session: {problem}")
        if self.user is None and any((self.password, self.password_file, self.password_env)):
            raise ValueError("password: no user is given; SAM needs both, user= and a password")
        if self.keys is not None:
            check_hop_options(self, "a router has one session of the same keys; remove it or keys")
        for name, value in self.options:
            _check_option(name, value)

    def __str__(self) -> str:
        return f"i2p:?{'&'.join('sam=' + str(bridge).partition('?')[0] for bridge in self.sam)}"


@dataclass(frozen=True, slots=True)
class I2PTarget:
    """``i2p://name.i2p[:port]?sam=…``, ``….b32.i2p`` or a full base64 destination.

    :param dest: the destination; see :func:`relay.addresses.destinations.check_destination`.
    :param port: the virtual port there (SAM's ``TO_PORT``); ``None`` for none.
    :param router: the router and the session.
    :raises TypeError: if one has the wrong type; it names the argument.
    :raises ValueError: if one has a value that is not allowed; the error names the argument and the problem.
    """

    dest: str
    port: int | None = None
    router: I2PRouter = field(default_factory=I2PRouter)

    def __post_init__(self) -> None:
        from .destinations import check_destination

        if not isinstance(self.dest, str):
            raise TypeError(f"dest: expected a str, got {type(self.dest).__name__}")
        try:
            # The dot of the DNS root has no meaning here.
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
    """``i2p:?keys=…``: a local destination, to which others connect.

    :param router: the router and the session.
    :raises TypeError: if one has the wrong type; the error names the argument.
    :raises ValueError: if ``accept`` has a value that is not allowed.
    """

    router: I2PRouter = field(default_factory=I2PRouter)
    accept: str | None = field(
        default=None,
        metadata=option(
            choice("accept", "forward"),
            "as LISTEN or --on: how streams come in",
            "``forward``: the router connects to a local port, so it must be on the same machine. ``accept``: relay "
            "waits at the bridge for each stream. By default relay uses what the router and the kernel support.",
        ),
    )
    allow: tuple[str, ...] | None = field(
        default=None,
        metadata=option(
            DESTINATIONS,
            "as LISTEN or --on: only these may connect",
            "Destinations, or files with one in each line. Repeatable.",
        ),
    )
    deny: tuple[str, ...] = field(
        default=(),
        metadata=option(
            DESTINATIONS,
            "as LISTEN or --on: these may not connect",
            "Destinations, or files with one in each line. Repeatable; it wins over ``allow``.",
        ),
    )

    standby: bool = field(
        default=False,
        metadata=option(
            FLAG,
            "as LISTEN or --on: other machines have the keys",
            "One of them serves the destination; the others stand by, and one takes over when it does not answer.",
        ),
    )

    def __post_init__(self) -> None:
        check_options(self)
        check_hop_options(self.router, "this is for hops only; leave it out of a listener")

    def __str__(self) -> str:
        return str(self.router)


def is_option(name: str) -> bool:
    """Return whether this is the name of an option of a session: ``i2cp.…``, ``inbound.…`` or ``outbound.…``."""
    return re.fullmatch(_OPTION, name) is not None


def _check_option(name: str, value: str) -> None:
    if not is_option(name):
        raise ValueError(f"{name}: that is no option of a session; i2cp.*, inbound.* and outbound.* are")
    if not value or not value.isprintable() or len(value) > _LONGEST_VALUE:
        raise ValueError(
            f"{name}: its value is empty, not printable or too long; {_LONGEST_VALUE} characters are allowed"
        )


def router_of(address: object) -> I2PRouter | None:
    """Return the router of an address at I2P, or the router itself; ``None`` for any other address."""
    if isinstance(address, I2PTarget | I2PListen):
        return address.router
    return address if isinstance(address, I2PRouter) else None
