"""Receiving the streams of a listener's session: by STREAM FORWARD where the router can connect to relay, else ACCEPT.

Everything here runs on the I/O thread, unless a docstring names another.
"""

from __future__ import annotations

import contextlib
import logging
import math
import socket
import struct
import sys
import threading
import time
import weakref
from collections.abc import Callable

from ...addresses.i2p import I2PListen
from ...addresses.values import is_loopback
from ...carriers.link import strip_prefix
from ...errors import SAMError
from ...eventloop.loop import Loop, Timer, Timers
from .forward_port import OnStream
from .inbound import AcceptStreams, ForwardStreams, IncomingStreams
from .peer_uid import PeerUidLookup
from .session import Session

logger = logging.getLogger("relay")

AGAIN = 2.0  # seconds before the streams are requested again, for example after a lack of descriptors

_TCP_INFO = getattr(socket, "TCP_INFO", None) if sys.platform == "linux" else None
_LAST = struct.Struct("=52xI")  # struct tcp_info of linux/tcp.h: tcpi_last_data_recv, in milliseconds


class Traffic:
    """Record of when streams came and brought bytes. Every method is safe from any thread."""

    def __init__(self) -> None:
        self.paused_until = 0.0  # end of the last time that streams were kept waiting, monotonic seconds
        self._last_stream = 0.0  # monotonic seconds
        self._lock = threading.Lock()
        self._open: weakref.WeakSet[socket.socket] = weakref.WeakSet()

    def add(self, connection: socket.socket) -> None:
        """Record a new stream by its socket."""
        with self._lock:
            self._last_stream = time.monotonic()
            self._open.add(connection)

    def since(self, when: float) -> bool:
        """Return whether a stream has come, or has brought bytes, since ``when`` (monotonic seconds)."""
        if self._last_stream >= when:
            return True
        with self._lock:
            # A copy: the kernel is asked without the lock, which each new stream needs.
            sockets = tuple(self._open)
        elapsed = time.monotonic() - when
        return any(seconds_idle(one) < elapsed for one in sockets)


