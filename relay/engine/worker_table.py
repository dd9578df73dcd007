"""The counts of one tunnel that several processes relay, its workers, in memory that they share.

Each cell is 8 aligned bytes with one writer, so that a store needs no lock, and a reader sees the old or the new value.
The cells, for ``n`` workers:

- ``load[w]``, by worker ``w``: its open connections; with :data:`AWAY` added while it takes no client. The parent
  process writes it when the worker has died.
- ``accepted[w]``, by worker ``w``: the connections that all processes in this place have admitted. It never decreases.
- ``sent[w][s]``, by worker ``s``: the number of the last client that it has passed to worker ``w``.
- ``sent[w][w]``, by worker ``w``: its clients that shake hands and so are no connections yet; ``taken[w][w]`` is 0.
- ``taken[w][s]``, by worker ``w``: the number of the last client from worker ``s`` that it has taken.

So ``load[w]`` and the differences between ``sent[w]`` and ``taken[w]`` are what worker ``w`` has and gets. A worker
that is killed between its store to ``sent`` and the send leaves a difference of one too many. It only makes the
receiver look busier, and the next client that is passed corrects it, as its number is stored, not added.

**Why a limit of connections is exact.** The limit of the tunnel is split into one quota for each worker, and their sum
is the limit (:func:`quota`). A worker counts its own connections in its own memory, and accepts only below its quota.
So there are never more than the limit: nothing is shared, and nothing can be lost. All workers accept at one listening
socket, so a client waits only while every worker is at its quota: then as many as the limit allows are open. A worker
that is killed has freed its slots, and no others, because the kernel has closed its sockets before its parent process
learns of the death; its successor begins with none.
"""

from __future__ import annotations

import mmap
import operator
import os
import tempfile
from typing import NamedTuple

AWAY = 1 << 62
"""Added to the load of a worker that takes no client now."""

CHANCE = 32
"""While many connections are short, a worker with so many of them passes none on."""

_CELL = 8  # bytes
_APART = 4  # half of the connections beyond twice as many that are no reason to pass one while many are short
_MOST_LOOKS = 3  # workers that are looked at closely for one client


def quota(limit: int, workers: int, number: int) -> int:
    """Return the part of a limit that one worker has.

    :param limit: of the tunnel; −1 for no limit.
    :param workers: how many there are.
    :param number: of the worker, from 0.
    :returns: its limit, perhaps 0; −1 for no limit.
    """
    if limit < 0:
        return -1
    return limit // workers + (number < limit % workers)


class Passed(NamedTuple):
    """A decision to pass a client to another worker."""

    worker: int
    serial: int
    """The number of this client among those that this worker has passed to that one."""


# Places that a worker with a limit must have left, so that others pass clients to it: it may accept some itself before
# it takes one that was passed. That one would wait there for a place, though other workers have one.
_SPARE = 64


