"""The clients of a tunnel behind balancers, which begin with a header of the PROXY protocol.

Only the senders of the option ``accept_proxy`` may connect. A header that says ``LOCAL``, and nothing of a client,
is a health check of the sender: it is answered by an EOF, and is no client in the figures.
"""

from __future__ import annotations

import functools
import logging
import socket
from typing import TYPE_CHECKING, Any

from ..access.introduction import identified, passed_on
from ..access.proxy_header import AUTHORITY, ProxyHeader, ProxyHeaderError
from ..access.senders import Senders
from ..eventloop.sockets import format_address
from ..streams.identity import Identity, name_of
from ..streams.listener import ScreenedAddress, UpgradeListener
from ..streams.proxy_handshake import ProxyHandshake
from ..streams.rate_limited_log import RateLog
from ..streams.stream import Stream
from .connection import Connection
from .header_input import HeaderInput
from .records import ConnectionState

if TYPE_CHECKING:  # parts of one machine name each other
    from .entrance import Entrance
    from .relay_thread import RelayThread

logger = logging.getLogger("relay")

CHECK = "check"
"""The reason of a health check; no record has it."""

_RULE = "accept-proxy"


class _Introduced(tuple[Any, ...]):  # noqa: SLOT001  (a tuple has no slots of its own)
    """The address of a client whose header was read before its handshake, and what else the header says."""

    identity: Identity | None
    header: ProxyHeader  # with the entries only that are passed on


class _Screened(_Introduced, ScreenedAddress):
    """The same, of a client that its address lets shake hands."""


