"""Several carriers of one hop, side by side: new streams use the healthiest one that is up.

Each is a :class:`~relay.carriers.carrier.Carrier` with its own states and its own retries. A lost one ends its own
streams only. The first carrier connects alone, and each other one after the one before has been up, because they have
the same credentials: a rejected login is not repeated by all of them.
"""

from __future__ import annotations

import contextlib
import functools
import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import Generic, Protocol

from ..errors import CarrierError
from ..eventloop.loop import Timer, Timers
from .carrier import Carrier
from .link import AnyLink, CarrierState, Watcher, Watchers

_PROMPT = 0.7  # seconds to wait for threads that were asked to end; as for one carrier
_RETRY_FAILED_EVERY = 301.0  # seconds; a carrier that was rejected refuses to be tried again for 300
# The state of the set is the first of these that a carrier has.
_BEST_FIRST = (
    CarrierState.UP, CarrierState.CONNECTING, CarrierState.BACKING_OFF, CarrierState.FAILED, CarrierState.CLOSED,
)  # fmt: skip


class SharedCarrier(Protocol[AnyLink]):
    """A carrier, or several for one hop, as the pool and the dialers see it.

    :class:`~relay.carriers.carrier.Carrier` describes each member; all but ``begin`` may be used from any thread.
    """

    name: str
    holders: int

    @property
    def state(self) -> CarrierState:
        """The state as users see it."""

    @property
    def error(self) -> Exception | None:
        """The reason that it is not up."""

    @property
    def link(self) -> AnyLink | None:
        """The link for the next stream, if one is up."""

    @property
    def timers(self) -> Timers:
        """The deadlines of the I/O thread."""

    def streams(self) -> int:
        """Return the number of streams over all links, those that were replaced included."""

    def begin(self) -> None:
        """Start the first attempt."""

    def when_up(
        self,
        callback: Callable[[AnyLink | Exception], object],
        deadline: float | None,
        *,
        wait_for_reconnect: bool = True,
        instead_of: tuple[AnyLink, CarrierError] | None = None,
    ) -> Callable[[], object]:
        """Call ``callback`` with a link once one is up, or with the error; returns a function that gives up."""

    def subscribe(self, watcher: Watcher) -> None:
        """Call the watcher at each change of the state."""

    def unsubscribe(self, watcher: Watcher) -> None:
        """Do not call the watcher any more."""

    def retry_failed(self) -> None:
        """Start an attempt if the last one failed for good some minutes ago."""

    def when_idle(self, call: Callable[[], object]) -> None:
        """Call ``call`` once when there is no stream."""

    def call(self, function: Callable[[], object]) -> bool:
        """Call a function in the I/O thread; returns whether it will be called."""

    def close(self, *, wait: bool = True) -> None:
        """Close everything."""

    def join(self, timeout: float | None) -> bool:
        """Wait until all is closed; returns whether it is."""


def make_carriers(count: int, make: Callable[[int | None], Carrier[AnyLink]]) -> SharedCarrier[AnyLink]:
    """Return one carrier, or several side by side.

    :param count: how many.
    :param make: makes one; called with its number, from 1, or with ``None`` if it is the only one.
    :raises OSError: what ``make`` raises.
    """
    if count == 1:
        return make(None)
    with contextlib.ExitStack() as undo:
        made: list[Carrier[AnyLink]] = []
        for number in range(1, count + 1):
            made.append(make(number))
            undo.callback(made[-1].close, wait=False)
        undo.pop_all()
    return CarrierSet(made)


