"""The channels of ssh and their events, from the lines on its standard error.

ssh logs that it has accepted a connection to one of its listeners, then the number of the channel; it accepts
connections in their order. It also logs to which path it is about to connect a stream that the server has opened, and
the requests for commands with their names. From then on each line about the channel concerns that stream. ssh logs each
event before it acts on it, so an EOF without a line before it is the end of ssh itself.

The number in ssh's reply to a request for a command does not tell its channel: when relay reads that reply, the channel
may be gone, and its number that of the next command. The order of the connections to ssh's control socket does not tell
it either: other relays look whether ssh still runs by one more.
"""

from __future__ import annotations

import itertools
import re
from collections import deque
from collections.abc import Callable
from typing import Protocol

from ....addresses.values import TCPAddress
from ..connection import Address

# The functions whose lines relay needs in addition to the level DEBUG1 (`LogVerbose`; the same texts from 8.5 to 10.5).
# ssh compares each message that it might log with all of them. So they begin with the file, where most differ, and are
# short: a tenth of ssh's instructions for a stream.
FUNCTIONS = (
    "nchan.c:chan_rcvd_*,nchan.c:chan_obuf_empty*,channels.c:channel_input_open_conf*,"
    "clientloop.c:client_status_conf*,mux.c:mux_master_process_new_*"
)

_NODELAY = b"debug1: getsockopt TCP_NODELAY"  # of each stream, since ssh has it on a Unix socket

UNIX = -2  # the port that ssh logs for a Unix socket
_SHOWN = 100  # bytes of a host or path that ssh logs
_ARRIVALS = 4096  # streams from the server that one listener may have waiting to be accepted

# Possessive, so that nothing is tried twice: each stream has eight lines.
_TAG = rb"(?:debug[123]: )?+(?:[\w.]++:\w++\(\):\d++ \([^)]*+\): )?+"
_CHANNEL = re.compile(
    _TAG + rb"channel (\d+): (new|open confirm|open failed|rcvd eof|rcvd close|obuf empty|free)"
).match
_ASKED = re.compile(_TAG + rb'channel (\d+): request tty 0, X 0, agent 0, subsys 0, term "(\d+)", ').match
_LINKED = re.compile(_TAG + rb"channel_new: (\d+) linked to control channel (\d+)").match
_ACCEPTED = re.compile(_TAG + rb"exec request accepted on channel (\d+)").match
_REQUESTED = re.compile(_TAG + rb"Connection to port -?\d+ forwarding to (.*) port (-?\d+) requested").match
_FORWARDED = re.compile(
    _TAG + rb"client_request_forwarded_(?:tcpip: listen .* port \d+, originator (.*) port (\d+)|streamlocal: )"
).match
_CONNECTING = re.compile(_TAG + rb"(?:connect_next: start for host (.*) \(\[|connect to .* failed: )").match

Key = tuple[bytes, int]
Peer = tuple[str, int] | str


class ChannelObserver(Protocol):
    """The events of one stream's channel."""

    def opened(self) -> None:
        """Handle the confirmation: the server has opened the channel."""

    def refused(self, text: str) -> None:
        """Handle the failure: the server has not opened the channel."""

    def ended(self) -> None:
        """Handle EOF or CLOSE of the server."""

    def freed(self) -> None:
        """Handle the last event: ssh has released the channel."""


class Arrival:
    """A stream that the server has opened; ssh is about to connect it to one of relay's listeners.

    :param peer: the client at the server, if the server reports it.
    :param channel: the observer of its channel.
    """

    __slots__ = ("channel", "peer")

    def __init__(self, peer: Peer, channel: ChannelObserver) -> None:
        self.peer = peer
        self.channel = channel


class SessionObserver(ChannelObserver, Protocol):
    """The events of a command's channel."""

    def accepted(self) -> None:
        """Handle the success of the request: the server runs the command."""

    def drained(self) -> None:
        """Handle the end of the output: ssh has passed on all of it."""


