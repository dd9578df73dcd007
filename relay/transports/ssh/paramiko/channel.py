"""One SSH channel as a kernel socket (RFC 4254, section 5): one end of a socketpair for the holder, the other for us.

Everything here runs in the transport's thread, but for what says otherwise. Nothing blocks: what the connection does
not take waits in the socketpair, what the holder does not take is bounded by the channel's window.
"""

from __future__ import annotations

import errno
import select
import socket
import struct
import time
from collections.abc import Iterable

from ....errors import RelayError
from ....eventloop.background import Watch
from ....eventloop.loop import Timer
from ....eventloop.poller import ERR, HUP, IN, OUT
from ....eventloop.sockets import set_to_reset
from ....eventloop.unix_reset import socketpair
from ....streams.stream import Stream
from .backlog import Backlog
from .messages import ADJUST, CLOSE, CONFIRMED, END, REQUEST_REFUSED
from .mux import Channels
from .packets import PIECE, SLOTS

__all__ = ["PACKET", "WINDOW", "Channel", "ChannelStream", "accept"]

WINDOW = 2 << 20  # bytes that the server may send before a holder has taken them; what OpenSSH has, too
PACKET = 64 << 10  # bytes in a packet that we take
LARGEST = 16 << 20  # bytes, for a channel whose holder keeps up: what 1 Gbit/s over 100 ms needs

_FULL = SLOTS * PIECE
_GATHERED = 64  # packets, before they are passed on
_BETWEEN = 256 << 10  # bytes on their way to a holder; Linux doubles it
_LINGER = 60.0  # seconds without progress until a channel whose holder is gone is given up
_CREDIT = 0xFFFFFFFF  # bytes; RFC 4254, section 5.2


class ChannelStream(Stream):
    """A stream whose socket is one end of a socketpair; an SSH channel moves the bytes of the other one."""

    __slots__ = ("_channel",)

    def __init__(self, socket: socket.socket, channel: Channel) -> None:
        super().__init__(socket, target=channel.target, failure=lambda: channel.error)
        self._channel = channel

    def reset(self) -> None:
        """Close without regard for what is under way. SSH has no reset: the far end sees an end of file. Idempotent."""
        self._channel.cut = True  # before it can see the end
        self.close()


