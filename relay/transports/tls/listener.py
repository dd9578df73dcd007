"""TLS listener: handshakes run beside the accept path, so that a silent client does not block the others."""

from __future__ import annotations

import errno
import functools
import logging
import socket
import ssl
import threading
from collections.abc import Hashable
from types import TracebackType
from typing import Any, Protocol, Self

from ...addresses.options import PROTOCOLS
from ...addresses.printable import printable
from ...eventloop.background import Home, IOThread
from ...eventloop.loop import Timer
from ...eventloop.poller import IN
from ...eventloop.sockets import Endpoint, format_address
from ...streams.accept_queue import AcceptQueue, Taker
from ...streams.checks import FIRST_BYTE
from ...streams.fairness import ROOM, crowding, source_of
from ...streams.listener import TunnelListener, UpgradeListener
from ...streams.rate_limited_log import RateLog
from ...streams.stream import Stream
from ..tcp import Inherited, listen_tcp
from .context import Credentials, Path, identity_of_client, load_chain, set_groups, trusting
from .handshake import Handshake
from .session import Session

logger = logging.getLogger("relay.tls")

_MOST = 1024  # clients under way: those that shake hands and those that wait for accept()
_BATCH = 32  # clients taken in one turn
_PAUSE = 0.25  # seconds without accepting when there are no descriptors left


def listen_tls(
    host: str,
    port: int,
    *,
    cert: Path,
    key: Path | None = None,
    client_ca: Path | None = None,
    alpn: str | None = None,
    groups: str | None = None,
    mptcp: bool = False,
    inherited: Inherited | None = None,
) -> TLSListener:
    """Listen for TLS 1.2 and later.

    :param host: an IPv4 or IPv6 address (no brackets) or a name.
    :param port: from 0 to 65535; 0 picks a free one.
    :param cert: a PEM file with the certificate, and those of the authorities between it and the root.
    :param key: a PEM file with its private key, not encrypted; ``None`` if it is in ``cert``.
    :param client_ca: a PEM file with authorities; every client must show a certificate of one of them. ``None`` to ask
        for none.
    :param alpn: the protocols to offer (ALPN), such as ``h2,http/1.1``, the preferred one first. A client that has none
        of them is accepted, without a protocol. ``None`` to offer none.
    :param groups: as for :func:`relay.tls`.
    :param mptcp: whether to use Multipath TCP (RFC 8684) with clients that have it; the others get plain TCP.
    :param inherited: as for :func:`~relay.transports.tcp.listen_tcp`.
    :returns: a listener for :class:`relay.Tunnel`; the caller owns it.
    :raises TypeError: if an argument has the wrong type.
    :raises ValueError: if an argument is out of range, or a file does not hold what it should.
    :raises OSError: if a file cannot be read or the address cannot be had.
    """
    credentials = server_credentials(cert, key, client_ca, alpn, groups)
    return TLSListener(listen_tcp(host, port, mptcp=mptcp, inherited=inherited), credentials)


def server_credentials(
    cert: Path,
    key: Path | None = None,
    client_ca: Path | None = None,
    alpn: str | None = None,
    groups: str | None = None,
) -> Credentials:
    """Return the credentials of a server; the parameters and errors are those of :func:`listen_tls`."""
    return Credentials(functools.partial(_server_context, alpn, groups), cert, key, client_ca)


def _server_context(
    alpn: str | None, groups: str | None, cert: Path, key: Path | None, client_ca: Path | None
) -> ssl.SSLContext:
    context = trusting(ssl.Purpose.CLIENT_AUTH, "client_ca", client_ca)
    set_groups(context, groups)
    load_chain(context, cert, key)
    if alpn is not None:
        PROTOCOLS.check("alpn", alpn)
        context.set_alpn_protocols(alpn.split(","))
    return context


