"""Bytes that wait, in the pieces in which they came."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import islice

Piece = bytes | memoryview

_SMALL = 4096  # bytes; smaller pieces are joined, as each costs some memory of its own


class Pieces:
    """A queue of bytes. Moving 64 KiB costs nothing, where a ``bytearray`` moves all that is behind them."""

    __slots__ = ("_pieces", "_size")

    def __init__(self) -> None:
        self._pieces: deque[Piece] = deque()
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __bytes__(self) -> bytes:
        return b"".join(self._pieces)

    def append(self, data: Piece) -> None:
        """Put bytes at the end; they stay as they are as long as they are here."""
        pieces = self._pieces
        if pieces and len(data) < _SMALL and len(pieces[-1]) < _SMALL:
            pieces[-1] = b"".join((pieces[-1], data))
        else:
            pieces.append(data)
        self._size += len(data)

    def take(self, most: int) -> Piece:
        """Return the first piece, or so many bytes of it, and forget them."""
        piece = self._pieces.popleft()
        if len(piece) > most:
            view = memoryview(piece)
            self._pieces.appendleft(view[most:])
            piece = view[:most]
        self._size -= len(piece)
        return piece

    def first(self, most: int) -> Iterator[Piece]:
        """Return so many pieces from the beginning."""
        return islice(self._pieces, most)

    def drop(self, size: int) -> None:
        """Forget the first bytes."""
        while size > 0:
            size -= len(self.take(size))

    def move(self, size: int, to: Pieces) -> None:
        """Move the first bytes to the end of another queue."""
        while size > 0:
            piece = self.take(size)
            to.append(piece)
            size -= len(piece)

    def keep(self) -> None:
        """Copy all that is a view, for its memory is about to be used again."""
        pieces = self._pieces
        for at, piece in enumerate(pieces):
            if not isinstance(piece, bytes):
                pieces[at] = bytes(piece)

    def put_back(self, before: Pieces) -> None:
        """Put all bytes of another queue before these ones."""
        self._pieces.extendleft(reversed(before._pieces))
        self._size += len(before)
        before.clear()

    def clear(self) -> None:
        """Forget all bytes."""
        self._pieces.clear()
        self._size = 0
