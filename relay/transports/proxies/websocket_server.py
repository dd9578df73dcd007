"""Listener for proxy clients in WebSockets: each of them names its target by SOCKS in its stream."""

from __future__ import annotations

import socket
from typing import Any

from ...addresses.websocket import WSProxyListen
from ...streams.stream import Stream
from ..tcp import Inherited, listen_tcp
from ..tls.context import Credentials
from ..websocket.listener import WebSocketListener, credentials_of
from .https_server import SessionClients
from .listener import Login, PendingClients, login_of
from .socks_server import SOCKSListener


def listen_proxy_websocket(address: WSProxyListen, inherited: Inherited | None = None) -> WebSocketProxyListener:
    """Listen for clients that name their targets by SOCKS in each WebSocket.

    :param address: where, what the requests of clients must have, and the only user that is allowed.
    :param inherited: as for :func:`~relay.transports.tcp.listen_tcp`.
    :returns: a listener for :class:`relay.Tunnel`; the caller owns it.
    :raises AuthenticationError: if the file or variable has no password.
    :raises ValueError: if a file does not hold what it should.
    :raises OSError: if a file cannot be read or the address cannot be had.
    """
    login = login_of(address.user, address.password, address.password_file, address.password_env)
    credentials = credentials_of(address)
    listening = listen_tcp(address.host, address.port, inherited=inherited)
    return WebSocketProxyListener(listening, address, credentials, login)


class WebSocketProxyListener(WebSocketListener, SOCKSListener):
    """Accepts proxy clients in WebSockets; see :class:`WebSocketListener` and :class:`SOCKSListener`.

    :param listening: a listening TCP socket. The listener owns it.
    :param address: what the requests of clients must have.
    :param credentials: of a server with TLS; ``None`` for one without.
    :param login: the only user that is allowed; ``None`` to allow every client.
    :raises OSError: if the system has no thread or descriptor left; the socket is closed then.
    """

    def __init__(
        self,
        listening: socket.socket,
        address: WSProxyListen,
        credentials: Credentials | None,
        login: Login | None = None,
    ) -> None:
        SOCKSListener.__init__(self, listening, login)
        WebSocketListener.__init__(self, listening, address, credentials)

    def accept(self) -> tuple[Stream, Any]:
        """Wait for the next client that has asked for a target.

        :returns: its stream, with its ``request``, and the address that it came from.
        :raises OSError: ``EBADF`` once the listener is closed.
        """
        return SOCKSListener.accept(self)

    def close(self) -> None:
        """Stop listening, wake :meth:`accept`, reset the other clients. Idempotent, from any thread."""
        WebSocketListener.close(self)
        SOCKSListener.close(self)

    def pending_clients(self) -> PendingClients:
        """Return the clients whose requests are read without a tunnel."""
        return SessionClients(self)
