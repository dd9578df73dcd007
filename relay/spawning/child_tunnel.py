"""A tunnel in a child process, as the program sees it."""

from __future__ import annotations

import contextlib
import logging
import threading
from types import TracebackType
from typing import Any

from ..engine.records import ConnectionRecord, Metrics, Stats
from ..errors import RelayError
from ..streams.checks import check_time
from . import parent
from .parent import ChildProcess
from .wire import Message, to_address, to_metrics, to_record, to_stats

__all__ = ["ChildTunnel"]

logger = logging.getLogger("relay")


class ChildTunnel(ChildProcess):
    """A tunnel in a child process, made by :func:`spawn`: the members of :class:`~relay.Tunnel`, and :attr:`pid`.

    Every member may be called from any thread. Those that ask the child raise :class:`RelayError` if it has died or
    does not answer. In a forked child of the program it is closed, and the tunnel stays with the program.

    The parameters and the errors are those of :class:`ChildProcess`.
    """

    def _begun(self, answer: Message) -> None:
        self._address = to_address(answer["address"])
        self._last: Message = {}  # answers to what may still be asked when the tunnel is closed

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
        self._thread.join(timeout)

    def close(self, drain: float = 0.0) -> None:
        """Stop listening at once, end every connection, and wait for the child to end. Idempotent, from any thread.

        Called from a log handler it marks the tunnel as closing and returns. A child that does not end is killed.

        :param drain: seconds that connections may take to finish first; those that are left are reset. A second call
            with a shorter time shortens it.
        :raises TypeError: if ``drain`` is not a number.
        :raises ValueError: if it is negative.
        """
        seconds = check_time("drain", drain, zero=True)
        self._closing = True
        if self._receive is not None:
            self._receive.close()
        if seconds != 0:
            with contextlib.suppress(RelayError):  # the child has ended: there is nothing left to wait for
                self._ask("drain", seconds)
        if threading.current_thread() is not self._thread:
            self._thread.join(None if seconds is None else min(seconds, threading.TIMEOUT_MAX))
            self._end()
        elif seconds == 0:
            self._close_control()

    def __enter__(self) -> ChildTunnel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closing" if self._closing else "open"
        if not self._thread.is_alive():
            state = "lost" if self._lost else "closed"
        return f"<{type(self).__name__} {self.name!r} at {self._address}, process {self.pid}, {state}>"

    def _read_final_state(self, call: str) -> Any:
        if threading.current_thread() is not self._thread:
            self._thread.join(parent._END)
        if self._lost:
            raise RelayError(f"{self.name}: {self._lost}")
        return self._last.get(call)

    def _on_message(self, message: Message) -> None:
        self._last = message["last"]
        self._closing = self._closing or message["expired"]

    def _on_over(self, fate: str) -> None:
        if not self._closing or not self._last:
            self._lost = f"the child process {self.pid} {fate}, and its connections are lost; spawn it again"
            logger.error("%s: %s", self.name, self._lost)

    def _forget(self) -> None:
        super()._forget()
        self._last = {}
