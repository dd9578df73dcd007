"""Sizes of memory as text, in one form for addresses, options of the command and ``relay.toml``."""

from __future__ import annotations

import re

from .printable import shown

PATTERN = r"[0-9]{1,12}( ?(k|M|G|Ki|Mi|Gi)?B)?"
"""A size, as a regular expression for the JSON schema."""
_UNITS = {"B": 1, "kB": 1000, "MB": 10**6, "GB": 10**9, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


def parse_size(text: str, least: int = 0) -> int:
    """Parse a number of bytes, or a number followed by ``kB``, ``MB``, ``GB``, ``KiB``, ``MiB`` or ``GiB``.

    :param text: the size.
    :param least: the smallest one that is allowed, in bytes; a whole number of KiB.
    :returns: bytes.
    :raises ValueError: if it is not a size, or is too small.
    """
    if not re.fullmatch(PATTERN, text):
        raise ValueError(f"expected a size such as 4MiB or 512kB, got '{shown(text)}'")
    number = re.match("[0-9]+", text)[0]  # type: ignore[index]  # it matches
    size = int(number) * _UNITS[text[len(number) :].strip() or "B"]
    if size < least:
        raise ValueError(f"must be {least >> 10}KiB or more, got {shown(text)}")
    return size
