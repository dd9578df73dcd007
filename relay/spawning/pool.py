"""A pool of worker processes that relay the tunnels of this program on several cores."""

from __future__ import annotations

import atexit
import concurrent.futures
import functools
import itertools
import os
import socket
import threading
import weakref
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from ..engine.records import ConnectionRecord
from .parent import ChildProcess, share_secrets
from .pool_tunnel import PoolTunnel
from .recipes import Recipe
from .wire import Message, to_carrier, to_record
from .worker_slot import ANSWER, WorkerSlot, WorkerStatus

if TYPE_CHECKING:
    from ..carriers.listing import CarrierStatus
    from ..transports.resume.figures import ResumeFigures

OnEnded = Callable[[str, ConnectionRecord], object]
AnyTunnel = TypeVar("AnyTunnel", bound=PoolTunnel)

_living: weakref.WeakSet[WorkerPool] = weakref.WeakSet()


class WorkerPool:
    """Worker processes, each of which relays a part of every tunnel that is opened in the pool.

    A worker that dies is replaced by another process, which gets its tunnels. So is one that does not answer for twelve
    seconds: it is killed; see :mod:`relay.spawning.worker_slot`. All methods may be called from any
    thread. In a forked child of the program the pool is closed, and stays with the program.

    :param workers: how many, checked by :func:`~relay.streams.checks.check_workers`.
    :param replaces: whether a worker that dies or does not answer has a successor. If not, there is one worker and one
        tunnel, and either ends with the other: see :class:`~relay.spawning.child_tunnel.ChildTunnel`.
    :raises RelayError: if a process does not start.
    :raises OSError: if the system has no room for it.
    :raises RuntimeError: if it has no thread left.
    """

    def __init__(self, workers: int, *, replaces: bool = True) -> None:
        self.replaces = replaces
        # Held while tunnels are opened in processes, and while these come and go. Re-entrant for a log handler
        # that calls the pool: a worker that does not answer is logged under it.
        self._lock = threading.RLock()
        self._tunnels: dict[int, PoolTunnel] = {}
        self._keys = itertools.count(1)
        self._on_ended: OnEnded | None = None
        self._slots = [WorkerSlot(number, self) for number in range(workers)]
        _living.add(self)
        try:
            for slot in self._slots:
                slot.start()
            for slot in self._slots:
                # All are started before the first is waited for: an interpreter takes a while to begin.
                slot.wait_for_start()
        except BaseException:
            self.close()
            raise

    def __len__(self) -> int:
        return len(self._slots)

    def workers(self) -> list[WorkerStatus]:
        """Return what is known of each worker."""
        return [slot.status() for slot in self._slots]

    def open(
        self,
        recipe: Recipe,
        receive: socket.socket | None,
        options: Mapping[str, Any],
        *,
        workers: int | None = None,
        paused: bool = False,
    ) -> PoolTunnel:
        """Open a tunnel, and wait until it listens.

        :param recipe: makes the listener and the factory in each worker.
        :param receive: the listening socket that the workers share; it belongs to the tunnel then. ``None`` if one
            worker makes the listener.
        :param options: of the :class:`~relay.Tunnel`; each of them, and the name.
        :param workers: how many workers relay it, at most; ``None`` for all.
        :param paused: whether it accepts no client at first.
        :raises Exception: what a worker raised; ``receive`` stays with the caller then.
        """
        hosts = self._slots[: workers if receive is not None else 1]
        tunnel = PoolTunnel(next(self._keys), hosts, recipe, receive, options)
        self._open(tunnel, paused=paused)
        return tunnel

    def open_only(
        self,
        kind: type[AnyTunnel],
        recipe: Recipe,
        receive: socket.socket | None,
        options: Mapping[str, Any],
    ) -> AnyTunnel:
        """Open the only tunnel, with which the pool ends; the pool also ends if that fails.

        :param kind: the class of the tunnel.
        :param recipe: and the others, and the errors: as for :meth:`open`.
        """
        try:
            hosts = self._slots[: None if receive is not None else 1]
            tunnel = kind(next(self._keys), hosts, recipe, receive, options)
            tunnel.own(self)
            self._open(tunnel)
        except BaseException:
            self.close()
            raise
        return tunnel

    def _open(self, tunnel: PoolTunnel, *, paused: bool = False) -> None:
        with self._lock:
            # Before it opens: a worker that answers at once must find it.
            self._tunnels[tunnel.key] = tunnel
            # Under the lock and before it opens, so that no worker accepts a client in between.
            if paused:
                tunnel.pause()
            tunnel.open()
        tunnel.on_over(functools.partial(self._tunnels.pop, tunnel.key, None))
        try:
            tunnel.wait_until_open()
        except BaseException:
            # Before the close, which would close the listening socket: after an error it is the caller's.
            tunnel.disown()
            tunnel.close()
            raise

    def carriers(self) -> list[CarrierStatus]:
        """Return the carriers of the workers; those of a worker that does not answer are missing."""
        return [to_carrier(fields, number) for number, answer in self._answers("carriers") for fields in answer]

    def resumes(self) -> list[ResumeFigures]:
        """Return the figures of the resumable streams of the workers, like :meth:`carriers`."""
        from ..transports.resume.figures import ResumeFigures

        return [ResumeFigures(*answer) for _, answer in self._answers("resumes")]

    def _answers(self, question: str) -> list[tuple[int, Any]]:
        """Return the number of each worker that answers, from 1, with its answer."""
        asked = [
            (slot, process, process.ask(question)) for slot in self._slots if (process := slot.answering) is not None
        ]
        concurrent.futures.wait([answer for _, _, answer in asked], ANSWER)
        found = []
        for slot, process, answer in asked:
            if not answer.done():
                slot.suspect(process)
            elif answer.exception() is None:
                found.append((slot.number + 1, answer.result()))
        return found

    def share_secrets(self) -> None:
        """Wait until the workers keep each secret variable that this program knows from the programs that they start.

        One that does not answer is not waited for: it starts no program before it has read the names.
        """
        concurrent.futures.wait(share_secrets(), ANSWER)

    def log_connections(self, on_ended: OnEnded | None) -> None:
        """Call a function with the record of each connection that has ended, and the name of its tunnel before it.

        :param on_ended: called in the threads that watch the workers; it must not block. ``None`` for no longer.
        """
        with self._lock:
            self._on_ended = on_ended
            for slot in self._slots:
                self._set_log(slot)

    def _set_log(self, slot: WorkerSlot) -> None:
        if (process := slot.process) is not None:
            process.ask("log_connections", self._on_ended is not None)

    def start_close(self) -> None:
        """Close all tunnels and end all processes. Does not wait."""
        # Without the lock: open() may hold it while it waits for the worker whose thread calls this.
        for tunnel in list(self._tunnels.values()):
            tunnel.start_close(0.0)
        for slot in self._slots:
            slot.start_close()

    def close(self) -> None:
        """Do the same, and wait. Idempotent."""
        self.start_close()
        for slot in self._slots:
            slot.close()
        for tunnel in list(self._tunnels.values()):
            tunnel.finish()  # nothing more comes from processes that have ended
        _living.discard(self)

    # -- for the places of the workers ------------------------------------------------------------------------------

    def start_process(self, slot: WorkerSlot) -> ChildProcess:
        """Start a process, and wait until it is up.

        :param slot: takes what happens to it.
        :raises RelayError: if it does not start.
        :raises OSError: if the system has no room for it.
        """
        return ChildProcess(slot, is_single=not self.replaces)

    def on_up(self, number: int) -> None:
        """Open the tunnels in the process of a worker, which is running now, unless they are open."""
        with self._lock:
            # A new process knows nothing of what its predecessor was asked for.
            if self._on_ended is not None:
                self._set_log(self._slots[number])
            for tunnel in list(self._tunnels.values()):
                tunnel.open_at(number)

    def on_message(self, number: int, message: Message) -> None:
        """Pass a message of a process to its tunnel, or to the log of connections."""
        if "ended" in message:
            if (on_ended := self._on_ended) is not None:
                on_ended(message["name"], to_record(message["ended"]))
            return
        # Without the lock: open() holds it while it waits for this worker.
        key = next((message[word] for word in ("opened", "failed", "closed", "late") if word in message), None)
        tunnel = self._tunnels.get(key) if key is not None else None
        if tunnel is not None:
            tunnel.on_message(number, message)

    def on_died(self, number: int, fate: str) -> int:
        """Pass the death of a worker's process on to the tunnels; return the number of lost connections.

        :param fate: how it has ended.
        """
        with self._lock:
            tunnels = list(self._tunnels.values())
        # Outside the lock: the tunnels ask their other workers, and one that takes no message costs two seconds.
        return sum(tunnel.on_died(number, fate) for tunnel in tunnels)

    # ---------------------------------------------------------------------------------------------------------------

    def _after_fork(self) -> None:
        """Keep nothing of the program's, in a forked child."""
        self._lock = threading.RLock()
        for slot in self._slots:
            slot.after_fork()
        for tunnel in list(self._tunnels.values()):
            tunnel.abandon()
        self._tunnels.clear()


def open_child(
    kind: type[AnyTunnel], recipe: Recipe, receive: socket.socket | None, options: Mapping[str, Any]
) -> AnyTunnel:
    """Open a tunnel in a child process that has no successor.

    :param kind: :class:`~relay.spawning.child_tunnel.ChildTunnel`, or a subclass.
    :param recipe: and the others, and the errors: as for :meth:`WorkerPool.open`.
    """
    return WorkerPool(1, replaces=False).open_only(kind, recipe, receive, options)


def _close_all() -> None:
    """At the interpreter's end, while there still is one for the log records."""
    living = list(_living)
    for pool in living:  # all of them first, so that they end side by side
        pool.start_close()
    for pool in living:
        pool.close()


def _forget_all() -> None:
    for pool in list(_living):
        pool._after_fork()
    _living.clear()


atexit.register(_close_all)
os.register_at_fork(after_in_child=_forget_all)
