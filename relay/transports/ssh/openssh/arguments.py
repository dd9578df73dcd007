"""The command line of the master, and the private directory that its sockets are in."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import shlex
import shutil
import socket
import stat
import sys
import tempfile
from pathlib import Path

from ....errors import RelayError
from ..connection import Settings
from .channel_log import FUNCTIONS
from .trust import is_accepting

__all__ = ["CONTROL", "DESK", "arguments", "environment", "has_secret", "private_directory"]

_HELPER = str(Path(__file__).with_name("helper.py"))
DESK = "desk"  # the name of the socket at which we answer ssh's questions, made first; until it is up
CONTROL = "control"  # the name of the socket at which ssh listens from when it is up on
_PREFIX = "relay-ssh-"
_ROOM = 70  # bytes of a directory's path that leave room for the names in it (unix(7): 107), ssh's own suffix included
_CIPHERS = "aes128-gcm@openssh.com,aes256-gcm@openssh.com"  # half as fast again as what ssh prefers

# What a user's configuration may say and must not have here: nothing runs, nothing prompts, and no forward but ours.
_FIXED = (
    "ControlMaster=yes",
    "ControlPersist=no",
    "ClearAllForwardings=yes",
    "ExitOnForwardFailure=yes",
    "ForkAfterAuthentication=no",
    "RemoteCommand=none",
    "RequestTTY=no",
    "EscapeChar=none",
    "PermitLocalCommand=no",
    "StdinNull=yes",
    "Tunnel=no",
    "ForwardAgent=no",
    "ForwardX11=no",
    "AddKeysToAgent=no",
    "UpdateHostKeys=no",
    "NoHostAuthenticationForLocalhost=no",
    "FingerprintHash=sha256",
    "VisualHostKey=no",
    "StreamLocalBindUnlink=no",
    "NumberOfPasswordPrompts=1",
    "ServerAliveCountMax=2",
    "LogLevel=DEBUG1",
    f"LogVerbose={FUNCTIONS}",
)

# Whatever else would vouch for a host key. RevokedHostKeys stays: it only rejects.
_PIN_ONLY = (
    "UserKnownHostsFile=/dev/null",
    "GlobalKnownHostsFile=/dev/null",
    "VerifyHostKeyDNS=no",
    "CheckHostIP=no",
)

# Where the server is behind hops its name is theirs to look up, and nobody here is to be asked for it.
_NO_LOOKUPS = ("CanonicalizeHostname=no", "VerifyHostKeyDNS=no")


def private_directory() -> str:
    """Make a directory that nobody else can look into, with a path short enough for sockets in it.

    :raises OSError: if there is no place for it.
    """
    for parent in (tempfile.gettempdir(), os.environ.get("XDG_RUNTIME_DIR", ""), "/tmp", "/var/tmp"):  # noqa: S108
        if parent and len(os.fsencode(parent)) < _ROOM - 20 and os.access(parent, os.W_OK | os.X_OK):
            _sweep(parent)
            return tempfile.mkdtemp(prefix=_PREFIX, dir=parent)
    raise RelayError("control sockets: path too long; set TMPDIR to a directory with a shorter path")


def _sweep(parent: str) -> None:
    """Remove the directories of programs that were killed: their sockets are there, and nobody listens."""
    for folder in Path(parent).glob(f"{_PREFIX}*"):
        listening = [_is_listening(folder / name) for name in (DESK, CONTROL)]
        if True not in listening and False in listening:
            shutil.rmtree(folder, ignore_errors=True)


def _is_listening(path: Path) -> bool | None:
    """Whether somebody listens there; ``None`` if it is no socket of ours."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
        status = path.lstat()
        if stat.S_ISSOCK(status.st_mode) and status.st_uid == os.geteuid():
            probe.setblocking(False)
            return probe.connect_ex(str(path)) != errno.ECONNREFUSED
    return None


def has_secret(settings: Settings) -> bool:
    """Whether the caller gave something that answers ssh's questions."""
    server = settings.server
    names = ("password", "passphrase")
    return any(getattr(server, name + kind) is not None for name in names for kind in ("", "_file", "_env"))


