"""The access log: a line of JSON for each connection that has ended, and now and then for each that lasts.

Relay threads only put a record into a bounded queue. A thread of its own writes, so that a slow disk delays no
connection. Lines that the queue or the disk does not take are dropped and counted; the log of the program says so once.
"""

from __future__ import annotations

import errno
import itertools
import json
import logging
import math
import os
import queue
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from ..access.regular_file import open_own
from ..engine.options import LABELS
from ..engine.records import ConnectionRecord
from ..eventloop.sockets import format_address

logger = logging.getLogger("relay.operations")

_LIMIT = 10_000  # records that wait to be written, about 10 MB
_BATCH = 256  # lines of one write
_PATIENCE = 5.0  # seconds that the end waits for the last lines


class LoggedTunnel(NamedTuple):
    """The facts of a tunnel that its lines have."""

    name: str
    local: str
    """The address where it listens."""
    hops: tuple[str, ...]
    """The hops to its target, the nearest first."""
    connections: Callable[[], Sequence[ConnectionRecord]]
    """Returns the open ones."""


class AccessLog:
    """The file and its thread. Every method may be called from any thread.

    :param path: of the file; it is created with mode 0600, and opened for appending. It may not be another user's.
    :param interval: seconds between two lines of an open connection; ``None`` for none.
    :param tunnels: returns the tunnels.
    :raises OSError: if the file cannot be opened, or the system has no thread left.
    """

    def __init__(self, path: str, interval: float | None, tunnels: Callable[[], Iterable[LoggedTunnel]]) -> None:
        self._path = path
        self._interval = interval
        self._tunnels = tunnels
        self._known: dict[str, LoggedTunnel] = {}
        self._waiting: queue.SimpleQueue[_Item] = queue.SimpleQueue()
        # next() of it is one step for the interpreter: relay threads count without a lock.
        self._drops = itertools.count(1)
        self._dropped = self._reported = 0  # records that the queue did not take
        self._file = _File(path, _open(path))
        self._thread = threading.Thread(target=self._run, name="relay-access-log", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:
            self._file.close()
            raise OSError(errno.EAGAIN, str(error)) from error

    def put(self, name: str, record: ConnectionRecord) -> None:
        """Write a line about a connection, later. Never blocks.

        :param name: of its tunnel.
        :param record: of the connection.
        """
        # Not exact with several threads, and need not be: the bound is there for the memory.
        if self._waiting.qsize() < _LIMIT:
            self._waiting.put((name, record))
        else:
            self._dropped = next(self._drops)

    def reopen(self) -> None:
        """Open the file anew, after it was renamed. Lines of connections that have ended already may go to the old one.

        :raises OSError: if it cannot be opened; the old one is kept.
        """
        # Opened in the caller's thread, who gets the error. The writer changes to it in the order of the queue.
        self._waiting.put(_File(self._path, _open(self._path)))

    def close(self) -> None:
        """Write the records that wait, and close the file; not for ever, if the disk is slow."""
        self.start_close()
        self._thread.join(_PATIENCE)

    def start_close(self) -> None:
        """Do the same, but do not wait."""
        self._waiting.put(None)

    # -- the thread ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        due = self._next(time.monotonic())
        try:
            while True:
                lines, then = self._take(due)
                if time.monotonic() >= due:
                    due = self._next(due)
                    lines += self._open_connections()
                self._file.write(lines)
                self._report_dropped()
                if isinstance(then, _File):
                    self._file.close()
                    self._file = then
                elif then is None:
                    return
        finally:
            self._file.close()

    def _next(self, now: float) -> float:
        return now + self._interval if self._interval is not None else math.inf

    def _take(self, due: float) -> tuple[list[bytes], _Item]:
        """Wait for records, until a time; return their lines, and the item that is no record."""
        lines: list[bytes] = []
        wait = None if due == math.inf else max(0.0, due - time.monotonic())
        try:
            item = self._waiting.get(timeout=wait)
            while isinstance(item, tuple):
                lines.append(self._line(*item))
                # A line must not wait until a busy relay has a pause.
                if len(lines) >= _BATCH:
                    return lines, item
                item = self._waiting.get_nowait()
        except queue.Empty:
            return lines, ("", None)
        return lines, item

    def _line(self, name: str, record: ConnectionRecord) -> bytes:
        tunnel = self._known.get(name)
        if tunnel is None:
            self._known = {one.name: one for one in self._tunnels()}
            tunnel = self._known.get(name) or LoggedTunnel(name, "", (), list)
        return _encoded(entry(tunnel, record))

    def _open_connections(self) -> list[bytes]:
        """Return a line for each connection that is older than the interval. The tunnels are looked up anew."""
        assert self._interval is not None
        self._known = {one.name: one for one in self._tunnels()}
        return [
            _encoded(entry(tunnel, record))
            for tunnel in self._known.values()
            for record in tunnel.connections()
            if record.age >= self._interval
        ]

    def _report_dropped(self) -> None:
        dropped = self._dropped
        if dropped != self._reported and self._waiting.qsize() < _LIMIT // 2:
            text = "access log %s: %d lines dropped: the disk did not take them in time"
            logger.warning(text, self._path, dropped - self._reported)
            self._reported = dropped


class _File:
    """The open file. A failure is logged once, and so is its end.

    :param path: for the log.
    :param descriptor: of the file; it is closed at the end.
    """

    def __init__(self, path: str, descriptor: int) -> None:
        self._path = path
        self._descriptor = descriptor
        self._lost = 0  # lines, since it failed
        self._is_torn = False  # the last line has no end

    def write(self, lines: Sequence[bytes]) -> None:
        """Write lines, or count them as lost."""
        if not lines:
            return
        # A full disk may have taken a part of a line; without this the next record would be lost in the same line.
        mend = b"\n" if self._is_torn else b""
        data = memoryview(mend + b"".join(lines))
        size = len(data)
        try:
            while data:
                written = os.write(self._descriptor, data)
                self._is_torn = data[written - 1] != ord("\n")
                data = data[written:]
        except OSError as error:
            self._fail(error, bytes(data).count(b"\n") - (len(mend) if len(data) == size else 0))
        else:
            if self._lost:
                logger.warning("access log %s: written again; %d lines were lost", self._path, self._lost)
                self._lost = 0

    def _fail(self, error: OSError, lost: int) -> None:
        if not self._lost:
            text = "access log %s: cannot write: %s; relay continues and tries again with each connection that ends"
            logger.error(text, self._path, error.strerror)
        self._lost += lost

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


_Item = tuple[str, Any] | _File | None


def entry(tunnel: LoggedTunnel, record: ConnectionRecord) -> dict[str, Any]:
    """Return the fields of a line."""
    return {
        "ts": datetime.fromtimestamp(record.started + record.age, UTC).isoformat(timespec="milliseconds"),
        "id": record.id,
        "tunnel": tunnel.name,
        "peer": format_address(record.peer),
        "identity": record.identity and record.identity.as_fields(),
        "local": tunnel.local,
        "target": record.target,
        "hops": tunnel.hops,
        "connect_ms": _milliseconds(record.connect_time),
        "hop_ms": {hop: _milliseconds(seconds) for hop, seconds in record.hop_times},
        "first_byte_ms": _milliseconds(record.first_byte),
        "seconds": round(record.age, 3),
        "in": record.received,
        "out": record.sent,
        "engine": record.engine,
        "state": record.state,
        "reason": record.reason,
        "by": record.by,
        "rule": record.rule,
        "attempt": record.attempts,
        "carrier": record.carrier,
        "warm": record.warm,
        "resumes": record.resumes,
        "server_name": record.server_name,
        "unique_id": record.unique_id,
        **{name: getattr(record, name) for name in LABELS},
    }


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)


def _encoded(fields: dict[str, Any]) -> bytes:
    return json.dumps(fields).encode() + b"\n"


def _open(path: str) -> int:
    """Open the file. A named pipe without a reader is an error: to wait for one would block signals, too."""
    descriptor = open_own(path, os.O_WRONLY | os.O_APPEND)
    os.set_blocking(descriptor, True)
    return descriptor
