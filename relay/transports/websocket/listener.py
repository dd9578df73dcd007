"""Listener for WebSockets, with TLS or without: handshakes run beside the accept path, as those of TLS do."""

from __future__ import annotations

import functools
import ipaddress
import logging
import socket
import time
from typing import Any

from ...access.networks import NetworkSet, parse_network
from ...addresses.printable import printable
from ...addresses.values import is_ip_address
from ...addresses.websocket import WSListen, WSProxyListen, WSSListen, WSSProxyListen
from ...eventloop.background import Home
from ...eventloop.sockets import Endpoint, format_address
from ...streams.checks import FIRST_BYTE
from ...streams.identity import Identity, name_of, plain_host
from ...streams.rate_limited_log import RateLog
from ...streams.stream import Stream
from ..tcp import Inherited, listen_tcp
from ..tls.context import Credentials
from ..tls.listener import TLSListener, server_credentials
from .background import Background
from .handshake import Opening
from .opening import Agreement, Requirements, ServerOpening, client_behind
from .session import WebSocket, WebSocketStream

logger = logging.getLogger("relay.websocket")


def listen_websocket(address: WSListen, inherited: Inherited | None = None) -> WebSocketListener:
    """Listen for WebSockets.

    :param address: where, and what the requests of clients must have.
    :param inherited: as for :func:`~relay.transports.tcp.listen_tcp`.
    :returns: a listener for :class:`relay.Tunnel`; the caller owns it.
    :raises ValueError: if a file does not hold what it should.
    :raises OSError: if a file cannot be read or the address cannot be had.
    """
    credentials = credentials_of(address)
    return WebSocketListener(listen_tcp(address.host, address.port, inherited=inherited), address, credentials)


def credentials_of(address: WSListen | WSProxyListen) -> Credentials | None:
    """Return the credentials of a listener with TLS; ``None`` for one without.

    :raises ValueError: if a file does not hold what it should.
    :raises OSError: if a file cannot be read.
    """
    if not isinstance(address, WSSListen | WSSProxyListen):
        return None
    return server_credentials(address.cert, address.key, address.client_ca, groups=address.groups)


class WebSocketListener(TLSListener):
    """Accepts WebSockets whose opening handshake is done.

    :param listening: a listening TCP socket. The listener owns it.
    :param address: what the requests of clients must have.
    :param credentials: of a server with TLS; ``None`` for one without.
    :raises OSError: if the system has no thread or descriptor left; the socket is closed then.
    """

    def __init__(
        self, listening: socket.socket, address: WSListen | WSProxyListen, credentials: Credentials | None
    ) -> None:
        self._requirements = Requirements(
            address.path, _words(address.hosts), _words(address.origin), address.subprotocol
        )
        trusted = [_network(one) for one in _words(address.trusted_proxies)]
        self._trusted = NetworkSet(map(parse_network, trusted)) if trusted else None
        self._rejections = RateLog(logger, logging.INFO)
        self._is_tls = credentials is not None
        super().__init__(listening, credentials)  # type: ignore[arg-type]  # what needs it is overridden below

    @property
    def certificate_end(self) -> float | None:
        """Until when its certificate is valid, in seconds since 1970; ``None`` if it has none, or that is not known."""
        return super().certificate_end if self._is_tls else None

    @property
    def certificate_loads(self) -> tuple[int, int]:
        """The loads of its certificates after their files have changed, and those that have failed."""
        return super().certificate_loads if self._is_tls else (0, 0)

    def speaks_for_others(self, peer: Any) -> bool:
        """Return whether a peer is one of ``trusted_proxies``."""
        return self._trusted is not None and isinstance(peer, tuple) and self._is_trusted(plain_host(str(peer[0])))

    def _is_trusted(self, host: str) -> bool:
        return self._trusted is not None and self._trusted.find(host) is not None

    def _admit(self, client: socket.socket, peer: Any, now: float, home: Home | None = None) -> None:
        if self._is_tls:
            # In the I/O thread the session stays in that thread, too: that of the WebSocket is on top of it.
            return super()._admit(client, peer, now, self._home)
        client.setblocking(False)
        try:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError as error:  # it has gone already
            logger.info("%r: %s", self, error)
            client.close()
            return None
        return self._ready(Stream(client), peer)

    def _ready(self, stream: Stream, peer: Any) -> None:
        """Begin the opening handshake of a client, after that of TLS."""
        now = time.monotonic()
        deadline = None if self.handshake_timeout is None else now + self.handshake_timeout
        steps, key = ServerOpening(self._requirements), object()
        done = functools.partial(self._opened, key, steps, stream, peer)
        name = format_address(peer)
        try:
            opening = Opening(stream, self._home, steps, name, deadline, done, first=now + FIRST_BYTE)
        except OSError as error:
            logger.info("%r: %s", self, error)
            return
        if not opening.is_over:
            self._handshakes.add(key, opening, peer)
            self._report_handshakes()

    def _opened(
        self, key: object, steps: ServerOpening, stream: Stream, peer: Any, outcome: Agreement | OSError
    ) -> None:
        self._handshakes.remove(key)
        self._report_handshakes()
        name = format_address(peer)
        if isinstance(outcome, OSError):
            if not steps.problem:
                return self._failed(name, outcome)
            self._rejections.log(time.monotonic(), "%r: %s is rejected: %s", self, name, printable(steps.problem, 500))
            return None
        identity, peer = self._client(steps, stream, peer)
        session = WebSocket(stream, self._home, name, is_client=False, is_relay=outcome.is_relay, rest=outcome.rest)
        made: Stream = WebSocketStream(session)
        made.identity = identity
        if self._home is self._io_thread:  # accept() gives kernel sockets
            try:
                assert isinstance(made, WebSocketStream)
                made = Background(made).stream
            except OSError as error:
                made.reset()
                return self._failed(name, error)
        return super()._ready(made, peer)

    def _client(self, steps: ServerOpening, stream: Stream, peer: Any) -> tuple[Identity | None, Any]:
        """Return who the client is, and its address: as a trusted proxy says, if one has sent the request."""
        if not self.speaks_for_others(peer):
            return stream.identity, peer
        host = client_behind(steps.forwarded, self._is_trusted, is_ip_address)
        if host is None:
            return stream.identity, peer
        host = plain_host(host)
        address = (host, 0, 0, 0) if ":" in host else (host, 0)
        # The certificate of the session is that of the proxy, and names no client.
        return Identity("tcp", name_of(host), host, None), address

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{len(self._handshakes)} handshakes under way"
        return f"<relay.{type(self).__name__} at {Endpoint(self.listening.family, self.address)}, {state}>"


def _words(text: str | None) -> tuple[str, ...]:
    return tuple(text.split(",")) if text is not None else ()


def _network(text: str) -> str:
    return str(ipaddress.ip_network(text))
