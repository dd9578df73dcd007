"""Probes: a stream through every hop to the target of a tunnel, opened now and then, as a client would open it.

One thread waits for the next probe that is due, and starts each on a thread of its own, because dialing may block. A
tunnel has at most one probe at a time, and each has a deadline. Without a probe there is no thread.
"""

from __future__ import annotations

import logging
import random
import re
import select
import socket
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from ..addresses.printable import shown
from ..streams.cancellation import Cancellation
from .instance import ProbeStatus

__all__ = ["DEFAULT_INTERVAL", "ProbeTarget", "Prober"]

logger = logging.getLogger("relay.operations")

DEFAULT_INTERVAL = 30.0  # seconds
_SPREAD = 0.1  # of the interval by which probes of many tunnels are spread
_FIRST = 1.0  # seconds within which the first probe of a tunnel begins
_LONGEST_LINE = 4096  # bytes of the first line of an HTTP answer
_STATUS = re.compile(rb"HTTP/\d(?:\.\d)? (\d{3})(?:[ \r\n]|$)")
_END = 2.0  # seconds to wait for probes that were given up


@dataclass(frozen=True, slots=True)
class ProbeTarget:
    """A tunnel to probe.

    :param name: its name.
    :param probe: ``connect``, ``banner`` or ``http://PATH``.
    :param interval: seconds between two probes.
    :param timeout: seconds for one probe at most.
    :param dial: its factory, called with the keywords ``deadline`` and ``cancel``.
    :param host: the target, for the header of HTTP.
    """

    name: str
    probe: str
    interval: float
    timeout: float
    dial: Callable[..., Any]
    host: str = "localhost"

    @property
    def kind(self) -> str:
        """``connect``, ``banner`` or ``http``."""
        return self.probe.partition(":")[0]


class _Record:
    """The probes of one tunnel."""

    def __init__(self, target: ProbeTarget, due: float, status: ProbeStatus | None = None) -> None:
        self.target = target
        self.due = due  # monotonic seconds
        self.is_running = False
        self.status = status or ProbeStatus(target.kind, target.interval)


