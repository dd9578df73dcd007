"""The parts of a carrier: its states, its link, its connector, and the callers that wait for the link."""

from __future__ import annotations

import contextlib
import enum
import functools
import logging
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from ..errors import CarrierError, ConnectError, RelayError
from ..eventloop.loop import Timer, Timers
from ..streams.promise import Cancel

if TYPE_CHECKING:
    from .carrier import Carrier

logger = logging.getLogger("relay")

PROBE = 2.0  # seconds for the answer to a probe after a change of the network


class CarrierState(enum.Enum):
    """The state of a carrier.

    :mod:`relay.carriers.carrier` has the table. Users and watchers see ``NEW`` as ``CONNECTING``, ``REPLACING`` as
    ``UP``, and the states after the close as ``CLOSED``.
    """

    NEW = "new"
    CONNECTING = "connecting"
    UP = "up"
    REPLACING = "replacing"
    BACKING_OFF = "backing off"
    FAILED = "failed"
    CLOSING = "closing"
    CLOSED = "closed"
    ABANDONED = "abandoned"

    @property
    def reported(self) -> CarrierState:
        """The state that users see for this one."""
        return _REPORTED.get(self, self)


_REPORTED = {
    CarrierState.NEW: CarrierState.CONNECTING,
    CarrierState.REPLACING: CarrierState.UP,
    CarrierState.CLOSING: CarrierState.CLOSED,
    CarrierState.ABANDONED: CarrierState.CLOSED,
}


class Link(Protocol):
    """The connection of a carrier while it is up; every method may be called from any thread."""

    @property
    def streams(self) -> int:
        """The number of open streams, those being opened included. Read from any thread."""

    @property
    def rtt(self) -> float | None:
        """The last round trip of a keepalive probe, seconds; ``None`` if it is not known. Read from any thread."""

    @property
    def is_doubtful(self) -> bool:
        """``True`` if the last keepalive probe has got no reply in time. Read from any thread."""

    @property
    def router(self) -> str:
        """The I2P router that has it, if there are several; else empty. Read from any thread."""

    def when_idle(self, call: Callable[[], object]) -> None:
        """Call ``call`` once, in any thread, as soon as no stream is open; at once if none is."""

    def confirm(self, done: Callable[[], object]) -> None:
        """Call ``done``, in any thread, once the peer has answered over this new link. Never blocks."""

    def check(self) -> None:
        """Send a keepalive probe, and report the link as lost if too many got no reply. Never blocks."""

    def probe(self, why: str) -> None:
        """Report the link as lost unless its peer's system answers within :data:`PROBE` seconds. Never blocks.

        :param why: the peer is asked, for the error; such as ``a new address``.
        """

    def close(self) -> None:
        """Close the link and every stream over it, within a second. Idempotent."""

    def abandon(self) -> None:
        """Only close the descriptors, in a forked child."""


AnyLink = TypeVar("AnyLink", bound=Link)
Link_co = TypeVar("Link_co", bound="Link", covariant=True)
Outcome = TypeVar("Outcome", bound=Any)
Lost = Callable[[CarrierError], object]
Watcher = Callable[[CarrierState, "Exception | None"], object]


class Connector(Protocol[Link_co]):
    """Makes the link of a carrier, in a thread of its own."""

    def connect(self, deadline: float, cancel: Cancel, lost: Lost) -> Link_co:
        """Connect, until ``deadline`` or until ``cancel`` is set.

        :param deadline: monotonic seconds.
        :param cancel: set when the carrier is closed.
        :param lost: called once, in any thread, when the link that was returned is lost.
        :raises ConnectError: and :class:`CarrierError`, if another attempt may succeed; any other exception is final.
        """

    def alternative(self, error: Exception) -> str:
        """Switch to another method of connecting, if one may succeed where the current one has failed.

        :param error: why no further attempt is made otherwise, or why the link was lost.
        :returns: the other method, for the log; empty if there is none.
        """

    def close(self) -> None:
        """Release what the connector holds; there is no further attempt."""


