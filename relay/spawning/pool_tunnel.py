"""A tunnel that the workers of a pool relay, as the program sees it: the members of a tunnel, with totals."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Self

from ..engine.records import ConnectionRecord, Metrics, Stats
from ..eventloop.sockets import format_address
from ..streams.checks import check_time
from .pool_parts import TunnelParts
from .wire import to_metrics, to_record
from .worker_slot import WorkerStatus

logger = logging.getLogger("relay")

_END = 5.0  # seconds for the workers to close it


class _Round:
    """A question to several loops, until all of them have turned.

    :param left: the number of loops.
    :param reply: called at the end.
    """

    __slots__ = ("_left", "_reply", "_lock")

    def __init__(self, left: int, reply: Callable[[], object]) -> None:
        self._left = left
        self._reply = reply
        self._lock = threading.Lock()

    def on_answer(self, question: Future[Any]) -> None:
        """Count one that has turned, or that is out of it: its worker is dead or stuck, and will be replaced."""
        with self._lock:
            # Answers come in the threads of several processes.
            self._left -= 1
            is_over = not self._left
        if is_over:
            self._reply()


class PoolTunnel(TunnelParts):
    """A tunnel of a :class:`~relay.spawning.pool.WorkerPool`, with the members of :class:`~relay.Tunnel`.

    Every member may be called from any thread. The figures are sums over the workers, also over those that have died.
    A worker that has died is not asked; its successor goes on. One that does not answer within two seconds counts with
    its last figures, and :attr:`problem` names it. After ten more seconds it is killed, and has a successor, too.
    In a forked child of the program the tunnel is closed, and stays with the program.

    The parameters and the errors are those of :class:`~relay.spawning.pool_parts.TunnelParts`.
    """

    @property
    def address(self) -> Any:
        """The address of the listener, as ``getsockname()`` returns it."""
        return self._address

    @property
    def pids(self) -> list[int]:
        """The process ids of the workers that relay it now."""
        return [process.pid for slot in self._slots if (process := slot.process) is not None]

    def workers(self) -> list[WorkerStatus]:
        """Return what is known of each worker that relays it. Asks no worker."""
        return [slot.status() for slot in self._slots]

    def loads(self) -> list[int]:
        """Return the numbers of open connections of the workers; none after the end. Asks no worker."""
        with self._changed:  # the thread that watches a worker may end it
            return self._shared.loads()

    @property
    def state(self) -> str:
        """``open``, ``paused``, ``closing`` or ``closed``."""
        return self._phase

    @property
    def problem(self) -> str:
        """The workers that do not answer, and what happens next; empty if there are none. Asks no worker."""
        return "; ".join(filter(None, (slot.problem for slot in self._slots)))

    def connections(self) -> list[ConnectionRecord]:
        """Return the records of the open connections, oldest first, without those of a worker that does not answer."""
        answers = [asked.question.result() for asked in self._figures("connections")]
        records = [to_record(fields) for answer in answers for fields in answer or ()]
        return sorted(records, key=lambda record: record.started)

    def recent(self) -> list[ConnectionRecord]:
        """Return the records of the last 100 connections that ended, oldest first, each with its reason."""
        answers = self._figures("recent")
        with self._changed:
            for asked in answers:
                if self._is_current(asked) and (answer := asked.question.result()) is not None:
                    records = [to_record(fields) for fields in answer]
                    self._totals.answered_recent(asked.worker, records, asked.question.number)
            return self._totals.recent()

    def stats(self) -> Stats:
        """Return the figures since the tunnel was opened."""
        return self.metrics().stats()

    def metrics(self) -> Metrics:
        """Return all counters since the tunnel was opened, for monitoring."""
        answers = self._figures("metrics")
        with self._changed:
            for asked in answers:
                if self._is_current(asked) and (answer := asked.question.result()) is not None:
                    self._totals.answered(asked.worker, to_metrics(answer), asked.question.number)
            return self._totals.metrics(self._shared.accepted())

    def kill(self, connection_id: str) -> bool:
        """Reset one open connection; see :meth:`relay.Tunnel.kill`."""
        return any(self._order("kill", connection_id))

    def pause(self, close: bool = False) -> None:
        """Accept no client until :meth:`resume`; clients wait in the listen backlog. In force when it returns.

        A worker that does not answer accepts none either; it pauses before it goes on.

        :param close: whether to reset the open connections.
        """
        # Before the workers are asked: one that starts now reads it, and opens its part paused.
        self._set_phase("open", "paused")
        self._order("pause", close)

    def resume(self) -> None:
        """Accept clients again. In force when it returns."""
        self._set_phase("paused", "open")
        self._order("resume")

    def update(self, **limits: Any) -> None:
        """Change the limits; see :func:`relay.engine.changes.update`.

        :param limits: each of them.
        """
        with self._changed:
            # For workers that start later; those that are opening get them when they have opened.
            self._options = {**self._options, **limits}
            self._limits = limits
        self._order("update", limits)

    def ping(self, reply: Callable[[], object]) -> bool:
        """Call ``reply`` as soon as the loops of all workers that answer have turned, for a watchdog.

        A worker that does not answer needs no watchdog: it is replaced.

        :param reply: called in another thread; it must not block.
        :returns: whether it will be called.
        """
        asked = self._ask_answering("turn")
        if not asked:
            return False
        answers = _Round(len(asked), reply)
        for each in asked:
            each.question.add_done_callback(answers.on_answer)
            self._slots[each.worker].expect_answers()
        return True

    def close(self, drain: float = 0.0) -> None:
        """Stop listening at once, end every connection, and wait until all is done. Idempotent, from any thread.

        Called from a log handler it marks the tunnel as closing and returns.

        :param drain: seconds that connections may take to finish first; those that are left are reset. A second call
            with a shorter time shortens it.
        :raises TypeError: if ``drain`` is not a number.
        :raises ValueError: if it is negative.
        """
        seconds = check_time("drain", drain, zero=True)
        self.start_close(seconds)
        # The threads that watch a worker report its end; one that waited for that here would wait for itself.
        if any(slot.is_own_thread() for slot in self._slots):
            return
        if self._own_pool is not None:
            self._is_closed_within(seconds)
            self._own_pool.close()
        elif not self._is_closed_within(None if seconds is None else seconds + _END):
            self.give_up_closing()

    def _is_closed_within(self, seconds: float | None) -> bool:
        seconds = None if seconds is None else min(seconds, threading.TIMEOUT_MAX)
        with self._changed:
            return self._changed.wait_for(lambda: self._phase == "closed", seconds)

    def start_close(self, drain: float | None, spread: float = 0.0) -> None:
        """Do the same, but do not wait, except at most two seconds for workers to pause if connections may finish.

        A worker that has paused passes no client to another one, so that each takes all of them before it closes.

        :param drain: seconds; ``None`` for as long as the connections take.
        :param spread: seconds before the end of ``drain`` over which each worker resets its connections one after the
            other.
        """
        with self._changed:
            if self._phase == "closed":
                return
            self._phase = "closing"
            # The program's copy first: the port is free for another program as soon as the workers have closed theirs.
            self._shared.close_listener()
        if drain != 0 and len(self._slots) > 1:
            self._order("pause", False)
        for index, slot in enumerate(self._slots):
            self._ask_one(index, "close", drain, spread)
            slot.expect_answers()
        self._look_closed()

    def give_up_closing(self) -> None:
        """End it, whatever the workers do: one that is stuck is killed. The log says so if another one has it open."""
        killed = [slot.kill_stuck() for slot in self._slots]
        if not self._is_closed_within(_END if any(killed) else 0.0):
            logger.warning("%s: its workers have not closed it within %g s", self.name, _END)
        self.finish()

    def join(self, timeout: float | None = None) -> None:
        """Wait until the tunnel has ended.

        :param timeout: seconds to wait at most; ``None`` for no limit.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._phase == "closed", timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        kind, count = type(self).__name__, len(self._slots)
        workers = f"{count} worker{'s' if count > 1 else ''}"
        return f"<{kind} {self.name!r} at {format_address(self._address)}, {workers}, {self._phase}>"
