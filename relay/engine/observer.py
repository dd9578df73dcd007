"""Calls a user's callable with the record of each ended connection, on a thread of its own."""

from __future__ import annotations

import inspect
import logging
import queue
import threading
from collections.abc import Callable
from typing import Any

from .records import ConnectionRecord

OnEnd = Callable[[ConnectionRecord], object]

logger = logging.getLogger("relay")

_LIMIT = 10_000  # records that wait for a slow callable, about 5 MB
_PATIENCE = 5.0  # seconds that the end of a tunnel waits for the callable


def check_callback(callback: Any, name: str = "on_end") -> None:
    """Check that an argument can be called from a thread.

    :param callback: the argument; ``None`` is allowed.
    :param name: of the argument, for the error.
    :raises TypeError: if it is not callable, or is a coroutine function.
    """
    if callback is None:
        return
    if not callable(callback):
        raise TypeError(f"{name}: expected a callable, got {type(callback).__name__}")
    for function in (callback, type(callback).__call__):
        if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
            raise TypeError(f"{name}: a coroutine function cannot be called from a thread; give a plain callable")


class Observer:
    """Passes records from the relay thread to a callable that may block.

    The thread starts with the first record. At most 10,000 records wait; then records are dropped until half of these
    are done, and the log says how many. All methods but :meth:`is_on_its_thread` belong to the relay thread.

    :param callback: called with each record, in the order in which the connections ended. What it raises is logged.
    :param name: of the tunnel, for the log and the thread.
    """

    def __init__(self, callback: OnEnd, name: str) -> None:
        self._callback = callback
        self._name = name
        self._records: queue.SimpleQueue[ConnectionRecord | None] = queue.SimpleQueue()
        self._dropped = 0
        self._thread: threading.Thread | None = None

    def put(self, record: ConnectionRecord) -> None:
        """Call the callable with a record, later. Never blocks."""
        # Once full, it drops until it is half empty: two lines in the log for many records, not for each.
        if self._records.qsize() >= (_LIMIT // 2 if self._dropped else _LIMIT):
            if not self._dropped:
                logger.warning("%s: on_end: too slow, %d records are waiting; dropping records", self._name, _LIMIT)
            self._dropped += 1
            return
        self._report_dropped()
        self._records.put(record)
        self._start()

    def close(self) -> None:
        """End the thread after the records that wait, and wait for it; not for ever if the callable is slow."""
        self._report_dropped()
        if self._thread is None and not self._records.empty():
            self._start()
        if self._thread is None:
            if left := self._records.qsize():
                logger.error("%s: on_end: no thread available, %d records were dropped", self._name, left)
            return
        # Behind all records that wait: the thread takes them in order, and ends with this.
        self._records.put(None)
        self._thread.join(_PATIENCE)
        if self._thread.is_alive():
            left = self._records.qsize()
            text = "%s: on_end: still running after %g s, %d records are waiting; not waiting for it any longer"
            logger.warning(text, self._name, _PATIENCE, max(0, left - 1))

    def is_on_its_thread(self) -> bool:
        """Return whether the current thread is the one that calls the callable."""
        return threading.current_thread() is self._thread

    def _start(self) -> None:
        if self._thread is not None:
            return
        thread = threading.Thread(target=self._run, name=f"{self._name} on_end", daemon=True)
        # Before the start: the callable may ask at once whether it is on this thread.
        self._thread = thread
        try:
            thread.start()
        except RuntimeError:  # the system has no thread left; the next record tries again
            self._thread = None

    def _report_dropped(self) -> None:
        if self._dropped:
            logger.warning("%s: on_end: %d records were dropped", self._name, self._dropped)
            self._dropped = 0

    def _run(self) -> None:
        while (record := self._records.get()) is not None:
            try:
                self._callback(record)
            except BaseException:  # SystemExit included: it must not end the thread
                logger.exception("%s: on_end failed", self._name)
