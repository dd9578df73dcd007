"""The descriptors that the workers of a tunnel share, and that the program keeps open while workers come and go."""

from __future__ import annotations

import os
import socket

from ..engine.worker_table import WorkerTable

# Kinds that keep the borders of messages: each has one client with its descriptor, and a reader takes whole ones.
_KIND = getattr(socket, "SOCK_SEQPACKET", socket.SOCK_DGRAM)


class SharedDescriptors:
    """A listening socket, the counts of the workers, and a pair of sockets to each of them.

    The clients that wait in the backlog, and those that are on their way to a worker, outlive every worker.

    :param receive: the listening socket, if the workers share one.
    :param workers: how many there are.
    :raises OSError: if the system has no descriptor left; ``receive`` stays with the caller then.
    """

    def __init__(self, receive: socket.socket | None, workers: int) -> None:
        self._receive = receive
        self._timeout = None if receive is None else receive.gettimeout()
        if receive is not None:
            receive.setblocking(False)  # for all workers, so that no accept of theirs ever blocks
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._memory = WorkerTable.make(workers)
        self._accepted = 0  # once the table is closed: its memory is gone then
        self._is_open = True
        try:
            self._table = WorkerTable(self._memory, workers)
            for _ in range(workers):
                self._pairs.append(socket.socketpair(socket.AF_UNIX, _KIND))
        except BaseException:
            self._close_own()
            raise

    def of_worker(self, index: int) -> list[int]:
        """Return the descriptors for a worker; see :class:`relay.spawning.worker.HostedTunnel`."""
        found = [self._memory, self._pairs[index][0].fileno(), *(pair[1].fileno() for pair in self._pairs)]
        return found if self._receive is None else [*found, self._receive.fileno()]

    def accepted(self) -> int:
        """Return the number of connections that all workers have ever accepted."""
        return sum(self._table.accepted()) if self._is_open else self._accepted

    def loads(self) -> list[int]:
        """Return the numbers of open connections of the workers; none after the end."""
        return self._table.loads() if self._is_open else []

    def bury(self, index: int) -> int:
        """Take note of the death of a worker; return the number of connections that ended with it."""
        return self._table.bury(index) if self._is_open else 0

    def release_listener(self) -> None:
        """Leave the listening socket to the caller, in the mode that it had."""
        receive, self._receive = self._receive, None
        if receive is not None:
            receive.settimeout(self._timeout)

    def close_listener(self) -> None:
        """Close the program's copy of the listening socket. Idempotent."""
        if self._receive is not None:
            self._receive.close()

    def close(self) -> None:
        """Close all of it. Idempotent."""
        if self._is_open:
            # The count stays after the shared memory is gone: figures of a closed tunnel may still be asked for.
            self._accepted, self._is_open = self.accepted(), False
            self.close_listener()
            self._table.close()
            self._close_own()

    def _close_own(self) -> None:
        os.close(self._memory)
        for pair in self._pairs:
            for sock in pair:
                sock.close()
