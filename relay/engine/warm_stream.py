"""A stream that is opened before its client is there, and kept ready for it.

========== ================== ========== ==============================================================
state      event              next state action
========== ================== ========== ==============================================================
connecting stream             ready      watch for its end; start the timer of its age
connecting no stream          over       tell the pool why
connecting limit              over       abandon the attempt; tell the pool why
connecting close              over       abandon the attempt
ready      client             over       stop watching; open the client's connection with it
ready      EOF                over       close it; tell the pool
ready      reset              over       close it; tell the pool
ready      age                over       close it; tell the pool
ready      close              over       close it
any        fork               over       in the child: only close the descriptors
========== ================== ========== ==============================================================

Nothing is read from a stream that is ready: what a server says first waits in the kernel's buffer, which is bounded.
"""

from __future__ import annotations

import contextlib
import enum
import select
import socket
from collections.abc import Hashable
from typing import TYPE_CHECKING

from ..errors import ConnectError
from ..eventloop import poller
from ..eventloop.loop import Timer
from ..eventloop.poller import ERR, HUP, IN
from ..streams.session_socket import close_descriptor, session_of
from ..streams.stream import Request, Stream, StreamPath
from .connection import Connection
from .limits import Pending
from .records import ConnectionSummary
from .workspace import Workspace

if TYPE_CHECKING:  # parts of one machine name each other
    from .warm_pool import WarmPool

_GREETING = 1 << 16  # bytes of a server that speaks first


class WarmState(enum.Enum):
    """The state of a warm stream; the docstring of this module has the table."""

    CONNECTING = "connecting"
    READY = "ready"
    OVER = "over"


class WarmStream:
    """One stream without a client. Belongs to the relay thread.

    :param owner: the pool.
    :param target: the name of the target.
    :param keep: seconds after which it is closed if no client has come.
    :param now: monotonic seconds.
    """

    __slots__ = ("state", "pending", "summary", "target", "target_stream", "opened", "_owner", "_keep", "_timer")

    request: Request | None = None

    def __init__(self, owner: WarmPool, target: str | None, keep: float, now: float) -> None:
        self.state = WarmState.CONNECTING
        self.pending: Pending | None = None
        self.summary = ConnectionSummary(None, now)
        self.summary.target = target
        self.target: socket.SocketType | None = None
        self.target_stream: Stream | None = None
        self.opened = 0.0  # monotonic seconds
        self._owner = owner
        self._keep = keep
        self._timer = Timer(owner.loop.timers, self._on_timer)

    # -- for the attempt to open it -----------------------------------------------------------------------------------

    def wait_for_target(self, pending: Pending, deadline: float, now: float) -> None:
        """Wait for the stream that ``pending`` makes, until a deadline (monotonic seconds)."""
        self.pending = pending
        self._timer.start(deadline, now)

    def source(self) -> Hashable:
        """Return the source of look-ups without a client."""
        return None

    def watch_client(self) -> None:
        """Do nothing, because there is no client yet."""

    def open(self, target: socket.SocketType, stream: Stream | None, work: Workspace, now: float) -> None:
        """Keep the connected stream."""
        self.target, self.target_stream = target, stream
        # Bytes that arrive do not wake the thread. Without that kind of event they do, once.
        self._owner.loop.watch(target.fileno(), poller.END or IN, self._on_event)
        self.pending = None
        self.state = WarmState.READY
        self.opened = now
        self._timer.start(now + self._keep, now)
        self._owner.is_ready(self, now)

    def fail(self, reason: str, now: float) -> None:
        """Close, because there is no stream."""
        self.close("failed", now)

    # -- for the pool -------------------------------------------------------------------------------------------------

    def change_age(self, keep: float, now: float) -> None:
        """Change the seconds after which it is closed."""
        self._keep = keep
        if self.state is WarmState.READY:
            self._timer.start(self.opened + keep, now)

    def is_unanswered(self) -> bool:
        """Return whether it is not known yet that the target has accepted it."""
        return self.target_stream is not None and not self.target_stream.answered

    def spoilt(self) -> str | None:
        """Return why no client can have it: it has ``ended``, or is ``expired`` as its target gets no new clients."""
        if self.has_ended():
            return "ended"
        return "expired" if self.target_stream is not None and self.target_stream.is_withdrawn else None

    def has_ended(self) -> bool:
        """Return whether the target has closed or reset it; the loop may not have looked yet."""
        assert self.target is not None
        look = select.poll()
        look.register(self.target.fileno(), poller.END)
        # Asked of the kernel just before a client gets it: the event of its end may wait behind that client's in this
        # very turn.
        return bool(look.poll(0)) or (not poller.END and _is_at_end(self.target))

    def give(self, connection: Connection, work: Workspace, now: float) -> None:
        """Open the connection of a client with it."""
        target, own, summary = self.target, self.summary, connection.summary
        assert target is not None
        self.state = WarmState.OVER
        self._timer.stop()
        self._owner.loop.forget(target.fileno())
        summary.target, summary.route = own.target, own.route
        summary.path = (own.path or StreamPath(()))._replace(steps=(), warm=True)
        connection.open(target, self.target_stream, work, now)

    def close(self, reason: str, now: float) -> None:
        """Close it. Idempotent.

        :param reason: for the pool.
        """
        if self.state is WarmState.OVER:
            return
        self.state = WarmState.OVER
        self._timer.stop()
        pending, self.pending = self.pending, None
        if pending is not None:
            pending.abandon()
        target, stream = self.target, self.target_stream
        if target is not None:
            self._owner.loop.forget(target.fileno())
            if session_of(target) is None and reason != "ended":
                _drop_greeting(target)
            if stream is not None:
                self._owner.close_stream(stream, clean=True)
            else:
                self._owner.loop.discard(target)
        self._owner.is_over(self, reason, now)

    def crashed(self, now: float) -> None:
        """Close it after a bug in a handler."""
        self.close("failed", now)

    def after_fork(self) -> None:
        """Only close the descriptors, in a forked child: the peer notices nothing."""
        self.state = WarmState.OVER
        if self.target is not None:
            close_descriptor(self.target)
        if self.pending is not None:
            self.pending.after_fork()

    # -- events -------------------------------------------------------------------------------------------------------

    def _on_event(self, event: int, now: float) -> None:
        assert self.target is not None
        if event & (poller.END | ERR | HUP) or _is_at_end(self.target):
            self.close("ended", now)
        else:
            # The greeting stays unread, so that the socket would be readable again in every turn; errors are reported
            # all the same.
            self._owner.loop.poller.modify(self.target.fileno(), 0)

    def _on_timer(self, now: float) -> None:
        if self.state is WarmState.READY:
            self.close("expired", now)
        else:
            name = self.summary.target_name() or "the target"
            error = ConnectError(f"{name}: no answer in time; check that it is reachable", reason="connect_timeout")
            self._owner.failed(self, error, now)


def _is_at_end(sock: socket.SocketType) -> bool:
    """Return whether nothing is left to be read from a socket that has ended."""
    try:
        return not sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True


def _drop_greeting(sock: socket.SocketType) -> None:
    """Read what a server has said first: a close with bytes unread would be a reset, which it may log or count."""
    with contextlib.suppress(OSError):
        sock.recv(_GREETING, socket.MSG_DONTWAIT)
