"""TLS sessions as kernel sockets: the holder of a stream has one end of a socketpair, the session the other one.

A session has two directions. :class:`Outgoing` is what the holder sends:

======== ============================================ ======== ==================================================
state    event                                        next     action
======== ============================================ ======== ==================================================
OPEN     the holder has ended its output              ENDING   encrypt close_notify
ENDING   the transport has taken everything           ENDED    call what waits for that (:meth:`Session.drained`)
ENDED    the holder has closed the stream             SHUT     shut the transport's output down, and wait for the
                                                               far end's end
======== ============================================ ======== ==================================================

:class:`Incoming` is what the far end sends:

======== ============================================ ======== ==================================================
state    event                                        next     action
======== ============================================ ======== ==================================================
OPEN     close_notify                                 ENDING   none
OPEN     data, and the outgoing direction is not OPEN REPLYING pass them on
OPEN     the transport's end, which answers our       ENDING   none
         close_notify (:meth:`Session._is_answered`)
OPEN     any other end of the transport               over     reset the holder: bytes may be missing
REPLYING close_notify                                 ENDING   none
REPLYING the transport's end                          over     reset the holder: the reply may be cut
ENDING   the holder has taken everything              ENDED    pass the end on
======== ============================================ ======== ==================================================

If the outgoing direction is SHUT, every end of the transport counts as close_notify. The session is over when
``Incoming`` is ENDED and everything was sent: both sockets are closed. A reset by the far end, a broken record and an
alert reset the holder; a reset by the holder, and a minute without progress after it has closed the stream, reset the
far end.
"""

from __future__ import annotations

import enum
import errno
import functools
import os
import socket
import ssl
import threading
from collections.abc import Callable

from ...eventloop.background import IOThread, Watch
from ...eventloop.poller import ERR, HUP, IN, OUT
from ...eventloop.sockets import keep_alive
from ...streams import exit_drain
from ...streams.pair_end import LINGER, PairEnd, release_after
from ...streams.stream import Stream
from .records import STEP, Records, TLSError, is_denial


class Outgoing(enum.Enum):
    """The state of what the holder sends."""

    OPEN = "open"
    ENDING = "ending"
    ENDED = "ended"
    SHUT = "shut"


class Incoming(enum.Enum):
    """The state of what the far end sends."""

    OPEN = "open"
    REPLYING = "replying"
    ENDING = "ending"
    ENDED = "ended"


# The look-up of an Enum's member is slow, and these are needed for each event.
_SENDING, _SENT_END = Outgoing.OPEN, Outgoing.ENDED
_RECEIVING, _REPLYING, _RECEIVED_END = Incoming.OPEN, Incoming.REPLYING, Incoming.ENDING


