"""The settings for a server: the caller's parameters, then the user's SSH configuration."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import socket
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import NamedTuple, NoReturn

from ....addresses.options import FILE, options_of
from ....addresses.ssh import SSHServer
from ....addresses.values import is_ipv6
from ....errors import AddressError, RelayError
from ...files import home
from ..connection import CLIENT_HINT, Settings
from ..internals import LISTS, supported
from .identities import file_type
from .known_hosts import AUTHORITY, find
from .options import Options, local_user, read

logger = logging.getLogger("relay")

_FILES = tuple(name for name, option in options_of(SSHServer).items() if option.kind is FILE)
_NAME = re.compile(r"[\w.:+-]{1,253}")
_PORT = re.compile(r"[0-9]{1,5}")
_BRACKETED = re.compile(r"\[([^\[\]]*)\](?:(:)(.*))?", re.DOTALL)
_ZONE = re.compile(r"[A-Za-z0-9._~-]{1,64}")
_USER = re.compile(r"[^-\s%][^\s%]{0,255}")
_SAFE_USER = re.compile(r"[\w.@+=:,-]+")  # nothing that a shell reads as anything but text
_TOKEN = re.compile(r"%(.?)", re.DOTALL)
_VARIABLE = re.compile(r"\$\{([^}]*)\}")

_warned: set[str] = set()


class ClientOnly(NamedTuple):
    """One feature that the OpenSSH client has and paramiko lacks.

    :param option: the option of ssh_config(5), or another name of the feature.
    :param when: the condition, as text.
    :param applies: the condition, as a function.
    """

    option: str
    when: str
    applies: Callable[[Options, Settings], bool]


def resolve_settings(server: SSHServer, *, behind: bool = False) -> Settings:
    """Resolve the settings for a server; called for every connection attempt.

    ``ssh -G`` reads the user's configuration, or paramiko if there is no ``ssh``. The caller's parameters have
    precedence. Blocks until ``ssh -G`` has ended, for ten seconds at most.

    :param server: the server as the caller has given it.
    :param behind: whether it is behind hops: the last of these then resolves its name.
    :returns: the settings. The paths in their ``server`` have no ``~``; ``requires_openssh`` is the first of
        :data:`CLIENT_ONLY` that applies.
    :raises AddressError: if the configuration, or a file of the caller, is unusable; in one line.
    :raises ConnectError: if ``ssh -G`` does not end in time.
    :raises RelayError: if the caller requires paramiko, and only the OpenSSH client can connect to the server.
    :raises OSError: if ``ssh -G`` cannot be started.

    Source: ssh_config(5).
    """
    server = _expanded(server)
    options = read(server, behind=behind)
    hostname = _hostname(server, options.text("hostname") or server.host)
    port = server.port or _port(server, options.text("port") or "22")
    user = _user(server, server.user or options.text("user"))
    expand = _Expansion(server, hostname, port, user, options.text("hostkeyalias"))
    settings = Settings(
        server,
        hostname,
        port,
        user,
        agent=_agent(options, expand),
        known_hosts=_known_hosts(server, options, expand),
        host_key_name=options.text("hostkeyalias") or (hostname if port == 22 else f"[{hostname}]:{port}"),
        accept_new=server.accept_new or _accepts_new(server, options),
        hash_known_hosts=options.is_yes("hashknownhosts"),
        jumps=tuple(_jump(server, jump) for jump in filter(None, options.text("proxyjump").split(","))),
        command=expand.command(options.text("proxycommand")),
        compress=options.is_yes("compression") if server.compress is None else server.compress,
        ciphers=options.algorithms("ciphers"),
        kex=options.algorithms("kexalgorithms"),
        macs=options.algorithms("macs"),
        host_key_algorithms=options.algorithms("hostkeyalgorithms"),
        added=tuple(name for kind in LISTS for name in options.added(kind)),
        gssapi_key_exchange=options.is_yes("gssapikeyexchange"),
    )
    if server.backend == "paramiko" and settings.command is not None and options.is_yes("proxyusefdpass"):
        problem = "ProxyUseFdpass in the SSH configuration needs the OpenSSH client"
        raise RelayError(f"{server}: {problem}; use {CLIENT_HINT}")
    settings = _with_keys(settings, options, expand)
    return replace(settings, requires_openssh=_client_only_reason(options, settings))


def _expanded(server: SSHServer) -> SSHServer:
    """Return the server with ``~`` expanded in its paths."""
    paths = {name: path for name in _FILES if (path := getattr(server, name)) is not None}
    return replace(server, **{name: os.path.expanduser(path) for name, path in paths.items()})


def _fail(server: SSHServer, problem: str) -> NoReturn:
    raise AddressError(f"{server}: {problem}")


def _hostname(server: SSHServer, host: str) -> str:
    """Check that a host has no character with a meaning to a shell or ``ssh``."""
    if host.startswith("-") or not _NAME.fullmatch(host):
        literal, percent, zone = host.partition("%")
        if not (percent and is_ipv6(literal) and _ZONE.fullmatch(zone)):
            _fail(server, f"HostName {host[:80]!r} in the SSH configuration: expected a host name or an address")
    return host


def _port(server: SSHServer, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and 1 <= int(text) <= 65535):
        _fail(server, f"Port {text[:20]!r} in the SSH configuration: expected a number from 1 to 65535")
    return int(text)


def _user(server: SSHServer, user: str) -> str:
    if not _USER.fullmatch(user) or not user.isprintable():
        _fail(server, f"{user[:80]!r} is not a user name: remove a leading -, spaces, control characters and %")
    return user


def _jump(server: SSHServer, text: str) -> SSHServer:
    """Parse one server of ``ProxyJump``: ``[user@]host[:port]`` or an ``ssh://`` address, with the same ``config``."""
    user, at, place = text.strip().removeprefix("ssh://").rstrip("/").rpartition("@")
    bracketed = _BRACKETED.fullmatch(place)
    host, colon, port = bracketed.groups() if bracketed else place.rpartition(":")
    if not bracketed and (not colon or ":" in host):
        host, colon, port = place, "", ""  # no port; or an IPv6 address without brackets
    try:
        if colon and not _PORT.fullmatch(port):
            raise ValueError("its port is not a number from 1 to 65535")
        return SSHServer(host, user if at else None, int(port) if colon else None, config=server.config)
    except ValueError as error:
        _fail(server, f"ProxyJump {text[:80]!r} in the SSH configuration: {error}")


