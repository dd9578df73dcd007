"""Replies of tor's control port: pieces of bytes become replies (control-spec, section 2.3); no I/O."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from ...addresses.printable import shown

LONGEST = 1 << 16  # bytes of one reply; those that relay asks for are below a thousand

_LINE = re.compile(rb"([0-9]{3})([ +-])([^\r\n]*)\r\n")
_WORD = re.compile(r'([A-Za-z0-9_-]+)(?:=("(?:[^"\\]|\\.)*"|[^" ]*))?(?: |$)')
_ESCAPE = re.compile(r"\\([0-7]{1,3}|.)", re.DOTALL)
_CONTROLS = {"n": "\n", "t": "\t", "r": "\r"}


class ReplyError(ValueError):
    """Bytes that are no reply."""


class Reply(NamedTuple):
    """One reply."""

    status: int
    """Its number, 250 for a success."""
    lines: tuple[str, ...]
    """The texts of its lines, data after them left out."""

    @property
    def is_ok(self) -> bool:
        """``True`` for a success."""
        return self.status == 250

    @property
    def text(self) -> str:
        """The last line, fit to be shown."""
        return shown(self.lines[-1])

    def value(self, name: str) -> str | None:
        """Return the rest of the line that begins with ``name=``; ``None`` if there is none."""
        return next((line[len(name) + 1 :] for line in self.lines if line.startswith(f"{name}=")), None)


class ReplyReader:
    """Reads replies from the bytes of a control port, in whatever pieces they come."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> Iterator[Reply]:
        """Take more bytes, and yield the replies that are whole now.

        :raises ReplyError: if the bytes are no replies, or one is longer than allowed.
        """
        self._data += data
        while (found := _reply(bytes(self._data[:LONGEST]))) is not None:
            reply, length = found
            del self._data[:length]
            yield reply
        if len(self._data) >= LONGEST:
            raise ReplyError(f"a reply of more than {LONGEST} bytes")


def _reply(data: bytes) -> tuple[Reply, int] | None:
    """Return the first reply and its length; ``None`` if it is not whole."""
    lines: list[str] = []
    begin = 0
    while True:
        end = data.find(b"\n", begin) + 1
        found = _LINE.fullmatch(data, begin, end) if end else None
        if found is None:
            if end or not _may_begin(data[begin : begin + 4]):
                raise ReplyError(f"it says {shown(data[begin : end or None][:40].decode('latin-1'))}")
            return None
        lines.append(found[3].decode("utf-8", "backslashreplace"))
        begin = end
        if found[2] == b" ":
            return Reply(int(found[1]), tuple(lines)), end
        if found[2] == b"+":
            # Data that ends with a line of one dot; relay asks for none.
            end = data.find(b"\r\n.\r\n", begin - 2)
            if end < 0:
                return None
            begin = end + 5


def _may_begin(data: bytes) -> bool:
    return re.fullmatch(rb"[0-9]{0,3}|[0-9]{3}[ +-]", data) is not None


def words_of(line: str) -> Mapping[str, str]:
    """Return the words of a line with their values, such as ``METHODS=COOKIE COOKIEFILE="/run/cookie"``.

    :returns: the values by name, without quotes; empty for a word without one.
    """
    found: dict[str, str] = {}
    position = 0
    while match := _WORD.match(line, position):
        value = match[2] or ""
        found[match[1]] = _unquoted(value[1:-1]) if value.startswith('"') else value
        position = match.end()
        if position == len(line):
            break
    return found


def quoted(text: str) -> str:
    """Return a text as a QuotedString (control-spec, section 2.1.1)."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _unquoted(text: str) -> str:
    def character(found: re.Match[str]) -> str:
        escape = found[1]
        return (
            chr(int(escape, 8) & 0xFF)
            if escape.isdigit() and escape[0] in "01234567"
            else _CONTROLS.get(escape, escape)
        )

    return _ESCAPE.sub(character, text)
