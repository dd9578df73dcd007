"""Channels that are being opened, by relay or by the server (RFC 4254, section 5.1)."""

from __future__ import annotations

import functools
import struct
import threading
import time

from ....addresses.hops import Command
from ....addresses.values import TCPAddress
from ....errors import ConnectError
from ....eventloop.loop import Timer
from ....streams.stream import Stream
from ..connection import Address, OnResult, Place
from ..open_failures import open_failure, open_timeout, session_rejected
from .channel import PACKET, Channel
from .flow_control import WINDOW, first_window
from .messages import CONFIRMED, NOTHING, OPEN, guarded, printable, text
from .mux import Mux
from .sessions import CommandChannel

_ZERO = bytes(4)


class Opening:
    """One attempt to open a channel.

    :param place: the target, as seen from the server.
    :param deadline: monotonic seconds, or ``None``.
    :param done: called once, with the stream or the error.
    :param alone: whether the caller uses nothing but the socket of the stream.
    """

    def __init__(self, mux: Mux, place: Place, deadline: float | None, done: OnResult, *, alone: bool = False) -> None:
        self._mux = mux
        self.place = place
        self.is_alone = alone
        self.pending: CommandChannel | None = None  # open, but the server has not accepted the command yet
        self._deadline = deadline
        self._lock = threading.Lock()
        self._done: OnResult | None = done
        self._timer: Timer | None = None
        self._is_counted = False
        self._asked = 0.0  # when the request was sent, monotonic seconds
        self.window = WINDOW  # of the channel at first, in bytes

    @property
    def target(self) -> str:
        """The name of the target."""
        return str(self.place)

    def is_wanted(self) -> bool:
        """Return whether the caller still waits: it has not given up, and has no outcome yet."""
        return self._done is not None

    def begin(self) -> None:
        """Send the request; on the transport's thread."""
        mux = self._mux
        if mux.ended is not None:
            return self.resolve(mux.ended)
        if not self.is_wanted():
            return None
        # Counted before the request is sent: a connection that is drained must not close under it.
        self._is_counted = True
        mux.one_more()
        self._asked = now = time.monotonic()
        if self._deadline is not None:
            self._timer = Timer(mux.loop.timers, self._expired)
            self._timer.start(self._deadline, now)
        self._request(mux.number(self))
        return None

    def _request(self, number: int) -> None:
        """Request a channel."""
        kind, rest = (b"session", b"") if isinstance(self.place, Command) else _forward(self.place)
        self.window = first_window(len(self._mux))
        head = struct.pack(f">BI{len(kind)}sIII", OPEN, len(kind), kind, number, self.window, PACKET)
        self._mux.send(head + rest)

    def confirmed(self, number: int, remote: int, credit: int, packet: int) -> None:
        """Handle the confirmation: the server has opened the channel.

        :raises OSError: if there are no descriptors left.
        """
        self._mux.replied(self._asked)
        if isinstance(self.place, Command):
            session = CommandChannel(self._mux, number, remote, credit, packet, self)
            self._mux.put(number, session)
            session.execute(self.place.words)
        else:
            channel = Channel(self._mux, number, remote, credit, packet, self.target, self.window)
            self._mux.put(number, channel)
            stream = channel.hand_over(alone=self.is_alone)
            stream.drained = channel.when_over
            self.resolve(stream)
        if not self._mux.wire.is_prompt:
            # The system of a server before this one acknowledges the confirmation late, and Nagle's algorithm here
            # delays the first data of a target that speaks first by 40 ms. Any message carries the acknowledgement.
            self._mux.send(NOTHING)

    def resolve(self, outcome: Stream | OSError) -> None:
        """Report the outcome, if the caller still waits.

        It runs on the transport's thread, or on any thread after that has ended.
        """
        with self._lock:
            done, self._done = self._done, None
        if done is None:
            if isinstance(outcome, Stream):
                # It was given up while the server opened it.
                outcome.reset()
            return
        self._end()
        # Without the lock, which `give_up` takes on the caller's thread, perhaps within this very call.
        guarded(done, outcome)

    def give_up(self) -> None:
        """End the attempt without an outcome; on any thread."""
        with self._lock:
            done, self._done = self._done, None
        if done is not None:
            self._mux.loop.call(self._end)

    def refused(self, code: int, words: str) -> None:
        """Handle the failure: the server has not opened the channel."""
        if not self.is_wanted():
            return
        if isinstance(self.place, Command):
            self.resolve(session_rejected(self.target, self._mux.name, printable(words)))
        else:
            self.resolve(open_failure(self.target, self._mux.name, code, printable(words)))

    def _expired(self, now: float) -> None:
        name = self._mux.name
        if isinstance(self.place, Command):
            problem = f"{self.target}: {name} has not started it in time"
            self.resolve(ConnectError(problem, reason="connect_timeout"))
        else:
            self.resolve(open_timeout(self.target, name))

    def _end(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.stop()
        pending, self.pending = self.pending, None
        if pending is not None:
            pending.give_up()
        if self._is_counted:
            self._is_counted = False
            self._mux.one_less()


@functools.lru_cache
def _forward(place: Address) -> tuple[bytes, bytes]:
    """Return the kind of a channel to a target, and the end of its request; most streams have the same few targets.

    Source: RFC 4254, sections 6.1 and 7.2; OpenSSH's PROTOCOL, section 2.4.
    """
    if isinstance(place, TCPAddress):
        return b"direct-tcpip", text(place.host) + struct.pack(">I", place.port) + text("127.0.0.1") + _ZERO
    return b"direct-streamlocal@openssh.com", text(place.path) + text("") + _ZERO


def accept(mux: Mux, remote: int, credit: int, packet: int, target: str) -> Stream:
    """Accept a channel that the server opens.

    :param mux: the channels of the connection.
    :param remote: the server's number of the channel.
    :param credit: bytes that the server accepts.
    :param packet: bytes that it accepts in one packet.
    :param target: the name of the stream, in errors and records.
    :returns: the stream.
    :raises OSError: if there are no descriptors left.
    """
    number = mux.number()
    window = first_window(len(mux))
    try:
        channel = Channel(mux, number, remote, credit, packet, target, window)
    except OSError:
        mux.free(number)
        raise
    mux.put(number, channel)
    # After the channel is registered, as the server may send data at once.
    mux.send(struct.pack(">BIIII", CONFIRMED, remote, number, window, PACKET))
    return channel.hand_over()