def arguments(settings: Settings, folder: str, *, given: bool, seconds: float) -> list[str]:
    """The arguments of the master.

    :param settings: whom, how. What the caller did not say is left to ssh and its configuration.
    :param folder: the private directory.
    :param given: whether ssh gets its connection from us.
    :param seconds: for all of it.
    """
    server = settings.server
    options = [
        *_FIXED,
        f"ControlPath={_file(folder, 'control')}",
        f"BatchMode={'no' if has_secret(settings) else 'yes'}",
        f"StrictHostKeyChecking={'accept-new' if is_accepting(settings) else 'yes'}",
        f"ServerAliveInterval={0 if server.keepalive is None else max(1, int(server.keepalive))}",
        # A name may have several addresses, which ssh tries one after another.
        f"ConnectTimeout={max(1, math.ceil(seconds / 2))}",
        f"Compression={'yes' if settings.compress else 'no'}",
        *_trust(settings),
        *_identities(settings),
    ]
    if not settings.ciphers:
        options.append(f"Ciphers=^{_CIPHERS}")
    if given:
        helper = shlex.join([sys.executable, "-I", "-S", _HELPER, "connection", os.path.join(folder, DESK)])
        options += [f"ProxyCommand={helper.replace('%', '%%')}", "ProxyUseFdpass=yes", *_NO_LOOKUPS]
    return [
        "ssh",
        "-N",
        *(["-F", server.config] if server.config is not None else []),
        *(["-l", server.user] if server.user is not None else []),
        *(["-p", str(server.port)] if server.port is not None else []),
        *(word for option in options for word in ("-o", option)),
        "--",
        server.host,
    ]


def environment(settings: Settings, folder: str, *, given: bool) -> dict[str, str] | None:
    """The environment of the master; ``None`` for the program's own.

    :param given: whether ssh is to ask us for its connection. It has ``$SHELL`` run that, with a socket as standard
        input, for which bash would read ``~/.bashrc``; ``sh`` reads nothing.
    """
    added = {"SHELL": "/bin/sh"} if given else {}
    if has_secret(settings):
        shown = os.environ.get("DISPLAY", ":")
        added |= {"SSH_ASKPASS": _ask(folder), "SSH_ASKPASS_REQUIRE": "force", "DISPLAY": shown}
    return {**os.environ, **added} if added else None


def _ask(folder: str) -> str:
    """The program that answers ssh's questions: it takes no argument but the question, so it is a script of a line."""
    path = os.path.join(folder, "ask")
    line = shlex.join([sys.executable, "-I", "-S", _HELPER, "secret", os.path.join(folder, DESK)])
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o700), "w") as file:
        file.write(f'#!/bin/sh\nexec {line} "$1"\n')
    return path


def _identities(settings: Settings) -> list[str]:
    """The options for the key that the caller named, which ssh would try in place of those that are there by default.

    They are no ``-i``, which takes no path with a percent sign in it: it is looked for before it is expanded.
    """
    server = settings.server
    if server.keyfile is None:
        return []
    if server.identities_only:
        return [f"IdentityFile={_quoted(server.keyfile)}", "IdentitiesOnly=yes"]
    return [f"IdentityFile={_quoted(path)}" for path in settings.identities]


def _trust(settings: Settings) -> list[str]:
    server = settings.server
    if server.hostkey is not None:
        words = [sys.executable, "-I", "-S", _HELPER, "hostkey", server.hostkey]
        command = " ".join(map(_quoted, words)) + " %I %f %H %t %K"
        kerberos = ["GSSAPIKeyExchange=no"] if settings.gssapi_key_exchange else []
        return [f"KnownHostsCommand={command}", *_PIN_ONLY, *kerberos]
    if server.known_hosts is not None:
        return [f"UserKnownHostsFile={_quoted(server.known_hosts)}"]
    return []


def _file(folder: str, name: str) -> str:
    return _quoted(os.path.join(folder, name))


def _quoted(word: str) -> str:
    """One word of an option of ssh's that takes several and expands percent signs."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"'
