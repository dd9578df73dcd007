"""Host key verification: ``known_hosts``, a pinned fingerprint, or ``accept-new``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NoReturn

import paramiko

from ..config.identities import key_type
from ..config.known_hosts import AUTHORITY, REVOKED, Entry, append_entry, find, fingerprint
from ..connection import CLIENT_HINT, Settings
from ..login_failures import (
    changed_key,
    key_name,
    other_type_key,
    revoked_key,
    unknown_key,
    untrusted,
    unwritten_key,
    wrong_pin,
)

# The algorithms of each key type, the best first; a key of type ssh-rsa has several (RFC 8332).
ALGORITHMS = {
    "ssh-ed25519": ("ssh-ed25519",),
    "ecdsa-sha2-nistp256": ("ecdsa-sha2-nistp256",),
    "ecdsa-sha2-nistp384": ("ecdsa-sha2-nistp384",),
    "ecdsa-sha2-nistp521": ("ecdsa-sha2-nistp521",),
    "ssh-rsa": ("rsa-sha2-512", "rsa-sha2-256"),
}


def wanted_algorithms(settings: Settings) -> tuple[str, ...]:
    """Return the host key algorithms to prefer: those of the keys in ``known_hosts``, as the OpenSSH client does.

    :param settings: the server and the sources of trust.
    :returns: names for the key exchange (RFC 4253, section 7.1); empty if no key is known, or if the user has set
        ``HostKeyAlgorithms``, whose order then applies.
    """
    if settings.host_key_algorithms:
        return ()
    known = [entry for entry in _known(settings, settings.host_key_names) if not entry.marker]
    if settings.server.hostkey is not None:
        known = [entry for entry in known if _is_pinned(settings, entry.blob)]
    types = {entry.type for entry in known}
    return tuple(name for kind, names in ALGORITHMS.items() if kind in types for name in names)


def verify(settings: Settings, key: paramiko.PKey) -> None:
    """Verify the server's host key, before relay sends any credential.

    A revoked key is always rejected. A pinned key (``hostkey``) is the only one accepted. A host without a known key is
    trusted only with ``accept_new``; its key is then appended to the user's first file.

    :param settings: the server and the sources of trust.
    :param key: the key that the server has proved to own in the key exchange.
    :raises HostKeyError: if the key is not trusted. The one line contains the offered key, the known key with its file
        and line, and a remedy.

    Source: sshd(8), "SSH_KNOWN_HOSTS FILE FORMAT"; ``StrictHostKeyChecking`` in ssh_config(5). A host that is known by
    a key of another type is not a new host: ``accept_new`` does not apply to it.
    """
    blob = key.asbytes()
    names = settings.host_key_names
    own = _known(settings, names[:1])
    plain = _known(settings, names[1:])
    for entry in (*own, *plain):
        # First of all, also before a pin: a revoked key is known to be in the wrong hands.
        if entry.marker == REVOKED and entry.blob == blob:
            raise revoked_key(settings, key_type(blob), fingerprint(blob), entry)
    if settings.server.hostkey is not None:
        return _verify_pinned(settings, blob)
    if any(entry.blob == blob and not entry.marker for entry in own):
        return None
    # Before the name without the port: another key for exactly this port is a change, whatever the host has at port 22.
    _refuse_changed(settings, blob, own)
    if any(entry.blob == blob and not entry.marker for entry in plain):
        return None
    return _verify_unknown(settings, blob, own)


def _verify_pinned(settings: Settings, blob: bytes) -> None:
    if not _is_pinned(settings, blob):
        raise wrong_pin(settings, key_type(blob), fingerprint(blob))


def _is_pinned(settings: Settings, blob: bytes) -> bool:
    return fingerprint(blob) == (settings.server.hostkey or "").rstrip("=")


def _refuse_changed(settings: Settings, blob: bytes, known: Iterable[Entry]) -> None:
    for entry in known:
        if not entry.marker and entry.type == key_type(blob):
            raise changed_key(settings, key_type(blob), fingerprint(blob), entry)


def _verify_unknown(settings: Settings, blob: bytes, known: list[Entry]) -> None:
    """Check a key if no key of its type is known."""
    offered = f"its host key {_format_key(blob)} is not known"
    for entry in known:
        if entry.marker == AUTHORITY:
            way = f"paramiko does not support host certificates; use {CLIENT_HINT}"
            _fail(settings, f"{offered}, but a certificate authority for it is ({entry}); {way}")
    for entry in known:
        if not entry.marker:
            raise other_type_key(settings, key_type(blob), fingerprint(blob), entry)
    if not settings.accept_new:
        raise unknown_key(settings, key_type(blob), fingerprint(blob))
    _accept(settings, blob)


def _accept(settings: Settings, blob: bytes) -> None:
    if settings.read_only:
        return
    if not settings.known_hosts:
        _fail(settings, "accept_new has no file to write the host key to; set known_hosts")
    file = settings.known_hosts[0]
    try:
        append_entry(file, settings.host_key_name, blob, hashed=settings.hash_known_hosts)
    except OSError as error:
        raise unwritten_key(settings, error.strerror or str(error)) from None
    # Another program may have added another key between the lookup and the new line.
    _refuse_changed(settings, blob, [entry for entry in find([file], settings.host_key_name) if entry.blob != blob])


def _known(settings: Settings, names: Iterable[str]) -> list[Entry]:
    return [entry for name in names for entry in find(settings.known_hosts, name)]


def _format_key(blob: bytes) -> str:
    return key_name(key_type(blob), fingerprint(blob))


def _fail(settings: Settings, problem: str) -> NoReturn:
    raise untrusted(settings, problem)
