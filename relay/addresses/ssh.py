"""SSH servers as values: ``ssh://me@bastion?keyfile=…``; :mod:`relay.addresses.parse` reads them.

Pure: nothing here does I/O. Every value is frozen and checked when it is made.
"""

from __future__ import annotations

import re
from dataclasses import KW_ONLY, dataclass, field
from urllib.parse import quote

from .options import (
    BUFFER,
    CARRIERS,
    FILE,
    FINGERPRINT,
    FLAG,
    RESUME,
    SECONDS,
    SECRET,
    TEXT,
    VARIABLE,
    Option,
    Secret,
    changed_options,
    check_hop_options,
    check_options,
    choice,
    option,
    written,
)
from .values import TCPAddress, UnixAddress, check_port, is_ipv6, quoted

_LONGEST_NAME = 255  # characters of a user or an alias
_HOST = r"[A-Za-z0-9_][A-Za-z0-9_.+-]*"
_NOT_IN_A_USER = r"""[\s%:'"`$;&<>|(){}\[\]*?!#]|\\$"""

ANY_PORT = TCPAddress("127.0.0.1", 0)
LISTEN = Option(TEXT, "as LISTEN or --on: where the server listens", example="HOST:PORT")
"""The parameter of :class:`SSHListen` that no server has."""


