"""Whether a server's host key is to be trusted: ``known_hosts``, a pinned fingerprint, or ``accept-new``."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from typing import NoReturn

import paramiko

from ....errors import HostKeyError
from ..config.algorithms import CLIENT_HINT
from ..config.identities import key_type
from ..config.known_hosts import AUTHORITY, REVOKED, Entry, find, fingerprint, write_down
from ..connection import Settings

__all__ = ["ALGORITHMS", "verify", "wanted_algorithms"]

# How a key type is asked for, the best first; a key of type ssh-rsa signs in several ways (RFC 8332).
ALGORITHMS = {
    "ssh-ed25519": ("ssh-ed25519",),
    "ecdsa-sha2-nistp256": ("ecdsa-sha2-nistp256",),
    "ecdsa-sha2-nistp384": ("ecdsa-sha2-nistp384",),
    "ecdsa-sha2-nistp521": ("ecdsa-sha2-nistp521",),
    "ssh-rsa": ("rsa-sha2-512", "rsa-sha2-256"),
}


def wanted_algorithms(settings: Settings) -> tuple[str, ...]:
    """The host key algorithms to ask for before all others: those that a key is known of, as the OpenSSH client does.

    :param settings: whom to trust.
    :returns: names for the key exchange (RFC 4253, section 7.1); empty if nothing is known, or if the user has set
        ``HostKeyAlgorithms``, whose order is then to be kept.
    """
    if settings.host_key_algorithms:
        return ()
    known = [entry for entry in _known(settings, settings.host_key_names) if not entry.marker]
    if settings.server.hostkey is not None:
        known = [entry for entry in known if _is_pinned(settings, entry.blob)]
    types = {entry.type for entry in known}
    return tuple(name for kind, names in ALGORITHMS.items() if kind in types for name in names)


def verify(settings: Settings, key: paramiko.PKey) -> None:
    """Let a connection go on only if the server's key is the right one; called before anything secret is sent.

    A revoked key is refused, whatever else speaks for it. Where a key is pinned (``hostkey``) it must be that one, and
    nothing else counts. A host of which nothing is known is trusted only
    with ``accept_new``, and its key is then written to the user's first file.

    :param settings: whom to trust.
    :param key: what the server has shown, and proved to have, in the key exchange.
    :raises HostKeyError: in one line: which key was offered, what is known instead and where, what to do.

    Source: sshd(8), "SSH_KNOWN_HOSTS FILE FORMAT"; ``StrictHostKeyChecking`` in ssh_config(5). A host known by a key of
    another type only is no new host here, and ``accept_new`` does not let it pass.
    """
    blob = key.asbytes()
    names = settings.host_key_names
    own = _known(settings, names[:1])
    plain = _known(settings, names[1:])
    for entry in (*own, *plain):
        if entry.marker == REVOKED and entry.blob == blob:
            _fail(settings, f"the host key {_shown(blob)} is revoked ({entry}); do not connect")
    if settings.server.hostkey is not None:
        return _verify_pinned(settings, blob)
    if any(entry.blob == blob and not entry.marker for entry in own):
        return None
    _refuse_changed(settings, blob, own)
    if any(entry.blob == blob and not entry.marker for entry in plain):
        return None
    return _verify_unknown(settings, blob, own)


def _verify_pinned(settings: Settings, blob: bytes) -> None:
    if not _is_pinned(settings, blob):
        problem = f"it offers the host key {_shown(blob)}, and hostkey={settings.server.hostkey} is pinned"
        _fail(settings, f"{problem}; if that is right, the pin is of another of its keys or out of date")


def _is_pinned(settings: Settings, blob: bytes) -> bool:
    return fingerprint(blob) == (settings.server.hostkey or "").rstrip("=")


def _refuse_changed(settings: Settings, blob: bytes, known: Iterable[Entry]) -> None:
    for entry in known:
        if not entry.marker and entry.type == key_type(blob):
            problem = f"its host key has changed to {_shown(blob)}, while {entry} has {fingerprint(entry.blob)}"
            _fail(settings, f"{problem}; this may be an attack; {_forget(settings, entry)}")


def _verify_unknown(settings: Settings, blob: bytes, known: list[Entry]) -> None:
    """Judge a key of whose type nothing is known."""
    offered = f"its host key {_shown(blob)} is not known"
    for entry in known:
        if entry.marker == AUTHORITY:
            way = f"paramiko cannot check certificates of hosts, {CLIENT_HINT} can"
            _fail(settings, f"{offered}, but a certificate authority for it is ({entry}); {way}")
    for entry in known:
        if not entry.marker:
            other = f"but one of another type is ({entry}: {_shown(entry.blob)})"
            _fail(settings, f"{offered}, {other}; this may be an attack; {_forget(settings, entry)}")
    if not settings.accept_new:
        looked = ", ".join(settings.known_hosts) or "no file"
        way = "log in once with ssh, or have accept_new=yes in its address (in Python: accept_new=True) write it down"
        pin = f"hostkey={fingerprint(blob)} pins it"
        _fail(settings, f"{offered} (looked in {looked}); if it is right, {way}; {pin}")
    _accept(settings, blob)


def _accept(settings: Settings, blob: bytes) -> None:
    if not settings.known_hosts:
        _fail(settings, "accept_new has no file to write the host key to; give known_hosts")
    file = settings.known_hosts[0]
    try:
        write_down(file, settings.host_key_name, blob, hashed=settings.hash_known_hosts)
    except OSError as error:
        problem = f"its host key {_shown(blob)} cannot be written to {file}: {error.strerror}"
        _fail(settings, f"{problem}; accept_new needs a file that it can write, give known_hosts=FILE")
    # Another program may have been told of another key between our look and our line.
    _refuse_changed(settings, blob, [entry for entry in find([file], settings.host_key_name) if entry.blob != blob])


def _known(settings: Settings, names: Iterable[str]) -> list[Entry]:
    return [entry for name in names for entry in find(settings.known_hosts, name)]


def _shown(blob: bytes) -> str:
    kind = key_type(blob).removeprefix("ssh-").partition("-")[0].upper()
    return f"{kind if kind.isalnum() else 'unknown'} {fingerprint(blob)}"


def _forget(settings: Settings, entry: Entry) -> str:
    command = shlex.join(["ssh-keygen", "-f", entry.file, "-R", settings.host_key_name])
    return f"if the change is known to be right: {command}"


def _fail(settings: Settings, problem: str) -> NoReturn:
    raise HostKeyError(f"{settings.name}: {problem}")
