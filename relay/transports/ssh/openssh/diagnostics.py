"""Errors of ssh: the lines on its standard error as typed errors of one line."""

from __future__ import annotations

import errno
import itertools
import os
import re
from collections.abc import Sequence

from ....addresses.printable import one_line, printable
from ....addresses.values import TCPAddress
from ....errors import CarrierError, ConnectError, RelayError
from ....eventloop.sockets import connect_error
from ..config.identities import NO_PASSPHRASE
from ..connection import CLOSED, KEY_EXCHANGE, LOGIN, IncompatibleError, Settings
from ..login_failures import login_rejected, no_greeting
from ..open_failures import (
    CHECK_HOST,
    CONNECT_FAILED,
    PROHIBITED,
    SHORTAGE,
    UNKNOWN_KIND,
    open_failure,
    reason_for,
)
from .host_keys import host_key_error, last_match

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
_CONNECT = re.compile(r"(?:ssh: connect to (?:host|address) \S+ port \d+|channel \d+: open failed: [\w ]+?): (.*)$")
_BANNER = re.compile(r"debug1: kex_exchange_identification: banner line \d+: (.*)")
_ENDS = (  # how ssh names the end of the connection, and relay
    (re.compile(r"(?:kex_exchange_identification: )?Connection (?:closed by|to \S+ closed by)"), CLOSED),
    (re.compile(r"(?:kex_exchange_identification: )?(?:read: )?Connection reset by"), "Connection reset by peer"),
)

_DISCONNECT = re.compile(r"Received disconnect from \S+ port \d+:\d+:(.*)")
_DISCONNECTED = "Disconnected from "  # the line of ssh after those words
_VISIBLE = re.compile(rb"\\(\\|[0-3][0-7]{2})")  # what ssh writes for a backslash and for bytes that are not ASCII

_NO_GREETING = ("kex_exchange_identification", "banner exchange: ", "Connection closed")  # lines of ssh about it

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
_PASSWORDS = ("password", "keyboard-interactive")

# The state of a login after a line, for the error when it does not end in time.
_STAGES = (
    ("SSH2_MSG_NEWKEYS received", "asking the agent for its keys; check that the agent replies"),
    ("Will attempt key", "waiting for the server's reply; check that the server is not overloaded"),
    ("Authentications that can continue", "waiting for the server's reply; check that the server is not overloaded"),
    ("Offering public key", "waiting for the server's reply to a key; check that the server is not overloaded"),
    ("Server accepts key", "waiting for a signature; check whether an agent or a security key waits for you"),
    ("read_passphrase: requested to askpass", "waiting for a password or passphrase"),
)
_FATAL = ("Bad configuration option", "terminating, ", "Bad owner or permissions", "Can't open user config file")


def decoded(line: bytes) -> str:
    """Return a line of standard error as printable text."""
    return printable(line.decode("utf-8", "replace").strip())


def said(lines: Sequence[str]) -> str:
    """Return what the server has said in its DISCONNECT, else the last line of ssh for its user; empty without any."""
    if (words := _disconnected(lines)) is not None:
        return f"the server says: {words}" if words else CLOSED
    for line in reversed(lines):
        if line and not _NOISE.match(line) and not line.startswith("debug"):
            return next((text for end, text in _ENDS if end.match(line)), line[:_LONGEST].rstrip("."))
    return ""


def _disconnected(lines: Sequence[str]) -> str | None:
    """Return the words of the server's DISCONNECT, which may have several lines; ``None`` if it has sent none."""
    for number, line in reversed(tuple(enumerate(lines))):
        if match := _DISCONNECT.match(line):
            more = itertools.takewhile(lambda one: not one.startswith(_DISCONNECTED), lines[number + 1 :])
            text = _VISIBLE.sub(_unescaped, "\n".join((match[1], *more)).encode())
            return one_line(text, _LONGEST).rstrip(".")
    return None


def _unescaped(match: re.Match[bytes]) -> bytes:
    return match[1] if match[1] == b"\\" else bytes((int(match[1], 8),))


