"""Flow control of a channel's incoming direction: its window, and the bytes that its owner has not read."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from itertools import islice

WINDOW = 2 << 20  # bytes that the server may send before the owner of the stream has read them; the same as in OpenSSH
LEAST = 256 << 10  # bytes, beside many other streams
TOGETHER = 32 << 20  # bytes that the first windows of all streams may have, unless that is less than LEAST for each
LARGEST = 16 << 20  # bytes, for an owner that reads fast: what 1 Gbit/s over 100 ms needs

_CHUNK = 64 << 10  # bytes
_AT_ONCE = 8  # chunks to send at once


def first_window(streams: int) -> int:
    """Return the first window of a stream, in bytes.

    The server fills all windows if its services send faster than the connection: a hundred of 2 MiB cost OpenSSH's
    server seconds of CPU, for the reason in :class:`Window`.

    :param streams: those of the connection, with this one.
    """
    return max(LEAST, min(WINDOW, TOGETHER // streams))


class Window:
    """The bytes that the server may still send on one channel (RFC 4254, section 5.2).

    It grows only while it limits the throughput: while half of it passes within a round trip. A larger one would only
    be filled with data that wait at the server, where that is expensive: OpenSSH's server copies and wipes its whole
    buffer each time that the buffer grows, so that filling 16 MiB took seconds of CPU.

    :param first: its first size in bytes, which the server knows from the opening of the channel.
    """

    __slots__ = ("_freed", "_since", "_steady", "first", "left", "size")

    def __init__(self, first: int = WINDOW) -> None:
        self.first = self.size = self.left = first
        self._freed = 0  # bytes that were passed on and not yet given back to the server
        self._steady = 0  # bytes that were passed on since the backlog was last in use, or since the last look
        self._since = 0.0  # when the count of them began, monotonic seconds

    def free(self, size: int) -> bool:
        """Count ``size`` bytes as passed on.

        :returns: whether it is time to give them back to the server: an eighth of the window has gathered.
        """
        self._freed += size
        return self._freed >= self.size >> 3

    def give_back(self, has_backlog: bool, budget: int, round_trip: float, now: float) -> tuple[int, int]:
        """Give back what was freed. The window may grow, after half a window at the earliest.

        :param has_backlog: whether bytes wait for the owner: then the window does not grow.
        :param budget: bytes by which it may grow.
        :param round_trip: seconds to the server and back, at the least; infinite if unknown.
        :param now: monotonic seconds.
        :returns: the bytes that the server may send in addition, and by how many of them the window has grown.
        """
        grown = 0
        self._steady = 0 if has_backlog else self._steady + self._freed
        if has_backlog or self._steady >= self.size >> 1:
            # Half of it within a round trip: the window, and not the reader, was what the server waited for.
            if not has_backlog and now - self._since <= round_trip:
                grown = min(self.size, LARGEST - self.size, budget)
                self.size += grown
            self._steady, self._since = 0, now
        more, self._freed = self._freed + grown, 0
        self.left += more
        return more, grown


class Backlog:
    """Bytes in order. Pieces are gathered into chunks, so that small ones take no more memory than what they hold."""

    __slots__ = ("_chunks", "_sent", "size")

    def __init__(self) -> None:
        self.size = 0
        self._chunks: deque[bytearray] = deque()
        self._sent = 0  # bytes of the first chunk

    def __len__(self) -> int:
        return self.size

    def add(self, piece: memoryview) -> None:
        """Append a copy of ``piece``."""
        chunks = self._chunks
        if chunks and len(chunks[-1]) + len(piece) <= _CHUNK:
            chunks[-1] += piece
        else:
            chunks.append(bytearray(piece))
        self.size += len(piece)

    def extend(self, pieces: Iterable[memoryview]) -> None:
        """Append a copy of each piece."""
        for piece in pieces:
            self.add(piece)

    def send(self, sendmsg: Callable[[Iterable[memoryview | bytearray]], int]) -> int:
        """Send as much as the socket accepts, and remove it.

        :param sendmsg: of a non-blocking socket.
        :returns: how many bytes were accepted.
        :raises OSError: as ``sendmsg``.
        """
        chunks = self._chunks
        # Views, so that nothing is copied; released at once, since a bytearray with a view cannot grow.
        with memoryview(chunks[0]) as whole, whole[self._sent :] as first:
            taken = sendmsg([first, *islice(chunks, 1, _AT_ONCE)])
        self.size -= taken
        rest = taken + self._sent
        while chunks and rest >= len(chunks[0]):
            rest -= len(chunks.popleft())
        self._sent = rest
        return taken

    def clear(self) -> None:
        """Remove everything."""
        self._chunks.clear()
        self.size = self._sent = 0
