"""Streams to one I2P destination, multiplexed over a SAM session that dialers with equal options share."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Collection, Hashable

from ...addresses.destinations import PrivateKey, b32_of, is_base64
from ...addresses.i2p import I2PRouter, I2PTarget
from ...addresses.values import TCPAddress
from ...carriers.carrier_set import SharedCarrier, make_carriers
from ...carriers.dialer import dial, wait_until_up
from ...carriers.link import CarrierState
from ...carriers.pool import CarrierRef, close_at_once
from ...errors import ConnectError
from ...streams.checks import check_time
from ...streams.dialer import Dialer, Network
from ...streams.promise import Abort, OnResult, Promise
from ...streams.stream import Stream
from .connector import make_carrier
from .key_file import KeyFile, SessionKey
from .opening import open_stream
from .session import Session


def _as_it_is(error: OSError) -> OSError:
    return error


class I2PNetwork:
    """The network as seen from an I2P router: its destinations.

    :param router: the router and the session.
    :param below: the network from which the router's SAM bridge is reached.
    """

    def __init__(self, router: I2PRouter, below: Network) -> None:
        self._router = router
        self._below = below

    def to(self, place: TCPAddress | I2PTarget) -> Dialer:
        """Return a dialer for a destination, or for a name in .i2p and a port."""
        target = place if isinstance(place, I2PTarget) else I2PTarget(place.host, place.port)
        return I2PFactory(dataclasses.replace(target, router=self._router), self._below)


class I2PFactory(Dialer):
    """Streams to one destination; made by :func:`relay.i2p`.

    :param target: where to, through which router and session.
    :param below: the network from which the router's SAM bridge is reached; only dialers over the same route share a
        session.
    :param explain: returns an error in the form that the caller reports.
    :raises AddressError: if that network does not lead to the bridge.
    :raises OSError: if a file that the bridge's address names cannot be read.
    :raises ValueError: if a file does not hold what it should.
    """

    def __init__(self, target: I2PTarget, below: Network, explain: Callable[[OSError], OSError] = _as_it_is) -> None:
        super().__init__(str(target) if not is_base64(target.dest) else _shown(target))
        self._place = target
        self._explain = explain
        router = target.router
        self._number = len(below.route) + 1
        for bridge in router.sam:
            below.to(bridge)  # raises now if the address of the bridge or one of its files is wrong
        make_one = functools.partial(make_carrier, str(router), router, below, functools.partial(_keys, router))
        make = functools.partial(make_carriers, router.carriers, make_one)
        self._holder: CarrierRef[Session] = CarrierRef(str(router), ("i2p", router, below.route, below.trace), make)

    @property
    def state(self) -> str:
        """State of the session: ``connecting``, ``up``, ``backing off``, ``failed`` or ``closed``."""
        held = self._holder.shared
        return held.state.value if held is not None else CarrierState.CLOSED.value

    @property
    def dest(self) -> str:
        """Destination of this end of the streams, in base64; empty while there is no session."""
        held = self._holder.shared
        link = held.link if held is not None else None
        return link.destination if link is not None else ""

    @property
    def last_error(self) -> str | None:
        """Last error of the session; ``None`` if there was none."""
        held = self._holder.shared
        return str(held.error) if held is not None and held.error is not None else None

    def subscribe(self, watcher: Callable[[CarrierState, Exception | None], object]) -> None:
        """Call ``watcher(state, error)`` at each change of the session's state.

        :param watcher: called on the I/O thread; it must not block. What it raises is logged.
        :raises OSError: if no thread or descriptor is available.
        """
        self._holder.subscribe(watcher)

    def ready(self, timeout: float | None = None) -> None:
        """Create the session, unless it exists, and wait for it: one attempt.

        :param timeout: seconds; ``None`` for no limit. Building tunnels may take a minute.
        :raises ConnectError: if the bridge cannot be reached.
        :raises SAMError: if there is no SAM bridge, or it creates no session; ``.result`` is its word.
        :raises AuthenticationError: if the bridge rejects the user and the password.
        :raises TypeError: if ``timeout`` is not a number.
        :raises ValueError: if it is not positive.
        """
        seconds = check_time("timeout", timeout)
        deadline = None if seconds is None else time.monotonic() + seconds
        self._session(deadline, wait_for_reconnect=False)

    def look_up(self, timeout: float | None = 60.0) -> str:
        """Look up the destination of the streams.

        :param timeout: seconds for the router to find it; ``None`` for no limit.
        :returns: the destination in base64.
        :raises OSError: if the router does not find it, or there is no session.
        :raises TypeError: if ``timeout`` is not a number.
        :raises ValueError: if it is not positive.
        """
        seconds = check_time("timeout", timeout)
        if is_base64(self._place.dest):
            return self._place.dest
        deadline = None if seconds is None else time.monotonic() + seconds
        session = self._session(deadline, wait_for_reconnect=True)
        answer: Promise[str] = Promise()
        session.look_up(self._place.dest, answer.put, deadline)
        found = answer.get(deadline, None)
        if found is None:
            raise ConnectError(f"{self._place.dest}: name lookup timed out", reason="connect_timeout")
        return found

    def dial(
        self, deadline: float | None, done: OnResult, *, self_contained: bool = False, wait_for_reconnect: bool = True
    ) -> Abort:
        """Open a stream; see :meth:`Dialer.dial`."""

        def begin(session: Session, on_stream: OnResult) -> Abort:
            place = self._place
            # It retries until the deadline in any case: the router may not have found the destination yet.
            return open_stream(session, place.dest, place.port, deadline, on_stream, self_contained=self_contained)

        def on_outcome(outcome: Stream | OSError) -> None:
            done(self._explain(outcome) if isinstance(outcome, OSError) else outcome)

        explained = done if self._explain is _as_it_is else on_outcome
        numbers = self._number, max(self._number, len(self.route) + 1)
        carrier = self._holder.carrier()
        return dial(carrier, begin, deadline, explained, wait_for_reconnect=wait_for_reconnect, numbers=numbers)

    def _session(self, deadline: float | None, *, wait_for_reconnect: bool) -> Session:
        try:
            return wait_until_up(self._holder.carrier(), deadline, None, wait_for_reconnect=wait_for_reconnect)
        except OSError as error:
            raise self._explain(error) from error

    def carrier(self) -> SharedCarrier[Session]:
        """Return the session of the streams, and hold it until :meth:`close`.

        :raises OSError: if no thread or descriptor is available.
        """
        return self._holder.carrier()

    def close_when_idle(self) -> None:
        """Release the session once no stream uses it, without waiting for that."""
        self._holder.close(drain_timeout=0.0)

    def close(self) -> None:
        """Release the session once no stream uses it. Idempotent; the next call acquires it again."""
        self._holder.close()


def end_sessions(paths: Collection[str]) -> None:
    """End the sessions of some keys, and every stream over them, at once.

    :param paths: of the key files, as the addresses have them.
    """

    def has_keys(key: Hashable) -> bool:
        router = key[1] if isinstance(key, tuple) else None
        return isinstance(router, I2PRouter) and router.keys in paths

    # At once and with its streams: the process that takes over waits for the keys, and cannot begin before.
    close_at_once(has_keys)


def _keys(router: I2PRouter) -> SessionKey | None:
    return KeyFile.open(router.keys, PrivateKey.generate) if router.keys is not None else None


def _shown(target: I2PTarget) -> str:
    return str(I2PTarget(b32_of(target.dest), target.port))
