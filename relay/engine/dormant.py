"""A tunnel without a thread until its first client: a process may have thousands that are hardly ever used.

One thread of the process, :class:`~relay.eventloop.background.IOThread`, waits for the first clients of all of them. It
accepts none: it makes the relay thread, whose descriptors and memory the tunnel has not needed so far.

========= ================================= ========= =================================================================
stage     event                             next      action
                                            stage
========= ================================= ========= =================================================================
dormant   resume                            dormant   wait for a client
dormant   pause                             dormant   wait for none; clients wait in the listen backlog
dormant   client                            awake     make the relay thread, which accepts the client
dormant   client; no thread is left, or no  dormant   log that, and try again after a while; the client waits
          descriptor
dormant   anything else but close           awake     make the relay thread, paused or open as the tunnel is
dormant   close                             closed    close the listener and the factory
awake     any                               awake     that of the relay thread, see :mod:`.lifecycle`
closed    any                               closed    nothing
========= ================================= ========= =================================================================
"""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
import time
from collections.abc import Callable
from enum import Enum, auto
from typing import TYPE_CHECKING

from ..access.policy import ClientPolicy
from ..eventloop.background import IOThread
from ..eventloop.backoff import Backoff
from ..eventloop.loop import Timer
from ..eventloop.poller import IN
from ..streams.connect import SocketDialer
from ..streams.listener import SocketListener, TunnelListener
from ..streams.protocols import MakeSend
from .acceptor import accept_backoff, prepare_socket, why_not_accepted
from .connector import close_factory
from .options import TunnelOptions
from .outlets import Outlets
from .records import ConnectionRecord, Metrics
from .relay_thread import RelayThread
from .statistics import Statistics

if TYPE_CHECKING:  # most tunnels have no gate, and start faster without it
    from ..access.gate import Gate

logger = logging.getLogger("relay")

_NOTHING = Statistics("", None, None).metrics(())


def _can_be_dormant(
    receive: TunnelListener, make_send: MakeSend, options: TunnelOptions, policy: ClientPolicy | None
) -> bool:
    """Return whether a tunnel has nothing to do before its first client.

    Warm streams are made, and bans are counted. A listener that is more than a socket, and a factory that holds a
    connection, have work and an end of their own.
    """
    has_limits = policy is not None and bool(policy.limits)
    is_plain = type(receive) is SocketListener and isinstance(make_send, SocketDialer)
    return is_plain and not options.warm and not has_limits and options.on_end is None


class _Stage(Enum):
    """The stage of a tunnel; the docstring of this module has the table."""

    DORMANT = auto()
    AWAKE = auto()
    CLOSED = auto()


