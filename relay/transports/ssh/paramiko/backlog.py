"""What has come for somebody who does not take it now."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from itertools import islice

__all__ = ["Backlog"]

_CHUNK = 64 << 10  # bytes
_AT_ONCE = 8  # chunks to send at once


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
        """Put a copy of ``piece`` behind the rest."""
        chunks = self._chunks
        if chunks and len(chunks[-1]) + len(piece) <= _CHUNK:
            chunks[-1] += piece
        else:
            chunks.append(bytearray(piece))
        self.size += len(piece)

    def send(self, sendmsg: Callable[[Iterable[memoryview | bytearray]], int]) -> int:
        """Send what is taken, and forget it.

        :param sendmsg: of a non-blocking socket.
        :returns: how many bytes were taken.
        :raises OSError: as ``sendmsg``.
        """
        chunks = self._chunks
        with memoryview(chunks[0]) as whole, whole[self._sent :] as first:
            taken = sendmsg([first, *islice(chunks, 1, _AT_ONCE)])
        self.size -= taken
        rest = taken + self._sent
        while chunks and rest >= len(chunks[0]):
            rest -= len(chunks.popleft())
        self._sent = rest
        return taken

    def clear(self) -> None:
        """Forget everything."""
        self._chunks.clear()
        self.size = self._sent = 0
