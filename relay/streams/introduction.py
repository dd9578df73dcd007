"""What a client says before the bytes that are relayed, where it names its target itself, and how it is answered.

The listener knows the language and hands over a :class:`Greeting` for each client; what is here knows none.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable

from ..eventloop.loop import Handler, Loop, Timer
from ..eventloop.poller import READ
from .request import Refusal, Request

__all__ = ["Farewell", "Greeting", "HearingListener", "Introduction", "watch"]

logger = logging.getLogger("relay")

_PIECE = 4096  # bytes that are read at once while a client introduces itself
_DROPPED = 65536  # bytes that are read at once, and dropped, after it was refused
_PARTING = 5.0  # seconds that it has to take its last bytes; RFC 1928, section 6, allows 10


class Greeting:
    """One client's introduction, read piece by piece; it does no I/O."""

    __slots__ = ("outcome",)

    def __init__(self) -> None:
        self.outcome: Request | Refusal | None = None

    def feed(self, data: bytes) -> bytes:
        """Read on, until there is an :attr:`outcome`.

        :param data: what the client has said next; empty when it says no more.
        :returns: what is sent to it at once.
        """
        raise NotImplementedError


class HearingListener:
    """A listener whose clients say first where they want to be led.

    An engine accepts from its socket and hears them itself.
    """

    listening: socket.socket
    """A listening stream socket."""

    def greeting(self) -> Greeting:
        """What hears the next client."""
        raise NotImplementedError

    def close(self) -> None:
        """Close the socket."""
        raise NotImplementedError


class Introduction:
    """Reads what a client says of itself. Belongs to the loop's thread.

    :param client: a non-blocking socket, which stays with the caller.
    :param loop: watches it from now on; it still does when this is done.
    :param greeting: reads the bytes.
    :param done: called once, with the request, the refusal or how the client was lost, and the time.
    """

    __slots__ = ("begun", "_client", "_loop", "_greeting", "_done")

    def __init__(
        self,
        client: socket.SocketType,
        loop: Loop,
        greeting: Greeting,
        done: Callable[[Request | Refusal | OSError, float], object],
    ) -> None:
        self.begun = False
        """Whether the client has said something."""
        self._client = client
        self._loop = loop
        self._greeting = greeting
        self._done = done

    def begin(self, now: float) -> None:
        """Read what is there; the rest when it comes."""
        self._loop.watch(self._client.fileno(), READ, self.on_event)
        try:
            self.on_event(READ, now)
        except Exception:
            logger.exception("a client cannot be heard; this is a bug in relay")
            self.crashed(now)

    def on_event(self, event: int, now: float) -> None:
        """The client has said something, or has gone."""
        greeting = self._greeting
        try:
            said = self._client.recv(_PIECE)
            self.begun = True
            answer = greeting.feed(said)
            if answer and self._client.send(answer) != len(answer):
                raise ConnectionResetError("it does not take a few bytes")
        except BlockingIOError:
            return
        except OSError as error:
            self._done(error, now)
        else:
            if greeting.outcome is not None:
                self._done(greeting.outcome, now)

    def abandon(self) -> None:
        """It is waited for no longer."""

    def too_late(self) -> None:
        """The time for it is over."""

    def after_fork(self) -> None:
        """In a forked child: there is nothing of its own to close."""

    def crashed(self, now: float) -> None:
        """A bug in the greeting: refuse the client."""
        self._done(Refusal(b"", "a bug in relay; the log has it", "factory_error"), now)


class Farewell:
    """Ends a client that gets no stream, so that it does get its last bytes. Belongs to the loop's thread.

    Closing a socket with something unread resets it, which may cost the client what it was sent. So what it still says
    is read and dropped, until it ends or has had its time.

    :param client: a non-blocking socket, which stays with the caller.
    :param loop: watches it from now on.
    :param last: the bytes.
    :param over: called once with the time, when the socket is to be closed.
    """

    __slots__ = ("_client", "_loop", "_last", "_over", "_timer")

    def __init__(self, client: socket.SocketType, loop: Loop, last: bytes, over: Callable[[float], object]) -> None:
        self._client = client
        self._loop = loop
        self._last = last
        self._over = over
        self._timer = Timer(loop.timers, self.finish)

    def begin(self, now: float) -> None:
        """Say the last bytes, and end this direction."""
        try:
            if self._last:
                self._client.send(self._last)  # they fit, for hardly anything was sent before
            self._client.shutdown(socket.SHUT_WR)
        except OSError:
            return self.finish(now)
        self._timer.start(now + _PARTING, now)
        watch(self._loop, self._client.fileno(), READ, self._on_event)

    def _on_event(self, event: int, now: float) -> None:
        try:
            if self._client.recv(_DROPPED):
                return
        except BlockingIOError:
            return
        except OSError:
            pass  # it was reset, which is an end as well
        self.finish(now)

    def finish(self, now: float) -> None:
        """End it now."""
        self._timer.stop()
        self._over(now)

    def abandon(self) -> None:
        """It is waited for no longer."""
        self._timer.stop()

    def too_late(self) -> None:
        """The time for it is over."""

    def after_fork(self) -> None:
        """In a forked child: there is nothing of its own to close."""

    def crashed(self, now: float) -> None:
        """A bug in a handler: end it."""
        self.finish(now)


def watch(loop: Loop, descriptor: int, mask: int, handler: Handler) -> None:
    """Have a loop call ``handler`` for a descriptor that it may watch already."""
    if descriptor in loop.handlers:
        loop.poller.modify(descriptor, mask)
        loop.handlers[descriptor] = handler
    else:
        loop.watch(descriptor, mask, handler)
