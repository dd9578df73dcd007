"""The tarpit: a denied client waits in it for nothing, so that it tries again later."""

from __future__ import annotations

import socket
from collections.abc import Callable

from ..eventloop.loop import Loop, Timer
from ..eventloop.poller import END, ERR, HUP
from ..streams.proxy_handshake import watch

__all__ = ["TarpitStay"]


class TarpitStay:
    """The stay of one client. Nothing is read from it. Belongs to the loop's thread.

    :param client: a non-blocking socket, which stays with the caller.
    :param loop: watches it from now on.
    :param over: called once with the time, when the socket is to be closed.
    """

    __slots__ = ("_client", "_loop", "_over", "_timer")

    def __init__(self, client: socket.SocketType, loop: Loop, over: Callable[[float], object]) -> None:
        self._client = client
        self._loop = loop
        self._over = over
        self._timer = Timer(loop.timers, self.finish)

    def begin(self, seconds: float, now: float) -> None:
        """Wait for the end of the time, or of the client."""
        self._timer.start(now + seconds, now)
        watch(self._loop, self._client.fileno(), END, self._on_event)

    def _on_event(self, event: int, now: float) -> None:
        if event & (END | ERR | HUP):  # a client that has only half-closed has no need of an answer either
            self.finish(now)

    def finish(self, now: float) -> None:
        """Call ``over`` now."""
        self._timer.stop()
        self._over(now)

    def abandon(self) -> None:
        """Give up: there is nothing to release."""
        self._timer.stop()

    def too_late(self) -> None:
        """Note that the time is over."""

    def after_fork(self) -> None:
        """In a forked child: there is nothing of its own to close."""

    def crashed(self, now: float) -> None:
        """End it because of a bug in a handler."""
        self.finish(now)
