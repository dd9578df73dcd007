"""SSH messages: their numbers (RFC 4250, section 4.1.2) and helpers to write and read them."""

from __future__ import annotations

import logging
import os
import struct
from collections.abc import Callable

from ....addresses.printable import one_line

logger = logging.getLogger("relay.ssh")

DISCONNECT = 1
NOTHING = b"\2\0\0\0\0"  # a message that is ignored; RFC 4253, section 11.2
ASK, GRANTED, DENIED = 80, 81, 82  # global requests
OPEN, CONFIRMED, REFUSED, ADJUST, DATA, EXTENDED, END, CLOSE, REQUEST, REQUEST_GRANTED, REQUEST_REFUSED = range(90, 101)

Handler = Callable[[memoryview], object]
"""Handles a message without its number; the memory is reused after the call."""

_LONGEST_TEXT = 200  # characters of a server's text


def guarded(call: Callable[..., object], *arguments: object) -> bool:
    """Call a caller's function and log the error that it raises, which must not end the shared connection.

    :returns: whether it raised no error.
    """
    try:
        call(*arguments)
    except Exception:
        logger.exception("%r failed; this is a bug in the code that registered it", call)
        return False
    return True


def text(value: str) -> bytes:
    """Return the SSH encoding of a string (RFC 4251, section 5)."""
    encoded = os.fsencode(value)
    return struct.pack(">I", len(encoded)) + encoded


def printable(text: str) -> str:
    """Return a server's text in one line, without control characters and cut to a maximum length."""
    return one_line(text, _LONGEST_TEXT)
