"""Flows that ask before they read: for a bandwidth that several share, and for quotas.

A metered flow reads no more than its meters grant and its quotas have left. While a meter grants nothing, the flow is
parked: the loop does not watch its source, and the meter calls the flow when its turn has come.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ..access.meter import Meter, Waiter
from ..access.ticket import Quota
from ..eventloop.poller import IN, PRI, READ
from .flow import _NONBLOCK, _SMALL, BUFFER, Flow
from .session_flow import SessionFlow
from .workspace import Workspace

if TYPE_CHECKING:  # parts of one machine name each other
    from .flow_pair import FlowPair

_MOST = 1 << 20  # bytes that one step reads at most: what a pipe holds


class Budget:
    """The bytes that one flow may read. Belongs to the relay thread.

    :param meters: the bandwidths that it shares.
    :param quotas: of its client, which both flows of the connection use.
    :param used_up: called with a quota that has nothing left, and with the time.
    """

    __slots__ = ("allowance", "is_lifted", "is_waiting", "is_exhausted", "since", "_meters", "_quotas", "_used_up")

    def __init__(
        self, meters: Sequence[Meter], quotas: Sequence[Quota], used_up: Callable[[Quota, float], object]
    ) -> None:
        self.allowance = 0
        """The bytes that the next read may take."""
        self.is_lifted = False
        """True once any read may take more: its connection ends."""
        self.is_waiting = False
        """True while a meter has to call the flow."""
        self.is_exhausted = False
        """True if the last read took all that it might, or that a copying flow reads at once."""
        self.since = 0.0
        """When it began to wait, in monotonic seconds."""
        self._meters = meters
        self._quotas = quotas
        self._used_up = used_up

    def empty_quota(self) -> Quota | None:
        """Return a quota that has nothing left."""
        return next((quota for quota in self._quotas if not quota.left()), None)

    def used_up(self, quota: Quota, now: float) -> None:
        """Report a quota that has nothing left."""
        self._used_up(quota, now)

    def ask(self, flow: Waiter, now: float) -> bool:
        """Ask for bytes, after no quota was empty; return whether there are some now."""
        allowance = _MOST
        for quota in self._quotas:
            allowance = min(allowance, quota.left())
        for meter in self._meters:
            granted = meter.take(flow, now)
            if not granted:
                if not self.is_waiting:
                    self.is_waiting, self.since = True, now
                return False
            allowance = min(allowance, granted)
        self.is_waiting = False
        self.allowance = allowance
        return True

    def spend(self, flow: Waiter, size: int) -> None:
        """Count what was read."""
        self.is_exhausted = size >= min(self.allowance, BUFFER)
        self.allowance = 0
        for meter in self._meters:
            meter.spend(flow, size)
        if size:
            for quota in self._quotas:
                quota.spend(size)

    def leave(self, flow: Waiter) -> None:
        """Wait for nothing any more."""
        self.is_waiting = False
        for meter in self._meters:
            meter.leave(flow)


class _Metered(Flow):
    """The part of a metered flow that does not depend on its source."""

    __slots__ = ()

    budget: Budget

    def begin_metering(self) -> None:
        """Read by the budget, which has been set."""
        self.reader = self

    def queue_first(self, data: memoryview) -> None:
        """Count the bytes that came with the request of a proxy client; they may be more than the budget has."""
        self.budget.spend(self, len(data))
        super().queue_first(data)

    def recv(self, size: int) -> bytes:
        """Read from the source, no more than the budget has, and count that."""
        budget = self.budget
        data = self.source.recv(min(size, budget.allowance) if not budget.is_lifted else size)
        budget.spend(self, len(data))
        return data

    def _may_read(self, now: float) -> bool:
        """Return whether there are bytes to spend; else park, or end the connection."""
        budget = self.budget
        quota = budget.empty_quota()
        if quota is not None:
            if self._is_at_end():
                self.end(now)
            else:
                budget.used_up(quota, now)
            return False
        if budget.ask(self, now):
            return True
        self.set_interest(max(self.mask, 0) & ~READ)
        return False

    def _is_at_end(self) -> bool:
        """Return whether an EOF is all that the source has, which costs nothing."""
        try:
            return not self.source.recv(1, socket.MSG_PEEK)
        except OSError:
            return False

    def granted(self, now: float) -> None:
        """Read, because a meter has granted something."""
        if self.owner.is_closed or self.ended or not self.budget.is_waiting:
            return self.budget.leave(self)
        self.budget.is_waiting = False
        self.work.throttled += now - self.budget.since
        if self.reads & PRI & ~max(self.mask, 0):  # it is not waited for any more, so it has come
            self.copy_to_mark(now)
        else:
            self.handler(IN, now)
        if self.owner.is_closed or self.budget.is_waiting or self.ended or self.handler == self.discard:
            return
        if self.pending is None and self.pipe is None:
            # After such a read there is more: it waits for its next turn without an event, which would only park it
            # again. That saves a turn of the loop and two system calls.
            mask = max(self.mask, 0) | self.reads
            if self.budget.is_exhausted and not self.budget.ask(self, now):
                mask &= ~READ
            self.set_interest(mask)

    def copy(self, event: int, now: float) -> None:
        """Copy as many bytes as are granted."""
        if event != IN:
            self.on_other_event(event, now)
        elif self._may_read(now):
            super().copy(IN, now)
            self._settle()

    def copy_to_the_end(self, now: float) -> None:
        """Copy as before: the last bytes and the end cannot be read in one step."""
        self.copy(IN, now)

    def splice(self, event: int, now: float) -> None:
        """Move as many bytes as are granted inside the kernel."""
        if event != IN:
            return self.on_other_event(event, now)
        if not self._may_read(now):
            return
        pipes = self.work.pipes
        assert pipes is not None
        pipe = pipes.idle[-1] if pipes.idle else pipes.make()
        if pipe is None:
            self.use(self.copy)
            return self.copy(event, now)
        budget = self.budget
        try:
            size = os.splice(self.source.fileno(), pipe.writer, min(pipe.size, budget.allowance), None, None, _NONBLOCK)
        except OSError as error:
            self._settle()
            if error.errno == errno.EINVAL:
                return self.never_splice(event, now)
            return self.source_failed(error, now)
        budget.spend(self, size)
        if not size:
            return self.end(now)
        self._splice_on(pipe.reader, size, now)

    def _splice_on(self, reader: int, size: int, now: float) -> None:
        """Move what is in the last idle pipe to the sink, as :meth:`Flow.splice` does.

        A method that both call would cost each splice of any flow 540 instructions, one in twenty.
        """
        pipes = self.work.pipes
        assert pipes is not None
        self.moved += size
        self.last = now
        try:
            sent = os.splice(reader, self.sink.fileno(), size, None, None, _NONBLOCK)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.moved -= size
            pipes.destroy(pipes.idle.pop())
            return self.sink_failed(now)
        if sent != size:
            self.moved -= size - sent
            self.pipe, self.piped = pipes.idle.pop(), size - sent
            self.block()
        if size < _SMALL:
            self.small(now)
        elif self.streak:
            self.streak = 0
        elif not self.owner.is_bulk:
            self.owner.set_bulk(True, now)

    def _settle(self) -> None:
        """Give back what was granted and not read."""
        if self.budget.allowance:
            self.budget.spend(self, 0)

    def full(self, size: int) -> None:
        """Count a large read; unlike that of another flow, the next ones are no larger."""
        super().full(size)
        self.reader = self

    def pass_on_rest(self) -> None:
        """Pass on the bytes that have arrived: what the budget does not have is counted and waited for later."""
        self.budget.is_lifted = True
        super().pass_on_rest()

    def use(self, handler: Callable[[int, float], None]) -> None:
        """Use another handler from now on; what is dropped costs nothing."""
        if handler == self.discard:
            self.budget.leave(self)
            self.reader = self.source
        super().use(handler)

    def release(self, own: bool) -> None:
        """Leave the loop and the meters."""
        self.budget.leave(self)
        self.reader = self.source  # no longer itself, so that it is freed at once
        super().release(own)


class MeteredFlow(_Metered):
    """A metered flow out of a socket."""

    __slots__ = ("budget",)


class MeteredSessionFlow(_Metered, SessionFlow):
    """A metered flow out of a session, which may have bytes that no event announces."""

    __slots__ = ("budget",)

    def __init__(self, owner: FlowPair, work: Workspace, source: socket.SocketType, sink: socket.SocketType) -> None:
        super().__init__(owner, work, source, sink)
        self.handler = self.on_event

    @property
    def is_parked(self) -> bool:  # type: ignore[override]
        """True while a meter has to call this flow."""
        return self.budget.is_waiting

    def _is_at_end(self) -> bool:
        """Return ``False``: a look at the transport does not tell what the session has."""
        return False
