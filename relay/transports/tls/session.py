"""TLS sessions as kernel sockets: one end of a socketpair for whoever relays, the other one for the session.

``ssl.SSLSocket`` cannot half-close. ``ssl.SSLObject`` over two memory buffers can: close_notify ends one direction
alone (RFC 8446, section 6.1), with TLS 1.2 too.
"""

from __future__ import annotations

import atexit
import errno
import math
import os
import socket
import ssl
import threading
import time
import weakref
from collections.abc import Callable

from ...errors import RelayError
from ...eventloop.background import BUFFER, Pump, Watch
from ...eventloop.loop import Timer
from ...eventloop.poller import ERR, HUP, IN, OUT
from ...eventloop.sockets import keep_alive, set_to_reset, unsent
from ...eventloop.unix_reset import socketpair
from ...streams.stream import Stream

__all__ = ["Session", "TLSError", "TLSStream", "is_denial"]

_RECORD = 18 << 10  # bytes; more than the longest record, header included (RFC 5246, section 6.2.3)
_STEP = BUFFER - _RECORD  # bytes to receive at once; with a record that was incomplete, they fit decrypted
_DENIALS = ("CERTIFICATE", "UNKNOWN_CA", "ACCESS_DENIED", "HANDSHAKE_FAILURE")
_BETWEEN = 256 << 10  # bytes on their way to a holder who does not read; Linux doubles it, so that a step fits
_AT_EXIT = 10.0  # seconds that the interpreter's exit waits for what was sent
_LINGER = 60.0  # seconds without progress until a session that nobody holds any more gives up


class TLSError(RelayError):
    """A TLS session that was cut: by a reset, an end without close_notify, a broken record or an alert.

    :param message: what happened, and at whose end.
    :param reason: the word for it in a connection's record: ``client_reset``, ``target_reset`` or ``denied``.
    """

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class TLSStream(Stream):
    """A stream whose socket is one end of a socketpair; a TLS session moves the bytes of the other one."""

    __slots__ = ("_session",)

    def __init__(self, socket: socket.socket, session: Session) -> None:
        super().__init__(socket, target=session.name, failure=lambda: session.error, on_close=session.on_close())
        self._session = session
        self.unsent = session.unsent
        self.drained = session.drained

    def reset(self) -> None:
        """Close so that the TLS peer sees a reset, and neither close_notify nor an end of file. Idempotent."""
        # The session is told before it can see the end: a closed socketpair alone looks like a clean one.
        self._session.aborted = True
        self.socket.close()
        self._session.wake()
        self.close()