class Receiver:
    """Receives the streams of one session after the other.

    :param place: the session's parameters: how streams are accepted, and the access lists.
    :param name: of the listener, in errors and in the log.
    :param on_stream: called with each stream and its peer, in any thread.
    :param on_ready: called with ``None`` when the router has agreed to deliver streams, and with the error when it has
        refused; the request is repeated then.
    """

    def __init__(
        self, place: I2PListen, name: str, on_stream: OnStream, on_ready: Callable[[OSError | None], object]
    ) -> None:
        self.loop: Loop | None = None  # whose thread accepts forwarded streams; None: the I/O thread
        self.traffic = Traffic()
        self.destination = ""  # of the last session, in base64; of one that stands by before
        self._place = place
        self._name = name
        self._on_stream = on_stream
        self._on_ready = on_ready
        self._session: Session | None = None
        self._incoming: IncomingStreams | None = None
        self._peer_uids: PeerUidLookup | None = None  # None: the system does not report the user of a connection
        self._try_forward = place.accept != "accept"
        self._retry: Timer  # of a failed open(); from prepare() on, which the listener calls before anything else

    def prepare(self, timers: Timers) -> None:
        """Find out what the system reports of local connections; called once, in any thread, before :meth:`open`.

        :param timers: of the I/O thread.
        """
        if self._try_forward:
            with contextlib.suppress(OSError):
                # In `prepare`, as it may block for a connection within this process, and `open` is on the I/O thread.
                self._peer_uids = PeerUidLookup()
        self._retry = Timer(timers, self._open_again)

    @property
    def session(self) -> Session | None:
        """The session whose streams are received."""
        return self._session

    def open(self, session: Session) -> None:
        """Receive the streams of a session. If that fails, try again every two seconds."""
        self._session, self.destination = session, session.destination
        try:
            incoming = self._incoming = self._make_incoming(session)
        except OSError as error:
            logger.warning("%s: cannot receive streams: %s; retrying", self._name, strip_prefix(self._name, error))
            now = time.monotonic()
            self._retry.start(now + AGAIN, now)
            self._on_ready(error)
        else:
            incoming.begin()

    def shut(self, *, was_reachable: bool) -> bool:
        """Receive no more streams from the session.

        :param was_reachable: if not, the next session tries STREAM FORWARD again: nothing has shown that it does not
            work.
        :returns: whether streams were requested.
        """
        self._retry.stop()
        self._session = None
        incoming, self._incoming = self._incoming, None
        if incoming is not None:
            incoming.close()
        if not was_reachable:
            self._try_forward = self._place.accept != "accept"
        return incoming is not None

    def close(self) -> None:
        """Receive no more streams, and free the descriptors."""
        self._session = None
        self._retry.stop()
        if self._incoming is not None:
            self._incoming.close()
        if self._peer_uids is not None:
            self._peer_uids.close()

    def pause(self) -> None:
        """Keep further streams waiting at the router or in the kernel."""
        if self._incoming is not None and not self._incoming.paused:
            self._incoming.pause(True)

    def resume(self) -> None:
        """Receive further streams, on the thread of :attr:`loop`."""
        if self._incoming is not None:
            # The tunnel may have come, or gone, since streams were last received.
            self._incoming.move(self.loop)
            if self._incoming.paused:
                # A probe that came during the pause had no chance of a reply, and must not be held against the session.
                self.traffic.paused_until = time.monotonic()
                self._incoming.pause(False)

    # -- for the reachability check -----------------------------------------------------------------------------------

    def switch_to_accept(self, why: str) -> bool:
        """Use STREAM ACCEPT if STREAM FORWARD has never delivered a stream, unless the user has chosen.

        :param why: for the log.
        :returns: whether it was switched.
        """
        incoming = self._incoming
        if not isinstance(incoming, ForwardStreams) or incoming.delivered or self._place.accept is not None:
            return False
        self._switch(incoming, why)
        return True

    def was_paused(self, since: float) -> bool:
        """Return whether streams were kept waiting since then (monotonic seconds), so that a probe got no reply."""
        is_paused = self._incoming is not None and self._incoming.paused
        return is_paused or self.traffic.paused_until >= since

    def had_traffic(self, since: float) -> bool:
        """Return whether streams of clients have come, or brought bytes, since then (monotonic seconds)."""
        return self.traffic.since(since)

    # -- FORWARD or ACCEPT --------------------------------------------------------------------------------------------

    def _open_again(self, now: float) -> None:
        if self._session is not None and (self._incoming is None or self._incoming.is_over):
            self.open(self._session)

    def _make_incoming(self, session: Session) -> IncomingStreams:
        """Choose STREAM FORWARD where the router may be able to connect to relay, else STREAM ACCEPT.

        :raises OSError: if the user has chosen FORWARD and it is impossible, or if there are no descriptors left.
        """
        if self._place.accept == "forward":
            return self._forward(session, self._trusted_lookup(session))
        lookup = self._peer_uids
        # Where the kernel does not know the user of a closed connection, relay would reject short streams.
        can_trust = lookup is not None and lookup.knows_closed and _knows_router(lookup, session)
        if self._try_forward and is_local(session) and can_trust:
            return self._forward(session, lookup)
        return AcceptStreams(session, self._on_stream, self._on_incoming_ready)

    def _forward(self, session: Session, lookup: PeerUidLookup | None) -> ForwardStreams:
        return ForwardStreams(session, self._on_stream, self._on_incoming_ready, lookup=lookup, loop=self.loop)

    def _trusted_lookup(self, session: Session) -> PeerUidLookup | None:
        """Return the lookup for a FORWARD that the user has chosen.

        :returns: ``None`` where no system could look users up, and no access list depends on it.
        :raises SAMError: if the router is not on this machine, or its user is unknown although it should be known.
        """
        lookup = self._peer_uids
        has_lists = self._place.allow is not None or bool(self._place.deny)
        if not is_local(session):
            problem = "requires a router on this machine's loopback"
        elif lookup is not None and not _knows_router(lookup, session):
            problem = "requires the router's user ID, which the kernel does not report"
        elif lookup is None and (has_lists or sys.platform == "linux"):
            problem = "requires the user IDs of connections, which this system does not report"
        else:
            return lookup
        raise SAMError(f"{self._name}: accept='forward' {problem}; use 'accept'")

    def _on_incoming_ready(self, incoming: IncomingStreams, error: OSError | None) -> None:
        """Handle the router's answer to the request for streams."""
        # The answer to a request of an earlier session, or of STREAM FORWARD before the switch.
        if incoming is not self._incoming:
            return
        can_switch = isinstance(incoming, ForwardStreams) and self._place.accept is None
        if isinstance(error, SAMError) and can_switch:
            assert isinstance(incoming, ForwardStreams)
            return self._switch(incoming, str(error))
        if error is not None:
            logger.warning("%s; requesting streams again", error)
        self._on_ready(error)
        return None

    def _switch(self, incoming: ForwardStreams, why: str) -> None:
        logger.warning("%s; switching from STREAM FORWARD to STREAM ACCEPT", why)
        self._try_forward = False
        incoming.end(lambda: self.open(incoming.session) if incoming is self._incoming else None)


def is_local(session: Session) -> bool:
    """Return whether the bridge is on this machine and connected directly, so that it can connect to a local port."""
    control = session.control_socket
    try:
        host = control.getpeername()[0] if control.family in (socket.AF_INET, socket.AF_INET6) else ""
        return is_loopback(host)
    except OSError:
        return False


def _knows_router(lookup: PeerUidLookup, session: Session) -> bool:
    """Return whether the kernel reports the router's user ID."""
    return lookup.of(session.control_socket) is not None


def seconds_idle(connection: socket.socket) -> float:
    """Return the time since bytes last came on a TCP connection.

    :returns: seconds; infinite where the kernel does not report it.
    """
    try:
        info = connection.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _LAST.size) if _TCP_INFO is not None else b""
    except OSError:
        return math.inf
    return _LAST.unpack(info)[0] / 1000 if len(info) == _LAST.size else math.inf
