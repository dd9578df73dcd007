"""State machine of an I2P listener, and its notifications.

A combination of state and event that is not in the table changes nothing. "Shut" means: stop receiving streams from the
session, and stop checking whether it is reachable. Open streams continue.

============ ===================== ============ ========================================================================
state        event                 next state   action
============ ===================== ============ ========================================================================
any but      session up            connecting   open: shut, then ask the router for the streams of the new session
closed
any but      session connecting    connecting   prepare: shut, then create the session from which the destination is
closed and                                      checked
standing by
standing by  session connecting    standing by  none: relay asks whether the other relay still serves the destination
any but      session backing off   backing off  shut
closed
any but      served elsewhere      standing by  shut: another relay with the same keys serves the destination
closed
any but      session failed        failed       fail: shut, raise the error in accept() once, retry after five minutes
closed
connecting   streams ready         up           watch: check that the destination is reachable from another session
up           streams ready         up           none
published    streams ready         published    none
connecting   streams refused       connecting   none: the request is repeated
up           streams refused       connecting   none: the request is repeated
published    streams refused       connecting   none: the request is repeated
up           reachable             published    none
any but      close                 closed       none
closed
============ ===================== ============ ========================================================================
"""

from __future__ import annotations

import enum
import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping

from ...carriers.link import CarrierState

logger = logging.getLogger("relay")

Watcher = Callable[[str, "Exception | None"], object]


class ListenerState(enum.Enum):
    """States of a listener; the values are the words of :attr:`relay.I2PListener.state`."""

    CONNECTING = "connecting"
    UP = "up"
    PUBLISHED = "published"
    BACKING_OFF = "backing off"
    STANDING_BY = "standing by"
    FAILED = "failed"
    CLOSED = "closed"


class Event(enum.Enum):
    """Events of a listener."""

    SESSION_UP = "session up"
    SESSION_CONNECTING = "session connecting"
    SESSION_BACKING_OFF = "session backing off"
    SERVED_ELSEWHERE = "served elsewhere"
    SESSION_FAILED = "session failed"
    READY = "streams ready"
    REFUSED = "streams refused"
    REACHABLE = "reachable"
    CLOSE = "close"

    @classmethod
    def of(cls, state: CarrierState) -> Event:
        """Return the event for a new state of the session's carrier."""
        return _OF_CARRIER[state]


class Action(enum.Enum):
    """Actions of a listener; see the table above."""

    OPEN = "open"
    PREPARE = "prepare"
    SHUT = "shut"
    FAIL = "fail"
    WATCH = "watch"
    NONE = "none"


_OF_CARRIER = {
    CarrierState.UP: Event.SESSION_UP,
    CarrierState.CONNECTING: Event.SESSION_CONNECTING,
    CarrierState.BACKING_OFF: Event.SESSION_BACKING_OFF,
    CarrierState.FAILED: Event.SESSION_FAILED,
    CarrierState.CLOSED: Event.CLOSE,
}

_SESSION = {
    Event.SESSION_UP: (ListenerState.CONNECTING, Action.OPEN),
    Event.SESSION_CONNECTING: (ListenerState.CONNECTING, Action.PREPARE),
    Event.SESSION_BACKING_OFF: (ListenerState.BACKING_OFF, Action.SHUT),
    Event.SERVED_ELSEWHERE: (ListenerState.STANDING_BY, Action.SHUT),
    Event.SESSION_FAILED: (ListenerState.FAILED, Action.FAIL),
    Event.CLOSE: (ListenerState.CLOSED, Action.NONE),
}
_REFUSED = (ListenerState.CONNECTING, Action.NONE)

#: The table above.
TRANSITIONS: Mapping[tuple[ListenerState, Event], tuple[ListenerState, Action]] = {
    **{
        (state, event): result
        for state in ListenerState
        if state is not ListenerState.CLOSED
        for event, result in _SESSION.items()
    },
    (ListenerState.STANDING_BY, Event.SESSION_CONNECTING): (ListenerState.STANDING_BY, Action.NONE),
    (ListenerState.CONNECTING, Event.READY): (ListenerState.UP, Action.WATCH),
    (ListenerState.UP, Event.READY): (ListenerState.UP, Action.NONE),
    (ListenerState.PUBLISHED, Event.READY): (ListenerState.PUBLISHED, Action.NONE),
    (ListenerState.CONNECTING, Event.REFUSED): _REFUSED,
    (ListenerState.UP, Event.REFUSED): _REFUSED,
    (ListenerState.PUBLISHED, Event.REFUSED): _REFUSED,
    (ListenerState.UP, Event.REACHABLE): (ListenerState.PUBLISHED, Action.NONE),
}


class ListenerMachine:
    """State of a listener. :meth:`handle` belongs to the I/O thread; every other method is safe from any thread.

    :param name: of the listener, for the log.
    :param perform: called with each action but ``NONE``, the state before, and the error of the event. It runs after
        the state has changed and before the watchers are called; it may handle further events.
    """

    def __init__(self, name: str, perform: Callable[[Action, ListenerState, Exception | None], object]) -> None:
        self.state = ListenerState.CONNECTING
        self.error: Exception | None = None  # why it is in this state
        self._name = name
        self._perform = perform
        self._changed = threading.Condition()  # guards the two above
        self._watchers: list[Watcher] = []
        self._unreported: deque[tuple[ListenerState, Exception | None]] = deque()

    def subscribe(self, watcher: Watcher) -> None:
        """Call ``watcher(state, error)`` at each change, on the I/O thread; what it raises is logged."""
        self._watchers.append(watcher)

    def wait(self, condition: Callable[[], bool], timeout: float | None) -> None:
        """Wait until a condition of the state holds.

        :param condition: evaluated after each change; must not block.
        :param timeout: seconds; ``None`` for no limit.
        """
        with self._changed:
            self._changed.wait_for(condition, timeout)

    def handle(self, event: Event, error: Exception | None = None) -> None:
        """Change the state as the table says, perform the action, then call the watchers."""
        with self._changed:
            before = self.state
            state, action = TRANSITIONS.get((before, event), (None, Action.NONE))
            if state is None:
                return
            self._set(state, error)
        if action is not Action.NONE:
            # Without the lock: an action may wait for other locks, or handle an event of its own, which then finds the
            # new state.
            self._perform(action, before, error)
        self.report()

    def close(self) -> bool:
        """Handle ``CLOSE``; :meth:`report` calls the watchers.

        :returns: ``False`` if it was closed before.
        """
        with self._changed:
            if self.state is ListenerState.CLOSED:
                return False
            self._set(ListenerState.CLOSED, None)
            return True

    def report(self) -> None:
        """Call the watchers for each change that they do not know yet, in order; on the I/O thread."""
        # A loop over a queue: a watcher may cause the next change, which is reported after this one to all watchers.
        while self._unreported:
            state, error = self._unreported.popleft()
            for watcher in tuple(self._watchers):
                try:
                    watcher(state.value, error)
                except Exception:
                    logger.exception("%s: a watcher of the state failed", self._name)

    def _set(self, state: ListenerState, error: Exception | None) -> None:
        is_news = state is not self.state or error not in (None, self.error)
        self.state, self.error = state, error
        if is_news:
            self._unreported.append((state, error))
        self._changed.notify_all()
