"""Open streams on which no byte has come yet: whether the router has connected them at all.

i2pd reports a stream as open once it has found the destination's lease set; nothing may be there any more.
"""

from __future__ import annotations

import socket
import struct
import sys
import time
from collections.abc import Callable

from ...streams.stream import Stream, nonblocking
from .deadlines import Deadlines

SILENT = 12.0  # seconds without a byte after which a stream is reported
MOST = 1000  # destinations that are remembered

_TCP_INFO = getattr(socket, "TCP_INFO", None) if sys.platform == "linux" else None
_RECEIVED = struct.Struct("@128xQ")  # struct tcp_info of linux/tcp.h: tcpi_bytes_received


class UnconfirmedStream:
    """One stream, from the router's OK to its end.

    :param streams: those of its session.
    :param dest: destination of the stream, in base64 or as a name.
    :param read: bytes that had come on its socket before the stream's own.
    :param leave: called once when the stream ends; must not block.
    """

    __slots__ = ("dest", "opened", "stream", "_leave", "_read", "_streams")

    def __init__(self, streams: UnconfirmedStreams, dest: str, read: int, leave: Callable[[], object]) -> None:
        self.dest = dest
        self.opened = 0.0  # monotonic seconds
        self.stream: Stream | None = None
        self._streams = streams
        self._read = read
        self._leave = leave

    @property
    def is_confirmed(self) -> bool | None:
        """``True`` if a byte has come; ``None`` where the system does not report it, which counts as one."""
        stream = self.stream
        if stream is None or stream.answered:
            return True
        if stream.received is not None:
            return stream.received() > 0
        total = _bytes_received(stream.socket)
        return total > self._read if total is not None else None

    def expire(self, now: float) -> None:
        """Report whether a byte has come; on the I/O thread."""
        self._streams.check(self)

    @nonblocking
    def end(self) -> None:
        """Handle the end of the stream; in any thread, once."""
        self._streams.remove(self)
        self._leave()


class UnconfirmedStreams:
    """The unconfirmed streams of one session.

    :param deadlines: of the I/O thread.
    :param on_silence: called with the destination of a stream that brings nothing; on the I/O thread.
    :param on_reply: called with the destination of a stream that has brought bytes; in any thread.
    """

    def __init__(
        self, deadlines: Deadlines, on_silence: Callable[[str], object], on_reply: Callable[[str], object]
    ) -> None:
        self._deadlines = deadlines
        self._on_silence = on_silence
        self._on_reply = on_reply
        self._waited: dict[str, float] = {}  # destination → seconds that clients have waited in vain, all in all

    def add(self, unconfirmed: UnconfirmedStream, stream: Stream, now: float) -> None:
        """Check after :data:`SILENT` seconds whether a byte has come; on the I/O thread."""
        unconfirmed.stream, unconfirmed.opened = stream, now
        self._deadlines.set(unconfirmed, now + SILENT)
        if self._waited.get(unconfirmed.dest, 0.0) >= SILENT:  # each client may give up sooner than that
            self._waited.pop(unconfirmed.dest, None)
            self._on_silence(unconfirmed.dest)

    def remove(self, unconfirmed: UnconfirmedStream) -> None:
        """Record what has come of a stream that has ended; in any thread."""
        self._deadlines.drop(unconfirmed)
        stream = unconfirmed.stream
        if stream is None:
            return
        if stream.answered or (stream.received is not None and stream.received()):
            self._waited.pop(unconfirmed.dest, None)
            self._on_reply(unconfirmed.dest)
        # Only where bytes are counted: the kernel has forgotten those of a socket that is closed, so that silence would
        # look like traffic.
        elif stream.received is not None:
            if len(self._waited) > MOST:
                self._waited.clear()
            waited = time.monotonic() - unconfirmed.opened
            self._waited[unconfirmed.dest] = self._waited.get(unconfirmed.dest, 0.0) + waited

    def check(self, unconfirmed: UnconfirmedStream) -> None:
        """Report whether a byte has come on a stream; on the I/O thread."""
        is_confirmed = unconfirmed.is_confirmed
        if is_confirmed is False:
            self._on_silence(unconfirmed.dest)
        elif is_confirmed:
            self._on_reply(unconfirmed.dest)


def _bytes_received(sock: socket.socket) -> int | None:
    """Return the bytes that have come on a TCP connection; ``None`` where the kernel does not report them."""
    if _TCP_INFO is None:
        return None
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _RECEIVED.size)
    except OSError:
        return None
    # An older kernel has a shorter struct.
    return int(_RECEIVED.unpack(info)[0]) if len(info) == _RECEIVED.size else None