class CarrierSet(Generic[AnyLink]):
    """Several carriers of one hop; see :class:`SharedCarrier`.

    :param carriers: those, in the order in which they begin; the set owns them.
    """

    def __init__(self, carriers: Sequence[Carrier[AnyLink]]) -> None:
        first = carriers[0]
        self.name = first.name
        self.holders = 0  # guarded by the lock of :mod:`relay.carriers.pool`
        self.carriers = tuple(carriers)
        self.call = first.call
        self._begun: tuple[Carrier[AnyLink], ...] = ()
        self._watchers = Watchers(self.name)
        self._seen: tuple[CarrierState, Exception | None] | None = None  # what the watchers know
        self._idle_request = object()
        self._retry = Timer(first.timers, self._retry_in_time)
        self._is_closing = False  # changed in the I/O thread
        for carrier in carriers:
            carrier.subscribe(self._on_change)

    @property
    def timers(self) -> Timers:
        """The deadlines of the I/O thread, which all carriers share."""
        return self.carriers[0].timers

    @property
    def state(self) -> CarrierState:
        """The best state that one of the carriers has."""
        # Those that have not begun are no reason to call the hop down.
        states = {carrier.state for carrier in self._begun or self.carriers}
        return next(state for state in _BEST_FIRST if state in states)

    @property
    def error(self) -> Exception | None:
        """The reason that none is up; that of the first one which has an error."""
        if self.state is CarrierState.UP:
            return None
        return next((carrier.error for carrier in self._begun if carrier.error is not None), None)

    @property
    def link(self) -> AnyLink | None:
        """The healthiest link: one that answers its probes before one that does not, then the one with fewer streams.

        The first one if there is no difference.
        """
        return self._best(None)

    def streams(self) -> int:
        """Return the number of streams over all links of all carriers."""
        return sum(carrier.streams() for carrier in self.carriers)

    def begin(self) -> None:
        """Start the first attempt of the first carrier."""
        self._begun = self.carriers[:1]
        self.carriers[0].begin()

    def when_up(
        self,
        callback: Callable[[AnyLink | Exception], object],
        deadline: float | None,
        *,
        wait_for_reconnect: bool = True,
        instead_of: tuple[AnyLink, CarrierError] | None = None,
    ) -> Callable[[], object]:
        """Call ``callback`` with a link at once if any is up, else with the first that comes up.

        It gets the error of the last carrier that has failed, if all have. The parameters are those of
        :meth:`relay.carriers.carrier.Carrier.when_up`.
        """
        link = self._best(instead_of[0] if instead_of is not None else None)
        if link is None:
            first = _FirstUp(callback, self._begun or self.carriers[:1])
            return first.wait(deadline, wait_for_reconnect=wait_for_reconnect, instead_of=instead_of)
        if instead_of is not None:
            for carrier in self._begun:
                # Only one of them has this link; to the others the call means nothing.
                carrier.lose(*instead_of)
        callback(link)
        return _nothing

    def subscribe(self, watcher: Watcher) -> None:
        """Call ``watcher(state, error)`` at each change of :attr:`state`, in the I/O thread; it must not block."""
        self._watchers.append(watcher)

    def unsubscribe(self, watcher: Watcher) -> None:
        """Do not call the watcher any more."""
        self._watchers.discard(watcher)

    def retry_failed(self) -> None:
        """Start an attempt of each carrier that has been FAILED for long enough. Never blocks."""
        for carrier in self.carriers:
            carrier.retry_failed()

    def when_idle(self, call: Callable[[], object]) -> None:
        """Call ``call`` once, in any thread, when no carrier has a stream; it replaces the call of an earlier request.

        It waits for one carrier after the other, because a set that its callers have released gets no new streams.
        """
        request = self._idle_request = object()

        def wait_for(place: int) -> None:
            if request is not self._idle_request:
                return
            if place == len(self.carriers):
                call()
            else:
                self.carriers[place].when_idle(functools.partial(wait_for, place + 1))

        wait_for(0)

    def close(self, *, wait: bool = True) -> None:
        """Close all carriers at once. Idempotent, from any thread; see :meth:`relay.carriers.carrier.Carrier.close`."""
        self.call(self._stop_retrying)  # first: the I/O thread may end with the last carrier
        for carrier in self.carriers:
            carrier.close(wait=False)
        deadline = time.monotonic() + _PROMPT
        for carrier in self.carriers if wait else ():
            if time.monotonic() < deadline:
                carrier.close(wait=True)

    def join(self, timeout: float | None) -> bool:
        """Wait until all are closed; see :meth:`relay.carriers.carrier.Carrier.join`."""
        deadline = None if timeout is None else time.monotonic() + timeout
        return all(
            carrier.join(None if deadline is None else max(0.0, deadline - time.monotonic()))
            for carrier in self.carriers
        )

    def _best(self, other_than: AnyLink | None) -> AnyLink | None:
        best: AnyLink | None = None
        best_rank = False, 0
        for carrier in self._begun:
            link = carrier.link
            if link is not None and link is not other_than:
                rank = link.is_doubtful, link.streams
                if best is None or rank < best_rank:
                    best, best_rank = link, rank
        return best

    # -- in the I/O thread --------------------------------------------------------------------------------------------

    def _on_change(self, state: CarrierState, _: Exception | None) -> None:
        """Handle a change of one carrier."""
        begun = len(self._begun)
        if state is CarrierState.UP and begun < len(self.carriers) and self._begun[-1].state is CarrierState.UP:
            self._begun = self.carriers[: begun + 1]
            self.carriers[begun].begin()
        is_due = state is CarrierState.FAILED or (state is CarrierState.UP and self._must_start_retry())
        if is_due and not self._is_closing:
            now = time.monotonic()
            self._retry.start(now + _RETRY_FAILED_EVERY, now)
        seen = self.state, self.error
        # Also if nothing has changed as a whole: a listener asks for its forward on the link that has come up.
        if seen != self._seen or state is CarrierState.UP:
            self._seen = seen
            self._watchers.notify(*seen)

    def _must_start_retry(self) -> bool:
        return self._retry.due == math.inf and any(one.state is CarrierState.FAILED for one in self._begun)

    def _stop_retrying(self) -> None:
        self._is_closing = True  # a carrier may fail for good until it is closed
        self._retry.stop()

    def _retry_in_time(self, now: float) -> None:
        """Try those again that have failed for good, while another one is up: then clients do not ask for them."""
        if self.state is CarrierState.UP:
            self.retry_failed()

    def __repr__(self) -> str:
        return f"<relay.CarrierSet {self.name}, {self.state.value}>"


