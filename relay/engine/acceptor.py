"""Acceptors of clients: in the relay thread from a listening socket, on a thread of its own from a listener object."""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import select
import socket
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Protocol

from ..eventloop.backoff import Backoff
from ..eventloop.loop import Timer
from ..eventloop.poller import IN
from ..eventloop.sockets import is_tls, quick_accept
from ..streams.adapter import as_stream
from ..streams.listener import PushingListener, SocketListener, TunnelListener, UpgradeListener
from ..streams.protocols import Listener
from ..streams.stream import Stream

if TYPE_CHECKING:  # parts of one machine name each other
    from .relay_thread import RelayThread

logger = logging.getLogger("relay")

_BATCH = 32  # clients accepted in one turn, at most
_FULL_BATCHES = 4  # turns in a row that used the whole batch before it is doubled
_MOST_WAITING = 8192  # clients that a listener which closes still accepts: more than a backlog holds
_BACKOFF = (0.05, 1.0)  # seconds after the first failure in a row, and at most
_IP = (socket.AF_INET, socket.AF_INET6)
_HANDS_ON = sys.platform == "linux"
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Acceptor(Protocol):
    """The acceptor, as the relay thread sees it. Every method is called in the relay thread."""

    listening: bool

    def listen(self, enabled: bool) -> None:
        """Accept clients from now on, or no longer. Idempotent."""

    def close(self) -> None:
        """Accept no client any more, and close the listener. From any thread, once it does not listen."""

    def join(self, seconds: float) -> None:
        """Wait at most so many seconds for a thread that still accepts."""


def check_listener(receive: object, name: str = "receive") -> None:
    """Check that an argument can be a listener.

    :param name: of the argument, for the error.
    :raises TypeError: if it is a TLS socket, or neither a socket nor an object with ``accept`` and ``close``.
    :raises ValueError: if it is a socket that does not listen for streams.
    """
    if is_tls(receive):
        raise TypeError(f"{name}: an SSLSocket cannot listen here; use relay.listen('tls://HOST:PORT?cert=FILE')")
    if isinstance(receive, socket.socket):
        if receive.fileno() < 0:
            raise ValueError(f"{name}: the socket is closed; pass a listening one")
        if receive.type != socket.SOCK_STREAM:
            raise ValueError(f"{name}: expected a stream socket, got {receive.type.name}")
        if not receive.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise ValueError(f"{name}: the socket does not listen; call its listen() first")
    elif not (callable(getattr(receive, "accept", None)) and callable(getattr(receive, "close", None))):
        kind = type(receive).__name__
        raise TypeError(f"{name}: expected a listening socket, or an object with accept() and close(), got {kind}")


def prepare_socket(listening: socket.socket, *, is_tls: bool) -> None:
    """Prepare a listening socket, before its first client: the sockets that are accepted have its options on Linux.

    :param is_tls: whether its clients use TLS.
    """
    listening.setblocking(False)
    # Linux hands this on to every socket that is accepted here, which saves a system call for each.
    if listening.family in _IP and _HANDS_ON:
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # The first of two urgent bytes in a row is lost unless it is to come in line; TLS has no use for either.
        with contextlib.suppress(OSError):  # Multipath TCP has no urgent data
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, not is_tls)


def accept_backoff() -> Backoff:
    """Return the pauses after failures to accept."""
    return Backoff(*_BACKOFF)


def why_not_accepted(error: Exception) -> str:
    """Return why no client can be accepted for now, for the log."""
    text = "cannot accept for now: "
    if not isinstance(error, OSError):
        return f"{text}{error}"
    hint = "; raise the limit of open files (ulimit -n)" if error.errno in _EXHAUSTED[:2] else ""
    return f"{text}{error.strerror or error}{hint}"


class _ForeignListener(TunnelListener):
    """An object of the program that has ``accept`` and ``close``; what else it has is its own.

    :param given: the object.
    """

    def __init__(self, given: Listener) -> None:
        self.given = given
        # Bound here, so that no client costs a call more.
        self.accept = self.accept_any = given.accept  # type: ignore[method-assign]

    def close(self) -> None:
        """Close the object."""
        self.given.close()


def own_listener(given: Listener | TunnelListener) -> TunnelListener:
    """Return a listener with all that a tunnel asks for; those of relay have it, except plain sockets.

    :param given: a listening socket, or an object with ``accept`` and ``close``; see :func:`check_listener`.
    """
    if isinstance(given, TunnelListener):
        return given
    return SocketListener(given) if isinstance(given, socket.socket) else _ForeignListener(given)


def make_acceptor(owner: RelayThread, receive: TunnelListener) -> Acceptor:
    """Return the acceptor for this kind of listener."""
    if receive.listening is not None:
        return SocketAcceptor(owner, receive)
    if isinstance(receive, PushingListener) and receive.pushes_streams and owner.unlimited:
        return PushAcceptor(owner, receive)
    return ObjectAcceptor(owner, receive)


