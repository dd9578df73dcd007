"""What ssh says on its standard error, as typed errors of one line."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from ....errors import AuthenticationError, CarrierError, ConnectError, HostKeyError, RelayError
from ..config.identities import NO_PASSPHRASE, WRONG_PASSWORD
from ..connection import GREETING, KEY_EXCHANGE, LOGIN, OVERLOADED, IncompatibleError, Settings
from ..open_failures import CONNECT_FAILED, PROHIBITED, SHORTAGE, UNKNOWN_KIND, refusal

__all__ = ["decoded", "open_error", "said", "timeout_error", "why"]

_LONGEST = 300  # characters of ssh's own words in an error

_NOISE = re.compile(
    r"debug[1-3]: |Authenticated to |Transferred: |Bytes per second|Warning: Permanently added|@{5}|\*\* "
)
_PERMISSION = re.compile(r"\S+: Permission denied \((.*)\)\.$")
_KEY = re.compile(r"debug1: (Offering public key|Server accepts key|Trying private key): (.*)")
_SKIPPED = re.compile(r"debug1: (Skipping \S+ key .*|send_pubkey_test: no mutual signature algorithm)")
_METHOD = re.compile(r"debug1: Next authentication method: (\S+)")
_PARTIAL = re.compile(r'Authenticated using "(\S+)" with partial success')
_CONTINUE = re.compile(r"debug1: Authentications that can continue: (\S+)")
_PROXY = re.compile(r"debug1: Executing proxy command: (?:exec )?(\S+)")
_NO_MATCH = re.compile(r"Unable to negotiate with .*: no matching (.*) found\. Their offer: (.*)")
_SERVER_KEY = re.compile(r"debug1: Server host key: (\S+) (SHA256:\S+)")
_OFFENDING = re.compile(r"(?:Offending|Matching).* key (?:for .* )?in (.+):(\d+)$")
_CONNECT = re.compile(r"(?:ssh: connect to (?:host|address) \S+ port \d+|channel \d+: open failed: [\w ]+?): (.*)$")
_BANNER = re.compile(r"debug1: kex_exchange_identification: banner line \d+: (.*)")
_CLOSED = re.compile(r"kex_exchange_identification: (?:read: )?Connection (?:closed|reset)")

_NO_GREETING = ("kex_exchange_identification", "banner exchange: ", "Connection closed")  # what ssh says of it

_TOO_MANY = "Too many authentication failures"
_DENIALS = ("Permission denied (", _TOO_MANY, "No supported authentication methods")
_OLD = re.compile(r"command-line.*: Bad configuration option: (\S+)")
_OPTIONS = {
    "cipher": "Ciphers",
    "MAC": "MACs",
    "key exchange method": "KexAlgorithms",
    "host key type": "HostKeyAlgorithms",
}
_CODES = {
    "administratively prohibited": PROHIBITED,
    "unknown channel type": UNKNOWN_KIND,
    "resource shortage": SHORTAGE,
}
_MOST = 6  # keys that are listed

# What ssh is doing from such a line on, for a login that does not come to an end.
_STAGES = (
    ("SSH2_MSG_NEWKEYS received", "asking the agent for its keys; does the agent answer?"),
    ("Will attempt key", "waiting for the server's answer; is the server overloaded?"),
    ("Authentications that can continue", "waiting for the server's answer; is the server overloaded?"),
    ("Offering public key", "waiting for what the server says to a key; is the server overloaded?"),
    ("Server accepts key", "having a signature made; does an agent or a security key wait for something?"),
    ("read_passphrase: requested to askpass", "waiting for a password or passphrase"),
)
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
        or _no_match(settings, lines)
        or _host_key(settings, lines)
        or _denied(settings, lines)
        or _unreachable(settings, lines)
        or _broken(settings, lines)
    )


def timeout_error(settings: Settings, lines: Sequence[str]) -> ConnectError:
    """The deadline came first; the lines tell how far it got."""
    if _any(lines, "debug1: Server host key"):
        how = f"the login was not finished in time{_stage(lines)}"
    elif _any(lines, "debug1: Remote protocol version"):
        how = "the server speaks SSH and did not finish the key exchange in time"
    elif _any(lines, "debug1: Local version string"):
        how = "it accepts connections and does not answer in time; is it an SSH server?"
    else:
        how = "no answer in time; is the host up and the port open?"
    return ConnectError(f"{settings.name}: {how}", reason="connect_timeout")


def _stage(lines: Sequence[str]) -> str:
    """What ssh was doing, if that is known."""
    for line in reversed(lines):
        for words, what in _STAGES:
            if line.startswith(f"debug1: {words}"):
                return f": ssh was {what}"
    return ""


def open_error(place: str, server: str, text: str) -> ConnectError:
    """Why the server did not open a stream (RFC 4254, section 5.1), from ssh's words for it.

    :param place: where to.
    :param server: its name.
    :param text: what ssh says after "open failed".
    """
    kind, _, words = text.partition(":")
    return refusal(place, server, _CODES.get(kind.strip(), CONNECT_FAILED), words)


def _reason(text: str) -> str:
    lowered = text.lower()
    if "timed out" in lowered or "timeout" in lowered:
        return "connect_timeout"
    return "refused" if "refused" in lowered else "unreachable"


def _misconfigured(settings: Settings, lines: Sequence[str]) -> RelayError | None:
    for line in lines:
        if match := _OLD.match(line):
            text = f"this ssh does not know {match[1]}; OpenSSH 8.7 or later is needed (or the backend paramiko)"
            return RelayError(f"{settings.name}: {text}")
        if any(words in line for words in _FATAL) and not line.startswith("debug"):
            return RelayError(f"{settings.name}: ssh does not take its configuration: {line[:_LONGEST]}")
    return None


def _no_match(settings: Settings, lines: Sequence[str]) -> RelayError | None:
    match = _last(_NO_MATCH, lines)
    if match is None:
        return None
    kind, offer = match[1], match[2][:_LONGEST]
    option = f"{_OPTIONS[kind]} in the SSH configuration" if kind in _OPTIONS else "the SSH configuration"
    problem = f"ssh and the server have no {kind} in common; the server offers {offer}"
    return IncompatibleError(f"{settings.name}: {problem}; allow one of them with {option}, or update the server")


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
    keys, notes = _keys(settings, lines)
    methods = dict.fromkeys(match[1] for line in lines if (match := _METHOD.match(line)))
    methods.pop("publickey", None)
    with_password = {"password", "keyboard-interactive"} & methods.keys()
    if not settings.server.has_password:  # ssh tries it all the same where there is a passphrase to ask for
        methods = {method: None for method in methods if method not in with_password}
    elif with_password - {match[1] for line in lines if (match := _PARTIAL.match(line))}:
        notes = [WRONG_PASSWORD, *notes]
    tried = [*methods, *(f"key {key}" for key in keys)]
    text = f"the server takes {takes}; tried: {_listed(tried) or 'nothing'}"
    if _any(lines, _TOO_MANY):
        many = (
            f"the server ended the connection: {_TOO_MANY}; name the right key with keyfile, so that it alone is tried"
        )
        notes = [many, *notes]
    hint = "; ".join(notes[:_MOST]) or "check the user, the key file and the agent, or give a password"
    asks = not settings.server.has_password and ("password" in takes or "keyboard-interactive" in takes)
    wants_secret = asks or any(NO_PASSPHRASE in note for note in notes)
    text = f"{settings.name}: not let in as {settings.user}: {text}; {hint}"
    return AuthenticationError(text, wants_secret=wants_secret)


def _keys(settings: Settings, lines: Sequence[str]) -> tuple[list[str], list[str]]:
    """The keys that were tried, and what is wrong with those that could not be."""
    keys: dict[str, None] = {}
    notes: dict[str, None] = {}
    stanzas: list[tuple[str, str, list[str]]] = []
    for line in lines:
        if match := _KEY.match(line):
            stanzas.append((match[1], match[2], []))
        elif stanzas:
            stanzas[-1][2].append(line)
    for event, key, rest in stanzas:
        name, kind = _parted(key)
        if event == "Trying private key" and not os.path.exists(name):
            continue  # a default one
        keys[f"{name} ({kind})" if kind else name] = None
        if event != "Offering public key" and (problem := _problem(settings, name, rest)):
            notes[problem] = None
    return list(keys), [match[1] for line in lines if (match := _SKIPPED.match(line))] + list(notes)


def _parted(text: str) -> tuple[str, str]:
    """Of a key: its path or the agent's comment; and its type and its fingerprint if ssh knows them."""
    match = re.match(r"(.*) (\S+ SHA256:\S+)", text)
    return (match[1][:100], match[2]) if match else (text[:100], "")


