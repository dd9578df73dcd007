"""SAM messages as values: building and parsing them, without I/O.

Source: the SAM v3 specification (3.1 to 3.3). A line is one or two words, then options in any order, KEY=value or
KEY="a value". Inside quotes a backslash precedes each quote and each backslash (3.2).
"""

# ruff: noqa: A002  (a session's ID is SAM's own word)

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from ...addresses.destinations import Peer, is_base64
from ...addresses.printable import one_line
from ...errors import CarrierError, ConnectError, SAMError

LONGEST = 8192  # bytes of one line, including its newline
MOST_SHOWN = 60  # characters of received text that an error or a repr repeats

_WORD = re.compile(r"[A-Z]{1,32}")
_KEY = re.compile(r"[^ \t=]+")
_SPACES = re.compile(r"[ \t]*")
_BARE = re.compile(r"[^ \t]*")
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"(?![^ \t])')
_NEEDS_QUOTES = re.compile(r'[ \t"\\]')
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f]")  # all but the tab
_SECRET = re.compile(r"pass|priv|psk|secret", re.IGNORECASE)
_NUMBER = re.compile(r"[0-9]{1,5}")

_TEXTUAL = ("PING", "PONG")  # followed by text, not by options


class MessageError(SAMError):
    """A line that is not a SAM message, or not the expected one.

    ``result`` is that of the line if it is a ``STREAM STATUS``, else empty.
    """


@dataclass(frozen=True, slots=True)
class Message:
    """One line of SAM. Its ``repr`` shows no private key and no password.

    :param words: one or two words of capital letters, such as ``("STREAM", "STATUS")``.
    :param options: in the order of the line; a key without value has an empty one.
    :param text: the rest of the line; only of ``PING`` and ``PONG``.
    """

    words: tuple[str, ...]
    options: Mapping[str, str] = field(default_factory=dict, hash=False)
    text: str = ""

    @property
    def result(self) -> str:
        """Value of ``RESULT``; empty if there is none."""
        return self.options.get("RESULT", "")

    def encode(self) -> bytes:
        """Return the line, with its newline.

        :returns: at most :data:`LONGEST` bytes, which :func:`parse` reads as an equal message.
        :raises ValueError: if no line can hold the message: it has a control character, or is too long.
        """
        name = self._name()
        options = [f"{_sayable_key(key)}={_quoted(key, value)}" for key, value in self.options.items()]
        line = " ".join([name, *options, *filter(None, [_sayable(name, self.text)])]).encode() + b"\n"
        if len(line) > LONGEST:
            raise ValueError(f"{name}: a line of {len(line)} bytes; SAM lines here have at most {LONGEST}")
        return line

    def _name(self) -> str:
        name = " ".join(self.words)
        if not 1 <= len(self.words) <= 2 or not all(map(_WORD.fullmatch, self.words)):
            raise ValueError(f"{shown(name)!r} is not a SAM command; expected one or two words of capital letters")
        if self.words[0] in _TEXTUAL and (len(self.words) > 1 or self.options):
            raise ValueError(f"{self.words[0]} has a text, no second word and no options")
        if self.words[0] not in _TEXTUAL and self.text:
            raise ValueError(f"{name} has options and no text")
        return name

    def __repr__(self) -> str:
        options = (f"{shown(key)}={self._shown_value(key, value)}" for key, value in self.options.items())
        return f"<{' '.join([*self.words, *options, *filter(None, [shown(self.text)])])}>"

    def _shown_value(self, key: str, value: str) -> str:
        # A session's DESTINATION is its private key; that of a stream is public.
        own = key == "DESTINATION" and "SESSION" in self.words and value != "TRANSIENT"
        return "***" if own or _SECRET.search(key) else repr(shown(value))


def _sayable(name: str, value: str) -> str:
    """Return a value that a line can hold. The error only names the option, because the value may be a secret."""
    if _CONTROL.search(value):
        raise ValueError(f"{name}: has a control character such as a newline, which no SAM line can hold")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{name}: has half a surrogate pair, which UTF-8 cannot encode") from None
    return value


def _sayable_key(key: str) -> str:
    if not _KEY.fullmatch(key):
        raise ValueError(f"option {shown(key)!r}: expected a name with at least one character, no space and no =")
    return _sayable("option name", key)


def _quoted(key: str, value: str) -> str:
    """Return a value as a line holds it, without quotes if possible, because i2pd does not know them."""
    if not _NEEDS_QUOTES.search(_sayable(key, value)):
        return value
    escaped = value.replace("\\", r"\\").replace('"', r"\"")
    return f'"{escaped}"'


