"""The dialer for WebSockets: a connect, perhaps a session of TLS, and the opening handshake."""

from __future__ import annotations

import errno
import functools
import logging
import os
import stat
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from ...access.regular_file import open_regular
from ...addresses.websocket import WSSTarget, WSTarget
from ...errors import AuthenticationError, ConnectError, RelayError
from ...eventloop.background import Home, IOThread
from ...streams.dialer import Dialer, Upgrade
from ...streams.promise import Abort, CallbackChain, OnResult
from ...streams.stream import WEBSOCKET, Stream
from ...streams.trace import SILENT, Stage, Trace
from .background import Background
from .handshake import Opening
from .opening import RELAY, Agreement, ClientOpening, Headers, NotSpokenError, host_header, parse_headers
from .session import WebSocket, WebSocketStream

if TYPE_CHECKING:  # one without TLS does not load ssl
    from ..tls.client import Client as TLSClient

logger = logging.getLogger("relay.websocket")

_FORGET = 300.0  # seconds after which a server that has not spoken RELAY is asked again
_LONGEST_FILE = 65536  # bytes of a header_file


class Client:
    """The client of one server: its headers, and whether the server speaks :data:`RELAY`.

    :param target: the address.
    :param trace: observes the handshakes.
    :param name: of the server, for errors and records; ``None`` for its address without its options.
    :raises OSError: if a file that the address names cannot be read.
    :raises ValueError: if a file does not hold what it should.
    """

    def __init__(self, target: WSTarget, trace: Trace = SILENT, name: str | None = None) -> None:
        is_tls = isinstance(target, WSSTarget)
        host = host_header(target.host, target.port, 443 if is_tls else 80)
        self.name = name or f"{'wss' if is_tls else 'ws'}://{host}{target.path}"
        self._target = target
        self._host = host
        self._trace = trace
        self._plain_until = 0.0  # monotonic seconds; the server does not speak RELAY
        self._headers = HeaderFile(self.name, target.header_file) if target.header_file is not None else None
        self._tls: TLSClient | None = None
        if isinstance(target, WSSTarget):
            from ..tls.client import client_of

            self._tls = client_of(target.server, trace, self.name)

    @property
    def offers_relay(self) -> bool:
        """``True`` if the next stream begins with the question whether the server speaks :data:`RELAY`."""
        return time.monotonic() >= self._plain_until

    def mark(self, *, speaks_relay: bool) -> None:
        """Note whether the server does."""
        self._plain_until = 0.0 if speaks_relay else time.monotonic() + _FORGET

    def over(self, inner: Dialer) -> Upgrade:
        """Return a dialer that shakes hands on the streams of another one."""
        return WebSocketDialer(inner, self)

    def upgrade(self, stream: Stream, deadline: float | None, done: OnResult) -> Abort:
        """Shake hands on a stream, and give it a kernel socket; see :class:`~relay.streams.dialer.Upgrade`."""
        owner = _Nobody(stream)
        io_thread = IOThread.acquire(owner)

        def upgraded(outcome: Stream | OSError) -> None:
            if isinstance(outcome, WebSocketStream):
                try:
                    outcome = Background(outcome).stream
                except OSError as error:
                    outcome.reset()
                    outcome = error
            done(outcome)
            io_thread.release(owner)

        try:
            give_up = self.upgrade_on(io_thread, stream, deadline, upgraded)
        except BaseException:
            io_thread.release(owner)
            raise

        def abort() -> None:
            give_up()
            io_thread.release(owner)  # `upgraded` is not called any more

        return abort

    def upgrade_on(self, home: Home, stream: Stream, deadline: float | None, done: OnResult) -> Abort:
        """Do the same in the thread of an engine, which relays through the session itself."""
        steps: CallbackChain[Stream] = CallbackChain(done)
        shake = functools.partial(self._shake, home, deadline, steps)
        if self._tls is None:
            shake(stream)
        else:
            steps.begin(functools.partial(self._tls.upgrade_on, home, stream, deadline), shake)
        return steps.give_up

    def _shake(
        self, home: Home, deadline: float | None, steps: CallbackChain[Stream], stream: Stream | OSError
    ) -> None:
        if isinstance(stream, OSError):
            return steps.finish(stream)
        target = self._target
        step = self._trace.begin(Stage.WEBSOCKET, self.name, path=target.path)
        offers = ((RELAY,) if self.offers_relay else ()) + ((target.subprotocol,) if target.subprotocol else ())

        def agreed(outcome: Agreement | OSError) -> None:
            if isinstance(outcome, OSError):
                error = self._explained(outcome)
                step.failed(error)
                return steps.finish(error)
            step.done(subprotocol=RELAY if outcome.is_relay else None)
            session = WebSocket(stream, home, self.name, is_client=True, is_relay=outcome.is_relay, rest=outcome.rest)
            return steps.finish(WebSocketStream(session))

        def begin(on_agreed: Callable[[Agreement | OSError], object]) -> Abort:
            headers: Headers = self._headers.current() if self._headers is not None else ()
            opening = ClientOpening(self.name, self._host, target.path, offers, headers)
            return Opening(stream, home, opening, self.name, deadline, on_agreed).cancel

        try:
            if not steps.begin(begin, agreed):
                stream.close()
        except BaseException:
            stream.close()
            raise
        return None

    def _explained(self, error: OSError) -> OSError:
        """The error of a handshake as one sentence with its reason."""
        if isinstance(error, RelayError):
            reason = getattr(error, "reason", "")
            if isinstance(error, (ConnectError, AuthenticationError)):
                return error
            # Since TLS 1.3 a server rejects a client's certificate after the handshake.
            hint = "; check whether it needs cert=, or another one" if reason == "denied" else ""
            return ConnectError(f"{error}{hint}", reason="denied" if hint else "unreachable")
        if isinstance(error, TimeoutError):
            text = "no answer to the request in time; check that it is a WebSocket server"
            return ConnectError(f"{self.name}: {text}", reason="connect_timeout")
        if error.errno == errno.ECANCELED:
            return ConnectError(f"{self.name}: the attempt was given up")
        text = f"the connection was lost during the handshake ({error.strerror or error})"
        return ConnectError(f"{self.name}: {text}; check that it is a WebSocket server")


