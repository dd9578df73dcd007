"""The socket of an SSH connection with its buffers, and the event loop that paramiko's thread runs."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

from ....errors import CarrierError
from ....eventloop.loop import Loop
from ....eventloop.poller import ERR, HUP, IN, OUT
from ....eventloop.sockets import keep_alive
from ....streams.stream import Stream
from ..connection import CLOSED

LONGEST = 256 << 10  # bytes of a packet at most; OpenSSH has the same limit
_STEP = 256 << 10  # bytes to receive at once
_INPUT = LONGEST + 64 + _STEP  # so that a step fits behind a packet that is not complete
_SMALL = 16 << 10  # bytes; the kernel acknowledges more than that at once
_PIECES = 512  # that are sent at once; the limit of Linux is 1,024
_MOST = 4 << 20  # unsent bytes beyond which nothing is read: a server that floods relay must read the replies


class TurningLoop(Loop):
    """An event loop that another loop turns: paramiko's, each time that it waits for a packet."""

    def abandon(self) -> None:
        """In a forked child: close only the descriptors."""
        self._close_garbage()
        self.close()

    def end(self) -> None:
        """Run the calls that were accepted, accept no more, and close the descriptors."""
        self.stop()
        # Callers whose call was accepted wait for it.
        self._run_calls()
        self._close_garbage()
        self.close()


