"""One thread for everything that moves bytes between a kernel socket and something else without blocking."""

from __future__ import annotations

import errno
import os
import socket
import threading
from typing import Protocol

from .loop import Handler, Loop

BUFFER = 288 << 10  # bytes that a client can move in one turn, so that none starves the others


class Client(Protocol):
    """A user of the io_thread."""

    def abandon(self) -> None:
        """In a forked child: only close the descriptors; every lock may be held for ever."""


class Home(Protocol):
    """A thread with a loop, as its clients see it: the I/O thread, or the relay thread of a tunnel."""

    loop: Loop

    @property
    def buffer(self) -> memoryview:
        """:data:`BUFFER` bytes for the handler being run."""

    def hold(self, client: Client, /) -> None:
        """Take a client; it is abandoned in a forked child. From any thread."""

    def release(self, client: Client, /) -> None:
        """Forget a client. From any thread; idempotent."""


class IOThread:
    """The thread of all clients in this process, with its loop, and a buffer for the handler being run.

    It starts with the first client and ends with the release of the last one.
    """

    # One for the process, whatever made its clients: threads that move bytes compete for the interpreter, and a second
    # one would make both slower.
    _current: IOThread | None = None
    _lock = threading.Lock()

    def __init__(self) -> None:
        self.loop = Loop()
        self.buffer = memoryview(bytearray(BUFFER))
        self._clients: set[Client] = set()
        try:
            self.thread = threading.Thread(target=self._run, name="relay-io", daemon=True)
            self.thread.start()
        # Callers handle a lack of descriptors already; a lack of threads is the same to them.
        except RuntimeError as error:
            self.loop.close()
            raise OSError(errno.EAGAIN, str(error)) from error

    @classmethod
    def acquire(cls, client: Client) -> IOThread:
        """Return the I/O thread, started if there is none; it runs until every client has released it.

        :raises OSError: if the system has no thread or descriptor left.
        """
        with cls._lock:
            if cls._current is None:
                cls._current = cls()
            # Under the lock, so that the thread cannot end between this and the caller's first call of the loop.
            cls._current._clients.add(client)
            return cls._current

    @classmethod
    def clients(cls) -> tuple[Client, ...]:
        """Return the clients of the I/O thread, in no order. From any thread."""
        # A copy: clients come and go on other threads while the caller walks through it.
        with cls._lock:
            return tuple(cls._current._clients) if cls._current is not None else ()

    def hold(self, client: Client) -> None:
        """Take another client, while it has one."""
        with IOThread._lock:
            self._clients.add(client)

    def release(self, client: Client) -> None:
        """Release it; the last release ends the thread. Safe from any thread, idempotent."""
        with IOThread._lock:
            self._clients.discard(client)
            if not self._clients and IOThread._current is self:
                # The next client gets another thread. This one still makes the calls that it has accepted: `Loop.run`
                # makes them after its last turn, so a client may release before its last call was made.
                IOThread._current = None
                self.loop.call(self.loop.stop)

    def _run(self) -> None:
        self.loop.run()
        self.loop.close()

    @classmethod
    def forked(cls) -> None:
        """In a forked child: drop everything without touching the parent's."""
        # The thread does not run in the child, and another thread of the parent may have held the lock at the fork.
        cls._lock = threading.Lock()
        current, cls._current = cls._current, None
        if current is not None:
            current.loop.close()
            for client in current._clients:
                client.abandon()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=IOThread.forked)


class Watch:
    """The events of a socket that a client waits for; after the first :meth:`set_interest` also errors and hang-ups."""

    __slots__ = ("mask", "hung", "_descriptor", "_watched", "_loop", "_handler")

    def __init__(self, socket: socket.socket, loop: Loop, handler: Handler) -> None:
        self.mask = 0
        self.hung = False
        self._descriptor = socket.fileno()
        self._watched = False
        self._loop = loop
        self._handler = handler

    def set_interest(self, mask: int) -> None:
        """Wait for these events. A hang-up is reported without end, so after one nothing is waited for in vain."""
        # Level-triggered: after a hang-up each turn would report it again, also with a mask of 0.
        watched = mask != 0 or not self.hung
        if mask == self.mask and watched == self._watched:
            return
        if not watched:
            self._loop.forget(self._descriptor)
        elif self._watched:
            self._loop.poller.modify(self._descriptor, mask)
        else:
            self._loop.watch(self._descriptor, mask, self._handler)
        self.mask = mask
        self._watched = watched

    def use(self, handler: Handler) -> None:
        """Call another handler from now on."""
        self._handler = handler
        if self._watched:
            # The poller stays as it is, since it knows the descriptor only: this costs no system call.
            self._loop.handlers[self._descriptor] = handler

    def end(self) -> None:
        """Watch no longer; the socket is about to be closed."""
        self._loop.forget(self._descriptor)
        self._watched = False
        self._handler = _ended  # the client and its watch would be a cycle for the collector to find


def _ended(event: int, now: float) -> None:
    pass
