"""The grammar of access lists: the text of one entry becomes a rule.

============================ ======================================================================================
entry                        matches
============================ ======================================================================================
``cidr:10.0.0.0/8``          a client with an address of this network; the kind may be left out
``user:www-data``            a process of this user at a Unix socket; a number is allowed
``dns:*.svc``                a verified client certificate with such a DNS name
``uri:spiffe://example/*``   a verified client certificate with such a URI
``cn:NAME``                  a verified client certificate with this common name
``spki:sha256:…``            a verified client certificate with this public key; base64 or hexadecimal
``i2p:….b32.i2p``            this destination of I2P, which may be in base64; the kind may be left out
``login:alice``              a client of a proxy that has logged in as this user
``ssh:SERVER``               a client that an SSH server has sent: its host, with user and port if you like
``file:PATH``                what the entries in this file match, one in each line; the kind may be left out
============================ ======================================================================================
"""

from __future__ import annotations

import base64
import binascii
import os
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from ..addresses.destinations import SHORTEST, b32_of, check_destination
from ..addresses.printable import shown
from .networks import is_network, parse_network
from .patterns import check_pattern, dns_segments, uri_segments

_LONGEST = 1024  # characters of a value; only a destination in base64 has more
_HASH = 32  # bytes of SHA-256
_ANY_USE = ("user", "login", "cn")  # a bare word may be any of these


class Rule(NamedTuple):
    """One entry of an access list.

    :param kind: one of :data:`KINDS`.
    :param value: as it is compared: a network, the segments of a pattern, or text.
    :param text: the rule as logs and records have it.
    """

    kind: str
    value: Any
    text: str


def parse_rule(text: str) -> Rule:
    """Parse one line of a file of rules.

    :param text: the line, without a comment.
    :raises ValueError: if it is no rule; the error says what is wrong and what to write.
    """
    text = text.strip()
    rule = _find(text)
    if rule is None:
        raise ValueError(_problem(text, is_line=True))
    return rule


def parse_entry(text: str) -> Rule | str:
    """Parse an entry of an option.

    :param text: the entry.
    :returns: the rule, or the absolute path of a file of rules.
    :raises ValueError: if it is neither a rule nor a file.
    """
    kind, colon, path = text.partition(":")
    if colon and kind.strip().lower() == "file":
        return _path(path)
    try:
        rule = _find(text.strip())
        if rule is not None:
            return rule
        problem = _entry_problem(text)
    except ValueError as error:
        # With a kind it can only be a rule, so that its own error is the right one; without, a file of that name may be
        # meant.
        if has_kind(text):
            raise
        problem = str(error)
    if text and os.path.lexists(_path(text)):
        return _path(text)
    raise ValueError(f"{shortened(text)!r} is neither a rule nor a file: {problem}")


def file_of(text: str) -> str | None:
    """Return the absolute path of the file that an entry names; ``None`` if it names none, or is wrong."""
    try:
        found = parse_entry(text)
    except ValueError:
        return None
    return found if isinstance(found, str) else None


def _find(text: str) -> Rule | None:
    """Return the rule that a text is; ``None`` if it has the form of none."""
    if has_kind(text):
        kind, _, value = text.partition(":")
        return _parse_value(kind.strip().lower(), value.strip())
    if is_network(text):
        return _parse_value("cidr", text)
    if text.lower().endswith(".i2p") or len(text) >= SHORTEST:
        return _rule("i2p", destination_of(text))
    return None


def _path(text: str) -> str:
    return os.path.abspath(os.path.expanduser(text))


def has_kind(text: str) -> bool:
    """Return whether an entry begins with the kind of a rule."""
    kind, colon, _ = text.partition(":")
    return bool(colon) and kind.strip().lower() in _PARSERS


def destination_of(text: str) -> str:
    """Return the address of 52 characters and ``.b32.i2p`` for a destination in base64 or for that address itself.

    :raises ValueError: if it is neither, or identifies no client.
    """
    destination = check_destination(text)
    if not destination.endswith(".i2p"):
        return b32_of(destination)
    if not destination.endswith(".b32.i2p"):
        raise ValueError("a name may be reassigned to another destination; use its .b32.i2p address")
    if len(destination) != 60:
        raise ValueError(
            "the address of an encrypted lease set does not identify a peer; use the address of 52 characters"
        )
    return destination


def server_names(text: str) -> tuple[str, ...]:
    """Return the names under which a rule may have an SSH server: with and without its user and its port.

    :param text: ``[USER@]HOST[:PORT]``, perhaps after ``ssh://``.
    """
    place = text.removeprefix("ssh://").partition("?")[0].rstrip("/")
    user, at, host = place.rpartition("@")
    host = host.lower()
    name = re.sub(r":\d+$", "", host) if host.count(":") == 1 or "]" in host else host
    hosts = dict.fromkeys((host, name))
    return tuple(dict.fromkeys([*(f"{user}{at}{one}" for one in hosts), *hosts]))


