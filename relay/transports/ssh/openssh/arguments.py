"""The command line and environment of the master, and the private directory for its sockets."""

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
import time
from pathlib import Path

from ....errors import RelayError
from ..connection import Settings
from .channel_log import FUNCTIONS
from .host_keys import HELPER, is_accepting, quoted, trust_options

ASKPASS = "askpass"  # the name of the socket for ssh's questions: made first, closed after the login
CONTROL = "control"  # the name of the control socket, at which ssh listens after the login
_PREFIX = "relay-ssh-"
_YOUNG = 60.0  # seconds after which a directory without a named socket is not one that is being made
_ROOM = 70  # bytes of a directory's path: the rest of 107 (unix(7)) is for names in it, with ssh's own suffix
_CIPHERS = "aes128-gcm@openssh.com,aes256-gcm@openssh.com"  # 1.5 times as fast as the first choice of ssh

# These replace the user's configuration: no local command, no prompt, and no forwards except relay's.
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

# With a passphrase relay answers questions, and ssh would send an empty password where it has none to answer with. A
# keyboard-interactive login stays possible: servers may confirm it elsewhere and ask nothing here.
_NO_PASSWORD = ("PasswordAuthentication=no",)

# The last hop resolves the name of a server behind hops; this machine must send no DNS query for it.
_NO_LOOKUPS = ("CanonicalizeHostname=no", "VerifyHostKeyDNS=no")


# A buffer of ssh grows by 32 KiB at a time, up to 4 MiB where the reader is slower than the server, and each time it is
# copied. glibc would take memory of the system for each copy, and give it back: tens of thousands of page faults.
_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(8 << 20), "MALLOC_TRIM_THRESHOLD_": str(8 << 20)}


def private_directory() -> str:
    """Make an owner-only directory whose path is short enough for sockets in it.

    :returns: its path.
    :raises RelayError: if each parent directory has a too long path, or cannot be written.
    :raises OSError: if it cannot be made.
    """
    for parent in (tempfile.gettempdir(), os.environ.get("XDG_RUNTIME_DIR", ""), "/tmp", "/var/tmp"):  # noqa: S108
        if parent and len(os.fsencode(parent)) < _ROOM - 20 and os.access(parent, os.W_OK | os.X_OK):
            sweep(parent)
            return tempfile.mkdtemp(prefix=_PREFIX, dir=parent)
    raise RelayError("control sockets: path too long; set TMPDIR to a directory with a shorter path")


def sweep(parent: str) -> None:
    """Remove the private directories of processes that were killed: no process listens at the sockets in them.

    Without a descriptor to look for them they stay until the next call; that is no error.

    :param parent: the directory with private directories.
    """
    found: list[Path] = []
    with contextlib.suppress(OSError):
        found += Path(parent).glob(f"{_PREFIX}*")
    for folder in found:
        listening = [_is_listening(folder / name) for name in (ASKPASS, CONTROL)]
        # A socket at which a process listens is proof of life; a folder of another user has sockets that count as
        # neither.
        if True not in listening and (False in listening or _was_being_made(folder)):
            shutil.rmtree(folder, ignore_errors=True)


def _was_being_made(folder: Path) -> bool:
    """Return whether a process was killed between the making of a directory and of the first socket in it."""
    with contextlib.suppress(OSError):
        status = folder.lstat()
        if status.st_uid == os.geteuid() and time.time() - status.st_mtime > _YOUNG:
            return set(os.listdir(folder)) <= {f"{ASKPASS}~"}
    return False


def _is_listening(path: Path) -> bool | None:
    """Return whether a process listens at a socket; ``None`` if it is not a socket of this user."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
        status = path.lstat()
        if stat.S_ISSOCK(status.st_mode) and status.st_uid == os.geteuid():
            # A busy listener whose backlog is full must not hold this up: EAGAIN is an answer, too, as it is not
            # ECONNREFUSED.
            probe.setblocking(False)
            return probe.connect_ex(str(path)) != errno.ECONNREFUSED
    return None


def has_secret(settings: Settings) -> bool:
    """Return whether the caller has set a secret with which relay can answer ssh's questions."""
    server = settings.server
    passphrases = (server.passphrase, server.passphrase_file, server.passphrase_env)
    return server.has_password or any(one is not None for one in passphrases)