class TLSListener(UpgradeListener):
    """Accepts streams whose handshake is done.

    It accepts and shakes hands in the I/O thread, until a tunnel does both in its own.

    :param listening: a listening TCP socket. The listener owns it.
    :param credentials: of a server; each handshake takes the context of that moment.
    :raises OSError: if the system has no thread or descriptor left; the socket is closed then.
    """

    def __init__(self, listening: socket.socket, credentials: Credentials) -> None:
        self.handshake_timeout: float | None = 30.0
        """Seconds that a handshake may take; ``None`` for ever. The client must begin it within 10 s.

        A tunnel sets it to the smaller of its ``timeout`` and ``connect_timeout``, or 30 where both are ``None``.
        """
        self.address = listening.getsockname()
        """The address of the listener, from :meth:`socket.socket.getsockname`."""
        self.listening = listening
        """The listening socket."""
        self._credentials = credentials
        self._queue: AcceptQueue[Any] = AcceptQueue()
        self._handshakes = _Handshakes()
        self._closing = threading.Lock()  # for the next one
        self._closed = False
        self._full = False
        listening.setblocking(False)
        try:
            self._io_thread = IOThread.acquire(self)
        except OSError:
            listening.close()
            raise
        self._home: Home = self._io_thread
        self._pause = Timer(self._io_thread.loop.timers, self._resume)
        self._io_thread.loop.call(self._begin)

    def accept(self) -> tuple[Stream, Any]:
        """Wait for the next client whose handshake is done.

        :returns: its stream, and the address that it came from.
        :raises OSError: ``EBADF`` once the listener is closed.
        """
        accepted = self._queue.take()
        assert accepted is not None  # there is no limit of time
        if self._full:
            self._io_thread.loop.call(functools.partial(self._resume, 0.0))
        return accepted

    def deliver(self, taker: Taker | None, home: Home | None = None) -> None:
        """Pass streams on at once, instead of by :meth:`accept`; see :meth:`UpgradeListener.deliver`."""
        if home is not None and home is not self._home:
            self._move(home)
        self._queue.deliver(taker)
        if self._full:
            self._io_thread.loop.call(functools.partial(self._resume, 0.0))

    def _move(self, home: Home) -> None:
        """Accept no more, because a tunnel does; wait until that is true."""
        with self._closing:
            if self._closed:
                return
            # Before the I/O thread is left: a fork in between must find the socket with one of the two.
            home.hold(self)
            self._home = home
        left = threading.Event()
        if self._io_thread.loop.call(functools.partial(self._leave, left)):
            # Two threads that accept from one socket would both be woken for each client.
            left.wait()

    @property
    def certificate_end(self) -> float | None:
        """Until when the certificate is valid, in seconds since 1970; ``None`` if that is not known."""
        return self._credentials.not_after()

    @property
    def certificate_loads(self) -> tuple[int, int]:
        """The loads of certificates after their files have changed, and those that have failed."""
        return self._credentials.loads, self._credentials.failures

    def set_credentials(self, credentials: Credentials) -> None:
        """Use other files for the handshakes that begin from now on. From any thread."""
        loads, credentials.failures = self.certificate_loads
        credentials.loads = loads + 1
        self._credentials = credentials

    def close(self) -> None:
        """Stop listening, wake :meth:`accept`, reset who was not accepted yet. Idempotent, from any thread."""
        with self._closing:
            if self._closed:
                return
            self._closed = True
            loop = self._home.loop
        self._queue.close()
        done = threading.Event()
        # A callback of the listener may close it; a wait for this thread would never end.
        if loop.is_here():
            self._end(done)
        elif loop.call(functools.partial(self._end, done)):
            done.wait()
        else:
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
        state = "closed" if self._closed else f"{len(self._handshakes)} handshakes under way"
        return f"<relay.{type(self).__name__} at {Endpoint(self.listening.family, self.address)}, {state}>"

    def abandon(self) -> None:
        """In a forked child: only close the socket."""
        self._closing = threading.Lock()
        self._closed = True
        self._queue.after_fork()
        self.listening.close()

    # -- in the thread of a tunnel ------------------------------------------------------------------------------

    def upgrade(self, client: socket.SocketType, peer: Any, now: float) -> None:
        """Begin the handshake of a client; see :meth:`UpgradeListener.upgrade`."""
        # The tunnel has accepted the client already, so that another one gives way.
        if self._is_full():
            self.make_room(now)
        if not isinstance(client, socket.socket):
            client = socket.socket(client.family, client.type, client.proto, client.detach())
        self._admit(client, peer, now, self._home)

    # -- in the I/O thread, or in that of a tunnel ----------------------------------------------------------------

    def make_room(self, now: float) -> None:
        """End the oldest handshakes of the source with the most."""
        self._handshakes.make_room(self, now)

    def _is_full(self) -> bool:
        return len(self._handshakes) + len(self._queue) >= _MOST

    def _admit(self, client: socket.socket, peer: Any, now: float, home: Home | None = None) -> None:
        client.setblocking(False)
        stream = Stream(client)
        try:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            session = Session(stream, self._credentials.current(self), peer="client", name=format_address(peer))
            deadline = None if self.handshake_timeout is None else now + self.handshake_timeout
            done = functools.partial(self._shaken, session, peer)
            handshake = Handshake(session, deadline, done, first=now + FIRST_BYTE, home=home)
        except OSError as error:  # it has gone already
            logger.info("%r: %s", self, error)
            stream.close()
        else:
            if not handshake.is_over:
                self._handshakes.add(session, handshake, peer)
                self._report_handshakes()

    def _shaken(self, session: Session, peer: Any, outcome: Stream | OSError) -> None:
        self._handshakes.remove(session)
        self._report_handshakes()
        if not isinstance(outcome, OSError):
            try:
                tls, outcome.server_name = session.records.tls, session.records.server_name
                outcome.identity, outcome.tls = identity_of_client(tls, peer), tls
            except ValueError as error:
                # Not let in without an identity: a rule that denies its name would not hold.
                outcome.reset()
                return self._failed(session.name, error)
            return self._ready(outcome, peer)
        return self._failed(session.name, outcome)

    def _ready(self, stream: Stream, peer: Any) -> None:
        """Pass on a stream whose handshake is done."""
        loop = self._home.loop
        if loop.is_here():
            self._queue.put(stream, peer)
        elif not loop.call(functools.partial(self._queue.put, stream, peer)):
            stream.reset()

    def _report_handshakes(self) -> None:
        if self.on_handshakes is not None:
            self.on_handshakes(len(self._handshakes))

    def _failed(self, name: str, error: Exception) -> None:
        logger.info("%r: the handshake with %s failed: %s", self, name, printable(str(error), 500))
        if self._full:
            self._resume(0.0)

    def _end(self, done: threading.Event) -> None:
        if self._home is self._io_thread:
            self._io_thread.loop.forget(self.listening.fileno())
            self._pause.stop()
        self.listening.close()
        self._handshakes.cancel("the listener was closed")
        self._home.release(self)
        done.set()

    # -- in the I/O thread -------------------------------------------------------------------------------------

    def _begin(self) -> None:
        if not self._closed and self._home is self._io_thread:
            self._io_thread.loop.watch(self.listening.fileno(), IN, self._on_clients)

    def _leave(self, left: threading.Event) -> None:
        self._io_thread.loop.forget(self.listening.fileno())
        self._pause.stop()
        self._io_thread.release(self)
        left.set()

    def _on_clients(self, event: int, now: float) -> None:
        for _ in range(_BATCH):
            crowded = self._is_full()
            self._full = crowded and not self._handshakes
            if self._full and self._is_full():  # again, for accept() may not have seen the mark
                return self._want(0)
            try:
                client, peer = self.listening.accept()
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    logger.warning("%r: no more clients for now: %s", self, error)
                    self.make_room(now)
                    self._want(0)
                    self._pause.start(now + _PAUSE, now)
                return  # else there is none, or it has gone already
            if crowded:
                self.make_room(now)
            self._admit(client, peer, now)

    def _resume(self, now: float) -> None:
        self._full = False
        if not self._closed:
            self._want(IN)

    def _want(self, mask: int) -> None:
        if self._home is self._io_thread:
            self._io_thread.loop.poller.modify(self.listening.fileno(), mask)


