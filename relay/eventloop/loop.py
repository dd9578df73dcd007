"""One thread's event loop: descriptors, deadlines, and calls from other threads.

The descriptors of bulk transfers are in a second epoll, which is itself one descriptor of the first one. In a turn of
the loop a few of its events are handled. So what a short request waits for is one such turn, and not one step of every
bulk transfer, which may move a MiB each. A system without epoll handles all alike.

========= ===================================== ========= ==============================================================
state     event                                 next      action
========= ===================================== ========= ==============================================================
unwatched ``watch``                             prompt    register it in the first epoll
prompt    its stream is a bulk transfer         bulk      move it to the second one; without room there it stays
bulk      its stream is none any more           prompt    move it back
prompt    ``forget``, ``leave``                 unwatched take it out of its epoll
bulk      ``forget``, ``leave``                 unwatched take it out of its epoll
========= ===================================== ========= ==============================================================
"""

from __future__ import annotations

import heapq
import logging
import math
import os
import threading
import time
from collections.abc import Callable
from typing import Protocol

from .poller import IN, Poller, PollPoller, make_poller

logger = logging.getLogger("relay")

Handler = Callable[[int, float], object]

# Deadlines and garbage wait for the whole batch, so it bounds how late they are on a busy relay. The events beyond it
# are not lost: the pollers are level-triggered. Python takes memory for a batch in each turn. It has 512 bytes at hand,
# the size of 32 events; more, from the C library, would cost a small request a twentieth of its instructions.
_BATCH = 32  # events taken at once
_BULK_BATCH = 4  # of those of bulk transfers
_FAR = 1e6  # seconds; more than epoll takes
_TICKS = 1024.0  # ticks in a second: the precision of a near deadline

_has_children = False  # this process has made a child, or is about to


class Closable(Protocol):
    """A socket, or another object that is closed after a turn."""

    def close(self) -> object:
        """Close it."""


class Timed(Protocol):
    """An object with at most one deadline at a time."""

    tick: int  # where the timers keep it; 0 when they do not

    def expire(self, now: float) -> None:
        """The time has come, or is near: look again, and set the next time if there is one."""

    def crashed(self, now: float) -> None:
        """:meth:`expire` raised, which is a bug: drop its subject."""


class Timer:
    """A deadline that calls a function.

    :param call: called with the time when the deadline has come.
    """

    __slots__ = ("tick", "due", "_call", "_timers")

    def __init__(self, timers: Timers, call: Callable[[float], object]) -> None:
        self.tick = 0
        self.due = math.inf
        self._call = call
        self._timers = timers

    def start(self, due: float, now: float) -> None:
        """Call at ``due`` (monotonic seconds); replaces an earlier time."""
        self.due = due
        self._timers.set(self, due, now)

    def stop(self) -> None:
        """Do not call."""
        # `run` may have taken its bucket already, where cancelling finds nothing: `expire` sees by this that it is not
        # wanted.
        self.due = math.inf
        self._timers.cancel(self)

    def expire(self, now: float) -> None:
        """Call, unless it is too early or no longer wanted."""
        if self.due == math.inf:
            return
        # Buckets of far deadlines fire early, and the owner may have set a later time meanwhile.
        if now < self.due:
            self._timers.set(self, self.due, now)
        else:
            self.due = math.inf
            self._call(now)

    def crashed(self, now: float) -> None:
        """Do nothing: the owner sets it again."""