class Watchers(list[Watcher]):
    """The watchers of a state.

    :param name: of the carrier, for the log.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    def discard(self, watcher: Watcher) -> None:
        """Remove a watcher if it is one."""
        if watcher in self:
            self.remove(watcher)

    def notify(self, state: CarrierState, error: Exception | None) -> None:
        """Call all of them."""
        for watcher in tuple(self):
            try:
                watcher(state, error)
            except Exception:
                logger.exception("%s: a watcher of the state failed", self._name)


class Links(Generic[AnyLink]):
    """The links of one carrier: the one in use, and those that it replaced. Belongs to the carrier's thread.

    A link that was replaced stays open until its last stream ends.

    :param call: calls a function in the carrier's thread.
    :param close: closes a link; never blocks.
    """

    __slots__ = ("_call", "_close", "_on_idle", "_replaced", "current")

    def __init__(self, call: Callable[[Callable[[], object]], bool], close: Callable[[AnyLink], object]) -> None:
        self.current: AnyLink | None = None
        self._call = call
        self._close = close
        self._replaced: list[AnyLink] = []
        self._on_idle: Callable[[], object] | None = None

    @property
    def replaced(self) -> int:
        """The number of links that were replaced and still have streams."""
        return len(self._replaced)

    @property
    def streams(self) -> int:
        """The number of streams over all links. Read from any thread."""
        links = (*self._replaced, self.current)
        return sum(link.streams for link in links if link is not None)

    def add(self, link: AnyLink) -> None:
        """Use this link from now on."""
        old, self.current = self.current, link
        if old is not None:
            self._replaced.append(old)
            self._watch_idle(old)

    def remove(self, link: AnyLink) -> bool:
        """Forget a link that was lost.

        :returns: whether it was the one in use; the caller closes that one.
        """
        if self.current is link:
            self.current = None
            return True
        if link in self._replaced:
            self._end_replaced(link)
        self._look_idle()
        return False

    def check(self) -> None:
        """Check all links."""
        for link in self._all():
            link.check()

    def probe(self, why: str) -> None:
        """Probe all links."""
        for link in self._all():
            link.probe(why)

    def _all(self) -> list[AnyLink]:
        return [link for link in (*self._replaced, self.current) if link is not None]

    def when_idle(self, call: Callable[[], object]) -> None:
        """Call ``call`` once when no link has a stream; it replaces the call of any earlier request."""
        self._on_idle = call
        self._look_idle()

    def close(self) -> AnyLink | None:
        """Close the links that were replaced.

        :returns: the link in use, which is in use no longer; the caller closes it.
        """
        for link in tuple(self._replaced):
            self._end_replaced(link)
        current, self.current = self.current, None
        return current

    def abandon(self) -> None:
        """Only close the descriptors, in a forked child."""
        replaced, self._replaced = self._replaced, []
        current, self.current = self.current, None
        for link in (*replaced, current):
            if link is not None:
                link.abandon()

    def _look_idle(self, idle: AnyLink | None = None) -> None:
        """Make the call that waits for it if no link has a stream; ``idle`` has none."""
        if self._on_idle is None or self._replaced:  # which are watched already
            return
        if self.current is not None and self.current is not idle:
            return self._watch_idle(self.current)
        # Taken first: the call may close the carrier, which looks here again.
        call, self._on_idle = self._on_idle, None
        call()
        return None

    def _watch_idle(self, link: AnyLink) -> None:
        # A link reports it in any thread, with locks of its own held.
        link.when_idle(functools.partial(self._call, functools.partial(self._is_idle, link)))

    def _is_idle(self, link: AnyLink) -> None:
        if link in self._replaced:
            self._end_replaced(link)
        self._look_idle(link)

    def _end_replaced(self, link: AnyLink) -> None:
        self._replaced.remove(link)
        self._close(link)


class Waiter(Generic[Outcome]):
    """A caller that waits for the link of a carrier, until a deadline.

    :param carrier: the carrier.
    :param callback: called once with the link or with the error, unless the caller has given up.
    :param deadline: monotonic seconds; ``None`` for no limit.
    :param wait_for_reconnect: whether it goes on waiting when an attempt has failed.
    """

    __slots__ = ("_callback", "_carrier", "_deadline", "_lock", "_timer", "wait_for_reconnect")

    def __init__(
        self,
        carrier: Carrier[Any],
        callback: Callable[[Outcome | Exception], object],
        deadline: float | None,
        wait_for_reconnect: bool,
    ) -> None:
        self.wait_for_reconnect = wait_for_reconnect
        self._carrier = carrier
        self._deadline = deadline
        self._callback: Callable[[Outcome | Exception], object] | None = callback
        self._lock = threading.Lock()
        self._timer: Timer | None = None

    def start(self, timers: Timers) -> None:
        """Set the deadline's timer."""
        if self._deadline is not None:
            self._timer = Timer(timers, self._expired)
            self._timer.start(self._deadline, time.monotonic())

    def resolve(self, outcome: Outcome | Exception) -> None:
        """Pass the outcome to the callback, once."""
        self._stop()
        with self._lock:
            callback, self._callback = self._callback, None
        if callback is not None:
            try:
                callback(outcome)
            except Exception:  # other callers wait as well
                logger.exception("%s: a caller that waited for it failed", self._carrier.name)

    def give_up(self) -> None:
        """Do not call the callback; from any thread, idempotent, and without effect after the outcome."""
        with self._lock:
            callback, self._callback = self._callback, None
        if callback is not None:
            # Its timer and its place in the carrier belong to the carrier's thread.
            self._carrier.call(self._forget)

    def _forget(self) -> None:
        self._stop()
        self._carrier.remove_waiter(self)

    def _stop(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.stop()

    def _expired(self, now: float) -> None:
        carrier = self._carrier
        carrier.remove_waiter(self)
        error, prefix = carrier.error, f"{carrier.name}: "
        if isinstance(error, RelayError) and not str(error).startswith(prefix):  # it belongs to a hop before
            text = f"{error} (not connected in time)"
        else:
            why = strip_prefix(carrier.name, error) if error is not None else "no answer yet"
            text = f"{prefix}not connected in time: {why}"
        self.resolve(ConnectError(text, reason="connect_timeout"))


def strip_prefix(name: str, error: Exception) -> str:
    """Return the text of an error without the name at its beginning, for a line that begins with the name."""
    return str(error).removeprefix(f"{name}: ")


def mark_reported(error: Exception) -> None:
    """Mark an error that the caller reports, so that no carrier logs it as well; for a watcher of the state."""
    with contextlib.suppress(AttributeError):  # not every exception takes a mark
        error.said = True  # type: ignore[attr-defined]


def is_reported(error: Exception) -> bool:
    """Return whether a carrier below, to which the error belongs, has logged it; from now on it counts as logged."""
    is_reported = getattr(error, "said", False)
    mark_reported(error)
    return bool(is_reported)
