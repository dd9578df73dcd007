"""Listeners whose clients first shake hands, in the thread of the tunnel that accepts them."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from ..eventloop.background import Home
from .accept_queue import Taker
from .listener import TunnelListener


class ScreenedAddress(tuple[Any, ...]):
    """The address of a client that a tunnel has accepted itself, and found fit for the handshake."""

    __slots__ = ()


class UpgradeListener(TunnelListener):
    """A listener that makes another stream of each client's socket, such as one of TLS.

    A tunnel accepts from its socket. The handshakes run in the thread of the tunnel.
    """

    listening: socket.socket
    """The listening stream socket."""

    on_handshakes: Callable[[int], object] | None = None
    """Called in that thread with the number of handshakes under way, whenever it changes; ``None`` for nothing."""

    def deliver(self, taker: Taker | None, home: Home | None = None) -> None:
        """Pass streams on at once.

        :param taker: called with each stream and its peer, in the thread of ``home``; it must not block. ``None`` keeps
            the streams for the next call.
        :param home: the thread of the tunnel, which calls this and from now on accepts.
        """
        raise NotImplementedError

    def upgrade(self, client: socket.SocketType, peer: Any, now: float) -> None:
        """Begin the handshake of a client, in the thread of the tunnel.

        :param client: its accepted socket, which belongs to the listener.
        :param peer: its address; it comes back with the stream.
        :param now: monotonic seconds.
        """
        raise NotImplementedError

    def make_room(self, now: float) -> None:
        """End some handshakes, in the thread of the tunnel: no descriptor is left."""
        raise NotImplementedError

    def close(self) -> None:
        """Close the socket, and reset the clients that no tunnel has got yet."""
        raise NotImplementedError