class Prober:
    """The probes of a program. Every method may be called from any thread.

    :param targets: returns the tunnels that are open and have a probe.
    """

    def __init__(self, targets: Callable[[], Iterable[ProbeTarget]]) -> None:
        self._targets = targets
        self._changed = threading.Condition()
        self._records: dict[str, _Record] = {}
        self._threads: set[threading.Thread] = set()
        self._cancel: Cancellation | None = None
        self._is_closed = False

    def wake(self) -> None:
        """Look at the tunnels again; called when one has opened."""
        with self._changed:
            if self._is_closed:
                return
            if self._cancel is None:
                if not any(True for _ in self._targets()):
                    return
                self._cancel = Cancellation()
                self._start(self._run, "relay-probes")
            self._changed.notify_all()

    def status(self, name: str) -> ProbeStatus | None:
        """Return the last probe of a tunnel; ``None`` if it has none."""
        record = self._records.get(name)
        return record.status if record is not None else None

    def close(self) -> None:
        """Give up the probes under way, and end. Idempotent."""
        with self._changed:
            self._is_closed = True
            threads, cancel = tuple(self._threads), self._cancel
            self._changed.notify_all()
        if cancel is not None:
            cancel.set()
            deadline = time.monotonic() + _END
            for thread in threads:
                thread.join(max(0.0, deadline - time.monotonic()))
            if not any(thread.is_alive() for thread in threads):
                cancel.close()

    def _start(self, work: Callable[[], None], name: str) -> None:
        """Start a thread; with the lock held.

        :raises RuntimeError: if the system has no thread left.
        """

        def run() -> None:
            try:
                work()
            finally:
                with self._changed:
                    self._threads.discard(threading.current_thread())

        thread = threading.Thread(target=run, name=name, daemon=True)
        thread.start()
        self._threads.add(thread)

    def _run(self) -> None:
        with self._changed:
            while not self._is_closed:
                now = time.monotonic()
                self._update(now)
                for record in tuple(self._records.values()):  # _begin() may end one, and look at the tunnels again
                    if not record.is_running and record.due <= now:
                        self._begin(record)
                waiting = [record.due for record in self._records.values() if not record.is_running]
                self._changed.wait(max(0.0, min(waiting) - time.monotonic()) if waiting else None)

    def _update(self, now: float) -> None:
        """Take the tunnels of now; one whose probe has changed begins anew.

        One that has another route is probed at once. Its last result counts until then.
        """
        found = {target.name: target for target in self._targets()}
        for name in self._records.keys() - found.keys():
            del self._records[name]
        for name, target in found.items():
            record = self._records.get(name)
            if record is None or (record.target.probe, record.target.interval) != (target.probe, target.interval):
                first = random.uniform(0, min(_FIRST, target.interval * _SPREAD))  # noqa: S311  (no secret)
                self._records[name] = _Record(target, now + first)
            elif record.target.dial is not target.dial:
                self._records[name] = _Record(target, now, record.status)
            else:
                record.target = target

    def _begin(self, record: _Record) -> None:
        record.is_running = True
        interval = record.target.interval
        record.due = time.monotonic() + interval * random.uniform(1 - _SPREAD, 1 + _SPREAD)  # noqa: S311
        try:
            self._start(lambda: self._probe(record), "relay-probe")
        except RuntimeError as error:  # the system has no thread left
            self._end(record, record.target, time.monotonic(), str(error))

    def _probe(self, record: _Record) -> None:
        target, began = record.target, time.monotonic()
        assert self._cancel is not None
        try:
            problem = _result(target, began + target.timeout, self._cancel)
        except (OSError, ValueError, TypeError) as error:
            problem = str(error)
        except Exception as error:
            logger.exception("%s: the probe failed", target.name)
            problem = type(error).__name__
        with self._changed:
            self._end(record, target, began, problem)

    def _end(self, record: _Record, target: ProbeTarget, began: float, problem: str) -> None:
        """Note the outcome, unless the tunnel has gone or has another route; with the lock held."""
        record.is_running = False
        self._changed.notify_all()
        if self._is_closed:
            return
        self._update(time.monotonic())
        if self._records.get(target.name) is not record:
            return
        before = record.status
        seconds = time.monotonic() - began
        record.status = ProbeStatus(target.kind, target.interval, time.time(), seconds, shown(problem))
        if problem and not before.problem:
            logger.warning("%s: probe: %s", target.name, shown(problem))
        elif before.problem and not problem:
            logger.warning("%s: the probe succeeds again", target.name)


def _result(target: ProbeTarget, deadline: float, cancel: Cancellation) -> str:
    """Open a stream, do what the probe asks for, and close it.

    :returns: the problem; empty if there is none.
    :raises OSError: if the stream cannot be opened.
    """
    stream = target.dial(deadline=deadline, cancel=cancel)
    try:
        if target.kind == "connect":
            return ""
        end: socket.socket = stream.socket
        end.setblocking(False)
        if target.kind == "banner":
            return "" if _receive(end, deadline, cancel) else "the target closed the connection without a byte"
        path = "/" + target.probe.removeprefix("http://").lstrip("/")
        request = f"GET {path} HTTP/1.1\r\nHost: {target.host}\r\nUser-Agent: relay-probe\r\nConnection: close\r\n\r\n"
        end.send(request.encode("latin-1", "replace"))
        return _http_problem(end, deadline, cancel)
    finally:
        stream.close()


def _http_problem(end: socket.socket, deadline: float, cancel: Cancellation) -> str:
    line = b""
    while b"\n" not in line and len(line) < _LONGEST_LINE:
        piece = _receive(end, deadline, cancel)
        if not piece:
            break
        line += piece
    found = _STATUS.match(line)
    if found is None:
        return "the answer is not HTTP"
    return f"status {int(found[1])}" if int(found[1]) >= 500 else ""


def _receive(end: socket.socket, deadline: float, cancel: Cancellation) -> bytes:
    """Wait for bytes.

    :returns: some; none at the end of the stream.
    :raises OSError: if the stream is reset, the deadline is over, or the program ends.
    """
    poller = select.poll()  # select() has no descriptors beyond 1023
    poller.register(end, select.POLLIN)
    poller.register(cancel, select.POLLIN)
    while True:
        left = deadline - time.monotonic()
        if cancel.is_set() or left <= 0 or not poller.poll(left * 1000):
            raise TimeoutError("no answer in time")
        try:
            return end.recv(_LONGEST_LINE)
        except BlockingIOError:
            continue
