"""A probe of a TCP connection by the system itself: whether the other end still answers.

Nothing is sent over the stream, and the program at the other end does not notice: the kernel sends a keepalive probe,
which the kernel of the other end acknowledges, or it repeats the data that it has not acknowledged.

Source: tcp(7), TCP_INFO and TCP_KEEPIDLE; linux/tcp.h for the layout.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import sys
import time
from collections.abc import Callable

from ..errors import CarrierError
from .loop import Timer, Timers

_TCP_INFO = getattr(socket, "TCP_INFO", None) if sys.platform == "linux" else None
_FIELDS = struct.Struct("=24xI28xI40xI")  # unacknowledged packets, ms since the last acknowledgement, repeated packets
_INTERNET = (socket.AF_INET, socket.AF_INET6)
_REPEATED = 20.0  # seconds for a connection whose data the kernel repeats late, because the network was away for long
# While the probe lasts: the first one after a second of silence, which has passed as a rule, and one each second.
_EAGER = {"TCP_KEEPINTVL": 1, "TCP_KEEPCNT": 20, "TCP_KEEPIDLE": 1}


class TCPProbe:
    """Asks, time and again, whether the other end of one TCP connection answers.

    It does nothing where the system has no TCP_INFO, and for a connection that is not TCP. Every method is for the
    thread of the timers.

    :param connection: the connection; it remains its owner's, who calls :meth:`stop` before the close.
    :param timers: the deadlines of the owner's loop.
    :param silent: called with the error if the other end does not answer.
    """

    def __init__(self, connection: socket.socket, timers: Timers, silent: Callable[[CarrierError], object]) -> None:
        self._socket = connection
        self._silent = silent
        self._timer = Timer(timers, self._look)
        self._why = ""
        self._begun = 0.0
        self._repeated = 0
        self._usual: dict[int, int] = {}  # the options that the probe has changed

    def begin(self, seconds: float, why: str) -> None:
        """Send a probe now, and call ``silent`` unless an answer comes in time.

        :param seconds: for the answer.
        :param why: the other end is asked, for the error.
        """
        if _TCP_INFO is None or self._socket.family not in _INTERNET:
            return
        with contextlib.suppress(OSError):  # it has ended: its owner learns that from the connection
            if not self._usual:
                self._usual = {
                    option: self._socket.getsockopt(socket.IPPROTO_TCP, option)
                    for option in (getattr(socket, name) for name in _EAGER)
                }
            _, _, self._repeated = self._fields()
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in _EAGER.items():
                self._socket.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
            self._why, self._begun = why, time.monotonic()
            self._timer.start(self._begun + seconds, self._begun)

    def stop(self) -> None:
        """Wait for no answer any more. Idempotent."""
        self._timer.stop()

    def _look(self, now: float) -> None:
        with contextlib.suppress(OSError):
            unacknowledged, silence, repeated = self._fields()
            waited = now - self._begun
            if silence / 1000 < waited:
                for option, value in self._usual.items():
                    self._socket.setsockopt(socket.IPPROTO_TCP, option, value)
                self._usual.clear()
            # While data wait for their repetition the kernel sends no probe, and it repeats them ever more rarely while
            # the network is away: without one since the probe began nothing was asked yet.
            elif unacknowledged and repeated == self._repeated and waited < _REPEATED:
                self._timer.start(now + 1.0, now)
            else:
                text = f"no answer for {waited:.0f} s after {self._why}; check the server and the network"
                self._silent(CarrierError(text))

    def _fields(self) -> tuple[int, int, int]:
        assert _TCP_INFO is not None
        info = self._socket.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _FIELDS.size)
        unacknowledged, silence, repeated = _FIELDS.unpack(info)
        return unacknowledged, silence, repeated