class Wire:
    """A connected socket that never blocks, and that paramiko uses as the socket of its transport.

    Everything but :meth:`end`, :meth:`close` and :attr:`loop`'s ``call`` is for the thread that turns the loop.

    :param stream: a stream over a connected socket. The wire owns it.
    :raises OSError: if there are no descriptors left, or the socket is closed.
    """

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.loop = TurningLoop()
        self.input = bytearray(_INPUT)
        self.view = memoryview(self.input)
        self.first = self.last = 0  # the received bytes that were not yet read are between them
        self.unsent = 0  # bytes
        self.clogged = False  # the socket accepts no more data for now
        self.drained: Callable[[], object] = _nothing  # called when it accepts data again
        self.heard = time.monotonic()
        self.error: OSError | None = None  # why the connection has ended, or is about to
        self.ending = False
        self._closed = False  # paramiko reads it
        self._output: list[bytes | memoryview] = []
        self._mask = IN
        sock = self._socket = stream.socket
        # Whether small packets of the server are acknowledged at once.
        self.is_prompt = sock.family in (socket.AF_INET, socket.AF_INET6) and hasattr(socket, "TCP_QUICKACK")
        self._owes = False  # an acknowledgement
        self._receive, self._send, self._descriptor = sock.recv_into, sock.sendmsg, sock.fileno()
        try:
            _prepare(sock)
            self.loop.watch(self._descriptor, IN, self._on_event)
        except BaseException:
            self.loop.close()
            raise

    # -- in the thread that turns it ------------------------------------------------------------------------------

    def turn(self) -> None:
        """Send what is due, wait for events, and call their handlers.

        :raises EOFError: if the connection has ended, or is about to.
        """
        if not self.ending:
            # Once for each turn: what all handlers of a turn have queued leaves with one system call.
            if self.unsent:
                self.flush()
            elif self._owes:
                self._acknowledge()
            self._owes = False
            self.loop.turn()
        if self.ending:
            raise EOFError

    def write(self, piece: bytes) -> None:
        """Queue ``piece``; the next turn sends it."""
        self._output.append(piece)
        self.unsent += len(piece)

    def write_two(self, head: bytes, body: bytes) -> None:
        """Queue two pieces; the next turn sends them."""
        # Two pieces, so that the encrypted body is not copied behind its head.
        self._output.append(head)
        self._output.append(body)
        self.unsent += len(head) + len(body)

    def flush(self) -> None:
        """Send as much as the socket accepts."""
        output = self._output
        try:
            while output and not self.clogged:
                sent = self._send(output if len(output) <= _PIECES else output[:_PIECES])
                if sent == self.unsent:
                    output.clear()
                    self.unsent = 0
                    if self._mask == IN:
                        return  # as nearly always: nothing has waited for the socket
                else:
                    self._drop(sent)
        except BlockingIOError:
            self.clogged = True
        except OSError as error:
            self.end(self._why_ended(error))
        self._want()

    def _drop(self, sent: int) -> None:
        """Remove what was sent. After a short write the socket is full, so that another attempt would be in vain."""
        self.unsent -= sent
        output, done = self._output, 0
        for piece in output[:_PIECES]:
            if sent < len(piece):
                self.clogged = True
                if sent:
                    output[done] = memoryview(piece)[sent:]
                break
            sent -= len(piece)
            done += 1
        del output[:done]

    def _want(self) -> None:
        mask = (IN if self.unsent < _MOST else 0) | (OUT if self.clogged else 0)
        if mask != self._mask and not self.ending:
            self._mask = mask
            self.loop.poller.modify(self._descriptor, mask)

    def _on_event(self, event: int, now: float) -> None:
        if event & OUT and self.clogged:
            self.clogged = False
            self.flush()
            if not self.clogged:
                self.drained()
        if event & IN or event & (HUP | ERR):
            self._fill(now)

    def _fill(self, now: float) -> None:
        first, last = self.first, self.last
        if first == last:
            self.first = last = 0
        elif _INPUT - last < _STEP:
            # Moved only when a step does not fit: a packet must lie in one piece to be decrypted where it is.
            self.view[: last - first] = self.view[first:last]
            self.first, last = 0, last - first
        try:
            count = self._receive(self.view[last : last + _STEP])
        except BlockingIOError:
            count = 0
        except OSError as error:
            return self.end(self._why_ended(error))
        else:
            if not count:
                return self.end(self._why_ended())
            self.heard = now
            self._owes = self.is_prompt and count < _SMALL
        self.last = last + count

    def _acknowledge(self) -> None:
        """Acknowledge at once what has arrived, because no reply carries the acknowledgement.

        A server that uses Nagle's algorithm, such as OpenSSH's, delays its next small packet until then: by 40 ms.
        """
        try:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        except OSError:
            pass  # it has just ended

    def _why_ended(self, error: OSError | None = None) -> CarrierError:
        """Return why the connection has ended: the stream knows more than its socket."""
        failure = self.stream.failure() if self.stream.failure is not None else None
        if failure is None and error is None:
            return CarrierError(CLOSED)
        cause = failure or error
        return CarrierError(str(getattr(cause, "strerror", None) or cause))

    def release(self) -> None:
        """Close the loop and the stream; the last call."""
        self.ending = self._closed = True
        self.loop.end()
        try:
            self._socket.shutdown(socket.SHUT_RDWR)  # also if a forked child holds a copy
        except OSError:
            pass  # it has ended already
        self.stream.close_soon()  # what was sent on the channels has arrived, or never will

    # -- any thread -----------------------------------------------------------------------------------------------

    def end(self, error: OSError | None = None) -> None:
        """End this turn and all that follow. The first reason counts."""
        if not self.ending:
            # Before `ending`: the transport's thread reads the reason as soon as it sees the flag.
            self.error = self.error or error
            self.ending = True
            # Wakes the loop, if another thread ends it while it waits.
            self.loop.call(_nothing)

    def close(self) -> None:
        """End the connection; for paramiko, which calls this on its own thread or, at exit, on the main thread."""
        self._closed = True
        self.end()

    def settimeout(self, seconds: float | None) -> None:
        """Do nothing: paramiko would wake ten times a second, and nothing here waits in the socket."""

    def abandon(self) -> None:
        """In a forked child: close only the descriptors."""
        self.ending = self._closed = True
        self._socket.close()
        self.loop.abandon()


def _prepare(sock: socket.socket) -> None:
    sock.setblocking(False)
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    keep_alive(sock)


def _nothing() -> None:
    pass
