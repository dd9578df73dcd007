"""The flow out of a session, such as one of TLS: what its transport has brought is not what it has to say."""

from __future__ import annotations

import socket
from typing import cast

from ..eventloop.poller import IN, OUT, READ
from ..streams.session_socket import SessionSocket
from .flow import Flow, FlowOwner
from .workspace import Workspace

__all__ = ["NOTHING", "SessionFlow"]

NOTHING = memoryview(b"")  # pending for a session that must flush: sending it sends what waits there


class SessionFlow(Flow):
    """A flow whose source is a :class:`~relay.streams.session_socket.SessionSocket`."""

    __slots__ = ("session", "stalled")

    def __init__(self, owner: FlowOwner, work: Workspace, source: socket.SocketType, sink: socket.SocketType) -> None:
        super().__init__(owner, work, source, sink)
        self.session = cast("SessionSocket", source)
        self.stalled = False  # reads nothing until the session has flushed
        self.handler = self.on_event

    def on_event(self, event: int, now: float) -> None:
        """Copy what the session has, and send what it has to say by itself."""
        if event == IN:
            self.copy(IN, now)
        else:
            self.on_other_event(event, now)
            if self.stalled and not self.owner.is_closed and not self.session.is_stalled:
                self.stalled = False
                if self.pending is None and not self.ended:
                    self.set_interest(max(self.mask, 0) | READ)
        self.go_on(now)

    def go_on(self, now: float) -> None:
        """Copy what no event announces."""
        session, owner = self.session, self.owner
        while not owner.is_closed and self.pending is None and not self.ended and session.has_input:
            self.copy(IN, now)
        if owner.is_closed or not session.must_flush:
            return
        if self.reverse.pending is None:
            self.reverse.queue(NOTHING)
        if session.is_stalled:
            self.stalled = True
            self.set_interest((max(self.mask, 0) & ~READ) | OUT)

    def drain(self, now: float) -> None:
        """Write what is pending, and go on with what the session has beyond it."""
        super().drain(now)
        if not self.owner.is_closed:
            self.go_on(now)

    def discard(self, event: int, now: float) -> None:
        """Drop what a peer still sends, until its end, which may have come with the last bytes."""
        super().discard(event, now)
        if not self.owner.is_closed and self.session.has_input:
            super().discard(event, now)
