"""Several machines with the keys of one destination: one of them serves it, and the others stand by.

A relay asks the destination as a stranger, in a stream from a session of its own, before it creates the session of the
keys. The relay that serves the destination answers, because it knows from the keys who asks (see
:class:`~relay.transports.i2p.probe.ProbeKeys`); then this one asks again later. It takes over when no relay has
answered three times in a row. A relay that serves asks, too: if another one answers, it ends its session and stands by.
I2P takes clients to the session that was published last ("The Network Database", multihoming), and probes as well: of
two relays that serve the destination, the one that no client reaches ends.

================== ==================== ================== ===========================================================
state              event                next state         action
================== ==================== ================== ===========================================================
asking             another relay        standing by        none
asking             no answer            asking             ask again, the third time from another session, which the
                                                           first miss has begun
asking             no answer, three     serving            create the session
                   times in a row
asking             inconclusive         standing by        none: the router cannot be reached, or has no tunnels
standing by        20 s later at most   asking             ask
serving            session lost         serving            create the session, if that is less than 10 s ago
serving            session lost,        asking             ask
                   longer ago
(start)            stopped here         serving            create the session: a restart, or an upgrade
                   less than 10 s ago
(start)            any other time       asking             ask
serving            another relay        standing by        end the session
================== ==================== ================== ===========================================================

The carrier keeps these states: *asking* is its *connecting*, *standing by* is its *backing off*, and *serving* is *up*.
"""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass
from functools import partial

from ...addresses.destinations import PrivateKey
from ...addresses.i2p import I2PRouter
from ...carriers.link import mark_reported
from ...errors import CarrierError, ConnectError
from ...eventloop.background import IOThread
from ...streams.cancellation import Cancel
from ...streams.dialer import Network
from ...streams.promise import Promise
from . import probe
from .probe import OtherRelay, OwnStreams, Probe, ProbeKeys, ProbeSession

__all__ = ["CLOCKS", "ServedElsewhereError", "Standby", "clock_problem"]

logger = logging.getLogger("relay")

PAUSE = 20.0  # seconds at most until the next question to a relay that has answered
AGAIN = 5.0  # seconds for the router to find the destination, when it had time to do so before
MISSES = 3  # probes without an answer in a row, until this relay takes over
AT_ONCE = 10.0  # seconds after the loss of a session in which no other relay can have taken over
CLOCKS = 5.0  # seconds by which two clocks may differ


class ServedElsewhereError(CarrierError):
    """Another relay with the same keys serves the destination."""

    pause = PAUSE


def clock_problem(other: OtherRelay) -> str:
    """Return why clients may not find a relay that takes over: floodfills keep the lease set with the later time."""
    place, behind = ("here", "the other relay's") if other.ahead > 0 else ("of the other relay", "this one")
    who = "this one" if other.ahead > 0 else "the other one"
    return (
        f"the clock {place} is {abs(other.ahead):.0f} s behind {behind}: when {who} takes over, no client finds it for "
        "so long; set the clocks (NTP)"
    )


