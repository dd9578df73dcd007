"""A connection that many streams ride on, kept up: its state, its back-off, who holds it and who waits for it.

An SSH connection and a SAM session are such connections. Everything here runs in the pump's thread, but for what may
block (connecting, closing), which has threads of its own.

=========== ============================================ ==============================================================
state       meaning                                      next state
=========== ============================================ ==============================================================
connecting  an attempt is under way                      up; failed, for an error that time does not mend; else backing
                                                         off. The connector may have an alternative for what would be
                                                         a failure: then another attempt follows at once
up          there is a link                              backing off when it is lost
backing off 0.5 s after the first failure, then twice    connecting
            as long each time, up to 30 s
failed      no attempt is made: for example, the login   connecting, when a client asks more than five minutes later
            was rejected, or the server has ended the
            connection three times in a row at the same
            point of the login (counted until the first
            link: a server that has accepted the login
            before has trouble that passes)
closed      by its holders                               none
=========== ============================================ ==============================================================
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import math
import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import Generic

from ..errors import CarrierError, ConnectError, can_retry
from ..eventloop.background import Pump
from ..eventloop.loop import Timer, Timers
from ..streams.cancellation import Cancellation
from .link import AnyLink, Connector, State, Watcher
from .waiter import Waiter, without

__all__ = ["Carrier", "mark_reported"]

logger = logging.getLogger("relay")

_BACKOFF = (0.5, 30.0)  # seconds after the first failure in a row, and at most
_TOLD = 5  # times in a row that the same failure is told
_SAME = 3  # times in a row that a server may end the connection at the same point of the login
_WANTED = 2.0  # seconds of back-off at most while somebody waits
_STEADY = 10.0  # seconds after which a connection that was up counts as a success
_FINAL = 300.0  # seconds until somebody who asks may have a failure tried again that time alone does not mend
_PROMPT = 0.7  # seconds to wait for a thread that was told to end; it goes on alone after that


class Carrier(Generic[AnyLink]):
    """One supervised connection. :meth:`begin` makes it connect.

    :param name: in the log and in errors, such as ``ssh://me@bastion``.
    :param connector: makes the link, again after each loss.
    :param interval: seconds between two checks of the link; ``None`` for none.
    :param attempt: seconds for one attempt to connect; by default its error comes before a client's 30 are over.
    :param rest: seconds of back-off at most while the other side cannot be reached, where asking costs next to nothing.
    :param quiet: whether what becomes of it is of interest to those alone who look for a fault.
    :raises OSError: if there is no thread or descriptor to be had.
    """

    def __init__(
        self,
        name: str,
        connector: Connector[AnyLink],
        interval: float | None,
        attempt: float = 25.0,
        *,
        rest: float = math.inf,
        quiet: bool = False,
    ) -> None:
        self.name = name
        self._rest = rest
        self._quiet = quiet
        self.state = State.CONNECTING
        self.error: Exception | None = None  # why it is not up
        self.holders = 0  # guarded by the lock of :mod:`relay.carriers.pool`
        self.link: AnyLink | None = None
        self._connector = connector
        self._interval = interval
        self._attempt_time = attempt
        self._waiters: dict[Waiter[AnyLink], None] = {}
        self._watchers: list[Watcher] = []
        self._renewing = False  # an attempt is under way although a link is up
        self._retired: list[AnyLink] = []  # links that others have replaced, open as long as a stream rides on them
        self._idle: Callable[[], object] | None = None
        self._failures = 0
        self._stage = ""  # of the login at which the last attempt has ended
        self._repeats = 0  # attempts in a row that have ended there
        self._since = 0.0  # when the state last changed
        self._was_up = False
        self._ended = threading.Event()
        self._abandoned = False
        self._cancel = Cancellation()
        self._thread: threading.Thread | None = None
        self._pump = Pump.hold(self)
        self._timer = Timer(self._pump.loop.timers, self._on_time)

    def begin(self) -> None:
        """Make the first attempt. Called once, after the first watchers have subscribed: they miss nothing."""
        self.call(self._attempt)

    def wait(
        self,
        done: Callable[[AnyLink | Exception], object],
        deadline: float | None,
        *,
        patient: bool = True,
        instead_of: tuple[AnyLink, CarrierError] | None = None,
    ) -> Callable[[], object]:
        """Have ``done`` called with the link, as soon as it is up, or with the error. Never blocks.

        :param done: called once, in any thread, perhaps before this returns.
        :param deadline: monotonic seconds, or ``None`` for as long as it takes.
        :param patient: whether to wait for another attempt when one has failed.
        :param instead_of: a link that is no longer wanted: it was seen to be lost, and this is why.
        :returns: gives up: ``done`` is not called any more.
        """
        link = self.link
        if link is not None and (instead_of is None or link is not instead_of[0]):
            done(link)
            return _nothing
        waiter: Waiter[AnyLink] = Waiter(self, done, deadline, patient)
        if not self.call(functools.partial(self._add, waiter, instead_of)):
            waiter.tell(self._closed_error())
        return waiter.give_up

    def subscribe(self, watcher: Watcher) -> None:
        """Have ``watcher(state, error)`` called at each change, in the pump's thread; it must not block."""
        self._watchers.append(watcher)

    def unsubscribe(self, watcher: Watcher) -> None:
        """Call it no more."""
        if watcher in self._watchers:
            self._watchers.remove(watcher)

    def retry(self) -> None:
        """Connect again if it has failed for good, but not sooner than five minutes after that. Never blocks."""
        self.call(self._retry)

    def renew(self, link: AnyLink, why: str) -> None:
        """Have another link made beside the one that is up, and used from then on. Never blocks.

        The old one is closed with its last stream.

        :param link: the one to be replaced; nothing happens if that is not the one that is up.
        :param why: for the log.
        """
        self.call(functools.partial(self._renew, link, why))

    def when_idle(self, call: Callable[[], object]) -> None:
        """Have ``call`` called once, in any thread, as soon as no stream rides on it; in place of any call before."""
        if not self.call(functools.partial(self._when_idle, call)):
            call()

    def close(self, *, wait: bool = True) -> None:
        """End it, at once. Idempotent, from any thread.

        :param wait: whether to wait until nothing is left, for less than a second; the pump's thread never does.
        """
        self.call(self._end)
        if wait and threading.current_thread() is not self._pump.thread:
            self._ended.wait(_PROMPT)

    def join(self, timeout: float | None) -> bool:
        """Wait until nothing of it is left, which is soon after it was closed.

        :param timeout: seconds to wait at most.
        :returns: whether nothing is left.
        """
        return self._ended.wait(timeout)

    @property
    def timers(self) -> Timers:
        """For whoever belongs to it, in the pump's thread."""
        return self._pump.loop.timers

    def abandon(self) -> None:
        """In a forked child: close the descriptors and nothing else."""
        self.state = State.CLOSED
        self._abandoned = True
        self._ended = threading.Event()  # the lock of the old one may be held for ever
        self._ended.set()
        self._cancel.abandon()
        links, self.link, self._retired = (*self._retired, self.link), None, []
        for link in links:
            if link is not None:
                link.abandon()

    def __repr__(self) -> str:
        return f"<relay.Carrier {self.name}, {self.state.value}>"

    def call(self, function: Callable[[], object]) -> bool:
        """Have it called in the pump's thread; not in a forked child, where the pump's lock may be held for ever."""
        return not self._abandoned and self._pump.loop.call(function)

    def _log(self, level: int, text: str, *values: object, exc_info: BaseException | None = None) -> None:
        logger.log(logging.DEBUG if self._quiet else level, text, self.name, *values, exc_info=exc_info)

    # -- in the pump's thread -------------------------------------------------------------------------------------

    def _change(self, state: State, error: Exception | None = None) -> None:
        self.state, self.error = state, error
        self._since = time.monotonic()
        logger.debug("%s: %s", self.name, state.value)
        for watcher in tuple(self._watchers):
            try:
                watcher(state, error)
            except Exception:
                logger.exception("%s: a watcher of the state failed", self.name)

    def _add(self, waiter: Waiter[AnyLink], instead_of: tuple[AnyLink, CarrierError] | None) -> None:
        if instead_of is not None:
            self._lost(*instead_of)
        self._retry()
        if self.link is not None:
            waiter.tell(self.link)
        elif self.state is State.CLOSED:
            waiter.tell(self._closed_error())
        elif self.state is State.FAILED:
            assert self.error is not None
            waiter.tell(self.error)
        else:
            self._waiters[waiter] = None
            waiter.start(self._pump.loop.timers)
            if self.state is State.BACKING_OFF:
                now = time.monotonic()
                delay = _jittered(_WANTED) if waiter.patient else 0.0  # who waits for one attempt has it made at once
                self._timer.start(min(self._timer.due, now + delay), now)

    def drop(self, waiter: Waiter[AnyLink]) -> None:
        """Whoever waits no longer does so."""
        self._waiters.pop(waiter, None)

    def _tell(self, outcome: AnyLink | Exception, *, patient: bool = True) -> None:
        for waiter in [one for one in self._waiters if patient or not one.patient]:
            del self._waiters[waiter]
            waiter.tell(outcome)

    def _attempt(self) -> None:
        if self.state is State.CLOSED:
            return
        self._change(State.CONNECTING, self.error)
        self._begin()

    def _begin(self) -> None:
        self._thread = threading.Thread(target=self._connect, name=f"relay {self.name} connecting", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:
            self._not_connected(OSError(errno.EAGAIN, str(error)))

    def _connect(self) -> None:
        """In a thread of its own."""
        lost: list[CarrierError] = []  # it may be lost before it is known
        made: list[AnyLink] = []

        def told(error: CarrierError) -> None:
            lost.append(error)
            if made:
                self._pump.loop.call(functools.partial(self._lost, made[0], error))

        try:
            made.append(self._connector.connect(time.monotonic() + self._attempt_time, self._cancel, told))
        except BaseException as error:  # noqa: BLE001  (what is not expected is final, and is told to whoever waits)
            failure = error if isinstance(error, Exception) else RuntimeError(repr(error))  # sys.exit() of a callback
            self._pump.loop.call(functools.partial(self._not_connected, failure))
        else:
            self._pump.loop.call(functools.partial(self._connected, made[0], lost))

    def _not_connected(self, error: Exception) -> None:
        if self.state is State.CLOSED:
            self._finish(None)
        elif self._renewing:
            self._renewing = False
            self._log(logging.WARNING, "%s: %s; the old one is kept", without(self.name, error))
        else:
            self._failed(error)

    def _connected(self, link: AnyLink, lost: Sequence[CarrierError]) -> None:
        if self.state is State.CLOSED:
            return self._finish(link)
        if self._renewing and self.link is not None:
            self._retire(self.link)
        self._renewing = False
        self.link = link
        self._change(State.UP)
        self._log(logging.WARNING if self._was_up or self._failures else logging.INFO, "%s: connected")
        self._was_up = True
        if self._interval is not None:
            self._timer.start(self._since + self._interval, self._since)
        self._tell(link)
        if lost:  # it was told when the link was not known here
            self._lost(link, lost[0])
        return None

    def _failed(self, error: Exception) -> None:
        is_repeated = self._is_repeated(error)
        if is_repeated or not can_retry(error) or getattr(error, "final", False):
            if is_repeated:
                error = CarrierError(f"{error}; {self._repeats} times in a row", stage=self._stage)
                error.final = True
            if alternative := self._connector.alternative(error):
                self._log(logging.WARNING, "%s: %s; %s", without(self.name, error), alternative)
                return self._attempt()
            self._change(State.FAILED, error)
            if not self._waiters:  # else whoever waits is told
                trace = None if isinstance(error, OSError) else error
                why = without(self.name, error)
                level = logging.DEBUG if _is_said(error) else logging.ERROR
                self._log(level, "%s: %s; will not retry until a client connects", why, exc_info=trace)
            return self._tell(error)
        # What has a word of its own is raised as it is; the rest is why there is no way to the target.
        self._back_off(error)
        return self._tell(error, patient=False)

    def _is_repeated(self, error: Exception) -> bool:
        """Whether the server has ended the connection often enough at the same point of the login."""
        stage = error.stage if isinstance(error, CarrierError) and not self._was_up else ""
        self._repeats = 1 if stage != self._stage else self._repeats + 1
        self._stage = stage
        return bool(stage) and self._repeats >= _SAME

    def _renew(self, link: AnyLink, why: str) -> None:
        if self.link is link and not self._renewing:
            self._renewing = True
            self._log(logging.WARNING, "%s: %s; replacing it", why)
            self._begin()

    def _retire(self, link: AnyLink) -> None:
        self._retired.append(link)
        self._watch_idle(link)

    def _end_retired(self, link: AnyLink) -> None:
        self._retired.remove(link)
        self._elsewhere(functools.partial(self._close_link, link))

    def _when_idle(self, call: Callable[[], object]) -> None:
        self._idle = call
        self._look_idle()

    def _look_idle(self, idle: AnyLink | None = None) -> None:
        """Tell whoever waits for that if no link has a stream; ``idle`` has none."""
        if self._idle is None or self._retired:  # which are watched already
            return
        if self.link is not None and self.link is not idle:
            return self._watch_idle(self.link)
        call, self._idle = self._idle, None
        call()
        return None

    def _watch_idle(self, link: AnyLink) -> None:
        link.when_idle(functools.partial(self.call, functools.partial(self._is_idle, link)))

    def _is_idle(self, link: AnyLink) -> None:
        if link in self._retired:
            self._end_retired(link)
        self._look_idle(link)

    def _lost(self, link: AnyLink, error: Exception) -> None:
        if link in self._retired:
            self._end_retired(link)
        if self.link is not link:
            return self._look_idle()
        self.link = None
        if self._renewing:  # what is being made beside it takes its place
            self._renewing = False
            self._change(State.CONNECTING, error)
            return self._elsewhere(functools.partial(self._close_link, link))
        steady = time.monotonic() - self._since > _STEADY
        if steady:
            self._failures = 0
        self._back_off(error)
        return self._elsewhere(functools.partial(self._close_link, link))

    def _back_off(self, error: Exception) -> None:
        most = _WANTED if self._waiters else _BACKOFF[1]
        if isinstance(error, ConnectError):
            most = min(most, self._rest)
        delay = _jittered(min(most, _BACKOFF[0] * 2 ** min(self._failures, 10)))
        self._failures += 1
        is_same = str(error) == str(self.error)
        known = _is_said(error) or (is_same and self._failures > _TOLD)  # and said often enough
        level = logging.DEBUG if known else logging.WARNING
        why = without(self.name, error).removesuffix(getattr(error, "advice", "") if is_same else "")
        self._log(level, "%s: %s; trying again in %.1f s", why, delay)
        self._change(State.BACKING_OFF, error)
        self._timer.start(self._since + delay, self._since)

    def _on_time(self, now: float) -> None:
        if self.state is State.BACKING_OFF:
            self._attempt()
        elif self.link is not None and self._interval is not None:
            self._timer.start(now + self._interval, now)
            for link in (*self._retired, self.link):
                link.check()

    def _retry(self) -> None:
        if self.state is State.FAILED and time.monotonic() - self._since > _FINAL:
            self._attempt()

    def _end(self) -> None:
        if self.state is State.CLOSED:
            return
        connecting = self._thread is not None and (self.state is State.CONNECTING or self._renewing)
        self._change(State.CLOSED, self.error)
        self._timer.stop()
        self._cancel.set()
        self._tell(self._closed_error())
        for retired in tuple(self._retired):
            self._end_retired(retired)
        link, self.link = self.link, None
        if not connecting:  # else when the attempt has come back
            self._finish(link)
        elif link is not None:
            self._elsewhere(functools.partial(self._close_link, link))

    def _finish(self, link: AnyLink | None) -> None:
        self._elsewhere(functools.partial(self._close, link))

    def _elsewhere(self, function: Callable[[], object]) -> None:
        """Call what may block on a thread of its own; here if there is none to be had."""
        try:
            threading.Thread(target=function, name=f"relay {self.name} closing", daemon=True).start()
        except RuntimeError:
            function()

    # -- in a thread that may block -------------------------------------------------------------------------------

    def _close(self, link: AnyLink | None) -> None:
        if link is not None:
            self._close_link(link)
        self._guarded(self._connector.close)
        self._cancel.close()
        self._pump.let_go(self)
        self._ended.set()

    def _close_link(self, link: AnyLink) -> None:
        self._guarded(link.close)

    def _guarded(self, close: Callable[[], object]) -> None:
        try:
            close()
        except Exception:
            logger.exception("%s: closing it failed", self.name)

    def _closed_error(self) -> CarrierError:
        return CarrierError(f"{self.name}: the connection was closed")


def mark_reported(error: Exception) -> None:
    """Mark an error that the caller reports, so that no carrier logs it as well; for a watcher of the state."""
    with contextlib.suppress(AttributeError):  # not every exception takes a mark
        error.said = True  # type: ignore[attr-defined]


def _is_said(error: Exception) -> bool:
    """Whether a carrier below, to which the error belongs, has said it; from now on it counts as said."""
    said = getattr(error, "said", False)
    mark_reported(error)
    return bool(said)


def _jittered(seconds: float) -> float:
    return seconds * random.uniform(0.5, 1.0)  # noqa: S311  (so that fifty programs do not come back at once)


def _nothing() -> None:
    pass