class Session:
    """One TLS session over a transport: in one thread until :meth:`open`, in the background loop's from then on.

    What it holds is bounded: it reads from one side only when it has passed on all that it had read there before.

    :param transport: a stream over a connected, non-blocking socket. The session owns it.
    :param context: the certificates to trust and to show.
    :param peer: the role of the far end, ``client`` or ``target``.
    :param name: the name of the far end, for errors.
    :param servername: as for :class:`Records`.
    :param ticket: a session with the same server to resume, made with the same ``context`` and ``servername``.
    :param heard_first: called in the background loop's thread when the first data have come.
    :raises OSError: if no thread or descriptor is available; the transport stays with the caller.
    """

    def __init__(
        self,
        transport: Stream,
        context: ssl.SSLContext,
        *,
        peer: str,
        name: str,
        servername: str | bytes | None = None,
        ticket: ssl.SSLSession | None = None,
        heard_first: Callable[[ssl.SSLObject], object] | None = None,
    ) -> None:
        self.transport = transport
        self.records = Records(transport.socket, context, servername, ticket)
        self.name = name
        self.error: BaseException | None = None
        self.outgoing, self.incoming = Outgoing.OPEN, Incoming.OPEN
        self.is_over = False  # no session any more
        self.aborted = False  # the holder has reset the stream
        self._peer = peer
        self._heard_first = heard_first
        self._pair: PairEnd | None = None
        self._plain: memoryview | bytes = b""  # what the stream's holder did not take yet
        self._over: threading.Event | None = None
        self._on_drained: Callable[[], object] | None = None
        self._on_finished: Callable[[], object] | None = None
        # From open() on; the last three from the first turn of the loop on, before which nothing calls this:
        self.io_thread: IOThread
        self._receive_plain: Callable[[memoryview], int]
        self._send_plain: Callable[[memoryview | bytes], int]
        self._watch: Watch

    def open(self, watch: Watch | None = None) -> TLSStream:
        """Begin to relay in the background loop's thread, when the handshake is done.

        :param watch: the handshake's watch of the transport, if that is the current thread; it belongs to the session
            from now on. ``None`` in the thread of an engine that goes on no longer.
        :returns: a stream, whose other end is this session's from now on.
        :raises OSError: if there are no descriptors left.
        """
        self.io_thread = IOThread.acquire(self)
        try:
            pair = self._pair = PairEnd(self.io_thread.loop, self._on_inner, self.records.progress, self._expired)
        except OSError:
            self.io_thread.release(self)
            raise
        stream = TLSStream(pair.hand_over(), self)
        exit_drain.track(self, level=exit_drain.SESSIONS)
        if watch is None:
            watch = Watch(self.transport.socket, self.io_thread.loop, self._on_outer)
            self.io_thread.loop.call(functools.partial(self._begin, pair, watch))
        else:
            self._begin(pair, watch)
        return stream

    def closed(self) -> None:
        """Let the resources under the transport go, whose socket is closed."""
        self.is_over = True
        if self._over is not None:
            self._over.set()

    # -- other threads --------------------------------------------------------------------------------------------

    def drained(self, done: Callable[[], object]) -> None:
        """Call a function once the transport has taken all that the holder sent and its end, or never will.

        :param done: called in any thread, perhaps before this returns, perhaps twice; must not block.
        """
        self._on_drained = done  # before the look: the background loop does it in the other order
        if self._is_drained():
            done()

    def _is_drained(self) -> bool:
        return self.is_over or self.outgoing is Outgoing.ENDED or self.outgoing is Outgoing.SHUT

    quiet = 10.0  # seconds; see relay.streams.exit_drain.Sender

    def when_sent(self, done: Callable[[], object]) -> bool:
        """Call ``done`` once what the holder sent has left, and after the far end's end if the holder has closed it."""
        loop = self.io_thread.loop

        def look() -> None:
            self._on_finished = lambda: loop.call(done) or done()  # after this turn, which closes the transport
            self._look_finished()

        return not self.is_over and loop.call(look)

    def progress(self) -> int:
        """Return how many bytes have left; see :class:`relay.streams.exit_drain.Sender`."""
        return self.records.progress()

    def __repr__(self) -> str:
        return f"the TLS stream to {self.name}"

    def wake(self) -> None:
        """Make the background loop look at :attr:`aborted`."""
        if not self.is_over:
            self.io_thread.loop.call(self._look)

    def on_close(self) -> Callable[[], object] | None:
        """Return what releases the resources under the transport, once the session is over; it may block."""
        on_close, self.transport.on_close = self.transport.on_close, None
        if on_close is None:
            return None
        self._over = threading.Event()
        return release_after(self._over, on_close)

    def abandon(self) -> None:
        """In a forked child: only close the descriptors."""
        self.is_over = True
        self.transport.socket.close()
        if self._pair is not None:
            self._pair.abandon()

    def crashed(self, now: float) -> None:
        """A bug in a handler: end both sides by a reset."""
        if not self.is_over:
            self._fail(OSError(errno.EIO, "a bug in relay; the log has it"))

    # -- relaying, in the background loop's thread -----------------------------------------------------------------

    def _begin(self, pair: PairEnd, watch: Watch) -> None:
        self._receive_plain, self._send_plain = pair.socket.recv_into, pair.socket.send
        self._watch = watch
        watch.use(self._on_outer)
        try:
            keep_alive(self.transport.socket)
            if self.records.has_received:
                self._decrypt()
            self._settle()
        except OSError as error:
            self._fail(error)

    def _look(self) -> None:
        """Reset the transport if the holder has reset the stream."""
        if self.aborted and not self.is_over:
            self._end(reset=True)

    def _on_outer(self, event: int, now: float) -> None:
        watch = self._watch
        try:
            if event & HUP:
                watch.hung = True
            if watch.mask & IN:
                if event & (IN | HUP | ERR):
                    self._receive()
            elif event & ERR and (number := self.transport.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)):
                raise OSError(number, os.strerror(number))
            if event & OUT:
                self.records.flush()
            self._settle()
        except OSError as error:
            self._fail(error)

    def _on_inner(self, event: int, now: float) -> None:
        pair = self._pair
        assert pair is not None
        if self.aborted:
            return self._end(reset=True)
        try:
            if event & HUP:
                pair.gone = pair.watch.hung = True
            if event & OUT:
                self._deliver()
            if event & (IN | HUP | ERR) and pair.watch.mask & IN:
                self._encrypt()
            self._settle()
        except OSError as error:
            self._fail(error)
        if pair.gone and not self.is_over:
            pair.expect_progress(now)

    def _encrypt(self) -> None:
        """Move what the holder sent, or its end, towards the transport."""
        view = self.io_thread.buffer[:STEP]
        try:
            length = self._receive_plain(view)
        except BlockingIOError:
            return
        if length:
            self.records.write(view[:length])
        elif self.aborted:
            raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
        else:
            self.outgoing = Outgoing.ENDING
            self.records.send_end()
        self.records.flush()

    def _receive(self) -> None:
        """Move what the far end sent towards the holder."""
        try:
            length = self.records.receive(self.io_thread.buffer)
        except BlockingIOError:
            return
        if length:
            self._decrypt()
        else:
            self.transport_ended()

    def transport_ended(self) -> None:
        """Take an end without close_notify, if it answers ours: nginx, for one, sends none to a client that has.

        It does only if the far end had read our close_notify (else its kernel would not have acknowledged it, or would
        have sent a reset) and has sent nothing since: a late reply that was cut is a failure.

        :raises TLSError: for any other end.
        """
        records, is_ours = self.records, self.outgoing is not _SENDING
        is_answer = is_ours and self.incoming is _RECEIVING and records.held is None and not records.unsent()
        if not is_answer and self.outgoing is not Outgoing.SHUT:
            raise self._cut("ended without close_notify: bytes may be missing")
        self.incoming = Incoming.ENDING

    def _decrypt(self) -> None:
        """Decrypt all that has come and pass it on."""
        buffer = self.io_thread.buffer
        if length := self.decrypt(buffer):
            self._plain = buffer[:length]
            self._deliver()
            if self._plain:
                # A copy: the buffer belongs to the next handler of the thread.
                self._plain = memoryview(bytes(self._plain))

    def decrypt(self, buffer: memoryview) -> int:
        """Decrypt all that has come, and return how many bytes that is."""
        length, is_end = self.records.decrypt(buffer)
        if is_end:
            self.incoming = Incoming.ENDING
        elif length and self.outgoing is not _SENDING:
            self.incoming = Incoming.REPLYING
        if length and self._heard_first is not None:
            self._heard_first(self.records.tls)
            self._heard_first = None
        return length

    def _deliver(self) -> None:
        try:
            self._plain = self._plain[self._send_plain(self._plain) :]
        except BlockingIOError:
            pass

    def _settle(self) -> None:
        """Pass ends on, and wait for what can be done next."""
        records, pair = self.records, self._pair
        assert pair is not None
        if self.incoming is _RECEIVED_END and not self._plain:
            self.incoming = Incoming.ENDED
            pair.socket.shutdown(socket.SHUT_WR)
        is_sending, waits = self.outgoing is _SENDING, records.cipher or records.held is not None
        if not is_sending and not waits:
            if self.outgoing is Outgoing.ENDING:
                self.outgoing = _SENT_END
                self._call_drained()
            if self.incoming is Incoming.ENDED:
                return self._end(reset=False)
            if pair.gone and self.outgoing is _SENT_END:
                # Closing at once would reset the connection, and lose what was sent, if a ticket is on its way here:
                # wait for the far end's end, as the kernel does for TCP.
                self.outgoing = Outgoing.SHUT
                self.transport.socket.shutdown(socket.SHUT_WR)
        # What OpenSSL answers by itself (to a flood of key updates) must go out before more is read.
        receives = self.incoming is _RECEIVING or self.incoming is _REPLYING
        if self._plain or (records.cipher and records.has_reply):
            receives = False
        self._watch.set_interest((IN if receives else 0) | (OUT if records.cipher else 0))
        pair.watch.set_interest((IN if is_sending and not waits else 0) | (OUT if self._plain else 0))
        if self._on_finished is not None:
            self._look_finished()

    def _look_finished(self) -> None:
        if self._on_finished is not None and (self.is_over or not self._has_pending()):
            self._on_finished()

    def _has_pending(self) -> bool:
        """Return whether the transport has not all that the holder sent, and its end."""
        pair = self._pair
        assert pair is not None
        if pair.gone:
            return True
        if self.records.cipher or self.records.held is not None or self.outgoing is not Outgoing.OPEN:
            return bool(self.records.cipher) or self.records.held is not None
        try:
            pair.socket.recv(1, socket.MSG_PEEK)
        except OSError:
            return False
        return True

    def _call_drained(self) -> None:
        if self._on_drained is not None:
            self._on_drained()

    # -- its end --------------------------------------------------------------------------------------------------

    def _expired(self, now: float) -> None:
        if not self._is_drained():
            self.error = self._cut(f"was given up: the far end took nothing for {LINGER:g} s")
        self._end(reset=True)

    def _cut(self, how: str, reason: str | None = None) -> TLSError:
        return TLSError(f"{self.name}: the TLS session {how}", reason=reason or f"{self._peer}_reset")

    def _fail(self, error: OSError) -> None:
        """End both sides by a reset; the error is there before the holder can see the end."""
        # A peer that rejects this one sends an alert and resets at once: the alert is still in the buffer, and says
        # why.
        if not isinstance(error, (ssl.SSLError, TLSError)) and self._watch.mask & IN:
            error = self._last_words() or error
        self.explain(error)
        self._end(reset=True)

    def explain(self, error: OSError) -> None:
        """Set :attr:`error` to what a failure means."""
        if isinstance(error, ssl.SSLError):
            self.records.send_alert()
            self.error = self._cut(f"failed ({error.reason})", "denied" if is_denial(error) else None)
        elif isinstance(error, TLSError):
            self.error = TLSError(str(error), reason=error.reason)  # the traceback of the other one refers to this
        else:
            self.error = self._cut(f"was cut ({error.strerror})")
        if self.transport.failure is not None:
            self.error = self.transport.failure() or self.error

    def _last_words(self) -> OSError | None:
        """Pass on what the far end said before it reset, and return the alert if there is one."""
        try:
            self._receive()
        except OSError as error:
            return error
        return None

    def _end(self, *, reset: bool) -> None:
        loop, pair = self.io_thread.loop, self._pair
        assert pair is not None
        self._watch.end()
        pair.end(reset=reset)
        del self._watch  # it refers to the session
        if reset:
            loop.call(self.transport.reset)  # after this turn, as with discard
        else:
            loop.discard(self.transport.socket)
        was_drained = self._is_drained()
        self.is_over = True
        if not was_drained:
            self._call_drained()
        self._look_finished()
        self.closed()
        self.io_thread.release(self)


class TLSStream(Stream):
    """A stream whose socket is one end of a socketpair; a TLS session moves the bytes of the other one."""

    __slots__ = ("_session",)

    def __init__(self, sock: socket.socket, session: Session) -> None:
        super().__init__(sock, target=session.name, failure=lambda: session.error, on_close=session.on_close())
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
