"""Durations as text, in one form for addresses, options of the command, ``relay.toml`` and limits."""

from __future__ import annotations

import math
import re

from .printable import shown

PATTERN = r"[0-9]{1,9}(\.[0-9]{1,9})?( ?(ms|s|m|h|d|w))?"
"""A duration, as a regular expression for the JSON schema."""
_DURATION = f"-?{PATTERN}"
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}


def parse_duration(text: str) -> float:
    """Parse a number of seconds, or a number followed by ``ms``, ``s``, ``m``, ``h``, ``d`` or ``w``.

    :param text: the duration, or ``none`` for no limit.
    :returns: seconds, which may be negative: the caller checks the range; infinity for ``none``.
    :raises ValueError: if it is neither.
    """
    if text == "none":
        return math.inf
    if not re.fullmatch(_DURATION, text):
        raise ValueError(f"expected a time such as 90, 1.5s, 10m or 2h, got '{shown(text)}'")
    number = text.rstrip("mshdw")
    return float(number) * _UNITS[text[len(number) :] or "s"]
