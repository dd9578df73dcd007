"""Reachability check of an I2P session: a stream to it from another session, which must bring a reply.

A router may report a session as up although no client can reach it: one made from the keys of a session that has just
ended, or one whose lease set is not found. Only a stream shows that. Everything runs on the I/O thread, unless a
docstring says otherwise. The stream comes from a session of its own, the probe session.

========== ============ ========== =====================================================================================
state      event        next state action
========== ============ ========== =====================================================================================
any        watch        probing    probe: open a stream from the probe session
any        forget       idle       drop: end the probe and the probe session, which may have the old lease set
waiting    due          probing    probe
waiting    traffic      waiting    accept
probing    reply        waiting    report: accept, and report that the destination is reachable
rechecking reply        waiting    report
probing    traffic      waiting    accept: check again later, less often after each success
rechecking traffic      waiting    accept
probing    inconclusive waiting    postpone: drop the probe session, check again after a delay that doubles
rechecking inconclusive postponed  postpone
postponed  due          rechecking probe
postponed  traffic      waiting    accept
probing    switched     probing    probe: no open stream arrived, so streams come by STREAM ACCEPT now
rechecking switched     rechecking probe
probing    no reply     rechecking renew: probe from a new probe session, because the old one may be at fault
rechecking no reply     idle       lose: end the session, so that its carrier re-creates it
probing    other relay  idle       yield: end the session, because another machine with the same keys serves clients
rechecking other relay  idle       yield
========== ============ ========== =====================================================================================

``traffic``: clients' streams have come or brought bytes meanwhile, which shows the same. While the listener keeps
streams waiting, a probe without reply is inconclusive.
"""

from __future__ import annotations

import enum
import logging
import random
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from ...addresses.destinations import Peer
from ...addresses.i2p import I2PRouter
from ...carriers.link import mark_reported
from ...eventloop.background import IOThread
from ...eventloop.backoff import Backoff
from ...eventloop.loop import Timer
from ...streams.dialer import Network
from ...streams.stream import Stream
from .messages import NotReachedError, ServedElsewhereError
from .probe import OwnStreams, Probe, ProbeKeys, ProbeSession
from .session import Session

if TYPE_CHECKING:
    from .receiver import Receiver

logger = logging.getLogger("relay")

AGAIN = 5.0  # seconds from an inconclusive check to the next
RARELY = 300.0  # the maximum of that, after more of them
AFTER = (10.0, 30.0, 90.0)  # seconds from a success to the next check, at first: a bad session may work for seconds
SELDOM = (600.0, 1800.0)  # seconds from then on
SHARED = (60.0, 120.0)  # the same, if another machine may have the keys

# Seconds for the router to find the destination: its lease set spreads within 22 s as a rule, and i2pd before 2.51 may
# never publish one (see docs/i2p.md). Then with a new probe session, which takes 20 to 40 s more. Such a session is
# re-created after two minutes at most, and one that is only slow has 70 s at least.
FIND = 50.0
FIND_AGAIN = 30.0


class State(enum.Enum):
    """States of a monitor."""

    IDLE = "idle"
    WAITING = "waiting"
    PROBING = "probing"
    RECHECKING = "rechecking"
    POSTPONED = "postponed"


class Event(enum.Enum):
    """Events of a monitor."""

    WATCH = "watch"
    FORGET = "forget"
    DUE = "due"
    REPLY = "reply"
    TRAFFIC = "traffic"
    INCONCLUSIVE = "inconclusive"
    SWITCHED = "switched"
    NO_REPLY = "no reply"
    OTHER_RELAY = "other relay"


class Action(enum.Enum):
    """Actions of a monitor; see the table above."""

    PROBE = "probe"
    DROP = "drop"
    ACCEPT = "accept"
    REPORT = "report"
    POSTPONE = "postpone"
    RENEW = "renew"
    LOSE = "lose"
    YIELD = "yield"


