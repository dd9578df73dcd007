"""The tarpit: a denied client waits in it for nothing, so that it tries again later."""

from __future__ import annotations

import os
import resource
import socket
import threading
from collections.abc import Callable

from ..eventloop.loop import Loop
from ..eventloop.poller import END, ERR, HUP
from ..streams.proxy_handshake import FinalStay, watch

_MOST = 1024  # clients in all tarpits of the process; fewer where that were more than an eighth of the descriptors


class _Places:
    """The places in the tarpits of all tunnels of the process, which share its descriptors. Safe from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # for the next one
        self._taken = 0

    def take(self) -> bool:
        """Take a place; return whether there was one."""
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = _MOST if soft < 0 else max(1, min(_MOST, soft // 8))
        with self._lock:
            if self._taken >= most:
                return False
            self._taken += 1
            return True

    def give_back(self) -> None:
        """Give a place back."""
        with self._lock:
            self._taken -= 1

    def after_fork(self) -> None:
        """In a forked child: it has none of the clients."""
        self._lock = threading.Lock()
        self._taken = 0


_places = _Places()
os.register_at_fork(after_in_child=_places.after_fork)
take_place = _places.take
"""Take a place for the stay of a client; false if there are too many in the process."""


class TarpitStay(FinalStay):
    """The stay of one client. Nothing is read from it.

    It has a place of :func:`take_place`, which it gives back at its end.

    :param client: a non-blocking socket, which stays with the caller.
    :param loop: watches it from now on.
    :param over: called once with the time, when the socket is to be closed.
    """

    __slots__ = ("_has_place",)

    def __init__(self, client: socket.SocketType, loop: Loop, over: Callable[[float], object]) -> None:
        super().__init__(client, loop, over)
        self._has_place = True

    def begin(self, seconds: float, now: float) -> None:
        """Wait for the end of the time, or of the client."""
        self._timer.start(now + seconds, now)
        watch(self._loop, self._client.fileno(), END, self._on_event)

    def _on_event(self, event: int, now: float) -> None:
        if event & (END | ERR | HUP):  # a client that has only half-closed has no need of an answer either
            self.finish(now)

    def abandon(self) -> None:
        """Give up, and release the place. Idempotent."""
        super().abandon()
        if self._has_place:
            self._has_place = False
            _places.give_back()
