"""Global requests over an open transport of the caller (RFC 4254, section 4), and its end."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue
from typing import Any

import paramiko

from ...errors import CarrierError
from ...transports.ssh.paramiko.messages import ASK, DENIED, GRANTED

__all__ = ["Answered", "Requests"]

Answered = Callable[["paramiko.Message | None"], object]
"""Gets the answer, or ``None`` if the request was denied or the connection has ended."""


class Requests:
    """All pending requests on one transport, from relay and from other code; safe from any thread.

    Answers have no ID and come in the order of the requests; paramiko gives each to all waiting threads.
    """

    def __init__(self, transport: paramiko.Transport) -> None:
        self._transport = transport
        self._lock = threading.Lock()  # guards the following
        self._waiting: deque[Answered | None] = deque()  # None: a request of paramiko from before
        self._watchers: set[Callable[[], object]] = set()
        self._ended = False
        # A second lock, because sending may block for a key exchange, and the transport's thread needs the first for an
        # answer.
        self._sending = threading.Lock()  # requests are sent in the order of _waiting
        self._ask_before = transport.global_request
        self._close_before = transport.packetizer.close
        table = transport._handler_table
        with self._lock:
            # An answer that comes while the handlers are replaced waits for this lock, and finds its request in the
            # queue.
            for kind in (GRANTED, DENIED):
                table[kind] = partial(self._on_answer, kind, table[kind])
            # A request of paramiko may be on its way already. Its answer comes first and must not be taken for one of
            # relay's.
            under_way = transport.completion_event
            if under_way is not None and not under_way.is_set() and not transport.in_kex:
                self._waiting.append(None)
        transport.global_request = self._global_request
        transport.packetizer.close = self._on_close  # every end of a transport begins with it
        # Last: it may have ended before close was replaced, and then no other call reports the end.
        if not transport.is_active():
            self._end()

    # -- its end --

    @property
    def ended(self) -> bool:
        """``True`` once the transport has ended."""
        return self._ended

    def watch(self, watcher: Callable[[], object]) -> None:
        """Call ``watcher`` when the transport ends, at once if it has; in any thread, must not block."""
        with self._lock:
            self._watchers.add(watcher)
            ended = self._ended
        if ended:
            watcher()

    def unwatch(self, watcher: Callable[[], object]) -> None:
        """Revoke :meth:`watch`."""
        with self._lock:
            self._watchers.discard(watcher)

    def lost(self) -> CarrierError:
        """Return the error for a connection that has ended."""
        error = self._transport.saved_exception
        why = f" ({error})" if error is not None and str(error) else ""
        return CarrierError(f"the SSH connection has ended{why}; make a new one, and new tunnels over it")

    def _on_close(self) -> None:
        self._close_before()
        self._end()

    def _end(self) -> None:
        with self._lock:
            self._ended = True
            waiting, self._waiting = self._waiting, deque()
            watchers, self._watchers = self._watchers, set()
        # Outside the lock: what is called may ask again, or look at ended.
        for answered in waiting:
            if answered is not None:
                answered(None)
        for watcher in watchers:
            watcher()

    # -- global requests --

    def _global_request(self, kind: str, data: Any = None, wait: bool = True) -> paramiko.Message | None:
        """Takes the place of the transport's own, whose answers mix with others'."""
        # Without a wish for an answer there is none, so there is nothing to put in order.
        if not wait:
            return self._ask_before(kind, data, False)
        answer: SimpleQueue[paramiko.Message | None] = SimpleQueue()
        self.ask(kind, data, answer.put)
        return answer.get()

    def ask(self, kind: str, data: Any, answered: Answered) -> None:
        """Send a request; ``answered`` is called once, with ``None`` if it was denied or the connection has ended."""
        message = paramiko.Message()
        message.add_byte(bytes((ASK,)))
        message.add_string(kind)
        message.add_boolean(True)
        if data is not None:
            message.add(*data)
        with self._sending:
            with self._lock:
                sent = not self._ended
                if sent:
                    self._waiting.append(answered)
            if sent:
                try:
                    self._transport._send_user_message(message)
                except (OSError, EOFError, paramiko.SSHException):  # it is about to end, or new keys take too long
                    sent = not self._forget(answered)
        if not sent:
            answered(None)

    def _forget(self, answered: Answered) -> bool:
        with self._lock:
            found = answered in self._waiting
            if found:
                self._waiting.remove(answered)
        return found

    def _on_answer(self, kind: int, before: Callable[[Any], object], message: Any) -> None:
        with self._lock:
            answered = self._waiting.popleft() if self._waiting else None
            if answered is None:
                before(message)  # it only notes the answer
                return
        answered(message if kind == GRANTED else None)
