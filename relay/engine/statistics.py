"""The figures of a tunnel, its last connections, and the log line of each connection that ends."""

from __future__ import annotations

import collections
import logging
import time
from collections.abc import Iterable

from ..eventloop.sockets import format_address
from .connection import Connection
from .observer import Observer
from .records import ConnectionRecord, Stats

__all__ = ["Statistics"]

logger = logging.getLogger("relay")

_RECENT = 100  # ended connections that are remembered


class Statistics:
    """The figures of one tunnel. Written by the relay thread, read by any.

    :param name: of the tunnel, for the log.
    :param lifetime: the limit of that name, for the log.
    :param observer: gets the record of each connection that has ended; ``None`` for none.
    """

    def __init__(self, name: str, lifetime: float | None, observer: Observer | None) -> None:
        self.accepted = 0
        self._name = name
        self._lifetime = lifetime
        self._observer = observer
        self._received = self._sent = 0
        self._failed: collections.Counter[str] = collections.Counter()
        self._recent: collections.deque[Connection] = collections.deque(maxlen=_RECENT)

    def add(self, connection: Connection) -> None:
        """Count a connection that has ended."""
        summary = connection.summary
        self._recent.append(connection)
        self._received += summary.received
        self._sent += summary.sent
        reason = summary.reason or ""
        if reason not in ("done", "closed"):
            if reason == "lifetime" and not self._failed["lifetime"]:
                self._warn_of_lifetime(connection)
            self._failed[reason] += 1
        if self._observer is not None:
            self._observer.put(connection.record(summary.finished))
        if logger.isEnabledFor(logging.INFO):
            record = connection.record(summary.finished)
            logger.info("%s: %s", self._name, _in_one_line(record), extra={"connection": record})

    def recent(self) -> list[ConnectionRecord]:
        """Return the records of the last 100 connections that ended, oldest first."""
        now = time.monotonic()
        return [connection.record(now) for connection in self._recent.copy()]

    def stats(self, open_connections: Iterable[ConnectionRecord]) -> Stats:
        """Return the figures since the tunnel was made, with those of the open connections."""
        records = list(open_connections)
        return Stats(
            accepted=self.accepted,
            active=len(records),
            received=self._received + sum(record.received for record in records),
            sent=self._sent + sum(record.sent for record in records),
            failed=dict(self._failed),
        )

    def _warn_of_lifetime(self, connection: Connection) -> None:
        text = (
            "%s: timeout: reset the connection of %s after %g s, the longest that one may last; "
            "timeout=None is no limit (logged once for a tunnel)"
        )
        logger.warning(text, self._name, format_address(connection.summary.peer) or "a local client", self._lifetime)


def _in_one_line(record: ConnectionRecord) -> str:
    return (
        f"{format_address(record.peer) or 'a local client'} -> {record.target or 'nowhere'}: "
        f"{record.reason} after {record.age:.3f} s, "
        f"{record.received} bytes received, {record.sent} sent, {record.engine}"
    )
