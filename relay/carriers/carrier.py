"""One supervised connection that many streams share: an SSH connection or a SAM session.

A carrier connects, passes its link to the callers that wait for it, and reconnects with back-off after a loss. All of
this runs in the :class:`~relay.eventloop.background.IOThread`. Connecting and closing may block, so each of
these has a thread of its own.

The states are those of :class:`~relay.carriers.link.CarrierState`. While the state is *replacing*, the link is up, and
an attempt makes the link that replaces it. While it is *closing*, an attempt that was cancelled has not returned yet.

=========== ===================== =========== =================================================================
state       event                 next state  action
=========== ===================== =========== =================================================================
new         begin                 connecting  start an attempt
new         close                 closed      close the connector
connecting  client asks           connecting  the client waits
connecting  connected             up          pass the link to all clients that wait; start the check timer
connecting  failed                backing off start the timer: 0.5 s after the first failure, then twice as long
                                              each time, up to 30 s (2 s while a client waits); the error goes to
                                              clients that wait for one attempt only
connecting  failed, alternative   connecting  start another attempt with the connector's other method
connecting  failed for good       failed      the error goes to all clients: a retry cannot repair it (a rejected
                                              login), or three attempts ended at the same point of the login
connecting  close                 closing     cancel the attempt; all clients get an error
up          client asks           up          the client gets the link
up          check timer           up          check every link
up          network changes       up          probe every link
up          replace               replacing   start an attempt
up          lost                  backing off close the link; start the timer
up          lost, alternative     connecting  close the link; start another attempt with the connector's other method
up          close                 closed      close the link and the connector
replacing   client asks           replacing   the client gets the link
replacing   check timer           replacing   check every link
replacing   network changes       replacing   probe every link
replacing   connected             up          use the new link, which answers; close the old one with its last stream
replacing   failed                up          keep the old link
replacing   lost                  connecting  close the link; the attempt goes on
replacing   close                 closing     close the link and cancel the attempt
backing off client asks           backing off the client waits; the timer fires within 2 s, at once for a client
                                              that waits for one attempt only
backing off timer                 connecting  start an attempt
backing off network changes       connecting  start an attempt
backing off close                 closed      close the connector
failed      client asks           failed      the client gets the error
failed      client asks, later    connecting  start an attempt; the client waits: 10 s after the failure, or five
                                              minutes after a rejected login, for which a server may ban this machine
failed      close                 closed      close the connector
closing     client asks           closing     the client gets an error
closing     connected             closed      close the link and the connector
closing     failed                closed      close the connector
closed      client asks           closed      the client gets an error
any         fork                  abandoned   in the child: only close the descriptors
abandoned   client asks           abandoned   the client gets an error
=========== ===================== =========== =================================================================
"""

from __future__ import annotations

import functools
import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import Generic

from ..errors import CarrierError, can_retry
from ..eventloop.background import IOThread
from ..eventloop.loop import Timer, Timers
from . import network
from .blocking import BlockingCalls
from .link import AnyLink, CarrierState, Connector, Links, Waiter, Watcher, Watchers, is_reported, strip_prefix
from .retry import RetryPolicy, pause_after

logger = logging.getLogger("relay")

ATTEMPT_TIMEOUT = 25.0  # seconds; its error arrives before the 30 s of a client are over
_OVER = (CarrierState.CLOSING, CarrierState.CLOSED, CarrierState.ABANDONED)
_LATE = 5.0  # seconds by which a check comes late only if this process was stopped
_PROMPT = 0.7  # seconds to wait for a thread that was asked to end; it goes on alone after that