def why(settings: Settings, lines: Sequence[str]) -> RelayError:
    """Return why ssh has ended before the login was complete.

    :param settings: the server.
    :param lines: ssh's standard error.
    """
    return (
        # The most certain causes first: a line about a rejected option or key is never followed by a connection that
        # works, and what comes after it are consequences.
        _misconfigured(settings, lines)
        or _no_match(settings, lines)
        or host_key_error(settings, lines)
        or _denied(settings, lines)
        or _unreachable(settings, lines)
        or _broken(settings, lines)
    )


def timeout_error(settings: Settings, lines: Sequence[str]) -> ConnectError:
    """Return the error for a login that was not complete before the deadline, with its stage."""
    if _any(lines, "debug1: Server host key"):
        how = f"the login was not finished in time{_stage(lines)}"
    elif _any(lines, "debug1: Remote protocol version"):
        how = "the server did not finish the key exchange in time"
    elif _any(lines, "debug1: Local version string"):
        how = "it accepts connections and does not answer in time; check that it is an SSH server"
    else:
        how = f"no answer in time; {CHECK_HOST}"
    return ConnectError(f"{settings.name}: {how}", reason="connect_timeout")


def _stage(lines: Sequence[str]) -> str:
    """Return the stage of the login, if it is known."""
    for line in reversed(lines):
        for words, what in _STAGES:
            if line.startswith(f"debug1: {words}"):
                return f": ssh was {what}"
    return ""


def open_error(place: str, server: str, text: str) -> ConnectError:
    """Return why the server did not open a stream (RFC 4254, section 5.1), from ssh's line about it.

    :param place: the target.
    :param server: the name of the server.
    :param text: the line after "open failed".
    """
    kind, _, words = text.partition(":")
    return open_failure(place, server, _CODES.get(kind.strip(), CONNECT_FAILED), words)


def _misconfigured(settings: Settings, lines: Sequence[str]) -> RelayError | None:
    for line in lines:
        if match := _OLD.match(line):
            text = f"this ssh does not support {match[1]}; install OpenSSH 8.7 or later, or use the backend paramiko"
            return RelayError(f"{settings.name}: {text}")
        if any(words in line for words in _FATAL) and not line.startswith("debug"):
            return RelayError(f"{settings.name}: ssh rejects its configuration: {line[:_LONGEST]}")
    return None


def _no_match(settings: Settings, lines: Sequence[str]) -> RelayError | None:
    match = last_match(_NO_MATCH, lines)
    if match is None:
        return None
    kind, offer = match[1], match[2][:_LONGEST]
    option = f"{_OPTIONS[kind]} in the SSH configuration" if kind in _OPTIONS else "the SSH configuration"
    problem = f"ssh and the server have no {kind} in common; the server offers {offer}"
    return IncompatibleError(f"{settings.name}: {problem}; allow one of them with {option}, or update the server")


def _denied(settings: Settings, lines: Sequence[str]) -> RelayError | None:
    if not any(_any(lines, words) for words in _DENIALS):
        return None
    permission, more = last_match(_PERMISSION, lines), last_match(_CONTINUE, lines)
    found = permission or more
    keys, notes = _keys(settings, lines)
    steps = [match[1] for line in lines if (match := _PARTIAL.match(line))]
    methods = dict.fromkeys(match[1] for line in lines if (match := _METHOD.match(line)))
    rejected = [*keys, *(method for method in methods if method not in {"publickey", *_PASSWORDS, *steps})]
    if settings.server.has_password:
        rejected += [method for method in methods if method in _PASSWORDS and method not in steps]
    return login_rejected(
        settings,
        one_line(found[1], _LONGEST).split(",") if found else ["unknown methods"],
        rejected,
        accepted=steps,
        end=f": {_TOO_MANY}" if _any(lines, _TOO_MANY) else "",
        notes=notes,
    )