def adapt_acceptor(owner: RelayThread, acceptor: Acceptor) -> Acceptor:
    """Return the acceptor that fits the limits of the tunnel and of the listener, which may have changed.

    A listener with an acceptor of objects keeps it: its thread may wait for a client.
    """
    if isinstance(acceptor, PushAcceptor) and not (acceptor.receive.pushes_streams and owner.unlimited):
        acceptor.listen(False)
        return ObjectAcceptor(owner, acceptor.receive)
    return acceptor


class SocketAcceptor:
    """Accepts in the relay thread.

    :param owner: the relay thread.
    :param listener: a listener with a socket; its clients may first send a request or shake hands.
    """

    def __init__(self, owner: RelayThread, listener: TunnelListener) -> None:
        receive = listener.listening
        assert receive is not None, "it has a socket"
        self._owner = owner
        self._listener = listener
        self._receive = receive
        self._upgrades = listener if isinstance(listener, UpgradeListener) else None
        self._hand = owner.hand_of(listener)
        self._descriptor = receive.fileno()
        self._mask = IN
        self.listening = False
        self._backoff = accept_backoff()
        self._retry = Timer(owner.loop.timers, self._try_again)
        if self._upgrades is not None:
            self._upgrades.deliver(None, owner.workspace)  # at once, so that each client is accepted by the tunnel
        self._batch = 1
        self._whole_batches = 0
        self._accept = quick_accept(receive)
        self._family_is_ip = receive.family in _IP
        prepare_socket(receive, is_tls=self._upgrades is not None)

    def listen(self, enabled: bool) -> None:
        """Accept clients from now on, or no longer."""
        if enabled == self.listening:
            return
        self.listening = enabled
        if enabled:
            self._try_again(time.monotonic())
        else:
            self._retry.stop()
            self._forget()
        if self._upgrades is not None:  # last: it may bring clients at once, and then there may be no room left
            self._upgrades.deliver(self._take_upgraded if enabled else None, self._owner.workspace)

    def _take_upgraded(self, stream: Stream, peer: Any) -> None:
        self._owner.offered(stream, peer, time.monotonic())

    def take_backlog(self, now: float) -> None:
        """Accept the clients that have connected already, as far as there is room: the socket is about to close."""
        waiting = select.poll()
        waiting.register(self._descriptor, select.POLLIN)
        for _ in range(_MOST_WAITING):
            if not self.listening or self._receive.fileno() < 0 or not waiting.poll(0):
                return
            if not self._ready(IN, now):  # the client still waits, and the next accept would fail as well
                return

    def close(self) -> None:
        """Accept no client any more."""
        self.listen(False)
        self._listener.close()

    def join(self, seconds: float) -> None:
        """Return at once: the relay thread accepts."""

    def _ready(self, event: int, now: float) -> bool:
        """Accept a batch of clients; return false if that failed, and is tried again after a while."""
        # An accept that finds no client costs more than another turn of the loop, so a batch grows only under a storm.
        accept, owner, has_spare_fd = self._accept, self._owner, self._owner.has_spare_fd
        for _ in range(self._batch):
            if not has_spare_fd():  # the first client opens it: a tunnel without clients needs none
                self._failed(OSError(errno.EMFILE, os.strerror(errno.EMFILE)), now)
                return False
            try:
                client, peer = accept()
            except BlockingIOError:
                self._batch, self._whole_batches = max(1, self._batch // 2), 0
                return True
            # The client has gone while it waited; the next one may be there.
            except ConnectionAbortedError:
                continue
            except OSError as error:
                self._failed(error, now)
                return False
            client.setblocking(False)
            if self._family_is_ip and not _HANDS_ON:
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._hand is None:
                owner.accepted(client, None, peer, now)
            else:
                self._hand(client, peer, now)
            if not self.listening:
                return True
        if self._backoff.failures:
            self._backoff.reset()
        self._whole_batches += 1
        if self._whole_batches == _FULL_BATCHES and self._batch < _BATCH:
            self._batch, self._whole_batches = self._batch * 2, 0
        return True

    def _forget(self) -> None:
        # Once other code of the program has closed the listening socket, its number may be a connection's.
        if self._owner.loop.handlers.get(self._descriptor) == self._ready:
            self._owner.loop.forget(self._descriptor)

    def _failed(self, error: OSError, now: float) -> None:
        self._owner.accept_failed(error)
        name = self._owner.name
        if not self._backoff.failures:
            logger.warning("%s: %s", name, why_not_accepted(error))
        if error.errno in _EXHAUSTED:
            self._exhausted(now)
        else:
            self._back_off(now)

    def _exhausted(self, now: float) -> None:
        """End half-open connections, because no descriptor is left, and accept again after a while."""
        self._owner.make_room(now)
        if self._upgrades is not None:
            self._upgrades.make_room(now)
        self._back_off(now)

    def _back_off(self, now: float) -> None:
        self._forget()
        self._retry.start(now + self._backoff.next(), now)

    def _try_again(self, now: float) -> None:
        if self._receive.fileno() < 0:
            name = self._owner.name
            logger.error("%s: the listening socket was closed by other code; no client is accepted any more", name)
        else:
            self._owner.loop.watch(self._descriptor, self._mask, self._ready)

    def crashed(self, now: float) -> None:
        """Accept again after a while, after a bug in a handler."""
        if self.listening:
            self._back_off(now)


class ObjectAcceptor:
    """Accepts on a daemon thread, because ``accept`` of a listener object may block and has no descriptor to wait for.

    :param owner: the relay thread.
    :param receive: the listener.
    """

    def __init__(self, owner: RelayThread, receive: TunnelListener) -> None:
        self._owner = owner
        self._receive = receive
        self._changed = threading.Condition()
        self.listening = False
        self._closed = False
        # relay's own listeners also return the clients that they reject, each with its reason, for the records.
        self._accept_any = receive.accept_any
        self.thread = threading.Thread(target=self._work, name=f"{owner.name} accept", daemon=True)
        self.thread.start()

    def listen(self, enabled: bool) -> None:
        """Accept clients from now on, or no longer."""
        with self._changed:
            self.listening = enabled
            self._changed.notify_all()

    def close(self) -> None:
        """Accept no client any more. If ``accept`` still blocks, its thread is abandoned."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        try:
            self._receive.close()
        except Exception:
            logger.exception("%s: closing the listener failed", self._owner.name)

    def join(self, seconds: float) -> None:
        """Wait at most so many seconds for the thread, and for what the listener ends after its streams."""
        until = time.monotonic() + seconds
        self.thread.join(seconds)
        self._receive.join(max(0.0, until - time.monotonic()))

    def _work(self) -> None:
        backoff = accept_backoff()
        while self._wait_until_listening():
            try:
                stream = self._accept()
            except BaseException as error:
                if self._closed:
                    return
                self._owner.accept_failed(error)
                if not backoff.failures:
                    logger.warning("%s: the listener failed: %s", self._owner.name, error, exc_info=True)
                if self._wait_to_be_closed(backoff.next()):
                    return
            else:
                backoff.reset()
                self._hand_over(*stream)

    def _accept(self) -> tuple[Stream, Any]:
        accepted, peer = self._accept_any()
        return as_stream(accepted), peer

    def _hand_over(self, stream: Stream, peer: Any) -> None:
        # One at a time, so that the limit of connections holds: the next accept waits for the answer to this one.
        answered = threading.Event()
        if self._owner.loop.call(functools.partial(self._handed_over, stream, peer, answered)):
            answered.wait()
        else:
            stream.reset()

    def _handed_over(self, stream: Stream, peer: Any, answered: threading.Event) -> None:
        try:
            self._owner.offered(stream, peer, time.monotonic())
        finally:
            answered.set()

    def _wait_until_listening(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self.listening or self._closed)
            return not self._closed

    def _wait_to_be_closed(self, seconds: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: self._closed, seconds)


class PushAcceptor:
    """Takes the streams that one of relay's own listeners pushes, in the relay thread if that is possible.

    It is for tunnels without a limit of connections: with a limit, each accept has to wait for room.

    :param owner: the relay thread.
    :param receive: the listener.
    """

    def __init__(self, owner: RelayThread, receive: PushingListener) -> None:
        self.receive = receive
        self._owner = owner
        self.listening = False

    def listen(self, enabled: bool) -> None:
        """Accept clients from now on, or no longer."""
        if enabled != self.listening:
            self.listening = enabled
            loop = self._owner.loop
            self.receive.deliver(self._take, loop) if enabled else self.receive.deliver(None)

    def close(self) -> None:
        """Accept no client any more."""
        try:
            self.receive.close()
        except Exception:
            logger.exception("%s: closing the listener failed", self._owner.name)

    def join(self, seconds: float) -> None:
        """Wait at most so many seconds for what the listener ends after its streams."""
        self.receive.join(max(0.0, seconds))

    def _take(self, stream: Stream, peer: Any) -> None:
        """Take a stream, in the relay thread or in one of the listener's."""
        if self._owner.is_on_relay_thread():
            self._offer(stream, peer)
        elif not self._owner.loop.call(functools.partial(self._offer, stream, peer)):
            stream.reset()

    def _offer(self, stream: Stream, peer: Any) -> None:
        self._owner.offered(stream, peer, time.monotonic())
