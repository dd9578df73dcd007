"""What ssh says on its standard error, as typed errors of one line."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ...errors import AuthenticationError, CarrierError, ConnectError, HostKeyError, RelayError
from ..connection import Settings

__all__ = ["decoded", "open_error", "said", "timeout_error", "why"]

_LONGEST = 300  # characters of ssh's own words in an error

_NOISE = re.compile(
    r"debug[1-3]: |Authenticated to |Transferred: |Bytes per second|Warning: Permanently added|@{5}|\*\* "
)
_PERMISSION = re.compile(r"\S+: Permission denied \((.*)\)\.$")
_OFFERED = re.compile(r"debug1: (?:Offering public key|Trying private key): (.*)")
_METHOD = re.compile(r"debug1: Next authentication method: (\S+)")
_CONTINUE = re.compile(r"debug1: Authentications that can continue: (\S+)")
_SERVER_KEY = re.compile(r"debug1: Server host key: (\S+) (SHA256:\S+)")
_OFFENDING = re.compile(r"(?:Offending|Matching).* key (?:for .* )?in (.+):(\d+)$")
_CONNECT = re.compile(r"(?:ssh: connect to (?:host|address) \S+ port \d+|channel \d+: open failed: [\w ]+?): (.*)$")
_OPEN_FAILED = re.compile(r"([\w ]+)(?:: (.*))?$", re.DOTALL)

_DENIALS = ("Permission denied (", "Too many authentication failures", "No supported authentication methods")
_OLD = re.compile(r"command-line.*: Bad configuration option: (\S+)")
_FATAL = ("Bad configuration option", "terminating, ", "Bad owner or permissions", "Can't open user config file")


def decoded(line: bytes) -> str:
    """A line of standard error as text that is safe to show."""
    text = line.decode("utf-8", "replace").strip()
    return "".join(char if char.isprintable() else "\ufffd" for char in text)


def said(lines: Sequence[str]) -> str:
    """The last thing that ssh said to its user; empty if nothing."""
    for line in reversed(lines):
        if line and not _NOISE.match(line) and not line.startswith("debug"):
            return line[:_LONGEST].rstrip(".")
    return ""


def why(settings: Settings, lines: Sequence[str]) -> RelayError:
    """Why ssh ended before the connection was up.

    :param settings: whom it was to reach.
    :param lines: its standard error.
    """
    return (
        _misconfigured(settings, lines)
        or _host_key(settings, lines)
        or _denied(settings, lines)
        or _unreachable(settings, lines)
        or _broken(settings, lines)
    )


def timeout_error(settings: Settings, lines: Sequence[str]) -> ConnectError:
    """The deadline came first; the lines tell how far it got."""
    if _any(lines, "debug1: Server host key"):
        how = "the login was not over in time; is the server overloaded?"
    elif _any(lines, "debug1: Remote protocol version"):
        how = "the server speaks SSH and did not finish the key exchange in time"
    elif _any(lines, "debug1: Local version string"):
        how = "it accepts connections and does not answer in time; is it an SSH server?"
    else:
        how = "no answer in time; is the host up and the port open?"
    return ConnectError(f"{settings.name}: {how}", reason="connect_timeout")


def open_error(place: str, text: str) -> ConnectError:
    """Why the server did not open a stream (RFC 4254, section 5.1), from ssh's words for it."""
    match = _OPEN_FAILED.match(text)
    kind, detail = (match[1].strip(), (match[2] or "").strip()) if match else ("", "")
    if kind == "administratively prohibited":
        what = "the server's policy forbids this forward (AllowTcpForwarding, PermitOpen, AllowStreamLocalForwarding)"
        return ConnectError(f"{place}: {what}", reason="denied")
    if kind == "unknown channel type":
        return ConnectError(f"{place}: the server does not forward to such an address", reason="denied")
    if kind == "resource shortage":
        return ConnectError(f"{place}: the server is short of resources: {detail or kind}", reason="unreachable")
    return ConnectError(f"{place}: {detail or kind or 'not opened'}, says the server", reason=_reason(detail))


def _reason(text: str) -> str:
    lowered = text.lower()
    if "timed out" in lowered or "timeout" in lowered:
        return "connect_timeout"
    unreachable = ("unreachable", "no route", "not known", "resolve", "name resolution", "no address", "no such file")
    return "unreachable" if any(word in lowered for word in unreachable) else "refused"


