"""One client's connection to the embedded SSH server: its channels and its forwards (RFC 4254)."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from ...addresses.values import TCPAddress, UnixAddress
from ...errors import ConnectError
from ...process import Process
from ...streams.connect import SocketDialer
from ...streams.promise import Cancellation
from ...transports.tcp import tcp
from ...transports.unix import unix
from .channel import GONE, Channel, GatedSocket, Remote, Transport, move
from .command import kill, serve_command
from .forward import Forward, Place, hang_up, send_at_once
from .login import Login, LoginHandler, State

PROHIBITED, CONNECT_FAILED, UNKNOWN_KIND, SHORTAGE = 1, 2, 3, 4  # RFC 4254, section 5.1
CONNECT_TIMEOUT = 30.0  # seconds
LOG = "relay.testing.sshserver"

logger = logging.getLogger(LOG)


class Refused(Exception):  # noqa: N818  (a reply to the client, and no error of the server)
    """A channel that the server does not open, and the reason."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


class Session:
    """One connection of a client.

    :param connected: its socket.
    :param host_key: the private key that identifies the server.
    :param state: the state that all connections share.
    :param over: called with the session, on its own thread, when the connection has ended.
    """

    def __init__(
        self, connected: socket.socket, host_key: Any, state: State, over: Callable[[Session], object]
    ) -> None:
        self._state = state
        self._when_over = over
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._processes: set[Process] = set()
        self._connecting: set[Cancellation] = set()
        self._threads: set[threading.Thread] = set()
        self._forwards: dict[Place, Forward] = {}
        self._channels = 0
        self._ended = threading.Event()
        # Small messages in both directions would wait for each other's acknowledgements, up to 40 ms per message.
        send_at_once(connected)
        self._sock = GatedSocket(connected)
        self.transport = Transport(self._sock, self._wanted, self._over)
        self.transport.set_log_channel(LOG)
        self.transport.get_security_options().compression = ("none", "zlib@openssh.com", "zlib")
        self.transport.add_server_key(host_key)
        # Before the transport's thread starts: paramiko makes its own handler only where there is none.
        self.transport.auth_handler = LoginHandler(self.transport, state.strict)

    def start(self) -> None:
        """Begin to serve.

        :raises RuntimeError: if the system has no threads left; the connection is closed.
        """
        try:
            self.transport.start_server(threading.Event(), Requests(self._state, self))
        except RuntimeError:
            self._sock.close()
            raise

    # -- channels that a client requests --

    def _wanted(self, kind: str, remote: Remote, message: Any) -> None:
        """Handle a request for a channel; on the connection's thread, which must not block."""
        try:
            if kind == "direct-tcpip":
                place: Place = TCPAddress(message.get_text(), message.get_int())
            elif kind == "direct-streamlocal@openssh.com":
                place = UnixAddress(message.get_text())
            elif kind == "session" and self._state.commands is not None and not self._state.refusing:
                return self._run(self._serve_session, remote)
            elif kind == "session":
                raise Refused(PROHIBITED, "this server has no sessions, it only forwards")
            else:
                raise Refused(UNKNOWN_KIND, "unknown channel type")
            self._run(self._serve, place, remote)
        except Refused as refused:
            self._refuse(remote, refused)

    def _refuse(self, remote: Remote, refused: Refused) -> None:
        self._state.count(opened=False)
        self.transport.refuse(remote, refused.code, refused.text)

    def _serve(self, place: Place, remote: Remote) -> None:
        """Connect to the target, open the channel and copy its bytes; on its own thread."""
        try:
            with self._slot():
                self._delay()
                with self._kept(self._connect(place)) as target:
                    self._state.count(opened=True)
                    move(self.transport.grant(remote), target)
        except Refused as refused:
            self._refuse(remote, refused)

    def _serve_session(self, remote: Remote) -> None:
        """Open a channel for one command; on its own thread."""
        try:
            with self._slot():
                self._delay()
                self._state.count(opened=True)
                serve_command(self.transport.grant(remote), self._kept_process)
        except Refused as refused:
            self._refuse(remote, refused)

    def runs(self, command: str) -> bool:
        """Return whether the server runs a command."""
        try:
            return self._state.commands is not None and bool(self._state.commands(command))
        except Exception:
            logger.exception("commands failed with %s", command)
            return False

    def _connect(self, place: Place) -> socket.socket:
        # Asked at the connect and not at the login: a test may change the permission while a client is connected.
        if not self._state.allows("local") or not self._permitted(str(place)):
            raise Refused(PROHIBITED, "open failed")
        try:
            with self._cancel() as cancel:
                stream = _factory(place)(deadline=time.monotonic() + CONNECT_TIMEOUT, cancel=cancel)
        except ConnectError as error:
            raise Refused(CONNECT_FAILED, "Connection refused" if error.reason == "refused" else str(error)) from error
        except (OSError, ValueError) as error:
            raise Refused(CONNECT_FAILED, str(error)) from error
        # The dialer leaves it non-blocking, for an event loop; here a thread copies each direction.
        stream.socket.setblocking(True)
        return stream.socket

    def _permitted(self, target: str) -> bool:
        try:
            return bool(self._state.permit(target))
        except Exception:
            logger.exception("permit failed with %s", target)
            return False

    def _delay(self) -> None:
        if self._state.delay:
            # Not a sleep: the end of the connection ends the delay as well.
            self._ended.wait(self._state.delay)

    @contextlib.contextmanager
    def _cancel(self) -> Iterator[Cancellation]:
        """Make a token for a connect, which the end of the session cancels."""
        with contextlib.closing(Cancellation()) as cancel:
            with self._lock:
                self._connecting.add(cancel)
            try:
                if self.transport.over:
                    # The connection may have ended before the token was in the set, and then _over has not seen it.
                    cancel.set()
                yield cancel
            finally:
                with self._lock:
                    self._connecting.discard(cancel)

    @contextlib.contextmanager
    def _slot(self) -> Iterator[None]:
        with self._lock:
            if self._channels >= self._state.max_channels:
                raise Refused(SHORTAGE, "too many channels")
            self._channels += 1
        try:
            yield
        finally:
            with self._lock:
                self._channels -= 1

    @contextlib.contextmanager
    def _kept(self, sock: socket.socket) -> Iterator[socket.socket]:
        """Register a socket, which the end of the session shuts down."""
        with sock:
            with self._lock:
                self._sockets.add(sock)
            try:
                if self.transport.over:
                    # As with the tokens: it may have ended before the socket was registered.
                    hang_up(sock)
                yield sock
            finally:
                with self._lock:
                    self._sockets.discard(sock)

    @contextlib.contextmanager
    def _kept_process(self, process: Process) -> Iterator[Process]:
        """Register a command, which the end of the session kills."""
        with self._lock:
            self._processes.add(process)
        try:
            if self.transport.over:
                kill(process)
            yield process
        finally:
            with self._lock:
                self._processes.discard(process)

    def _run(self, function: Callable[..., object], *args: Any) -> None:
        def run() -> None:
            try:
                function(*args)
            finally:
                with self._lock:
                    # A server that runs for a whole test session must not keep every thread that it ever had.
                    self._threads.discard(threading.current_thread())

        thread = threading.Thread(target=run, name="ssh server channel", daemon=True)
        with self._lock:
            # Before it starts: it may have ended, and have taken itself out, when start() returns.
            self._threads.add(thread)
        try:
            thread.start()
        except RuntimeError as error:
            with self._lock:
                self._threads.discard(thread)
            raise Refused(SHORTAGE, str(error)) from error

    # -- remote forwards --

    def listen(self, place: Place) -> int | None:
        """Listen for the client; on the connection's thread.

        :returns: the port (of a Unix socket 0), or ``None`` if that is not allowed or has failed.
        """
        if not self._state.allows("remote") or len(self._forwards) >= self._state.max_channels:
            return None
        try:
            forward = Forward(place, self._came)
        except (OSError, ValueError):
            return None
        with self._lock:
            self._forwards[forward.place] = forward
        return forward.place.port if isinstance(forward.place, TCPAddress) else 0

    def stop_listening(self, place: Place) -> bool:
        """Stop listening; accepted connections continue."""
        with self._lock:
            forward = self._forwards.pop(place, None)
        if forward is None:
            return False
        forward.close()
        return True

    def _came(self, place: Place, sock: socket.socket, peer: Any) -> None:
        """Open a channel for a connection to a forward of the client."""
        send_at_once(sock)
        try:
            self._run(self._serve_forwarded, place, sock, peer)
        except Refused:
            sock.close()

    def _serve_forwarded(self, place: Place, sock: socket.socket, peer: Any) -> None:
        with self._kept(sock), contextlib.suppress(Refused), self._slot():
            self._delay()
            channel = self._ask(place, peer)
            self._state.count(opened=channel is not None)
            if channel is not None:
                move(channel, sock)

    def _ask(self, place: Place, peer: Any) -> Channel | None:
        if isinstance(place, UnixAddress):
            return self.transport.ask("forwarded-streamlocal@openssh.com", place.path, "")
        return self.transport.ask("forwarded-tcpip", place.host, place.port, *peer[:2])

    # -- faults, and the end --

    @property
    def channels(self) -> int:
        """The number of channels that are open or being opened."""
        return self._channels

    def freeze(self) -> None:
        """Stop all replies; the connection stays open."""
        self._sock.freeze()

    def thaw(self) -> None:
        """Resume after :meth:`freeze`."""
        self._sock.thaw()

    def rekey(self) -> None:
        """Exchange new keys, and wait for the end of the exchange."""
        if self.transport.is_authenticated():
            with contextlib.suppress(*GONE):
                self.transport.renegotiate_keys()

    def cut(self) -> None:
        """End the connection at once; its channels end by themselves."""
        self._sock.cut()

    def join(self, deadline: float) -> None:
        """Wait for all its threads, up to ``deadline`` (monotonic seconds)."""
        if self.transport.ident is not None:
            self.transport.join(max(0.0, deadline - time.monotonic()))
        with self._lock:
            threads = list(self._threads)
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _over(self) -> None:
        # First, for those who wait in a delay.
        self._ended.set()
        with self._lock:
            forwards, self._forwards = list(self._forwards.values()), {}
            # Copied: what is cancelled takes itself out of the set, which needs this lock.
            connecting = list(self._connecting)
            for process in self._processes:
                kill(process)
            for sock in self._sockets:  # a closed one is not here: its descriptor may be another socket's
                hang_up(sock)
        for cancel in connecting:
            cancel.set()
        for forward in forwards:
            forward.close()
        self._when_over(self)


