"""The lines of the keys in a TOML file, which :mod:`tomllib` does not report."""

from __future__ import annotations

import bisect
import re
import tomllib
from collections.abc import Callable

Path = tuple[str | int, ...]
"""The keys, and the indices of arrays, that lead to a value."""

_SPACE = re.compile(r"[ \t\r]*")
_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_BARE = re.compile(r"[A-Za-z0-9_-]+")
# The order matters: three quotes first, else the first two of them would be taken for an empty string.
_STRING = re.compile(
    r'"""(?:[^"\\]|\\.|"{1,2}(?!"))*"{3,5}' + r"|'''(?:[^']|'{1,2}(?!'))*'{3,5}" + r'|"(?:[^"\\]|\\.)*"' + r"|'[^']*'",
    re.DOTALL,
)
_SCALAR = re.compile(r"[^,\]}#\n]*")


def lines_of(text: str) -> dict[Path, int]:
    """Return the line of every table, key and element of an array.

    :param text: TOML that :mod:`tomllib` reads without an error; for other text the result is undefined.
    :returns: path → line, from 1; the first line of a table that is written in several places.

    Source: TOML v1.0.0.
    """
    return _Scan(text).lines


class _Scan:
    """One pass over a file; of the values, it reads only arrays and inline tables."""

    def __init__(self, text: str) -> None:
        self.lines: dict[Path, int] = {}
        self._text = text
        self._at = 0
        # Found once: counting the line breaks before each key would make the time grow with the square of the file.
        self._breaks = [found.start() for found in re.finditer("\n", text)]
        self._counts: dict[Path, int] = {}  # of the tables in each array of tables
        table: Path = ()
        while self._skip(_BLANK):
            if text[self._at] == "[":
                table = self._header()
            else:
                self._pair(table)

    def _skip(self, pattern: re.Pattern[str]) -> bool:
        """Skip the text that matches; return whether any is left."""
        found = pattern.match(self._text, self._at)
        assert found is not None, "every pattern here matches the empty string, or what is known to be there"
        self._at = found.end()
        return self._at < len(self._text)

    def _take(self, literal: str) -> bool:
        """Skip a literal if it comes next; return whether it did."""
        here = self._text.startswith(literal, self._at)
        self._at += len(literal) if here else 0
        return here

    def _record(self, path: Path) -> None:
        self.lines.setdefault(path, bisect.bisect_left(self._breaks, self._at) + 1)

    def _header(self) -> Path:
        """Read ``[a.b]`` or ``[[a.b]]``; return the path of the table."""
        start = self._at
        self._at += 1
        array = self._take("[")
        keys = self._keys()
        # The lines are recorded at the start of the header; a key in quotes may have been read past that.
        self._at, end = start, self._at
        path: Path = ()
        for number, key in enumerate(keys, 1):
            path = (*path, key)
            self._record(path)
            if array and number == len(keys):
                self._counts[path] = self._counts.get(path, 0) + 1
            if path in self._counts:
                path = (*path, self._counts[path] - 1)
                self._record(path)
        self._at = end + (2 if array else 1)
        return path

    def _pair(self, table: Path) -> None:
        """Read ``a.b = value``."""
        start = self._at
        keys = self._keys()
        self._at, end = start, self._at
        path = table
        for key in keys:
            path = (*path, key)
            self._record(path)
        self._at = end + 1  # the equals sign
        self._skip(_SPACE)
        self._value(path)

    def _keys(self) -> list[str]:
        """Read a dotted key and the space after it; return its parts."""
        keys: list[str] = []
        while True:
            self._skip(_SPACE)
            start = self._at
            quoted = self._text[start] in "\"'"
            self._skip(_STRING if quoted else _BARE)
            key = self._text[start : self._at]
            # The escapes of a quoted key are those of TOML; a path must have the key as tomllib gives it.
            keys.append(tomllib.loads(f"key = {key}")["key"] if quoted else key)
            self._skip(_SPACE)
            if not self._take("."):
                return keys

    def _value(self, path: Path) -> None:
        if self._take("["):
            self._items("]", lambda number: self._element((*path, number)))
        elif self._take("{"):
            self._items("}", lambda _: self._pair(path))
        else:
            self._skip(_STRING if self._text[self._at] in "\"'" else _SCALAR)

    def _element(self, path: Path) -> None:
        self._record(path)
        self._value(path)

    def _items(self, end: str, item: Callable[[int], None]) -> None:
        """Read items between commas, up to the closing bracket."""
        number = 0
        while True:
            self._skip(_BLANK)
            if self._take(end):
                return
            if not self._take(","):
                item(number)
                number += 1
