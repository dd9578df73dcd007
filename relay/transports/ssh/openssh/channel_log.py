"""Which stream is which channel of ssh, and what has become of it, from the lines on its standard error.

ssh says that it accepted a connection to one of its listeners, then the number of the channel; it accepts them in the
order in which they were connected. Likewise it says where it is about to connect a stream that the server has opened.
From then on each line about the channel tells of that stream. A line is written
before ssh does what it says, so an end of file without a line before it is ssh's own end.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from typing import Protocol

from ....addresses.values import TCPAddress
from ..connection import Address

__all__ = ["UNIX", "Arrival", "Channel", "Channels", "FUNCTIONS", "is_plain", "shown"]

# The lines that are needed beside those of the level DEBUG1 (`LogVerbose`; the same words from 8.5 to 10.5).
FUNCTIONS = "*:channel_input_open_confirmation():*,*:chan_rcvd_*,*:chan_obuf_empty():*,*:client_status_confirm():*"

UNIX = -2  # what ssh shows as the port of a Unix socket
_SHOWN = 100  # bytes of a host or path that ssh shows
_ARRIVALS = 4096  # streams from the server that one listener may have waiting to be accepted

_TAG = rb"(?:debug[123]: )?(?:[\w.]+:\w+\(\):\d+ \([^)]*\): )?"
_CHANNEL = re.compile(
    _TAG + rb"channel (\d+): (new|open confirm|open failed|rcvd eof|rcvd close|obuf empty|free)(.*)"
).match
_ACCEPTED = re.compile(_TAG + rb"exec request accepted on channel (\d+)").match
_REQUESTED = re.compile(_TAG + rb"Connection to port -?\d+ forwarding to (.*) port (-?\d+) requested").match
_FORWARDED = re.compile(
    _TAG + rb"client_request_forwarded_(?:tcpip: listen .* port \d+, originator (.*) port (\d+)|streamlocal: )"
).match
_CONNECTING = re.compile(_TAG + rb"(?:connect_next: start for host (.*) \(\[|connect to .* failed: )").match

Key = tuple[bytes, int]
Peer = tuple[str, int] | str


class Channel(Protocol):
    """What is told of one stream."""

    def opened(self) -> None:
        """The far side has taken it."""

    def refused(self, text: str) -> None:
        """The far side has not, and why."""

    def ended(self) -> None:
        """The far side has ended its direction."""

    def freed(self) -> None:
        """Nothing more comes: it is over for ssh."""


class Arrival:
    """A stream that the server has opened, from the moment before ssh connects it to a listener of ours.

    :param peer: who has connected at the server, if that tells.
    :param channel: told of it.
    """

    __slots__ = ("channel", "peer")

    def __init__(self, peer: Peer, channel: Channel) -> None:
        self.peer = peer
        self.channel = channel


class Session(Channel, Protocol):
    """What is told of a command's channel."""

    def accepted(self) -> None:
        """The far side runs the command."""

    def drained(self) -> None:
        """All of its output has been passed on, and there is no more."""


class _Unclaimed:
    """What was told of a command's channel before it is known whose it is."""

    def __init__(self) -> None:
        self.told: dict[str, None] = {}  # the names of methods, in their order

    def opened(self) -> None:
        """Every session is."""

    def refused(self, text: str) -> None:
        """The answer says so, too."""

    def accepted(self) -> None:
        self.told["accepted"] = None

    def ended(self) -> None:
        self.told["ended"] = None

    def drained(self) -> None:
        self.told["drained"] = None

    def freed(self) -> None:
        self.told["freed"] = None


