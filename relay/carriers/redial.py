"""Dialing that outlives a change of the network: the kernel would long repeat packets from an address that is gone."""

from __future__ import annotations

import functools
import math
import time

from ..eventloop.background import IOThread
from ..eventloop.backoff import Backoff
from ..eventloop.loop import Timer
from ..streams.dialer import Dialer
from ..streams.promise import Abort, CallbackChain, OnResult
from ..streams.stream import Stream
from . import network

# Seconds for a stream that is under way, after the first change and at most. It has longer after each further one, so
# that changes in a row, such as those of containers, let a slow one succeed, too.
_PATIENCE = (2.0, 30.0)


def dial(dialer: Dialer, deadline: float | None, done: OnResult, *, wait_for_reconnect: bool = True) -> Abort:
    """Begin to make a stream, and begin anew if the network changes and it is not there soon after that.

    The parameters and what is returned are those of :meth:`relay.streams.dialer.Dialer.dial`; ``done`` is called in
    the I/O thread.

    :raises OSError: if no thread or descriptor is available.
    """
    redial = _Redial(dialer, deadline, done, wait_for_reconnect)
    redial.call(redial.begin)
    return lambda: redial.call(redial.give_up)


class _Redial:
    """One stream. Its methods, but for :meth:`call`, are called in the I/O thread."""

    def __init__(self, dialer: Dialer, deadline: float | None, done: OnResult, wait_for_reconnect: bool) -> None:
        self._dial = functools.partial(dialer.dial, deadline, wait_for_reconnect=wait_for_reconnect)
        self._done: OnResult | None = done
        self._steps: CallbackChain[Stream] | None = None
        self._patience = Backoff(*_PATIENCE)
        self._io_thread = IOThread.acquire(self)
        self._timer = Timer(self._io_thread.loop.timers, self._begin_anew)
        self.call = self._io_thread.loop.call

    def abandon(self) -> None:
        """In a forked child: do nothing; the dialer has the descriptors."""

    def begin(self) -> None:
        """Begin."""
        network.subscribe(self._io_thread, self._changed)
        self._begin()

    def give_up(self) -> None:
        """Give up; no effect once there is an outcome."""
        if self._done is not None:
            self._end()

    def _begin(self) -> None:
        def dialed(outcome: Stream | OSError) -> None:
            # After the end of the thread it was given up, and only this has the stream.
            if not self.call(functools.partial(self._dialed, steps, outcome)) and isinstance(outcome, Stream):
                outcome.reset()

        steps: CallbackChain[Stream] = CallbackChain(dialed)
        self._steps = steps
        steps.begin(self._dial, steps.finish)

    def _changed(self, why: str) -> None:
        if self._timer.due == math.inf:
            now = time.monotonic()
            self._timer.start(now + self._patience.next(), now)

    def _begin_anew(self, now: float) -> None:
        assert self._steps is not None
        self._steps.give_up()
        self._begin()

    def _dialed(self, steps: CallbackChain[Stream], outcome: Stream | OSError) -> None:
        done = self._done
        if done is not None and steps is self._steps:
            self._end()
            done(outcome)
        elif isinstance(outcome, Stream):
            outcome.reset()

    def _end(self) -> None:
        self._done = None
        assert self._steps is not None
        self._steps.give_up()
        self._timer.stop()
        network.unsubscribe(self._io_thread, self._changed)
        self._io_thread.release(self)
