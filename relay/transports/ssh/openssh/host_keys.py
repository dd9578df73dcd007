"""Host keys with the OpenSSH client: the options of ssh, the checks that ssh leaves out, and its errors."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from ....errors import HostKeyError
from ..config.known_hosts import REVOKED, find, fingerprint, open_to_append
from ..connection import Settings
from ..login_failures import (
    changed_key,
    key_name,
    other_type_key,
    removal_hint,
    revoked_key,
    unknown_key,
    untrusted,
    unwritten_key,
    wrong_pin,
)

HELPER = str(Path(__file__).with_name("helper.py"))
UNWRITTEN = "Failed to add the host to the list of known hosts"  # ssh logs that, and continues

# The other sources of trust, which a pin excludes. RevokedHostKeys stays: it only rejects.
_PIN_ONLY = (
    "UserKnownHostsFile=/dev/null",
    "GlobalKnownHostsFile=/dev/null",
    "VerifyHostKeyDNS=no",
    "CheckHostIP=no",
)

_SERVER_KEY = re.compile(r"debug1: Server host key: (\S+) (SHA256:\S+)")
_OFFENDING = re.compile(r"(?:Offending|Matching).* key (?:for .* )?in (.+):(\d+)$")
_REVOKED = "REVOKED HOST KEY"
_CHANGED = ("IDENTIFICATION HAS CHANGED", "has changed and you have requested")


def is_accepting(settings: Settings) -> bool:
    """Return whether the key of an unknown server is stored and trusted."""
    return settings.accept_new and not settings.read_only and settings.server.hostkey is None


def trust_options(settings: Settings) -> list[str]:
    """Return the options of ssh for what the caller has set: a pinned key, or a file of known hosts."""
    server = settings.server
    if server.hostkey is not None:
        words = [sys.executable, "-I", "-S", HELPER, "hostkey", server.hostkey]
        command = " ".join(map(quoted, words)) + " %I %f %H %t %K"
        # Only where it is on: most builds of ssh do not know the option, and would reject it.
        kerberos = ["GSSAPIKeyExchange=no"] if settings.gssapi_key_exchange else []
        return [f"KnownHostsCommand={command}", *_PIN_ONLY, *kerberos]
    if server.known_hosts is not None:
        return [f"UserKnownHostsFile={quoted(server.known_hosts)}"]
    return []


def quoted(word: str) -> str:
    """Return one word for an option of ssh that takes several words and expands percent signs."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"'


def check_pin(settings: Settings) -> None:
    """Reject a pinned key that is revoked: with a pin ssh reads no ``known_hosts``, and so no ``@revoked``.

    :param settings: the server and the sources of trust.
    :raises HostKeyError: if the pinned key is revoked.
    """
    pin = settings.server.hostkey
    if pin is None:
        return
    for entry in (entry for name in settings.host_key_names for entry in find(settings.known_hosts, name)):
        if entry.marker == REVOKED and fingerprint(entry.blob) == pin:
            raise revoked_key(settings, entry.type, pin, entry)


def check_writable(settings: Settings) -> None:
    """Check that a new host key can be stored, if it must be: otherwise every later key would be accepted as new.

    :param settings: the server and the sources of trust.
    :raises HostKeyError: if the file cannot be written.
    """
    if not is_accepting(settings) or not settings.known_hosts or find(settings.known_hosts, settings.host_key_name):
        return
    try:
        # Tried and not only asked: access(2) says nothing of a read-only file system or a full quota.
        os.close(open_to_append(settings.known_hosts[0]))
    except OSError as error:
        raise unwritten_key(settings, error.strerror or str(error)) from None


def host_key_error(settings: Settings, lines: Sequence[str]) -> HostKeyError | None:
    """Return the error for a host key that ssh has rejected; ``None`` if it has rejected none.

    :param settings: the server and the sources of trust.
    :param lines: ssh's standard error.
    """
    text = "\n".join(lines)
    if "Host key verification failed" not in text and _REVOKED not in text:
        return None
    shown = last_match(_SERVER_KEY, lines)
    kind, digest = shown.groups() if shown else ("", "of a type that ssh does not name")
    if settings.server.hostkey is not None:
        return wrong_pin(settings, kind, digest)
    entries = [entry for name in settings.host_key_names for entry in find(settings.known_hosts, name)]
    if _REVOKED in text:
        revoked = (one for one in entries if one.marker == REVOKED and fingerprint(one.blob) == digest)
        return revoked_key(settings, kind, digest, next(revoked, None))
    where = last_match(_OFFENDING, lines)
    place = f"{where[1]} line {where[2]}" if where else ""
    if any(words in text for words in _CHANGED):
        known = next((entry for entry in entries if str(entry) == place), None)
        if known is not None:
            describe = changed_key if known.type == kind else other_type_key
            return describe(settings, kind, digest, known)
        file = where[1] if where else "known_hosts"
        problem = f"its host key has changed to {key_name(kind, digest)}, while {place or file} has another"
        return untrusted(settings, f"{problem}; this may be an attack; {removal_hint(settings, file)}")
    return unknown_key(settings, kind, digest)


def last_match(pattern: re.Pattern[str], lines: Sequence[str]) -> re.Match[str] | None:
    """Search the lines, the last one first."""
    matches = (match for line in reversed(lines) if (match := pattern.search(line)))
    return next(matches, None)