class Timers:
    """Deadlines in buckets, so that setting and cancelling one costs the same with ten or ten thousand.

    A bucket is wide for a deadline that is far away and fires before its items are due; each then says when to look
    again. Buckets are never deleted before their time, which bounds them by time and not by traffic.
    """

    __slots__ = ("_buckets", "_heap", "first")

    def __init__(self) -> None:
        self._buckets: dict[int, set[Timed]] = {}
        self._heap: list[int] = []
        self.first = math.inf  # monotonic seconds of the next bucket

    def set(self, item: Timed, due: float, now: float) -> None:
        """Call ``item.expire`` at ``due`` (monotonic seconds); replaces an earlier time."""
        left = due - now
        # Never 0, which means "not set"; and never before the time, so that a near deadline needs one look only.
        tick = int(due * _TICKS) + 1
        # Idle limits are set at each connection and hardly ever reached. Wide buckets make most of their moves to a
        # later time a comparison of two numbers.
        if left >= 1024.0:
            tick &= ~65535  # 64 s wide, and early
        elif left >= 16.0:
            tick &= ~1023  # 1 s wide, and early
        elif left >= 0.5:
            tick = (tick | 15) + 1  # 1/64 s wide, and late
        if item.tick:
            # The common case of a limit that is moved on with each look; it costs no change of a set.
            if item.tick == tick:
                return
            self.cancel(item)
        bucket = self._buckets.get(tick)
        if bucket is None:
            bucket = self._buckets[tick] = set()
            heapq.heappush(self._heap, tick)
            self.first = self._heap[0] / _TICKS
        bucket.add(item)
        item.tick = tick

    def cancel(self, item: Timed) -> None:
        """Forget the deadline of ``item``, if it has one."""
        if item.tick:
            bucket = self._buckets[item.tick]
            bucket.discard(item)
            # An empty bucket farther back stays: to take it out of the middle of a heap would cost a search.
            if not bucket and item.tick == self._heap[0]:
                self._trim()
            item.tick = 0

    def _trim(self) -> None:
        """Drop the empty buckets in front: they need no wake-up."""
        heap, buckets = self._heap, self._buckets
        while heap and not buckets[heap[0]]:
            del buckets[heapq.heappop(heap)]
        self.first = heap[0] / _TICKS if heap else math.inf

    def run(self, now: float) -> None:
        """Call every item whose bucket's time has come."""
        while self.first <= now:
            items = self._buckets.pop(heapq.heappop(self._heap))
            self._trim()
            # All of them first: their bucket is gone, so an `expire` that cancels a later one must find nothing to
            # discard.
            for item in items:
                item.tick = 0
            for item in items:
                # Else an earlier one has set it anew, for a later time.
                if not item.tick:
                    try:
                        item.expire(now)
                    except Exception:
                        logger.exception("a deadline failed; this is a bug in relay")
                        item.crashed(now)