class _FirstUp(Generic[AnyLink]):
    """A caller that waits for the first of several carriers that is up.

    :param callback: called once, with the link, or with the last error when all have failed.
    :param carriers: those.
    """

    def __init__(self, callback: Callable[[AnyLink | Exception], object], carriers: Sequence[Carrier[AnyLink]]) -> None:
        self._callback: Callable[[AnyLink | Exception], object] | None = callback
        self._carriers = carriers
        self._lock = threading.Lock()
        self._left = len(carriers)
        self._aborts: list[Callable[[], object]] = []

    def wait(
        self,
        deadline: float | None,
        *,
        wait_for_reconnect: bool,
        instead_of: tuple[AnyLink, CarrierError] | None,
    ) -> Callable[[], object]:
        """Begin to wait; the result gives it up."""
        for carrier in self._carriers:
            abort = carrier.when_up(
                self._on_outcome, deadline, wait_for_reconnect=wait_for_reconnect, instead_of=instead_of
            )
            self._aborts.append(abort)
        if self._callback is None:  # meanwhile
            self.give_up()
        return self.give_up

    def give_up(self) -> None:
        """Do not call the callback; from any thread, idempotent."""
        self._take()
        for abort in tuple(self._aborts):
            abort()

    def _on_outcome(self, outcome: AnyLink | Exception) -> None:
        with self._lock:
            self._left -= 1
            is_last = not self._left
        if isinstance(outcome, Exception) and not is_last:
            return
        callback = self._take()
        if callback is not None:
            self.give_up()
            callback(outcome)

    def _take(self) -> Callable[[AnyLink | Exception], object] | None:
        with self._lock:
            callback, self._callback = self._callback, None
        return callback


def _nothing() -> None:
    pass
