"""The objects that all flows of one relay thread share."""

from __future__ import annotations

import logging
import time
from typing import Any

from ..eventloop.background import BUFFER, Client
from ..eventloop.loop import Loop
from ..eventloop.pipes import PipePool
from ..eventloop.workers import Workers
from ..streams.lookups import Lookups
from ..streams.rate_limited_log import RateLog
from .bulk_pairs import BulkPairs

logger = logging.getLogger("relay")

_MOST_PROBLEMS = 60  # lines of a minute about connections that have failed for one reason


class Workspace:
    """The loop, the pipes and the buffer that all flows of one thread share, and the log of what their clients cause.

    :param loop: the thread's loop.
    :param pipes: its pipes, or ``None`` where there is no ``splice``.
    :param name: of the threads beside it.
    """

    __slots__ = ("bulk_pairs", "loop", "lookups", "pipes", "throttled", "workers", "_buffer", "_clients", "_problems")

    def __init__(self, loop: Loop, pipes: PipePool | None, name: str = "") -> None:
        self.loop = loop
        self.pipes = pipes
        self.workers = Workers(loop, f"{name} connector")
        """The threads for what may block; the thread's owner closes them."""
        self.lookups = Lookups(loop, self.workers.submit)
        """The look-ups of names, for all clients."""
        self.bulk_pairs = BulkPairs(loop)
        """The connections that are bulk transfers now."""
        self.throttled = 0.0
        """Seconds for which flows waited for bandwidth."""
        self._buffer: memoryview | None = None  # most tunnels need none
        self._clients: set[Client] = set()
        self._problems: dict[str, RateLog] = {}

    @property
    def buffer(self) -> memoryview:
        """The memory for the handler being run; see :class:`relay.eventloop.background.Home`."""
        if self._buffer is None:
            self._buffer = memoryview(bytearray(BUFFER))
        return self._buffer

    def log_problem(self, reason: str, text: str, *values: Any, error: BaseException | None = None) -> None:
        """Log why a connection has failed. A client can fail at will, so the lines of a minute are limited.

        :param reason: of the record; each reason has lines of its own.
        :param text: a format for ``values``, as loggers take it.
        :param error: whose traceback follows; ``None`` for none.
        """
        problems = self._problems.get(reason)
        if problems is None:
            level = logging.ERROR if reason == "factory_error" else logging.WARNING
            problems = self._problems[reason] = RateLog(logger, level, _MOST_PROBLEMS, self.loop.timers)
        problems.log(time.monotonic(), text, *values, error=error)

    def end(self) -> None:
        """Log what was left out: the thread ends, and no minute does."""
        for problems in self._problems.values():
            problems.on_time(time.monotonic())

    def leave(self) -> None:
        """Let the clients that can go on elsewhere do so: the thread ends, and its loop is about to be closed."""
        for client in tuple(self._clients):
            if (leave := getattr(client, "leave", None)) is not None:
                leave()

    def hold(self, client: Client) -> None:
        """Take a connect or an upgrade that runs in this thread."""
        self._clients.add(client)

    def release(self, client: Client) -> None:
        """Forget it. Idempotent."""
        self._clients.discard(client)

    def abandon(self) -> None:
        """In a forked child: only close the descriptors of the connects and upgrades under way."""
        for client in self._clients:
            client.abandon()
        self._clients.clear()