class Loop:
    """Waits for descriptors and deadlines, and calls their handlers.

    Everything but :meth:`call` belongs to the thread that is in :meth:`run`. A wake-up may come early: a handler must
    cope with a descriptor that is not ready after all.
    """

    def __init__(self) -> None:
        self.poller: Poller = make_poller()
        self.bulk: set[int] = set()  # the descriptors that are not in it, but in the next one
        self._bulk_poller: Poller | None = None  # made for the first bulk transfer
        # The set of poll(2) is a dict in this process, so a close does not take a descriptor out of it.
        self.closing_forgets = not isinstance(self.poller, PollPoller)
        self.handlers: dict[int, Handler] = {}
        self.timers = Timers()
        self._new: set[int] = set()  # watched in this turn: its events are of an earlier socket with the same number
        self._garbage: list[Closable] = []
        self.discard = self._garbage.append
        """Close a socket after this turn, so that no event of the turn meets a new socket of the same number."""
        self._calls: list[Callable[[], object]] = []
        self._lock = threading.Lock()
        self._stopped = False
        self._thread = -1
        try:
            self._wakeup = _wakeup()
        # There was no descriptor for the wake-up; that of the epoll must not be left behind.
        except BaseException:
            self.poller.close()
            raise
        self.watch(self._wakeup[0], IN, self._woken)

    def watch(self, descriptor: int, mask: int, handler: Handler) -> None:
        """Call ``handler(event, now)`` on the events in ``mask``, and on errors and hang-ups."""
        self.poller.register(descriptor, mask)
        # After the poller has taken it: if that raises, there is no handler for a descriptor that is not watched.
        self.handlers[descriptor] = handler
        self._new.add(descriptor)
        if self.bulk:
            self.bulk.discard(descriptor)  # where it still is if other code has closed a socket of this number

    def forget(self, descriptor: int) -> None:
        """Watch a descriptor no longer."""
        if self.handlers.pop(descriptor, None) is not None:
            try:
                self.poller_of(descriptor).unregister(descriptor)
            except OSError:
                pass  # another owner has closed it, which removed it
            self.bulk.discard(descriptor)

    def leave(self, descriptor: int, handler: Handler, closing: bool) -> None:
        """Watch a descriptor no longer if this is its handler: else other code has closed it, and its number is reused.

        :param closing: that it is about to be closed, which takes it out of an epoll by itself, unless a child holds a
            copy of it. relay knows of its own children and of forks (:func:`expect_child`), not of those that the
            program starts by ``subprocess``. So only the engine passes this, for whom each system call counts.
        """
        handlers = self.handlers
        if handlers.get(descriptor) is handler:
            if closing and self.closing_forgets and not _has_children:
                del handlers[descriptor]
                if self.bulk:
                    self.bulk.discard(descriptor)
            else:
                self.forget(descriptor)

    def poller_of(self, descriptor: int) -> Poller:
        """Return the poller that a watched descriptor is in."""
        bulk = self._bulk_poller
        return bulk if bulk is not None and descriptor in self.bulk else self.poller

    def set_bulk(self, descriptor: int, mask: int, is_bulk: bool) -> None:
        """Handle the events of a watched descriptor with those of bulk transfers, or with all others again.

        :param mask: the events that are waited for.
        """
        if is_bulk == (descriptor in self.bulk) or not self._has_bulk_poller():
            return
        old = self.poller_of(descriptor)
        (self.bulk.add if is_bulk else self.bulk.discard)(descriptor)
        try:
            # First, so that it stays where it was if there is no room (epoll(7), max_user_watches).
            self.poller_of(descriptor).register(descriptor, mask)
        except OSError:
            (self.bulk.discard if is_bulk else self.bulk.add)(descriptor)
        else:
            old.unregister(descriptor)

    def ready_bulk(self) -> set[int]:
        """Return the descriptors of bulk transfers that have events now."""
        poller = self._bulk_poller
        return {one for one, _ in poller.poll(0, len(self.bulk))} if poller is not None and self.bulk else set()

    def _has_bulk_poller(self) -> bool:
        """Return whether there is a second poller; make it, if that is possible."""
        if self._bulk_poller is None and self.poller.fileno() >= 0:
            made = None
            try:
                made = make_poller()
                self.watch(made.fileno(), IN, self._take_bulk)
            except OSError:  # there is no descriptor for it
                if made is not None:
                    made.close()
            else:
                self._bulk_poller = made
        return self._bulk_poller is not None

    def _take_bulk(self, event: int, now: float) -> None:
        """Handle some events of bulk transfers; the others come with the next turns."""
        assert self._bulk_poller is not None
        handlers, new = self.handlers, self._new
        events = self._bulk_poller.poll(0, _BULK_BATCH)
        try:
            for descriptor, event in events:
                handler = handlers.get(descriptor)
                if handler is not None and (not new or descriptor not in new):
                    handler(event, now)
        except Exception as error:  # noqa: BLE001  (as in `run`)
            self._crashed(descriptor, error, now)

    def call(self, function: Callable[[], object]) -> bool:
        """Call ``function`` in the loop's thread; safe from any thread.

        :returns: whether it will be called: ``False`` once the loop has stopped.
        """
        with self._lock:
            if self._stopped:
                return False
            self._calls.append(function)
            # One signal serves all calls until they are taken: a signal is a system call on the caller's thread. It is
            # written under the lock, so that `run` cannot end and close the descriptor in between.
            if len(self._calls) == 1:
                _signal(self._wakeup[1])
        return True

    def is_here(self) -> bool:
        """Return whether the current thread is the one in :meth:`run`."""
        return threading.get_ident() == self._thread

    def stop(self) -> None:
        """Let :meth:`run` return after this turn and the calls that were accepted before it ended."""
        # No signal: the loop looks at this after each turn. A caller on another thread uses `call(stop)`, which wakes
        # it.
        with self._lock:
            self._stopped = True

    def run(self) -> None:
        """Wait and call, until :meth:`stop`."""
        self._thread = threading.get_ident()
        # Locals: an attribute costs more than the comparison that it is for, in each turn of a busy loop.
        poll, handlers, timers, garbage, new = self.poller.poll, self.handlers, self.timers, self._garbage, self._new
        clock = time.monotonic
        now = clock()
        while True:
            if timers.first <= now:
                timers.run(now)
            # After the events and the deadlines: only now can no event of this turn meet a new socket of the number.
            while garbage:
                garbage.pop().close()
            if self._stopped:
                break
            wait = timers.first - now  # more than 0: the deadlines up to now have been called
            if new:
                new.clear()
            events = poll(wait if wait < _FAR else -1, _BATCH)
            now = clock()  # one clock reading a turn serves every event of it
            try:
                for descriptor, event in events:
                    handler = handlers.get(descriptor)
                    # An event may be of a descriptor that an earlier handler of this turn has forgotten, or closed: its
                    # number may be that of a socket watched since, for which this event was not meant.
                    if handler is not None and (not new or descriptor not in new):
                        handler(event, now)
            # One try around all events and not one for each: it costs nothing until there is a bug, and the events that
            # are skipped then come again with the next turn.
            except Exception as error:  # noqa: BLE001  (a bug must not end the loop)
                self._crashed(descriptor, error, now)
        # Those that `call` had accepted before the stop; their callers rely on it to release what they hold.
        self._run_calls()
        self._close_garbage()
        self._thread = -1  # another thread may get the number

    def turn(self) -> None:
        """Wait once and call, for a caller with a loop of its own.

        :meth:`run` does the same without a call for each turn, which a hot loop feels.
        """
        if self._garbage:
            self._close_garbage()
        timers, new = self.timers, self._new
        if new:
            new.clear()
        wait = timers.first - time.monotonic()
        events = self.poller.poll(wait if 0 <= wait < _FAR else 0 if wait < 0 else -1, _BATCH)
        now = time.monotonic()
        try:
            for descriptor, event in events:
                handler = self.handlers.get(descriptor)
                if handler is not None and (not new or descriptor not in new):
                    handler(event, now)
        except Exception as error:  # noqa: BLE001  (a bug must not end the loop)
            self._crashed(descriptor, error, now)
        if timers.first <= now:
            timers.run(now)
        if self._garbage:
            self._close_garbage()

    def close(self) -> None:
        """Let the loop's own descriptors go; also in a forked child, where it touches nothing of the parent's."""
        self._stopped = True
        self.poller.close()
        if self._bulk_poller is not None:
            self._bulk_poller.close()
        # A set: with an eventfd the two are one descriptor.
        for descriptor in set(self._wakeup):
            os.close(descriptor)

    def _close_garbage(self) -> None:
        garbage = self._garbage
        while garbage:
            garbage.pop().close()

    def _woken(self, event: int, now: float) -> None:
        # Cleared before the calls are taken, so that a call made from now on signals anew.
        try:
            os.read(self._wakeup[0], 8)
        except BlockingIOError:
            pass
        self._run_calls()

    def _run_calls(self) -> None:
        with self._lock:
            # Taken at once, and called without the lock: a call may call `call`, and others must not wait for it.
            calls, self._calls = self._calls, []
        for function in calls:
            try:
                function()
            except Exception:
                logger.exception("a call to the relay thread failed; this is a bug in relay")

    def _crashed(self, descriptor: int, error: Exception, now: float) -> None:
        # What was not looked at in this turn is reported again in the next.
        logger.error("a handler failed; this is a bug in relay, and it ends one connection", exc_info=error)
        handler = self.handlers.get(descriptor)
        # Else the next turn would meet the same bug with the same event, without end.
        self.forget(descriptor)
        # The handler is a bound method, or a partial of one; its owner has `crashed` if it has something to end.
        crashed = getattr(getattr(getattr(handler, "func", handler), "__self__", None), "crashed", None)
        if crashed is not None:
            crashed(now)


def expect_child() -> None:
    """Take every descriptor out of its poller before it is closed, from now on; called before each child is made.

    A child holds copies of all descriptors: until it executes its program, or for ever. An epoll keeps reporting a
    socket that this process has closed while a copy is open, and by its number, which may be a new socket's by then.
    """
    global _has_children  # noqa: PLW0603  (one for the process)
    _has_children = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=expect_child)


def _wakeup() -> tuple[int, int]:
    """A descriptor to wait on and one to signal by: an eventfd is both."""
    if hasattr(os, "eventfd"):
        descriptor = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        return descriptor, descriptor
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    return reader, writer


def _signal(descriptor: int) -> None:
    try:
        os.write(descriptor, (1).to_bytes(8, "little"))
    except BlockingIOError:
        pass  # it is signalled already
