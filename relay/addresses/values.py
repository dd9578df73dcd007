"""Addresses as values: ``tls://db.internal:5432?ca=db.pem`` and the like; :mod:`relay.addresses.parse` reads them.

Pure: nothing here does I/O. Every value is frozen, checked when it is made, and ``str(value)`` is an address that
parses to an equal value (but for :class:`SSHServer`, whose parameters may be secrets and are not shown).
"""

from __future__ import annotations

import ipaddress
import math
import os
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from urllib.parse import quote

from .printable import printable

__all__ = [
    "CONTROL",
    "I2P_LISTEN_PARAMETERS",
    "I2P_PARAMETERS",
    "LISTEN_PARAMETERS",
    "LONGEST_UNIX_PATH",
    "Listen",
    "PROXY_PARAMETERS",
    "SSHListen",
    "SSHServer",
    "SSH_PARAMETERS",
    "Secret",
    "TARGET_PARAMETERS",
    "TCPAddress",
    "TLSListen",
    "TLSTarget",
    "Target",
    "UnixAddress",
    "check_file",
    "check_place",
    "check_port",
    "check_secret",
    "check_variable",
    "is_i2p",
    "masked",
    "masked_parameters",
    "secret_variables",
    "shown",
    "unclear",
    "unix_path",
]

LONGEST_UNIX_PATH = 107 if sys.platform == "linux" else 103  # bytes; unix(7): sun_path without its final NUL
LONGEST_SHOWN = 120  # characters of an address that an error repeats
LONGEST_SSH_NAME = 255  # characters of a user or an alias

_secret_variables: set[str] = set()

TARGET_PARAMETERS = ("servername", "ca", "cert", "key")
LISTEN_PARAMETERS = ("cert", "key", "client_ca")
SECRETS = ("passphrase", "password")
SSH_FILES = ("keyfile", "passphrase_file", "password_file", "known_hosts", "config")
SSH_VARIABLES = ("passphrase_env", "password_env")
SSH_FLAGS = ("identities_only", "accept_new")
# In the order in which errors list them: that of relay help hops, and at the end what a command line refuses.
SSH_PARAMETERS = (
    "keyfile",
    "identities_only",
    "passphrase_file",
    "passphrase_env",
    "password_file",
    "password_env",
    "known_hosts",
    "hostkey",
    "accept_new",
    "config",
    "keepalive",
    "compress",
    "backend",
    *SECRETS,
)
I2P_PASSWORD = ("user", "password", "password_file", "password_env")
I2P_PARAMETERS = ("sam", "session", "keys", "in_depth", "out_depth", *I2P_PASSWORD)
PROXY_PARAMETERS = ("password", "password_file", "password_env")
I2P_LISTEN_PARAMETERS = (*I2P_PARAMETERS, "accept", "allow", "deny")
ALL_PARAMETERS = (*TARGET_PARAMETERS, *LISTEN_PARAMETERS, *SSH_PARAMETERS, *I2P_LISTEN_PARAMETERS, "listen")
SHOWN_PARAMETERS = {*ALL_PARAMETERS}.difference(SECRETS)

CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*")
_SSH_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")
_NOT_IN_A_USER = re.compile(r"""[\s%:'"`$;&<>|(){}\[\]*?!#]|\\$""")
_FINGERPRINT = re.compile(r"SHA256:[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]")  # 32 bytes: the last character holds four bits
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SHOWN_OPTION = re.compile(r"(inbound|outbound)\.\w+")  # of an I2P session; those of i2cp may be secrets


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

    Equal values share one connection. ``str`` of it is its name, without parameters, for errors and the log.

    :param host: a name, an alias, an IPv4 or an IPv6 address (without brackets and without a zone).
    :param user: who logs in; ``None`` for whom the configuration names, else who runs the program.
    :param port: 1 to 65535; ``None`` for that of the configuration, else 22.
    :param backend: ``paramiko`` or ``openssh``; ``None`` for paramiko unless something needs the client.
    :param keyfile: the private key that is offered; a ``.pub`` names a key of the agent.
    :param identities_only: whether ``keyfile`` is offered alone; else the keys of the configuration and of the agent
        follow it.
    :param passphrase: of ``keyfile``; text or a callable.
    :param passphrase_file: a file that holds it.
    :param passphrase_env: an environment variable that holds it.
    :param password: text or a callable.
    :param password_file: a file that holds it.
    :param password_env: an environment variable that holds it.
    :param known_hosts: a file of host keys in place of the user's own.
    :param config: a configuration file in place of the user's own.
    :param hostkey: the fingerprint that the host's key must have: ``SHA256:`` and 43 characters.
    :param accept_new: whether the key of a host that is not known yet is written down and trusted.
    :param keepalive: seconds between two signs of life; a server silent for three times as long is dead. ``None`` turns
        it off.
    :param compress: whether to compress; ``None`` leaves it to the configuration.
    :raises TypeError: if one has the wrong type; it names the argument, and shows no secret.
    :raises ValueError: if one has a value that cannot be right; likewise.

    Files are opened when a connection is made; their ``~`` is a home directory, as OpenSSH reads it.
    """

    host: str
    user: str | None = None
    port: int | None = None
    backend: str | None = None
    keyfile: str | None = None
    identities_only: bool = True
    passphrase: Secret | None = field(default=None, repr=False)
    passphrase_file: str | None = None
    passphrase_env: str | None = None
    password: Secret | None = field(default=None, repr=False)
    password_file: str | None = None
    password_env: str | None = None
    known_hosts: str | None = None
    config: str | None = None
    hostkey: str | None = None
    accept_new: bool = False
    keepalive: float | None = 15.0
    compress: bool | None = None

    def __post_init__(self) -> None:
        _check_ssh_host(self.host)
        _check_ssh_user(self.user)
        if self.port is not None:
            check_port(self.port, 1)
        for name in SSH_FILES:
            check_file(name, getattr(self, name))
        for name in SSH_VARIABLES:
            check_variable(name, getattr(self, name))
        for name in SECRETS:
            check_secret(name, getattr(self, name), getattr(self, f"{name}_file"), getattr(self, f"{name}_env"))
        if self.backend not in (None, "paramiko", "openssh"):
            raise ValueError(f"backend: must be paramiko or openssh, got {self.backend!r}")
        _check_pattern(
            "hostkey", self.hostkey, _FINGERPRINT, "a fingerprint", "SHA256: and 43 characters, as ssh-keygen -l"
        )
        for name in SSH_FLAGS:
            _check_flag(name, getattr(self, name))
        _check_keepalive(self.keepalive)
        if self.compress is not None:
            _check_flag("compress", self.compress)

    @property
    def has_password(self) -> bool:
        """Whether there is one, or a place that has it."""
        return any((self.password, self.password_file, self.password_env))

    @property
    def inline_secrets(self) -> tuple[str, ...]:
        """The names of those parameters that hold a secret as text."""
        return tuple(name for name in SECRETS if isinstance(getattr(self, name), str))

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        user = f"{quote(self.user.encode(), safe='+~=,/')}@" if self.user else ""
        return f"ssh://{user}{host}{f':{self.port}' if self.port else ''}"


@dataclass(frozen=True, slots=True)
class SSHListen:
    """``ssh://[user@]host[:port]?listen=HOST:PORT`` (or ``listen=/PATH``): the server listens for us there."""

    server: SSHServer
    place: TCPAddress | UnixAddress = TCPAddress("127.0.0.1", 0)

    def __str__(self) -> str:
        place = self.place.path if isinstance(self.place, UnixAddress) else str(self.place)
        return f"{self.server}?listen={_quoted(place)}"


Target = TCPAddress | UnixAddress | TLSTarget
Listen = TCPAddress | UnixAddress | TLSListen | SSHListen


