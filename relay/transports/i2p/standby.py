"""Several machines with the keys of one destination: one of them serves it, and the others stand by.

A relay asks the destination as a stranger, in a stream from a session of its own, before it creates the session of the
keys. The relay that serves the destination answers, because it knows from the keys who asks (see
:class:`~relay.transports.i2p.probe.ProbeKeys`); then this one asks again later. It takes over when three
questions had no answer: one, and then two at once from two sessions, because one session may be at fault. A relay that
serves asks, too: if another one answers, it ends its session and stands by. I2P takes clients to the session that was
published last ("The Network Database", multihoming), and probes as well: of two relays that serve the destination, the
one that no client reaches ends.

================== ==================== ================== ===========================================================
state              event                next state         action
================== ==================== ================== ===========================================================
asking             another relay        standing by        none
asking             no answer            asking             ask again, from both sessions at once
asking             no answer to these,  serving            create the session
                   either
asking             inconclusive         backing off        none: no router creates the session for the question
backing off        2 s later at most    asking             ask the next router
standing by        20 s later at most   asking             ask
serving            session lost         serving            create the session, if that is less than 10 s ago; for 60 s
                                                           after the loss
serving            session lost,        asking             ask
                   longer ago
serving            not reachable        asking             ask
serving            another relay        standing by        end the session
(start)            stopped here         serving            create the session, as above: a restart, or an upgrade
                   less than 10 s ago
(start)            any other time       asking             ask
================== ==================== ================== ===========================================================

The carrier keeps these states: *asking* is its *connecting*, *serving* is *up*, *standing by* is *backing off* as well.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from ...addresses.destinations import PrivateKey
from ...addresses.i2p import I2PRouter
from ...carriers.link import mark_reported
from ...errors import CarrierError, ConnectError, can_retry
from ...eventloop.background import IOThread
from ...streams.dialer import Network
from ...streams.promise import Cancel, Promise
from . import probe
from .messages import NotReachedError, ServedElsewhereError
from .probe import OtherRelay, OwnStreams, Probe, ProbeKeys, ProbeSession
from .session import Session

logger = logging.getLogger("relay")

AGAIN = 15.0  # seconds for the router to find the destination, when it had time to do so before
ROUNDS = (1, 2)  # questions at once, after none without an answer, and after one; then this relay takes over
AT_ONCE = 10.0  # seconds after the loss of a session in which no other relay can have taken over
IN_TIME = 60.0  # seconds after the loss in which none has, so that the next session must be up
_OF_SEVERAL = 240.0  # seconds for each router but the last one
CLOCKS = 5.0  # seconds by which two clocks may differ


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
        self._below = below
        # One for each router of the session; the first one is asked.
        self._routers = deque(replace(router, sam=(address,)) for address in router.sam)
        # While this relay stands by. The first one asks; the second one is there, and up, for the case that it has no
        # answer: a router may need 20 s for a session.
        self._probers: list[_Prober] = []
        self._lost = -math.inf  # monotonic seconds
        self._stands_by = False

    def open(self, key: PrivateKey, seconds_since_stop: float) -> None:
        """Learn the key of the destination; once, before the first question, and in a thread that may block.

        :param seconds_since_stop: since a relay on this machine has ended its session of the key by itself.
        """
        self.keys.share(key)
        self._lost = time.monotonic() - seconds_since_stop

    def wait(self, deadline: float, cancel: Cancel) -> float:
        """Return if no other relay serves the destination; in a thread that may block.

        :returns: until when that is so.
        :raises ServedElsewhereError: if another relay does.
        :raises OSError: if that is not known.
        """
        if time.monotonic() < self._lost + AT_ONCE:
            return min(deadline, self._lost + IN_TIME)
        for left in reversed(range(len(self._routers))):
            try:
                self._ask(min(deadline, time.monotonic() + _OF_SEVERAL) if left else deadline, cancel)
                break
            except ServedElsewhereError:
                raise
            except BaseException as error:
                # The sessions that asked are of the router that has failed; the next one needs its own.
                self.close()
                self._routers.rotate(-1)
                if not (left and isinstance(error, ConnectError)) or cancel.is_set():
                    raise
                logger.debug("%s; asking from the next router", error)
        self.close()
        if self._stands_by:
            logger.warning("%s: no other relay serves it any more; taking over", self._name)
        self._stands_by = False
        return deadline

    def find(self, deadline: float) -> OtherRelay | None:
        """Ask once: return the relay that serves the destination; ``None`` if none answers.

        :param deadline: monotonic seconds.
        :raises OSError: if that is not known.
        """
        try:
            return self._find(1, True, deadline, None)
        finally:
            self.close()

    def on_loss(self, error: CarrierError) -> None:
        """Note why the session has ended."""
        # In both of these another relay may serve the destination by now, so that it has to be asked again.
        is_sure = not isinstance(error, (ServedElsewhereError, NotReachedError))
        self._lost = time.monotonic() if is_sure else -math.inf

    def close(self) -> None:
        """End the sessions from which this relay asks. Idempotent."""
        for prober in self._probers:
            prober.close()
        self._probers.clear()

    def _ask(self, deadline: float, cancel: Cancel) -> None:
        """Ask until another relay answers, or none has answered often enough."""
        if not self._stands_by:
            logger.info("%s: asking whether another relay serves it, which may take a minute", self._name)
        self._prepare(max(ROUNDS, default=0))
        for number, count in enumerate(ROUNDS):
            other = self._find(count, number == 0, deadline, cancel)
            if other is not None:
                raise self._served(other)
            logger.debug("%s: no answer to %d of %d questions", self._name, sum(ROUNDS[: number + 1]), sum(ROUNDS))

    def _prepare(self, count: int) -> None:
        """Begin so many sessions from which this relay asks, with those that there are."""
        while len(self._probers) < count:
            self._probers.append(_Prober(self._name, self._routers[0], self._below, self.keys))

    def _find(self, count: int, is_first: bool, deadline: float, cancel: Cancel | None) -> OtherRelay | None:
        """Ask from so many sessions at once: return the relay that answers; ``None`` if none does.

        :param is_first: whether no question before these had no answer.
        :raises OSError: if that is not known.
        """
        self._prepare(count)
        probers = self._probers[:count]
        try:
            # All questions before the first wait, so that they run side by side.
            results = [prober.ask(is_first) for prober in probers]
            found = [result.get(deadline, cancel) for result in results]
        finally:
            for prober in probers:
                prober.end_probe()
        others = [one.other for one in found if one is not None and one.other is not None]
        if not others:
            self._check(found)
            return None
        if found[0] is None or found[0].other is None:  # it does not find what another one finds
            self._probers.pop(0).close()
        return others[0]

    def _check(self, found: Sequence[_Found | None]) -> None:
        """Raise an error if questions without an answer do not show that no other relay serves the destination.

        :raises OSError: then.
        """
        for one in found:
            if one is None:
                raise ConnectError(f"{self._name}: no answer in time", reason="connect_timeout")
            if one.error is not None:
                if not can_retry(one.error):
                    raise one.error
                raise ConnectError(f"{self._name}: cannot ask whether another relay serves it: {one.problem}")
            logger.debug("%s: no relay answers: %s", self._name, one.problem)

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
    """The result of one probe.

    :param error: why it is not known whether another relay serves the destination.
    """

    problem: str | None
    other: OtherRelay | None
    error: Exception | None


class _Prober:
    """Probes from a session of their own, one after the other; it begins at once."""

    def __init__(self, name: str, router: I2PRouter, below: Network, keys: ProbeKeys) -> None:
        self._io_thread = IOThread.acquire(self)
        self._session = ProbeSession(self._io_thread, name, router, below, keys.choose_standby)
        self._destination = keys.destination
        self._own = OwnStreams(keys)
        self._probe: Probe | None = None
        self._answered: Session | None = None  # the session in which a relay has answered
        # Now, before a question: the router needs up to 40 s for a session.
        self._io_thread.loop.call(self._session.begin)

    def ask(self, is_first: bool) -> Promise[_Found]:
        """Begin a probe; return its result.

        :param is_first: whether no probe before this one had no answer.
        """
        result: Promise[_Found] = Promise()
        self._io_thread.loop.call(partial(self._begin, is_first, result))
        return result

    def end_probe(self) -> None:
        """End the probe, whether it has a result or not."""
        self._io_thread.loop.call(self._end_probe)

    def close(self) -> None:
        """End the session."""
        self._io_thread.loop.call(self._close)

    def abandon(self) -> None:
        """Do nothing: in a forked child the carrier and the conversations close their own descriptors."""

    def _begin(self, is_first: bool, result: Promise[_Found]) -> None:
        try:
            carrier = self._session.carrier()
            # A router that has just started finds few destinations at first.
            is_new = is_first and (self._answered is None or carrier.link is not self._answered)
            reach = probe.REACH if is_new else AGAIN
            on_result = partial(self._on_result, result)
            self._probe = Probe(self._io_thread, self._destination, self._own, on_result, reach)
        except OSError as error:
            result.put(error)
        else:
            self._probe.begin(carrier)

    def _on_result(self, result: Promise[_Found], probe: Probe, problem: str | None, _: bool) -> None:
        if probe.other is not None:
            self._answered = self._session.carrier().link
        result.put(_Found(problem, probe.other, probe.error))

    def _end_probe(self) -> None:
        probe, self._probe = self._probe, None
        if probe is not None:
            probe.end()

    def _close(self) -> None:
        self._end_probe()
        self._session.close()
        self._io_thread.release(self)