@dataclass(frozen=True, slots=True)
class SSHServer:
    """``ssh://[user@]host[:port]?…``, ``[user@]host[:port]`` or an alias of the user's SSH configuration.

    Plain data: equal values share one connection. ``str`` of it is its name, without options, for errors and the log.

    :param host: a name, an alias, an IPv4 or an IPv6 address (without brackets and without a zone).
    :param user: the user to log in as; ``None`` for that of the configuration, else the user who runs the program.
    :param port: 1 to 65535; ``None`` for that of the configuration, else 22.
    :raises TypeError: if one has the wrong type; the error names the argument and shows no secret.
    :raises ValueError: if one has a value that is not allowed.

    The options are the fields after ``port``. Files are opened when a connection is made; ``~`` in them is a home
    directory, as in OpenSSH.
    """

    host: str
    user: str | None = None
    port: int | None = None
    _: KW_ONLY
    keyfile: str | None = field(
        default=None,
        metadata=option(
            FILE,
            "private key to offer",
            "A ``.pub`` file names a key of the agent. By default relay offers those of your configuration and agent.",
        ),
    )
    identities_only: bool = field(
        default=True,
        metadata=option(
            FLAG,
            "whether to offer only the key of keyfile",
            "Otherwise the keys of your configuration and agent follow it.",
        ),
    )
    passphrase_file: str | None = field(
        default=None,
        metadata=option(FILE, "file with the passphrase of the key", "It must be owner-only (mode 0600)."),
    )
    passphrase_env: str | None = field(
        default=None,
        metadata=option(
            VARIABLE,
            "environment variable with the passphrase",
            "Programs that relay starts do not inherit it.",
        ),
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
    known_hosts: str | None = field(default=None, metadata=option(FILE, "host keys, instead of your own file"))
    hostkey: str | None = field(
        default=None,
        metadata=option(
            FINGERPRINT,
            "fingerprint that the host key must have",
            "It overrides every other source of trust. relay always rejects a revoked key (``@revoked``).",
        ),
    )
    accept_new: bool = field(default=False, metadata=option(FLAG, "whether to trust and store an unknown host key"))
    config: str | None = field(default=None, metadata=option(FILE, "SSH configuration, instead of your own"))
    keepalive: float | None = field(
        default=15.0,
        metadata=option(
            SECONDS,
            "seconds between keepalive probes, or none",
            "relay gives a server up after three probes without a reply.",
        ),
    )
    probe: bool = field(
        default=True,
        metadata=option(
            FLAG,
            "whether to probe it when the network changes",
            "After a new address, a new default route or a sleep, relay gives a server up that does not answer "
            "within 2 seconds.",
        ),
    )
    carriers: int = field(
        default=1,
        metadata=option(
            CARRIERS,
            "connections side by side, 1 to 8",
            "New streams use the healthiest one. A connection that is lost ends its own streams only.",
        ),
    )
    renew_after: float | None = field(
        default=None,
        metadata=option(
            SECONDS,
            "seconds until another connection takes over",
            "It takes new streams; the old connection closes with its last stream.",
        ),
    )
    resume: str | None = field(
        default=None,
        metadata=option(
            RESUME,
            "whether its streams outlive a lost connection",
            "``yes`` starts a relay there; a path is the socket of one.",
        ),
    )
    resume_for: float | None = field(
        default=120.0,
        metadata=option(
            SECONDS,
            "seconds for which resume waits, or none",
        ),
    )
    resume_buffer: str = field(
        default="4MiB",
        metadata=option(
            BUFFER,
            "memory of one stream with resume",
        ),
    )
    compress: bool | None = field(
        default=None,
        metadata=option(FLAG, "whether to compress", "By default your configuration decides."),
    )
    backend: str | None = field(
        default=None,
        metadata=option(
            choice("paramiko", "openssh"),
            "implementation of SSH",
            "By default paramiko, unless an option or your configuration needs the OpenSSH client.",
        ),
    )
    passphrase: Secret | None = field(
        default=None,
        repr=False,
        metadata=option(SECRET, "passphrase of the key"),
    )
    password: Secret | None = field(
        default=None,
        repr=False,
        metadata=option(
            SECRET,
            "password",
            "A callable that takes an argument answers each question of a keyboard-interactive login.",
        ),
    )

    def __post_init__(self) -> None:
        _check_host(self.host)
        _check_user(self.user)
        if self.port is not None:
            check_port(self.port, 1)
        check_options(self)
        given: object = self.resume  # as a keyword and in a file it may be a bool
        if isinstance(given, bool):
            object.__setattr__(self, "resume", "yes" if given else None)

    @property
    def has_password(self) -> bool:
        """``True`` if there is a password, or a place that has it."""
        return any((self.password, self.password_file, self.password_env))

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        user = f"{quote(self.user.encode(), safe='+~=,/')}@" if self.user else ""
        return f"ssh://{user}{host}{f':{self.port}' if self.port else ''}"


@dataclass(frozen=True, slots=True)
class SSHListen:
    """``ssh://[user@]host[:port]?listen=HOST:PORT`` (or ``listen=/PATH``): a port or a socket on an SSH server."""

    server: SSHServer
    place: TCPAddress | UnixAddress = ANY_PORT

    def __post_init__(self) -> None:
        check_hop_options(
            self.server, "this is for hops only; leave it out of a listener", "resume", "resume_for", "resume_buffer"
        )

    def __str__(self) -> str:
        place = self.place.path if isinstance(self.place, UnixAddress) else str(self.place)
        return f"{self.server}?listen={quoted(place)}"


def full_address(server: SSHServer) -> str:
    """Return a server as an address with all of its options, secrets included."""
    given = (f"{name}={quoted(written(value), safe='')}" for name, value in changed_options(server).items())
    return f"{server}?{'&'.join(given)}"


def _check_host(host: str) -> None:
    """Refuse a host that the client would take for an option or expand, or that a ``ProxyCommand``'s shell would."""
    if not isinstance(host, str):
        raise TypeError(f"host: expected a str, got {type(host).__name__}")
    if (
        not (("%" not in host and is_ipv6(host)) if ":" in host else re.fullmatch(_HOST, host))
        or len(host) > _LONGEST_NAME
    ):
        allowed = "one is letters, digits, . _ + and - (not in front), or an IPv6 address without a zone"
        raise ValueError(f"host: {host!r} is not a host or an alias; {allowed}")


def _check_user(user: str | None) -> None:
    if user is None:
        return
    if not isinstance(user, str):
        raise TypeError(f"user: expected a str, got {type(user).__name__}")
    bad = not user or user.startswith("-") or not user.isprintable() or re.search(_NOT_IN_A_USER, user)
    if bad or len(user) > _LONGEST_NAME:
        allowed = "one has no spaces, no - in front, and nothing that a shell or ssh would expand"
        raise ValueError(f"user: {user!r} is not a user's name; {allowed}")