class HeaderClients:
    """The clients whose header is read. Belongs to the relay thread.

    :param owner: the relay thread.
    :param entrance: of its clients.
    :param senders: the balancers that may connect.
    """

    def __init__(self, owner: RelayThread, entrance: Entrance, senders: Senders) -> None:
        self.senders: Senders | None = senders
        self._owner = owner
        self._entrance = entrance
        self._uncounted: set[Connection] = set()  # it is not known yet whether they are clients
        self._rejections = RateLog(logger, logging.WARNING)
        self._checks = RateLog(logger, logging.INFO)

    def read(
        self,
        client: socket.SocketType,
        handshake: ProxyHandshake | None,
        peer: Any,
        now: float,
        listener: UpgradeListener | None = None,
    ) -> None:
        """Read the header of a client, and then its request, or begin its handshake.

        :param client: the accepted socket.
        :param handshake: reads the request; ``None`` if clients of the listener make none.
        :param peer: its address, as ``accept()`` returned it.
        :param now: monotonic seconds.
        :param listener: shakes hands with the client after the header; ``None`` for no handshake.
        """
        if self.senders is None or not self.senders.include(client, peer):
            connection = self._owner.admit(client, None, peer, now, 1)
            problem = "it is no sender of headers of the PROXY protocol; see accept_proxy"
            return self._deny(connection, problem, now, is_sender=False)
        connection = self._owner.admit(client, None, peer, now, 0)
        self._uncounted.add(connection)
        connection.state = ConnectionState.REQUESTING
        connection.deadline.start_request(now)
        self._entrance.half_open[connection] = None
        done = functools.partial(self._on_header, connection, handshake, listener)
        connection.pending = reader = HeaderInput(client, connection.owner.loop, done)
        reader.begin(now)

    def _on_header(
        self,
        connection: Connection,
        handshake: ProxyHandshake | None,
        listener: UpgradeListener | None,
        header: ProxyHeader | ProxyHeaderError | OSError,
        now: float,
    ) -> None:
        connection.pending = None
        connection.state = ConnectionState.CONNECTING
        if isinstance(header, OSError):
            connection.close("client_reset", now)
        elif isinstance(header, ProxyHeaderError):
            self._deny(connection, f"no valid header of the PROXY protocol: {header}", now, is_sender=True)
        elif header.is_check:
            sender = format_address(connection.summary.peer) or "a local program"
            self._checks.log(
                now, "%s: %s: a health check: its header of the PROXY protocol says LOCAL", self._owner.name, sender
            )
            connection.fail(CHECK, now, clean=True)
        elif listener is not None:
            self._screen(connection, listener, header, now)
        else:
            self._count(connection)
            summary = connection.summary
            summary.identity = identified(header, summary.who())
            summary.peer = _peer(header) or summary.peer
            summary.header = passed_on(header)
            summary.server_name = _server_name(summary.header)
            if handshake is not None:
                self._entrance.read_handshake(connection, handshake, now)
            else:
                self._entrance.on_request(connection, now)

    def _screen(self, connection: Connection, listener: UpgradeListener, header: ProxyHeader, now: float) -> None:
        """Begin the handshake of a client, unless its address alone bars it."""
        summary = connection.summary
        identity = summary.identity = identified(header, summary.who())
        summary.peer = _peer(header) or summary.peer
        summary.header = passed_on(header)
        has_address = identity is None or identity.host is not None  # else the peer is the balancer
        if has_address and (denial := self._entrance.screen(summary.peer, now)) is not None:
            self._count(connection)
            self._entrance.deny(connection, denial, now)
            return
        peer = (_Screened if has_address else _Introduced)(summary.peer)
        peer.identity, peer.header = identity, summary.header
        self._upgrade(connection, listener, peer, now)

    def _upgrade(self, connection: Connection, listener: UpgradeListener, peer: _Introduced, now: float) -> None:
        """Hand a client over for its handshake; it comes back as another connection, and this one leaves no trace."""
        connection.state = ConnectionState.CLOSED
        connection.summary.reason, connection.summary.finished = CHECK, now
        connection.deadline.release()
        connection.owner.loop.forget(connection.client.fileno())
        listener.upgrade(connection.client, peer, now)
        connection.owner.connection_over(connection)

    def offered(self, stream: Stream, peer: Any, now: float) -> bool:
        """Take a client that has shaken hands; return whether its header was read before. One without is denied.

        The listener may have accepted it before the tunnel did, or before a reload has set senders.
        """
        if isinstance(peer, _Introduced):
            if stream.identity is None:  # it has shown no certificate
                stream.identity = peer.identity
            if stream.server_name is None:
                stream.server_name = _server_name(peer.header)
            return True
        connection = self._owner.admit(stream.socket, stream, peer, now, 1)
        problem = "it came before headers of the PROXY protocol were read; it may connect again"
        is_sender = self.senders is not None and self.senders.include(stream.socket, peer)
        self._deny(connection, problem, now, is_sender=is_sender)
        return False

    def end(self, connection: Connection) -> bool:
        """Take a half-open connection that has ended; return whether it was that of a client."""
        if connection not in self._uncounted:
            return True
        if connection.summary.reason == CHECK:
            self._uncounted.discard(connection)
            return False
        self._count(connection)
        return True

    def _count(self, connection: Connection) -> None:
        if connection in self._uncounted:
            self._uncounted.discard(connection)
            self._owner.count_accepted()

    def _deny(self, connection: Connection, problem: str, now: float, *, is_sender: bool) -> None:
        connection.summary.rule = _RULE
        if not is_sender:  # a program such as fail2ban would ban the balancer, perhaps for its checks of the port alone
            self._entrance.log_denied(connection, now)
        peer = format_address(connection.summary.peer) or "a local program"
        self._rejections.log(now, "%s: %s: %s", self._owner.name, peer, problem)
        connection.close("denied", now)


def _peer(header: ProxyHeader) -> Any:
    """Return the address of the client that a header names, as ``accept()`` would; ``None`` if it names none."""
    if header.source is None:
        return None
    host, port = header.source
    return (host, port, 0, 0) if ":" in host else (host, port)


def _server_name(header: ProxyHeader) -> str | None:
    """Return the name that the client has asked its balancer for, as a header has it; ``None`` for none."""
    name = header.text(AUTHORITY)
    return name_of(name) if name else None
