"""Listener for resumable streams in WebSockets over TLS, whose clients have certificates."""

from __future__ import annotations

import functools
import socket

from ...addresses.websocket import WSListen
from ..resume.server import Bounds
from ..tls.context import Credentials
from ..tls.listener import TLSListener
from ..websocket.listener import WebSocketListener
from .carriers import Carriers
from .tls import OverTLS


class ResumeWebSocketListener(OverTLS, WebSocketListener):
    """Accepts carriers in WebSockets; see :class:`ResumeTLSListener`.

    :param listening: a listening TCP socket. The listener owns it.
    :param address: what the requests of clients must have.
    :param credentials: of a server that asks for certificates.
    :param bounds: of its sessions.
    :raises OSError: if the system has no thread or descriptor left; the socket is closed then.
    """

    def __init__(
        self, listening: socket.socket, address: WSListen, credentials: Credentials | None, *, bounds: Bounds
    ) -> None:
        Carriers.__init__(self, listening)
        WebSocketListener.__init__(self, listening, address, credentials)
        self.begin_sessions(bounds, functools.partial(TLSListener.close, self))
        self._queue.deliver(self.offer)
