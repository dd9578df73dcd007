"""WebSockets as streams: sessions that the thread of an engine, or the I/O thread, reads and writes as it does sockets.

Under a session is a kernel socket, or a session of TLS in the same thread. The far end speaks
:data:`~relay.transports.websocket.opening.RELAY`, or only plain messages:

=========================== ========================================= ==================================================
event                       relay.v1                                  plain messages
=========================== ========================================= ==================================================
EOF to send                 a message :data:`END`                     none, as its stream has no half-close
message :data:`END`         EOF; the other direction goes on          (data)
message :data:`RESET`       reset                                     (data)
close 1000, or without code reset, unless the EOF has come            EOF of both directions
close with another code     reset, unless the EOF has come            reset
end of the transport        reset, unless the EOF has come            reset
=========================== ========================================= ==================================================

A session that is closed says so by a close with the code 1000, and reads on in the I/O thread until the far end does
too: else a proxy in between could drop what it has not passed on. A reset is :data:`RESET` for a relay, and a close
with the code 1011, as far as the transport takes them at once.
"""

from __future__ import annotations

import errno
import functools
import os
import socket as sockets
import threading
import time
from collections.abc import Callable
from typing import cast

from ...errors import RelayError
from ...eventloop.background import BUFFER, Home, IOThread, Watch
from ...eventloop.loop import Timer
from ...eventloop.poller import HUP, IN, OUT
from ...streams import exit_drain
from ...streams.pair_end import LINGER, release_after
from ...streams.session_socket import SessionSocket, session_of
from ...streams.stream import Stream
from . import frames
from .frames import BINARY, CLOSE, CONTINUATION, PING, PONG, Decoder, FrameError, frame

DATA, END, RESET = b"\x00", b"\x01", b"\x02"
"""The first byte of each message of :data:`~relay.transports.websocket.opening.RELAY`."""

PING_EVERY = 30.0
"""Seconds between two pings; proxies end connections that are idle for 60 s (nginx, HAProxy) or 100 s (Cloudflare)."""
_STEP = BUFFER // 2  # bytes to receive at once from a kernel socket
_KEYS = 256  # random bytes to take at once
_NOTHING = memoryview(b"")


