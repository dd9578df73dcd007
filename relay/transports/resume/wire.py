"""The bytes of the resume protocol: greetings, answers and frames; docs/resume-protocol.md describes them. Without I/O.

What a decoder holds is bounded: a greeting, the head of a frame, or the payload of a frame that is no data.
"""

from __future__ import annotations

import re
from typing import NamedTuple

MAGIC = b"relay-resume/1\n"
TOKEN = 16  # bytes of a session's token
LONGEST_FRAME = 64 << 10  # bytes of data in one frame
LONGEST_WORD = 32  # bytes of a reason

_LONGEST_NUMBER = 9  # bytes of a varint, for numbers below 2**63
_WORD = re.compile(rb"[a-z_]{1,%d}" % LONGEST_WORD)

NEW, KNOWN, UNKNOWN, REFUSED = 0, 1, 2, 3
ATTACH = 1
DATA, FIN, END, CONTROL = 0, 1, 2, 3
PING, PONG, WINDOW = 0, 1, 2
"""What a frame of the kind CONTROL is about: its first byte."""


class ProtocolError(ValueError):
    """Bytes that the protocol does not allow, as one clause of a sentence."""


def number(value: int) -> bytes:
    """Return a number as a varint: seven bits in each byte, the lowest first; the top bit says that more follow."""
    if value < 0x80:
        return bytes((value,))
    made = bytearray()
    while value >= 0x80:
        made.append(value & 0x7F | 0x80)
        value >>= 7
    made.append(value)
    return bytes(made)


def read_number(data: bytes | bytearray | memoryview, at: int) -> tuple[int, int] | None:
    """Read a varint.

    :param data: the bytes.
    :param at: where it begins.
    :returns: the number, and where it ends; ``None`` if there is not all of it.
    :raises ProtocolError: if it is longer than needed, or not below 2**63.
    """
    value = 0
    for index in range(_LONGEST_NUMBER):
        if at + index >= len(data):
            return None
        byte = data[at + index]
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            if index and not byte:
                raise ProtocolError("a number with a needless byte")
            return value, at + index + 1
    raise ProtocolError("a number that is too large")


def word_of(data: bytes | bytearray | memoryview) -> str:
    """Return a reason: 1 to 32 of ``a`` to ``z`` and ``_``.

    :raises ProtocolError: if it is none.
    """
    found = bytes(data)
    if not _WORD.fullmatch(found):
        raise ProtocolError("a reason that is no word")
    return found.decode()


# -- before the frames ------------------------------------------------------------------------------------------------


class Hello(NamedTuple):
    """The first bytes of the near end on each carrier."""

    window: int
    """Bytes that it takes beyond those that it has acknowledged."""
    token: bytes | None = None
    """Of a session to go on with; ``None`` for a new one."""
    received: int = 0
    """The position up to which it has received."""

    def encode(self) -> bytes:
        """Return the bytes."""
        if self.token is None:
            return b"".join((MAGIC, bytes((NEW,)), number(self.window)))
        return b"".join((MAGIC, bytes((ATTACH,)), self.token, number(self.received), number(self.window)))


class Answer(NamedTuple):
    """The answer of the far end; its first frame may follow at once."""

    kind: int
    """NEW, KNOWN, UNKNOWN or REFUSED."""
    token: bytes = b""
    """Of a new session."""
    received: int = 0
    """The position up to which it has received, of a known session."""
    window: int = 0
    """As that of a :class:`Hello`, of a new or known session."""
    kept: int = 0
    """For how many seconds it keeps a new session without a carrier."""
    word: str = ""
    """Why it has refused."""

    def encode(self) -> bytes:
        """Return the bytes."""
        parts = [MAGIC, bytes((self.kind,))]
        if self.kind == NEW:
            parts += [self.token, number(self.window), number(self.kept)]
        elif self.kind == KNOWN:
            parts += [number(self.received), number(self.window)]
        elif self.kind == REFUSED:
            word = self.word.encode()
            parts += [bytes((len(word),)), word]
        return b"".join(parts)


class _Reader:
    """Reads what comes before the frames, from bytes that may not all be there."""

    def __init__(self, data: bytes | bytearray) -> None:
        self.data = data
        self.at = 0
        self.is_short = False

    def magic(self) -> int:
        """Return the byte after the first line, or −1.

        :raises ProtocolError: if another line begins there.
        """
        if not MAGIC.startswith(self.data[: len(MAGIC)]):
            raise ProtocolError(f"no greeting of relay-resume/1 (it says {bytes(self.data[:16])!r})")
        self.at = len(MAGIC)
        kind = self.take(1)
        return kind[0] if kind else -1

    def take(self, size: int) -> bytes:
        if self.is_short or self.at + size > len(self.data):
            self.is_short = True
            return b""
        self.at += size
        return bytes(self.data[self.at - size : self.at])

    def number(self) -> int:
        found = None if self.is_short else read_number(self.data, self.at)
        if found is None:
            self.is_short = True
            return 0
        value, self.at = found
        return value


