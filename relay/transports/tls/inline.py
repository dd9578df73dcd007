"""TLS sessions in the thread of an engine, which reads and writes them as it does sockets: no thread and no socketpair.

The states are those of :mod:`relay.transports.tls.session`, with the engine as the holder. A session that the engine
closes before the far end has ended, or while something waits to be sent, goes on in the background loop.
"""

from __future__ import annotations

import errno
import functools
import os
import socket as sockets
import ssl
from typing import cast

from ...eventloop.background import Home
from ...streams.session_socket import SessionSocket
from ...streams.stream import Stream
from .session import Incoming, Outgoing, Session

_SENDING, _ENDING, _ENDED = Outgoing.OPEN, Outgoing.ENDING, Outgoing.ENDED
_RECEIVED_END = Incoming.ENDING


class InlineStream(Stream):
    """A stream whose socket is an :class:`InlineSocket`."""

    __slots__ = ("_session",)

    def __init__(self, session: Session, home: Home) -> None:
        super().__init__(
            cast("sockets.socket", InlineSocket(session, home)),
            target=session.name,
            failure=lambda: session.error,
            on_close=session.on_close(),
        )
        self._session = session
        self.unsent = lambda: len(session.records.cipher) + len(session.records.held or b"")

    def reset(self) -> None:
        """Close so that the TLS peer sees a reset, and neither close_notify nor an end of file. Idempotent."""
        session = self._session
        if self.socket.fileno() < 0:  # closed; perhaps it goes on in the background loop
            session.aborted = True
            session.wake()
        elif not session.is_over:
            cast("InlineSocket", self.socket).reset()
        self.close()


class InlineSocket(SessionSocket):
    """A session as its engine sees it.

    :param session: whose handshake is done.
    :param home: the thread of the engine.
    """

    __slots__ = ("has_input", "_had_alert", "_home", "_owed", "_session")

    def __init__(self, session: Session, home: Home) -> None:
        super().__init__(session.transport.socket)
        self.has_input: bool = session.records.has_received  # such as data that came with the end of the handshake
        self._session = session
        self._home = home
        self._had_alert = False
        self._owed = 0  # bytes that are encrypted, but that the transport has not taken

    @property
    def must_flush(self) -> bool:
        """``True`` if bytes wait, encrypted or not."""
        return bool(self._session.records.cipher) or self._session.records.held is not None

    @property
    def needs_input(self) -> bool:
        """``True`` if they wait for the rest of a message, such as a long ticket."""
        return self._session.records.held is not None and not self._session.records.cipher

    @property
    def is_stalled(self) -> bool:
        """``True`` if the next answer of OpenSSL waits behind them: a flood of key updates must not fill the memory."""
        records = self._session.records
        return bool(records.cipher) and records.has_reply

    def recv(self, size: int, flags: int = 0, /) -> bytes | memoryview:
        """Receive and decrypt; see :meth:`SessionSocket.recv`."""
        if flags and flags & sockets.MSG_PEEK:  # an Enum's member is slow
            return self._session.transport.socket.recv(size, flags)
        try:
            return self._receive()
        except BlockingIOError:
            raise
        except OSError as error:
            self._failed(error)
            raise

    def _receive(self) -> bytes | memoryview:
        session, buffer = self._session, self._home.buffer
        is_here, self.has_input = self.has_input, False
        if session.incoming is _RECEIVED_END:
            return b""
        if not is_here and not session.records.receive(buffer):
            session.transport_ended()
            return b""
        if length := session.decrypt(buffer):
            self.has_input = session.incoming is _RECEIVED_END
            return buffer[:length]
        if session.incoming is _RECEIVED_END:
            return b""
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    def send(self, data: bytes | memoryview, flags: int = 0, /) -> int:
        """Encrypt and send; see :meth:`SessionSocket.send`."""
        try:
            return self._send(data)
        except BlockingIOError:
            raise
        except OSError as error:
            self._failed(error)
            raise

    def _send(self, data: bytes | memoryview) -> int:
        size, owed = len(data), self._owed
        if owed or self.must_flush:
            if not self._flush():
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            self._owed = 0
            data = memoryview(data)[owed:]
        if owed < size:
            self._session.records.write(data)
            if not self._flush():
                # It was encrypted, and cannot be taken back: reported as not sent, the same bytes come again and are
                # skipped then.
                self._owed = size - owed
                if owed:
                    return owed
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return size

    def shutdown(self, how: int, /) -> None:
        """Send close_notify, or begin to."""
        session = self._session
        if session.outgoing is _SENDING:
            session.outgoing = _ENDING
            try:
                session.records.send_end()
                self._flush()
            except OSError as error:
                self._failed(error)
                raise

    def _flush(self) -> bool:
        """Send what is encrypted; return whether the transport has taken all of it."""
        session = self._session
        if not session.records.flush() or session.records.held is not None:
            return False
        if session.outgoing is _ENDING:
            session.outgoing = _ENDED
        return True

    def _failed(self, error: OSError) -> None:
        # The first failure is the cause, unless the far end has sent an alert before it hung up.
        is_alert = isinstance(error, ssl.SSLError)
        if self._session.error is None or (is_alert and not self._had_alert):
            self._had_alert = is_alert
            self._session.explain(error)

    def close(self) -> None:
        """Send close_notify, and close; see :meth:`SessionSocket.close`."""
        if self.fileno is _closed:
            return
        session = self._session
        if not session.is_over:
            self._end(session)
        self._forget()

    def _end(self, session: Session) -> None:
        try:
            self.shutdown(sockets.SHUT_WR)
            if self.must_flush or session.incoming is not _RECEIVED_END:
                session.open().close()  # as its holder would
                return
        except OSError:
            pass  # the connection is lost, or there is no descriptor left to wait with
        session.transport.socket.close()
        session.closed()

    def reset(self) -> None:
        """Reset the transport, after this turn of the loop: no event of it may meet a new socket's number."""
        session, loop = self._session, self._home.loop
        session.is_over = True
        self._forget()
        reset = functools.partial(_reset, session)
        if not (loop.is_here() and loop.call(reset)):
            reset()

    def expect_no_more(self) -> None:
        """Know that the far end sends nothing any more, as the protocol in this session says."""
        self._session.incoming = _RECEIVED_END

    def move(self, home: Home) -> None:
        """Belong to another thread from now on; called while neither of the two uses this."""
        self._home = home

    def _forget(self) -> None:
        # The record of a connection keeps its socket for a while, and a session has 50 KB.
        self.fileno = _closed
        del self._session

    def abandon(self) -> None:
        """In a forked child: only close the descriptor."""
        if self.fileno is not _closed:
            self._session.abandon()


def _reset(session: Session) -> None:
    session.transport.reset()
    session.closed()


def _closed() -> int:
    return -1
