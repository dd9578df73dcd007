"""A stream that was asked for and is not there yet, and why the server does not make it."""

from __future__ import annotations

import struct
import threading
import time

from ....addresses.hops import Command
from ....addresses.values import TCPAddress
from ....errors import ConnectError
from ....eventloop.loop import Timer
from ....streams.stream import Stream
from ..connection import OnResult, Place
from ..open_failures import refusal
from .channel import PACKET, WINDOW, Channel
from .messages import OPEN, guarded, printable, text
from .mux import Channels
from .sessions import CommandChannel

__all__ = ["Opening"]

_ZERO = bytes(4)


class Opening:
    """One attempt to open a channel.

    :param place: where to, seen from the server.
    :param deadline: monotonic seconds, or ``None``.
    :param done: called once, with the stream or the error.
    """

    def __init__(self, channels: Channels, place: Place, deadline: float | None, done: OnResult) -> None:
        self._channels = channels
        self.place = place
        self.pending: CommandChannel | None = None  # it is there, and the server has not taken the command yet
        self._deadline = deadline
        self._lock = threading.Lock()
        self._done: OnResult | None = done
        self._timer: Timer | None = None
        self._begun = False

    @property
    def target(self) -> str:
        """The name of the place."""
        return str(self.place)

    def is_wanted(self) -> bool:
        """Whether nobody has given it up, and nobody was told anything yet."""
        return self._done is not None

    def begin(self) -> None:
        """Ask the server; in the transport's thread."""
        channels = self._channels
        if channels.ended is not None:
            return self.tell(channels.ended)
        if not self.is_wanted():
            return None
        self._begun = True
        channels.one_more()
        if self._deadline is not None:
            self._timer = Timer(channels.loop.timers, self._expired)
            self._timer.start(self._deadline, time.monotonic())
        self._ask(channels.number(self))
        return None

    def _ask(self, number: int) -> None:
        """Ask for a channel (RFC 4254, sections 6.1 and 7.2; OpenSSH's PROTOCOL, section 2.4)."""
        place = self.place
        if isinstance(place, Command):
            kind, rest = b"session", b""
        elif isinstance(place, TCPAddress):
            kind, rest = b"direct-tcpip", text(place.host) + struct.pack(">I", place.port) + text("127.0.0.1") + _ZERO
        else:
            kind, rest = b"direct-streamlocal@openssh.com", text(place.path) + text("") + _ZERO
        head = struct.pack(f">BI{len(kind)}sIII", OPEN, len(kind), kind, number, WINDOW, PACKET)
        self._channels.send(head + rest)

    def confirmed(self, number: int, remote: int, credit: int, packet: int) -> None:
        """The server has opened the channel.

        :raises OSError: if there are no descriptors left.
        """
        if isinstance(self.place, Command):
            session = CommandChannel(self._channels, number, remote, credit, packet, self)
            self._channels.put(number, session)
            session.ask(self.place.words)
        else:
            channel = Channel(self._channels, number, remote, credit, packet, self.target)
            self._channels.put(number, channel)
            self.tell(channel.hand_over())

    def tell(self, outcome: Stream | OSError) -> None:
        """Say what came of it, if anybody still wants to know; in the transport's thread, or in any if there is none
        any more."""  # noqa: D205, D209
        with self._lock:
            done, self._done = self._done, None
        if done is None:
            if isinstance(outcome, Stream):
                outcome.reset()
            return
        self._end()
        guarded(done, outcome)

    def give_up(self) -> None:
        """Any thread: nobody wants it any more."""
        with self._lock:
            done, self._done = self._done, None
        if done is not None:
            self._channels.loop.call(self._end)

    def refused(self, code: int, words: str) -> None:
        """The server does not make it."""
        if self.is_wanted():
            self.tell(_error(self.place, self._channels.name, code, printable(words)))

    def _expired(self, now: float) -> None:
        name = self._channels.name
        problem = f"no answer in time through {name}; is the host up and the port open?"
        if isinstance(self.place, Command):
            problem = f"{name} has not begun to run it in time"
        self.tell(ConnectError(f"{self.target}: {problem}", reason="connect_timeout"))

    def _end(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.stop()
        pending, self.pending = self.pending, None
        if pending is not None:
            pending.give_up()
        if self._begun:
            self._begun = False
            self._channels.one_less()


def _error(place: Place, server: str, code: int, words: str) -> ConnectError:
    if not isinstance(place, Command):
        return refusal(str(place), server, code, words)
    said = f"says {server}" + (f" ({words})" if words else "")
    problem = f"denied, {said}; may this user run commands there, and is MaxSessions enough?"
    return ConnectError(f"{place}: {problem}", reason="denied")