class WebSocketError(RelayError):
    """A WebSocket that was cut: by a reset, a close, an end without one, or bytes that are no frames.

    :param message: what happened, and at which end.
    :param reason: the word for it in a connection's record: ``client_reset`` or ``target_reset``.
    """

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class WebSocket(SessionSocket):
    """A session whose opening handshake is done. Belongs to the thread of its home.

    :param transport: a stream over a connected, non-blocking socket, or over an inline session of TLS.
    :param home: the thread.
    :param name: of the far end, for errors.
    :param is_client: the role of this end.
    :param is_relay: whether both ends speak :data:`~relay.transports.websocket.opening.RELAY`.
    :param rest: bytes that have come behind the handshake.
    """

    __slots__ = (
        "error", "far_closed", "has_closed", "has_ended", "home", "is_closed", "is_relay", "name", "out", "transport",
        "_decoder", "_early", "_far_ended", "_inner", "_is_client", "_keys", "_kind", "_moved", "_over", "_owed",
        "_pings", "_pong", "_session",
    )  # fmt: skip

    def __init__(
        self, transport: Stream, home: Home, name: str, *, is_client: bool, is_relay: bool, rest: bytes = b""
    ) -> None:
        super().__init__(transport.socket)
        self.transport = transport
        self.home = home
        self.name = name
        self.is_relay = is_relay
        self.error: BaseException | None = None
        self.out: memoryview | bytes = b""  # frames that the transport has not taken
        self.has_ended = False  # this end has sent END
        self.has_closed = False  # this end has sent a close
        self.is_closed = False
        self._inner = transport.socket
        self._session = session_of(transport.socket)
        self._is_client = is_client
        self._decoder = Decoder(is_masked=not is_client)
        self._early = rest
        self.far_closed = False  # the far end has sent a close, or the transport has ended
        self._far_ended = False  # the EOF has come
        self._kind = -1  # of the message whose bytes come: its first byte; -1 while that is still to come
        self._owed = 0  # bytes that are in frames, but that the transport has not taken
        self._moved = 0  # bytes that it has taken
        self._keys = b""  # random bytes for the next frames
        self._pong: bytes | None = None  # the answer to the last ping
        self._over: threading.Event | None = None
        self._pings = Timer(home.loop.timers, self._ping)
        now = time.monotonic()
        self._pings.start(now + PING_EVERY, now)

    # -- what an engine sees ------------------------------------------------------------------------------------------

    @property
    def has_input(self) -> bool:
        """``True`` if there are bytes, or the end, that no event announces."""
        return bool(self._early) or self._far_ended or (self._session is not None and self._session.has_input)

    @property
    def must_flush(self) -> bool:
        """``True`` if bytes wait until the transport takes more."""
        return bool(self.out) or self._pong is not None or (self._session is not None and self._session.must_flush)

    @property
    def needs_input(self) -> bool:
        """``True`` if they wait for the rest of a message of TLS."""
        return self._session is not None and self._session.needs_input

    @property
    def is_stalled(self) -> bool:
        """``True`` if TLS may receive nothing before they are sent; the answers of a WebSocket are bounded."""
        return self._session is not None and self._session.is_stalled

    def recv(self, size: int, flags: int = 0, /) -> bytes | memoryview:
        """Receive what the messages hold; see :meth:`SessionSocket.recv`."""
        if flags and flags & sockets.MSG_PEEK:  # an Enum's member is slow
            return self._inner.recv(size, flags)
        try:
            return self._receive(size)
        except BlockingIOError:
            raise
        except FrameError as error:
            raise self._broken(f"what comes is no WebSocket: {error}", frames.PROTOCOL_ERROR) from None
        except OSError as error:
            self._failed(error)
            raise

    def _receive(self, size: int) -> bytes | memoryview:
        if self._is_at_end():
            return b""
        if not (data := self._take(size)):
            raise ConnectionResetError(errno.ECONNRESET, "ended without a close: bytes may be missing")
        parts: list[bytes | bytearray | memoryview] = []
        for opcode, part in self._decoder.feed(data):
            if opcode in (BINARY, CONTINUATION):
                if given := self._of_relay(opcode, part) if self.is_relay else part:
                    parts.append(given)
            elif opcode == PING:
                self._pong = part  # type: ignore[assignment]  # only the last one is answered (section 5.5.3)
            elif opcode == CLOSE:
                self._on_close(bytes(part))
                break
        if self._pong is not None and not self.out:
            try:
                self._flush()
            except BlockingIOError:
                pass
        if len(parts) == 1:
            return parts[0]  # type: ignore[return-value]
        if parts:
            return b"".join(parts)
        if self._is_at_end():
            return b""
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    def _is_at_end(self) -> bool:
        return self._far_ended

    def _take(self, size: int) -> bytes | memoryview:
        """Return what the transport has brought; nothing at its end."""
        data: bytes | memoryview
        if self._early:
            data, self._early = self._early, b""
        elif self._session is None:
            buffer = self.home.buffer
            data = buffer[: self._inner.recv_into(buffer, _STEP)]
        else:
            data = self._session.recv(size)
        if not data:
            self.far_closed = True
        return data

    def discard(self) -> bool:
        """Drop what the far end still sends to a closed session; return whether more has come.

        :raises OSError: if the transport has failed; :class:`BlockingIOError` if there is nothing.
        """
        try:
            found = self._decoder.feed(self._take(_STEP))
        except FrameError:
            self.far_closed = True
            return False
        self.far_closed = self.far_closed or any(opcode == CLOSE for opcode, _ in found)
        return not self.far_closed and self._session is not None and self._session.has_input

    def _of_relay(self, opcode: int, part: bytes | bytearray | memoryview) -> bytes | bytearray | memoryview:
        """Return the data in a part of a message between two relays."""
        if opcode == BINARY:
            self._kind = -1
        if self._kind < 0:
            if not part:
                return part
            self._kind, part = part[0], part[1:]
            if self._kind == RESET[0]:
                self.far_closed = True
                raise ConnectionResetError(errno.ECONNRESET, "was reset by the other relay's peer")
            if self._kind == END[0]:
                self._far_ended = True
            elif self._kind != DATA[0]:
                raise FrameError(f"a message of the unknown kind {self._kind}")
            elif self._far_ended:
                raise FrameError("data after the end")
        if part and self._kind != DATA[0]:
            raise FrameError("an end with data")
        return part

    def _on_close(self, payload: bytes) -> None:
        self.far_closed = True
        code = frames.code_of(payload)
        if self._far_ended:
            return
        if self.is_relay or code not in (frames.NORMAL, frames.NO_STATUS):
            said = payload[2:].decode("utf-8", "replace").strip()
            text = f"was closed with the code {code}" + (f" ({said[:80]})" if said else "")
            raise ConnectionResetError(errno.ECONNRESET, text)
        self._far_ended = True

    def send(self, data: bytes | memoryview, flags: int = 0, /) -> int:
        """Send as one message; see :meth:`SessionSocket.send`."""
        try:
            return self._send(data)
        except BlockingIOError:
            raise
        except OSError as error:
            self._failed(error)
            raise

    def _send(self, data: bytes | memoryview) -> int:
        size, owed = len(data), self._owed
        if owed or self.out or self._pong is not None or (self._session is not None and self._session.must_flush):
            if not self._flush():
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            self._owed = 0
            data = memoryview(data)[owed:]
        if owed < size:
            prefix = DATA if self.is_relay else b""
            self.out = frame(BINARY, data, prefix=prefix, is_masked=self._is_client, key=self._next_key())
            if not self._flush():
                # It is in a frame, and cannot be taken back: reported as not sent, the same bytes come again and are
                # skipped then.
                self._owed = size - owed
                if owed:
                    return owed
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return size

    def _next_key(self) -> bytes | None:
        """Return a key for a frame; a system call for each would be a tenth of a short message."""
        if not self._is_client:
            return None
        if not self._keys:
            self._keys = os.urandom(_KEYS)
        key, self._keys = self._keys[:4], self._keys[4:]
        return key

    def shutdown(self, how: int, /) -> None:
        """End the output: of this direction alone for a relay, else of the whole session."""
        if self.has_ended or self.has_closed:
            return
        self.has_ended = True
        try:
            if self.is_relay:
                self._queue(BINARY, END)
            else:
                self._queue_close(frames.NORMAL)
            self._flush()
        except OSError as error:
            self._failed(error)
            raise

    def _queue(self, opcode: int, payload: bytes) -> None:
        made = frame(opcode, payload, is_masked=self._is_client)
        self.out = b"".join((self.out, made)) if self.out else made

    def _queue_close(self, code: int) -> None:
        if not self.has_closed:
            self.has_closed = True
            self._queue(CLOSE, frames.close_payload(code))

    def _flush(self) -> bool:
        """Send the frames that wait; return whether the transport has taken all of them."""
        if self._pong is not None and not self.has_closed:
            self._queue(PONG, self._pong)
        self._pong = None
        inner, out = self._inner, self.out
        while out:
            try:
                sent = inner.send(out)
            except BlockingIOError:
                self.out = out
                return False
            self._moved += sent
            out = memoryview(out)[sent:]
        self.out = b""
        session = self._session
        if session is not None and session.must_flush:
            try:
                session.send(_NOTHING)
            except BlockingIOError:
                return False
        return True

    def _ping(self, now: float) -> None:
        if self.is_closed or self.error is not None or self.has_closed:
            return
        self._pings.start(now + PING_EVERY, now)
        if not self.must_flush:
            try:
                self._queue(PING, b"")
                self._flush()
            except OSError:
                pass  # the next read or write sees it

    # -- its end ------------------------------------------------------------------------------------------------------

    def _broken(self, text: str, code: int) -> ConnectionResetError:
        """Note an error of the far end, tell it so, and return the error to raise."""
        error = ConnectionResetError(errno.ECONNRESET, text)
        self._failed(error)
        try:
            self._queue_close(code)
            self._flush()
        except OSError:
            pass
        return error

    def _failed(self, error: OSError) -> None:
        if self.error is not None:
            return
        below = self.transport.failure() if self.transport.failure is not None else None
        text = str(below) if below is not None else f"{self.name}: the WebSocket {_how(error)}"
        self.error = WebSocketError(text, reason="target_reset" if self._is_client else "client_reset")

    def on_close(self) -> Callable[[], object] | None:
        """Return what releases the resources under the transport, once the session is over; it may block."""
        on_close, self.transport.on_close = self.transport.on_close, None
        if on_close is None:
            return None
        self._over = threading.Event()
        return release_after(self._over, on_close)

    def end(self, *, reset: bool) -> None:
        """Close the transport."""
        if reset:
            self.transport.reset()
        else:
            self.transport.close()
        if self._over is not None:
            self._over.set()

    def progress(self) -> int:
        """Return a number that changes while bytes leave."""
        return self._moved - self.transport.queued()

    def pending(self) -> int:
        """Return how many bytes wait in this process."""
        beyond = self.transport.unsent
        return len(self.out) + (beyond() if beyond is not None else 0)

    def close(self) -> None:
        """Say that it is closed, and go on in the I/O thread until the far end has; see :meth:`SessionSocket.close`."""
        if self.is_closed:
            return
        self._forget()
        if self.error is None:
            try:
                if self.is_relay and not self.has_ended:
                    self.has_ended = True
                    self._queue(BINARY, END)
                self._queue_close(frames.NORMAL)
                if not self._flush() or not self.far_closed:
                    Farewell(self, self.home)
                    return
                self.expect_no_more()
            except OSError:
                pass  # the connection is lost, or there is no thread or descriptor to wait with
        self.end(reset=False)

    def reset(self) -> None:
        """Tell the far end that the stream is reset, and reset the transport."""
        if self.is_closed:
            return
        self._forget()
        if not self.out and not self.has_closed:
            try:
                if self.is_relay:
                    self._queue(BINARY, RESET)
                self._queue_close(frames.INTERNAL_ERROR)
                self._flush()
            except OSError:
                pass
        self.end(reset=True)

    def expect_no_more(self) -> None:
        """Know that the far end sends nothing any more."""
        if self._session is not None:
            self._session.expect_no_more()

    def move(self, home: Home) -> None:
        """Belong to another thread from now on; called in neither of the two while it uses this."""
        self.home = home
        session = self._session
        if session is not None:
            session.move(home)

    def _forget(self) -> None:
        self.is_closed = True
        self.fileno = _closed
        self._pings.stop()

    def abandon(self) -> None:
        """In a forked child: only close the descriptor."""
        if self._session is not None:
            self._session.abandon()
        else:
            self._inner.close()


