"""One SSH channel as a kernel socket (RFC 4254, section 5).

A socketpair connects the channel with the owner of its stream. Nothing blocks: bytes that the connection does not
accept wait in the socketpair, and those that the owner does not read wait in a backlog, which the window bounds.
Everything runs on the transport's thread.

Its states are in :mod:`relay.transports.ssh.paramiko.states`.
"""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import struct
import time
from collections.abc import Callable

from ....errors import RelayError
from ....eventloop.background import Watch
from ....eventloop.loop import Timer
from ....eventloop.poller import ERR, HUP, IN, OUT
from ....eventloop.sockets import drop_unread, set_to_reset, shut_down, unread
from ....eventloop.unix_reset import socketpair
from ....streams.pair_end import BETWEEN, LINGER
from ....streams.stream import Stream
from .flow_control import WINDOW, Backlog, Window
from .messages import ADJUST, CLOSE, END, REQUEST_REFUSED
from .mux import Mux
from .packets import PIECE, SLOTS
from .states import Receiving, Sending

PACKET = 64 << 10  # bytes in a packet that relay accepts

_FULL = SLOTS * PIECE
_GATHERED = 64  # packets, before they are passed on
_CREDIT = 0xFFFFFFFF  # bytes; RFC 4254, section 5.2


_RECEIVING_OPEN = Receiving.OPEN  # the look-up of an Enum's member is slow, and needed for each message


class ChannelStream(Stream):
    """A stream whose socket is one end of a socketpair; an SSH channel copies the bytes at the other end."""

    __slots__ = ("_channel",)

    def __init__(self, socket: socket.socket, channel: Channel) -> None:
        super().__init__(socket, target=channel.target, failure=lambda: channel.error)
        self._channel = channel

    def reset(self) -> None:
        """Close and drop the bytes in transit. Idempotent; SSH has no reset, so the far end reads EOF."""
        self._channel.cut = True  # before it can see the end
        self.close()


