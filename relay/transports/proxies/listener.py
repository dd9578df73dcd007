"""The common part of the listeners for proxy clients: the login, and handshakes without a tunnel."""

from __future__ import annotations

import errno
import hashlib
import hmac
import logging
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Hashable
from types import TracebackType
from typing import Any, ClassVar, Self

from ...addresses.hops import Password
from ...addresses.options import Secret
from ...addresses.printable import printable
from ...addresses.values import is_ipv6
from ...eventloop.loop import Loop, Timer
from ...eventloop.poller import IN
from ...eventloop.sockets import format_address
from ...streams.accept_queue import AcceptQueue
from ...streams.checks import FIRST_BYTE
from ...streams.fairness import ROOM, crowding, source_of
from ...streams.proxy_handshake import FinalReply, HandshakeListener, HandshakeReader, ProxyHandshake
from ...streams.rate_limited_log import RateLog
from ...streams.stream import RejectedRequest, Request, Stream
from ..credentials import secret_of

logger = logging.getLogger("relay")

_HOST = re.compile(rb"[A-Za-z0-9_:][A-Za-z0-9_.:-]{0,254}")  # as long as SOCKS allows: RFC 1928, section 4
_LONGEST_LOGIN = 255  # bytes; RFC 1929, section 2
MOST_PENDING = 1024  # clients under way: half-open ones, rejected ones, and those that wait for accept()
_BATCH = 32  # clients taken in one turn
_PAUSE = 0.25  # seconds without accepting when there are no descriptors left


class Login:
    """The only user that is allowed.

    :param user: the name.
    :param password: the password.
    """

    def __init__(self, user: str, password: str) -> None:
        self.user = user
        """The name."""
        self._user = _digest(user.encode())
        self._password = _digest(password.encode("utf-8", "surrogateescape"))

    def admits(self, user: bytes, password: bytes) -> bool:
        """Return whether this is the user, in a time that does not depend on how much is right."""
        same_user = hmac.compare_digest(_digest(user), self._user)
        same_password = hmac.compare_digest(_digest(password), self._password)
        # No `and`: both are compared in any case, so that the time does not tell which one is wrong.
        return same_user & same_password


def _digest(secret: bytes) -> bytes:
    return hashlib.sha256(secret).digest()


class _Password(Password):
    __slots__ = ()

    def __str__(self) -> str:
        return "listener"


def login_of(
    user: str | None, password: Secret | None, password_file: str | None, password_env: str | None
) -> Login | None:
    """Return the only user that is allowed.

    :param user: the name; ``None`` to allow every client.
    :param password: text or a callable.
    :param password_file: an owner-only file that holds it.
    :param password_env: an environment variable that holds it.
    :returns: the login; ``None`` to allow every client.
    :raises AuthenticationError: if the file or variable has no password.
    :raises TypeError: if an argument has the wrong type.
    :raises ValueError: if one cannot be right, or one of the two is missing.
    """
    source = _Password(password=password, password_file=password_file, password_env=password_env)
    if user is None:
        if source.has_password:
            raise ValueError("password: user missing; set both or neither")
        return None
    _check_user(user)
    if not source.has_password:
        raise ValueError("user: password missing; set password_file= or password_env=")
    secret = secret_of(source, "password", f"{user}'s password: ") or ""
    if not 0 < len(secret.encode("utf-8", "surrogateescape")) <= _LONGEST_LOGIN:
        raise ValueError(f"password: it is empty or too long; {_LONGEST_LOGIN} bytes are allowed")
    return Login(user, secret)


def _check_user(user: str) -> None:
    if not isinstance(user, str):
        raise TypeError(f"user: expected a str, got {type(user).__name__}")
    if not user or not user.isprintable() or ":" in user or len(user.encode()) > _LONGEST_LOGIN:
        allowed = f"{_LONGEST_LOGIN} bytes are allowed, and no colon (RFC 7617, section 2)"
        raise ValueError(f"user: it is empty, not printable or too long; {allowed}")


def checked_host(name: bytes) -> str | None:
    """Return the host that a client has named, as text; ``None`` if it cannot be one."""
    if not _HOST.fullmatch(name):
        return None
    host = name.decode("ascii")
    return host if ":" not in host or is_ipv6(host) else None


