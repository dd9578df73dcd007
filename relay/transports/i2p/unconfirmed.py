"""Streams that are said to be there: whether anybody answers on them."""

from __future__ import annotations

import socket
import struct
import sys
import time
from collections.abc import Callable

from ...streams.stream import Stream, nonblocking
from .deadlines import Clock

__all__ = ["UnconfirmedStream", "UnconfirmedStreams"]

SILENT = 12.0  # seconds without a byte after which a stream that is said to be there is doubted
MOST = 1000  # destinations that are remembered

_TCP_INFO = getattr(socket, "TCP_INFO", None) if sys.platform == "linux" else None
_RECEIVED = struct.Struct("@128xQ")  # struct tcp_info of linux/tcp.h: tcpi_bytes_received


class UnconfirmedStream:
    """One stream that is said to be there, from that moment to its end.

    :param unconfirmed: those of its session.
    :param dest: where it leads to.
    :param read: bytes that had come on its socket when it was made.
    :param leave: called once when it is over; must not block.
    """

    __slots__ = ("begun", "dest", "stream", "_leave", "_read", "_streams")

    def __init__(self, unconfirmed: UnconfirmedStreams, dest: str, read: int, leave: Callable[[], object]) -> None:
        self.dest = dest
        self.begun = 0.0
        self.stream: Stream | None = None
        self._streams = unconfirmed
        self._read = read
        self._leave = leave

    @property
    def answered(self) -> bool | None:
        """Whether a byte has come; ``None`` where nobody can tell, which is as good as an answer."""
        stream = self.stream
        if stream is None or stream.answered:
            return True
        if stream.received is not None:
            return stream.received() > 0
        total = _bytes_received(stream.socket)
        return total > self._read if total is not None else None

    def expire(self, now: float) -> None:
        """Look whether there is an answer; in the pump's thread."""
        self._streams.look(self)

    @nonblocking
    def over(self) -> None:
        """The stream is over; in any thread, once."""
        self._streams.end(self)
        self._leave()


class UnconfirmedStreams:
    """The streams of one session that are said to be there.

    :param clock: tells when they are to have answered.
    :param silent: called with a destination where nobody answers; in the pump's thread.
    :param answered: called with one where somebody does; in any thread.
    """

    def __init__(self, clock: Clock, silent: Callable[[str], object], answered: Callable[[str], object]) -> None:
        self._clock = clock
        self._silent = silent
        self._answered = answered
        self._in_vain: dict[str, float] = {}  # destination → seconds that clients have waited there who gave up

    def begin(self, unconfirmed: UnconfirmedStream, stream: Stream, now: float) -> None:
        """Look after a while whether there is an answer; in the pump's thread."""
        unconfirmed.stream, unconfirmed.begun = stream, now
        self._clock.set(unconfirmed, now + SILENT)
        if self._in_vain.get(unconfirmed.dest, 0.0) >= SILENT:  # clients may be less patient, each of them
            self._in_vain.pop(unconfirmed.dest, None)
            self._silent(unconfirmed.dest)

    def end(self, unconfirmed: UnconfirmedStream) -> None:
        """The stream is over; in any thread."""
        self._clock.drop(unconfirmed)
        stream = unconfirmed.stream
        if stream is None:
            return
        if stream.answered or (stream.received is not None and stream.received()):
            self._in_vain.pop(unconfirmed.dest, None)
            self._answered(unconfirmed.dest)
        elif stream.received is not None:
            if len(self._in_vain) > MOST:
                self._in_vain.clear()
            waited = time.monotonic() - unconfirmed.begun
            self._in_vain[unconfirmed.dest] = self._in_vain.get(unconfirmed.dest, 0.0) + waited

    def look(self, unconfirmed: UnconfirmedStream) -> None:
        """Tell of a stream whether there is an answer; in the pump's thread."""
        answered = unconfirmed.answered
        if answered is False:
            self._silent(unconfirmed.dest)
        elif answered:
            self._answered(unconfirmed.dest)


def _bytes_received(sock: socket.socket) -> int | None:
    """Bytes that the kernel has received on a TCP connection; ``None`` where it does not tell."""
    if _TCP_INFO is None:
        return None
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _RECEIVED.size)
    except OSError:
        return None
    return int(_RECEIVED.unpack(info)[0]) if len(info) == _RECEIVED.size else None