class DormantThread(RelayThread):
    """A relay thread that is made when there is work for it, and the state of the tunnel until then.

    The base class is initialised when the tunnel wakes: its ``__init__`` makes all that a dormant tunnel does without.
    Every method that other threads may call looks first whether that was done. The stage changes in the I/O thread
    alone, so it has no lock; once it is not *dormant* any more, it stays.

    One that cannot be dormant is awake from the start: the code of the engine is quickest if all relay threads of a
    process have one class.

    :param receive: and the others: as for :class:`RelayThread`. The tunnel is paused at first.
    """

    # Slots: with so many more attributes the instance would be too large for the quickest look-ups of the interpreter.
    __slots__ = ("_stage", "_is_made", "_make", "_ends", "_home", "_is_resting", "_is_watched", "_retry", "_backoff")

    def __init__(
        self,
        receive: TunnelListener,
        make_send: MakeSend,
        options: TunnelOptions,
        policy: ClientPolicy | None = None,
        *,
        outlets: Outlets | None = None,
    ) -> None:
        self._stage = _Stage.DORMANT
        self._is_made = False  # all that the base class reads; in this one the figures of a tunnel without clients
        self._is_resting = True  # paused; set by those who pause and resume, and followed in the I/O thread
        if not isinstance(receive, SocketListener) or not _can_be_dormant(receive, make_send, options, policy):
            super().__init__(receive, make_send, options, policy, outlets=outlets, paused=True)
            return
        self.name = options.name or ""
        self._make = functools.partial(super().__init__, receive, make_send, options, policy, outlets=outlets)
        self._ends = receive, make_send
        self._is_watched = False  # the I/O thread waits for a client
        self._retry: Timer | None = None  # as the following: None until the system has no thread or descriptor left
        self._backoff: Backoff | None = None
        # Clients that connect before the tunnel wakes inherit it from the listening socket.
        prepare_socket(receive.listening, is_tls=False)
        self._home = IOThread.acquire(self)

    # -- from any thread --------------------------------------------------------------------------------------------

    @property
    def state(self) -> str:
        """``open``, ``paused``, ``closing`` or ``closed``."""
        if self._is_made:
            return super().state
        return "closed" if self._stage is _Stage.CLOSED else "paused" if self._is_resting else "open"

    @property
    def is_closed(self) -> bool:
        """True once all is closed."""
        return super().is_closed if self._is_made else self._stage is _Stage.CLOSED

    @property
    def count(self) -> int:
        """The number of open connections."""
        return super().count if self._is_made else 0

    @property
    def gate(self) -> Gate | None:
        """The bans and quotas of its clients."""
        return super().gate if self._is_made else None

    def connections(self, first: int = 0, most: int | None = None) -> list[ConnectionRecord]:
        """See :meth:`relay.Tunnel.connections`."""
        return super().connections(first, most) if self._is_made else []

    def recent(self) -> list[ConnectionRecord]:
        """See :meth:`relay.Tunnel.recent`."""
        return super().recent() if self._is_made else []

    def metrics(self) -> Metrics:
        """See :meth:`relay.Tunnel.metrics`."""
        return super().metrics() if self._is_made else _NOTHING

    def kill(self, connection_id: str) -> bool:
        """See :meth:`relay.Tunnel.kill`."""
        return self._is_made and super().kill(connection_id)

    def pause(self, close: bool) -> None:
        """See :meth:`relay.Tunnel.pause`."""
        self._is_resting = True
        if self._is_awake_after(self._follow):
            super().pause(close)

    def resume(self) -> None:
        """See :meth:`relay.Tunnel.resume`."""
        self._is_resting = False
        if self._is_awake:
            return super().resume()
        # It does not wait: clients find the listen backlog open all the time.
        if not self._home.loop.call(self._follow):
            self._follow()
        return None

    def ping(self, reply: Callable[[], object]) -> bool:
        """See :meth:`relay.Tunnel.ping`."""
        if self._stage is _Stage.DORMANT and self._home.loop.call(reply):
            return True
        return self._is_awake and super().ping(reply)

    def start_close(self, drain: float | None, closed: Callable[[], object] | None = None, spread: float = 0.0) -> None:
        """See :meth:`.LoopThread.start_close`."""
        if self._is_awake:
            return super().start_close(drain, closed, spread)
        close = functools.partial(self._close_dormant, drain, closed, spread)
        if not self._home.loop.call(close):
            close()
        return None

    def close(self, drain: float | None) -> None:
        """See :meth:`relay.Tunnel.close`."""
        if self._is_awake_after(self._end):
            super().close(drain)

    def join(self, timeout: float | None = None) -> None:
        """See :meth:`relay.Tunnel.join`."""
        if self._is_awake_after(self._wake):
            super().join(timeout)

    def keep_warm(self, count: int, seconds: float) -> None:
        """See ``warm`` of :class:`relay.Tunnel`."""
        if self._is_awake_after(self._wake):
            super().keep_warm(count, seconds)

    def run_in_thread(self, function: Callable[[], object]) -> None:
        """Call ``function`` in the relay thread, and wait until it has returned; do nothing after the end.

        :raises OSError: if the system has no descriptor left for that thread.
        :raises RuntimeError: if it has no thread left.
        """
        if self._is_awake_after(self._wake):
            super().run_in_thread(function)

    def start(self) -> None:
        """Start the thread: the last step of the base class's ``__init__``."""
        self._is_made = True  # before the thread accepts: the client whose target has heard of it is in the figures
        try:
            super().start()
        except BaseException:
            self._is_made = False
            raise
        # After it runs: before that, a call to it could wait for a thread that fails to start.
        self._stage = _Stage.AWAKE

    def abandon(self) -> None:
        """In a forked child: only close the listening socket; awake, also end the waits of the thread."""
        if self._is_awake:
            super().abandon()
        elif self._stage is _Stage.DORMANT:
            self._stage = _Stage.CLOSED
            self._ends[0].listening.close()

    @property
    def _is_awake(self) -> bool:
        return self._stage is _Stage.AWAKE

    def _is_awake_after(self, step: Callable[[], object]) -> bool:
        """Take a step of a dormant tunnel, in the I/O thread, and wait for it; return whether the tunnel is awake."""
        if self._stage is not _Stage.DORMANT:
            return self._is_awake
        errors: list[Exception] = []
        done = threading.Event()

        def take() -> None:
            try:
                if self._stage is _Stage.DORMANT:
                    step()
            except (OSError, RuntimeError) as error:
                errors.append(error)
            finally:
                done.set()

        if self._home.loop.is_here():
            take()
        elif self._home.loop.call(take):
            done.wait()
        if errors:
            raise errors[0]
        return self._is_awake

    # -- the I/O thread ---------------------------------------------------------------------------------------------

    def _follow(self) -> None:
        """Wait for a client, or for none: the tunnel was paused or resumed."""
        if self._is_awake:
            if not self._is_resting:
                self.loop.call(self._resume)
        elif self._stage is _Stage.DORMANT and self._is_resting == self._is_watched:
            self._forget() if self._is_resting else self._watch(time.monotonic())

    def _watch(self, now: float) -> None:
        self._home.loop.watch(self._ends[0].listening.fileno(), IN, self._on_client)
        self._is_watched = True

    def _forget(self) -> None:
        self._is_watched = False
        if self._retry is not None:
            self._retry.stop()
        self._home.loop.forget(self._ends[0].listening.fileno())

    def _on_client(self, event: int, now: float) -> None:
        with contextlib.suppress(OSError, RuntimeError):  # it tries again
            self._wake()

    def _wake(self) -> None:
        """Make the relay thread.

        :raises OSError: if the system has no descriptor left.
        :raises RuntimeError: if it has no thread left.
        """
        self._forget()  # first: both loops would report the same client
        try:
            self._make(paused=self._is_resting)
        except (OSError, RuntimeError) as error:
            self._try_later(error)
            raise
        self._leave_home()

    def _try_later(self, error: Exception) -> None:
        if self._is_resting:
            return
        if self._retry is None or self._backoff is None:
            self._retry, self._backoff = Timer(self._home.loop.timers, self._watch), accept_backoff()
            logger.warning("%s: %s", self.name, why_not_accepted(error))
        now = time.monotonic()
        self._retry.start(now + self._backoff.next(), now)

    def _close_dormant(self, drain: float | None, closed: Callable[[], object] | None, spread: float) -> None:
        if self._is_awake:
            return super().start_close(drain, closed, spread)
        if self._stage is _Stage.DORMANT:
            self._end()
        if closed is not None:
            closed()
        return None

    def _end(self) -> None:
        receive, make_send = self._ends
        self._forget()  # before the socket is closed: another process may have it, for which its events are then
        self._stage = _Stage.CLOSED
        receive.close()
        close_factory(make_send, self.name)
        self._leave_home()

    def _leave_home(self) -> None:
        del self._make, self._ends
        self._home.release(self)
