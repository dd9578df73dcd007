"""Errors for a server that does not let relay in: one text for one event, in both backends."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from ...addresses.printable import printable
from ...errors import AuthenticationError, CarrierError, HostKeyError
from .config.identities import NO_PASSPHRASE, WRONG_PASSWORD
from .config.known_hosts import Entry, fingerprint
from .connection import GREETING, OVERLOADED, Settings

_LONGEST = 200  # characters of a server's words
_MOST = 6  # keys or methods in an error
_MOST_NOTES = 8


def no_greeting(settings: Settings, greeting: str, end: str) -> CarrierError:
    """Make the error for a server that has not sent an SSH version.

    :param settings: the server.
    :param greeting: the first line that it has sent; empty if it has sent none.
    :param end: how the connection has ended.
    """
    sent = repr(printable(greeting, _LONGEST))
    # A server that closes without a message may be starting, and an overloaded one recovers.
    if greeting.startswith(OVERLOADED):
        stage, problem = "", f"the server takes no connection now: it sent {sent}; check its MaxStartups and its log"
    elif greeting:
        stage, problem = GREETING, f"no SSH server: it sent {sent}; check the port"
    else:
        stage, problem = "", f"{end} ({GREETING}); check the port, and MaxStartups of the server"
    return CarrierError(f"{settings.name}: {problem}", stage=stage)


def login_rejected(
    settings: Settings,
    offered: Sequence[str],
    rejected: Sequence[str],
    *,
    accepted: Sequence[str] = (),
    end: str = "",
    notes: Sequence[str] = (),
    is_wrong: bool | None = None,
    others: Sequence[str] = (),
    banner: str = "",
) -> AuthenticationError:
    """Make the error for a server that has accepted none of the credentials.

    :param settings: the server and the credentials.
    :param offered: the methods that the server accepts now.
    :param rejected: the keys and methods that it has rejected; a key has its fingerprint.
    :param accepted: those that it has accepted, and that were not enough.
    :param end: what the server has said, if it has ended the connection.
    :param notes: the problems of credentials that were not tried.
    :param is_wrong: whether the password is wrong; ``None`` for whether it is among the rejected methods.
    :param others: remedies for other methods.
    :param banner: of the server.
    """
    passwords = {"password", "keyboard-interactive"}
    has_password = settings.server.has_password
    parts = [f"{settings.name}: login as {settings.user} was rejected"]
    if accepted:
        parts.append(f"accepted, but not enough: {_listed(accepted)}")
    parts.append(f"the server accepts {_listed(offered) or 'nothing'}{' now' if accepted else ''}")
    parts.append(f"rejected: {_listed(rejected)}" if rejected else "no credential was available")
    parts += [f"the server ended the connection{end}"] if end else []
    parts += notes[:_MOST_NOTES]
    advice: list[str] = []
    if is_wrong if is_wrong is not None else not passwords.isdisjoint(rejected):
        advice.append(WRONG_PASSWORD)
    if "publickey" in offered:
        if any("SHA256:" in name for name in rejected):
            advice.append("add the public key to its authorized_keys, or set keyfile to another key")
        elif not notes:
            advice.append("set keyfile, or add a key to the agent")
    asks = not has_password and not passwords.isdisjoint(offered)
    if asks:
        advice.append("set password, password_file or password_env")
    # Servers count each key; with several in the agent the limit comes before the right one.
    if end and len(rejected) > 1:
        advice = ["set keyfile to the right key, so that only this key is tried"]
    parts += advice or others
    parts += [f"its banner: {banner}"] if banner else []
    wants_secret = asks or any(NO_PASSPHRASE in note for note in notes)
    return AuthenticationError("; ".join(parts), wants_secret=wants_secret)


def key_name(kind: str, digest: str) -> str:
    """Return a host key as errors name it, such as ``ED25519 SHA256:…``.

    :param kind: its type.
    :param digest: its fingerprint.
    """
    short = kind.removeprefix("ssh-").partition("-")[0].upper()
    return f"{short if short.isalnum() else 'unknown'} {digest}"


def unknown_key(settings: Settings, kind: str, digest: str) -> HostKeyError:
    """Make the error for the key of an unknown host; see :func:`key_name`."""
    looked = ", ".join(settings.known_hosts) or "no file"
    way = "log in once with ssh, or set accept_new=yes in its address (in Python: accept_new=True) to store it"
    problem = f"its host key {key_name(kind, digest)} is not known (looked in {looked})"
    return untrusted(settings, f"{problem}; if it is right, {way}; hostkey={digest} pins it")


def wrong_pin(settings: Settings, kind: str, digest: str) -> HostKeyError:
    """Make the error for a key that is not the pinned one; see :func:`key_name`."""
    problem = f"it offers the host key {key_name(kind, digest)}, and hostkey={settings.server.hostkey} is pinned"
    remedy = "if that is the right server, the pin is of another of its keys, or out of date"
    return untrusted(settings, f"{problem}; {remedy}")


def changed_key(settings: Settings, kind: str, digest: str, known: Entry) -> HostKeyError:
    """Make the error for another key than a known one of the same type; see :func:`key_name`."""
    problem = f"its host key has changed to {key_name(kind, digest)}, while {known} has {fingerprint(known.blob)}"
    return untrusted(settings, f"{problem}; this may be an attack; {removal_hint(settings, known.file)}")


def revoked_key(settings: Settings, kind: str, digest: str, known: Entry | None) -> HostKeyError:
    """Make the error for a revoked key; see :func:`key_name`.

    :param known: the line that revokes it, if it is known.
    """
    where = f" ({known})" if known is not None else ""
    return untrusted(settings, f"the host key {key_name(kind, digest)} is revoked{where}; do not connect")


def other_type_key(settings: Settings, kind: str, digest: str, known: Entry) -> HostKeyError:
    """Make the error for an unknown key of a host that is known by a key of another type; see :func:`key_name`."""
    other = f"{known}: {key_name(known.type, fingerprint(known.blob))}"
    problem = f"its host key {key_name(kind, digest)} is not known, but one of another type is ({other})"
    return untrusted(settings, f"{problem}; this may be an attack; {removal_hint(settings, known.file)}")


def unwritten_key(settings: Settings, why: str = "") -> HostKeyError:
    """Make the error for a new key that cannot be stored.

    :param why: the system's reason, if it is known.
    """
    file = settings.known_hosts[0] if settings.known_hosts else "known_hosts"
    problem = f"its host key cannot be written to {file}{why and f': {why}'}"
    return untrusted(settings, f"{problem}; accept_new needs a writable file; set known_hosts=FILE")


def untrusted(settings: Settings, problem: str) -> HostKeyError:
    """Make the error for a host key that is not trusted, in one line."""
    return HostKeyError(f"{settings.name}: {problem}")


def removal_hint(settings: Settings, file: str) -> str:
    """Return the remedy for a key that has changed.

    :param file: has the old key.
    """
    command = shlex.join(["ssh-keygen", "-f", file, "-R", settings.host_key_name])
    return f"if the change is expected, run {command}"


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_MOST])
    return f"{shown} and {len(names) - _MOST} more" if len(names) > _MOST else shown