def _keys(settings: Settings, lines: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the keys that the server has rejected, and the problems of the unusable ones."""
    keys: dict[str, None] = {}
    notes: dict[str, None] = {}
    stanzas: list[tuple[str, str, list[str]]] = []
    for line in lines:
        if match := _KEY.match(line):
            stanzas.append((match[1], match[2], []))
        elif stanzas:
            stanzas[-1][2].append(line)
    for (event, key, rest), (reply, *_) in itertools.pairwise((*stanzas, ("", "", []))):
        name, kind = _parted(key)
        if event == "Offering public key" and reply == "Server accepts key":
            continue
        if event == "Trying private key" and not os.path.exists(name):
            continue  # a default one
        if event != "Offering public key" and (problem := _problem(settings, name, rest)):
            notes[problem] = None
        elif not _was_accepted(rest):
            keys[f"{name} ({kind})" if kind else name] = None
    return list(keys), [match[1] for line in lines if (match := _SKIPPED.match(line))] + list(notes)


def _parted(text: str) -> tuple[str, str]:
    """Split the text about a key: its path or the agent's comment; its type and fingerprint, if ssh knows them."""
    match = re.match(r"(.*) (\S+ SHA256:\S+)", text)
    return (match[1][:100], match[2]) if match else (text[:100], "")


def _problem(settings: Settings, name: str, rest: Sequence[str]) -> str:
    """Return why ssh did not use a key that the server accepts, from the lines after that; empty if it did."""
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
        if _METHOD.match(line):
            break  # ssh goes on without a request to the server
    server = settings.server
    if any((server.passphrase, server.passphrase_file, server.passphrase_env)):
        return f"{name} is encrypted with another passphrase than the one that was given"
    return f"{name} {NO_PASSPHRASE}"


def _was_accepted(rest: Sequence[str]) -> bool:
    """Return whether the server has accepted a key, from the lines after that, and then required more."""
    replies = (line for line in rest if _PARTIAL.match(line) or _CONTINUE.match(line))
    return _PARTIAL.match(next(replies, "")) is not None


def _unreachable(settings: Settings, lines: Sequence[str]) -> RelayError | None:
    for line in reversed(lines):
        if line.startswith("ssh: Could not resolve hostname"):
            return ConnectError(f"{settings.name}: {line[5:_LONGEST]}; check the spelling", reason="unreachable")
        if match := _CONNECT.match(line):
            error = connect_error(
                str(TCPAddress(settings.hostname, settings.port)), _system_error(match[1].rstrip("."))
            )
            return ConnectError(f"{settings.name}: {error}", reason=error.reason)
        if re.match(r"Connection (timed out during banner exchange|to \S+ port \d+ timed out)", line):
            return timeout_error(settings, lines)
    return None


def _system_error(text: str) -> OSError:
    """Return the error of a connect from the system's words for it."""
    kinds = {"refused": errno.ECONNREFUSED, "connect_timeout": errno.ETIMEDOUT}
    return OSError(kinds.get(reason_for(text), 0), text)


def _broken(settings: Settings, lines: Sequence[str]) -> RelayError:
    words, name = said(lines) or "ssh ended without a message", settings.name
    if _any(lines, "debug1: Remote protocol version"):
        stage = LOGIN if _any(lines, "debug1: SSH2_MSG_NEWKEYS received") else KEY_EXCHANGE
        return CarrierError(f"{name}: {words} ({stage})", stage=stage)
    command = last_match(_PROXY, lines)
    if command is not None:
        own = said([line for line in lines if not line.startswith(_NO_GREETING)])
        problem = f"its ProxyCommand ({command[1][:100]}) reaches no SSH server: {own or 'it ended without a message'}"
        return ConnectError(f"{name}: {problem}", reason="unreachable")
    greeting = next((match[1] for line in lines if (match := _BANNER.match(line))), "")
    return no_greeting(settings, greeting, words)


def _any(lines: Sequence[str], words: str) -> bool:
    return any(words in line for line in lines)