def check_place(host: str, port: int, *, least: int = 1) -> None:
    """Check the two arguments that every factory and listener over TCP takes.

    :param host: an IPv4 or IPv6 address (no brackets, a zone is allowed) or a name.
    :param port: from ``least`` to 65535.
    :param least: 1 to connect, 0 to listen.
    :raises TypeError: if one has the wrong type; it names the argument.
    :raises ValueError: if one has a value that cannot be right; it names the argument.
    """
    if not isinstance(host, str):
        raise TypeError(f"host: expected a str, got {type(host).__name__}")
    if not host or host.startswith("-") or not host.isprintable() or any(c in host for c in " []/@"):
        raise ValueError(f"host: {host!r} is neither an address nor a name; 127.0.0.1, ::1 and db.internal are")
    if is_i2p(host):
        raise ValueError(f"host: {host!r} is a name of I2P, which is not looked up in the DNS; relay.i2p leads there")
    check_port(port, least)


def is_i2p(host: str) -> bool:
    """Whether a host is a name of I2P; looked up in the DNS, it would tell the resolver whom the user visits."""
    return host.lower().rstrip(".").rpartition(".")[2] == "i2p"


def unix_path(path: str | os.PathLike[str]) -> str:
    """The absolute path of a Unix socket; a relative one is taken from the working directory of now.

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


def masked(text: str) -> str:
    """An address fit to be printed: on one line, short, passwords and the values of unknown parameters replaced."""
    if text[:5].lower() == "exec:":
        program, space, _ = text.strip().partition(" ")
        return shown(f"{program}{space and ' …'}")  # what follows may hold a secret
    scheme, rest = _scheme_and_rest(text)
    head, mark, query = rest.partition("?")
    if unclear(text):
        return shown(f"{scheme}{head.partition(':')[0]}***")
    user, sign, place = head.rpartition("@")
    name, colon, _ = user.partition(":")
    return shown(f"{scheme}{name}{colon and ':***'}{sign}{place}{mark}{'&'.join(masked_parameters(query))}")


def shown(text: str) -> str:
    """Text that is no secret, fit to be printed: on one line and short."""
    return printable(text, LONGEST_SHOWN)


def unclear(text: str) -> bool:
    """Whether an address has a password with a question mark in it, or else a parameter with an @: nobody can tell."""
    before = _scheme_and_rest(text)[1].rpartition("@")[0]
    return "?" in before and ":" in before


def masked_parameters(query: str) -> list[str]:
    """The parameters of an address as they may be shown: what follows a secret and is unknown may belong to it."""
    found: list[str] = []
    after_a_secret = False
    for parameter in query.split("&"):
        name, sign, _ = parameter.partition("=")
        if name in SHOWN_PARAMETERS or _SHOWN_OPTION.fullmatch(name):
            found.append(parameter)
        elif name in SECRETS or not (after_a_secret or "@" in name):
            found.append(f"{name}{sign and '=***'}")
            after_a_secret = after_a_secret or bool(sign)
        else:
            found.append("***")
    return found


def _scheme_and_rest(text: str) -> tuple[str, str]:
    scheme, slashes, rest = text.partition("://")
    return (scheme + slashes, rest) if slashes and _SCHEME.fullmatch(scheme) else ("", text)


def check_port(port: int, least: int) -> None:
    """Check a port.

    :param least: the lowest that is allowed.
    :raises TypeError: if it is no number; it names the argument.
    :raises ValueError: if it is out of range.
    """
    if not isinstance(port, int) or isinstance(port, bool):
        raise TypeError(f"port: expected an int, got {type(port).__name__}")
    if not least <= port <= 65535:
        raise ValueError(f"port: {port} is out of range; a port is a number from {least} to 65535")


def _check_ssh_host(host: str) -> None:
    """Refuse what the client would take for an option or expand, and what a ``ProxyCommand``'s shell would."""
    if not isinstance(host, str):
        raise TypeError(f"host: expected a str, got {type(host).__name__}")
    if not (_is_ipv6(host) if ":" in host else _SSH_HOST.fullmatch(host)) or len(host) > LONGEST_SSH_NAME:
        allowed = "one is letters, digits, . _ + and - (not in front), or an IPv6 address without a zone"
        raise ValueError(f"host: {host!r} is not a host or an alias; {allowed}")