class Standby:
    """Decides when a relay serves a destination that another machine may serve; see the table above.

    :param name: of the listener, in errors and in the log.
    :param router: of the session, from which the probes come as well.
    :param below: the network from which the router's SAM bridge is reached.
    """

    def __init__(self, name: str, router: I2PRouter, below: Network) -> None:
        self.keys = ProbeKeys()
        """Those of the probe sessions; they have no destination before :meth:`open`."""
        self._name = name
        self._make_stranger = partial(_Stranger, name, router, below, self.keys)
        self._stranger: _Stranger | None = None  # while this relay stands by
        self._second: _Stranger | None = None  # after a miss, because the first one may be at fault
        self._lost = -math.inf  # monotonic seconds
        self._stands_by = False

    def open(self, key: PrivateKey, seconds_since_stop: float) -> None:
        """Learn the key of the destination; once, before the first question, and in a thread that may block.

        :param seconds_since_stop: since a relay on this machine has ended its session of the key by itself.
        """
        self.keys.share(key)
        self._lost = time.monotonic() - seconds_since_stop

    def wait(self, deadline: float, cancel: Cancel) -> None:
        """Return if no other relay serves the destination; in a thread that may block.

        :raises ServedElsewhereError: if another relay does.
        :raises OSError: if that is not known.
        """
        if time.monotonic() < self._lost + AT_ONCE:
            return
        try:
            self._ask(deadline, cancel)
        except ServedElsewhereError:
            raise
        except BaseException:
            self.close()
            raise
        self.close()
        if self._stands_by:
            logger.warning("%s: no other relay serves it any more; taking over", self._name)
        self._stands_by = False

    def find(self, deadline: float, cancel: Cancel | None = None) -> OtherRelay | None:
        """Ask once: return the relay that serves the destination; ``None`` if none answers.

        :param deadline: monotonic seconds.
        :param cancel: ends the wait.
        :raises OSError: if that is not known.
        """
        try:
            return self._other(self._stranger_for(0), probe.REACH, deadline, cancel)
        finally:
            self.close()

    def on_loss(self, error: CarrierError) -> None:
        """Note why the session has ended."""
        self._lost = -math.inf if isinstance(error, ServedElsewhereError) else time.monotonic()

    def close(self) -> None:
        """End the sessions from which this relay asks. Idempotent."""
        self._close_second()
        stranger, self._stranger = self._stranger, None
        if stranger is not None:
            stranger.close()

    def _close_second(self) -> None:
        second, self._second = self._second, None
        if second is not None:
            second.close()

    def _ask(self, deadline: float, cancel: Cancel) -> None:
        """Ask until another relay answers, or none has answered often enough."""
        if not self._stands_by:
            logger.info("%s: asking whether another relay serves it, which may take a minute", self._name)
        for number in range(MISSES):
            # A router that has just started finds few destinations at first.
            reach = probe.REACH if number == 0 and not self._stands_by else AGAIN
            other = self._other(self._stranger_for(number), reach, deadline, cancel)
            if other is not None:
                self._close_second()
                raise self._served(other)
            logger.debug("%s: no answer, %d of %d", self._name, number + 1, MISSES)

    def _other(self, stranger: _Stranger, reach: float, deadline: float, cancel: Cancel | None) -> OtherRelay | None:
        found = stranger.ask(reach, deadline, cancel)
        if found is None:
            raise ConnectError(f"{self._name}: no answer in time", reason="connect_timeout")
        if found.other is None and not found.is_conclusive:
            raise ConnectError(f"{self._name}: cannot ask whether another relay serves it: {found.problem}")
        if found.other is None:
            logger.debug("%s: no relay answers: %s", self._name, found.problem)
        return found.other

    def _stranger_for(self, number: int) -> _Stranger:
        """Return the one who asks for this time: after two misses another one."""
        if self._stranger is None:
            self._stranger = self._make_stranger()
        if number == 1:
            self._second = self._make_stranger()
        elif number > 1 and self._second is not None:
            self._stranger.close()
            self._stranger, self._second = self._second, None
        return self._stranger

    def _served(self, other: OtherRelay) -> ServedElsewhereError:
        error = ServedElsewhereError(f"{self._name}: another relay serves it; standing by")
        if not self._stands_by:
            logger.info("%s", error)
            if abs(other.ahead) > CLOCKS:
                logger.warning("%s: %s", self._name, clock_problem(other))
        self._stands_by = True
        mark_reported(error)
        return error


@dataclass(frozen=True, slots=True)
class _Found:
    """The result of one probe."""

    problem: str | None
    other: OtherRelay | None
    is_conclusive: bool


class _Stranger:
    """Probes from a session of their own, one after the other; it begins at once."""

    def __init__(self, name: str, router: I2PRouter, below: Network, keys: ProbeKeys) -> None:
        self._io_thread = IOThread.acquire(self)
        self._session = ProbeSession(self._io_thread, name, router, below, keys)
        self._destination = keys.destination
        self._own = OwnStreams(keys)
        self._probe: Probe | None = None
        self._io_thread.loop.call(self._session.begin)

    def ask(self, reach: float, deadline: float, cancel: Cancel | None) -> _Found | None:
        """Return the result of a probe; ``None`` if there was none in time, or it was cancelled.

        :param reach: seconds for the router to find the destination.
        :raises OSError: if no thread or descriptor is available.
        """
        result: Promise[_Found] = Promise()
        self._io_thread.loop.call(partial(self._begin, reach, result))
        try:
            return result.get(deadline, cancel)
        finally:
            self._io_thread.loop.call(self._end_probe)

    def close(self) -> None:
        """End the session."""
        self._io_thread.loop.call(self._close)

    def abandon(self) -> None:
        """Do nothing: in a forked child the carrier and the conversations close their own descriptors."""

    def _begin(self, reach: float, result: Promise[_Found]) -> None:
        def on_result(probe: Probe, problem: str | None, is_conclusive: bool) -> None:
            result.put(_Found(problem, probe.other, is_conclusive))

        try:
            carrier = self._session.carrier()
            self._probe = Probe(self._io_thread, carrier, self._destination, self._own, on_result, reach)
        except OSError as error:
            result.put(error)
        else:
            self._probe.begin()

    def _end_probe(self) -> None:
        probe, self._probe = self._probe, None
        if probe is not None:
            probe.end()

    def _close(self) -> None:
        self._end_probe()
        self._session.close()
        self._io_thread.release(self)
