"""The endpoints of a program: until :meth:`Endpoints.start` or the first client they only wait."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from ..errors import can_retry
from ..eventloop import reserve

if TYPE_CHECKING:  # a relay without clients of its control socket does not need them
    import asyncio

    from .instance import Instance
    from .sockets import Endpoint

logger = logging.getLogger("relay.operations")

RETRY = 2.0  # seconds until the server is started again after a shortage
_END = 3.0  # seconds to wait for the last answers
_NO_DESCRIPTOR = os.strerror(errno.EMFILE)


class Stop:
    """A request that the server ends, from any thread, before or after there is a loop."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # so that a request between the two lines of use() is not lost
        self._requested = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._event: asyncio.Event | None = None

    def use(self, loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> None:
        """Set this event in this loop."""
        with self._lock:
            self._loop, self._event = loop, event
            if self._requested.is_set():
                event.set()

    def set(self) -> None:
        """Request the end. Idempotent."""
        with self._lock:
            self._requested.set()
            if self._loop is not None and self._event is not None:
                with contextlib.suppress(RuntimeError):  # the loop is closed already
                    self._loop.call_soon_threadsafe(self._event.set)

    def is_set(self) -> bool:
        """Return whether the end was requested."""
        return self._requested.is_set()

    def wait(self, seconds: float) -> None:
        """Wait for the request, for so many seconds at most."""
        self._requested.wait(seconds)


LoadServer = Callable[[], Callable[["Instance", Sequence["Endpoint"], Stop], None]]
"""Imports what serves operators, and returns it; it serves an instance at endpoints until the end is requested."""


class Waiter(Protocol):
    """The main thread's wait, which also waits for descriptors."""

    def watch(self, descriptor: int, call: Callable[[], object]) -> None:
        """Call ``call`` in the main thread when the descriptor becomes readable."""

    def forget(self, descriptor: int) -> None:
        """Do not wait for the descriptor any more."""


class Endpoints:
    """The endpoints of a program. Belongs to the main thread.

    :param endpoints: the listening sockets.
    :param make_instance: makes what the app shows and controls; called with the first client.
    :param waiter: waits for the first client.
    :param load_server: imports the server.
    """

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        make_instance: Callable[[], Instance],
        waiter: Waiter,
        load_server: LoadServer,
    ) -> None:
        self._endpoints = tuple(endpoints)
        self._make_instance = make_instance
        self._waiter = waiter
        self._load_server = load_server
        self._stop = Stop()
        self._thread: threading.Thread | None = None
        self._is_started = False
        for endpoint in self._endpoints:
            waiter.watch(endpoint.socket.fileno(), self.start)

    def start(self) -> None:
        """Start the server, unless it is; a client waits in the backlog for it.

        Before the clients of the tunnels come: later they may leave it no descriptor for its modules and its loop.
        """
        if self._is_started:
            return
        self._is_started = True
        for endpoint in self._endpoints:
            # From here on the server accepts in its own thread; the main thread would be woken for each of its clients
            # as well.
            self._waiter.forget(endpoint.socket.fileno())
        # A daemon: an answer that does not end must not keep the process; close() waits for the others.
        self._thread = threading.Thread(target=self._serve, name="relay-operations", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:  # the system has no thread left
            self._thread = None
            logger.error("control socket: %s; it is closed", error)
            self._close_sockets()

    def _serve(self) -> None:
        try:
            self._serve_or_wait()
        except Exception:
            logger.exception("the control and status server has ended")
        finally:
            self._close_sockets()

    def _serve_or_wait(self) -> None:
        """Serve until the end. If the process is short of descriptors or memory, wait and try again."""
        has_warned = False
        while not self._stop.is_set():
            try:
                # Under a flood of clients no other descriptor may be left, and it is now that operators want to look.
                with reserve.lent():
                    serve = self._load_server()
                    instance = self._make_instance()
                return serve(instance, self._endpoints, self._stop)
            except (OSError, ImportError) as error:
                if not _is_shortage(error):
                    raise
                if not has_warned:
                    has_warned = True
                    logger.warning("control socket: %s; its clients wait", getattr(error, "strerror", None) or error)
            self._stop.wait(RETRY)

    def close(self) -> None:
        """Answer the requests under way, close the sockets and remove their files. Idempotent."""
        if self._thread is None:
            for endpoint in self._endpoints:
                if endpoint.socket.fileno() >= 0:
                    self._waiter.forget(endpoint.socket.fileno())
            self._close_sockets()
            return
        self._stop.set()
        # Not for ever: a client that reads slowly must not hold up the end.
        self._thread.join(_END)  # the thread closes the sockets, which its loop still has

    def retire(self) -> None:
        """Close them as :meth:`close` does, and do not wait for that. The last answers may take a second."""
        if self._thread is None:
            self.close()
        else:
            self._stop.set()

    def _close_sockets(self) -> None:
        for endpoint in self._endpoints:
            endpoint.close()


def _is_shortage(error: Exception) -> bool:
    """Return whether the system lacked something; the loader of libraries says so only in its text."""
    return can_retry(error) or (isinstance(error, ImportError) and _NO_DESCRIPTOR in str(error))
