"""Identities of connections: UUIDs of version 7 (RFC 9562), made of a number only when a record needs one."""

from __future__ import annotations

import itertools
import os
import time

next_number = itertools.count(1).__next__
"""Return the number of a new connection of this process, the whole cost of its id; safe from any thread."""

_RANDOM = (1 << 74) - 1  # the bits of an id that are neither time nor version
_LOW = (1 << 62) - 1  # those of them after the two bits that the standard fixes

_clock = time.time() - time.monotonic()  # read once, so that an id stays the same when the clock is set
_base = 0


def _seed() -> None:
    global _base  # noqa: PLW0603  (a forked child must not repeat the ids of its parent)
    _base = int.from_bytes(os.urandom(10), "big")


_seed()
os.register_at_fork(after_in_child=_seed)


def epoch(moment: float) -> float:
    """Return the seconds since the epoch of a moment, given its monotonic seconds."""
    return moment + _clock


def id_of(number: int, started: float) -> str:
    """Return the id of a connection.

    :param number: from :func:`next_number`.
    :param started: when it was accepted, monotonic seconds.
    """
    milliseconds, rest = int(epoch(started) * 1000), (_base + number) & _RANDOM
    digits = f"{milliseconds & 0xFFFFFFFFFFFF:012x}7{rest >> 62:03x}{2 << 62 | rest & _LOW:016x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def number_of(text: str) -> int | None:
    """Return the number of a connection of this process, given its id.

    :returns: ``None`` if no connection can have this id.
    """
    digits = text.replace("-", "")
    if len(digits) != 32 or not digits.isalnum() or not digits.isascii():
        return None
    try:
        value = int(digits, 16)
    except ValueError:
        return None
    rest = (value >> 64 & 0xFFF) << 62 | value & _LOW
    number = (rest - _base) & _RANDOM
    return number if number <= _LOW else None