def _is_ipv6(host: str) -> bool:
    try:
        return ipaddress.IPv6Address(host).scope_id is None
    except ValueError:
        return False


def _check_ssh_user(user: str | None) -> None:
    if user is None:
        return
    if not isinstance(user, str):
        raise TypeError(f"user: expected a str, got {type(user).__name__}")
    bad = not user or user.startswith("-") or not user.isprintable() or _NOT_IN_A_USER.search(user)
    if bad or len(user) > LONGEST_SSH_NAME:
        allowed = "one has no spaces, no - in front, and nothing that a shell or ssh would expand"
        raise ValueError(f"user: {user!r} is not a user's name; {allowed}")


def check_file(name: str, value: str | None) -> None:
    """Check the path of a file.

    :raises TypeError: if it is no text; it names the argument.
    :raises ValueError: if it is empty or holds a control character.
    """
    if value is None:
        return
    if not isinstance(value, str):
        raise TypeError(f"{name}: expected a str, got {type(value).__name__}")
    if not value or CONTROL.search(value):
        raise ValueError(f"{name}: {value!r} is empty or holds a control character")


def _check_pattern(name: str, value: str | None, pattern: re.Pattern[str], what: str, allowed: str) -> None:
    if value is None:
        return
    if not isinstance(value, str):
        raise TypeError(f"{name}: expected a str, got {type(value).__name__}")
    if not pattern.fullmatch(value):
        raise ValueError(f"{name}: that is not {what}; {allowed}")  # not repeated: it may be a secret, by mistake


def check_variable(name: str, value: str | None) -> None:
    """Check the name of an environment variable that holds a secret; from now on :func:`secret_variables` has it.

    :raises TypeError: if it is no text; it names the argument.
    :raises ValueError: if it is no name of one.
    """
    _check_pattern(name, value, _VARIABLE, "the name of a variable", "letters, digits and _ are allowed")
    if value is not None:
        _secret_variables.add(value)


def secret_variables() -> frozenset[str]:
    """The environment variables that this program's addresses name as the place of a secret.

    No program that is started gets them. They stay here when the address is gone: its tunnel may still run.
    """
    return frozenset(_secret_variables)


def check_secret(name: str, value: Secret | None, *elsewhere: str | None) -> None:
    """Check a secret, which no error repeats.

    :param elsewhere: other places that are said to hold it; one is enough.
    :raises TypeError: if it is neither text nor a callable; it names the argument.
    :raises ValueError: if it is empty or given twice.
    """
    if value is not None and not isinstance(value, str) and not callable(value):
        raise TypeError(f"{name}: expected a str or a callable, got {type(value).__name__}")
    if value == "":
        raise ValueError(f"{name}: it is empty; leave it out where there is none")
    if sum(source is not None for source in (value, *elsewhere)) > 1:
        raise ValueError(f"{name}: it is given twice; one of {name}, {name}_file and {name}_env is enough")


def _check_flag(name: str, value: bool) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name}: expected True or False, got {type(value).__name__}")


def _check_keepalive(value: float | None) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"keepalive: expected a number of seconds or None, got {type(value).__name__}")
    if not 0 < value < math.inf:
        raise ValueError(f"keepalive: must be greater than 0, got {value}; use None to turn it off")


def _quoted(value: str) -> str:
    return quote(value.encode("utf-8", "surrogateescape"), safe="/:@,+=~")


def _tls_text(host: str, port: int, parameters: Iterable[tuple[str, str | None]]) -> str:
    query = "&".join(f"{name}={_quoted(value)}" for name, value in parameters if value is not None)
    place = str(TCPAddress(host.replace("%", "%25"), port))
    return f"tls://{place}?{query}" if query else f"tls://{place}"