def read_hello(data: bytes | bytearray) -> tuple[Hello, int] | None:
    """Read what a near end has sent first.

    :param data: all that has come; it need not be more than :data:`LONGEST_HELLO` bytes.
    :returns: the value, and how many bytes it has; ``None`` if more must come.
    :raises ProtocolError: if it is none.
    """
    reader = _Reader(data)
    kind = reader.magic()
    if kind == NEW:
        hello = Hello(reader.number())
    elif kind == ATTACH:
        token, received = reader.take(TOKEN), reader.number()
        hello = Hello(reader.number(), token, received)
    elif kind < 0:
        return None
    else:
        raise ProtocolError(f"a greeting of the unknown kind {kind}")
    return None if reader.is_short else (hello, reader.at)


def read_answer(data: bytes | bytearray) -> tuple[Answer, int] | None:
    """Read what a far end has answered; as :func:`read_hello`.

    :raises ProtocolError: if it is none.
    """
    reader = _Reader(data)
    kind = reader.magic()
    if kind == NEW:
        token, window = reader.take(TOKEN), reader.number()
        answer = Answer(kind, token=token, window=window, kept=reader.number())
    elif kind == KNOWN:
        received = reader.number()
        answer = Answer(kind, received=received, window=reader.number())
    elif kind == UNKNOWN:
        answer = Answer(kind)
    elif kind == REFUSED:
        size = reader.take(1)
        word = reader.take(size[0]) if size else b""
        answer = Answer(kind, word="" if reader.is_short else word_of(word))
    elif kind < 0:
        return None
    else:
        raise ProtocolError(f"an answer of the unknown kind {kind}")
    return None if reader.is_short else (answer, reader.at)


LONGEST_HELLO = len(MAGIC) + 1 + TOKEN + 2 * _LONGEST_NUMBER
"""Bytes of the longest greeting; those of an answer are no more than these and a word."""


# -- frames -----------------------------------------------------------------------------------------------------------


def frame(ack: int, kind: int, payload: bytes | bytearray | memoryview = b"") -> bytes:
    """Return one frame.

    :param ack: the position up to which its sender has passed on what it has received.
    :param kind: DATA, FIN, END or CONTROL.
    :param payload: data, nothing, a word, or what a control is about.
    """
    return b"".join((head_of(ack, kind, len(payload)), payload))


def head_of(ack: int, kind: int, size: int) -> bytes:
    """Return what a frame has before a payload of so many bytes; see :func:`frame`."""
    return number(ack) + number(size << 2 | kind)


class Decoder:
    """The frames of one direction of one carrier, in whatever pieces their bytes come."""

    __slots__ = ("_held", "_left")

    def __init__(self) -> None:
        self._held = b""  # the beginning of a frame that is no data, or of the head of one
        self._left = 0  # bytes of a frame of data that have not come

    def feed(self, data: bytes | memoryview) -> list[tuple[int, int, bytes | memoryview]]:
        """Decode.

        :param data: the next bytes.
        :returns: what they have brought, in its order: the acknowledgement (−1 for the later parts of one frame), the
            kind, and the payload; that of data in the parts in which it comes, as views of ``data``.
        :raises ProtocolError: if they are no frames.
        """
        if self._held:
            data, self._held = self._held + data, b""
        view = memoryview(data)
        found: list[tuple[int, int, bytes | memoryview]] = []
        at, end = 0, len(view)
        if self._left and end:
            part = view[: self._left]
            self._left -= len(part)
            at = len(part)
            found.append((-1, DATA, part))
        while at < end:
            begin = at
            head = read_number(view, at)
            second = read_number(view, head[1]) if head is not None else None
            if head is None or second is None:
                break
            ack, size, kind = head[0], second[0] >> 2, second[0] & 3
            at = second[1]
            _check(kind, size)
            if kind == DATA:
                part = view[at : at + size]
                at += len(part)
                self._left = size - len(part)
                found.append((ack, DATA, part))
                continue
            if end - at < size:
                at = begin
                break
            found.append((ack, kind, bytes(view[at : at + size])))
            at += size
        self._held = bytes(view[at:])
        return found


def _check(kind: int, size: int) -> None:
    """Raise :class:`ProtocolError` if no frame of a kind has that size."""
    least, most = ((0, LONGEST_FRAME), (0, 0), (1, LONGEST_WORD), (1, 1 + _LONGEST_NUMBER))[kind]
    if not least <= size <= most:
        raise ProtocolError(f"a frame of the kind {kind} with {size} bytes")