def _misconfigured(settings: Settings, lines: Sequence[str]) -> RelayError | None:
    for line in lines:
        if match := _OLD.match(line):
            text = f"this ssh does not know {match[1]}; OpenSSH 8.7 or later is needed (or the backend paramiko)"
            return RelayError(f"{settings.name}: {text}")
        if any(words in line for words in _FATAL) and not line.startswith("debug"):
            return RelayError(f"{settings.name}: ssh does not take its configuration: {line[:_LONGEST]}")
    return None


def _host_key(settings: Settings, lines: Sequence[str]) -> RelayError | None:
    if not _any(lines, "Host key verification failed") and not _any(lines, "REVOKED HOST KEY"):
        return None
    shown = _last(_SERVER_KEY, lines)
    key = f"{shown[1]} {shown[2]}" if shown else "a host key"
    name, wanted = settings.name, settings.server.hostkey
    if wanted is not None:
        return HostKeyError(f"{name}: the server shows {key}, and hostkey wants {wanted}; is it the right server?")
    where = _last(_OFFENDING, lines)
    place = f"{where[1]} line {where[2]}" if where else " or ".join(settings.known_hosts) or "known_hosts"
    if _any(lines, "REVOKED HOST KEY"):
        return HostKeyError(f"{name}: the server shows {key}, which {place} marks as revoked")
    if _any(lines, "IDENTIFICATION HAS CHANGED") or _any(lines, "has changed and you have requested"):
        text = f"the host key has changed: the server shows {key}, {place} has another; if that is expected, remove it"
        return HostKeyError(f"{name}: {text} (ssh-keygen -R '{settings.host_key_name or settings.hostname}')")
    text = f"the host key is not known: the server shows {key}, and {place} has no key of it; check it and add it there"
    return HostKeyError(f"{name}: {text}, or ask for accept_new")


def _denied(settings: Settings, lines: Sequence[str]) -> RelayError | None:
    if not any(_any(lines, words) for words in _DENIALS):
        return None
    permission, more = _last(_PERMISSION, lines), _last(_CONTINUE, lines)
    takes = permission[1] if permission else more[1] if more else "unknown methods"
    keys = list(dict.fromkeys(_key(match[1]) for line in lines if (match := _OFFERED.match(line))))
    methods = list(dict.fromkeys(match[1] for line in lines if (match := _METHOD.match(line))))
    tried = [*(method for method in methods if method != "publickey"), *(f"key {key}" for key in keys)]
    text = f"the server takes {takes}; tried: {', '.join(tried) or 'nothing'}"
    hint = _refused_secret(lines) or "check the user, the key file and the agent, or give a password"
    return AuthenticationError(f"{settings.name}: not let in as {settings.user}: {text}; {hint}")


def _key(text: str) -> str:
    """The path (or the agent's comment) and the type of a key that was offered, without its fingerprint."""
    return text.partition(" SHA256:")[0][:100]


def _refused_secret(lines: Sequence[str]) -> str:
    """What ssh says about a key that it could not use."""
    for line in lines:
        if line.startswith(("Load key ", "sign_and_send_pubkey: ", "no such identity: ")):
            return line[:_LONGEST]
    return ""


def _unreachable(settings: Settings, lines: Sequence[str]) -> RelayError | None:
    for line in reversed(lines):
        if line.startswith("ssh: Could not resolve hostname"):
            return ConnectError(f"{settings.name}: {line[5:_LONGEST]}; is it spelled right?", reason="unreachable")
        if match := _CONNECT.match(line):
            text, reason = match[1].rstrip("."), _reason(match[1])
            hint = "; is the service running?" if reason == "refused" else "; is the host up and the port open?"
            return ConnectError(f"{settings.name}: {text}{hint}", reason=reason)
        if re.match(r"Connection (timed out during banner exchange|to \S+ port \d+ timed out)", line):
            return timeout_error(settings, lines)
    return None


def _broken(settings: Settings, lines: Sequence[str]) -> RelayError:
    words = said(lines) or "ssh ended without a word"
    if _any(lines, "debug1: Remote protocol version"):
        return CarrierError(f"{settings.name}: the connection was lost before the login was over: {words}")
    return CarrierError(f"{settings.name}: no SSH server answers there: {words}")


def _any(lines: Sequence[str], words: str) -> bool:
    return any(words in line for line in lines)


def _last(pattern: re.Pattern[str], lines: Sequence[str]) -> re.Match[str] | None:
    matches = (match for line in reversed(lines) if (match := pattern.search(line)))
    return next(matches, None)
