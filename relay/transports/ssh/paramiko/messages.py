"""The numbers of SSH messages (RFC 4250, section 4.1.2), and what is common to those who write and read them."""

from __future__ import annotations

import logging
import os
import struct
from collections.abc import Callable

__all__ = [
    "ADJUST",
    "ASK",
    "CLOSE",
    "CONFIRMED",
    "DATA",
    "DENIED",
    "DISCONNECT",
    "END",
    "EXTENDED",
    "GRANTED",
    "NOTHING",
    "OPEN",
    "REFUSED",
    "REQUEST",
    "REQUEST_GRANTED",
    "REQUEST_REFUSED",
    "Handler",
    "guarded",
    "printable",
    "text",
]

logger = logging.getLogger("relay.ssh")

DISCONNECT = 1
NOTHING = b"\2\0\0\0\0"  # a message that is ignored; RFC 4253, section 11.2
ASK, GRANTED, DENIED = 80, 81, 82  # global requests
OPEN, CONFIRMED, REFUSED, ADJUST, DATA, EXTENDED, END, CLOSE, REQUEST, REQUEST_GRANTED, REQUEST_REFUSED = range(90, 101)

Handler = Callable[[memoryview], object]
"""Takes a message without its number; the memory is used again afterwards."""

_LONGEST_SAID = 200  # characters of what a server says


def guarded(call: Callable[..., object], *arguments: object) -> bool:
    """Call what belongs to others: what it raises is theirs, and must not end the connection of all.

    :returns: whether it raised nothing.
    """
    try:
        call(*arguments)
    except Exception:
        logger.exception("%r failed; this is a bug in whoever gave it", call)
        return False
    return True


def text(value: str) -> bytes:
    """A string as it goes over the wire (RFC 4251, section 5)."""
    encoded = os.fsencode(value)
    return struct.pack(">I", len(encoded)) + encoded


def printable(text: str) -> str:
    """What a server says, fit for one line."""
    return "".join(letter if letter.isprintable() else " " for letter in text[:_LONGEST_SAID]).strip()
