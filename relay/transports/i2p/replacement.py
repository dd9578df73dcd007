"""Replacement of a session that is up: streams to a destination are opened but bring nothing."""

from __future__ import annotations

import time
from collections.abc import Callable

from ...eventloop.backoff import Backoff
from .session import Session

_REPLACE_AGAIN = (30.0, 900.0)  # seconds from one replacement for a destination to the next, and the maximum


class ReplacementPolicy:
    """Replaces a session because a destination does not answer, less often each time that this does not help.

    A destination may be served from another router now. A router that has not noticed sends to the old one, reports OK
    for every stream, and no stream brings a byte. A new session looks the destination up again.
    """

    renew: Callable[[Session, str], None]

    def __init__(self) -> None:
        self._next: dict[str, tuple[float, Backoff]] = {}  # destination → not before, and the time until the one after

    def on_silence(self, session: Session, dest: str) -> None:
        """Replace the session because a stream to ``dest`` brings nothing; on the I/O thread."""
        now = time.monotonic()
        due, backoff = self._next.get(dest) or (0.0, Backoff(*_REPLACE_AGAIN))
        if now < due:
            return
        # Clients of a proxy name the destinations; to forget all costs one early replacement at most.
        if len(self._next) > 1000:
            self._next.clear()
        self._next[dest] = now + backoff.next(), backoff
        self.renew(session, "a stream was opened but brings no data; the session may be unresponsive")

    def on_reply(self, dest: str) -> None:
        """Forget the replacements for a destination: bytes have come from it; in any thread."""
        self._next.pop(dest, None)
