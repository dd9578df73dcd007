"""The bridge to an :class:`ssl.SSLSocket` of a user: one thread between it and a socketpair."""

from __future__ import annotations

import errno
import os
import select
import socket
import threading
from typing import TYPE_CHECKING, Any

from ..eventloop.sockets import reset, unsent
from .bridged import CHUNK, PATIENCE, BridgedStream, small_pair

if TYPE_CHECKING:
    import ssl


class SSLBridge:
    """One thread between an :class:`ssl.SSLSocket` and one end of a socketpair.

    An SSLSocket is not for two threads at a time, and it has no half-close: its ``shutdown`` drops the encryption.
    """

    def __init__(self, made: Any) -> None:
        self.error: BaseException | None = None
        self.cut = False
        self._made: ssl.SSLSocket = made
        made.setblocking(False)
        made.suppress_ragged_eofs = False  # an end without close_notify is a truncation, and not an end of file
        ours, self._inner = small_pair()
        self._inner.setblocking(False)
        self._to_engine = memoryview(b"")
        self._to_peer = memoryview(b"")
        self._peer_ended = False
        self._hung_up = False
        self._made_waits_for = 0
        self.stream = BridgedStream(ours, self, half_close=False)
        threading.Thread(target=self._work, name="relay bridge SSLSocket", daemon=True).start()

    def _work(self) -> None:
        poller = select.poll()
        try:
            while self._turn():
                self._wait(poller)
        except OSError as error:
            self.error = error
        self._finish()

    def _turn(self) -> bool:
        """Move what can be moved.

        :returns: whether to go on.
        """
        import ssl

        if self._hung_up and self.cut:
            return False
        self._made_waits_for = 0
        moved = True
        # Until nothing moves: OpenSSL may hold decrypted bytes for which no event of the socket comes.
        while moved:
            moved = False
            try:
                if not self._to_engine and not self._peer_ended:
                    data = self._made.recv(CHUNK)
                    self._to_engine, moved = memoryview(data), True
                    if not data:
                        self._peer_ended = True
                        self._inner.shutdown(socket.SHUT_WR)
            except ssl.SSLWantReadError:
                self._made_waits_for |= select.POLLIN
            except ssl.SSLWantWriteError:
                self._made_waits_for |= select.POLLOUT
            if self._to_engine and (sent := self._send_inner()):
                self._to_engine, moved = self._to_engine[sent:], True
            if not self._to_peer:
                received = self._receive_inner()
                if received == b"":
                    return False
                if received:
                    self._to_peer, moved = memoryview(received), True
            if self._to_peer:
                try:
                    self._to_peer, moved = self._to_peer[self._made.send(self._to_peer) :], True
                # A renegotiation: before it can write, it must read.
                except ssl.SSLWantReadError:
                    self._made_waits_for |= select.POLLIN
                except ssl.SSLWantWriteError:
                    self._made_waits_for |= select.POLLOUT
        return True

    def _send_inner(self) -> int:
        try:
            return self._inner.send(self._to_engine)
        except BlockingIOError:
            return 0
        except BrokenPipeError:  # the engine is gone; what it sent before is still flushed
            return len(self._to_engine)

    def _receive_inner(self) -> bytes | None:
        try:
            return self._inner.recv(CHUNK)
        except BlockingIOError:
            return None
        except ConnectionResetError:
            return b""

    def _wait(self, poller: select.poll) -> None:
        inner, made = self._inner.fileno(), self._made.fileno()
        wanted = (select.POLLOUT if self._to_engine else 0) | (0 if self._to_peer else select.POLLIN)
        for descriptor, mask, watched in (
            (inner, wanted, not self._hung_up),
            (made, self._made_waits_for, self._made_waits_for != 0),
        ):
            try:
                poller.unregister(descriptor)
            except KeyError:
                pass
            if watched:
                poller.register(descriptor, mask)
        queued = unsent(self._made)
        while not (events := poller.poll(PATIENCE * 1000 if self._hung_up else None)):
            # Nothing is sent in this loop, so that a queue as long as before is one of which the peer takes nothing.
            before, queued = queued, unsent(self._made)
            if queued == before:
                raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
        for descriptor, event in events:
            if descriptor == inner and event & select.POLLHUP:
                self._hung_up = True  # reported without end: what is left is to flush, or to stop if it was cut

    def finish(self) -> None:
        """Do nothing: the thread sees that the engine has closed its end."""

    def _finish(self) -> None:
        if self.cut or self.error is not None:
            reset(self._made)
        else:
            self._send_close_notify()
            self._made.close()
        self._inner.close()

    def _send_close_notify(self) -> None:
        """Send close_notify, without which the end is a truncation for the peer; do not wait for the peer's."""
        import ssl

        poller = select.poll()
        poller.register(self._made, select.POLLOUT)
        try:
            while True:
                try:
                    self._made.unwrap()
                    return
                except ssl.SSLWantWriteError:
                    if not poller.poll(PATIENCE * 1000):
                        return
        except (OSError, ValueError):
            pass  # it is sent, or the connection is lost
