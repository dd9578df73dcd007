"""The acceptor of a worker: it accepts at a socket that other workers have too, and balances the clients among them.

A worker that has clearly more connections than another one passes the client that it has accepted to that one, over a
pair of Unix sockets (``SCM_RIGHTS``, unix(7)). The parent process has both ends of each pair, too: clients that wait in
one whose receiver has died are taken by its successor. If a worker has not taken a client for two seconds, though it
takes clients, the one that has passed it reports that: the receiver may be stuck, and perhaps relay asks it nothing.

All workers wait for the same socket, but the kernel wakes only one of those that are idle for a client
(``EPOLLEXCLUSIVE``, epoll_ctl(2)). With a limit of connections it wakes all: one that was woken and is at its quota by
then would not accept, and the others would not know.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import select
import socket
import struct
import time
from array import array
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ..eventloop.loop import Timer
from ..eventloop.poller import IN
from ..streams.listener import TunnelListener
from .acceptor import SocketAcceptor
from .worker_table import CHANCE, Passed, WorkerTable

if TYPE_CHECKING:  # parts of one machine name each other
    from .worker_tunnel import WorkerRelayThread

_EXCLUSIVE = getattr(select, "EPOLLEXCLUSIVE", 0)
_BATCH = 16  # clients passed on, or taken, in one turn
_TAKEN = 2.0  # seconds for a worker to take a client that was passed to it
_LOOK = 64  # accepts between two looks at how fast connections end
_CHURN = 0.25  # connections that end, for each that comes, if most are short
_HEAD = struct.Struct("<HQ")  # the worker that passes the client, and the number of the client
_LONGEST = 512  # bytes of a message; an address takes less
_FLAGS = socket.MSG_DONTWAIT | getattr(socket, "MSG_CMSG_CLOEXEC", 0)


class WorkerPlace(NamedTuple):
    """The place of this process among the workers of a tunnel. Its tunnel closes it."""

    number: int
    table: WorkerTable
    sockets: Sequence[socket.socket] = ()
    """The incoming one, and the outgoing ones; none if this worker is the only one."""

    @property
    def incoming(self) -> socket.socket:
        """The socket that gets the clients that others pass to this worker."""
        return self.sockets[0]

    @property
    def outgoing(self) -> Sequence[socket.socket]:
        """Those to which this worker passes clients, by the numbers of their receivers."""
        return self.sockets[1:]

    def close(self) -> None:
        """Close all of it."""
        self.table.close()
        for sock in self.sockets:
            sock.close()


class _Churn:
    """The speed at which the connections of a worker end, compared with that at which they come.

    :param table: the counts.
    :param number: of the worker.
    """

    __slots__ = ("is_fast", "_table", "_number", "_counts", "_gone_share")

    def __init__(self, table: WorkerTable, number: int) -> None:
        self.is_fast = False
        self._table, self._number = table, number
        self._counts = table.come_and_gone(number)
        self._gone_share = 0.0  # connections that ended, for each that came

    def look(self) -> None:
        """Look at the counts since the last look."""
        (come_before, gone_before), self._counts = self._counts, self._table.come_and_gone(self._number)
        come, gone = self._counts
        # Smoothed, as many may come at once, and end at once.
        self._gone_share += (min(1.0, (gone - gone_before) / max(1, come - come_before)) - self._gone_share) / 2
        self.is_fast = self._gone_share > _CHURN


class _Passed:
    """The clients that were passed to other workers, until it is known that these take them.

    :param owner: the relay thread.
    :param table: the counts.
    :param number: of this worker.
    """

    __slots__ = ("_owner", "_table", "_number", "_last", "_due", "_timer")

    def __init__(self, owner: WorkerRelayThread, table: WorkerTable, number: int) -> None:
        self._owner, self._table, self._number = owner, table, number
        self._last: dict[int, int] = {}  # by worker: the number of the last client since the timer was started
        self._due: dict[int, int] = {}  # the same at its start
        self._timer = Timer(owner.loop.timers, self._look)

    def add(self, passed: Passed) -> None:
        """Take note of a client that was passed."""
        self._last[passed.worker] = passed.serial
        if not self._due:
            self._start(time.monotonic())

    def close(self) -> None:
        """Look no more."""
        self._timer.stop()

    def _start(self, now: float) -> None:
        self._due, self._last = self._last, {}
        if self._due:
            self._timer.start(now + _TAKEN, now)

    def _look(self, now: float) -> None:
        for worker, serial in self._due.items():
            if self._table.is_late(self._number, worker, serial):
                self._owner.report_late(worker)
                self._last.setdefault(worker, serial)  # and look again
        self._start(now)


class SharedAcceptor(SocketAcceptor):
    """Accepts in the relay thread, at a socket that other processes have too.

    :param owner: the relay thread.
    :param listener: as for :class:`SocketAcceptor`.
    :param place: of this process.
    """

    def __init__(self, owner: WorkerRelayThread, listener: TunnelListener, place: WorkerPlace) -> None:
        super().__init__(owner, listener)
        self._worker = owner
        self._place = place
        self._number = place.number
        self._take = self._accept
        self._accept = self._accept_own
        self._incoming = place.incoming.fileno()
        self._churn = _Churn(place.table, place.number)
        self._passed = _Passed(owner, place.table, place.number)
        self._slack = 0  # the most connections more than another worker that are no reason to look closely
        self._until_look = _LOOK
        self._is_even: Callable[[int, int], bool] = place.table.is_even
        if self._upgrades is not None:  # of clients that shake hands each is looked at closely: no load has them yet
            self._is_even = lambda number, slack: False
            self._upgrades.on_handshakes = functools.partial(place.table.store_handshakes, place.number)
        family, kind, protocol = int(self._receive.family), int(self._receive.type), self._receive.proto
        self._made = family, kind, protocol
        place.incoming.setblocking(False)

    @property
    def is_taking(self) -> bool:
        """True while other workers may pass clients to this one."""
        return self._incoming in self._owner.loop.handlers

    def take_backlog(self, now: float) -> None:
        """Accept the clients that have connected already, also those that wait here."""
        super().take_backlog(now)
        if self.is_taking:
            self._received(IN, now)

    def close(self) -> None:
        """Accept no client any more, after those that other workers have passed to this one."""
        self.listen(False)
        self._passed.close()
        # After the listener: others pass no client once they see that this worker takes none, and those on the way are
        # here.
        self._take_passed(time.monotonic())
        super().close()

    def _try_again(self, now: float) -> None:
        self._mask = IN | _EXCLUSIVE if self._worker.tunnel_limit < 0 and self._owner.loop.closing_forgets else IN
        super()._try_again(now)
        if self._descriptor in self._owner.loop.handlers and not self.is_taking:
            self._owner.loop.watch(self._incoming, IN, self._received)
            self._worker.set_taking(True)

    def _forget(self) -> None:
        super()._forget()
        if self.is_taking:
            self._owner.loop.forget(self._incoming)
            self._worker.set_taking(False)

    def _accept_own(self) -> tuple[socket.SocketType, Any]:
        """Accept a client that this worker keeps.

        :raises BlockingIOError: if there is none.
        """
        accepted = self._take()
        self._until_look -= 1
        if not self._until_look:
            self._look()
        if self._is_even(self._number, self._slack):  # the common case, in as few steps as possible
            return accepted
        for _ in range(_BATCH):
            found = self._place.table.better(self._number, self._worker.tunnel_limit, churning=self._churn.is_fast)
            if found is None or not self._pass_on(accepted, found):
                return accepted
            accepted = self._take()
        return accepted

    def _look(self) -> None:
        """Find out how many connections more than another worker are no reason to pass a client."""
        self._until_look = _LOOK
        self._churn.look()
        self._slack = CHANCE if self._churn.is_fast else 0

    def _pass_on(self, accepted: tuple[socket.SocketType, Any], to: Passed) -> bool:
        """Pass a client to another worker; return whether that was possible."""
        client, peer = accepted
        table, number = self._place.table, self._number
        text = json.dumps(peer).encode() if isinstance(peer, tuple) else b'""'
        # Stored first: were this process killed in between, the receiver would seem to have one more, never one less.
        table.store_sent(number, to.worker, to.serial)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [client.fileno()]))]
        try:
            self._place.outgoing[to.worker].sendmsg([_HEAD.pack(number, to.serial), text], rights, socket.MSG_DONTWAIT)
        except OSError:  # too many wait there already
            table.store_sent(number, to.worker, to.serial - 1)
            return False
        # Only after the send: the message holds a copy of the descriptor from then on.
        client.close()
        self._passed.add(to)
        return True

    def _received(self, event: int, now: float) -> None:
        """Take clients that other workers have passed to this one."""
        for _ in range(_BATCH):
            if not self._owner.has_spare_fd():
                self._exhausted(now)
                return
            try:
                if not self._take_one(now):
                    self._exhausted(now)
                    return
            except BlockingIOError:
                return
            if not self.listening:
                return

    def _take_passed(self, now: float) -> None:
        """Take all clients that wait here, as far as there is room: no other worker passes one any more."""
        with contextlib.suppress(BlockingIOError):
            while self._worker.has_room() and self._owner.has_spare_fd() and self._take_one(now):
                pass

    def _take_one(self, now: float) -> bool:
        """Take one client; return whether a descriptor was left for it.

        :raises BlockingIOError: if there is none.
        """
        data, rights, _, _ = self._place.incoming.recvmsg(_LONGEST, socket.CMSG_SPACE(4), _FLAGS)
        source, count = _HEAD.unpack_from(data)
        # Also without a descriptor: the sender must not count a client as on its way for ever.
        self._place.table.store_taken(self._number, source, count)
        if not rights:  # the kernel has closed it
            self._owner.accept_failed(OSError(errno.EMFILE, os.strerror(errno.EMFILE)))
            return False
        peer = json.loads(data[_HEAD.size :])
        client = socket.SocketType(*self._made, array("i", rights[0][2])[0])
        client.setblocking(False)
        peer = tuple(peer) if isinstance(peer, list) else peer
        if self._hand is None:
            self._owner.accepted(client, None, peer, now)
        else:
            self._hand(client, peer, now)
        return True