class Requests(Login):
    """A client's login and its global requests; paramiko calls it on the connection's thread."""

    def __init__(self, state: State, session: Session) -> None:
        super().__init__(state)
        self._session = session

    def check_channel_exec_request(self, channel: Any, command: bytes) -> bool:
        """Handle ``exec`` (RFC 4254, section 6.5)."""
        text = command.decode("utf-8", "surrogateescape")
        if not self._session.runs(text):
            return False
        channel.ask_for_command(text)
        return True

    def check_port_forward_request(self, address: str, port: int) -> int:
        """Handle ``tcpip-forward`` (RFC 4254, section 7.1): return the port, 0 for a refusal."""
        return self._session.listen(TCPAddress(address, port)) or 0

    def cancel_port_forward_request(self, address: str, port: int) -> None:
        """Handle ``cancel-tcpip-forward``."""
        self._session.stop_listening(TCPAddress(address, port))

    def check_global_request(self, kind: str, message: Any) -> bool:
        """Handle the requests of OpenSSH's PROTOCOL; others, such as a keepalive, are refused as by sshd."""
        if kind == "streamlocal-forward@openssh.com":
            return self._session.listen(UnixAddress(message.get_text())) is not None
        if kind == "cancel-streamlocal-forward@openssh.com":
            return self._session.stop_listening(UnixAddress(message.get_text()))
        return False


def _factory(place: Place) -> SocketDialer:
    return unix(place.path) if isinstance(place, UnixAddress) else tcp(place.host, place.port)
