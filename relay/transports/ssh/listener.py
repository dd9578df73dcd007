"""SSH listeners: an SSH server listens for relay (RFC 4254, section 7.1)."""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import Any

from ...addresses.hops import Route
from ...addresses.ssh import SSHServer
from ...addresses.values import TCPAddress, UnixAddress
from ...carriers.carrier_set import SharedCarrier
from ...carriers.dialer import as_oserror, wait_until_up
from ...carriers.link import CarrierState, Watcher, mark_reported
from ...errors import CarrierError, ForwardError, can_retry
from ...eventloop.backoff import Backoff
from ...eventloop.loop import Timer
from ...streams.accept_queue import AcceptQueue
from ...streams.dialer import Network
from ...streams.identity import Identity, identity_of_peer
from ...streams.listener import TunnelListener
from ...streams.stream import Stream
from .connection import Address, Connection
from .connector import Holder

logger = logging.getLogger("relay.ssh")

_BACKOFF = (0.5, 30.0)  # seconds until the first retry after a rejection, and at most
_ANSWER = 10.0  # seconds for the server's reply to one request
_FINAL = 300.0  # seconds after which a rejected login is retried
_ATTEMPTS = 4  # connections that may be lost during the first request
_STOP = 0.4  # seconds that close() waits for the reply to the cancellation, if other users keep the connection

_lock = threading.Lock()  # guards the next variable
_places: weakref.WeakKeyDictionary[Connection, set[Address]] = weakref.WeakKeyDictionary()  # of all listeners


