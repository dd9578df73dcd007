"""A tunnel that several processes relay, its workers, as one of them sees it."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import Any

from ..streams.listener import TunnelListener
from ..streams.protocols import Listener, MakeSend
from ..streams.stream import Stream
from .acceptor import Acceptor, make_acceptor
from .connection import Connection
from .managed_tunnel import ManagedTunnel
from .relay_thread import RelayThread
from .shared_acceptor import SharedAcceptor, WorkerPlace
from .worker_table import AWAY, quota


class WorkerTunnel(ManagedTunnel):
    """The part of a tunnel that runs in one worker.

    :param receive: as for :class:`~relay.Tunnel`. All workers have the same listening socket.
    :param make_send: and the others: as for :class:`.ManagedTunnel`. ``nconnect`` is the limit of the whole tunnel.
    :param place: of this worker; the tunnel closes it at its end.
    :param on_late: called in the relay thread with the number of another worker that does not take a client which was
        passed to it; must not block.
    :raises TypeError: as for :class:`~relay.Tunnel`.
    :raises ValueError: as for :class:`~relay.Tunnel`.
    :raises OSError: as for :class:`~relay.Tunnel`. ``place`` stays with the caller then, too.
    """

    def __init__(
        self,
        receive: Listener,
        make_send: MakeSend,
        *,
        place: WorkerPlace,
        on_late: Callable[[int], object] = lambda _: None,
        **options: Any,
    ) -> None:
        self._as_worker = place, on_late
        super().__init__(receive, make_send, **options)

    def start_close(self, drain: float | None, spread: float = 0.0) -> None:
        """Close it as :meth:`close` does, but do not wait.

        :param drain: seconds that connections may take to finish first; ``None`` for no limit.
        :param spread: seconds before the end of ``drain`` over which they are reset one after the other.
        """
        self._relay.start_close(drain, spread=spread)

    def take_backlog(self) -> None:
        """Accept the clients that wait at the listening socket, as far as there is room, if it accepts clients.

        The kernel wakes one worker for a client. If that one dies before it accepts, no other one is woken. Does not
        wait.
        """
        assert isinstance(self._relay, WorkerRelayThread)
        self._relay.loop.call(self._relay.take_backlog)

    def turn(self) -> None:
        """Wait until its loop has turned, for a watchdog."""
        self._relay.run_in_thread(lambda: None)

    def _start(self, *arguments: Any) -> WorkerRelayThread:
        return WorkerRelayThread(*self._as_worker, *arguments, outlets=self._outlets, paused=self._is_paused_at_first)


class WorkerRelayThread(RelayThread):
    """The relay thread of such a tunnel.

    :param place: of this worker.
    :param on_late: as for :class:`WorkerTunnel`.
    :param arguments: as for :class:`RelayThread`, and so are the keywords.
    """

    def __init__(self, place: WorkerPlace, on_late: Callable[[int], object], *arguments: Any, **keywords: Any) -> None:
        self._place = place
        self._on_late = on_late
        self._number = place.number
        self._table = place.table
        self._away = AWAY  # what is added to the load: 0 while other workers may pass clients to this one
        super().__init__(*arguments, **keywords)

    def _set_limit(self, nconnect: int) -> None:
        self._limit = nconnect
        if (acceptor := getattr(self, "_acceptor", None)) is not None:
            acceptor.listen(False)  # it waits for the socket in another way if there is a limit
        super()._set_limit(quota(nconnect, self._table.workers, self._number))

    def make_acceptor(self, receive: TunnelListener) -> Acceptor:
        """Return the acceptor for this kind of listener, among those of the other workers."""
        if self._table.workers > 1 and receive.listening is not None:
            return SharedAcceptor(self, receive, self._place)
        return make_acceptor(self, receive)

    @property
    def tunnel_limit(self) -> int:
        """The limit of the whole tunnel; −1 for none."""
        return self._limit

    def has_room(self) -> bool:
        """Return whether another client may be accepted."""
        return self._has_room()

    def take_backlog(self) -> None:
        """Accept the clients that wait at the listening socket."""
        if isinstance(self._acceptor, SharedAcceptor):
            self._acceptor.take_backlog(time.monotonic())

    def report_late(self, worker: int) -> None:
        """Report that a worker does not take a client."""
        self._on_late(worker)

    def set_taking(self, taking: bool) -> None:
        """Tell the other workers whether they may pass clients to this one."""
        self._away = 0 if taking else AWAY
        self._table.store_load(self._number, self._away + self.count)

    def admit(
        self, client: socket.SocketType, stream: Stream | None, peer: Any, now: float, count: int = 1
    ) -> Connection:
        """Register a connection here and, with those on their way, in the table of the workers."""
        self._table.admit(self._number, self._away + len(self._slots.connections) + 1)
        return super().admit(client, stream, peer, now, count)

    def connection_over(self, connection: Connection) -> None:
        """Count a connection that has ended, and tell the other workers."""
        super().connection_over(connection)
        self._table.store_load(self._number, self._away + len(self._slots.connections))

    def tear_down(self) -> None:
        """Close all that the thread has used."""
        super().tear_down()
        self._place.close()
