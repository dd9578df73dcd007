"""Listener at an onion service: tor publishes it, and connects to a port of relay for each stream.

The service lives as long as the control connection, which is a carrier: relay makes it again after a loss, with the
same key. Streams outlive it.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import socket
import threading
import time
from types import TracebackType
from typing import Any

from ...addresses.tor import TorListen
from ...addresses.values import TCPAddress
from ...carriers.carrier import Carrier
from ...carriers.carrier_set import SharedCarrier
from ...carriers.dialer import as_oserror, wait_until_up
from ...carriers.link import CarrierState, Watcher, mark_reported
from ...carriers.pool import CarrierRef
from ...errors import CarrierError, can_retry
from ...eventloop.background import IOThread
from ...eventloop.loop import Loop, Timer
from ...eventloop.poller import IN
from ...eventloop.sockets import reset
from ...streams.accept_queue import AcceptQueue, Taker
from ...streams.identity import Identity
from ...streams.listener import PushingListener
from ...streams.stream import Stream
from ..i2p.forward_port import PortCheck
from ..i2p.peer_uid import PeerUidLookup, hold_end, release_end
from .control import ControlConnector, OnionService

logger = logging.getLogger("relay")

_BACKLOG = 1024
_ATTEMPT = 60.0  # seconds to log in and publish
_REST = 10.0  # maximum back-off in seconds: tor is on this machine
_FINAL = 301.0  # seconds before what has failed for good is tried again; the carrier refuses for 300
_AGAIN = 0.1  # seconds until accept is retried after a lack of descriptors
_SETTLE = 0.05  # seconds after the end of a stream until it is known whether tor has ended


class TorListener(PushingListener):
    """Listener at an onion service. Made by :func:`relay.tor_listen`.

    Its states are those of its carrier; see :mod:`relay.carriers.carrier`.

    :param place: the control port, and the key.
    :param name: of the listener, in errors and in the log.
    :raises OSError: if no port, thread or descriptor is available.
    """

    def __init__(self, place: TorListen, name: str) -> None:
        self._name = name
        self._place = place
        self._host = ""
        # A random port, to which only tor may connect: the kernel says whose a connection is.
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=_BACKLOG)
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._lookup: PeerUidLookup | None = None
        with contextlib.suppress(OSError):
            self._lookup = PeerUidLookup()
        self._check = PortCheck(name, self._lookup, self._socket, "tor")
        if self._check.holds_ends:
            hold_end(self._socket)
        target = TCPAddress(*self._socket.getsockname())
        connector = ControlConnector(name, place, target)
        make = functools.partial(Carrier, name, connector, None, _ATTEMPT, max_backoff=_REST, kind="tor")
        self._holder: CarrierRef[OnionService] = CarrierRef(name, ("tor listener", object()), make)
        self._queue: AcceptQueue[Any] = AcceptQueue(self._update, self._update)
        self._changed = threading.Condition()  # for the next ones
        self._closed = False
        self._error: Exception | None = None  # of the start
        self._io_thread = IOThread.acquire(self)
        self._watches = False
        self._retry = Timer(self._io_thread.loop.timers, lambda now: self._update())
        self._failed: Timer = Timer(self._io_thread.loop.timers, self._try_failed)

    def start(self, timeout: float | None = None, *, patient: bool = False) -> None:
        """Publish the service, and wait until tor has agreed.

        :param timeout: seconds; ``None`` for no limit.
        :param patient: whether to wait through failures that a retry can fix; else there is one attempt.
        :raises ConnectError: if the control port cannot be reached, or does not answer.
        :raises AuthenticationError: if tor rejects the login.
        :raises RelayError: if the key cannot be used, or tor does not publish the service.
        :raises CarrierError: if the listener is closed meanwhile.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        self._holder.subscribe(self._on_state)
        carrier = self._holder.carrier()
        self._on_state(carrier.state, carrier.error)
        if not patient:
            wait_until_up(carrier, deadline, None, wait_for_reconnect=False)
        with self._changed:
            self._changed.wait_for(lambda: self._host or self._closed or self._error is not None, timeout)
            error, closed = self._error, self._closed
        if closed:
            raise CarrierError(f"{self._name}: the listener was closed")
        if error is not None and not self._host:
            raise as_oserror(error)
        self._update()

    @property
    def host(self) -> str:
        """Address ``….onion`` of the service; empty before it is known."""
        return self._host

    @property
    def address(self) -> str:
        """Address that a tunnel shows, with the port: ``….onion:80``."""
        return f"{self._host}:{self._place.port}" if self._host else ""

    @property
    def state(self) -> str:
        """``connecting``, ``up``, ``backing off``, ``failed`` or ``closed``: the state of the control connection."""
        held = self._holder.current
        return held.state.value if held is not None else CarrierState.CLOSED.value

    def subscribe(self, watcher: Watcher) -> None:
        """Call ``watcher(state, error)`` at each change of the control connection, on the I/O thread.

        :param watcher: must not block.
        """
        self._holder.subscribe(watcher)

    def accept(self) -> tuple[Stream, Any]:
        """Wait for the next stream, also while tor is away and the service is published again.

        :returns: the stream, which has no half-close, and an empty address: clients of Tor have none.
        :raises OSError: ``EBADF`` once the listener is closed.
        """
        taken = self._queue.take()
        assert taken is not None  # there is no timeout
        return taken

    def deliver(self, taker: Taker | None, loop: Loop | None = None) -> None:
        """Pass streams on at once, instead of by :meth:`accept`; see :meth:`PushingListener.deliver`."""
        self._queue.deliver(taker)

    def close(self) -> None:
        """End the service, wake :meth:`accept`, and reset the streams not accepted yet. Idempotent, from any thread.

        Other streams go on.
        """
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._changed.notify_all()
        self._queue.close()
        self._io_thread.loop.call(self._shut)
        self._holder.close()

    def join(self, timeout: float | None = None) -> None:
        """Wait until the control connection is closed; call :meth:`close` before.

        :param timeout: seconds; ``None`` for no limit.
        """

    def abandon(self) -> None:
        """In a forked child: only close the descriptors."""
        self._socket.close()
        if self._lookup is not None:
            self._lookup.close()
        self._queue.after_fork()

    def crashed(self, now: float) -> None:
        """Pause for a moment, after a lack of descriptors or a bug."""
        self._watches = False
        self._retry.start(now + _AGAIN, now)

    def __enter__(self) -> TorListener:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<relay.TorListener {self._name}, {self._host or 'no address yet'}, {self.state}>"

    # -- on the I/O thread --------------------------------------------------------------------------------------------

    def _on_state(self, state: CarrierState, error: Exception | None) -> None:
        held: SharedCarrier[OnionService] | None = self._holder.current
        link = held.link if held is not None else None
        with self._changed:
            if link is not None:
                # Before the first stream of the service: tor may run as another user since its restart.
                self._check.user, self._host, self._error = link.user, link.host, None
            elif error is not None and (state is CarrierState.FAILED or not can_retry(error)):
                if not self._host:
                    mark_reported(error)  # start() raises it
                self._error = error
            self._changed.notify_all()
        if state is CarrierState.FAILED and self._host:
            now = time.monotonic()
            self._io_thread.loop.call(lambda: self._failed.start(now + _FINAL, now))

    def _try_failed(self, now: float) -> None:
        held = self._holder.current
        if held is not None:
            held.retry_failed()

    def _update(self) -> None:
        self._io_thread.loop.call(self._watch)

    def _watch(self) -> None:
        """Accept if and only if there is room; what waits in the backlog is not lost."""
        wanted = not self._closed and not self._queue.is_full
        if wanted is not self._watches and self._socket.fileno() >= 0:
            self._watches = wanted
            if wanted:
                self._io_thread.loop.watch(self._socket.fileno(), IN, self._on_event)
            else:
                self._io_thread.loop.forget(self._socket.fileno())

    def _shut(self) -> None:
        self._retry.stop()
        self._failed.stop()
        if self._watches:
            self._watches = False
            self._io_thread.loop.forget(self._socket.fileno())
        self._socket.close()
        if self._lookup is not None:
            self._lookup.close()
        self._io_thread.release(self)

    def _on_event(self, event: int, now: float) -> None:
        try:
            accepted, peer = self._socket.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError as error:
            logger.warning("%s: cannot accept a connection: %s; retrying", self._name, error.strerror or error)
            self._io_thread.loop.forget(self._socket.fileno())
            return self.crashed(now)
        # Before anything else: the user of a closed end is known only while its FIN is held back.
        if not self._check.is_of_program(peer):
            return reset(accepted)
        if self._check.holds_ends:
            release_end(accepted)
        accepted.setblocking(False)
        stream = Stream(accepted, half_close=False)  # tor answers EOF by closing both directions
        held = self._holder.current
        link = held.link if held is not None else None
        if link is not None:
            stream.failure, stream.settle = link.failure, _SETTLE
        stream.identity = Identity("tor", self._host)  # all that is known of a client
        self._queue.put(stream, "")
        return None