class Carrier(Generic[AnyLink]):
    """One supervised connection. :meth:`begin` starts the first attempt.

    :param name: in the log and in errors, such as ``ssh://me@bastion``.
    :param connector: makes the link, and another one after each loss.
    :param check_interval: seconds between two checks of the link; ``None`` for none.
    :param attempt_timeout: seconds for one attempt to connect.
    :param max_backoff: seconds of back-off at most while the other side cannot be reached; see
        :class:`~relay.carriers.retry.RetryPolicy`.
    :param log_at_debug: whether its messages matter only for finding a fault.
    :param kind: the protocol, such as ``ssh``; for operators.
    :param number: which of several carriers of one hop it is, from 1; see :mod:`relay.carriers.carrier_set`. ``None``
        if it is the only one. One of several logs the same failure once, because the others may be up.
    :param probe: whether to probe its links, and to end its back-off, when the network of this machine changes.
    :raises OSError: if no thread or descriptor is available.
    """

    def __init__(
        self,
        name: str,
        connector: Connector[AnyLink],
        check_interval: float | None,
        attempt_timeout: float = ATTEMPT_TIMEOUT,
        *,
        max_backoff: float = math.inf,
        log_at_debug: bool = False,
        kind: str = "",
        number: int | None = None,
        probe: bool = True,
    ) -> None:
        self.name = name
        self.kind = kind
        self.number = number
        self.error: Exception | None = None  # why it is not up
        self.holders = 0  # guarded by the lock of :mod:`relay.carriers.pool`
        self._state = CarrierState.NEW
        self.since = time.monotonic()  # of the last change of the state
        self.losses = 0  # links that were lost
        self._checked = self.since  # when the check timer has fired last
        self.replacement_error: Exception | None = None  # of the last attempt to replace a link that has failed
        self._check_interval = check_interval
        self._log_at_debug = log_at_debug
        self._connector = connector
        self._follows_network = probe
        self.blocking = BlockingCalls(name, connector, attempt_timeout, self.call)
        self.links: Links[AnyLink] = Links(self.call, self.blocking.close_link)
        self._retries = RetryPolicy(max_backoff) if number is None else RetryPolicy(max_backoff, 0)
        self._waiters: dict[Waiter[AnyLink], None] = {}
        self._watchers = Watchers(name)
        self._ended = threading.Event()
        self._io_thread = IOThread.acquire(self)
        self._timer = Timer(self._io_thread.loop.timers, self._on_timer)

    @property
    def state(self) -> CarrierState:
        """The state as users see it; see :class:`~relay.carriers.link.CarrierState`. From any thread."""
        return self._state.reported

    @property
    def link(self) -> AnyLink | None:
        """The link, while it is up. From any thread."""
        return self.links.current

    def streams(self) -> int:
        """Return the number of streams over its links. From any thread."""
        return self.links.streams

    def begin(self) -> None:
        """Start the first attempt. Called once, after the first watchers have subscribed: they miss no change."""
        self.call(self._begin)

    def when_up(
        self,
        callback: Callable[[AnyLink | Exception], object],
        deadline: float | None,
        *,
        wait_for_reconnect: bool = True,
        instead_of: tuple[AnyLink, CarrierError] | None = None,
    ) -> Callable[[], object]:
        """Call ``callback`` with the link once it is up, or with the error. Never blocks.

        :param callback: called once, in any thread, perhaps before this returns.
        :param deadline: monotonic seconds, or ``None`` for no limit.
        :param wait_for_reconnect: whether to wait for another attempt when one has failed.
        :param instead_of: a link that the caller saw fail, and its error: the callback gets another link.
        :returns: gives up: the callback is not called after that.
        """
        # Read without the lock of the I/O thread: a link may be lost in the next moment anyway, and the stream then
        # begins again.
        link = self.link
        if link is not None and (instead_of is None or link is not instead_of[0]):
            callback(link)
            return _nothing
        waiter: Waiter[AnyLink] = Waiter(self, callback, deadline, wait_for_reconnect)
        if not self.call(functools.partial(self._add, waiter, instead_of)):
            waiter.resolve(self._closed_error())
        return waiter.give_up

    def subscribe(self, watcher: Watcher) -> None:
        """Call ``watcher(state, error)`` at each change, in the I/O thread; it must not block."""
        self._watchers.append(watcher)

    def unsubscribe(self, watcher: Watcher) -> None:
        """Do not call the watcher any more."""
        self._watchers.discard(watcher)

    def lose(self, link: AnyLink, error: CarrierError) -> None:
        """Close a link that a caller saw fail, if it is still in use. Never blocks."""
        self.call(functools.partial(self._lost, link, error))

    def retry_failed(self) -> None:
        """Start an attempt if the state has been FAILED for long enough. Never blocks."""
        self.call(self._retry_failed)

    def replace(self, link: AnyLink, why: str, level: int = logging.WARNING) -> None:
        """Make another link while this one is up, and use it once its peer has answered. Never blocks.

        The old link is closed with its last stream.

        :param link: the one to replace; nothing happens if it is not the one that is up.
        :param why: for the log.
        :param level: of the log lines.
        """
        self.call(functools.partial(self._replace, link, why, level))

    def when_idle(self, call: Callable[[], object]) -> None:
        """Call ``call`` once, in any thread, when no link has a stream; it replaces the call of any earlier request."""
        if not self.call(functools.partial(self.links.when_idle, call)):
            call()

    def close(self, *, wait: bool = True) -> None:
        """Close the links and every stream over them at once. Idempotent, from any thread.

        :param wait: whether to wait until all is closed, for less than a second; the I/O thread never waits.
        """
        self.call(self._end)
        if wait and threading.current_thread() is not self._io_thread.thread:
            self._ended.wait(_PROMPT)

    def join(self, timeout: float | None) -> bool:
        """Wait until all is closed, which is soon after :meth:`close`.

        :param timeout: seconds to wait at most; ``None`` for no limit.
        :returns: whether all is closed.
        """
        return self._ended.wait(timeout)

    @property
    def timers(self) -> Timers:
        """The deadlines of the I/O thread, for its connector and its links."""
        return self._io_thread.loop.timers

    def abandon(self) -> None:
        """Only close the descriptors, in a forked child."""
        # First, so that no method calls the loop, whose thread the child does not have.
        self._state = CarrierState.ABANDONED
        self._ended = threading.Event()  # the lock of the old one may be held for ever
        self._ended.set()
        self.blocking.cancel.abandon()
        self.links.abandon()

    def call(self, function: Callable[[], object]) -> bool:
        """Call a function in the I/O thread.

        :returns: whether it will be called: not in a forked child, where the I/O thread's lock may be held for ever.
        """
        return self._state is not CarrierState.ABANDONED and self._io_thread.loop.call(function)

    def _log(self, level: int, text: str, *values: object, exc_info: BaseException | None = None) -> None:
        if self.number is not None:
            text = text.replace("%s", f"%s (carrier {self.number})", 1)
        logger.log(logging.DEBUG if self._log_at_debug else level, text, self.name, *values, exc_info=exc_info)

    def __repr__(self) -> str:
        return f"<relay.Carrier {self.name}, {self.state.value}>"

    # -- in the I/O thread: events -------------------------------------------------------------------------------------

    def _add(self, waiter: Waiter[AnyLink], instead_of: tuple[AnyLink, CarrierError] | None) -> None:
        if instead_of is not None:
            # The caller may know of the loss before the link has reported it.
            self._lost(*instead_of)
        self._retry_failed()
        if self.link is not None:
            waiter.resolve(self.link)
        elif self._state in _OVER:
            waiter.resolve(self._closed_error())
        elif self._state is CarrierState.FAILED:
            assert self.error is not None
            waiter.resolve(self.error)
        else:
            self._waiters[waiter] = None
            waiter.start(self._io_thread.loop.timers)
            if self._state is CarrierState.BACKING_OFF:
                now = time.monotonic()
                # A client that waits for one attempt only has it started at once.
                delay = self._retries.delay_with_waiter() if waiter.wait_for_reconnect else 0.0
                # Never later than it was: each client that asks may only bring the attempt forward.
                self._timer.start(min(self._timer.due, now + delay), now)

    def remove_waiter(self, waiter: Waiter[AnyLink]) -> None:
        """Forget a waiter that has given up, or whose deadline is over."""
        self._waiters.pop(waiter, None)

    def _begin(self) -> None:
        if self._follows_network and self._state not in _OVER:
            network.subscribe(self._io_thread, self._network_changed)
        self._attempt()

    def _attempt(self) -> None:
        if self._state not in _OVER:
            # The error of the last attempt stays until there is a link: it is what operators see meanwhile.
            self._change(CarrierState.CONNECTING, self.error)
            self.blocking.connect(self._connected, self._not_connected, self._lost)

    def _replace(self, link: AnyLink, why: str, level: int) -> None:
        if self.link is link and self._state is CarrierState.UP:
            # Not by `_change`: to all watchers the carrier is up.
            self._state = CarrierState.REPLACING
            self._log(level, "%s: %s; replacing it", why)
            connected = functools.partial(self._connected, level=level)
            self.blocking.connect(connected, self._not_connected, self._lost, confirm=True)

    def _connected(self, link: AnyLink, lost: Sequence[CarrierError], level: int | None = None) -> None:
        if self._state is CarrierState.CLOSING:
            # `close` came while the attempt was on its thread; no other code knows this link.
            return self._finish(link)
        is_recovery = self._retries.connected()
        if level is None or self._state is not CarrierState.REPLACING:
            level = logging.WARNING if is_recovery else logging.INFO
        self.links.add(link)
        self._change(CarrierState.UP)
        self._log(level, "%s: connected")
        if self._check_interval is not None:
            self._checked = self.since
            self._timer.start(self.since + self._check_interval, self.since)
        # After the change of the state: a client that opens a stream at once finds the carrier up.
        self._resolve_waiters(link)
        if lost:  # before the link was known here
            self._lost(link, lost[0])
        return None

    def _not_connected(self, error: Exception) -> None:
        if self._state is CarrierState.CLOSING:
            self._finish(None)
        elif self._state is CarrierState.REPLACING:
            self._state = CarrierState.UP
            self.replacement_error = error
            self._log(logging.WARNING, "%s: %s; the old one is kept", strip_prefix(self.name, error))
        else:
            self._failed(error)

    def _failed(self, error: Exception) -> None:
        repeated = self._retries.give_up_on(error)
        if repeated is None and can_retry(error) and not getattr(error, "final", False):
            # An error of a relay class goes to the client as it is; any other one says why the route is unavailable.
            self._back_off(error)
            return self._resolve_waiters(error, wait_for_reconnect=False)
        error = repeated or error
        if alternative := self._connector.alternative(error):
            self._log(logging.WARNING, "%s: %s; %s", strip_prefix(self.name, error), alternative)
            return self._attempt()
        self._change(CarrierState.FAILED, error)
        if not self._waiters:  # else the clients that wait get the error
            trace = None if isinstance(error, OSError) else error
            level, why = logging.DEBUG if is_reported(error) else logging.ERROR, strip_prefix(self.name, error)
            pause = pause_after(error)
            later = f"{pause / 60:.0f} minutes" if pause >= 60 else f"{pause:.0f} s"
            text = f"%s: %s; will not retry until a client connects more than {later} later"
            if self.number is not None:  # see :mod:`relay.carriers.carrier_set`
                text += ", or for 5 minutes while another carrier is up"
            self._log(level, text, why, exc_info=trace)
        return self._resolve_waiters(error)

    def _lost(self, link: AnyLink, error: Exception) -> None:
        if not self.links.remove(link):
            return
        self.losses += 1
        if self._state is CarrierState.REPLACING:  # the attempt under way takes its place
            self._change(CarrierState.CONNECTING, error)
        else:
            self._retries.lost(time.monotonic() - self.since)
            # Not for each of several losses in a row: what is lost as soon as it is up would be made without a pause.
            alternative = "" if self._retries.has_failures else self._connector.alternative(error)
            if alternative:
                self._retries.next_delay(error, has_waiters=bool(self._waiters))  # it is a failure of the row
                level = logging.DEBUG if is_reported(error) else logging.WARNING
                self._log(level, "%s: %s; %s", strip_prefix(self.name, error), alternative)
                self._change(CarrierState.BACKING_OFF, error)
                self._attempt()
            else:
                self._back_off(error)
        # Last, and on a thread: the next attempt does not wait for the close, which may block.
        self.blocking.close_link(link)

    def _on_timer(self, now: float) -> None:
        if self._state is CarrierState.BACKING_OFF:
            self._attempt()
        elif self.link is not None and self._check_interval is not None:
            late = now - self._checked - self._check_interval
            self._checked = now
            self._timer.start(now + self._check_interval, now)
            self.links.check()
            if late > _LATE and self._follows_network:
                self.links.probe(f"this process was stopped for {late:.0f} s")

    def _network_changed(self, why: str) -> None:
        if self._state is CarrierState.BACKING_OFF:
            self._timer.stop()
            self._attempt()
        else:
            self.links.probe(why)

    def _retry_failed(self) -> None:
        if self._state is CarrierState.FAILED:
            assert self.error is not None
            if time.monotonic() - self.since > pause_after(self.error):
                self._attempt()

    def _end(self) -> None:
        if self._state in _OVER:
            return
        is_connecting = self._state in (CarrierState.CONNECTING, CarrierState.REPLACING)
        self._change(CarrierState.CLOSING if is_connecting else CarrierState.CLOSED, self.error)
        self._timer.stop()
        network.unsubscribe(self._io_thread, self._network_changed)
        self.blocking.cancel.set()
        self._resolve_waiters(self._closed_error())
        link = self.links.close()
        if not is_connecting:  # else the end waits for the attempt
            self._finish(link)
        elif link is not None:
            self.blocking.close_link(link)

    # -- in the I/O thread: actions ------------------------------------------------------------------------------

    def _change(self, state: CarrierState, error: Exception | None = None) -> None:
        self._state, self.error = state, error
        self.since = time.monotonic()
        reported = self.state
        self._log(logging.DEBUG, "%s: %s", reported.value)
        self._watchers.notify(reported, error)

    def _resolve_waiters(self, outcome: AnyLink | Exception, *, wait_for_reconnect: bool = True) -> None:
        """Pass an outcome to all waiters, or only to those that do not wait for another attempt."""
        # A copy: each is removed, and its callback may add the next one.
        for waiter in [one for one in self._waiters if wait_for_reconnect or not one.wait_for_reconnect]:
            del self._waiters[waiter]
            waiter.resolve(outcome)

    def _back_off(self, error: Exception) -> None:
        delay = self._retries.next_delay(error, has_waiters=bool(self._waiters))
        is_same = str(error) == str(self.error)
        is_known = is_reported(error) or (is_same and self._retries.has_logged_enough())
        why = strip_prefix(self.name, error).removesuffix(getattr(error, "advice", "") if is_same else "")
        self._log(logging.DEBUG if is_known else logging.WARNING, "%s: %s; trying again in %.1f s", why, delay)
        self._change(CarrierState.BACKING_OFF, error)
        self._timer.start(self.since + delay, self.since)

    def _finish(self, link: AnyLink | None) -> None:
        self._state = CarrierState.CLOSED
        self.blocking.close(link, self._closed)

    def _closed(self) -> None:
        """Release the I/O thread; in the thread that has closed the rest."""
        # Before the event: who waits for the close may end the process, or fork, and must find the thread released.
        self._io_thread.release(self)
        self._ended.set()

    def _closed_error(self) -> CarrierError:
        return CarrierError(f"{self.name}: the connection was closed")


def _nothing() -> None:
    pass