class ProxyListener(HandshakeListener):
    """Accepts proxy clients.

    A tunnel reads their handshakes in its own thread. Without a tunnel, :meth:`accept` reads them. The stream's
    ``request`` has ``host`` and ``port``. A caller that relays it without a tunnel sends ``request.success_reply`` or
    ``request.failure_reply(reason)`` to the client, and ``request.early`` to the target.

    :param listening: a listening stream socket, TCP or Unix. The listener owns it.
    :param login: the only user that is allowed; ``None`` to allow every client.
    """

    handshake_class: ClassVar[type[Any]]
    """The class of the handshakes; its only argument is the login."""

    def __init__(self, listening: socket.socket, login: Login | None = None) -> None:
        self.handshake_timeout: float | None = 30.0
        """Seconds that a handshake may take; ``None`` for no limit. The client must begin it within 10 s.

        A tunnel uses the smaller of its ``timeout`` and ``connect_timeout``, or 30 where both are ``None``.
        """
        self.address = listening.getsockname()
        """The address at which it listens, as :meth:`socket.socket.getsockname` returned it."""
        self.listening = listening
        self.protected: bool | None = login is not None
        """``True`` if a password is required; ``None`` if clients cannot ask for anything."""
        self._login = login
        self._alone: PendingClients | None = None
        self._turn = threading.Lock()
        self._closed = False

    def handshake(self, client: socket.SocketType) -> ProxyHandshake:
        """Return the handshake for the next client."""
        made: ProxyHandshake = self.handshake_class(self._login)
        return made

    def set_login(self, login: Login | None) -> None:
        """Allow another user from now on. From any thread.

        :param login: the only user that is allowed; ``None`` to allow every client.
        """
        self._login = login
        if self.protected is not None:
            self.protected = login is not None

    def accept(self) -> tuple[Stream, Any]:
        """Wait for the next client that has finished its handshake.

        :returns: its stream, with its ``request``, and the address that it came from.
        :raises OSError: ``EBADF`` once the listener is closed.
        """
        with self._turn:
            while not self._closed:
                if self._alone is None:
                    # With the first accept() and not with the listener: a tunnel reads handshakes itself, and needs no
                    # second loop.
                    self._alone = self.pending_clients()
                    self._alone.start()
                elif self._alone.heard:
                    return self._alone.take()
                else:
                    self._alone.loop.turn()
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    def pending_clients(self) -> PendingClients:
        """Return the clients whose requests are read without a tunnel."""
        return PendingClients(self)

    def close(self) -> None:
        """Stop listening, wake :meth:`accept`, reset the other clients. Idempotent, from any thread."""
        self._closed = True
        if (alone := self._alone) is not None:
            # Wakes the thread in accept(), which holds the lock that is taken next.
            alone.loop.call(_nothing)
        with self._turn:
            alone, self._alone = self._alone, None
            if alone is not None:
                alone.close()
            self.listening.close()

    def getsockname(self) -> Any:
        """Return :attr:`address`."""
        return self.address

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        kind, state = type(self).__name__, "closed" if self._closed else "open"
        return f"<relay.{kind} at {format_address(self.address)}, {state}>"


def _nothing() -> None:
    pass