def shown(text: str) -> str:
    """Return the beginning of received text for a log."""
    return one_line(text, MOST_SHOWN)


def parse(line: bytes) -> Message:
    """Parse one line (SAM v3).

    Keeps unknown keys. If a key occurs twice, the first value counts.

    :param line: with or without its end, LF or CRLF.
    :returns: the message.
    :raises MessageError: if it is not a SAM message; the error repeats no option's value.
    """
    text = _decoded(line)
    words, at = _words(text)
    if words[:1] and words[0] in _TEXTUAL:
        return Message(words[:1], {}, text[len(words[0]) + 1 :])
    if not words:
        raise MessageError(f"not SAM: {shown(text)!r}")
    return Message(words, _options(text, at, " ".join(words)))


def _decoded(line: bytes) -> str:
    body = line.removesuffix(b"\n").removesuffix(b"\r") if line.endswith(b"\n") else line
    if len(body) >= LONGEST:
        raise MessageError(f"a line of more than {LONGEST} bytes, which no SAM message has")
    try:
        text = body.decode()
    except UnicodeDecodeError:
        raise MessageError("a line that is not valid UTF-8") from None
    if _CONTROL.search(text):
        raise MessageError("a line with control characters, which no SAM message has")
    return text


def _words(text: str) -> tuple[tuple[str, ...], int]:
    """Return the first words of a line, and the offset of its options."""
    words: list[str] = []
    at = 0
    while len(words) < 2:
        token = _BARE.match(text, at)
        assert token is not None  # it also matches the empty string
        if not _WORD.fullmatch(token[0]):
            break
        words.append(token[0])
        at = _after_spaces(text, token.end())
    return tuple(words), at


def _after_spaces(text: str, at: int) -> int:
    spaces = _SPACES.match(text, at)
    assert spaces is not None
    return spaces.end()


def _options(text: str, at: int, name: str) -> dict[str, str]:
    options: dict[str, str] = {}
    while (at := _after_spaces(text, at)) < len(text):
        key = _KEY.match(text, at)
        if key is None:
            raise MessageError(f"{name}: an option without a name before its =")
        value, at = _value(text, key.end(), name)
        options.setdefault(key[0], value)
    return options


def _value(text: str, at: int, name: str) -> tuple[str, int]:
    """Return the value of the option whose name ends at ``at``, and the offset after the value."""
    if not text.startswith("=", at):
        return "", at
    if not text.startswith('="', at):
        bare = _BARE.match(text, at + 1)
        assert bare is not None
        return bare[0], bare.end()
    quoted = _QUOTED.match(text, at + 1)
    if quoted is None:
        raise MessageError(f"{name}: a quoted value that does not end, or continues after its closing quote")
    return re.sub(r'\\(["\\])', r"\1", quoted[1]), quoted.end()


def parse_peer(line: bytes) -> Peer:
    """Parse the line that precedes the bytes of an accepted stream (SAM v3, "STREAM ACCEPT").

    :param line: ``<base64> FROM_PORT=1 TO_PORT=2`` or ``<base64>``, with or without its end.
    :returns: the peer.
    :raises MessageError: if it is not such a line, or the ``STREAM STATUS`` of an ACCEPT that failed late.
    """
    text = _decoded(line)
    if text.startswith("STREAM "):
        status = parse(line)
        raise MessageError(f"STREAM ACCEPT failed: {shown(status.result or text)}", result=status.result)
    destination, _, rest = text.partition(" ")
    if not is_base64(destination):
        raise MessageError(f"expected the peer's destination, got {shown(text)!r}")
    options = _options(rest, 0, "the peer's destination")
    return Peer(destination, _port(options, "FROM_PORT"), _port(options, "TO_PORT"))


def _port(options: Mapping[str, str], key: str) -> int:
    value = options.get(key) or "0"
    if not _NUMBER.fullmatch(value) or int(value) > 65535:
        raise MessageError(f"{key} of the peer: expected a number up to 65535, got {shown(value)!r}")
    return int(value)


def hello(minimum: str = "3.1", maximum: str = "3.3", user: str | None = None, password: str | None = None) -> Message:
    """Return ``HELLO VERSION``, the first line of every conversation.

    :param minimum: the lowest accepted version.
    :param maximum: the highest supported version.
    :param user: for a bridge with authentication.
    :param password: of the user.
    """
    options = {"MIN": minimum, "MAX": maximum, "USER": user, "PASSWORD": password}
    return Message(("HELLO", "VERSION"), _given(options))


