"""Streams that are said to be there: whether anybody answers on them."""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Callable

from ..stream import Stream, nonblocking
from .clock import Clock

__all__ = ["Trial", "Trials"]

SILENT = 12.0  # seconds without a byte after which a stream that is said to be there is doubted

_TCP_INFO = getattr(socket, "TCP_INFO", None) if sys.platform == "linux" else None
_RECEIVED = struct.Struct("@128xQ")  # struct tcp_info of linux/tcp.h: tcpi_bytes_received


class Trial:
    """One stream that is said to be there, from that moment to its end.

    :param trials: those of its session.
    :param dest: where it leads to.
    :param read: bytes that had come on its socket when it was made.
    :param leave: called once when it is over; must not block.
    """

    __slots__ = ("dest", "stream", "_leave", "_read", "_trials")

    def __init__(self, trials: Trials, dest: str, read: int, leave: Callable[[], object]) -> None:
        self.dest = dest
        self.stream: Stream | None = None
        self._trials = trials
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
        self._trials.look(self)

    @nonblocking
    def over(self) -> None:
        """The stream is over; in any thread, once."""
        self._trials.end(self)
        self._leave()


class Trials:
    """The streams of one session that are said to be there.

    :param clock: tells when they are to have answered.
    :param silent: called with a destination where nobody answers; in the pump's thread.
    :param answered: called with one where somebody does; in any thread.
    """

    def __init__(self, clock: Clock, silent: Callable[[str], object], answered: Callable[[str], object]) -> None:
        self._clock = clock
        self._silent = silent
        self._answered = answered

    def begin(self, trial: Trial, stream: Stream, now: float) -> None:
        """Look after a while whether there is an answer."""
        trial.stream = stream
        self._clock.set(trial, now + SILENT)

    def end(self, trial: Trial) -> None:
        """The stream is over; in any thread."""
        self._clock.drop(trial)
        stream = trial.stream
        if stream is not None and (stream.answered or (stream.received is not None and stream.received())):
            self._answered(trial.dest)

    def look(self, trial: Trial) -> None:
        """Tell of a stream whether there is an answer; in the pump's thread."""
        answered = trial.answered
        if answered is False:
            self._silent(trial.dest)
        elif answered:
            self._answered(trial.dest)


def _bytes_received(sock: socket.socket) -> int | None:
    """Bytes that the kernel has received on a TCP connection; ``None`` where it does not tell."""
    if _TCP_INFO is None:
        return None
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _RECEIVED.size)
    except OSError:
        return None
    return int(_RECEIVED.unpack(info)[0]) if len(info) == _RECEIVED.size else None