class PendingClients:
    """The clients whose handshakes are read without a tunnel, in the thread of :meth:`ProxyListener.accept`.

    :param listener: accepts them.
    """

    def __init__(self, listener: ProxyListener) -> None:
        self.loop = Loop()
        self.heard: AcceptQueue[Any] = AcceptQueue()
        self._listener = listener
        self._socket = listener.listening
        self._clients: dict[_PendingClient, None] = {}  # the oldest first
        self._crowded = RateLog(logger, logging.WARNING)
        self._guesses = RateLog(logger, logging.WARNING)
        self._pause = Timer(self.loop.timers, self.resume)

    def __len__(self) -> int:
        return len(self._clients) + len(self.heard)

    def start(self) -> None:
        """Accept clients from now on."""
        self._socket.setblocking(False)
        self.loop.watch(self._socket.fileno(), IN, self._on_clients)

    def take(self) -> tuple[Stream, Any]:
        """Return the next client that has finished its handshake."""
        taken = self.heard.take()
        assert taken is not None  # there is no limit of time
        self.resume(0.0)
        return taken

    def close(self) -> None:
        """Reset every client."""
        self.heard.close()
        for pending in self._clients:
            pending.stream.reset()
        self.loop.close()

    def _on_clients(self, event: int, now: float) -> None:
        for _ in range(_BATCH):
            full = len(self) >= MOST_PENDING
            # All places are taken by clients that wait for accept(): none of them may give way.
            if full and not self._clients:
                return self.loop.poller.modify(self._socket.fileno(), 0)
            try:
                client, peer = self._socket.accept()
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    logger.warning("%r: no more clients for now: %s", self._listener, error)
                    # Half-open clients have descriptors, and others wait for one.
                    self.make_room()
                    self.loop.poller.modify(self._socket.fileno(), 0)
                    self._pause.start(now + _PAUSE, now)
                return  # else there is none, or it has gone already
            if full:
                self.make_room()
            client.setblocking(False)
            self.hear(Stream(client), peer)

    def make_room(self) -> bool:
        """Reset the oldest half-open clients of the source with the most; return false if there are none."""
        if not self._clients:
            return False
        now = time.monotonic()
        leaving = crowding(self._clients, _PendingClient.source, max(1, MOST_PENDING // ROOM))
        text = "%r: %d clients at a time are half-open; the oldest of the largest source are reset (%s)"
        peer = format_address(leaving[0].peer) or "a local client"
        self._crowded.log(now, text, self._listener, len(self._clients), peer)
        for pending in leaving:
            pending.give_way(now)
        return True

    def hear(self, stream: Stream, peer: Any) -> None:
        """Read the request of a client."""
        pending = _PendingClient(stream, peer, self.loop, self._guesses, self._over)
        self._clients[pending] = None
        pending.hear(self._listener.handshake(stream.socket), self._listener.handshake_timeout, time.monotonic())

    def _over(self, pending: _PendingClient) -> None:
        del self._clients[pending]
        if pending.stream.request is not None:
            self.heard.put(pending.stream, pending.peer)
        self.resume(0.0)

    def resume(self, now: float) -> None:
        """Accept clients again."""
        if self._socket.fileno() >= 0:
            self.loop.poller.modify(self._socket.fileno(), IN)


class _PendingClient:
    """One client whose handshake is read, or that is rejected."""

    def __init__(
        self, stream: Stream, peer: Any, loop: Loop, guesses: RateLog, over: Callable[[_PendingClient], object]
    ) -> None:
        self.stream = stream
        self.peer = peer
        self._loop = loop
        self._guesses = guesses
        self._over = over
        self._timer = Timer(loop.timers, self._too_late)
        self._last: float | None = None  # when it must be done; monotonic seconds
        self._under_way: HandshakeReader | FinalReply | None = None

    def source(self) -> Hashable:
        """Return the source of the client; see :func:`relay.streams.fairness.source_of`."""
        return source_of(self.stream.socket, self.peer)

    def hear(self, handshake: ProxyHandshake, seconds: float | None, now: float) -> None:
        """Read its handshake."""
        self._last = None if seconds is None else now + seconds
        self._timer.start(now + min(FIRST_BYTE, FIRST_BYTE if seconds is None else seconds), now)
        self._under_way = introduction = HandshakeReader(self.stream.socket, self._loop, handshake, self._heard)
        introduction.begin(now)

    def _heard(self, outcome: Request | RejectedRequest | OSError, now: float) -> None:
        self._timer.stop()
        if isinstance(outcome, RejectedRequest):
            if outcome.guessed:
                self._guesses.log(now, "a client is refused: %s (%s)", outcome.problem, format_address(self.peer))
            elif outcome.problem:
                logger.info("a client is refused: %s", printable(outcome.problem))
            if outcome.last is None:
                return self._reset()
            self._under_way = farewell = FinalReply(self.stream.socket, self._loop, outcome.last, self._left)
            return farewell.begin(now)
        self._loop.forget(self.stream.fileno())
        if isinstance(outcome, Request):
            self.stream.request = outcome
        else:
            self._loop.discard(self.stream.socket)
        self._over(self)

    def _left(self, now: float) -> None:
        self._loop.forget(self.stream.fileno())
        self._loop.discard(self.stream.socket)
        self._over(self)

    def _too_late(self, now: float) -> None:
        # It has begun in time, so that it has the rest of the whole time.
        if isinstance(self._under_way, HandshakeReader) and self._under_way.begun:
            if self._last is None:
                return
            if now < self._last:
                return self._timer.start(self._last, now)
        self._reset()

    def give_way(self, now: float) -> None:
        """Make room for another client."""
        if isinstance(self._under_way, FinalReply):
            return self._under_way.finish(now)
        self._timer.stop()
        self._reset()

    def _reset(self) -> None:
        self._loop.forget(self.stream.fileno())
        self.stream.reset()
        self._over(self)
