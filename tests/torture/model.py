"""The model of one relayed connection: what each side has sent and seen, and what it may see next.

A direction is a stream of bytes that its number and each position decide, so a byte that is lost, doubled, reordered or
of another connection is seen at once. The rules, for the receiver of a direction:

1. What it has received is a prefix of what was sent.
2. It sees an EOF only after the sender's end of output, and after all that was sent: a cut is no end.
3. It sees a reset only if something has excused one: a side has reset or closed, or a limit, an operator or a fault has
   ended the connection.
4. If nothing has excused a reset, it receives all that was sent, and then an EOF.
"""

from __future__ import annotations

import random

_SIZE = 1 << 20
_BLOCK = random.Random(20).randbytes(_SIZE)
_TWICE = memoryview(_BLOCK + _BLOCK)
_STEP = 40_503  # odd, so that directions begin at different places of the block


class ModelError(AssertionError):
    """A rule that a relay has broken."""


def pattern(number: int, position: int, size: int) -> memoryview:
    """Return the bytes of a direction: at most 1 MiB.

    :param number: of the direction.
    :param position: of the first byte.
    :param size: how many.
    """
    begin = (number * _STEP + position) % _SIZE
    return _TWICE[begin : begin + size]


class Direction:
    """The bytes from one side of a connection to the other.

    :param number: unique, of this direction.
    :param name: for errors.
    :param has_reset: whether its receiver learns of a cut by a reset. A Unix socket that is not relay's own
        cannot: there a cut is an EOF.
    :param answers: the other direction, if a cut after the end of that one is an EOF: relay takes the end of a TLS
        connection for the answer to close_notify, see docs/limits.md.
    """

    def __init__(self, number: int, name: str, *, has_reset: bool = True, answers: Direction | None = None) -> None:
        self.number = number
        self.name = name
        self._has_reset = has_reset
        self.answers = answers
        self.sent = 0
        self.received = 0
        self.is_ended = False  # by the sender: it sends no more
        self.has_eof = False  # the receiver has seen the EOF
        self.is_excused = False  # its receiver may see a reset from now on
        self.is_reset = False  # the receiver has seen one
        self.is_left = False  # the receiver does not read any more

    def next_bytes(self, size: int) -> memoryview:
        """Return the bytes to send next; :meth:`on_sent` tells how many of them were."""
        return pattern(self.number, self.sent, size)

    def on_sent(self, size: int) -> None:
        """Take the number of bytes that the socket has taken."""
        self.sent += size

    def on_received(self, data: bytes) -> None:
        """Check what the receiver has got."""
        if self.has_eof:
            raise ModelError(f"{self.name}: {len(data)} bytes after the EOF")
        if self.received + len(data) > self.sent:
            more = self.received + len(data) - self.sent
            raise ModelError(f"{self.name}: {more} bytes more than the {self.sent} that were sent")
        if data != pattern(self.number, self.received, len(data)):
            raise ModelError(f"{self.name}: wrong bytes in the {len(data)} from {self.received} on{self._hint(data)}")
        self.received += len(data)

    def _hint(self, data: bytes) -> str:
        """Return where the first bytes come from, if they are of the block."""
        found = _BLOCK.find(bytes(data[:16]))
        if found < 0:
            return ""
        own = (found - self.number * _STEP) % _SIZE
        return f"; they are those from {own} on, or of another direction"

    def on_eof(self) -> None:
        """Check that the receiver may see an EOF."""
        has_reset = self._has_reset and not (self.answers is not None and self.answers.is_ended)
        if self.is_excused and not has_reset and not (self.is_ended and self.received == self.sent):
            return self.on_reset()
        if not self.is_ended:
            raise ModelError(f"{self.name}: an EOF, and the sender has not ended")
        if self.received < self.sent:
            raise ModelError(f"{self.name}: an EOF after {self.received} of {self.sent} bytes: a cut that looks whole")
        self.has_eof = True
        return None

    def on_reset(self) -> None:
        """Check that the receiver may see a reset."""
        if not self.is_excused:
            raise ModelError(f"{self.name}: a reset after {self.received} of {self.sent} bytes, without a cause")
        self.is_reset = True

    @property
    def is_over(self) -> bool:
        """True if the receiver has nothing more to see."""
        return self.has_eof or self.is_reset or self.is_left