def _problem(settings: Settings, name: str, rest: Sequence[str]) -> str:
    """Why a key that the server would take was not used, from the lines after that; empty if it was."""
    for line in rest:
        if line.startswith(("Load key ", "sign_and_send_pubkey: ", "no such identity: ")):
            if name.endswith(".pub"):
                return f"the key of {name} is not in the agent"
            if "bad permissions" in line:
                return f"{name} is accessible to other users; run chmod 600"
            if line.endswith("error in libcrypto"):
                return f"{name} is not a private key that ssh can read"
            return line[:_LONGEST]
        if line.startswith(("debug1: Authentications that can continue", "Authenticated ", "Received disconnect")):
            return ""
    server = settings.server
    if any((server.passphrase, server.passphrase_file, server.passphrase_env)):
        return f"{name} is encrypted with another passphrase than the one that was given"
    return f"{name} {NO_PASSPHRASE}"


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_MOST])
    return f"{shown} and {len(names) - _MOST} more" if len(names) > _MOST else shown


def _unreachable(settings: Settings, lines: Sequence[str]) -> RelayError | None:
    for line in reversed(lines):
        if line.startswith("ssh: Could not resolve hostname"):
            return ConnectError(f"{settings.name}: {line[5:_LONGEST]}; check the spelling", reason="unreachable")
        if match := _CONNECT.match(line):
            text, reason = match[1].rstrip("."), _reason(match[1])
            hint = "; is the service running?" if reason == "refused" else "; is the host up and the port open?"
            return ConnectError(f"{settings.name}: {text}{hint}", reason=reason)
        if re.match(r"Connection (timed out during banner exchange|to \S+ port \d+ timed out)", line):
            return timeout_error(settings, lines)
    return None


