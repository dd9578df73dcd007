"""The flow out of a session, such as one of TLS: what its transport has brought is not what it has to say."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from ..eventloop.poller import IN, OUT, READ
from ..streams.session_socket import SessionSocket
from .flow import Flow
from .workspace import Workspace

if TYPE_CHECKING:  # parts of one machine name each other
    from .flow_pair import FlowPair

NOTHING = memoryview(b"")  # pending for a session that must flush: sending it sends what waits there


class SessionFlow(Flow):
    """A flow whose source is a :class:`~relay.streams.session_socket.SessionSocket`."""

    __slots__ = ("awaits_input", "session", "stalled")

    is_parked = False  # a subclass may have to wait before it reads on

    def __init__(self, owner: FlowPair, work: Workspace, source: socket.SocketType, sink: socket.SocketType) -> None:
        super().__init__(owner, work, source, sink)
        self.session: SessionSocket = source  # type: ignore[assignment]
        self.stalled = False  # reads nothing until the session has flushed
        self.awaits_input = False  # does not wait until the transport takes more, as the session needs input first
        self.reads = READ  # urgent data of the transport is no part of a session
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

    def read_whole(self) -> None:
        """Do nothing: a session reads into memory of its own, also from a Unix socket."""

    def go_on(self, now: float) -> None:
        """Copy what no event announces."""
        session, owner = self.session, self.owner
        while not owner.is_closed and self.pending is None and not self.ended and session.has_input:
            self.copy(IN, now)
            if self.is_parked:
                break
        if owner.is_closed:
            return
        if self.awaits_input and not session.needs_input:
            self.awaits_input = False
            self.set_interest(max(self.mask, 0) | OUT)
        if not session.must_flush:
            return
        if self.reverse.pending is None:
            self.reverse.queue(NOTHING)
        if session.is_stalled:
            self.stalled = True
            self.set_interest((max(self.mask, 0) & ~READ) | OUT)
        else:
            self.set_interest(self.mask)  # without OUT if the session has come to need input

    def set_interest(self, mask: int) -> None:
        """Wait for these events; a transport that takes more is no event if the session first needs input."""
        if mask > 0 and mask & OUT and self.session.needs_input:
            mask &= ~OUT
            self.awaits_input = True
        super().set_interest(mask)

    def drain(self, now: float) -> None:
        """Write what is pending, and go on with what the session has beyond it."""
        super().drain(now)
        if not self.owner.is_closed:
            self.go_on(now)

    def discard(self, event: int, now: float) -> None:
        """Drop what a peer still sends, until its end, which may have come with the last bytes."""
        session, owner = self.session, self.owner
        try:
            if session.must_flush:
                session.send(NOTHING)
        except BlockingIOError:
            pass
        except OSError:
            return owner.close("done", now)
        if event & ~OUT:
            super().discard(event, now)
            if not owner.is_closed and session.has_input:
                super().discard(event, now)
        if not owner.is_closed:
            self.set_interest((0 if session.is_stalled else READ) | (OUT if session.must_flush else 0))
