"""Drains: tunnels that close while their open connections may finish. Their number needs no threads."""

from __future__ import annotations

import functools
import heapq
import itertools
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..engine.changes import start_close
from ..engine.tunnel import Tunnel

if TYPE_CHECKING:  # for tunnels in workers only
    from ..spawning.pool_tunnel import PoolTunnel

_PATIENCE = 5.0  # seconds for the workers after the last connection


class Drains:
    """Closes tunnels without waiting for their ends. :meth:`begin` may be called from any thread.

    A tunnel of this process calls back from its own thread. A stuck worker takes no message for a while, so one thread
    asks the workers for all their tunnels, one after the other; it ends when these have closed. A tunnel whose workers
    do not close it in time is given up.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()  # for all that follow
        self._begun: deque[tuple[PoolTunnel, float, float]] = deque()
        self._closing: dict[PoolTunnel, Callable[[], object]] = {}
        self._deadlines: list[tuple[float, int, PoolTunnel]] = []  # a heap; the numbers keep the order
        self._numbers = itertools.count()
        self._is_running = False

    def begin(
        self, tunnel: Tunnel | PoolTunnel, seconds: float, drained: Callable[[], object], spread: float = 0.0
    ) -> None:
        """Close the listener of a tunnel; its open connections may finish. Does not wait.

        :param tunnel: the tunnel. A second call with a shorter time shortens it.
        :param seconds: the most that the connections may take; those that are left are reset. Infinite for no limit.
        :param drained: called at the end, perhaps on another thread; must not block.
        :param spread: seconds before that end over which the connections are reset one after the other.
        """
        if isinstance(tunnel, Tunnel):
            start_close(tunnel, seconds, drained, spread)
            return
        with self._changed:
            is_new = tunnel not in self._closing
            self._closing[tunnel] = drained
            # With the lock held: a thread that has just found nothing to do says so under the lock, before it ends.
            has_thread = self._has_thread()
            if has_thread:
                self._begun.append((tunnel, seconds, spread))
                self._changed.notify_all()
        if is_new:
            tunnel.on_over(lambda: self._end(tunnel))
        # Without a thread the caller waits for the workers itself, two seconds at most, instead of leaving clients to a
        # tunnel that was to close.
        if not has_thread:
            self._start_close(tunnel, seconds, spread)

    def _has_thread(self) -> bool:
        """Start the thread unless it runs, with the lock held; return false if the system has none left."""
        if not self._is_running:
            try:
                threading.Thread(target=self._run, name="relay-drain", daemon=True).start()
            except RuntimeError:
                return False
            self._is_running = True
        return True

    # -- the thread -------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while (work := self._next()) is not None:
            work()

    def _next(self) -> Callable[[], object] | None:
        """Return the next work, once its time has come; ``None`` if no tunnel is left."""
        with self._changed:
            while self._closing:
                if self._begun:
                    return functools.partial(self._start_close, *self._begun.popleft())
                # Tunnels that have closed by themselves stay in the heap until they come to its top: to find one in it
                # costs more.
                while self._deadlines and self._deadlines[0][-1] not in self._closing:
                    heapq.heappop(self._deadlines)
                left = self._deadlines[0][0] - time.monotonic() if self._deadlines else None
                if left is not None and left <= 0:
                    return heapq.heappop(self._deadlines)[-1].give_up_closing
                self._changed.wait(left)
            self._begun.clear()
            self._is_running = False
            return None

    def _start_close(self, tunnel: PoolTunnel, seconds: float, spread: float) -> None:
        tunnel.start_close(seconds if seconds < math.inf else None, spread)
        if tunnel.state == "closed":
            self._end(tunnel)  # perhaps it was before the call of on_over()
        elif seconds < math.inf:
            with self._changed:
                due = time.monotonic() + seconds + _PATIENCE
                heapq.heappush(self._deadlines, (due, next(self._numbers), tunnel))

    def _end(self, tunnel: PoolTunnel) -> None:
        with self._changed:
            drained = self._closing.pop(tunnel, None)
            if not self._closing:
                self._changed.notify_all()
        # The pop above was under the lock, so that it is called once, although both the tunnel and this thread come
        # here.
        if drained is not None:
            drained()
