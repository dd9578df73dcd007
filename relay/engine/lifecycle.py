"""The life of a tunnel's thread: it runs a loop, pauses, drains and closes.

======== ======================= ========= ============================================================================
state    event                   next      action
                                 state
======== ======================= ========= ============================================================================
open     pause                   paused    stop accepting; reset the connections, if requested
open     close                   closing   close the listener; reset the connections; stop the loop
open     close with drain        draining  close the listener; start the drain timer; *closing* without a connection
paused   resume                  open      accept
paused   close                   closing   close the listener; reset the connections; stop the loop
paused   close with drain        draining  close the listener; start the drain timer; *closing* without a connection
draining pause                   draining  reset the connections, if requested, which ends the drain
draining last connection ends    closing   stop the loop
draining spread timer            draining  reset the oldest connections; start the spread timer
draining drain timer             closing   reset the connections; stop the loop
draining close                   closing   reset the connections; stop the loop
draining close with drain        draining  let both timers fire sooner, if that is sooner
closing  loop has stopped        closed    wait for the threads, close the factory, report the last records
closed   pause, resume or close  closed    nothing
any      fork                    abandoned in the child: only close the descriptors
======== ======================= ========= ============================================================================
"""

from __future__ import annotations

import enum
import functools
import math
import signal
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ..eventloop.loop import Loop, Timer
from .spread import SpreadEnd

if TYPE_CHECKING:  # parts of one machine name each other
    from .connection import Connection


class TunnelState(enum.Enum):
    """The state of a tunnel; the docstring of this module has the table.

    The value of a member is its name in the table, and the word that users see.
    """

    OPEN = "open", "open"
    PAUSED = "paused", "paused"
    DRAINING = "draining", "closing"
    CLOSING = "closing", "closing"
    CLOSED = "closed", "closed"
    ABANDONED = "abandoned", "closed"

    def __init__(self, text: str, reported: str) -> None:
        self.text = text
        self.reported = reported


