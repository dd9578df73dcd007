"""A destination of ours at which others connect to us, kept up."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import socket
import sys
import threading
import time
import weakref
from collections.abc import Callable
from types import TracebackType

from ...addresses.destinations import Peer, PrivateKey, b32_of
from ...addresses.i2p import I2PListen
from ...carriers.carrier import Carrier, mark_reported
from ...carriers.dialer import as_oserror, wait_until_up
from ...carriers.link import CarrierState, strip_prefix
from ...carriers.pool import CarrierRef
from ...errors import CarrierError, ConnectError, SAMError, can_retry
from ...eventloop.loop import Loop, Timer
from ...streams.accept_queue import AcceptQueue, Taker
from ...streams.checks import check_time
from ...streams.dialer import Network
from ...streams.stream import Stream
from .access_list import AccessList
from .connector import SessionKey, make_carrier
from .inbound import AcceptStreams, ForwardStreams, IncomingStreams, is_local
from .key_file import KeyFile, TransientKey, path_of_session
from .peer_uid import PeerUidLookup
from .reachability import ReachabilityMonitor, silence
from .session import Session

__all__ = ["I2PListener"]

logger = logging.getLogger("relay")

Watcher = Callable[[str, "Exception | None"], object]

PUBLISHED = "published"
AGAIN = 2.0  # seconds until a way in is tried again that could not be made, for want of descriptors for instance
FINAL = 301.0  # seconds after which a failure is tried again that time alone does not mend; see the carrier
BRIEF = 0.001  # seconds for a session without streams to be seen to have none


class I2PListener:
    """A destination of ours; what others connect to it is accepted here. Made by :func:`relay.i2p_listen`.

    :param place: the router, the session, and who is let in.
    :param below: the network from which the router's SAM bridge is reached.
    :param name: of the listener, in errors and in the log.
    :raises ValueError: if an entry of the access lists is neither a destination nor a file of them.
    """

    def __init__(self, place: I2PListen, below: Network, name: str) -> None:
        self._place = place
        self._name = name
        self._lists = AccessList(place.allow, place.deny)
        self._listed = place.allow is not None or bool(place.deny)
        self._below = below
        self._dest = ""
        self._holder: CarrierRef[Session] = CarrierRef(
            name, ("i2p listener", object()), lambda: make_carrier(name, place.router, below, self._hold_key)
        )
        self._carrier: Carrier[Session] | None = None
        self._watchers: list[Watcher] = []
        self._queue: AcceptQueue[Peer] = AcceptQueue(lambda: self._call(self._hold), lambda: self._call(self._go_on))
        self._loop: Loop | None = None  # in whose thread streams are to be accepted
        self._changed = threading.Condition()  # for what follows
        self._state = CarrierState.CONNECTING.value
        self._problem: Exception | None = None  # why it is in that state
        self._closed = False
        self._starting = False  # then start() reports a failure
        self._came = 0.0  # when the last stream has come
        self._sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()  # of those that are open
        # What follows belongs to the pump's thread.
        self._incoming: IncomingStreams | None = None
        self._prover: ReachabilityMonitor | None = None
        self._held = 0.0  # when they were last kept waiting
        self._owners: PeerUidLookup | None = None  # what finds the user of a connection, where the system reports it
        self._try_forward = place.accept != "accept"  # whether the router may be able to connect to us
        self._retry: Timer  # of a session that has failed for good
        self._again: Timer  # of a way in that could not be made

    def start(self, timeout: float | None = None, *, patient: bool = False) -> None:
        """Make the session, and wait until streams can come.

        :param timeout: seconds; ``None`` for as long as it takes, for building tunnels may take a minute.
        :param patient: whether to wait through failures that a retry can fix; else there is one attempt.
        :raises ConnectError: if the bridge cannot be reached.
        :raises SAMError: if there is no bridge, it makes no session or hands no streams over, or for what is wrong with
            the keys; ``.result`` is the router's word.
        :raises AuthenticationError: if it does not take the user and the password.
        :raises CarrierError: if the session is lost, or the listener closed, before streams can come.
        :raises TypeError: if ``timeout`` is not a number.
        :raises ValueError: if it is not positive.
        """
        seconds = check_time("timeout", timeout)
        deadline = None if seconds is None else time.monotonic() + seconds
        self._starting = True
        self._holder.subscribe(self._on_state)
        carrier = self._holder.carrier()
        if self._try_forward:
            with contextlib.suppress(OSError):
                self._owners = PeerUidLookup()
        self._retry = Timer(carrier.timers, self._try_again)
        self._again = Timer(carrier.timers, self._enter_again)
        self._prover = ReachabilityMonitor(self._name, self._place.router, self._below, self)
        with self._changed:
            self._carrier = carrier  # from now on close() ends what belongs to it
            if self._closed:
                carrier.call(self._end)
        carrier.call(lambda: self._on_state(carrier.state, carrier.error))  # it may be up already
        try:
            if not patient:
                wait_until_up(carrier, deadline, None, wait_for_reconnect=False)
            with self._changed:
                settled = functools.partial(self._is_settled, patient=patient)
                self._changed.wait_for(settled, None if deadline is None else deadline - time.monotonic())
        finally:
            self._starting = False
        with self._changed:
            if self._closed:
                raise CarrierError(f"{self._name}: the listener was closed")
            if self._problem is not None:
                raise as_oserror(self._problem)
            if self._state == CarrierState.CONNECTING.value:
                raise ConnectError(f"{self._name}: the session was not made in time", reason="connect_timeout")

    @property
    def dest(self) -> str:
        """The destination in base64, which others connect to; empty before it is known."""
        return self._dest

    @property
    def b32(self) -> str:
        """Its address, ``….b32.i2p``; empty before it is known."""
        return b32_of(self._dest) if self._dest else ""

    @property
    def address(self) -> str:
        """Its address, as a tunnel shows it."""
        return self.b32

    @property
    def session(self) -> str:
        """The session's name, as it was given."""
        return self._place.router.session

    @property
    def state(self) -> str:
        """``connecting``, ``up``, ``published``, ``backing off``, ``failed`` or ``closed``."""
        return CarrierState.CLOSED.value if self._closed else self._state

    def subscribe(self, watcher: Watcher) -> None:
        """Have ``watcher(state, error)`` called at each change of the state; it must not block.

        :param watcher: called in a thread of ours; what it raises is logged.
        """
        self._watchers.append(watcher)

    def wait_published(self, timeout: float | None = None) -> bool:
        """Wait until a stream from another session has shown that the destination can be reached.

        :param timeout: seconds; ``None`` for as long as it takes.
        :returns: whether it can; ``False`` when the time is over or the listener is closed.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._state == PUBLISHED, timeout)
            return not self._closed and self._state == PUBLISHED

    def accept(self) -> tuple[Stream, Peer]:
        """Wait for the next stream of somebody who is let in, however often the session is lost meanwhile.

        :returns: the stream, which has no half-close, and the destination that it comes from.
        :raises SAMError: or :class:`relay.AuthenticationError`, once, if the session cannot be made again; a later call
            waits, and it is tried again after five minutes.
        :raises OSError: ``EBADF`` once the listener is closed.
        """
        while True:
            stream, peer = self.accept_any()
            if stream.denied is None:
                return stream, peer
            logger.warning("%s: %s", self._name, stream.denied)
            stream.reset()

    def accept_any(self) -> tuple[Stream, Peer]:
        """The same for a tunnel, which has records of those that are not let in: their streams say so (``denied``)."""
        taken = self._queue.take()
        assert taken is not None  # there is no limit of time
        stream, peer = taken
        refusal = self._lists.refusal(peer) if self._listed else None
        if refusal is not None:
            stream.denied = ConnectError(refusal, reason="denied")
        return stream, peer

    @property
    def delivers(self) -> bool:
        """Whether :meth:`deliver` may be used: it may not with access lists, for their files are read."""
        return not self._listed

    def deliver(self, taker: Taker | None, loop: Loop | None = None) -> None:
        """Have streams handed over at once, in place of :meth:`accept`.

        :param taker: called with each stream and who connects, in a thread of ours or in the loop's; it must not block.
            ``None`` to keep them for :meth:`accept` from now on.
        :param loop: in whose thread they are accepted, where that can be chosen, which saves a change of threads.
        """
        self._loop = loop
        self._queue.deliver(taker)

    def close(self) -> None:
        """Accept no more, wake :meth:`accept`, end who was not accepted yet. Idempotent, from any thread.

        The session ends with its last stream, at once if there is none.
        """
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._changed.notify_all()
            carrier = self._carrier
        self._queue.close()
        if carrier is not None:
            carrier.unsubscribe(self._on_state)
            carrier.call(self._end)
        self._holder.close(BRIEF)

    def join(self, timeout: float | None = None) -> None:
        """Wait, once it is closed, until the session has ended.

        :param timeout: seconds to wait at most; ``None`` for as long as streams of it are open.
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

    def _is_settled(self, *, patient: bool) -> bool:
        if self._closed or self._state in (CarrierState.UP.value, PUBLISHED, CarrierState.FAILED.value):
            return True
        if patient:
            return self._problem is not None and not can_retry(self._problem)
        return self._state != CarrierState.CONNECTING.value or self._problem is not None

    def _call(self, function: Callable[[], object]) -> None:
        if self._carrier is not None:
            self._carrier.call(function)

    # -- in the pump's thread: the session ----------------------------------------------------------------------------

    def _on_state(self, state: CarrierState, error: Exception | None) -> None:
        """The session has come or gone."""
        if state is CarrierState.FAILED and error is not None and self._starting:
            mark_reported(error)  # before start() sees it and returns
        if self._closed or self._carrier is None or self._prover is None:
            return
        link = self._carrier.link
        if state is CarrierState.UP and link is not None:
            if self._incoming is None or self._incoming.session is not link:
                self._leave()
                self._dest = link.destination
                self._set(CarrierState.CONNECTING.value)
                self._enter(link)
        else:
            self._leave()
            if self._state != PUBLISHED:
                self._try_forward = self._place.accept != "accept"  # whether that was the reason was not shown
            self._set(state.value, error)
            if state is CarrierState.CONNECTING:
                self._prover.expect()
        if state is CarrierState.FAILED and error is not None:
            self._fail(as_oserror(error))

    def _hold_key(self) -> SessionKey:
        """The key, which stays the same as long as the listener lives; in a thread that may block.

        :raises SAMError: if it is in use, or cannot be read or made.
        """
        router = self._place.router
        if router.keys is not None:
            return KeyFile.open(router.keys, PrivateKey.generate)
        if router.session:
            return KeyFile.open(path_of_session(router.session), PrivateKey.generate)
        return TransientKey(PrivateKey.generate())

    def _set(self, state: str, error: Exception | None = None) -> None:
        with self._changed:
            told = state == self._state and error in (None, self._problem)
            self._state, self._problem = state, error
            self._changed.notify_all()
        if told:
            return
        for watcher in tuple(self._watchers):
            try:
                watcher(state, error)
            except Exception:
                logger.exception("%s: a watcher of the state failed", self._name)

    def _fail(self, error: OSError) -> None:
        self._queue.fail(error)
        now = time.monotonic()
        self._retry.start(now + FINAL, now)

    def _try_again(self, now: float) -> None:
        assert self._carrier is not None
        self._carrier.retry_failed()

    def _end(self) -> None:
        """It is closed."""
        self._leave()
        self._retry.stop()
        if self._owners is not None:
            self._owners.close()
        if self._prover is not None:
            self._prover.close()
        self._set(CarrierState.CLOSED.value)

    # -- in the pump's thread: the way in -----------------------------------------------------------------------------

    def _enter(self, session: Session) -> None:
        """Have the streams of a session come in."""
        try:
            way = self._incoming = self._make_incoming(session)
        except OSError as error:
            logger.warning("%s: streams cannot come for now: %s", self._name, strip_prefix(self._name, error))
            self._set(CarrierState.CONNECTING.value, error)
            now = time.monotonic()
            self._again.start(now + AGAIN, now)
        else:
            way.begin()

    def _enter_again(self, now: float) -> None:
        session = self._carrier.link if self._carrier is not None else None
        if session is not None and (self._incoming is None or self._incoming.over):
            self._enter(session)

    def _leave(self) -> None:
        """Have no more come in from the session that there was."""
        self._again.stop()
        way, self._incoming = self._incoming, None
        if way is not None:
            way.close()
            assert self._prover is not None
            self._prover.forget()

    def _make_incoming(self, session: Session) -> IncomingStreams:
        """How the streams of this session come in: by FORWARD where the router may be able to reach us.

        :raises OSError: if it is not the one that was asked for.
        """
        if self._place.accept == "forward":
            return self._forward(session, self._trusted_owners(session))
        # Where the kernel does not know the user of a closed connection, short streams would be rejected at the port.
        owners = self._owners
        if (
            self._try_forward
            and is_local(session)
            and owners is not None
            and owners.knows_closed
            and _sees(owners, session)
        ):
            return self._forward(session, owners)
        return AcceptStreams(session, self._on_stream, self._on_ready)

    def _forward(self, session: Session, owners: PeerUidLookup | None) -> ForwardStreams:
        return ForwardStreams(session, self._on_stream, self._on_ready, owners=owners, loop=self._loop)

    def _trusted_owners(self, session: Session) -> PeerUidLookup | None:
        """What finds the user of a connection to our port; ``None`` where no system could, and no list depends on it.

        :raises SAMError: if the router is not on this machine, or its user is not known here although it should be.
        """
        owners = self._owners
        if not is_local(session):
            problem = "has the router connect to us, and it is not on this machine's loopback"
        elif owners is not None and not _sees(owners, session):
            problem = "needs the user of the router, which the kernel does not report"
        elif owners is None and (self._listed or sys.platform == "linux"):
            problem = "needs the users of connections, which this system does not report"
        else:
            return owners
        raise SAMError(f"{self._name}: accept='forward' {problem}; use 'accept'")

    def _on_ready(self, way: IncomingStreams, error: OSError | None) -> None:
        """The router hands streams over now, or says why it does not."""
        if way is not self._incoming:
            return
        if error is None:
            if self._state == CarrierState.CONNECTING.value:
                logger.info("%s: up as %s", self._name, self.b32)
                self._set(CarrierState.UP.value)
                assert self._prover is not None
                self._prover.prove(way.session)
        elif isinstance(way, ForwardStreams) and self._place.accept is None and isinstance(error, SAMError):
            self._turn(way, str(error))
        else:
            logger.warning("%s; it is asked again", error)
            self._set(CarrierState.CONNECTING.value, error)

    def _turn(self, way: ForwardStreams, why: str) -> None:
        """Take the other way in: the router cannot reach us."""
        logger.warning("%s; switching from STREAM FORWARD to STREAM ACCEPT", why)
        self._try_forward = False
        way.end(lambda: self._enter(way.session) if way is self._incoming else None)

    def _on_stream(self, stream: Stream, peer: Peer) -> None:
        """Somebody connects; in any thread."""
        if self._prover is not None and self._prover.keeps(stream, peer):
            return
        with self._changed:
            self._came = time.monotonic()
            self._sockets.add(stream.socket)
        self._queue.put(stream, peer)

    def _hold(self) -> None:
        """There is no room for more."""
        if self._incoming is not None and not self._incoming.held and self._queue.is_full:
            self._held = math.inf
            self._incoming.hold(True)

    def _go_on(self) -> None:
        """There is room again, or somebody else takes them."""
        if self._incoming is not None:
            self._incoming.move(self._loop)
            if self._incoming.held:
                self._held = time.monotonic()
                self._incoming.hold(False)

    # -- in the pump's thread: what the prover asks, and tells ---------------------------------------------------------

    def proved(self) -> None:
        """A stream from another session has come, and was answered."""
        if self._state == CarrierState.UP.value:
            self._set(PUBLISHED)

    def turn(self, why: str) -> bool:
        """Have streams come in another way, if none has ever come this way."""
        way = self._incoming
        if not isinstance(way, ForwardStreams) or way.brought or self._place.accept is not None:
            return False
        self._turn(way, why)
        return True

    def was_held(self, since: float) -> bool:
        """Whether streams were kept waiting since then."""
        return self._held >= since

    def was_alive(self, since: float) -> bool:
        """Whether the streams of others have come, or brought bytes, since then."""
        if self._came >= since:
            return True
        with self._changed:
            sockets = tuple(self._sockets)
        quiet = time.monotonic() - since
        return any(silence(one) < quiet for one in sockets)


def _sees(owners: PeerUidLookup, session: Session) -> bool:
    """Whether the user of the bridge is known here."""
    return owners.of(session.control_socket) is not None
