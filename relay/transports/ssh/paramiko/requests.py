"""Global requests to a server (RFC 4254, section 4). Replies carry no name; they come in the order of the requests."""

from __future__ import annotations

import struct
import time
from collections import deque
from collections.abc import Callable

from .messages import ASK, DENIED, GRANTED, NOTHING, text
from .mux import Mux
from .transport import Transport

Answered = Callable[["bytes | None"], object]
"""Called with the data of the reply, or with ``None`` if the request has failed or the connection has ended."""


class Requests:
    """The requests of one connection that have no reply yet; for the transport's thread only."""

    def __init__(self, transport: Transport, mux: Mux) -> None:
        self._mux = mux
        self._waiting: deque[tuple[float, Answered]] = deque()  # with the time of each request
        self._has_spoken = transport.wire.is_prompt
        transport.handle(ASK, self._on_request)
        transport.handle(GRANTED, self._on_success)
        transport.handle(DENIED, self._on_failure)

    def __len__(self) -> int:
        return len(self._waiting)

    def ask(self, name: str, data: bytes, answered: Answered) -> None:
        """Send a request for which a reply is required; ``answered`` is called once."""
        if self._mux.ended is not None:
            answered(None)
            return
        # Before it is sent: replies come in the order of requests and name none.
        self._waiting.append((time.monotonic(), answered))
        self._mux.send(struct.pack(">B", ASK) + text(name) + b"\1" + data)

    def fail(self) -> None:
        """Fail the pending requests: the connection has ended."""
        while self._waiting:
            self._waiting.popleft()[1](None)

    def _on_success(self, body: memoryview) -> None:
        self._on_reply(bytes(body))

    def _on_failure(self, body: memoryview) -> None:
        self._on_reply(None)

    def _on_reply(self, data: bytes | None) -> None:
        if self._waiting:
            asked, answered = self._waiting.popleft()
            self._mux.replied(asked)
            answered(data)

    def _on_request(self, body: memoryview) -> None:
        """Reject a request of the server, if it requires a reply."""
        (length,) = struct.unpack_from(">I", body)
        if body[4 + length]:
            self._mux.send(bytes((DENIED,)))
        elif not self._has_spoken:
            # OpenSSH announces its host keys right after the login, and Nagle's algorithm delays its next reply until
            # they are acknowledged. Data carry the acknowledgement: behind another server that is 40 ms earlier.
            # `Opening.confirmed` does the same for each channel.
            self._has_spoken = True
            self._mux.send(NOTHING)