class WorkerTable:
    """The shared counts of one tunnel.

    :param descriptor: of the shared memory; :func:`make` makes it. It stays with the caller.
    :param workers: how many there are.
    """

    def __init__(self, descriptor: int, workers: int) -> None:
        self.workers = workers
        self._map = mmap.mmap(descriptor, _size(workers))
        self._cells = memoryview(self._map).cast("Q")
        self._loads = self._cells[:workers]
        self._accepted = self._cells[workers : 2 * workers]
        self._sent = self._cells[2 * workers : 2 * workers + workers**2]
        self._handshakes = self._sent[:: workers + 1]
        self._taken = self._cells[2 * workers + workers**2 :]

    @staticmethod
    def make(workers: int) -> int:
        """Return the descriptor of new shared memory, in which every worker is away; the caller owns it.

        :raises OSError: if the system has no descriptor left.
        """
        if hasattr(os, "memfd_create"):
            descriptor = os.memfd_create("relay-workers", os.MFD_CLOEXEC)
        else:
            with tempfile.TemporaryFile() as file:
                descriptor = os.dup(file.fileno())
        os.write(descriptor, AWAY.to_bytes(_CELL, "little") * workers)
        os.truncate(descriptor, _size(workers))
        return descriptor

    def close(self) -> None:
        """Release the memory. Idempotent."""
        for view in (self._loads, self._accepted, self._handshakes, self._sent, self._taken, self._cells):
            view.release()
        self._map.close()

    # -- the worker with this number --------------------------------------------------------------------------------

    def store_load(self, worker: int, load: int) -> None:
        """Store the load of a worker: its open connections, plus :data:`AWAY` if it takes no client now."""
        self._loads[worker] = load

    def admit(self, worker: int, load: int) -> None:
        """Count a connection that a worker admits, and store its load with it."""
        # The load first: read between the two, the worker looks busier than it is, and never less.
        self._loads[worker] = load
        self._accepted[worker] += 1

    def is_even(self, worker: int, slack: int) -> bool:
        """Return whether a worker that takes clients keeps one, whatever :meth:`better` would find.

        :param slack: it has at most so many connections, or at most half as many more than the least loaded worker.
        """
        # One call: a loop over the cells in Python costs more than all the rest of an accept.
        loads = self._loads.tolist()
        return loads[worker] <= slack or loads[worker] <= min(loads) + (slack >> 1)

    def better(self, worker: int, limit: int, *, churning: bool = False) -> Passed | None:
        """Return the worker that a client is passed to, or ``None`` if the worker that has accepted it keeps it.

        A worker keeps a client unless it has an eighth more connections than the least loaded one. If many connections
        are short, it keeps one unless it has more than 32, and twice as many and 8 more: the numbers vary by chance
        then, a difference soon ends by itself, and to pass a client costs both workers several times as much as to
        accept it. So of 50 connections or more, one of two workers has at most 75 % from then on.

        :param worker: the one that has accepted it.
        :param limit: of the tunnel, −1 for none.
        :param churning: whether many connections are short.
        """
        loads = [*map(operator.add, self._loads.tolist(), self._handshakes.tolist())]
        mine = loads[worker] & ~AWAY
        most = mine - (mine >> 3)
        if churning:
            most = mine // 2 - _APART if mine > CHANCE else 0
        if most <= min(loads):
            return None
        return self._least(worker, loads, most, limit)

    def store_sent(self, worker: int, to: int, count: int) -> None:
        """Store the number of the last client that was passed to another worker."""
        self._sent[to * self.workers + worker] = count

    def store_taken(self, worker: int, source: int, count: int) -> None:
        """Store the number of the last client that was taken from another worker."""
        self._taken[worker * self.workers + source] = count

    def store_handshakes(self, worker: int, count: int) -> None:
        """Store the number of clients that shake hands in a worker."""
        self._handshakes[worker] = count

    def is_late(self, worker: int, to: int, serial: int) -> bool:
        """Return whether another worker, which takes clients, has not taken one that was passed to it.

        :param worker: the one that has passed it.
        :param to: the one that it was passed to.
        :param serial: the number of the client.
        """
        return self._loads[to] < AWAY and self._taken[to * self.workers + worker] < serial

    def _least(self, worker: int, loads: list[int], most: int, limit: int) -> Passed | None:
        """Return the worker with the least load, with the clients on their way to it, if that is less than ``most``."""
        count = self.workers
        for other in sorted(range(count), key=loads.__getitem__)[:_MOST_LOOKS]:
            row = slice(other * count, (other + 1) * count)
            load = self._loads[other] + sum(self._sent[row]) - sum(self._taken[row])
            room = quota(limit, count, other)
            if load < most and (room < 0 or load + _SPARE < room):
                return Passed(other, self._sent[other * count + worker] + 1)
        return None

    # -- the parent -------------------------------------------------------------------------------------------------

    def bury(self, worker: int) -> int:
        """Take note of the death of a worker; return the number of connections that ended with it."""
        # Before it is overwritten; the worker is dead, so that this process is the only writer.
        connections = self._loads[worker] & ~AWAY
        self._loads[worker] = AWAY
        self.store_handshakes(worker, 0)
        return connections

    def loads(self) -> list[int]:
        """Return the numbers of open connections of all workers."""
        return [load & ~AWAY for load in self._loads]

    def come_and_gone(self, worker: int) -> tuple[int, int]:
        """Return the numbers of connections that were admitted in the place of a worker, and of those that ended."""
        accepted = self._accepted[worker]
        return accepted, accepted - (self._loads[worker] & ~AWAY)

    def accepted(self) -> list[int]:
        """Return the numbers of connections that were admitted in the places of all workers."""
        return self._accepted.tolist()


def _size(workers: int) -> int:
    return _CELL * (2 * workers + 2 * workers**2)