class _Nobody:
    """Holds the I/O thread during a handshake.

    :param stream: whose.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def abandon(self) -> None:
        """In a forked child: do nothing, as the handshake has the descriptor."""


class WebSocketDialer(Upgrade):
    """Streams of another dialer, each made into a WebSocket.

    A server may refuse a client that asks whether it speaks :data:`RELAY`; then it is asked for plain messages.

    :param inner: makes the streams.
    :param client: shakes hands.
    """

    _handshake = WEBSOCKET

    def __init__(self, inner: Dialer, client: Client) -> None:
        super().__init__(inner, client.name, begin=client.upgrade, begin_on=client.upgrade_on, has_session=True)
        self._client = client

    def dial(
        self, deadline: float | None, done: OnResult, *, self_contained: bool = False, wait_for_reconnect: bool = True
    ) -> Abort:
        """Begin to make a stream; see :meth:`Dialer.dial`."""
        client = self._client
        steps: CallbackChain[Stream] = CallbackChain(done)
        dial = functools.partial(
            super().dial, deadline, self_contained=self_contained, wait_for_reconnect=wait_for_reconnect
        )

        def first(outcome: Stream | OSError) -> None:
            if not isinstance(outcome, NotSpokenError):
                return steps.finish(outcome)
            client.mark(speaks_relay=False)
            steps.begin(dial, second)
            return None

        def second(outcome: Stream | OSError) -> None:
            if isinstance(outcome, OSError):  # the question was not the cause
                client.mark(speaks_relay=True)
            steps.finish(outcome)

        steps.begin(dial, first)
        return steps.give_up


class HeaderFile:
    """The headers in a file, read again when it has changed.

    :param name: of the server, for errors.
    :param path: of the file.
    :raises OSError: if it cannot be read.
    :raises ValueError: if it holds something else than headers.
    """

    def __init__(self, name: str, path: str) -> None:
        self._name = name
        self._path = os.path.abspath(os.path.expanduser(path))
        self._lock = threading.Lock()
        self._seen: tuple[int, ...] | None = None
        self._headers: Headers = ()
        self._has_warned = False
        try:
            self._read()
        except OSError as error:
            raise OSError(error.errno, f"header_file: {error.strerror}; check the path", path) from None

    def current(self) -> Headers:
        """Return the headers as the file has them now. From any thread.

        :raises AuthenticationError: if it cannot be read any more.
        """
        with self._lock:
            try:
                status = os.stat(self._path)
                if _identity(status) != self._seen:
                    self._read()
            except OSError as error:
                text = f"{self._name}: header_file {self._path!r}: {error.strerror}; check the path"
                raise AuthenticationError(text) from None
            except ValueError as error:
                raise AuthenticationError(f"{self._name}: {error}") from None
            return self._headers

    def _read(self) -> None:
        with open_regular(self._path) as file:
            status = os.fstat(file.fileno())
            text = file.read(_LONGEST_FILE).decode("utf-8", "surrogateescape")
        mode = stat.S_IMODE(status.st_mode)
        if mode & 0o077 and not self._has_warned:
            self._has_warned = True
            problem = "header_file is accessible to other users"
            logger.warning("%s: %s (mode %04o); run chmod 600 %s", self._name, problem, mode, self._path)
        try:
            self._headers = parse_headers(text)
        except ValueError as error:
            raise ValueError(f"header_file: {self._path}: {error}") from None
        self._seen = _identity(status)


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