#: The table above.
TRANSITIONS: Mapping[tuple[State, Event], tuple[State, Action]] = {
    **{(state, Event.WATCH): (State.PROBING, Action.PROBE) for state in State},
    **{(state, Event.FORGET): (State.IDLE, Action.DROP) for state in State},
    (State.WAITING, Event.DUE): (State.PROBING, Action.PROBE),
    (State.WAITING, Event.TRAFFIC): (State.WAITING, Action.ACCEPT),
    (State.PROBING, Event.REPLY): (State.WAITING, Action.REPORT),
    (State.RECHECKING, Event.REPLY): (State.WAITING, Action.REPORT),
    (State.PROBING, Event.TRAFFIC): (State.WAITING, Action.ACCEPT),
    (State.RECHECKING, Event.TRAFFIC): (State.WAITING, Action.ACCEPT),
    (State.PROBING, Event.INCONCLUSIVE): (State.WAITING, Action.POSTPONE),
    (State.RECHECKING, Event.INCONCLUSIVE): (State.POSTPONED, Action.POSTPONE),
    (State.POSTPONED, Event.DUE): (State.RECHECKING, Action.PROBE),
    (State.POSTPONED, Event.TRAFFIC): (State.WAITING, Action.ACCEPT),
    (State.PROBING, Event.SWITCHED): (State.PROBING, Action.PROBE),
    (State.RECHECKING, Event.SWITCHED): (State.RECHECKING, Action.PROBE),
    (State.PROBING, Event.NO_REPLY): (State.RECHECKING, Action.RENEW),
    (State.RECHECKING, Event.NO_REPLY): (State.IDLE, Action.LOSE),
    (State.PROBING, Event.OTHER_RELAY): (State.IDLE, Action.YIELD),
    (State.RECHECKING, Event.OTHER_RELAY): (State.IDLE, Action.YIELD),
}


class ReachabilityMonitor:
    """Checks one session after the other, each repeatedly.

    :param name: of the listener, in errors and in the log.
    :param router: of the session, with its options; the probe session is created there as well.
    :param below: the network from which the router's SAM bridge is reached.
    :param target: receives the streams of the session.
    :param on_reachable: called each time a probe has shown that the destination is reachable.
    :param shared: the keys of the probe sessions, if other machines have the keys of the destination; else ``None``.
    :raises OSError: if no thread or descriptor is available.
    """

    def __init__(
        self,
        name: str,
        router: I2PRouter,
        below: Network,
        target: Receiver,
        on_reachable: Callable[[], object],
        shared: ProbeKeys | None = None,
    ) -> None:
        self.state = State.IDLE
        self._name = name
        self._target = target
        self._on_reachable = on_reachable
        self._own = OwnStreams(shared)
        self._is_shared = shared is not None
        self._schedule = _Schedule(SELDOM if shared is None else SHARED)
        self._session: Session | None = None  # the one to check
        self._since = 0.0  # when the check began, monotonic seconds
        self._probe: Probe | None = None
        self._io_thread = IOThread.acquire(self)
        self._probes = ProbeSession(self._io_thread, name, router, below, shared.choose if shared is not None else None)
        self._next = Timer(self._io_thread.loop.timers, self._due)

    def expect(self) -> None:
        """Prepare for a session that is being created: create the probe session beside it."""
        if self._session is None:
            self._probes.prepare()

    def watch(self, session: Session) -> None:
        """Check this session from now on."""
        if session is not self._session:
            self.forget()
        if not self._probes.is_possible:
            logger.info("%s: its options hide it, so relay does not check whether it is reachable", self._name)
            return
        self._session = session
        self._probes.follow(session)
        self._schedule.restart()
        self._since = time.monotonic()
        self._handle(Event.WATCH)

    def forget(self) -> None:
        """Stop checking: the session is gone."""
        self._handle(Event.FORGET)

    def close(self) -> None:
        """Stop checking for good. Idempotent."""
        self.forget()
        self._probes.close()
        self._io_thread.release(self)

    def abandon(self) -> None:
        """Do nothing: in a forked child the carrier and the conversations close their own descriptors."""

    def answers(self, stream: Stream, peer: Peer) -> bool:
        """Answer and close a stream that a probe has opened; in any thread.

        :returns: whether it was one.
        """
        if not self._own.reply_to(stream, peer):
            return False
        stream.close()
        return True

    # -- the table ----------------------------------------------------------------------------------------------------

    def _handle(self, event: Event, problem: str = "") -> None:
        found = TRANSITIONS.get((self.state, event))
        if found is not None:
            self.state, action = found
            self._perform(action, problem)

    def _perform(self, action: Action, problem: str) -> None:
        if action is Action.PROBE:
            self._start_probe()
        elif action is Action.DROP:
            self._drop()
        elif action is Action.ACCEPT:
            self._accept()
        elif action is Action.REPORT:
            self._schedule.is_confirmed = True
            self._accept()
            self._on_reachable()
        elif action is Action.POSTPONE:
            # It may be the one at fault; the next check gets a new one.
            self._probes.close()
            self._wait(self._schedule.after_no_result())
        elif action is Action.RENEW:
            self._probes.close()
            self._start_probe()
        elif action is Action.YIELD:
            self._yield()
        else:
            self._lose(problem)

    def _due(self, now: float) -> None:
        self._since = now
        schedule = self._schedule
        # The streams of clients show the same, once a probe has shown that replies arrive; but not who else gets some.
        is_shown = schedule.is_confirmed and not self._is_shared
        had_traffic = is_shown and self._target.had_traffic(schedule.last_success)
        self._handle(Event.TRAFFIC if had_traffic else Event.DUE)

    def _on_result(self, probe: Probe, problem: str | None, is_conclusive: bool) -> None:
        """Handle the end of a probe.

        :param problem: ``None`` if the reply has come.
        :param is_conclusive: whether the problem is about the session that is checked.
        """
        # A result of an earlier probe, which was on its way when that was ended.
        if probe is not self._probe:
            return
        self._probe = None
        if problem is None:
            self._handle(Event.REPLY)
        elif probe.other is not None:
            self._handle(Event.OTHER_RELAY)
        elif not is_conclusive:
            logger.debug("%s: self-check: %s", self._name, problem)
            self._handle(Event.INCONCLUSIVE)
        elif self._target.was_paused(self._since):
            self._handle(Event.INCONCLUSIVE)
        elif self._target.had_traffic(self._since):
            self._handle(Event.TRAFFIC)
        else:
            logger.info("%s: self-check: %s", self._name, problem)
            # A stream that the router could not open says nothing about how streams come in.
            switched = probe.has_opened and self._target.switch_to_accept(
                f"{self._name}: streams do not arrive ({problem})"
            )
            self._handle(Event.SWITCHED if switched else Event.NO_REPLY, problem)

    # -- actions ------------------------------------------------------------------------------------------------------

    def _start_probe(self) -> None:
        self._end_probe()
        assert self._session is not None
        dest = self._session.destination
        try:
            carrier = self._probes.carrier()
            reach = FIND_AGAIN if self.state is State.RECHECKING else FIND
            self._probe = Probe(self._io_thread, dest, self._own, self._on_result, reach)
        except OSError as error:
            logger.warning("%s: cannot check whether it is reachable: %s; retrying later", self._name, error)
            self._handle(Event.INCONCLUSIVE)
        else:
            self._probe.begin(carrier)

    def _accept(self) -> None:
        assert self._session is not None
        schedule = self._schedule
        if schedule.is_sound:
            self._session.record_result(True)
        delay = schedule.after_success()
        # Checks are minutes apart from now on, and a session costs the router tunnels all the time.
        if schedule.is_seldom:
            self._probes.close()
        self._wait(delay)

    def _lose(self, problem: str) -> None:
        session = self._session
        assert session is not None
        session.record_result(False)
        session.lose(NotReachedError(f"{self._name}: session is not reachable from I2P ({problem}); re-creating it"))

    def _yield(self) -> None:
        session = self._session
        assert session is not None
        logger.warning("%s: another relay with the same keys serves it as well; standing by", self._name)
        error = ServedElsewhereError(f"{self._name}: another relay serves it")
        mark_reported(error)
        session.lose(error)

    def _drop(self) -> None:
        self._probes.cancel_preparation()
        self._next.stop()
        self._end_probe()
        if self._session is not None:
            self._session = None
            self._probes.close()

    def _end_probe(self) -> None:
        probe, self._probe = self._probe, None
        if probe is not None:
            probe.end()

    def _wait(self, seconds: float) -> None:
        now = time.monotonic()
        self._next.start(now + seconds, now)


