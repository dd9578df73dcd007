"""Listener for clients of an HTTP proxy over TLS: they shake hands, and then ask for CONNECT."""

from __future__ import annotations

import functools
import socket
from typing import Any

from ...addresses.hops import ProxyProtocol
from ...addresses.options import Secret
from ...streams.stream import Stream
from ..tcp import Inherited, listen_tcp
from ..tls.context import Credentials, Path
from ..tls.listener import TLSListener, server_credentials
from .http_server import HTTPListener
from .listener import MOST_PENDING, Login, PendingClients, login_of


def listen_https(
    protocol: ProxyProtocol,
    host: str,
    port: int,
    user: str | None = None,
    password: Secret | None = None,
    password_file: str | None = None,
    password_env: str | None = None,
    *,
    cert: Path,
    key: Path | None = None,
    client_ca: Path | None = None,
    groups: str | None = None,
    inherited: Inherited | None = None,
) -> HTTPSListener:
    """Listen for clients of an HTTP proxy over TLS.

    :param protocol: ``https``.
    :param host: and the others: as for :func:`relay.http_listen`.
    :param inherited: as for :func:`~relay.transports.tcp.listen_tcp`.
    :returns: a listener for :class:`relay.Tunnel`; the caller owns it.
    :raises ValueError: and others: as :func:`relay.http_listen` does.
    """
    login = login_of(user, password, password_file, password_env)
    credentials = server_credentials(cert, key, client_ca, groups=groups)
    return HTTPSListener(listen_tcp(host, port, inherited=inherited), credentials, login)


class HTTPSListener(TLSListener, HTTPListener):
    """Accepts clients of an HTTP proxy over TLS; see :class:`HTTPListener` and :class:`TLSListener`.

    :param listening: a listening TCP socket. The listener owns it.
    :param credentials: of a server.
    :param login: the only user that is allowed; ``None`` to allow every client.
    :raises OSError: if the system has no thread or descriptor left; the socket is closed then.
    """

    def __init__(self, listening: socket.socket, credentials: Credentials, login: Login | None = None) -> None:
        HTTPListener.__init__(self, listening, login)
        TLSListener.__init__(self, listening, credentials)

    def accept(self) -> tuple[Stream, Any]:
        """Wait for the next client that has asked for a target.

        :returns: its stream, with its ``request``, and the address that it came from.
        :raises OSError: ``EBADF`` once the listener is closed.
        """
        return HTTPListener.accept(self)

    def close(self) -> None:
        """Stop listening, wake :meth:`accept`, reset the other clients. Idempotent, from any thread."""
        TLSListener.close(self)
        HTTPListener.close(self)

    def pending_clients(self) -> PendingClients:
        """Return the clients whose requests are read without a tunnel."""
        return SessionClients(self)


class SessionClients(PendingClients):
    """Clients that have shaken hands in the I/O thread.

    :param listener: accepts them; it is a listener of proxy clients, too.
    """

    def __init__(self, listener: Any) -> None:
        super().__init__(listener)
        self._sessions: TLSListener = listener

    def start(self) -> None:
        """Take clients from now on."""
        self._sessions.deliver(self._take)

    def close(self) -> None:
        """Reset every client."""
        self._sessions.deliver(None)
        super().close()

    def _take(self, stream: Stream, peer: Any) -> None:
        if not self.loop.call(functools.partial(self._shaken, stream, peer)):
            stream.reset()

    def _shaken(self, stream: Stream, peer: Any) -> None:
        # Those that wait for accept() give no way, and the newest client is the one that has lost least.
        if len(self) >= MOST_PENDING and not self.make_room():
            stream.reset()
        else:
            self.hear(stream, peer)

    def resume(self, now: float) -> None:
        """Do nothing: the listener goes on by itself."""
