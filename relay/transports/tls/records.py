"""The records of one TLS connection: ``ssl.SSLObject`` between two memory buffers, and the transport's socket.

``ssl.SSLSocket`` cannot half-close. ``ssl.SSLObject`` over two memory buffers can: close_notify ends one direction
alone (RFC 8446, section 6.1), with TLS 1.2 too.
"""

from __future__ import annotations

import errno
import socket
import ssl
from collections.abc import Callable

from ...errors import RelayError
from ...eventloop.background import BUFFER
from ...eventloop.poller import IN, OUT
from ...eventloop.sockets import unsent
from .client_hello import LONGEST, server_name_of

_RECORD = 18 << 10  # bytes; more than the longest record, header included (RFC 5246, section 6.2.3)
STEP = BUFFER - _RECORD  # bytes to receive at once; with a record that was incomplete, they fit decrypted
_DENIALS = ("CERTIFICATE", "UNKNOWN_CA", "ACCESS_DENIED", "HANDSHAKE_FAILURE")


class TLSError(RelayError):
    """A TLS session that was cut: by a reset, an end without close_notify, a broken record or an alert.

    :param message: what happened, and at which end.
    :param reason: the word for it in a connection's record: ``client_reset``, ``target_reset`` or ``denied``.
    """

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


def is_denial(error: ssl.SSLError) -> bool:
    """Return whether a TLS peer rejects this one (the alerts of RFC 8446, section 6.2)."""
    reason = error.reason or ""
    return "ALERT" in reason and any(word in reason for word in _DENIALS)


def decrypt(tls: ssl.SSLObject, incoming: ssl.MemoryBIO, buffer: memoryview) -> tuple[int, bool]:
    """Decrypt all that has come.

    :param incoming: what has come and is not decrypted.
    :param buffer: takes it; with :data:`STEP` bytes received at once, it is large enough.
    :returns: how many bytes that were, and whether close_notify came behind them.
    :raises ssl.SSLError: if a record is broken, or is an alert.
    """
    read: Callable[[int, memoryview], int] = tls.read  # type: ignore[assignment]
    length = 0
    try:
        while count := read(BUFFER, buffer[length:]):
            length += count
            if not incoming.pending:  # the common case, without the cost of an exception
                return length, False
    except ssl.SSLWantReadError:
        return length, False
    except ssl.SSLZeroReturnError:  # as an empty read, after our own close_notify
        pass
    return length, True