def shortened(text: str) -> str:
    """Return a text for an error, at most 80 characters of it."""
    return text if len(text) <= 80 else f"{text[:80]}…"


def is_written_as_rule(text: str) -> bool:
    """Return whether an entry can only be a rule: it begins with a kind, or is a network."""
    return has_kind(text) or is_network(text.strip())


def _parse_value(kind: str, value: str) -> Rule:
    try:
        if kind != "i2p":
            _check_text(value)
        return _PARSERS[kind](value)
    except ValueError as error:
        raise ValueError(f"{kind}:{shown(shortened(value))}: {error}") from None


def _check_text(value: str) -> None:
    if not value:
        raise ValueError("the value is empty; write one after the colon")
    if len(value) > _LONGEST:
        raise ValueError(f"it has {len(value)} characters; at most {_LONGEST} are allowed")
    if not value.isprintable():
        raise ValueError("it has a character that is not printable; leave it out")


def _entry_problem(text: str) -> str:
    kind, colon, _ = text.partition(":")
    if text and ("/" in kind or (not colon and os.path.splitext(text)[1])):
        path = shown(_path(text))
        return (
            f"there is no file {path}; correct the path, or write the kind of a rule before it, such as cidr: or dns:"
        )
    return _problem(text, is_line=False)


def _problem(text: str, *, is_line: bool) -> str:
    """Return why a text has the form of no rule; a line of a file names no further file."""
    more = () if is_line else ("file",)
    *some, last = (f"{kind}:" for kind in (*KINDS, *more))
    known = f"the kinds{' in a file' if is_line else ''} are {', '.join(some)} and {last}"
    kind, colon, _ = text.partition(":")
    if colon and "/" not in kind:
        return f"{shown(shortened(kind))}: is no kind of rule; {known}"
    if "/" in text or not text:
        return f"that is no rule; write KIND:VALUE, {known}"
    *some, last = (f"{kind}:{shown(shortened(text))}" for kind in (*_ANY_USE, *more))
    return f"the kind is missing; write {', '.join(some)} or {last}"


def _rule(kind: str, value: Any) -> Rule:
    return Rule(kind, value, f"{kind}:{value}")


def _plain(kind: str) -> Callable[[str], Rule]:
    return lambda value: _rule(kind, value)


def _network(value: str) -> Rule:
    return _rule("cidr", parse_network(value))


def _user(value: str) -> Rule:
    return _rule("user", str(int(value)) if value.isascii() and value.isdigit() else value)


def _dns(value: str) -> Rule:
    segments = dns_segments(value)
    check_pattern(segments)
    if not value.isascii():
        raise ValueError("certificates have names in ASCII; write the name as it is in the DNS, with xn--")
    if not all(segments):
        raise ValueError("a label is empty; write a name such as *.svc")
    return Rule("dns", tuple(segments), f"dns:{value.lower()}")


def _uri(value: str) -> Rule:
    segments = uri_segments(value)
    check_pattern(segments)
    if ":" not in segments[0] and segments[0] not in ("*", "**"):
        raise ValueError("the URI has no scheme; write one such as spiffe://example/*")
    return Rule("uri", tuple(segments), f"uri:{value}")


def _spki(value: str) -> Rule:
    name, colon, written = value.partition(":")
    if not colon or name.lower() != "sha256":
        raise ValueError("expected sha256: and the hash of a public key, in base64 or hexadecimal")
    digits = written.replace(":", "")
    try:
        is_hex = len(digits) == 2 * _HASH
        found = (
            bytes.fromhex(digits) if is_hex else base64.b64decode(written + "=" * (-len(written) % 4), validate=True)
        )
    except (ValueError, binascii.Error):
        found = b""
    if len(found) != _HASH:
        raise ValueError("that is no SHA-256 hash; it has 44 characters in base64, or 64 in hexadecimal")
    return _rule("spki", f"sha256:{base64.b64encode(found).decode()}")


def _server(value: str) -> Rule:
    name = server_names(value)[0]
    if not name:
        raise ValueError("no server is named; write ssh:HOST")
    return _rule("ssh", name)


def _destination(value: str) -> Rule:
    return _rule("i2p", destination_of(value))


_PARSERS: dict[str, Callable[[str], Rule]] = {
    "cidr": _network,
    "user": _user,
    "dns": _dns,
    "uri": _uri,
    "cn": _plain("cn"),
    "spki": _spki,
    "i2p": _destination,
    "login": _plain("login"),
    "ssh": _server,
}
KINDS = tuple(_PARSERS)
"""The kinds of rules."""
