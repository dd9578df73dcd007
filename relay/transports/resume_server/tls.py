"""Listener for resumable streams over TLS, whose clients have certificates."""

from __future__ import annotations

import functools
import socket
import time
from typing import Any

from ...streams.stream import Stream
from ..resume.server import Bounds
from ..tls.context import Credentials
from ..tls.listener import TLSListener
from .carriers import Carriers, plain_socket


class OverTLS(TLSListener, Carriers):
    """A :class:`TLSListener` whose tunnel gets sessions: the I/O thread shakes hands, a tunnel accepts.

    The sessions are in that thread, and each of their carriers may be another connection.
    """

    def accept(self) -> tuple[Stream, Any]:
        """Wait for the next stream; without a tunnel no client is accepted."""
        taken = self.streams.take()
        assert taken is not None  # there is no limit of time
        return taken

    deliver = Carriers.deliver

    def upgrade(self, client: socket.SocketType, peer: Any, now: float) -> None:
        """Begin the handshake of a carrier; see :meth:`UpgradeListener.upgrade`."""
        carrier = plain_socket(client)
        if not self._io_thread.loop.call(functools.partial(self._take, carrier, peer)):
            carrier.close()

    def make_room(self, now: float) -> None:
        """End the oldest handshakes of the source with the most."""
        self._io_thread.loop.call(functools.partial(self._handshakes.make_room, self, now))

    def close(self) -> None:
        """Stop listening. A session without a carrier ends now, any other one once it loses its own."""
        self.end_sessions()
        TLSListener.close(self)

    def _take(self, carrier: socket.socket, peer: Any) -> None:
        now = time.monotonic()
        if self._closed:
            return carrier.close()
        if self._is_full():
            self._handshakes.make_room(self, now)
        return self._admit(carrier, peer, now)

    def _begin(self) -> None:
        """Do nothing: the tunnel accepts."""

    def _want(self, mask: int) -> None:
        """Do nothing, as above."""


class ResumeTLSListener(OverTLS):
    """Accepts carriers over TLS; the keys of their certificates are the identities of the near ends. For a tunnel only.

    :param listening: a listening TCP socket. The listener owns it.
    :param credentials: of a server that asks for certificates.
    :param bounds: of its sessions.
    :raises OSError: if the system has no thread or descriptor left; the socket is closed then.
    """

    def __init__(self, listening: socket.socket, credentials: Credentials, *, bounds: Bounds) -> None:
        Carriers.__init__(self, listening)
        TLSListener.__init__(self, listening, credentials)
        self.begin_sessions(bounds, functools.partial(TLSListener.close, self))
        self._queue.deliver(self.offer)
