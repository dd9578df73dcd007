"""Listener at an I2P destination: a supervised SAM session, and the streams that clients open to it.

:mod:`relay.transports.i2p.listener_state` has the states, :mod:`relay.transports.i2p.receiver` the choice between
STREAM FORWARD and STREAM ACCEPT, and :mod:`relay.transports.i2p.reachability` the check that makes it ``published``.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from ...access.access_list import AccessList
from ...addresses.destinations import Peer, PrivateKey, b32_of
from ...addresses.i2p import I2PListen
from ...carriers.carrier_set import SharedCarrier
from ...carriers.dialer import as_oserror, wait_until_up
from ...carriers.link import CarrierState, mark_reported
from ...carriers.pool import CarrierRef
from ...errors import CarrierError, ConnectError, SAMError, can_retry
from ...eventloop.loop import Loop, Timer
from ...streams.accept_queue import AcceptQueue, Taker
from ...streams.checks import check_time
from ...streams.dialer import Network
from ...streams.identity import Identity
from ...streams.listener import PushingListener
from ...streams.stream import Stream
from .connector import make_carrier
from .key_file import KeyFile, SessionKey, TransientKey, path_of_session
from .listener_state import Action, Event, ListenerMachine, ListenerState, Watcher
from .messages import ServedElsewhereError
from .probe import hiding
from .reachability import ReachabilityMonitor
from .receiver import Receiver
from .session import Session
from .standby import Standby

logger = logging.getLogger("relay")

FINAL = 301.0  # seconds before a session that failed for good is tried again; the carrier refuses for 300 at most
BRIEF = 0.001  # seconds that close() waits for a session without streams to end


class I2PListener(PushingListener):
    """Listener at an I2P destination. Made by :func:`relay.i2p_listen`.

    :param place: the router, the session, and the access lists.
    :param below: the network from which the router's SAM bridge is reached.
    :param name: of the listener, in errors and in the log.
    :raises ValueError: if an entry of the access lists is neither a rule nor a file of rules, or if a new destination,
        or one that strangers do not reach, is to have a standby.
    """

    has_session = True

    def __init__(self, place: I2PListen, below: Network, name: str) -> None:
        if place.standby and place.router.keys is None and not place.router.session:
            raise ValueError(
                "standby: other machines cannot have the keys of a new destination; name a file, keys=FILE"
            )
        if place.standby and (option := hiding(place.router)):
            raise ValueError(f"standby: other machines cannot reach a destination with {option}; leave one out")
        self._name = name
        self._place = place
        self._lists = AccessList(place.allow, place.deny)
        standby = Standby(name, place.router, below) if place.standby else None
        shared = standby.keys if standby is not None else None
        open_key = functools.partial(self._open_key, standby)
        make = functools.partial(make_carrier, name, place.router, below, open_key, standby=standby)
        # A key of its own: a listener's session is never shared, as a router delivers its streams to one place.
        self._holder: CarrierRef[Session] = CarrierRef(name, ("i2p listener", object()), make)
        self._carrier: SharedCarrier[Session] | None = None
        self._machine = ListenerMachine(name, self._perform)
        self._receiver = Receiver(place, name, self._on_stream, self._on_ready)
        self._make_monitor = functools.partial(
            ReachabilityMonitor, name, place.router, below, self._receiver, self._on_reachable, shared
        )
        self._queue: AcceptQueue[Peer] = AcceptQueue(
            lambda: self._call(self._pause), lambda: self._call(self._receiver.resume)
        )
        self._is_starting = False  # start() reports a failure, so that the carrier need not log it
        self._monitor: ReachabilityMonitor | None = None
        self._retry: Timer  # of a session that has failed for good; from start() on, as only that knows its thread

    def start(self, timeout: float | None = None, *, patient: bool = False) -> None:
        """Create the session, and wait until the router delivers streams, or another relay serves the destination.

        :param timeout: seconds; ``None`` for no limit. Building tunnels may take a minute.
        :param patient: whether to wait through failures that a retry can fix; else there is one attempt.
        :raises ConnectError: if the bridge cannot be reached.
        :raises SAMError: if there is no SAM bridge, if it creates no session or delivers no streams, or if the keys
            cannot be used, or with ``standby`` do not exist; ``.result`` is the router's word.
        :raises AuthenticationError: if the bridge rejects the user and the password.
        :raises CarrierError: if the session is lost, or the listener is closed, before the router delivers streams.
        :raises TypeError: if ``timeout`` is not a number.
        :raises ValueError: if it is not positive.
        """
        seconds = check_time("timeout", timeout)
        deadline = None if seconds is None else time.monotonic() + seconds
        machine = self._machine
        # Before the carrier begins: its first attempt may end before `start` waits for it.
        self._is_starting = True
        self._holder.subscribe(self._on_session)
        monitor = self._make_monitor()
        try:
            carrier = self._holder.carrier()  # on the I/O thread that the monitor keeps, also if close() ends it now
        except BaseException:
            monitor.close()
            raise
        self._monitor = monitor
        self._receiver.prepare(carrier.timers)
        self._retry = Timer(carrier.timers, lambda now: carrier.retry_failed())
        self._carrier = carrier  # from now on close() ends the above
        # `close` came on another thread before there was a carrier to end.
        if machine.state is ListenerState.CLOSED:
            self._end_session(carrier)
        carrier.call(lambda: self._on_session(carrier.state, carrier.error))  # it may be up already
        try:
            if not patient:
                self._wait_for_first_attempt(carrier, deadline)
            left = None if deadline is None else deadline - time.monotonic()
            machine.wait(functools.partial(self._has_started, patient=patient), left)
        finally:
            self._is_starting = False
        if machine.state is ListenerState.CLOSED:
            raise CarrierError(f"{self._name}: the listener was closed")
        if machine.error is not None and machine.state is not ListenerState.STANDING_BY:
            raise as_oserror(machine.error)
        if machine.state is ListenerState.CONNECTING:
            raise ConnectError(f"{self._name}: creating the session timed out", reason="connect_timeout")

    @property
    def dest(self) -> str:
        """Destination in base64, for clients to connect to; empty before it is known."""
        return self._receiver.destination

    @property
    def b32(self) -> str:
        """Address ``….b32.i2p`` of the destination; empty before it is known."""
        return b32_of(self.dest) if self.dest else ""

    @property
    def address(self) -> str:
        """Address that a tunnel shows: :attr:`b32`."""
        return self.b32

    @property
    def session(self) -> str:
        """Name of the session, as it was given."""
        return self._place.router.session

    @property
    def state(self) -> str:
        """``connecting``, ``up``, ``published``, ``backing off``, ``standing by``, ``failed`` or ``closed``."""
        return self._machine.state.value

    def subscribe(self, watcher: Watcher) -> None:
        """Call ``watcher(state, error)`` at each change of the state.

        :param watcher: called on the I/O thread; it must not block. What it raises is logged.
        """
        self._machine.subscribe(watcher)

    def wait_published(self, timeout: float | None = None) -> bool:
        """Wait until a stream from another session has shown that the destination is reachable.

        :param timeout: seconds; ``None`` for no limit.
        :returns: whether it is; ``False`` after the timeout, or if the listener is closed.
        """
        final = (ListenerState.PUBLISHED, ListenerState.CLOSED)
        self._machine.wait(lambda: self._machine.state in final, timeout)
        return self._machine.state is ListenerState.PUBLISHED

    def accept(self) -> tuple[Stream, Peer]:
        """Wait for the next stream of an allowed peer, also while the session is lost and re-created.

        :returns: the stream, which has no half-close, and the destination of its peer.
        :raises SAMError: or :class:`relay.AuthenticationError`, once, if the session cannot be re-created. A later call
            waits; the session is tried again after five minutes.
        :raises OSError: ``EBADF`` once the listener is closed.
        """
        while True:
            stream, peer = self.accept_any()
            if stream.denied is None:
                return stream, peer
            logger.warning("%s: %s", self._name, stream.denied)
            stream.reset()

    def accept_any(self) -> tuple[Stream, Peer]:
        """Wait for the next stream, also of a denied peer: for a tunnel, which keeps records of those.

        :returns: the stream, whose ``denied`` is set if the access lists reject the peer, and the peer.
        :raises OSError: as for :meth:`accept`.
        """
        taken = self._queue.take()
        assert taken is not None  # there is no timeout
        stream, peer = taken
        problem = self._refusal(stream.identity)
        if problem is not None:
            stream.denied = ConnectError(problem, reason="denied")
        return stream, peer

    @property
    def pushes_streams(self) -> bool:
        """``True`` if :meth:`deliver` may be used: not with access lists, because reading their files may block."""
        return not self._lists

    def deliver(self, taker: Taker | None, loop: Loop | None = None) -> None:
        """Pass streams on at once, instead of by :meth:`accept`.

        :param taker: called with each stream and its peer, on the I/O thread or on that of ``loop``; it must not block.
            ``None`` keeps them for :meth:`accept` from now on.
        :param loop: whose thread accepts forwarded streams; this saves a change of threads for each.
        """
        self._receiver.loop = loop
        self._queue.deliver(taker)

    def close(self) -> None:
        """Accept no more streams, wake :meth:`accept`, and reset the streams not accepted yet.

        The session ends with its last stream, at once if there is none. Idempotent, from any thread.
        """
        if not self._machine.close():
            return
        self._queue.close()
        if self._carrier is not None:
            self._end_session(self._carrier)
        else:
            self._holder.close(BRIEF)

    def join(self, timeout: float | None = None) -> None:
        """Wait until the session has ended; call :meth:`close` before.

        :param timeout: seconds; ``None`` for as long as streams of the session are open.
        """
        if self._carrier is not None:
            self._carrier.join(timeout)

    def __enter__(self) -> I2PListener:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<relay.I2PListener {self._name}, {self.b32 or 'no destination yet'}, {self.state}>"

    def _end_session(self, carrier: SharedCarrier[Session]) -> None:
        carrier.unsubscribe(self._on_session)
        carrier.call(self._end)
        self._holder.close(BRIEF)

    def _wait_for_first_attempt(self, carrier: SharedCarrier[Session], deadline: float | None) -> None:
        """Wait for a session; return as well if another relay serves the destination."""
        with contextlib.suppress(ServedElsewhereError):
            wait_until_up(carrier, deadline, None, wait_for_reconnect=False)

    def _has_started(self, *, patient: bool) -> bool:
        """Return whether :meth:`start` has nothing more to wait for."""
        state, error = self._machine.state, self._machine.error
        if state not in (ListenerState.CONNECTING, ListenerState.BACKING_OFF):
            return True
        if patient:
            return error is not None and not can_retry(error)
        return state is ListenerState.BACKING_OFF or error is not None

    def _open_key(self, standby: Standby | None) -> SessionKey:
        """Return the key of the destination, for as long as the listener exists; may block.

        :param standby: learns it, if other machines have it.
        :raises SAMError: if the key is in use, cannot be read or created, or is missing where other machines have it.
        """
        router = self._place.router
        if router.keys is None and not router.session:
            return TransientKey(PrivateKey.generate())
        path = router.keys if router.keys is not None else path_of_session(router.session)
        found = KeyFile.open(path, PrivateKey.generate if standby is None else functools.partial(_no_key, path))
        if standby is not None:
            standby.open(found.key, math.inf if found.was_left else found.seconds_since_session)
            self._receiver.destination = found.key.destination  # of the relay that serves it, too
        return found

    def _refusal(self, identity: Identity | None) -> str | None:
        """Return why the access lists reject a peer, for the log; reads those that have changed, so it may block."""
        if not self._lists:
            return None
        if identity is None:
            return "the peer has no valid destination"
        self._lists.refresh(self._name)
        decision = self._lists.decide(identity)
        if decision.is_allowed:
            return None
        return f"{identity.name} is denied" if decision.rule.startswith("deny") else f"{identity.name} is not allowed"

    def _call(self, function: Callable[[], object]) -> None:
        if self._carrier is not None:
            self._carrier.call(function)

    def _on_stream(self, stream: Stream, peer: Peer) -> None:
        """Queue a new stream, unless the reachability check has sent it; in any thread."""
        # First: the stream of a check is no client, and counts neither for the queue nor for the access lists.
        if self._monitor is not None and self._monitor.answers(stream, peer):
            return None
        if self._place.standby and self._queue.is_full:  # not paused: a probe without answer means that it is down
            logger.debug("%s: too many streams wait to be accepted; resetting one", self._name)
            return stream.reset()
        self._receiver.traffic.add(stream.socket)
        stream.identity = _identity(peer)
        self._queue.put(stream, peer)
        return None

    # -- on the I/O thread --------------------------------------------------------------------------------------------

    def _on_session(self, state: CarrierState, error: Exception | None) -> None:
        """Handle a change of the session."""
        if state is CarrierState.FAILED and error is not None and self._is_starting:
            mark_reported(error)  # before start() sees it and returns
        carrier = self._carrier
        if carrier is None:
            return
        # The change is reported a moment later than it happens: the link may be gone by now, or this may be news of one
        # that is served already.
        if state is CarrierState.UP and (carrier.link is None or carrier.link is self._receiver.session):
            return
        event = Event.of(state)
        if event is Event.SESSION_BACKING_OFF and isinstance(error, ServedElsewhereError):
            event = Event.SERVED_ELSEWHERE
        if self._machine.state is ListenerState.STANDING_BY and isinstance(error, ServedElsewhereError):
            error = self._machine.error  # it asks again and again, and that is no news
        self._machine.handle(event, error)

    def _perform(self, action: Action, before: ListenerState, error: Exception | None) -> None:
        """Perform an action of the table in :mod:`relay.transports.i2p.listener_state`."""
        carrier, monitor = self._carrier, self._monitor
        assert carrier is not None
        assert monitor is not None
        if action is Action.WATCH:
            session = self._receiver.session
            assert session is not None
            logger.info("%s: up as %s", self._name, self.b32)
            monitor.watch(session)
            return
        if self._receiver.shut(was_reachable=action is Action.OPEN or before is ListenerState.PUBLISHED):
            monitor.forget()
        if action is Action.OPEN:
            assert carrier.link is not None
            self._receiver.open(carrier.link)
        elif action is Action.PREPARE and not self._place.standby:  # whether there will be a session is not known
            monitor.expect()
        elif action is Action.FAIL and error is not None:
            self._queue.fail(as_oserror(error))
            now = time.monotonic()
            # A client starts another attempt at a dialer; a listener has none, so that the clock does it.
            self._retry.start(now + FINAL, now)

    def _on_ready(self, error: OSError | None) -> None:
        self._machine.handle(Event.READY if error is None else Event.REFUSED, error)

    def _on_reachable(self) -> None:
        self._machine.handle(Event.REACHABLE)

    def _pause(self) -> None:
        if self._queue.is_full and not self._place.standby:
            self._receiver.pause()

    def _end(self) -> None:
        """Free everything, once the listener is closed."""
        assert self._monitor is not None
        self._receiver.close()
        self._retry.stop()
        self._monitor.close()
        self._machine.report()


def _no_key(path: str | Path) -> PrivateKey:
    """Raise an error instead of creating a key: each machine would have a destination of its own.

    :raises SAMError: always.
    """
    raise SAMError(f"{path}: no such file; copy it from the other machine, or make a key with relay keys new")


def _identity(peer: Peer) -> Identity | None:
    """Return the identity of a client; ``None`` if the router has reported no valid destination."""
    try:
        address = b32_of(peer)
    except ValueError:
        return None
    return Identity("i2p", address, destination=address)
