"""The worker processes of a command, in which the tunnels run whose plans say so."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ..addresses.hops import Listen
from ..addresses.https import WITH_CERTIFICATE
from ..addresses.values import ListenAtPort, has_mptcp
from ..api.urls import listener
from ..engine.records import ConnectionRecord
from ..transports.resume.figures import BUDGET

if TYPE_CHECKING:  # a command without workers starts none
    import socket

    from ..carriers.listing import CarrierStatus
    from ..spawning.pool import WorkerPool
    from ..spawning.pool_tunnel import PoolTunnel
    from ..spawning.recipes import MakeListener
    from ..spawning.worker_slot import WorkerStatus
    from ..streams.listener import TunnelListener
    from ..transports.resume.figures import ResumeFigures
    from ..transports.tcp import Inherited

logger = logging.getLogger("relay.cli")

OnEnded = Callable[[str, ConnectionRecord], object]


def listen_for_workers(address: Listen, inherited: Inherited | None = None) -> Any:
    """Listen where workers accept: nothing in this process takes a client.

    :param address: to listen on; one of this machine.
    :param inherited: as for :func:`relay.api.urls.listener`.
    :raises OSError: as for :func:`relay.listen`.
    """
    if isinstance(address, ListenAtPort) and not isinstance(address, WITH_CERTIFICATE):
        from ..transports.tcp import listen_tcp

        return listen_tcp(address.host, address.port, inherited=inherited)
    if not isinstance(address, WITH_CERTIFICATE):
        return listener(address, inherited=inherited)
    from ..transports.tls.listener import SharedTLSListener

    host, port = address.host, address.port
    return SharedTLSListener(
        host,
        port,
        cert=address.cert,
        key=address.key,
        client_ca=address.client_ca,
        groups=address.groups,
        mptcp=has_mptcp(address),
        inherited=inherited,
    )


class WorkerProcesses:
    """The pool of a command, which starts with the first tunnel in it. Every method may be called from any thread.

    :param size: the number of workers.
    """

    def __init__(self, size: int = 1) -> None:
        self.size = size
        """The number of workers; it can grow until the pool starts."""
        self._lock = threading.Lock()
        self._pool: WorkerPool | None = None
        self._on_ended: OnEnded | None = None
        self._is_closed = False

    @property
    def are_running(self) -> bool:
        """True once they have been started."""
        return self._pool is not None

    def check(self, workers: int) -> None:
        """Check that a tunnel can have a number of workers.

        :raises ValueError: if fewer are running.
        """
        with self._lock:
            if self._pool is None:
                self.size = max(self.size, workers)
            elif workers > self.size:
                raise ValueError(f"workers: {self.size} are running, got {workers}; relay ctl upgrade starts more")

    def open(
        self, receive: TunnelListener, values: object, workers: int, options: dict[str, Any], *, paused: bool = False
    ) -> PoolTunnel:
        """Relay between a listener and what the values say.

        :param receive: the listener, of which the workers share the socket; the tunnel owns it from now on.
        :param values: that :func:`relay.daemon.worker_processes.make` needs in each worker, which can be pickled.
        :param workers: how many workers relay it.
        :param options: of the :class:`~relay.Tunnel`.
        :param paused: whether it accepts no client at first.
        :raises OSError: if the system has no room left; the listener is closed then.
        :raises RuntimeError: if it has no thread left, or a worker does not start.
        """
        import base64
        import pickle

        from ..spawning.recipes import Recipe

        listening = receive.listening
        assert listening is not None, "only a listener of this machine has workers"
        try:
            pool = self._running()
            recipe = Recipe(
                "relay.daemon.worker_processes:make",
                {"values": base64.b64encode(pickle.dumps(values)).decode(), "resume_memory": str(BUDGET.limit)},
            )
            return pool.open(recipe, listening, options, workers=workers, paused=paused)
        except BaseException:
            receive.close()
            raise

    def workers(self) -> Sequence[WorkerStatus]:
        """Return what is known of each worker; none before the start."""
        return self._pool.workers() if self._pool is not None else ()

    def carriers(self) -> Sequence[CarrierStatus]:
        """Return the carriers of the workers; none before the start. Waits for their answers."""
        return self._pool.carriers() if self._pool is not None else ()

    def resumes(self) -> Sequence[ResumeFigures]:
        """Return the figures of their resumable streams; none before the start. Waits for their answers."""
        return self._pool.resumes() if self._pool is not None else ()

    def share_secrets(self) -> None:
        """Wait until they know the variables that hold secrets; see :meth:`WorkerPool.share_secrets`."""
        if self._pool is not None:
            self._pool.share_secrets()

    def log_connections(self, on_ended: OnEnded | None) -> None:
        """Call a function with each connection that has ended in a worker; see :meth:`WorkerPool.log_connections`."""
        with self._lock:
            self._on_ended = on_ended
            if self._pool is not None:
                self._pool.log_connections(on_ended)

    def close(self) -> None:
        """End the workers, and with them their tunnels. Idempotent."""
        with self._lock:
            self._is_closed = True
        if self._pool is not None:
            self._pool.close()

    def _running(self) -> WorkerPool:
        """Return the pool; start it before."""
        from ..spawning.pool import WorkerPool

        with self._lock:
            # A tunnel that opens on its own thread may come here after the end has begun.
            if self._is_closed:
                raise RuntimeError("relay is ending; start it again")
            if self._pool is None:
                # With the lock held, although it takes a second: two tunnels that open side by side must share one
                # pool.
                self._pool = WorkerPool(self.size)
                logger.info(
                    "%d workers run: processes %s", self.size, ", ".join(str(one.pid) for one in self.workers())
                )
                if self._on_ended is not None:
                    self._pool.log_connections(self._on_ended)
            return self._pool


def make(receive: socket.socket, *, values: str, resume_memory: str = "") -> tuple[Any, MakeListener]:
    """Make the factory and the listener of a tunnel, in a worker.

    :param receive: the socket that listens already.
    :param values: the address of the listener, the target and the hops to it, pickled, in Base64. They come from the
        command, over a socket that no other program has.
    :param resume_memory: bytes of all resumable streams; empty for the usual ones.
    :raises OSError: if a file cannot be read; the listener raises it, too.
    :raises ValueError: if its content is wrong; the listener raises it, too.
    """
    import base64
    import pickle

    from ..api.urls import dialer
    from ..spawning.recipes import listen_at

    if resume_memory:
        BUDGET.limit = int(resume_memory)
    where, end, via = pickle.loads(base64.b64decode(values))  # noqa: S301  (see above)
    return dialer(via, end), lambda _: listen_at(where, receive)
