"""WebSockets as kernel sockets: the holder of a stream has one end of a socketpair, and the I/O thread the other one.

What it holds is bounded: it reads from one side only when it has passed on all that it had read there before.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable

from ...eventloop.background import IOThread
from ...eventloop.poller import HUP, IN, OUT
from ...eventloop.sockets import keep_alive
from ...streams import exit_drain
from ...streams.pair_end import LINGER, PairEnd
from ...streams.stream import Stream
from .session import WebSocket, WebSocketError, WebSocketStream

_PIECE = 65536  # bytes to take from the holder at once
_NOTHING = memoryview(b"")


class Background:
    """A session that moves the bytes of a socketpair. Belongs to the I/O thread.

    Its states are those of the two sessions that it joins; see :mod:`relay.transports.websocket.session`.

    :param inner: a stream of the I/O thread, whose session it drives from now on.
    :raises OSError: if there are no descriptors left; ``inner`` stays with the caller.
    """

    quiet = 10.0  # seconds; see relay.streams.exit_drain.Sender

    def __init__(self, inner: WebSocketStream) -> None:
        self.session: WebSocket = inner.session
        self.aborted = False  # the holder has reset the stream
        self._inner = inner
        self._io_thread = IOThread.acquire(self)
        self._loop = self._io_thread.loop
        try:
            self._pair = PairEnd(self._loop, self._on_inner, self.session.progress, self._expired)
        except OSError:
            self._io_thread.release(self)
            raise
        self._descriptor = self.session.fileno()
        self._mask = -1
        self._to_holder: memoryview | bytes = b""
        self._to_peer: bytes = b""
        self._has_input = True  # the far end has not ended
        self._has_output = True  # the holder has not ended
        self._has_passed_end = False  # the holder knows the far end's end
        self._is_over = False
        self._on_drained: list[Callable[[], object]] = []
        exit_drain.track(self, level=exit_drain.SESSIONS)
        self.stream = BackgroundStream(self._pair.hand_over(), self, inner)
        """The holder's end."""
        try:
            keep_alive(self.session)  # type: ignore[arg-type]  # it has the method that this needs
        except OSError:
            pass  # it is lost, which the next read sees
        self._turn()

    # -- other threads ------------------------------------------------------------------------------------------------

    def drained(self, done: Callable[[], object]) -> None:
        """Call a function once the transport has taken all that the holder sent and its end, or never will."""

        def look() -> None:
            self._on_drained.append(done)
            self._look_drained()

        if self._is_over or not self._loop.call(look):
            done()

    def when_sent(self, done: Callable[[], object]) -> bool:
        """Call ``done`` once what the holder sent has left; see :class:`relay.streams.exit_drain.Sender`."""

        def look() -> None:
            if self._is_over or not self._has_pending():
                done()
            else:
                self._on_drained.append(done)

        return not self._is_over and self._loop.call(look)

    def progress(self) -> int:
        """Return how many bytes have left; see :class:`relay.streams.exit_drain.Sender`."""
        return self.session.progress()

    def unsent(self) -> int:
        """Return how many bytes wait behind the socketpair."""
        return 0 if self._is_over else self.session.transport.queued() + len(self.session.out) + len(self._to_peer)

    def wake(self) -> None:
        """Make the loop look at :attr:`aborted`."""
        if not self._is_over:
            self._loop.call(self._turn)

    def abandon(self) -> None:
        """In a forked child: only close the descriptors."""
        self._is_over = True
        self.session.abandon()
        self._pair.abandon()

    def __repr__(self) -> str:
        return f"the WebSocket stream to {self.session.name}"

    # -- the I/O thread -----------------------------------------------------------------------------------------------

    def crashed(self, now: float) -> None:
        """A bug in a handler: end both sides by a reset."""
        if self.session.error is None:
            self.session.error = WebSocketError("a bug in relay; the log has it", reason="target_reset")
        self._end(reset=True)

    def _on_outer(self, event: int, now: float) -> None:
        self._turn()

    def _on_inner(self, event: int, now: float) -> None:
        if event & HUP:
            self._pair.gone = self._pair.watch.hung = True
        self._turn()
        if self._pair.gone and not self._is_over:
            self._pair.expect_progress(now)

    def _turn(self) -> None:
        """Move what can be moved."""
        if self._is_over:
            return
        if self.aborted:
            return self._end(reset=True)
        try:
            self._send()
            self._receive()
        except OSError:
            return self._end(reset=True)
        session = self.session
        if not self._has_output and not self._to_peer and not session.must_flush:
            self._call_drained()
            if not self._has_input or self._pair.gone:
                return self._end(reset=False)
        self._watch()

    def _send(self) -> None:
        """Move what the holder sent, or its end, towards the far end."""
        session = self.session
        try:
            if session.must_flush:
                session.send(self._to_peer or _NOTHING)
                self._to_peer = b""
            if self._has_output and not self._to_peer:
                data = self._pair.socket.recv(_PIECE)
                if data:
                    self._to_peer = data
                    sent = session.send(data)
                    self._to_peer = data[sent:]
                elif self.aborted:
                    raise ConnectionResetError(errno.ECONNRESET, "reset by the holder")
                else:
                    self._has_output = False
                    if session.is_relay:
                        session.shutdown(socket.SHUT_WR)
        except BlockingIOError:
            pass

    def _receive(self) -> None:
        """Move what the far end sent, or its end, towards the holder."""
        session = self.session
        while self._deliver() and self._has_input:
            try:
                data = session.recv(_PIECE)
            except BlockingIOError:
                return
            if not data:
                self._has_input = False
            elif not self._pair.gone:
                self._to_holder = data
            if not self._deliver():
                self._to_holder = bytes(self._to_holder)  # the memory belongs to the next handler of the thread
            elif self._has_input and not session.has_input:
                return

    def _deliver(self) -> bool:
        """Pass on what the holder has not taken; return whether that was all."""
        try:
            while self._to_holder:
                self._to_holder = memoryview(self._to_holder)[self._pair.socket.send(self._to_holder) :]
        except BlockingIOError:
            return False
        except OSError:
            self._to_holder = b""  # the holder has closed the stream
        if not self._has_input and not self._has_passed_end:
            self._has_passed_end = True
            try:
                self._pair.socket.shutdown(socket.SHUT_WR)
            except OSError:
                pass
        return True

    def _watch(self) -> None:
        session, pair = self.session, self._pair
        reads = self._has_input and not self._to_holder and not session.is_stalled
        waits = (session.must_flush or bool(self._to_peer)) and not session.needs_input
        mask = (IN if reads else 0) | (OUT if waits else 0)
        if mask != self._mask:
            if self._mask < 0:
                self._loop.watch(self._descriptor, mask, self._on_outer)
            else:
                self._loop.poller.modify(self._descriptor, mask)
            self._mask = mask
        takes = self._has_output and not self._to_peer and not session.must_flush
        pair.watch.set_interest((IN if takes else 0) | (OUT if self._to_holder else 0))

    def _has_pending(self) -> bool:
        if self._to_peer or self.session.must_flush:
            return True
        try:
            return bool(self._pair.socket.recv(1, socket.MSG_PEEK)) or not self.session.has_ended
        except OSError:
            return False

    def _look_drained(self) -> None:
        if self._is_over or (not self._has_output and not self._to_peer and not self.session.must_flush):
            self._call_drained()

    def _call_drained(self) -> None:
        calls, self._on_drained = self._on_drained, []
        for done in calls:
            done()

    def _expired(self, now: float) -> None:
        if self.session.error is None:
            text = f"{self.session.name}: the WebSocket was given up: the far end took nothing for {LINGER:g} s"
            self.session.error = WebSocketError(text, reason="target_reset")
        self._end(reset=True)

    def _end(self, *, reset: bool) -> None:
        if self._is_over:
            return
        self._is_over = True
        if self._mask >= 0:
            self._loop.forget(self._descriptor)
        self._pair.end(reset=reset)
        end = self._inner.reset if reset else self.session.close
        if not self._loop.call(end):  # after this turn, for its events may still come
            end()
        self._call_drained()
        self._io_thread.release(self)


class BackgroundStream(Stream):
    """A stream whose socket is one end of a socketpair; the I/O thread moves the bytes of the other one."""

    __slots__ = ("_background",)

    def __init__(self, sock: socket.socket, background: Background, inner: WebSocketStream) -> None:
        on_close, inner.on_close = inner.on_close, None
        super().__init__(
            sock, half_close=inner.half_close, target=inner.target, failure=inner.failure, on_close=on_close
        )
        self._background = background
        self.unsent, self.drained = background.unsent, background.drained
        self.identity, self.tls, self.server_name = inner.identity, inner.tls, inner.server_name
        self.path, self.is_introduced = inner.path, inner.is_introduced

    def reset(self) -> None:
        """Close so that the far end sees a reset. Idempotent."""
        # Marked before it can see the end: a closed socketpair alone looks like a clean one.
        self._background.aborted = True
        self.socket.close()
        self._background.wake()
        self.close()