class Channel:
    """One channel that is open, and our end of its socketpair.

    :param channels: all of the connection.
    :param number: ours.
    :param remote: the server's number.
    :param credit: bytes that the server takes.
    :param packet: bytes that it takes in one packet.
    :param target: its name, in errors and records.
    :raises OSError: if there are no descriptors left.
    """

    __slots__ = (
        "_batch", "_channels", "_counted", "_credit", "_deaf", "_got_close", "_got_end", "_inner", "_left", "_mark",
        "_moved", "_number", "_packet", "_pending", "_receive", "_remote", "_scatter", "_sent_close", "_sent_end",
        "_steady", "_taken", "_theirs", "_timer", "_told_end", "_watch", "_window", "cut", "error", "target",
    )  # fmt: skip

    def __init__(self, channels: Channels, number: int, remote: int, credit: int, packet: int, target: str) -> None:
        self.target = target
        self.error: OSError | None = None
        self.cut = False
        self._channels = channels
        self._number, self._remote = number, remote
        self._credit, self._packet = credit, max(1, min(packet, PIECE))
        self._window = self._left = WINDOW
        self._taken = self._steady = self._moved = self._mark = 0
        self._batch: list[memoryview] = []  # what has come since the last wait
        self._pending = Backlog()  # what the holder has not taken yet
        self._got_end = self._got_close = self._sent_end = self._sent_close = self._told_end = self._deaf = False
        self._counted = True
        self._scatter = False
        inner, theirs = socketpair()
        inner.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BETWEEN)
        self._inner: socket.socket | None = inner
        self._receive = inner.recv_into
        self._theirs: socket.socket | None = theirs
        self._timer: Timer | None = Timer(channels.loop.timers, self._expired)  # until it is over
        self._watch = Watch(inner, channels.loop, self._on_event)
        self._watch.set_interest(IN if credit else 0)
        channels.live.add(self)

    def hand_over(self) -> ChannelStream:
        """The stream for the holder; once. A channel that kept it would be a cycle for the collector to find."""
        theirs, self._theirs = self._theirs, None
        assert theirs is not None
        return ChannelStream(theirs, self)

    # -- from the server ------------------------------------------------------------------------------------------

    def receive(self, data: memoryview) -> None:
        """Gather what has come, to be passed on before the next wait."""
        if self._sent_close or self._got_end:
            return
        self._left -= len(data)
        if self._left < 0:
            return self.fail(self._broken("sent more than the window allows"))
        if not self._batch:
            self._channels.touched.append(self)
        self._batch.append(data)
        if len(self._batch) >= _GATHERED:
            self.deliver()

    def skip(self, size: int) -> None:
        """Take no notice of data that are not for the holder (standard error), but of their size."""
        self._left -= size
        self._passed_on(size)

    def extended(self, kind: int, data: memoryview) -> None:
        """Data of another kind, which are not for the holder (RFC 4254, section 5.2)."""
        self.skip(len(data))

    def deliver(self) -> None:
        """Pass on what has come, as far as the holder takes it."""
        batch, self._batch = self._batch, []
        if not batch:
            return None
        if self._deaf or self._inner is None:
            return self._passed_on(sum(map(len, batch)))
        if self._pending:
            return self._keep(batch)
        try:
            sent = self._inner.sendmsg(batch)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._deaf = True  # its end is closed: there will be a hang-up
            return None
        for place, piece in enumerate(batch):
            if sent < len(piece):
                self._keep([piece[sent:], *batch[place + 1 :]])
                self._passed_on(sum(map(len, batch[:place])) + sent)
                return self.settle()
            sent -= len(piece)
        return self._passed_on(sum(map(len, batch)))

    def _keep(self, pieces: Iterable[memoryview]) -> None:
        for piece in pieces:
            self._pending.add(piece)

    def _deliver_pending(self) -> None:
        assert self._inner is not None
        try:
            sent = self._pending.send(self._inner.sendmsg)
        except BlockingIOError:
            return
        except OSError:
            self._deaf = True
            self._pending.clear()
            return
        self._passed_on(sent)

    def _passed_on(self, size: int) -> None:
        """Let the server send as much again; more, if the holder keeps up."""
        self._moved += size
        self._taken += size
        if self._taken < self._window >> 3 or self._got_end or self._sent_close:
            return
        more = self._taken + self._growth()
        self._left += more
        self._taken = 0
        self._channels.send(struct.pack(">BII", ADJUST, self._remote, more))

    def _growth(self) -> int:
        self._steady = 0 if self._pending else self._steady + self._taken
        if self._steady < self._window >> 1:
            return 0
        self._steady = 0
        more = min(self._window, LARGEST - self._window, self._channels.growth)
        self._channels.growth -= more
        self._window += more
        return more

    def adjust(self, more: int) -> None:
        """The server takes more bytes."""
        was, self._credit = self._credit, min(self._credit + more, _CREDIT)
        if not was:
            self.settle()

    def end(self) -> None:
        """The server has ended its direction."""
        self.deliver()
        self._got_end = True
        self.settle()

    def close(self) -> None:
        """The server has closed the channel; its number is free again once we have done so, too."""
        self.deliver()
        self._got_end = self._got_close = True
        self._send_close()
        self._channels.free(self._number)
        if self._inner is None:
            self._over()
        else:
            self.settle()

    def requested(self, kind: bytes, wants_answer: bool, rest: memoryview) -> None:
        """Refuse a request: there is none that concerns us (RFC 4254, section 5.4)."""
        if wants_answer and not self._sent_close:
            self._channels.send(struct.pack(">BI", REQUEST_REFUSED, self._remote))

    def granted(self) -> None:
        """A request of ours was granted: there was none."""

    def denied(self) -> None:
        """A request of ours was refused: there was none."""

    # -- from the holder ------------------------------------------------------------------------------------------

    def _on_event(self, event: int, now: float) -> None:
        if event & HUP and not self._watch.hung:
            self._watch.hung = self._deaf = True
            self._pending.clear()
            self._wait(now)
        if self.cut:
            return self._leave()
        if event & OUT and self._pending:
            self._deliver_pending()
        if event & (IN | HUP | ERR) and self._watch.mask & IN and self._take() and event == IN:
            return None
        return self.settle()

    def _take(self) -> bool:
        """Send what the holder has sent, or its end.

        :returns: whether there is nothing more to look at.
        """
        channels = self._channels
        if channels.holds_back():
            return False
        packetizer = channels.packetizer
        try:
            if self._scatter and self._credit >= _FULL:
                size = self._inner.recvmsg_into(packetizer.places)[0]  # type: ignore[union-attr]
            else:
                size = self._receive(packetizer.places[0], min(self._credit, self._packet))
        except BlockingIOError:
            return True
        except OSError:
            size = 0  # it was closed before all was read
        if not size:
            self._sent_end = True
            channels.send(struct.pack(">BI", END, self._remote))
            return False
        self._credit -= size
        self._moved += size
        self._scatter = size >= PIECE
        packetizer.send_data(self._remote, size)
        return self._credit > 0

    def settle(self) -> None:
        """Pass ends on, and wait for what can be done next."""
        if self._inner is None:
            return
        gone = self._watch.hung
        if self._got_end and not self._pending and not self._told_end:
            self._told_end = True
            if self.error is None:
                _end_output(self._inner)
            else:  # such as a command that failed: the holder reads a reset, and no end of file before it
                self.cut = True
        if self.cut or (self._told_end and (self._got_close or self._sent_end)) or (gone and self._sent_end):
            return self._leave()
        wanted = self._credit > 0 and not self._sent_end and not self._got_close
        if wanted and self._channels.is_held():
            self._channels.held[self] = None
            wanted = False
        self._watch.set_interest((IN if wanted else 0) | (OUT if self._pending else 0))

    # -- its end --------------------------------------------------------------------------------------------------

    def look(self) -> bool:
        """Whether the holder is gone, without waiting for the event."""
        if self._inner is None:
            return True
        if self._watch.hung:
            return True
        poller = select.poll()
        poller.register(self._inner, 0)
        return bool(poller.poll(0))

    def fail(self, error: OSError) -> None:
        """End it by a failure, which the holder can ask for."""
        self.error = self.error or error
        self.cut = True
        self._batch.clear()
        self._leave()

    def _broken(self, how: str) -> OSError:
        return RelayError(f"{self.target}: {self._channels.name} {how}")

    def _leave(self) -> None:
        """Have nothing more to do with the holder."""
        self._send_close()
        inner, self._inner = self._inner, None
        if inner is not None:
            self._watch.end()
            if self.error is None:
                _empty(inner)
            else:
                set_to_reset(inner)
            self._channels.loop.discard(inner)
            self._pending.clear()
            self._channels.growth += self._window - WINDOW
            self._channels.held.pop(self, None)
            self._channels.live.discard(self)
        if self._got_close or self.cut:
            self._over()
        else:
            self._wait(time.monotonic())  # for the server's answer

    def _send_close(self) -> None:
        """Once, and nothing after it: OpenSSH ends the whole connection for that."""
        if not self._sent_close:
            self._sent_close = self._sent_end = True
            self._channels.send(struct.pack(">BI", CLOSE, self._remote))

    def _wait(self, now: float) -> None:
        if self._timer is not None:
            self._timer.start(now + _LINGER, now)

    def _over(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.stop()
        if self._counted:
            self._counted = False
            self._channels.one_less()

    def _expired(self, now: float) -> None:
        if self._inner is None:
            return self._over()
        if self._moved == self._mark:
            self.cut = True
            return self._leave()
        self._mark = self._moved
        self._wait(now)

    def abandon(self) -> None:
        """In a forked child: close the descriptor and nothing else."""
        if self._inner is not None:
            self._inner.close()

    def crashed(self, now: float) -> None:
        """A bug in a handler: end it."""
        self.fail(OSError(errno.EIO, "a bug in relay; the log has it"))


def _end_output(inner: socket.socket) -> None:
    try:
        inner.shutdown(socket.SHUT_WR)
    except OSError:
        pass  # the holder's end is closed


def _empty(inner: socket.socket) -> None:
    """Drop what the holder has sent in vain: a close with bytes unread would look like a reset to it."""
    try:
        inner.shutdown(socket.SHUT_RD)
        while inner.recv(1 << 16):
            pass
    except OSError:
        pass


def accept(channels: Channels, remote: int, credit: int, packet: int, target: str) -> Stream:
    """Take a channel that the server opens (RFC 4254, section 5.1).

    :param channels: all of the connection.
    :param remote: the server's number for it.
    :param credit: bytes that the server accepts.
    :param packet: bytes that it accepts in one packet.
    :param target: the name of the stream, in errors and records.
    :raises OSError: if there are no descriptors left.
    """
    number = channels.number()
    try:
        channel = Channel(channels, number, remote, credit, packet, target)
    except OSError:
        channels.free(number)
        raise
    channels.put(number, channel)
    channels.send(struct.pack(">BIIII", CONFIRMED, remote, number, WINDOW, PACKET))
    return channel.hand_over()
