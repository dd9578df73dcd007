"""Global requests to a server (RFC 4254, section 4): their answers carry no name, and come in the order of asking."""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable

from .messages import ASK, DENIED, GRANTED, NOTHING, text
from .mux import Channels
from .transport import Transport

__all__ = ["Answered", "Requests"]

Answered = Callable[["bytes | None"], object]
"""Gets what the answer holds, or ``None`` if the request was refused or the connection has ended."""


class Requests:
    """The requests that are under way on one connection; everything belongs to the transport's thread."""

    def __init__(self, transport: Transport, channels: Channels) -> None:
        self._channels = channels
        self._waiting: deque[Answered] = deque()
        self._has_spoken = transport.wire.is_prompt
        transport.handle(ASK, self._on_request)
        transport.handle(GRANTED, self._on_success)
        transport.handle(DENIED, self._on_failure)

    def __len__(self) -> int:
        return len(self._waiting)

    def ask(self, name: str, data: bytes, answered: Answered) -> None:
        """Send a request that wants an answer; ``answered`` is called once."""
        if self._channels.ended is not None:
            answered(None)
            return
        self._waiting.append(answered)
        self._channels.send(struct.pack(">B", ASK) + text(name) + b"\1" + data)

    def fail(self) -> None:
        """The connection has ended."""
        while self._waiting:
            self._waiting.popleft()(None)

    def _on_success(self, body: memoryview) -> None:
        if self._waiting:
            self._waiting.popleft()(bytes(body))

    def _on_failure(self, body: memoryview) -> None:
        if self._waiting:
            self._waiting.popleft()(None)

    def _on_request(self, body: memoryview) -> None:
        """Refuse what the server asks for, if it wants an answer."""
        (length,) = struct.unpack_from(">I", body)
        if body[4 + length]:
            self._channels.send(bytes((DENIED,)))
        elif not self._has_spoken:
            # OpenSSH tells its host keys right after the login, and Nagle holds the answer to our first channel back
            # until they are acknowledged: behind another server 40 ms later, unless bytes of ours come first.
            self._has_spoken = True
            self._channels.send(NOTHING)