class LoopThread:
    """A thread with a loop, and its states. The relay thread is the one subclass; it adds what the loop is for.

    :param name: of the thread.
    :raises OSError: if the system has no descriptor left.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.loop = Loop()
        self.end_callbacks: set[Callable[[], object]] = set()
        """Called in the thread at its end."""
        self._state = TunnelState.OPEN
        self._closed = threading.Event()
        self._drain_timer = Timer(self.loop.timers, self._stop)
        self._spread = SpreadEnd(lambda: self.all_connections, self.loop.timers)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread.

        :raises RuntimeError: if the system has no thread left.
        """
        self._thread.start()

    # -- from any thread --------------------------------------------------------------------------------------------

    @property
    def state(self) -> str:
        """``open``, ``paused``, ``closing`` or ``closed``."""
        return self._state.reported

    @property
    def is_closed(self) -> bool:
        """True once all is closed."""
        return self._closed.is_set()

    def is_on_relay_thread(self) -> bool:
        """Return whether the current thread is this one."""
        return threading.current_thread() is self._thread

    def pause(self, close: bool) -> None:
        """See :meth:`relay.Tunnel.pause`."""
        self.run_in_thread(functools.partial(self._pause, close))

    def resume(self) -> None:
        """See :meth:`relay.Tunnel.resume`."""
        self.run_in_thread(self._resume)

    def ping(self, reply: Callable[[], object]) -> bool:
        """See :meth:`relay.Tunnel.ping`."""
        return self._state is not TunnelState.ABANDONED and self.loop.call(reply)

    def start_close(self, drain: float | None, closed: Callable[[], object] | None = None, spread: float = 0.0) -> None:
        """Stop listening, and reset what is left after ``drain`` seconds; ``None`` for never. Does not wait.

        :param closed: called once at the end, in the thread, or here if it has ended; must not block.
        :param spread: seconds before the end of the drain over which the connections are reset one after the other.
        """
        if self._state is TunnelState.ABANDONED:
            return
        if closed is not None:
            # Before the close: the thread may end while this one goes on, and calls what it finds.
            self.end_callbacks.add(closed)
        if not self.loop.call(functools.partial(self._close, drain, spread)) and self.is_closed and closed is not None:
            try:
                # Either this or the thread takes it out; the set decides, in one step, so that it is called once.
                self.end_callbacks.remove(closed)
            except KeyError:  # the thread calls it
                return
            closed()

    def close(self, drain: float | None) -> None:
        """See :meth:`relay.Tunnel.close`."""
        self.start_close(drain)
        if not self.must_not_wait():
            self._closed.wait()
            self._thread.join()

    def join(self, timeout: float | None = None) -> None:
        """See :meth:`relay.Tunnel.join`."""
        if not self.must_not_wait():
            self._thread.join(timeout)

    def run_in_thread(self, function: Callable[[], object]) -> None:
        """Call ``function`` in the thread, and wait until it has returned; do nothing after the end."""
        if self._state is TunnelState.ABANDONED:
            return
        if self.is_on_relay_thread():
            function()
            return
        done = threading.Event()

        def call() -> None:
            try:
                function()
            finally:
                done.set()

        # The loop has stopped otherwise, and there is no thread that could do it.
        if self.loop.call(call):
            done.wait()

    def must_not_wait(self) -> bool:
        """Return whether the current thread must not wait for the end."""
        return self._state is TunnelState.ABANDONED or self.is_on_relay_thread()

    # -- for the subclass, in the thread ----------------------------------------------------------------------------

    @property
    def count(self) -> int:
        """The number of open connections."""
        raise NotImplementedError

    def on_start(self, now: float) -> None:
        """Take the start of the thread; it accepts no client yet."""

    def on_close(self, drain: float | None, now: float) -> None:
        """Take the first close; ``drain`` is that of :meth:`start_close`."""

    def update_listening(self) -> None:
        """Accept clients if the state is *open* and there is room."""
        raise NotImplementedError

    def close_listener(self) -> None:
        """Accept no client any more."""
        raise NotImplementedError

    @property
    def all_connections(self) -> Sequence[Connection]:
        """The connections that have not ended, the oldest first."""
        raise NotImplementedError

    def end_all(self, now: float) -> None:
        """Reset all connections."""
        raise NotImplementedError

    def tear_down(self) -> None:
        """Close all that the thread has used, after its loop has stopped."""
        raise NotImplementedError

    @property
    def is_open(self) -> bool:
        """True while clients may be accepted."""
        return self._state is TunnelState.OPEN

    @property
    def is_closing(self) -> bool:
        """True from the first close on."""
        return self._state not in (TunnelState.OPEN, TunnelState.PAUSED)

    def look_drained(self) -> None:
        """End the drain if no connection is left."""
        if not self.count:
            self._state = TunnelState.CLOSING
            self.loop.stop()

    def abandon(self) -> None:
        """Wait for nothing and call nothing any more, in a forked child."""
        self._state = TunnelState.ABANDONED
        self._closed.set()

    # -- in the thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        # Splicing into a socket whose peer has gone raises SIGPIPE, which no flag of splice prevents.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGPIPE})
        self.on_start(time.monotonic())
        self.update_listening()
        try:
            self.loop.run()
        finally:
            try:
                self.tear_down()
                self._state = TunnelState.CLOSED
                self._closed.set()
            finally:
                self._call_back()

    def _call_back(self) -> None:
        """Call each of the end callbacks once; :meth:`start_close` may take one back meanwhile."""
        while True:
            try:
                callback = self.end_callbacks.pop()
            except KeyError:
                return
            callback()

    def _pause(self, close: bool) -> None:
        if self._state is TunnelState.OPEN:
            self._state = TunnelState.PAUSED
            self.update_listening()
        if close:
            self.end_all(time.monotonic())

    def _resume(self) -> None:
        if self._state is TunnelState.PAUSED:
            self._state = TunnelState.OPEN
            self.update_listening()

    def _close(self, drain: float | None, spread: float = 0.0) -> None:
        now = time.monotonic()
        if not self.is_closing:
            self.on_close(drain, now)
            self._state = TunnelState.DRAINING
            # At once, also with a drain: clients that come now must get to whatever listens there next.
            self.close_listener()
        due = now + drain if drain is not None else math.inf
        if not self.count or due <= now:
            self._stop(now)
        # A second close may shorten the drain and never makes it longer.
        elif due < self._drain_timer.due:
            self._drain_timer.start(due, now)
            self._spread.start(due, spread, now)

    def _stop(self, now: float) -> None:
        self._state = TunnelState.CLOSING
        self.end_all(now)
        self.loop.stop()
