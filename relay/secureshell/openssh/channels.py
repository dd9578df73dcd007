"""Which stream is which channel of ssh, and what has become of it, from the lines on its standard error.

ssh says that it accepted a connection to one of its listeners, then the number of the channel; it accepts them in the
order in which they were connected. From then on each line about the channel tells of that stream. A line is written
before ssh does what it says, so an end of file without a line before it is ssh's own end.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from typing import Protocol

from ...address import TCPAddress
from ..connection import Place

__all__ = ["UNIX", "Arrival", "Channel", "Channels", "FUNCTIONS", "shown"]

# The lines that are wanted beside those of the level DEBUG1 (`LogVerbose`; the same words from 8.5 to 10.5).
FUNCTIONS = "*:channel_input_open_confirmation():*,*:chan_rcvd_*"

UNIX = -2  # what ssh shows as the port of a Unix socket
_SHOWN = 100  # bytes of a host or path that ssh shows
_ARRIVALS = 4096  # streams from the server that may wait to be accepted

_TAG = rb"(?:debug[123]: )?(?:[\w.]+:\w+\(\):\d+ \([^)]*\): )?"
_CHANNEL = re.compile(_TAG + rb"channel (\d+): (new|open confirm|open failed|rcvd eof|rcvd close|free)(.*)").match
_REQUESTED = re.compile(_TAG + rb"Connection to port -?\d+ forwarding to (.*) port (-?\d+) requested").match
_FORWARDED = re.compile(
    _TAG + rb"client_request_forwarded_(?:tcpip: listen (.*) port (\d+), originator (.*) port (\d+)"
    rb"|streamlocal: request: (.*))"
).match

Key = tuple[bytes, int]


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
    """A stream that the server has opened and that waits to be accepted.

    :param key: where the server listened for it.
    :param peer: who has connected there, if the server tells.
    :param channel: told of it.
    """

    __slots__ = ("channel", "key", "peer")

    def __init__(self, key: Key, peer: tuple[str, int] | str, channel: Channel) -> None:
        self.key = key
        self.peer = peer
        self.channel = channel


class Channels:
    """The channels of one ssh; every method is called with its owner's lock held.

    :param make: makes the :class:`Channel` of a stream that the server opens.
    """

    def __init__(self, make: Callable[[], Channel]) -> None:
        self.expected: dict[Key, deque[Channel]] = {}  # of each listener of ssh, in the order of our connects
        self.arrivals: deque[Arrival] = deque()
        self._make = make
        self._numbers: dict[int, Channel] = {}
        self._accepting: deque[Channel] | tuple[Key, tuple[str, int] | str] | None = None

    def clear(self) -> None:
        """Forget all of them: ssh is gone."""
        self.expected.clear()
        self.arrivals.clear()
        self._numbers.clear()

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
        match = _FORWARDED(line)
        if match is not None:
            self._accepting = _who(match)
            return True
        return line.startswith(b"debug1: getsockopt TCP_NODELAY")

    def arrived(self, key: Key) -> Arrival | None:
        """The stream that was the next to come to a place of the server."""
        # The same port at another host counts where nothing else does: a server may call its own address otherwise.
        found = [one for one in self.arrivals if one.key == key] or [
            one for one in self.arrivals if one.key[1] == key[1]
        ]
        if not found:
            return None
        self.arrivals.remove(found[0])
        return found[0]

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
            channel.freed()
        else:
            channel.ended()

    def _new(self, number: int, rest: bytes) -> None:
        accepting, self._accepting = self._accepting, None
        if isinstance(accepting, tuple):
            if (b"forwarded" in rest or b"[" in rest) and len(self.arrivals) < _ARRIVALS:
                arrival = Arrival(*accepting, self._make())
                self._numbers[number] = arrival.channel
                self.arrivals.append(arrival)
        elif accepting and b"direct-" in rest:
            self._numbers[number] = accepting.popleft()


def shown(place: Place) -> Key:
    """How ssh shows a place: the first bytes of it, unprintable ones encoded (vis(3))."""
    name, port = (place.host, place.port) if isinstance(place, TCPAddress) else (place.path, UNIX)
    return b"".join(map(_visible, name.encode("utf-8", "surrogateescape")[:_SHOWN])), port


def _who(match: re.Match[bytes]) -> tuple[Key, tuple[str, int] | str]:
    """Where a stream comes from, and who has connected there."""
    if match[5] is not None:
        return (match[5].strip(), UNIX), ""
    return (match[1], int(match[2])), (match[3].decode("utf-8", "replace"), int(match[4]))


def _visible(byte: int) -> bytes:
    if byte == 0x5C:
        return rb"\\"
    if 0x20 <= byte < 0x7F or byte in b"\a\b\t\n\r":
        return bytes((byte,))
    return b"\\%03o" % byte
