"""Listener for resumable streams at an I2P destination."""

from __future__ import annotations

import functools
from typing import Any, Self

from ...addresses.i2p import I2PListen
from ...streams.accept_queue import Taker
from ...streams.dialer import Network
from ...streams.stream import Stream
from ..i2p.listener import I2PListener
from ..resume.server import Bounds
from .carriers import Carriers


class ResumeI2PListener(I2PListener, Carriers):
    """Accepts carriers at a destination; those of the near ends are their identities. For a tunnel only.

    :param place: the router and the session; the access lists are the tunnel's.
    :param below: the network from which the router's SAM bridge is reached.
    :param name: of the listener, in errors and in the log.
    :param bounds: of its sessions.
    :raises ValueError: as for :class:`I2PListener`.
    :raises OSError: if the system has no thread or descriptor left.
    """

    def __init__(self, place: I2PListen, below: Network, name: str, *, bounds: Bounds) -> None:
        I2PListener.__init__(self, place, below, name)
        self.handshake_timeout = 30.0
        self._login = None
        self.begin_sessions(bounds, functools.partial(I2PListener.close, self))
        self._queue.deliver(self.offer)

    def accept_any(self) -> tuple[Stream, Any]:
        """Wait for the next stream."""
        taken = self.streams.take()
        assert taken is not None  # there is no limit of time
        return taken

    accept = accept_any

    @property
    def pushes_streams(self) -> bool:
        """``True``: the tunnel has the access lists."""
        return True

    def deliver(self, taker: Taker | None, home: Any = None) -> None:
        """Pass streams on at once; see :meth:`PushingListener.deliver`."""
        self.streams.deliver(taker)  # moved by the I/O thread: a loop alone is no home

    def __enter__(self) -> Self:
        return self

    def close(self) -> None:
        """Accept no more carriers. A session without one ends now, any other one once it loses its own."""
        self.end_sessions()
        I2PListener.close(self)
