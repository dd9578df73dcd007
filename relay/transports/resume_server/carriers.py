"""The common part of the listeners of resume servers: what they accept is a carrier, and brings a session a stream."""

from __future__ import annotations

import functools
import socket
from collections.abc import Callable
from typing import Any

from ...eventloop.background import Home
from ...streams.accept_queue import AcceptQueue, Taker
from ...streams.stream import Stream
from ..proxies.socks_server import SOCKSListener
from ..resume.server import Bounds, Sessions


class Carriers(SOCKSListener):
    """A listener whose tunnel gets the streams of its sessions. The client of each names its target by SOCKS in it."""

    def begin_sessions(self, bounds: Bounds, on_failed: Callable[[], object]) -> None:
        """Be ready for carriers.

        :param bounds: of its sessions.
        :param on_failed: called if there can be no sessions.
        :raises OSError: if the system has no thread or descriptor left.
        """
        self.protected = None  # it knows each of its clients
        self.streams: AcceptQueue[Any] = AcceptQueue()
        """The streams of new sessions."""
        self.home: Home | None = None
        """The thread of the tunnel that takes them."""
        try:
            self.sessions = Sessions(self._begun, lambda: self.home, bounds)
            """Its sessions."""
        except OSError:
            on_failed()
            raise

    def deliver(self, taker: Taker | None, home: Home | None = None) -> None:
        """Pass streams on at once; see :meth:`relay.streams.listener.UpgradeListener.deliver`."""
        if home is not None:
            self.home = home
        self.streams.deliver(taker)

    def end_sessions(self) -> None:
        """Take no more carriers; a session without one ends now, any other one once it loses its own."""
        self.sessions.close()
        self.streams.close()

    def offer(self, stream: Stream, peer: Any) -> None:
        """Take a carrier that has shaken hands; its stream has a kernel socket."""
        self.sessions.offer(stream, stream.identity, peer)

    def _begun(self, stream: Stream, peer: Any) -> None:
        home = self.home
        if home is None or not home.loop.call(functools.partial(self.streams.put, stream, peer)):
            self.streams.put(stream, peer)


def plain_socket(client: socket.SocketType) -> socket.socket:
    """Return the socket of a client, with all methods."""
    if isinstance(client, socket.socket):
        return client
    return socket.socket(client.family, client.type, client.proto, client.detach())