class Channel:
    """An open channel and its end of the socketpair.

    :param mux: the channels of the connection.
    :param number: relay's number of it.
    :param remote: the server's number of it.
    :param credit: bytes that the server accepts.
    :param packet: bytes that it accepts in one packet.
    :param target: the name of the stream, in errors and records.
    :param first: its first window, in bytes, which the server knows.
    :raises OSError: if there are no descriptors left.
    """

    __slots__ = (
        "_backlog", "_batch", "_credit", "_has_sent", "_inner", "_is_alone", "_mark", "_moved", "_mux",
        "_number", "_packet", "_receive", "_receiving", "_remote", "_scatter", "_sending", "_theirs", "_timer",
        "_watch", "_window", "cut", "error", "on_over", "target",
    )  # fmt: skip

    def __init__(
        self, mux: Mux, number: int, remote: int, credit: int, packet: int, target: str, first: int = WINDOW
    ) -> None:
        self.target = target
        self.error: OSError | None = None
        self.cut = False  # the stream was reset or has failed: nothing more is passed on
        self.on_over: Callable[[], object] = _nothing  # called when the channel is over
        self._has_sent = self._is_alone = False  # the owner has sent data; it has nothing but the socket
        self._mux = mux
        self._number, self._remote = number, remote
        self._credit, self._packet, self._window = credit, max(1, min(packet, PIECE)), Window(first)
        self._receiving, self._sending = Receiving.OPEN, Sending.OPEN
        self._batch: list[memoryview] = []  # received since the last wait
        self._backlog = Backlog()  # not yet read by the owner
        self._moved = self._mark = 0  # bytes from and to the owner; at the last look of the linger timer
        self._scatter = False  # the owner sends more than one packet at a time
        inner, theirs = socketpair()
        inner.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BETWEEN)
        self._inner: socket.socket | None = inner
        self._receive: Callable[..., int] | None = inner.recv_into  # None after the owner's EOF
        self._theirs: socket.socket | None = theirs
        self._timer: Timer | None = Timer(mux.loop.timers, self._expired)  # until the channel is over
        self._watch = Watch(inner, mux.loop, self._on_event)
        self._watch.set_interest(IN if credit else 0)
        mux.live.add(self)

    def hand_over(self, *, alone: bool = False) -> ChannelStream:
        """Return the stream for its owner; once. The channel must not keep it: that would be a reference cycle.

        :param alone: whether the owner has nothing but its socket, which it does not close at exit.
        """
        assert self._theirs is not None
        self._is_alone = alone
        theirs, self._theirs = self._theirs, None
        return ChannelStream(theirs, self)

    def receive(self, data: memoryview) -> None:
        """Gather data, which are passed on before the next wait: their memory is valid until then."""
        if self._receiving is not _RECEIVING_OPEN and self._receiving is not Receiving.DISCARDING:
            return
        window = self._window
        window.left = left = window.left - len(data)
        if left < 0:
            return self.fail(RelayError(f"{self.target}: {self._mux.name} sent more than the window allows"))
        if not self._batch:
            # Gathered until the loop waits: one system call passes on what several packets have brought.
            self._mux.touched.append(self)
        self._batch.append(data)
        if len(self._batch) >= _GATHERED:
            self.deliver()

    def skip(self, size: int) -> None:
        """Count data that are not for the owner (standard error) as received and passed on."""
        self._window.left -= size
        self._passed_on(size)

    def extended(self, kind: int, data: memoryview) -> None:
        """Skip extended data (RFC 4254, section 5.2)."""
        self.skip(len(data))

    def deliver(self) -> None:
        """Pass on the data that were gathered, as far as the owner reads them."""
        batch, self._batch = self._batch, []
        if not batch:
            return None
        if self._receiving is Receiving.DISCARDING or self._inner is None:
            # Counted although it is dropped: the server must be able to send the rest, behind which its EOF and CLOSE
            # come.
            return self._passed_on(sum(map(len, batch)))
        # Order: what waits in the backlog came before.
        if self._backlog:
            return self._backlog.extend(batch)
        try:
            sent = self._inner.sendmsg(batch)
        except BlockingIOError:
            sent = 0
        except OSError:
            return self._discard()  # the owner has closed its end: a hang-up follows
        self._moved += sent
        for place, piece in enumerate(batch):
            if sent < len(piece):
                self._backlog.extend([piece[sent:], *batch[place + 1 :]])
                self._passed_on(sum(map(len, batch[:place])) + sent)
                return self.settle()
            sent -= len(piece)
        return self._passed_on(sum(map(len, batch)))

    def _discard(self) -> None:
        """Pass nothing on from now on: the owner has closed its end."""
        if self._receiving is Receiving.OPEN:
            self._receiving = Receiving.DISCARDING
        self._backlog.clear()

    def _deliver_backlog(self) -> None:
        assert self._inner is not None
        try:
            sent = self._backlog.send(self._inner.sendmsg)
        except BlockingIOError:
            return
        except OSError:
            self._discard()
        else:
            self._moved += sent
            self._passed_on(sent)

    def _passed_on(self, size: int) -> None:
        """Allow the server to send as many bytes again; more while the owner keeps pace."""
        if not self._window.free(size):
            return
        if self._receiving is Receiving.OPEN or self._receiving is Receiving.DISCARDING:
            mux = self._mux
            more, grown = self._window.give_back(bool(self._backlog), mux.growth, mux.round_trip, time.monotonic())
            mux.growth -= grown
            mux.send(struct.pack(">BII", ADJUST, self._remote, more))

    def adjust(self, more: int) -> None:
        """Handle a window adjustment: the server accepts ``more`` bytes."""
        had_none, self._credit = not self._credit, min(self._credit + more, _CREDIT)
        if had_none:
            self.settle()

    def end(self) -> None:
        """Handle the server's EOF."""
        # EOF comes after the data that were gathered, in the socketpair as on the wire.
        if self._batch:
            self.deliver()
        self._end_receiving()
        self.settle()

    def _end_receiving(self) -> None:
        if self._receiving is not Receiving.ENDED:
            self._receiving = Receiving.EOF_PENDING

    def close(self) -> None:
        """Handle the server's CLOSE; with relay's own CLOSE the number is free again."""
        if self._batch:
            self.deliver()
        self._end_receiving()
        self._send_close()
        # Both sides have sent CLOSE: only now may the number be used again (RFC 4254, section 5.3).
        self._sending = Sending.CLOSED
        self._mux.free(self._number)
        self._over() if self._inner is None else self.settle()

    def requested(self, kind: bytes, wants_answer: bool, rest: memoryview) -> None:
        """Reject a request of the server: relay knows none for a forward (RFC 4254, section 5.4)."""
        if wants_answer and self._is_sending:
            self._mux.send(struct.pack(">BI", REQUEST_REFUSED, self._remote))

    def granted(self) -> None:
        """Ignore the success of a request: relay has sent none."""

    def denied(self) -> None:
        """Ignore the failure of a request: relay has sent none."""

    def _on_event(self, event: int, now: float) -> None:
        if event & HUP and not self._watch.hung:
            self._watch.hung = True
            self._discard()
            self._mark = self._moved
            self._wait(now)
        if self.cut:
            return self._detach()
        if event & OUT and self._backlog:
            self._deliver_backlog()
        # The usual case, in which only this piece has changed, needs no settling.
        if event & (IN | HUP | ERR) and self._watch.mask & IN and self._take() and event == IN:
            return None
        return self.settle()

    def _take(self) -> bool:
        """Send the owner's data, or its EOF.

        :returns: whether there is nothing more to check.
        """
        mux = self._mux
        # Nothing is read that the connection does not accept: it stays in the socketpair, whose bound slows the owner
        # down.
        if mux.holds_back():
            return False
        packetizer = mux.packetizer
        try:
            # Eight packets with one system call, once the owner has shown that it sends as much.
            if self._scatter and self._credit >= _FULL:
                size = self._inner.recvmsg_into(packetizer.places)[0]  # type: ignore[union-attr]
            else:
                size = self._receive(packetizer.places[0], min(self._credit, self._packet))  # type: ignore[misc]
        except BlockingIOError:
            return True
        except OSError:
            size = 0  # the owner has closed its end before it had read everything
        if not size:
            self._sending, self._receive = Sending.EOF_SENT, None
            mux.send(struct.pack(">BI", END, self._remote))
            return False
        self._credit -= size
        self._moved += size
        self._has_sent = True
        self._scatter = size >= PIECE
        packetizer.send_data(self._remote, size)
        return self._credit > 0

    def settle(self) -> None:
        """Pass an EOF on when the backlog is empty, detach when nothing is left, and wait for the next event."""
        if self._inner is None:
            return
        if self._receiving is Receiving.EOF_PENDING and not self._backlog:
            self._receiving = Receiving.ENDED
            if self.error is not None:  # such as a command that failed: the owner reads a reset, and no EOF before it
                self.cut = True
            else:
                with contextlib.suppress(OSError):  # the owner has closed its end
                    self._inner.shutdown(socket.SHUT_WR)
        is_sending = self._sending is Sending.OPEN
        if self.cut or (not is_sending and (self._receiving is Receiving.ENDED or self._watch.hung)):
            return self._detach()
        wanted = self._credit > 0 and is_sending
        # Without IN, or the loop would report the same bytes in each turn until the connection accepts data again.
        if wanted and self._mux.is_held():
            self._mux.held[self] = None
            wanted = False
        self._watch.set_interest((IN if wanted else 0) | (OUT if self._backlog else 0))

    def look(self) -> bool:
        """Return whether the owner has hung up, also if the event was not handled yet."""
        if self._inner is None or self._watch.hung:
            return True
        poller = select.poll()
        poller.register(self._inner, 0)
        return bool(poller.poll(0))

    def leave(self) -> bool:
        """Return at exit whether it is closed and not all that its owner sent is known to have arrived.

        A stream whose owner has only the socket counts as closed from now on.
        """
        if self._is_alone:
            self._hang_up()
        has_sent = self._has_sent or (self._inner is not None and unread(self._inner) > 0)
        return has_sent and self._timer is not None and self.look()

    def _hang_up(self) -> None:
        """Do as if the owner had closed its end; what it has sent is still there."""
        if self._inner is not None:
            shut_down(self._inner)

    def when_over(self, done: Callable[[], object]) -> None:
        """Call ``done``, in any thread, once the server has closed the channel, or never will.

        The owner needs the stream no more: it counts as closed.
        """

        def look() -> None:
            self._hang_up()  # the owner may be gone before the server has ended its direction
            self.on_over = done
            if self._timer is None:
                done()

        if not self._mux.loop.call(look):
            done()

    def fail(self, error: OSError) -> None:
        """End the stream with a failure, which its owner can read."""
        self.error = self.error or error
        self.cut = True
        self._batch.clear()
        self._detach()

    @property
    def _is_sending(self) -> bool:
        """True until CLOSE is sent: no message for the channel may follow it."""
        return self._sending is Sending.OPEN or self._sending is Sending.EOF_SENT

    def _detach(self) -> None:
        """End the connection with the owner; the channel goes on until the server has closed it."""
        self._send_close()
        self._receiving = Receiving.ENDED
        inner, self._inner = self._inner, None
        if inner is not None:
            self._watch.end()
            if self.error is not None:
                # Before the close, which then is a reset for the holder of the other end.
                set_to_reset(inner)
            elif self._receive is not None:
                # A Unix socket that is closed with something unread resets its other end, and this stream has ended
                # well.
                drop_unread(inner)
            self._mux.loop.discard(inner)
            self._backlog.clear()
            self._mux.growth += self._window.size - self._window.first
            self._mux.held.pop(self, None)
            self._mux.live.discard(self)
        if self.cut or self._sending is Sending.CLOSED:
            self._over()
        else:
            self._wait(time.monotonic())  # for the server's CLOSE

    def _send_close(self) -> None:
        """Send CLOSE, once. OpenSSH ends the whole connection for a message after it."""
        if self._is_sending:
            self._sending = Sending.CLOSE_SENT
            self._mux.send(struct.pack(">BI", CLOSE, self._remote))

    def _wait(self, now: float) -> None:
        if self._timer is not None:
            self._timer.start(now + LINGER, now)

    def _over(self) -> None:
        """Stop counting the channel as open, once."""
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.stop()
            self._mux.one_less()
            self.on_over()

    def _expired(self, now: float) -> None:
        if self._inner is None:
            self.error = self.error or RelayError(
                f"{self.target}: {self._mux.name} has not closed it in {LINGER:g} s; check the target"
            )
            return self._over()
        if self._moved == self._mark:
            self.cut = True
            return self._detach()
        self._mark = self._moved
        self._wait(now)

    def abandon(self) -> None:
        """In a forked child: close only the descriptor."""
        if self._inner is not None:
            self._inner.close()

    def crashed(self, now: float) -> None:
        """A handler of this channel has raised an error, which is logged: end the stream."""
        self.fail(OSError(errno.EIO, "a bug in relay; the log has it"))


def _nothing() -> None:
    pass
