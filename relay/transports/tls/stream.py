"""The stream of a TLS session whose holder has one end of a socketpair."""

from __future__ import annotations

import socket as sockets
from collections.abc import Callable
from typing import Protocol

from ...streams.stream import Stream
from .records import Records


class StreamSession(Protocol):
    """The session, as its stream sees it."""

    name: str
    records: Records
    error: BaseException | None
    aborted: bool

    def on_close(self) -> Callable[[], object] | None:
        """Return what releases the resources under the transport."""

    def drained(self, done: Callable[[], object], /) -> None:
        """Call a function once the transport has taken everything, or never will."""

    def wake(self) -> None:
        """Make the background loop look at :attr:`aborted`."""


class TLSStream(Stream):
    """A stream whose socket is one end of a socketpair; a TLS session moves the bytes of the other one."""

    __slots__ = ("_session",)

    def __init__(self, socket: sockets.socket, session: StreamSession) -> None:
        super().__init__(socket, target=session.name, failure=lambda: session.error, on_close=session.on_close())
        self._session = session
        self.unsent = session.records.unsent
        self.drained = session.drained

    def reset(self) -> None:
        """Close so that the TLS peer sees a reset, and neither close_notify nor an end of file. Idempotent."""
        # The session is marked before it can see the end: a closed socketpair alone looks like a clean one.
        self._session.aborted = True
        self.socket.close()
        self._session.wake()
        self.close()
