"""A tunnel in a child process, as the program sees it."""

from __future__ import annotations

import concurrent.futures
import contextlib
import logging
import socket
import threading
from types import TracebackType
from typing import Any

from ..engine.records import ConnectionRecord, Metrics, Stats
from ..errors import RelayError
from ..streams.checks import check_time
from .parent import ChildProcess
from .questions import NoAnswerError
from .wire import Message, to_address, to_metrics, to_record, to_stats

logger = logging.getLogger("relay")

_ANSWER = 10.0  # seconds for an answer of the child
_FAREWELL = 5.0  # seconds for the last message of a child that has ended


class ChildTunnel:
    """A tunnel in a child process, made by :func:`spawn`: the members of :class:`~relay.Tunnel`, and :attr:`pid`.

    Every member may be called from any thread. Those that ask the child raise :class:`RelayError` if it has died or
    does not answer. In a forked child of the program it is closed, and the tunnel stays with the program.

    It is no pool of one worker: no other process replaces this one. So its death is an error, and a child that does not
    answer for a while is not killed. The child itself listens, and removes the file of a Unix socket if the program is
    killed. It ends on a signal.

    :param request: see :func:`relay.spawning.child.main`.
    :param receive: and the errors: as for :class:`ChildProcess`.
    """

    def __init__(self, request: Message, receive: socket.socket | None = None) -> None:
        self._lost = ""  # why there are no answers
        self._last: Message = {}  # answers to what may still be asked when the tunnel is closed
        self._child = ChildProcess(request, receive)
        self.name = self._child.name
        self._address = to_address(self._child.answer["address"])
        self._child.watch(self._on_message, on_over=self._on_over)

    @property
    def pid(self) -> int:
        """The process id of the child."""
        return self._child.pid

    @property
    def address(self) -> Any:
        """The address of the listener, as ``getsockname()`` returns it."""
        return self._address

    def pause(self, close: bool = False) -> None:
        """Accept no more connections; in force when the call returns.

        :param close: whether live connections are ended, too, by a reset.
        :raises RelayError: if the child has died or does not answer.
        """
        self._ask("pause", close)

    def resume(self) -> None:
        """Accept connections again after :meth:`pause`; in force when the call returns.

        :raises RelayError: if the child has died or does not answer.
        """
        self._ask("resume")

    def connections(self) -> list[ConnectionRecord]:
        """The live connections, one record each.

        :raises RelayError: if the child has died or does not answer.
        """
        return [to_record(fields) for fields in self._ask("connections")]

    def recent(self) -> list[ConnectionRecord]:
        """The last 100 connections that ended, oldest first, each with its reason.

        :raises RelayError: if the child has died or does not answer.
        """
        return [to_record(fields) for fields in self._ask("recent")]

    def stats(self) -> Stats:
        """The counters of the tunnel.

        :raises RelayError: if the child has died or does not answer.
        """
        return to_stats(self._ask("stats"))

    def metrics(self) -> Metrics:
        """All counters of the tunnel, for monitoring.

        :raises RelayError: if the child has died or does not answer.
        """
        return to_metrics(self._ask("metrics"))

    def kill(self, connection_id: str) -> bool:
        """Reset one open connection; see :meth:`relay.Tunnel.kill`.

        :raises RelayError: if the child has died or does not answer.
        """
        return bool(self._ask("kill", connection_id))

    def join(self, timeout: float | None = None) -> None:
        """Wait until the child has ended, for whatever reason.

        :param timeout: seconds to wait; ``None`` for ever.
        """
        self._child.join(timeout)

    def close(self, drain: float = 0.0) -> None:
        """Stop listening at once, end every connection, and wait for the child to end. Idempotent, from any thread.

        Called from a log handler it marks the tunnel as closing and returns. A child that does not end is killed.

        :param drain: seconds that connections may take to finish first; those that are left are reset. A second call
            with a shorter time shortens it.
        :raises TypeError: if ``drain`` is not a number.
        :raises ValueError: if it is negative.
        """
        seconds = check_time("drain", drain, zero=True)
        self._child.is_closing = True
        # The program's copy: as long as it is open, the kernel completes connections that no process accepts.
        self._child.close_listener()
        if seconds != 0:
            with contextlib.suppress(RelayError):  # the child has ended: there is nothing left to wait for
                self._ask("drain", seconds)
        if not self._child.is_own_thread():
            self._child.join(None if seconds is None else min(seconds, threading.TIMEOUT_MAX))
            self._child.end()
        # In a log handler, which runs in the thread that watches the child: it must not wait for itself.
        elif seconds == 0:
            self._child.start_close()

    def __enter__(self) -> ChildTunnel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closing" if self._child.is_closing else "open"
        if not self._child.is_watched:
            state = "lost" if self._lost or self._child.is_foreign else "closed"
        return f"<{type(self).__name__} {self.name!r} at {self._address}, process {self.pid}, {state}>"

    def _ask(self, call: str, *arguments: object) -> Any:
        """Call a function of the child.

        :param call: its name.
        :param arguments: its arguments.
        :raises RelayError: if the child does not answer in time, or has ended.
        :raises Exception: what the function raised.
        """
        question = self._child.ask(call, *arguments)
        # Not result(timeout): a TimeoutError may also be what the function of the child has raised.
        if concurrent.futures.wait([question], _ANSWER).done:
            try:
                return question.result()
            except NoAnswerError:
                if self._child.is_foreign:
                    raise RelayError(f"{self.name}: it stays with the process that spawned it") from None
                # What it said last comes over another socket, which its other thread may still read.
                self._child.join(_FAREWELL)
            if self._lost:
                raise RelayError(f"{self.name}: {self._lost}")
            if self._last:
                return self._last.get(call)
        raise RelayError(f"{self.name}: the child process {self.pid} did not answer within {_ANSWER:.0f} s")

    def _on_message(self, message: Message) -> None:
        self._last = message["last"]
        if message["expired"]:
            self._child.is_closing = True

    def _on_over(self) -> None:
        # Without the last figures the child was killed, even if it was asked to end.
        if not self._child.is_closing or not self._last:
            self._lost = (
                f"the child process {self.pid} {self._child.fate}, and its connections are lost; spawn it again"
            )
            logger.error("%s: %s", self.name, self._lost)