class UnderWay(Protocol):
    """A handshake under way."""

    @property
    def stream(self) -> Stream:
        """The stream of the client."""

    @property
    def name(self) -> str:
        """The name of the client."""

    def cancel(self, text: str) -> object:
        """End it."""


class _Handshakes:
    """The handshakes under way, the oldest first. Belongs to the thread that shakes hands."""

    def __init__(self) -> None:
        self._under_way: dict[object, tuple[UnderWay, Any]] = {}  # with the peer
        self._crowded = RateLog(logger, logging.WARNING)

    def __len__(self) -> int:
        return len(self._under_way)

    def add(self, key: object, handshake: UnderWay, peer: Any) -> None:
        """Add a handshake that has begun."""
        self._under_way[key] = handshake, peer

    def remove(self, key: object) -> None:
        """Forget a handshake that is over."""
        self._under_way.pop(key, None)

    def make_room(self, listener: TLSListener, now: float) -> None:
        """End the oldest handshakes of the source with the most."""
        handshakes = tuple(self._under_way.values())
        if not handshakes:
            return
        leaving = crowding(handshakes, _source, max(1, _MOST // ROOM))
        text = "%r: %d handshakes at a time; the oldest of the largest source are reset (%s)"
        self._crowded.log(now, text, listener, len(handshakes), leaving[0][0].name)
        for handshake, _ in leaving:
            handshake.cancel("there are too many at a time")

    def cancel(self, reason: str) -> None:
        """End all."""
        for handshake, _ in tuple(self._under_way.values()):
            handshake.cancel(reason)


def _source(under_way: tuple[UnderWay, Any]) -> Hashable:
    handshake, peer = under_way
    return source_of(handshake.stream.socket, peer)


class SharedTLSListener(TunnelListener):
    """Listens, so that clients wait for the workers, and knows the certificate that these show.

    The parameters and the errors are those of :func:`relay.transports.tls.listener.listen_tls`.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        cert: Path,
        key: Path | None,
        client_ca: Path | None,
        groups: str | None = None,
        mptcp: bool = False,
        inherited: Inherited | None = None,
    ) -> None:
        self._credentials = server_credentials(cert, key, client_ca, groups=groups)  # the workers have their own
        self.listening: socket.socket = listen_tcp(host, port, mptcp=mptcp, inherited=inherited)
        """The listening socket."""
        self.address: Any = self.listening.getsockname()
        """The address of the listener, from :meth:`socket.socket.getsockname`."""

    @property
    def certificate_end(self) -> float | None:
        """Until when the certificate is valid, in seconds since 1970; ``None`` if that is not known."""
        return self._credentials.not_after(self)  # no handshake here looks

    @property
    def certificate_loads(self) -> tuple[int, int]:
        """The loads of certificates after their files have changed, and those that have failed."""
        return self._credentials.loads, self._credentials.failures

    def getsockname(self) -> Any:
        """Return :attr:`address`."""
        return self.address

    def close(self) -> None:
        """Close the socket. Idempotent."""
        self.listening.close()

    def __repr__(self) -> str:
        return f"<relay.SharedTLSListener at {Endpoint(self.listening.family, self.address)}>"