class Session:
    """One TLS session over a transport: in one thread until :meth:`open`, in the pump's from then on.

    What it holds is bounded: it reads from one side only when it has passed on all that it had read there before.

    :param transport: a stream over a connected, non-blocking socket. The session owns it.
    :param context: what to trust and to show.
    :param peer: ``client`` or ``target``: who is at the far end.
    :param name: the name of the far end, for errors.
    :param servername: what the certificate of a server must be for; ``None`` if this is the server.
    :param ticket: a session with the same server to take up again, made with the same ``context`` and ``servername``.
    :param heard_first: called in the pump's thread when the first data have come.
    :raises OSError: if there is no thread or descriptor to be had; the transport stays with the caller.
    """

    def __init__(
        self,
        transport: Stream,
        context: ssl.SSLContext,
        *,
        peer: str,
        name: str,
        servername: str | None = None,
        ticket: ssl.SSLSession | None = None,
        heard_first: Callable[[ssl.SSLObject], object] | None = None,
    ) -> None:
        self.transport = transport
        self.name = name
        self.begun = False  # whether the far end has said something
        self.error: BaseException | None = None
        self.aborted = False
        self._peer = peer
        self._heard_first = heard_first
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(
            self._incoming, self._outgoing, server_side=servername is None, server_hostname=servername, session=ticket
        )
        self._outer = transport.socket
        self._inner: socket.socket | None = None
        self._cipher: memoryview | bytes = b""  # what the transport did not take yet
        self._plain: memoryview | bytes = b""  # what the stream's holder did not take yet
        self._sent_end = self._got_end = self._told_end = False  # close_notify out; in; passed on to the holder
        self._heard = self._ended = False  # data since our close_notify; no session any more
        self._gone = self._left = False  # the holder has closed the stream; the far end was told
        self._over: threading.Event | None = None
        self._drained = False  # the transport has all that the holder sent, or there is no session any more
        self._told_drained: Callable[[], object] | None = None
        self._told_finished: Callable[[], object] | None = None
        self._moved = 0
        self._mark = -1  # what had arrived at the last look

    # -- the handshake --------------------------------------------------------------------------------------------

    def handshake(self, readable: bool) -> int:
        """Take the handshake as far as it goes without waiting.

        :param readable: whether the transport can be read.
        :returns: the event to wait for before the next call; 0 when it is done.
        :raises ssl.SSLError: if it failed; the peer is told why.
        :raises OSError: if the connection was lost.
        """
        if readable:
            try:
                received = self._outer.recv(_RECORD)
            except BlockingIOError:
                return IN
            if not received:
                raise ConnectionAbortedError(errno.ECONNABORTED, "the connection was closed during the handshake")
            self.begun = True
            self._incoming.write(received)
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return IN if self._flush() else OUT
        except ssl.SSLError:
            self._say_why()
            raise
        self._flush()
        return 0

    def open(self, watch: Watch) -> TLSStream:
        """Begin to relay; in the pump's thread, when the handshake is done.

        :param watch: what the handshake waited with for the transport; it belongs to the session from now on.
        :returns: a stream, whose other end is this session's from now on.
        :raises OSError: if there are no descriptors left.
        """
        inner, theirs = socketpair()
        inner.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BETWEEN)
        stream = TLSStream(theirs, self)
        self.pump = Pump.hold(self)
        _open.add(self)
        self._begin(inner, watch)
        return stream

    # -- other threads --------------------------------------------------------------------------------------------

    def unsent(self) -> int:
        """Bytes that wait for the far end, encrypted."""
        return len(self._cipher) + unsent(self._outer)

    def drained(self, told: Callable[[], object]) -> None:
        """Have a function called once the transport has all that the holder sent and its end, or never will.

        :param told: called in any thread, perhaps before this returns, perhaps twice; must not block.
        """
        self._told_drained = told  # before the look: the pump does it in the other order
        if self._drained:
            told()

    def finish(self, seconds: float) -> None:
        """Wait until what the holder sent has left, and for the far end's end if the holder has closed the stream.

        :param seconds: to wait at most.
        """
        finished = threading.Event()

        def look() -> None:
            self._told_finished = finished.set
            self._look_finished()

        if not self._ended and self.pump.loop.call(look):
            finished.wait(seconds)

    def wake(self) -> None:
        """Have :attr:`aborted` looked at."""
        if not self._ended:
            self.pump.loop.call(self._look)

    def on_close(self) -> Callable[[], object] | None:
        """What lets go of what is under the transport, once the session has no need of it; may block."""
        on_close, self.transport.on_close = self.transport.on_close, None
        if on_close is None:
            return None

        over = self._over = threading.Event()

        def wait() -> None:
            over.wait(2 * _LINGER)
            on_close()

        return wait

    def abandon(self) -> None:
        """In a forked child: close the descriptors and nothing else."""
        self._ended = True
        self._outer.close()
        if self._inner is not None:
            self._inner.close()

    def crashed(self, now: float) -> None:
        """A bug in a handler: end both sides by a reset."""
        if not self._ended:
            self._fail(OSError(errno.EIO, "a bug in relay; the log has it"))

    # -- relaying, in the pump's thread ---------------------------------------------------------------------------

    def _begin(self, inner: socket.socket, watch: Watch) -> None:
        self._inner = inner
        self._receive_plain, self._send_plain, self._end_plain = inner.recv_into, inner.send, inner.shutdown
        self._timer = Timer(self.pump.loop.timers, self._expired)
        self._inner_watch = Watch(inner, self.pump.loop, self._on_inner)
        self._outer_watch = watch
        watch.use(self._on_outer)
        try:
            keep_alive(self._outer)
            if self._incoming.pending:  # data have come with the end of the handshake
                self._decrypt()
            self._settle(0.0)
        except OSError as error:
            self._fail(error)

    def _look(self) -> None:
        """Reset the transport if whoever held the stream wants no clean end."""
        if self.aborted and not self._ended:
            self._end(cut=True)

    def _on_outer(self, event: int, now: float) -> None:
        try:
            if event & HUP:
                self._outer_watch.hung = True
            if self._outer_watch.mask & IN:
                if event & (IN | HUP | ERR):
                    self._receive()
            elif event & ERR and (number := self._outer.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)):
                raise OSError(number, os.strerror(number))
            if event & OUT:
                self._flush()
            self._settle(now)
        except OSError as error:
            self._fail(error)

    def _on_inner(self, event: int, now: float) -> None:
        if self.aborted:
            return self._end(cut=True)
        try:
            if event & HUP:
                self._gone = self._inner_watch.hung = True
            if event & OUT:
                self._deliver()
            if event & (IN | HUP | ERR) and self._inner_watch.mask & IN:
                self._encrypt()
            self._settle(now)
        except OSError as error:
            self._fail(error)

    def _encrypt(self) -> None:
        """Move what the holder sent, or its end, towards the transport."""
        view = self.pump.buffer[:_STEP]
        try:
            length = self._receive_plain(view)
        except BlockingIOError:
            return
        if length:
            self._tls.write(view[:length])
        elif self.aborted:
            raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
        else:
            self._send_end()
        self._flush()

    def _send_end(self) -> None:
        # Once, and only when no whole record waits to be read: OpenSSL would take it for an error. What the peer still
        # sends can be read as before.
        self._sent_end = True
        try:
            self._tls.unwrap()
        except ssl.SSLWantReadError:
            pass

    def _flush(self) -> bool:
        """Send what is encrypted; returns whether all of it went."""
        while cipher := self._cipher or self._outgoing.read():
            try:
                sent = self._outer.send(cipher)
            except BlockingIOError:
                sent = 0
            self._moved += sent
            if sent < len(cipher):
                self._cipher = memoryview(cipher)[sent:]
                return False
            self._cipher = b""
        return True

    def _receive(self) -> None:
        """Move what the far end sent towards the holder."""
        view = self.pump.buffer[:_STEP]
        try:
            length = self._outer.recv_into(view)
        except BlockingIOError:
            return
        if length:
            self._incoming.write(view[:length])
            self._decrypt()
        elif self._left or self._is_answered():
            self._got_end = True
        else:
            raise self._cut("ended without close_notify: bytes may be missing")

    def _is_answered(self) -> bool:
        """Whether this end, without close_notify, answers ours: nginx, among others, sends none to a client that has.

        It does only if the far end had read our close_notify (else its kernel would not have acknowledged it, or would
        have sent a reset) and has said nothing since: a late reply that was cut is a failure.
        """
        if not self._sent_end or self._cipher or self._heard:
            return False
        return not unsent(self._outer)

    def _decrypt(self) -> None:
        """Decrypt all that has come and pass it on."""
        buffer, length = self.pump.buffer, 0
        read: Callable[[int, memoryview], int] = self._tls.read  # type: ignore[assignment]
        try:
            while count := read(BUFFER, buffer[length:]):
                length += count
            self._got_end = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:  # the same, after our own close_notify
            self._got_end = True
        if self._outgoing.pending:
            self._flush()
        if length:
            self._heard = self._sent_end
            if self._heard_first is not None:
                self._heard_first(self._tls)
                self._heard_first = None
            self._plain = buffer[:length]
            self._deliver()
            if self._plain:
                self._plain = memoryview(bytes(self._plain))

    def _deliver(self) -> None:
        try:
            self._plain = self._plain[self._send_plain(self._plain) :]
        except BlockingIOError:
            pass

    def _settle(self, now: float) -> None:
        """Pass ends on, and wait for what can be done next."""
        if self._got_end and not self._plain and not self._told_end:
            self._told_end = True
            self._end_plain(socket.SHUT_WR)
        if self._sent_end and not self._cipher:
            self._tell_drained()
            if self._told_end:
                return self._end(cut=False)
            if self._gone and not self._left:
                # Closing at once would reset the connection, and lose what was sent, if a ticket is on its way here:
                # wait for the far end's end, as the kernel does for TCP.
                self._left = True
                self._outer.shutdown(socket.SHUT_WR)
        if self._gone and self._timer.due == math.inf:
            self._timer.start(now + _LINGER, now)
        # What OpenSSL answers by itself (to a flood of key updates) must go out before more is read.
        idle = self._plain or self._got_end or (self._cipher and self._outgoing.pending)
        self._outer_watch.want((0 if idle else IN) | (OUT if self._cipher else 0))
        self._inner_watch.want((0 if self._cipher or self._sent_end else IN) | (OUT if self._plain else 0))
        if self._told_finished is not None:
            self._look_finished()

    def _look_finished(self) -> None:
        if self._told_finished is not None and (self._ended or not (self._gone or self._has_pending())):
            self._told_finished()

    def _has_pending(self) -> bool:
        """Whether the transport has not all that the holder sent, and its end."""
        if self._cipher or self._sent_end:
            return bool(self._cipher)
        assert self._inner is not None
        try:
            self._inner.recv(1, socket.MSG_PEEK)
        except OSError:
            return False
        return True

    def _tell_drained(self) -> None:
        if not self._drained:
            self._drained = True
            if self._told_drained is not None:
                self._told_drained()

    # -- its end --------------------------------------------------------------------------------------------------

    def _expired(self, now: float) -> None:
        moved = self._moved - self.unsent()  # also what leaves the kernel for a slow far end
        if moved == self._mark:
            if not self._drained:
                self.error = self._cut(f"was given up: the far end took nothing for {_LINGER:g} s")
            return self._end(cut=True)
        self._mark = moved
        self._timer.start(now + _LINGER, now)

    def _cut(self, how: str) -> TLSError:
        return TLSError(f"{self.name}: the TLS session {how}", reason=f"{self._peer}_reset")

    def _fail(self, error: OSError) -> None:
        """End both sides by a reset; the error is there before the holder can see the end."""
        if not isinstance(error, (ssl.SSLError, TLSError)) and self._outer_watch.mask & IN:
            error = self._last_words() or error
        if isinstance(error, ssl.SSLError):
            self._say_why()
            self.error = self._cut(f"failed ({error.reason})")
            if is_denial(error):
                self.error.reason = "denied"
        elif isinstance(error, TLSError):
            self.error = error
        else:
            self.error = self._cut(f"was cut ({error.strerror})")
        if self.transport.failure is not None:
            self.error = self.transport.failure() or self.error
        self._end(cut=True)

    def _last_words(self) -> OSError | None:
        """Pass on what the far end said before it reset, and return the alert if there is one."""
        try:
            self._receive()
        except OSError as error:
            return error
        return None

    def _say_why(self) -> None:
        """Send the alert of a failure, as far as that needs no waiting."""
        try:
            self._flush()
        except OSError:
            pass  # the connection is lost as well

    def _end(self, *, cut: bool) -> None:
        loop, inner = self.pump.loop, self._inner
        assert inner is not None
        self._timer.stop()
        self._inner_watch.end()
        self._outer_watch.end()
        del self._timer, self._inner_watch, self._outer_watch  # they refer to the session
        if cut:
            set_to_reset(inner)
        loop.discard(inner)
        if cut:
            loop.call(self.transport.reset)  # after this turn, as with discard
        else:
            loop.discard(self._outer)
        self._ended = True
        self._tell_drained()
        self._look_finished()
        if self._over is not None:
            self._over.set()
        self.pump.let_go(self)


_open: weakref.WeakSet[Session] = weakref.WeakSet()


@atexit.register
def _finish_all() -> None:
    """At the interpreter's exit: a kernel socket would send on what a program has sent, but the pump ends with it."""
    until = time.monotonic() + _AT_EXIT
    for session in tuple(_open):
        session.finish(max(0.0, until - time.monotonic()))


def is_denial(error: ssl.SSLError) -> bool:
    """Whether a TLS peer said that it does not want this one (the alerts of RFC 8446, section 6.2)."""
    reason = error.reason or ""
    return "ALERT" in reason and any(word in reason for word in _DENIALS)