def arguments(settings: Settings, folder: str, *, given: bool, seconds: float) -> list[str]:
    """Return the arguments of the master.

    :param settings: the server. What the caller has not set is left to ssh and its configuration.
    :param folder: the private directory.
    :param given: whether ssh gets its connection from relay.
    :param seconds: the timeout of the login.
    """
    server = settings.server
    options = [
        *_FIXED,
        f"ControlPath={_file(folder, 'control')}",
        f"BatchMode={'no' if has_secret(settings) else 'yes'}",
        f"StrictHostKeyChecking={'accept-new' if is_accepting(settings) else 'yes'}",
        # With ServerAliveCountMax=2 ssh gives up after three intervals without a byte, as the backend paramiko does.
        f"ServerAliveInterval={0 if server.keepalive is None else max(1, int(server.keepalive))}",
        # A name may have several addresses; ssh tries one after another.
        f"ConnectTimeout={max(1, math.ceil(seconds / 2))}",
        f"Compression={'yes' if settings.compress else 'no'}",
        *trust_options(settings),
        *_identities(settings),
        *(() if settings.server.has_password else _NO_PASSWORD),
    ]
    # Only where the user has set no list: theirs is a decision, ssh's default is none.
    if not settings.ciphers:
        options.append(f"Ciphers=^{_CIPHERS}")
    if given:
        # Isolated and without site: the helper must not import a module of the working directory, and starts for each
        # login.
        helper = shlex.join([sys.executable, "-I", "-S", HELPER, "connection", os.path.join(folder, ASKPASS)])
        options += [f"ProxyCommand={helper.replace('%', '%%')}", "ProxyUseFdpass=yes", *_NO_LOOKUPS]
    return [
        "ssh",
        "-N",
        *(["-F", server.config] if server.config is not None else []),
        *(["-l", server.user] if server.user is not None else []),
        *(["-p", str(server.port)] if server.port is not None else []),
        *(word for option in options for word in ("-o", option)),
        # A host of the user's configuration that begins with a dash is no option.
        "--",
        server.host,
    ]


def environment(settings: Settings, folder: str, *, given: bool) -> dict[str, str]:
    """Return the environment of the master.

    :param settings: the server.
    :param folder: the private directory.
    :param given: whether ssh requests its connection from relay. It starts the helper by ``$SHELL`` with a socket as
        standard input, for which bash would read ``~/.bashrc``; ``sh`` does not.
    """
    added = {"SHELL": "/bin/sh"} if given else {}
    if has_secret(settings):
        shown = os.environ.get("DISPLAY", ":")
        added |= {"SSH_ASKPASS": _ask(folder), "SSH_ASKPASS_REQUIRE": "force", "DISPLAY": shown}
    return {**_MEMORY, **os.environ, **added}


def _ask(folder: str) -> str:
    """Write the program for ``SSH_ASKPASS``, a script of one line, because its only argument is the question."""
    path = os.path.join(folder, "ask")
    line = shlex.join([sys.executable, "-I", "-S", HELPER, "secret", os.path.join(folder, ASKPASS)])
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o700), "w") as file:
        file.write(f'#!/bin/sh\nexec {line} "$1"\n')
    return path


def _identities(settings: Settings) -> list[str]:
    """Return the options for the keys of the caller, which replace ssh's default keys.

    ``-i`` does not work for a path with a percent sign: ssh checks the file before it expands the path.
    """
    server = settings.server
    if server.keyfile is None:
        return []
    if server.identities_only:
        return [f"IdentityFile={quoted(server.keyfile)}", "IdentitiesOnly=yes"]
    return [f"IdentityFile={quoted(path)}" for path in settings.identities]


def _file(folder: str, name: str) -> str:
    return quoted(os.path.join(folder, name))