class _Expansion:
    """Percent signs, ``~`` and ``${…}`` in the values of one server (ssh_config(5), "TOKENS")."""

    def __init__(self, server: SSHServer, hostname: str, port: int, user: str, alias: str) -> None:
        self.server = server
        self.home = home()
        local = socket.gethostname()
        self.asked = {"%": "%", "h": hostname, "n": server.host, "p": str(port), "r": user, "k": alias or server.host}
        self.tokens = {
            **self.asked,
            "C": hashlib.sha1(f"{local}{hostname}{port}{user}".encode(), usedforsecurity=False).hexdigest(),
            "d": self.home,
            "i": str(os.getuid()),
            "j": "",
            "L": local.partition(".")[0],
            "l": local,
            "u": local_user(),
        }

    def path(self, text: str) -> str:
        """Expand the path of a file; empty if a variable in it is not set: the client then ignores the file, too."""
        if text == "~" or text.startswith("~/"):
            text = self.home + text[1:]
        names = _VARIABLE.findall(text)
        if any(name not in os.environ for name in names):
            return ""
        text = self._replaced(text, self.tokens)
        return os.path.expanduser(_VARIABLE.sub(lambda found: os.environ[found[1]], text))

    def paths(self, text: str) -> tuple[str, ...]:
        """Expand several paths on one line; a space may separate them or belong to one of them."""
        words = text.split(" ")
        found: list[str] = []
        while words:
            # `ssh -G` prints the files of one option with spaces between them, and quotes none.
            end = next((end for end in range(len(words), 1, -1) if self._exists(words[:end])), 1)
            found.append(self.path(" ".join(words[:end])))
            del words[:end]
        return tuple(filter(None, found))

    def _exists(self, words: Iterable[str]) -> bool:
        return os.path.exists(self.path(" ".join(words)))

    def command(self, text: str) -> str | None:
        """Expand a command for the shell. Values that could have a meaning to the shell are rejected."""
        if not text:
            return None
        for letter, value in self.asked.items():
            if f"%{letter}" in text and letter != "%" and not (_NAME.fullmatch(value) or _SAFE_USER.fullmatch(value)):
                _fail(self.server, f"{value[:80]!r} has characters that a shell would interpret in ProxyCommand")
        return self._replaced(text, self.asked)

    def _replaced(self, text: str, tokens: Mapping[str, str]) -> str:
        def token(found: re.Match[str]) -> str:
            if found[1] not in tokens:
                _fail(self.server, f"unknown token {found[0]!r} in {text[:80]!r} of the SSH configuration")
            return tokens[found[1]]

        return _TOKEN.sub(token, text)


def _agent(options: Options, expand: _Expansion) -> str | None:
    """Return the agent's socket: ``IdentityAgent``, else that of the environment."""
    wish = options.all("identityagent")
    if not wish or wish[0] == "SSH_AUTH_SOCK":
        return os.environ.get("SSH_AUTH_SOCK") or None
    if wish[0].lower() == "none":
        return None
    if wish[0].startswith("$") and not wish[0].startswith("${"):
        return os.environ.get(wish[0][1:]) or None
    return expand.path(wish[0]) or None


def _known_hosts(server: SSHServer, options: Options, expand: _Expansion) -> tuple[str, ...]:
    """Return the user's files, then the system's. New keys go to the first one, which must not be the system's."""
    if server.known_hosts is not None:
        own: tuple[str, ...] = (server.known_hosts,)
    else:
        own = expand.paths(options.text("userknownhostsfile")) or (os.devnull,)
    return own + expand.paths(options.text("globalknownhostsfile"))