class Channels:
    """The channels of one ssh; every method is called with its owner's lock held.

    :param make: makes the :class:`Channel` of a stream that the server opens.
    """

    def __init__(self, make: Callable[[], Channel]) -> None:
        self.expected: dict[Key, deque[Channel]] = {}  # of each listener of ssh, in the order of our connects
        self.arrivals: dict[bytes, deque[Arrival]] = {}  # of each listener of ours, in the order of ssh's connects
        self._make = make
        self._numbers: dict[int, Channel] = {}
        self._sessions: dict[int, Session] = {}  # channels of commands, also those that nobody has claimed yet
        self._accepting: deque[Channel] | None = None
        self._peer: Peer = ""
        self._connecting: tuple[deque[Arrival], Arrival] | None = None

    def clear(self) -> None:
        """Forget all of them: ssh is gone."""
        self.expected.clear()
        self.arrivals.clear()
        self._numbers.clear()
        self._sessions.clear()

    def read(self, line: bytes) -> bool:
        """Take one line of ssh's standard error.

        :returns: whether it was about channels.
        """
        match = _CHANNEL(line)
        if match is not None:
            self._channel(int(match[1]), match[2], match[3])
            return True
        match = _REQUESTED(line)
        if match is not None:
            self._accepting = self.expected.get((match[1], int(match[2])))
            return True
        match = _ACCEPTED(line)
        if match is not None:
            session = self._sessions.get(int(match[1]))
            if session is not None:
                session.accepted()
            return True
        return self._is_nodelay(line) or self._reverse(line)

    def claim(self, number: int, session: Session) -> None:
        """Tell of a channel for a command, from its beginning on.

        :param number: what ssh calls it.
        """
        before = self._sessions.get(number)
        self._numbers[number] = self._sessions[number] = session
        if isinstance(before, _Unclaimed):
            if "freed" in before.told:
                del self._numbers[number], self._sessions[number]
            for name in before.told:
                getattr(session, name)()

    @staticmethod
    def _is_nodelay(line: bytes) -> bool:
        return line.startswith(b"debug1: getsockopt TCP_NODELAY")

    def _reverse(self, line: bytes) -> bool:
        match = _FORWARDED(line)
        if match is not None:
            self._peer = (match[1].decode("utf-8", "replace"), int(match[2])) if match[1] is not None else ""
            return True
        match = _CONNECTING(line)
        if match is None:
            return False
        self._not_connected()
        arrivals = self.arrivals.get(match[1]) if match[1] is not None else None
        if arrivals is not None and len(arrivals) < _ARRIVALS:
            self._connecting = arrivals, Arrival(self._peer, self._make())
            arrivals.append(self._connecting[1])
        return True

    def _not_connected(self) -> None:
        """What ssh was about to connect to us has not become a channel."""
        connecting, self._connecting = self._connecting, None
        if connecting is not None:
            arrivals, arrival = connecting
            if arrival in arrivals:
                arrivals.remove(arrival)
            arrival.channel.freed()

    def _channel(self, number: int, event: bytes, rest: bytes) -> None:
        if event == b"new":
            return self._new(number, rest)
        channel = self._numbers.get(number)
        if channel is None:
            return
        if event == b"open confirm":
            channel.opened()
        elif event == b"open failed":
            channel.refused(rest.lstrip(b": ").decode("utf-8", "replace").strip())
        elif event == b"free":
            del self._numbers[number]
            if not isinstance(channel, _Unclaimed):
                self._sessions.pop(number, None)
            channel.freed()
        elif event == b"obuf empty":
            session = self._sessions.get(number)
            if session is channel and session is not None:
                session.drained()
        else:
            channel.ended()

    def _new(self, number: int, rest: bytes) -> None:
        if self._connecting is not None:
            self._numbers[number] = self._connecting[1].channel
            self._connecting = None
        elif self._accepting and b"direct-" in rest:
            self._numbers[number] = self._accepting.popleft()
        elif b"client-session" in rest:
            self._numbers[number] = self._sessions[number] = _Unclaimed()
        self._accepting = None


def shown(place: Address) -> Key:
    """How ssh shows a place: the first bytes of it, unprintable ones encoded (vis(3))."""
    name, port = (place.host, place.port) if isinstance(place, TCPAddress) else (place.path, UNIX)
    return b"".join(map(_visible, name.encode("utf-8", "surrogateescape")[:_SHOWN])), port


def is_plain(place: Address) -> bool:
    """Whether a place has nothing in it that could pass for a line of ssh's own, or that C cannot hold."""
    name = place.host if isinstance(place, TCPAddress) else place.path
    return not any(char < " " or char == "\x7f" for char in name)


def _visible(byte: int) -> bytes:
    if byte == 0x5C:
        return rb"\\"
    if 0x20 <= byte < 0x7F:
        return bytes((byte,))
    return b"\\%03o" % byte
