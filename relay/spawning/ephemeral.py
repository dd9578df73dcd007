"""A tunnel for the sockets of one program that closes itself when it is unused."""

from __future__ import annotations

import threading
from typing import Any

from ..engine.connection import Connection
from ..engine.records import ConnectionState
from ..engine.worker_tunnel import WorkerRelayThread, WorkerTunnel
from ..eventloop.loop import Timer
from ..eventloop.sockets import unread
from ..streams.checks import check_time
from ..streams.protocols import Listener, MakeSend

_QUIET = 0.5  # seconds without a byte from a client after which it is taken to have said all


class EphemeralTunnel(WorkerTunnel):
    """A tunnel that closes itself when it is unused, and that lets every connection finish when it is closed.

    A plain tunnel that drains waits for its clients to end their connections. Here a client may never do that: a ØMQ
    socket keeps its connection. So an open connection also ends when its client has sent nothing for half a second and
    the target's system has received everything: the target then reads EOF. A connection that its client has ended may
    take all the time that it needs to carry its last bytes to the target.

    :param receive: and the others, and the errors: as for :class:`WorkerTunnel`.
    :param unused: seconds without any connection, also after the last one has gone, after which it ends; ``None`` for
        never.
    """

    def __init__(self, receive: Listener, make_send: MakeSend, *, unused: float | None = None, **options: Any) -> None:
        self._unused = check_time("timeout", unused)
        super().__init__(receive, make_send, **options)

    def _start(self, *arguments: Any) -> EphemeralRelayThread:
        self._ephemeral = EphemeralRelayThread(
            self._unused, *self._as_worker, *arguments, outlets=self._outlets, paused=self._is_paused_at_first
        )
        return self._ephemeral

    @property
    def expired(self) -> bool:
        """``True`` if it has ended because it was unused."""
        return self._ephemeral.expired

    def wait_for_client(self, timeout: float) -> bool:
        """Wait until a client has connected.

        :param timeout: seconds.
        :returns: ``False`` if none has in time.
        """
        return self._ephemeral.used.wait(timeout)


class EphemeralRelayThread(WorkerRelayThread):
    """The relay thread of such a tunnel.

    :param unused: seconds without any connection after which it ends.
    :param arguments: as for :class:`WorkerRelayThread`, and so are the keywords.
    """

    def __init__(self, unused: float | None, *arguments: Any, **keywords: Any) -> None:
        self._unused = unused
        self.used = threading.Event()
        self.expired = False
        super().__init__(*arguments, **keywords)

    def on_start(self, now: float) -> None:
        """Give the first client its time."""
        self._alone = Timer(self.loop.timers, self._expire)
        self._quiet = Timer(self.loop.timers, self._end_quiet_ones)
        self._expect_client(now)

    def on_busy(self) -> None:
        """The tunnel is used."""
        self._alone.stop()
        self.used.set()

    def on_idle(self, now: float) -> None:
        """Give the next client its time after the last connection."""
        self._expect_client(now)

    def on_close(self, drain: float | None, now: float) -> None:
        """Look for quiet connections while the tunnel drains."""
        if drain != 0:
            self._quiet.start(now + _QUIET, now)

    def _expect_client(self, now: float) -> None:
        if self._unused is not None and not self.is_closing:
            self._alone.start(now + self._unused, now)

    def _expire(self, now: float) -> None:
        self.expired = True
        self._close(0.0)

    def _end_quiet_ones(self, now: float) -> None:
        # A copy: a connection that is closed leaves the set.
        for connection in list(self._slots.connections):
            if connection.state is ConnectionState.OPEN and _is_quiet(connection, now - _QUIET):
                connection.close("closed", now, clean_target=True)
        if self._slots.connections:
            self._quiet.start(now + _QUIET, now)


def _is_quiet(connection: Connection, since: float) -> bool:
    """Return true if the client has sent nothing since then and none of its bytes wait, here or for the target."""
    flows = connection.flows
    if flows is None:
        return False
    up = flows.upstream
    is_still = max(connection.summary.opened, up.last) <= since and up.pending is None and up.pipe is None
    # The kernels of both sides are asked: bytes may wait in the client's socket unread, or be sent and not
    # acknowledged.
    return is_still and not unread(connection.client) and not flows.unsent()[1]