def _closed() -> int:
    return -1


def _how(error: OSError) -> str:
    text = error.strerror or str(error)
    return text if text.startswith(("was ", "ended ")) else f"was cut ({text})"


class WebSocketStream(Stream):
    """A stream whose socket is a :class:`WebSocket`."""

    __slots__ = ()

    def __init__(self, session: WebSocket) -> None:
        transport = session.transport
        super().__init__(
            cast("sockets.socket", session),
            half_close=session.is_relay,
            target=session.name,
            failure=lambda: session.error,
            on_close=session.on_close(),
        )
        self.unsent = session.pending
        self.identity, self.tls, self.server_name = transport.identity, transport.tls, transport.server_name
        self.path, self.is_introduced = transport.path, transport.is_introduced

    @property
    def session(self) -> WebSocket:
        """The session."""
        return cast("WebSocket", self.socket)

    def reset(self) -> None:
        """Close so that the far end sees a reset. Idempotent."""
        self.session.reset()
        self.close()


class Farewell:
    """The rest of a closed session: its bytes that are not sent, and the far end's close.

    It stays in the thread of its home, which spares a switch of threads, and goes on in the I/O thread when that ends.

    :param session: the session, which the caller uses no longer.
    :param home: its thread, if this is called there; the I/O thread takes it otherwise.
    :raises OSError: if there is no thread or descriptor left.
    """

    quiet = 10.0  # seconds; see relay.streams.exit_drain.Sender

    def __init__(self, session: WebSocket, home: Home | None = None) -> None:
        self._session = session
        self._is_over = False
        # The I/O thread ends with its last client, which the session may have been: it is asked for anew.
        stays = home is not None and not isinstance(home, IOThread) and home.loop.is_here()
        if stays and home is not None and home.loop.call(self._begin):  # after this turn, whose events are not for this
            home.hold(self)
        else:
            home = IOThread.acquire(self)
            session.move(home)
            stays = False
        self._home = home
        loop = home.loop
        self._timer = Timer(loop.timers, self._look)
        self._watch = Watch(session.transport.socket, loop, self._on_event)
        self._mark = -1
        self._on_sent: Callable[[], object] | None = None
        exit_drain.track(self, level=exit_drain.SESSIONS)
        if not stays:
            loop.call(self._begin)

    def when_sent(self, done: Callable[[], object]) -> bool:
        """Call ``done`` once all has left; see :class:`relay.streams.exit_drain.Sender`."""

        def look() -> None:
            self._on_sent = done
            if self._is_over:
                done()

        return not self._is_over and self._home.loop.call(look)

    def leave(self) -> None:
        """Go on in the I/O thread: that of the home ends."""
        if not self._is_over:
            self._is_over = True  # here
            self._timer.stop()
            self._watch.end()
            self._home.release(self)
            try:
                Farewell(self._session)
            except OSError:
                self._session.end(reset=True)

    def progress(self) -> int:
        """Return how many bytes have left; see :class:`relay.streams.exit_drain.Sender`."""
        return self._session.progress()

    def abandon(self) -> None:
        """In a forked child: only close the descriptor."""
        self._session.abandon()

    def crashed(self, now: float) -> None:
        """A bug in a handler: end it."""
        self._end(reset=True)

    def __repr__(self) -> str:
        return f"the WebSocket stream to {self._session.name}"

    def _begin(self) -> None:
        if self._is_over:
            return
        now = time.monotonic()
        self._timer.start(now + LINGER, now)
        self._on_event(0, now)

    def _look(self, now: float) -> None:
        moved = self._session.progress()
        if moved == self._mark:
            return self._end(reset=True)
        self._mark = moved
        return self._timer.start(now + LINGER, now)

    def _on_event(self, event: int, now: float) -> None:
        if self._is_over:
            return
        session = self._session
        if event & HUP:
            self._watch.hung = True
        try:
            if session.must_flush:
                session.send(_NOTHING)
        except BlockingIOError:
            pass
        except OSError:
            return self._end(reset=True)
        try:
            while session.discard():
                pass
        except BlockingIOError:
            pass
        except OSError:
            return self._end(reset=False)  # the far end is gone
        self._settle()

    def _settle(self) -> None:
        session = self._session
        if session.far_closed and not session.must_flush:
            return self._end(reset=False)
        waits = OUT if session.must_flush and not session.needs_input else 0
        reads = 0 if session.far_closed or session.is_stalled else IN
        self._watch.set_interest(waits | reads)

    def _end(self, *, reset: bool) -> None:
        if self._is_over:
            return
        self._is_over = True
        self._timer.stop()
        self._watch.end()
        if self._session.far_closed:
            self._session.expect_no_more()
        loop, end = self._home.loop, functools.partial(self._session.end, reset=reset)
        if not loop.call(end):  # after this turn, for its events may still come
            end()
        if self._on_sent is not None:
            loop.call(self._on_sent)
        self._home.release(self)
