"""The socket of an SSH connection with what is under way in it, and the one thread that turns it."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

from ....errors import CarrierError
from ....eventloop.loop import Loop
from ....eventloop.poller import ERR, HUP, IN, OUT
from ....eventloop.sockets import keep_alive
from ....streams.stream import Stream

__all__ = ["LONGEST", "TurningLoop", "Wire"]

LONGEST = 256 << 10  # bytes of a packet at most; OpenSSH has the same limit
_STEP = 256 << 10  # bytes to receive at once
_INPUT = LONGEST + 64 + _STEP  # so that a step fits behind a packet that is not complete
_SMALL = 16 << 10  # bytes; what is more is acknowledged at once anyway
_PIECES = 512  # that are sent at once; Linux takes 1,024
_MOST = 4 << 20  # unsent bytes beyond which nothing is read: whoever floods us with questions has to take the answers


class TurningLoop(Loop):
    """A loop that somebody else's loop turns: paramiko's thread, whenever it has to wait for a packet."""

    def abandon(self) -> None:
        """In a forked child: close the descriptors and nothing else."""
        self._close_garbage()
        self.close()

    def end(self) -> None:
        """Run the calls that were accepted, take no more, and let the descriptors go."""
        self.stop()
        self._run_calls()
        self._close_garbage()
        self.close()


class Wire:
    """A connected socket that never blocks; also what paramiko takes for the socket of its transport.

    Everything but :meth:`end`, :meth:`close` and :attr:`loop`'s ``call`` belongs to the thread that turns it.

    :param stream: a stream over a connected socket. The wire owns it.
    :raises OSError: if there are no descriptors left, or the socket is closed.
    """

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.loop = TurningLoop()
        self.input = bytearray(_INPUT)
        self.view = memoryview(self.input)
        self.first = self.last = 0  # what was received and not yet taken lies between
        self.unsent = 0  # bytes
        self.clogged = False  # the socket takes no more for now
        self.drained: Callable[[], object] = _nothing  # called when it takes more again
        self.heard = time.monotonic()
        self.error: OSError | None = None  # why it has ended, or is to end
        self.ending = False
        self._closed = False  # paramiko looks at it
        self._output: list[bytes | memoryview] = []
        self._mask = IN
        sock = self._socket = stream.socket
        # whether the server's packets are acknowledged as soon as that is of use to it
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
        """Send what is due, wait, and call whoever waits for something.

        :raises EOFError: if the connection has ended, or is to.
        """
        if not self.ending:
            if self.unsent:
                self.flush()
            elif self._owes:
                self._acknowledge()
            self._owes = False
            self.loop.turn()
        if self.ending:
            raise EOFError

    def write(self, piece: bytes) -> None:
        """Have ``piece`` sent by the next turn."""
        self._output.append(piece)
        self.unsent += len(piece)

    def write_two(self, head: bytes, body: bytes) -> None:
        """Have two pieces sent by the next turn, one after the other."""
        self._output.append(head)
        self._output.append(body)
        self.unsent += len(head) + len(body)

    def flush(self) -> None:
        """Send what the socket takes."""
        output = self._output
        try:
            while output and not self.clogged:
                self._drop(self._send(output[:_PIECES]))
        except BlockingIOError:
            self.clogged = True
        except OSError as error:
            self.end(self._why_ended(error))
        self._want()

    def _drop(self, sent: int) -> None:
        """Forget what was sent. A short write means that the socket is full, so nobody asks it again."""
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
        """Have what has come acknowledged now, for lack of an answer that says so. A server that does not switch
        Nagle's algorithm off, as OpenSSH's, holds its next words back until then: 40 ms."""  # noqa: D205, D209
        try:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        except OSError:
            pass  # it has just ended

    def _why_ended(self, error: OSError | None = None) -> CarrierError:
        """What is under the stream knows better than the socket."""
        told = self.stream.failure() if self.stream.failure is not None else None
        if told is None and error is None:
            return CarrierError("the server has closed the connection")
        told = told or error
        return CarrierError(str(getattr(told, "strerror", None) or told))

    def release(self) -> None:
        """Let everything go; nothing is turned after that."""
        self.ending = self._closed = True
        self.loop.end()
        try:
            self._socket.shutdown(socket.SHUT_RDWR)  # also if a forked child holds a copy
        except OSError:
            pass  # it has ended already
        self.stream.close()

    # -- any thread -----------------------------------------------------------------------------------------------

    def end(self, error: OSError | None = None) -> None:
        """Have the turn end, and all that follow. The first reason counts."""
        if not self.ending:
            self.error = self.error or error
            self.ending = True
            self.loop.call(_nothing)

    def close(self) -> None:
        """Have it end; for paramiko, which means its own thread or, when the interpreter exits, the main one."""
        self._closed = True
        self.end()

    def settimeout(self, seconds: float | None) -> None:
        """For paramiko, which would wake ten times a second: nothing here waits in the socket."""

    def abandon(self) -> None:
        """In a forked child: close the descriptors and nothing else."""
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