class Records:
    """The encrypted data of one transport, in both directions; the states of a stream are in :mod:`.states`.

    :param transport: a connected, non-blocking socket, which stays with the caller.
    :param context: the certificates to trust and to show.
    :param servername: the name that the server's certificate must be for, as :mod:`ssl` takes it, faster as ``bytes``;
        ``None`` if this is the server.
    :param ticket: a session to resume, made with the same ``context`` and ``servername``.
    """

    __slots__ = (
        "begun", "cipher", "held", "moved", "server_name", "tls", "_ends", "_hello", "_incoming", "_most", "_outgoing",
        "_received", "_step", "_transport",
    )  # fmt: skip

    def __init__(
        self,
        transport: socket.socket,
        context: ssl.SSLContext,
        servername: str | bytes | None = None,
        ticket: ssl.SSLSession | None = None,
    ) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(
            self._incoming, self._outgoing, server_side=servername is None, server_hostname=servername, session=ticket
        )
        self._transport = transport
        self.begun = False
        """Whether the far end has sent something."""
        self.cipher: memoryview | bytes = b""
        """What the transport has not taken yet."""
        self.moved = 0
        """Bytes that the transport has taken."""
        self.held: bytes | None = None
        """What cannot be encrypted before the far end has sent the rest of a message; ``None`` if nothing waits so."""
        self.server_name: str | None = None
        """The name that the client asks for, if this is the server; it is only what the client says."""
        self._hello = b"" if servername is None else None  # what the client has sent before the server's first answer
        self._ends = False  # close_notify waits behind that
        self._received = 0  # bytes, since the last decrypt()
        self._step = _RECORD  # bytes to receive at once
        self._most = STEP  # the largest step

    def handshake(self, readable: bool) -> int:
        """Take the handshake as far as it goes without waiting.

        :param readable: whether the transport can be read.
        :returns: the event to wait for before the next call; 0 when it is done.
        :raises ssl.SSLError: if it failed; the alert has been sent.
        :raises OSError: if the connection was lost.
        """
        if readable:
            try:
                received = self._transport.recv(_RECORD)
            except BlockingIOError:
                return IN
            if not received:
                raise ConnectionAbortedError(errno.ECONNABORTED, "the connection was closed during the handshake")
            self.begun = True
            self._incoming.write(received)
            if self._hello is not None:
                self._hello = self._hello + received if len(self._hello) < LONGEST else None
        try:
            self.tls.do_handshake()
        except ssl.SSLWantReadError:
            if self._hello and self._outgoing.pending:  # OpenSSL has taken the first message
                self.server_name, self._hello = server_name_of(self._hello), None
            return IN if self.flush() else OUT
        except ssl.SSLError:
            # The peer's error then says why; without it the peer would only see a lost connection.
            self.send_alert()
            raise
        self.flush()
        return 0

    @property
    def has_received(self) -> bool:
        """``True`` if there is something to decrypt, such as data that came with the end of the handshake."""
        return bool(self._incoming.pending)

    @property
    def has_reply(self) -> bool:
        """``True`` if OpenSSL has something to send by itself."""
        return bool(self._outgoing.pending)

    def receive(self, buffer: memoryview) -> int:
        """Receive from the transport.

        :param buffer: of :data:`BUFFER` bytes, used in between.
        :returns: how many bytes; 0 at the end of file.
        :raises OSError: if the connection is lost; :class:`BlockingIOError` if there is nothing.
        """
        length = self._received = self._transport.recv_into(buffer, self._step)
        if length:
            self._incoming.write(buffer[:length])
        return length

    def decrypt(self, buffer: memoryview) -> tuple[int, bool]:
        """Decrypt all that has come, and answer it as far as the transport takes that; see :func:`decrypt`.

        :raises OSError: if the connection is lost, too.
        """
        length, is_end = decrypt(self.tls, self._incoming, buffer)
        # Data, and not messages of TLS itself: only then does a larger step pay.
        if length * 2 >= self._received:
            if self._step < self._most:
                self._step = min(2 * self._step, self._most)
        elif self._received > _RECORD:
            # A tenth of a megabyte of key updates takes OpenSSL 100 ms, in which the thread serves no other peer.
            self._step = self._most = _RECORD
        if self.held is not None:
            self._resume()
        if self._outgoing.pending:
            self.flush()
        return length, is_end

    def write(self, data: bytes | memoryview) -> None:
        """Encrypt. A message that has come in part, such as a long ticket, keeps the data in :attr:`held`.

        :raises ssl.SSLError: if the session has failed.
        """
        try:
            self.tls.write(data)
        except ssl.SSLWantReadError:  # OpenSSL finishes the message first
            self.held = bytes(data)

    def send_end(self) -> None:
        """Encrypt close_notify, behind what is held.

        Once, and only when no whole record waits to be read: OpenSSL would take it for an error. What the peer still
        sends can be read as before.

        :raises ssl.SSLError: if the session has failed.
        """
        if self.held is not None:
            self._ends = True
            return
        try:
            self.tls.unwrap()
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            if error.reason != "SHUTDOWN_WHILE_IN_INIT":
                raise
            self.held, self._ends = b"", True

    def _resume(self) -> None:
        """Encrypt what is held, if OpenSSL has the whole message now."""
        held, self.held = self.held, None
        if held:
            self.write(held)
        if self._ends and self.held is None:
            self._ends = False
            self.send_end()

    def flush(self) -> bool:
        """Send what is encrypted.

        :returns: whether the transport has taken all of it.
        :raises OSError: if the connection is lost.
        """
        while cipher := self.cipher or (self._outgoing.pending and self._outgoing.read()):
            try:
                sent = self._transport.send(cipher)
            except BlockingIOError:
                sent = 0
            self.moved += sent
            if sent < len(cipher):
                self.cipher = memoryview(cipher)[sent:]
                return False
            self.cipher = b""
        return True

    def send_alert(self) -> None:
        """Send the alert of a failure, as far as that needs no waiting."""
        try:
            self.flush()
        except OSError:
            pass  # the connection is lost as well

    def unsent(self) -> int:
        """Return how many bytes wait for the far end, also in the kernel."""
        return len(self.cipher) + len(self.held or b"") + unsent(self._transport)

    def progress(self) -> int:
        """Return a number that changes while bytes leave, also those that leave the kernel for a slow far end."""
        return self.moved - self.unsent()