def _accepts_new(server: SSHServer, options: Options) -> bool:
    wish = options.text("stricthostkeychecking").lower()
    if options.is_no("stricthostkeychecking") and str(server) not in _warned:
        _warned.add(str(server))
        logger.warning("%s: StrictHostKeyChecking no is treated as yes; set accept_new to trust unknown hosts", server)
    return wish == "accept-new"


def _with_keys(settings: Settings, options: Options, expand: _Expansion) -> Settings:
    """Add the keys to offer: the caller's, alone or first, and the existing ones of the configuration."""
    certificates = [path for path in map(expand.path, options.all("certificatefile")) if os.path.exists(path)]
    keyfile = settings.server.keyfile
    own = [] if keyfile is None else [keyfile]
    if own:
        if not os.path.exists(own[0]):
            _fail(settings.server, f"keyfile={keyfile}: no such file; check the path")
        if settings.server.identities_only:
            return replace(settings, identities=tuple(own), identities_only=True, certificates=tuple(certificates))
    elif options.is_no("pubkeyauthentication"):
        return replace(settings, agent=None)
    paths = [expand.path(path) for path in options.all("identityfile") if path.lower() != "none"]
    there = [path for path in paths if path and (os.path.exists(path) or os.path.exists(f"{path}.pub"))]
    return replace(
        settings,
        identities=tuple(dict.fromkeys((*own, *there))),
        identities_only=options.is_yes("identitiesonly"),
        certificates=tuple(certificates),
    )


def _client_only_reason(options: Options, settings: Settings) -> str:
    """Return why paramiko does not support the server, in a few words; empty if it does."""
    for need in CLIENT_ONLY:
        if need.applies(options, settings):
            return f"{need.option} {need.when}"
    return ""


def _has_security_key(options: Options, settings: Settings) -> bool:
    return any(file_type(path).startswith("sk-") for path in settings.identities)


def _without_pin(applies: Callable[[Options, Settings], bool]) -> Callable[[Options, Settings], bool]:
    """Ignore a source of trust if ``hostkey`` is set."""
    return lambda options, settings: settings.server.hostkey is None and applies(options, settings)


def _knows_authority_only(options: Options, settings: Settings) -> bool:
    markers = {entry.marker for entry in find(settings.known_hosts, settings.host_key_name)}
    return AUTHORITY in markers and "" not in markers


def _has_ticket(options: Options, settings: Settings) -> bool:
    """Return whether GSSAPI is on and usable: distributions enable it by default, also without a Kerberos ticket."""
    ticket = os.environ.get("KRB5CCNAME") or os.path.exists(f"/tmp/krb5cc_{os.getuid()}")  # noqa: S108
    return bool(ticket) and options.is_yes("gssapiauthentication")


def _is_set(name: str) -> Callable[[Options, Settings], bool]:
    return lambda options, settings: bool(options.text(name))


def _is_on(name: str) -> Callable[[Options, Settings], bool]:
    return lambda options, settings: options.is_yes(name)


def _lacks(name: str) -> Callable[[Options, Settings], bool]:
    def applies(options: Options, settings: Settings) -> bool:
        wanted, added = set(options.algorithms(name)), set(options.added(name))
        # paramiko is imported only for users who have set a list.
        own = set(supported(name)) if wanted or added else set()
        return not added <= own or (bool(wanted) and not wanted & own)

    return applies


def _has_other_provider(options: Options, settings: Settings) -> bool:
    return options.text("securitykeyprovider") not in ("", "internal")


# The first one that applies is the reason in errors and logs.
CLIENT_ONLY = (
    ClientOnly("a key of a security key (sk-…)", "among the key files", _has_security_key),
    ClientOnly("PKCS11Provider", "is set", _is_set("pkcs11provider")),
    ClientOnly("SecurityKeyProvider", "is set to a library", _has_other_provider),
    ClientOnly("GSSAPIAuthentication", "is on and there is a Kerberos ticket", _has_ticket),
    ClientOnly("HostbasedAuthentication", "is on", _is_on("hostbasedauthentication")),
    ClientOnly("@cert-authority", "is all that known_hosts has of the host", _without_pin(_knows_authority_only)),
    ClientOnly("KnownHostsCommand", "is set", _without_pin(_is_set("knownhostscommand"))),
    ClientOnly("RevokedHostKeys", "is set", _is_set("revokedhostkeys")),
    ClientOnly("VerifyHostKeyDNS", "is on", _without_pin(_is_on("verifyhostkeydns"))),
    ClientOnly("BindAddress", "is set", _is_set("bindaddress")),
    ClientOnly("BindInterface", "is set", _is_set("bindinterface")),
    ClientOnly("ProxyUseFdpass", "is on", _is_on("proxyusefdpass")),
    *(
        ClientOnly(option, "adds algorithms that paramiko lacks, or names only such", _lacks(option.lower()))
        for option in ("Ciphers", "KexAlgorithms", "MACs", "HostKeyAlgorithms", "PubkeyAcceptedAlgorithms")
    ),
)