class SSHListener(TunnelListener):
    """Accepts the connections of an address at which an SSH server listens; made by :func:`relay.ssh_listen`.

    :param server: the server.
    :param place: the address at which it listens.
    :param below: the network from which the server is reached.
    :param explain: names the hop of a route that an error belongs to.
    """

    def __init__(
        self, server: SSHServer, place: Address, below: Network, explain: Callable[[OSError, Route], OSError]
    ) -> None:
        self._server = server
        self._route = (*below.route, server)
        self._explain = explain
        self._holder = Holder(server, below)
        self._place = place
        self._queue: AcceptQueue[Any] = AcceptQueue()
        self._changed = threading.Condition()  # guards the following attributes
        self._error: Exception | None = None  # of the start, which start_patiently() raises
        self._link: Connection | None = None  # the connection with the forward
        self._newest: Connection | None = None  # the last connection of the carrier
        self._closed = False
        self._granted = False

    def start(self, deadline: float) -> None:
        """Connect, and request the forward for the first time.

        :param deadline: monotonic seconds.
        :raises OSError: if that has failed.
        """
        carrier = self._holder.carrier()
        try:
            link = self._ask_first(carrier, deadline)
        except OSError as error:
            raise self._explain(error, self._route) from error
        # After the first request: until then this thread, and no watcher, asks on each new connection.
        carrier.subscribe(self._on_state)
        # The connection may have been lost and re-established before the subscription.
        if carrier.link is not link:
            self._on_state(carrier.state, carrier.error)

    def start_patiently(self) -> None:
        """Wait until the server has granted the forward; its carrier retries while the server is unreachable.

        :raises OSError: if retries cannot succeed, or if the listener was closed.
        """
        self._holder.subscribe(self._on_state)
        carrier = self._holder.carrier()
        self._on_state(carrier.state, carrier.error)
        with self._changed:
            self._changed.wait_for(lambda: self._granted or self._closed or self._error is not None)
            error, self._error = self._error, None
            closed = self._closed
        if closed:
            self._holder.close()  # it may have been acquired after close() had released it
            raise CarrierError(f"{self._server}: the listener was closed")
        if error is not None:
            raise error

    def subscribe(self, watcher: Watcher) -> None:
        """Call ``watcher(state, error)`` at each change of the connection, in the background thread; it must not block.

        :raises OSError: if the system has no threads or descriptors left.
        """
        self._holder.subscribe(watcher)

    @property
    def address(self) -> Any:
        """The address at which the server listens: ``(host, port)``, or the path of a Unix socket at the server."""
        place = self._place
        return place.path if isinstance(place, UnixAddress) else (place.host, place.port)

    def getsockname(self) -> Any:
        """Return :attr:`address`."""
        return self.address

    @property
    def state(self) -> str:
        """The state of the SSH connection: ``connecting``, ``up``, ``backing off``, ``failed`` or ``closed``."""
        held = self._holder.current
        return held.state.value if held is not None else CarrierState.CLOSED.value

    def accept(self) -> tuple[Stream, Any]:
        """Wait for the next stream, also while the SSH connection is lost and re-established.

        :returns: the stream, and its peer: ``(host, port)`` as the server reports it, or a text.
        :raises HostKeyError: once, if the host key was rejected after a loss; a later call waits and retries after five
            minutes.
        :raises AuthenticationError: the same for a rejected login.
        :raises OSError: ``EBADF`` once the listener is closed.
        """
        while True:
            held = self._holder.current
            failed = held is not None and held.state is CarrierState.FAILED
            # A listener has no client that could start the next attempt; the one that waits here does it.
            taken = self._queue.take(_FINAL if failed else None)
            if taken is not None:
                return taken
            assert held is not None
            held.retry_failed()

    def close(self) -> None:
        """Cancel the forward, wake :meth:`accept`, and reset the streams that were not accepted. Idempotent."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            link, self._link = self._link, None
            self._changed.notify_all()
        held = self._holder.current
        if held is not None:
            held.unsubscribe(self._on_state)
        self._queue.close()
        self._holder.close()
        if (
            link is not None and held is not None and held.state is not CarrierState.CLOSED
        ):  # other users keep the connection
            name = f"relay {self._server} forward's end"
            # A thread, because a server that does not answer must not hold up close() for longer than a moment.
            stopping = threading.Thread(target=self._stop, args=(link, self._place), name=name, daemon=True)
            try:
                stopping.start()
            except RuntimeError:  # the system has no thread left
                self._stop(link, self._place)
            else:
                stopping.join(_STOP)

    def __enter__(self) -> SSHListener:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<relay.SSHListener at {self._place} on {self._holder!r}>"

    # -- the forward --------------------------------------------------------------------------------------------------

    def _ask_first(self, carrier: SharedCarrier[Connection], deadline: float) -> Connection:
        lost: tuple[Connection, CarrierError] | None = None
        for attempt in range(1, _ATTEMPTS + 1):
            link = self._newest = wait_until_up(carrier, deadline, None, wait_for_reconnect=False, instead_of=lost)
            try:
                self._ask(link, deadline)
                break
            except CarrierError as error:
                if attempt == _ATTEMPTS or time.monotonic() > deadline:
                    raise
                lost = link, error
        return link

    def _ask(self, link: Connection, deadline: float) -> None:
        """Request the forward. After a rejection cancel it, because a lost connection may hold it, and retry once."""
        asked = self._place
        self._take(link, asked)
        try:
            place = self._request(link, asked, deadline)
        except BaseException:
            self._leave(link, asked)
            raise
        if place != asked:
            # The server has chosen the port: from now on the forward is known by it.
            self._leave(link, asked)
            self._take(link, place)
        with self._changed:
            closed = self._closed
            if not closed and self._newest is link:
                self._place, self._link, self._granted = place, link, True
                self._changed.notify_all()
        # `close` came while the server was asked, when there was no forward to cancel.
        if closed:
            self._stop(link, place)

    def _request(self, link: Connection, place: Address, deadline: float) -> Address:
        try:
            return link.listen(place, self._on_stream, deadline)
        except ForwardError:
            # The server has chosen freely, so that no earlier forward can be in the way.
            if isinstance(place, TCPAddress) and not place.port:
                raise
            link.stop_listening(place)
            return link.listen(place, self._on_stream, deadline)

    def _stop(self, link: Connection, place: Address) -> None:
        link.stop_listening(place)
        self._leave(link, place)

    # That cancellation must not affect another listener of this process: it would hold the same address.

    def _take(self, link: Connection, place: Address) -> None:
        if isinstance(place, TCPAddress) and not place.port:
            return
        with _lock:
            taken = _places.setdefault(link, set())
            if place in taken:
                raise ForwardError(f"{self._server}: {place} is in use by another listener of this connection")
            taken.add(place)

    def _leave(self, link: Connection, place: Address) -> None:
        with _lock:
            _places.setdefault(link, set()).discard(place)

    def _on_state(self, state: CarrierState, error: Exception | None) -> None:
        """Handle a change of the carrier's state; in the background thread."""
        with self._changed:
            if state is CarrierState.FAILED and error is not None:
                explained = self._explain(as_oserror(error), self._route)
                if self._granted:
                    self._queue.fail(explained)
                else:
                    mark_reported(error)  # start_patiently() raises it
                    self._error = explained
            held = self._holder.current
            link = held.link if held is not None else None
            # The same connection may be reported again; it is asked once.
            known = link is self._newest
            if not known:
                self._link, self._newest = None, link
            self._changed.notify_all()
        if held is not None and link is not None and not known:
            self._begin_asking(held, link)

    def _begin_asking(self, held: SharedCarrier[Connection], link: Connection) -> None:
        """Request the forward on a new connection, in a thread of its own, as soon as there is one."""
        with self._changed:
            if self._closed or self._newest is not link:
                return
        name = f"relay {self._server} forward"
        try:
            # Not here, in the thread of all carriers: the request waits for the server.
            threading.Thread(target=self._ask_again, args=(link,), name=name, daemon=True).start()
        except RuntimeError as error:  # the system has no thread left
            logger.warning("%s: cannot request the forward: %s; retrying in %.1f s", self._server, error, _BACKOFF[0])
            timer = Timer(held.timers, lambda _: self._begin_asking(held, link))
            held.call(lambda: timer.start((now := time.monotonic()) + _BACKOFF[0], now))

    def _ask_again(self, link: Connection) -> None:
        """Request the forward on a new connection, in its own thread, until that connection is lost."""
        backoff = Backoff(*_BACKOFF)
        while True:
            is_first = not self._granted
            try:
                self._ask(link, time.monotonic() + _ANSWER)
            except OSError as error:
                if is_first and not can_retry(error):
                    return self._fail(error)
                wait = backoff.next()
                # The carrier re-establishes a lost connection, and logs that.
                level = logging.DEBUG if isinstance(error, CarrierError) else logging.WARNING
                logger.log(level, "%s; retrying in %.1f s", error, wait)
            else:
                if not is_first:
                    logger.warning("%s: listening at %s again", self._server, self._place)
                return None
            with self._changed:
                # The wait is the back-off, and ends at once when another connection is there: that one has a thread of
                # its own.
                if self._changed.wait_for(lambda: self._closed or self._newest is not link, wait):
                    return None

    def _fail(self, error: OSError) -> None:
        with self._changed:
            self._error = self._explain(error, self._route)
            self._changed.notify_all()

    def _on_stream(self, stream: Stream, peer: object) -> None:
        """Queue a stream; in a thread of the connection."""
        if self._queue.is_full:
            # SSH has no backlog: what relay does not take now cannot wait at the server.
            stream.reset()
        else:
            stream.identity = _identity(self._server, peer)
            self._queue.put(stream, peer)


def _identity(server: SSHServer, peer: object) -> Identity:
    """Return the identity of a client: the server is verified, and what it says of its client is not."""
    name = str(server)
    client = identity_of_peer(peer)
    if client is None:
        return Identity("ssh", name, server=name)
    return Identity("ssh", name, client.host, client.port, server=name, is_verified=False)
