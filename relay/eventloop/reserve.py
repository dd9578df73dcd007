"""Descriptors in reserve for operators: a command stays some below its limit, and takes these only to serve them.

The reserve is the difference between the two limits of ``RLIMIT_NOFILE``. So it costs nothing, and what was opened from
it comes back by itself.
"""

from __future__ import annotations

import contextlib
import os
import resource
import threading
from collections.abc import Iterator

_MOST = 32  # descriptors in reserve, but no more than
_PART = 8  # one of so many

is_lent = False  # read for each client, so it is no function
"""Whether operators have the reserve now: what is free then is not for clients."""

_lock = threading.Lock()
_borrowers = 0
_soft = 0  # the limit to go back to


def keep() -> None:
    """Take all the descriptors that the system allows, but those in reserve."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    _set(hard if hard == resource.RLIM_INFINITY else hard - min(_MOST, hard // _PART))


@contextlib.contextmanager
def lent() -> Iterator[None]:
    """Lend the reserve to this process for a while, for what operators ask; from any thread."""
    global _borrowers, _soft, is_lent  # noqa: PLW0603  (the limit is that of the process)
    with _lock:
        # Only the first one reads the limit: to a later one it would be the raised one.
        if _borrowers == 0:
            _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            _set(hard)
        _borrowers += 1
        is_lent = True
    try:
        yield
    finally:
        with _lock:
            _borrowers -= 1
            if _borrowers == 0:
                _set(_soft)
                is_lent = False


def leaves(count: int) -> bool:
    """Return whether so many descriptors are free beside the reserve.

    :raises OSError: if they are not free at all.
    """
    with contextlib.ExitStack() as held:
        # The system gives the lowest free number, so one that is above the usual limit is of the reserve. All stay open
        # until the last is known, or each would get the same number.
        for _ in range(count):
            number = os.open(os.devnull, os.O_RDONLY)
            held.callback(os.close, number)
            if number >= _soft:
                return False
    return True


def _set(soft: int) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Without a higher limit relay works as before, with fewer clients; that is no reason to end.
    with contextlib.suppress(ValueError, OSError):  # macOS says "unlimited" and means 10240
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
