"""Keepalive probes of an SSH connection: requests that every server answers, and the search for one that is dead."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial

from ....carriers.link import PROBE
from ....errors import CarrierError
from ....eventloop.loop import Timer
from ....eventloop.tcp_probe import TCPProbe
from .mux import Mux, Requests

_SILENCE = 3  # times the interval without a byte from the server, after which it is unresponsive
_LATE = 2.0  # times the interval without a byte, although a probe was sent in the middle
_STOPPED = 1.5  # times the interval without a check: only a process that was stopped skips checks


class Keepalive:
    """The probes of one connection.

    :param mux: the channels of the connection.
    :param requests: its requests.
    :param interval: seconds between two checks; ``None`` to send no probe.
    :param unresponsive: called, in any thread, with the error if the server does not answer.
    """

    def __init__(
        self, mux: Mux, requests: Requests, interval: float | None, unresponsive: Callable[[CarrierError], object]
    ) -> None:
        self._mux = mux
        self._wire = mux.wire
        self._requests = requests
        self._interval = interval
        self._unresponsive = unresponsive
        self._silence = Timer(mux.loop.timers, self._check_silence)
        self._probed = self._checked = -math.inf  # monotonic times of the last probe and the last check
        self._unhandled = 0  # checks that the transport's thread has not handled yet
        self._tcp = TCPProbe(mux.wire.stream.socket, mux.loop.timers, unresponsive)
        self.rtt: float | None = None
        """The seconds until the last probe got its reply; ``None`` before the first one."""

    @property
    def is_late(self) -> bool:
        """``True`` if a probe has got no reply although the next one is due; from any thread."""
        interval = self._interval
        return interval is not None and time.monotonic() - self._wire.heard > _LATE * interval

    def check(self) -> None:
        """Send a probe; from any thread, once in each interval."""
        interval = self._interval
        if interval is None:
            return
        self._unhandled += 1  # the time alone proves nothing: it also passes while this process is stopped
        silent = time.monotonic() - self._wire.heard
        if self._unhandled > _SILENCE and silent > _SILENCE * interval:
            # On the carrier's thread: the transport's thread does not handle the checks any more, so it cannot do this
            # itself.
            self._unresponsive(_no_answer(silent))
        else:
            self._mux.loop.call(partial(self._probe, interval))

    def probe(self, why: str) -> None:
        """Ask the server's system for an answer; see :meth:`relay.carriers.link.Link.probe`."""
        self._mux.loop.call(partial(self._tcp.begin, PROBE, why))

    # -- the transport's thread -----------------------------------------------------------------------------------

    def ask(self, done: Callable[[], object]) -> None:
        """Send a probe now, and call ``done`` with its reply."""

        def on_reply(reply: bytes | None) -> None:
            if self._mux.ended is None:
                done()

        # With a reply: paramiko's own keepalive asks for none, and so notices nothing.
        self._requests.ask("keepalive@openssh.com", b"", on_reply)

    def _probe(self, interval: float) -> None:
        now = time.monotonic()
        self._unhandled = 0
        self._send_probe(now, interval)
        if self._silence.due == math.inf:
            self._silence.start(self._wire.heard + _SILENCE * interval, now)

    def _send_probe(self, now: float, interval: float) -> None:
        """Send a probe, unless one is pending; also after a pause in the checks, because this process was stopped."""
        if not self._requests or now - self._checked > _STOPPED * interval:
            self._probed = now
            self._requests.ask("keepalive@openssh.com", b"", partial(self._on_reply, now))
        self._checked = now

    def _on_reply(self, sent: float, reply: bytes | None) -> None:
        """Take the reply to a probe. Servers deny a request that they do not know, which is a reply, too."""
        if self._mux.ended is None:
            self.rtt = time.monotonic() - sent

    def _check_silence(self, now: float) -> None:
        """Check when the server has sent its last byte. After a probe it has an interval to reply."""
        interval = self._interval
        assert interval is not None
        end = self._wire.heard + _SILENCE * interval
        # A probe is sent although the time is over, and has an interval for its reply: the process may have been
        # stopped, and the silence was its own.
        if end <= now:
            self._send_probe(now, interval)
        due = max(end, self._probed + interval)
        if due > now:
            self._silence.start(due, now)
        else:
            self._unresponsive(_no_answer(now - self._wire.heard))


def _no_answer(seconds: float) -> CarrierError:
    return CarrierError(f"no answer for {seconds:.0f} s; check the server and the network")