class ChannelLog:
    """The channels of one ssh; every method is called with its owner's lock held.

    :param make: makes the observer of a stream that the server opens.
    """

    def __init__(self, make: Callable[[], ChannelObserver]) -> None:
        self.expected: dict[Key, deque[ChannelObserver]] = {}  # by listener of ssh, in the order of relay's connects
        self.arrivals: dict[bytes, deque[Arrival]] = {}  # by listener of relay, in the order of ssh's connects
        self._make = make
        self._names = itertools.count(1)
        self._asked: dict[bytes, SessionObserver] = {}  # by the name of the request
        self._controls: dict[int, SessionObserver] = {}  # by ssh's number of the connection of the request
        self._numbers: dict[int, ChannelObserver] = {}
        self._sessions: dict[int, SessionObserver] = {}  # channels of commands
        self._accepting: deque[ChannelObserver] | None = None
        self._peer: Peer = ""
        self._connecting: tuple[deque[Arrival], Arrival] | None = None

    def clear(self) -> None:
        """Remove all of them: ssh has ended."""
        self.expected.clear()
        self.arrivals.clear()
        self._asked.clear()
        self._controls.clear()
        self._numbers.clear()
        self._sessions.clear()

    def read(self, line: bytes) -> bool:
        """Handle one line of ssh's standard error.

        :returns: whether it concerns channels.
        """
        match = _CHANNEL(line)
        if match is not None:
            self._channel(int(match[1]), match[2], line[match.end() :])
            return True
        match = _REQUESTED(line)
        if match is not None:
            # The line before the one with the number of the channel: ssh accepts a connection, then makes its channel.
            self._accepting = self.expected.get((match[1], int(match[2])))
            return True
        if line.startswith(_NODELAY):
            return True
        match = _ASKED(line)
        if match is not None:
            session = self._asked.pop(match[2], None)
            if session is not None:
                self._controls[int(match[1])] = session
            return True
        match = _LINKED(line)
        if match is not None:
            session = self._controls.get(int(match[2]))
            if session is not None:
                self._numbers[int(match[1])] = self._sessions[int(match[1])] = session
            return True
        match = _ACCEPTED(line)
        if match is not None:
            session = self._sessions.get(int(match[1]))
            if session is not None:
                session.accepted()
            return True
        return self._reverse(line)

    def name(self, session: SessionObserver) -> str:
        """Return a name for the request of a command, whose channel is recognized by it."""
        name = str(next(self._names))
        self._asked[name.encode()] = session
        return name

    def forget(self, name: str) -> None:
        """Remove a name: the command is over."""
        self._asked.pop(name.encode(), None)

    def _reverse(self, line: bytes) -> bool:
        match = _FORWARDED(line)
        if match is not None:
            self._peer = (match[1].decode("utf-8", "replace"), int(match[2])) if match[1] is not None else ""
            return True
        match = _CONNECTING(line)
        if match is None:
            return False
        # A connect that failed made no channel; ssh logs the next one only.
        self._not_connected()
        arrivals = self.arrivals.get(match[1]) if match[1] is not None else None
        if arrivals is not None and len(arrivals) < _ARRIVALS:
            self._connecting = arrivals, Arrival(self._peer, self._make())
            arrivals.append(self._connecting[1])
        return True

    def _not_connected(self) -> None:
        """Remove an arrival that did not become a channel."""
        connecting, self._connecting = self._connecting, None
        if connecting is not None:
            arrivals, arrival = connecting
            if arrival in arrivals:
                arrivals.remove(arrival)
            arrival.channel.freed()

    def _channel(self, number: int, event: bytes, rest: bytes) -> None:
        if event == b"new":
            return self._new(number, rest)
        # Numbers are used again: a connection to the control socket whose channel is gone must not be found by its
        # number.
        if event == b"free":
            self._controls.pop(number, None)
        channel = self._numbers.get(number)
        if channel is None:
            return
        if event == b"open confirm":
            channel.opened()
        elif event == b"open failed":
            channel.refused(rest.lstrip(b": ").decode("utf-8", "replace").strip())
        elif event == b"free":
            del self._numbers[number]
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
        # Other channels may begin between the two lines; only this kind is of a local forward.
        elif self._accepting and b"direct-" in rest:
            self._numbers[number] = self._accepting.popleft()
        self._accepting = None


def shown(place: Address) -> Key:
    """Return an address as ssh logs it: its first bytes, unprintable ones encoded (vis(3))."""
    name, port = (place.host, place.port) if isinstance(place, TCPAddress) else (place.path, UNIX)
    return b"".join(map(_visible, name.encode("utf-8", "surrogateescape")[:_SHOWN])), port


def is_plain(place: Address) -> bool:
    """Return whether an address has no character that could imitate a line of ssh, or end a C string."""
    name = place.host if isinstance(place, TCPAddress) else place.path
    return not any(char < " " or char == "\x7f" for char in name)


def _visible(byte: int) -> bytes:
    if byte == 0x5C:
        return rb"\\"
    if 0x20 <= byte < 0x7F:
        return bytes((byte,))
    return b"\\%03o" % byte
