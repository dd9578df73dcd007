"""Checks of counts and times that callers give, and how long a client may take to begin and to end a handshake."""

from __future__ import annotations

import math
import os
from typing import Any

FIRST_BYTE = 10.0  # seconds that a client has to begin a handshake: a client that is going to speak does so at once
HANDSHAKE = 30.0  # seconds that a client has for it where no limit says otherwise: none may have for ever

WARM_FOR = 30.0  # seconds for which a stream without a client is kept where no option says otherwise

MOST_WORKERS = 128
"""The most workers of a pool. Each gets a descriptor for each other one with each tunnel."""

_MOST_WARM = 1024


def check_count(nconnect: Any) -> int:
    """Check a limit of connections.

    :raises TypeError: if it is not a whole number.
    :raises ValueError: if it is 0 or less than −1.
    """
    # A bool is an int in Python; `nconnect=True` is a mistake and no limit of one.
    if isinstance(nconnect, bool) or not isinstance(nconnect, int):
        raise TypeError(f"nconnect: expected a whole number, got {type(nconnect).__name__}")
    if nconnect < -1 or nconnect == 0:
        raise ValueError(f"nconnect: must be at least 1, got {nconnect}; use -1 for no limit")
    return nconnect


def check_time(name: str, seconds: Any, *, zero: bool = False) -> float | None:
    """Check a time.

    :param name: of the argument, for the error.
    :param seconds: a number, or ``None`` for no limit.
    :param zero: whether 0 is allowed.
    :returns: the seconds; ``None`` for no limit, which infinity is, too.
    :raises TypeError: if it is not a number.
    :raises ValueError: if it is NaN, negative, too large for a float, or 0 where that is not allowed.
    """
    if seconds is None:
        return None
    if isinstance(seconds, (bool, str, bytes)) or not hasattr(seconds, "__float__"):
        raise TypeError(f"{name}: expected a number of seconds or None, got {type(seconds).__name__}")
    try:
        value = float(seconds)
    except OverflowError:  # whole numbers have no infinity
        raise ValueError(f"{name}: number too large; use None for no limit") from None
    if math.isnan(value) or value < 0 or (value == 0 and not zero):
        allowed = "at least 0" if zero else "greater than 0"
        raise ValueError(f"{name}: must be {allowed}, got {seconds}; use None for no limit")
    return value if value < math.inf else None


def check_warm(warm: Any, warm_for: Any) -> None:
    """Check the number of warm streams, and the time for which one is kept.

    :raises TypeError: if they are no numbers, or ``warm`` is not a whole one.
    :raises ValueError: if ``warm`` is negative or more than 1024, or ``warm_for`` is 0, negative or without limit.
    """
    if isinstance(warm, bool) or not isinstance(warm, int):
        raise TypeError(f"warm: expected a whole number, got {type(warm).__name__}")
    if not 0 <= warm <= _MOST_WARM:
        raise ValueError(f"warm: must be from 0 to {_MOST_WARM}, got {warm}; use 0 for none")
    try:
        seconds = check_time("warm_for", warm_for)
    except ValueError:  # it says how to have no limit, which is not allowed here
        raise ValueError(f"warm_for: must be greater than 0, got {warm_for}; use {WARM_FOR:g} seconds") from None
    if seconds is None:
        raise ValueError(f"warm_for: must have a limit, got {warm_for}; use {WARM_FOR:g} seconds")


def check_workers(workers: Any) -> int:
    """Check a number of workers.

    :param workers: the number, or ``"auto"`` for the number of processors that this process may use.
    :returns: the number.
    :raises TypeError: if it is neither.
    :raises ValueError: if it is out of range.
    """
    if workers == "auto":
        # The processors that this process may use: a container or taskset grants fewer than the machine has.
        usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return min(usable, MOST_WORKERS)
    if isinstance(workers, bool) or not isinstance(workers, int):
        what = f"'{workers}'" if isinstance(workers, str) else type(workers).__name__
        raise TypeError(f"workers: expected a whole number or 'auto', got {what}")
    if not 1 <= workers <= MOST_WORKERS:
        raise ValueError(f"workers: must be from 1 to {MOST_WORKERS}, got {workers}; use 'auto' for one per processor")
    return workers


def check_carrier_sharing(sharing: Any) -> None:
    """Check how workers share carriers.

    :raises ValueError: if it is neither ``"shared"`` nor ``"per-worker"``.
    """
    if sharing not in ("shared", "per-worker"):
        raise ValueError(f"carrier_sharing: expected 'shared' or 'per-worker', got {sharing!r}")