def _broken(settings: Settings, lines: Sequence[str]) -> RelayError:
    words, name = said(lines) or "ssh ended without a word", settings.name
    if _any(lines, "debug1: Remote protocol version"):
        stage = LOGIN if _any(lines, "debug1: SSH2_MSG_NEWKEYS received") else KEY_EXCHANGE
        return CarrierError(f"{name}: {words} ({stage})", stage=stage)
    command = _last(_PROXY, lines)
    if command is not None:
        own = said([line for line in lines if not line.startswith(_NO_GREETING)])
        problem = f"its ProxyCommand ({command[1][:100]}) reaches no SSH server: {own or 'it ended without a word'}"
        return ConnectError(f"{name}: {problem}", reason="unreachable")
    greeting = _last(_BANNER, lines)
    # Without a word it may not be up yet behind its port, and what is overloaded comes back.
    stage = GREETING if greeting is not None and not greeting[1].startswith(OVERLOADED) else ""
    hint = "; is it one, or has it too many logins at once (MaxStartups)?" if _last(_CLOSED, lines) else ""
    return CarrierError(f"{name}: no SSH server answers there: {words}{hint}", stage=stage)


def _any(lines: Sequence[str], words: str) -> bool:
    return any(words in line for line in lines)


def _last(pattern: re.Pattern[str], lines: Sequence[str]) -> re.Match[str] | None:
    matches = (match for line in reversed(lines) if (match := pattern.search(line)))
    return next(matches, None)
