"""Reads the header of the PROXY protocol with which a client of a balancer begins."""

from __future__ import annotations

import socket
from collections.abc import Callable

from ..access.proxy_header import HeaderReader, ProxyHeader, ProxyHeaderError
from ..eventloop.loop import Loop
from ..streams.proxy_handshake import HandshakeReader, ProxyHandshake

_PIECE = 4096  # bytes that are looked at at once

OnHeader = Callable[[ProxyHeader | ProxyHeaderError | OSError, float], object]


class HeaderInput(HandshakeReader):
    """Reads one header, and nothing after it. Belongs to the loop's thread.

    :param client: a non-blocking socket, which stays with the caller.
    :param loop: watches it until the header is there.
    :param done: called once, with the header, or what is wrong with it, or the error of the socket, and with the time.
    """

    __slots__ = ("_reader", "_on_header")

    def __init__(self, client: socket.SocketType, loop: Loop, done: OnHeader) -> None:
        super().__init__(client, loop, ProxyHandshake(), lambda *_: None)
        self._reader = HeaderReader()
        self._on_header = done

    def on_event(self, event: int, now: float) -> None:
        """Read from the client."""
        client, reader = self._client, self._reader
        outcome: ProxyHeader | ProxyHeaderError | OSError | None
        try:
            seen = client.recv(_PIECE, socket.MSG_PEEK)
            if not seen:
                raise ProxyHeaderError("the connection has ended within the header")
            self.begun = True
            size = reader.feed(seen)
            if len(client.recv(size)) != size:
                raise ConnectionResetError  # other code has read from it
            outcome = reader.header
        except BlockingIOError:
            return
        except (OSError, ProxyHeaderError) as error:
            outcome = error
        if outcome is not None:
            self._loop.forget(client.fileno())
            self._on_header(outcome, now)

    def crashed(self, now: float) -> None:
        """Reject the client because of a bug here."""
        self._loop.forget(self._client.fileno())
        self._on_header(ProxyHeaderError("a bug in relay; the log has it"), now)
