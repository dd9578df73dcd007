"""Handshakes of proxy clients, which name their targets before the bytes that are relayed.

The listener knows the protocol and makes a :class:`ProxyHandshake` for each client; this module knows none.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable

from ..eventloop.loop import Handler, Loop, Timer
from ..eventloop.poller import READ
from .listener import TunnelListener
from .stream import RejectedRequest, Request

logger = logging.getLogger("relay")

_PIECE = 4096  # bytes that are read at once of a handshake
_DROPPED = 65536  # bytes that are read at once, and dropped, after a rejection
_PARTING = 5.0  # seconds that it has to take its last bytes; RFC 1928, section 6, allows 10


class ProxyHandshake:
    """The handshake of one proxy client, read piece by piece; it does no I/O."""

    __slots__ = ("outcome",)

    def __init__(self) -> None:
        self.outcome: Request | RejectedRequest | None = None

    def feed(self, data: bytes) -> bytes:
        """Read on, until there is an :attr:`outcome`.

        :param data: the next bytes of the client; empty at its end of file.
        :returns: the bytes to send to it at once.
        """
        raise NotImplementedError


class HandshakeListener(TunnelListener):
    """A listener of proxy clients.

    A tunnel accepts from its socket and reads the handshakes itself.
    """

    listening: socket.socket
    """A listening stream socket."""

    def handshake(self, client: socket.SocketType) -> ProxyHandshake:
        """Return the handshake for the next client; it may have its outcome already.

        :param client: its socket, which stays with the caller.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Close the socket."""
        raise NotImplementedError


class HandshakeReader:
    """Reads a client's handshake. Belongs to the loop's thread.

    :param client: a non-blocking socket, which stays with the caller.
    :param loop: watches it from now on; it still does when this is done.
    :param handshake: reads the bytes.
    :param done: called once, with the request, its rejection or the error of the socket, and with the time.
    """

    __slots__ = ("begun", "_client", "_loop", "_handshake", "_done")

    def __init__(
        self,
        client: socket.SocketType,
        loop: Loop,
        handshake: ProxyHandshake,
        done: Callable[[Request | RejectedRequest | OSError, float], object],
    ) -> None:
        self.begun = False
        """``True`` once the client has sent something."""
        self._client = client
        self._loop = loop
        self._handshake = handshake
        self._done = done

    def begin(self, now: float) -> None:
        """Read the bytes that have come; the rest when they come."""
        outcome = self._handshake.outcome
        if outcome is None:
            self._loop.watch(self._client.fileno(), READ, self.on_event)
        try:
            if outcome is not None:  # known without a byte of the client, all of which are the target's
                self._done(outcome, now)
                return
            # Most clients send their request with, or just after, the connect: it is there already, and a turn of the
            # loop is saved.
            self.on_event(READ, now)
        except Exception:
            logger.exception("reading a handshake failed; this is a bug in relay")
            self.crashed(now)

    def on_event(self, event: int, now: float) -> None:
        """Read from the client."""
        handshake = self._handshake
        try:
            said = self._client.recv(_PIECE)
            self.begun = True
            answer = handshake.feed(said)
            # Nothing was sent to this client but short answers, each after a message of its own. One whose buffer is
            # full does not follow the protocol, so nothing is kept for it.
            if answer and self._client.send(answer) != len(answer):
                raise ConnectionResetError("it does not take a few bytes")
        except BlockingIOError:
            return
        except OSError as error:
            self._done(error, now)
        else:
            if handshake.outcome is not None:
                self._done(handshake.outcome, now)

    def abandon(self) -> None:
        """Give up: there is nothing to release."""

    def too_late(self) -> None:
        """Note that the time is over."""

    def after_fork(self) -> None:
        """In a forked child: there is nothing of its own to close."""

    def crashed(self, now: float) -> None:
        """Reject the client because of a bug in the handshake."""
        self._done(RejectedRequest(b"", "a bug in relay; the log has it", "factory_error"), now)


class FinalStay:
    """The last part of a client that gets no stream, before its socket is closed. Belongs to the loop's thread.

    It has no descriptor of its own.

    :param client: a non-blocking socket, which stays with the caller.
    :param loop: watches it from now on.
    :param over: called once with the time, when the socket is to be closed.
    """

    __slots__ = ("_client", "_loop", "_over", "_timer")

    def __init__(self, client: socket.SocketType, loop: Loop, over: Callable[[float], object]) -> None:
        self._client = client
        self._loop = loop
        self._over = over
        self._timer = Timer(loop.timers, self.finish)

    def finish(self, now: float) -> None:
        """Call ``over`` now."""
        self.abandon()
        self._over(now)

    def abandon(self) -> None:
        """Give up. Idempotent."""
        self._timer.stop()

    def too_late(self) -> None:
        """Do nothing: it has a time of its own."""

    def after_fork(self) -> None:
        """Do nothing: it has no descriptor."""

    def crashed(self, now: float) -> None:
        """End it because of a bug in a handler."""
        self.finish(now)


class FinalReply(FinalStay):
    """Ends a client so that it receives its last bytes.

    Closing a socket with something unread resets it, which may cost the client what it was sent. So what it still sends
    is read and dropped, until its end of file or a timeout.

    :param client: a non-blocking socket, which stays with the caller.
    :param loop: watches it from now on.
    :param last: the bytes.
    :param over: called once with the time, when the socket is to be closed.
    """

    __slots__ = ("_last",)

    def __init__(self, client: socket.SocketType, loop: Loop, last: bytes, over: Callable[[float], object]) -> None:
        super().__init__(client, loop, over)
        self._last = last

    def begin(self, now: float) -> None:
        """Send the last bytes and an end of file."""
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


def watch(loop: Loop, descriptor: int, mask: int, handler: Handler) -> None:
    """Watch a descriptor with ``handler``, also if the loop watches it already."""
    if descriptor in loop.handlers:
        # The number stays in the poller: one system call instead of two.
        loop.poller.modify(descriptor, mask)
        loop.handlers[descriptor] = handler
    else:
        loop.watch(descriptor, mask, handler)