class _Schedule:
    """Times of the checks of a session.

    :param seldom: seconds between two checks after the first ones, at least and at most.
    """

    def __init__(self, seldom: tuple[float, float]) -> None:
        self._seldom = seldom
        self._backoff = Backoff(AGAIN, RARELY)
        self.last_success = 0.0  # monotonic seconds
        self.restart()

    def restart(self) -> None:
        """Begin with another session."""
        self.is_confirmed = False  # by a probe, not only by streams of clients
        self.successes = 0

    @property
    def is_sound(self) -> bool:
        """``True`` if the next success is the last of the frequent checks, which bad sessions fail."""
        return self.successes == len(AFTER)

    @property
    def is_seldom(self) -> bool:
        """``True`` if the next check is so far away that the probe session is closed until then."""
        return self.successes > len(AFTER)

    def after_success(self) -> float:
        """Return the seconds to the next check after a success."""
        self.last_success = time.monotonic()
        self._backoff.reset()
        self.successes += 1
        if self.successes <= len(AFTER):
            return AFTER[self.successes - 1]
        return random.uniform(*self._seldom)  # noqa: S311  (so that many listeners do not check at once)

    def after_no_result(self) -> float:
        """Return the seconds to the next check after an inconclusive one: twice as many each time."""
        return self._backoff.next()