def session_create(
    style: str = "STREAM", *, id: str, destination: str = "TRANSIENT", options: Mapping[str, str] | None = None
) -> Message:
    """Return ``SESSION CREATE``.

    :param style: ``STREAM``, ``DATAGRAM``, ``RAW`` or ``MASTER``.
    :param id: the session's ID at this router.
    :param destination: a private key in base64, or ``TRANSIENT`` for a new one: Ed25519, unless ``options`` has
        another ``SIGNATURE_TYPE``.
    :param options: further options, such as ``inbound.length``.
    :raises ValueError: if ``options`` has one of the above.
    """
    head = {"STYLE": style, "ID": id, "DESTINATION": destination}
    given = dict(options or {})
    if twice := sorted(head.keys() & given.keys()):
        raise ValueError(f"{twice[0]}: not a session option; relay sets it")
    if destination == "TRANSIENT":
        # Without it SAM makes a key of DSA-SHA1.
        head["SIGNATURE_TYPE"] = given.pop("SIGNATURE_TYPE", "7")
    return Message(("SESSION", "CREATE"), head | given)


def stream_connect(id: str, destination: str, *, from_port: int | None = None, to_port: int | None = None) -> Message:
    """Return ``STREAM CONNECT`` with an answer (``SILENT=false``).

    :param id: of the session.
    :param destination: of the stream, in base64.
    :param from_port: virtual port of this side, 0 to 65535; ``None`` for none.
    :param to_port: virtual port of the destination; ``None`` for none.
    """
    ports = _given({"FROM_PORT": from_port, "TO_PORT": to_port})
    return Message(("STREAM", "CONNECT"), {"ID": id, "DESTINATION": destination, "SILENT": "false", **ports})


def stream_accept(id: str) -> Message:
    """Return ``STREAM ACCEPT`` of a session, with the peer's destination before the bytes (``SILENT=false``)."""
    return Message(("STREAM", "ACCEPT"), {"ID": id, "SILENT": "false"})


def stream_forward(id: str, port: int, *, host: str | None = None) -> Message:
    """Return ``STREAM FORWARD``, with the peer's destination before the bytes (``SILENT=false``).

    :param id: of the session.
    :param port: local port to which the router connects for each stream.
    :param host: its address; ``None`` for the one from which the conversation comes.
    """
    place = _given({"PORT": port, "HOST": host})
    return Message(("STREAM", "FORWARD"), {"ID": id, **place, "SILENT": "false"})


def naming_lookup(name: str) -> Message:
    """Return ``NAMING LOOKUP`` of a host name, a ``.b32.i2p`` address or ``ME``."""
    return Message(("NAMING", "LOOKUP"), {"NAME": name})


def dest_generate(signature_type: int = 7) -> Message:
    """Return ``DEST GENERATE`` for a new key, by default Ed25519 (7)."""
    return Message(("DEST", "GENERATE"), {"SIGNATURE_TYPE": str(signature_type)})


def ping(text: str = "") -> Message:
    """Return ``PING``; the answer has the same text (SAM 3.2)."""
    return Message(("PING",), text=text)


def pong(text: str = "") -> Message:
    """Return ``PONG``, the answer to a ``PING`` with this text."""
    return Message(("PONG",), text=text)


def _given(options: Mapping[str, str | int | None]) -> dict[str, str]:
    return {key: str(value) for key, value in options.items() if value is not None}


# Results for a name that the router does not know.
UNKNOWN_NAME = ("INVALID_KEY", "KEY_NOT_FOUND")


class ServedElsewhereError(CarrierError):
    """Another relay with the same keys serves the destination."""

    pause = 20.0  # seconds at most until the next question


class NotReachedError(CarrierError):
    """The destination of a session is not reachable from I2P."""


class UnreachableError(ConnectError, SAMError):
    """A stream that the router did not open; ``reason`` is relay's word, ``result`` the router's."""

    def __init__(self, message: str, *, reason: str = "unreachable", result: str = "") -> None:
        SAMError.__init__(self, message, result=result)
        self.reason = reason
        self.passing = result not in UNKNOWN_NAME


def unreachable(text: str, result: str) -> UnreachableError:
    """Return the error for a failed stream or lookup, from SAM's ``RESULT``."""
    reason = "connect_timeout" if result == "TIMEOUT" else "unreachable"
    return UnreachableError(text, reason=reason, result=result)


def is_timeout(error: OSError) -> bool:
    """Return whether an error means that there was no answer in time."""
    return isinstance(error, ConnectError) and error.reason == "connect_timeout"
