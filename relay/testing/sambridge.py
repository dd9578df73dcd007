"""SAM bridge inside the process, for tests without an I2P router, and with faults on demand."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import stat
import sys
import threading
from types import TracebackType

from .pairs import bound_socket
from .sam.i2pd import I2pdConversation
from .sam.java import JavaConversation
from .sam.router import Network, Router
from .sam.values import SAMCommand, SAMSession, Settings

__all__ = ["SAMBridge"]

_PERSONALITIES = {"i2pd": I2pdConversation, "java": JavaConversation}
_VERSIONS = {"i2pd": ("3.0", "3.1"), "java": ("3.0", "3.3")}


class SAMBridge:
    """A SAM bridge that connects its own sessions to each other, in memory. It runs once it is constructed.

    Any SAM program can use it with ``samaddr=bridge.sam``. Sessions of style STREAM, ACCEPT, CONNECT, FORWARD, names
    and keys work as with the router that it imitates, including its faults; other commands return an error. Keys are
    real and work with a router as well. The bridge trusts every client that can connect, so keep it on the
    loopback::

        with relay.testing.SAMBridge() as bridge:
            with TunnelServer("web", 8000, samaddr=bridge.sam) as server: ...

    For a bridge behind TLS, put a tunnel in front: ``relay.Tunnel(relay.listen("tls://:0?cert=…&key=…"),
    relay.tcp(*bridge.address), timeout=None)``.

    All times below can be changed while it runs, in :attr:`settings`, under the same names.

    :param personality: ``'i2pd'`` is i2pd 2.45.1, as measured: CONNECT returns OK once the destination is found, one
        ACCEPT at a time is served, a segment holds one command, ``PING`` ends the socket, and the far ends of streams
        do not notice the end of a session. ``'java'`` is the Java router: CONNECT waits until the stream is accepted;
        any number of ACCEPTs, ports, authentication, ``PING`` in both directions.
    :param host: IP address to listen on.
    :param port: port to listen on; 0 for any free one.
    :param user: for authentication; ``None`` for none. i2pd has none.
    :param password: of that user.
    :param network: another bridge. Both are routers of one network: their sessions reach each other, and each router
        can be killed alone. ``None`` for a separate network.
    :param versions: the lowest and the highest supported version of SAM; ``None`` for those of its personality
        (i2pd 3.0 and 3.1, Java 3.0 and 3.3).
    :param build_time: seconds until a new session is ready (i2pd 2.45: 20).
    :param publish_time: seconds from then until lookups find the session, including its own.
    :param lease_life: seconds that lookups find a destination after its end. A stream to it is OK then but brings
        nothing (Java: the stream fails).
    :param silence: seconds until a stream ends that is not accepted.
    :param remember: seconds after the end of a session during which a new session of its keys is created at once, works
        for ``zombie_life``, and then is dead although its socket is open (i2pd: 5). 0 to disable this fault.
    :param zombie_life: seconds that such a session works.
    :param stale: seconds for which each session that knew a destination keeps its old lease set after the destination
        was re-created: streams to it are OK but bring nothing, and streams from it arrive empty. Other sessions are not
        affected (i2pd: 60 to 150 and more). 0 to disable this fault.
    :param connect_to_self: whether a session may connect to itself. With i2pd 2.45 such a stream arrives without any
        bytes; newer versions reject it.
    :param loses_tail: whether unread data for a slow program is lost when the far end closes, except for 8 KiB, and no
        EOF follows: a fault of i2pd 2.45.
    :param ping_interval: seconds of silence after which the Java router sends ``PING`` (from SAM 3.2 on), and after
        the same time without reply ends the socket.
    :param command_timeout: seconds until HELLO, and below SAM 3.2 from there to the first command, for the Java router.
    :raises OSError: if it cannot listen, or if no thread or descriptor is available.
    :raises ValueError: if an argument is invalid; the error names it.

    Source: SAM v3 ("Simple Anonymous Messaging", 3.0 to 3.3).
    """

    def __init__(
        self,
        *,
        personality: str = "i2pd",
        host: str = "127.0.0.1",
        port: int = 0,
        user: str | None = None,
        password: str | None = None,
        network: SAMBridge | None = None,
        versions: tuple[str, str] | None = None,
        build_time: float = 0.0,
        publish_time: float = 0.0,
        lease_life: float = 600.0,
        silence: float = 10.0,
        remember: float = 0.0,
        zombie_life: float = 0.3,
        stale: float = 0.0,
        connect_to_self: bool = True,
        loses_tail: bool = False,
        ping_interval: float = 180.0,
        command_timeout: float = 60.0,
    ) -> None:
        if personality not in _PERSONALITIES:
            raise ValueError(f"personality: must be 'i2pd' or 'java', got {personality!r}")
        login = _login(personality, user, password)
        #: Its personality and times; they may be changed while it runs.
        self.settings = Settings(
            personality=personality,
            versions=versions if versions is not None else _VERSIONS[personality],
            login=login,
            build_time=build_time,
            publish_time=publish_time,
            lease_life=lease_life,
            silence=silence,
            remember=remember,
            zombie_life=zombie_life,
            stale=stale,
            connect_to_self=connect_to_self,
            loses_tail=loses_tail,
            ping_interval=ping_interval,
            command_timeout=command_timeout,
        )
        #: Names that it resolves, such as ``site.i2p``, with their destinations: base64, or an address.
        self.addressbook: dict[str, str] = {}
        self._lock = threading.Lock()
        self._closed = False
        self._alive = False
        with contextlib.ExitStack() as undo:
            # Bound for the whole life of the bridge and never listening: while the router is killed no other program
            # gets the port, and clients are refused by the kernel, as with a router that is down.
            self._reservation = undo.enter_context(bound_socket(host, port))
            #: Host and port on which it listens.
            self.address: tuple[str, int] = self._reservation.getsockname()[:2]
            self._network: Network = network._network if network is not None else Network()
            # Counted before anything else uses the network: the thread ends with the last router that leaves.
            self._network.hub.ask(self._network.enter)
            undo.callback(self._leave)
            self._router = Router(self._network, self.settings, lambda: self.addressbook, _PERSONALITIES[personality])
            self.restart()
            undo.pop_all()

    @property
    def sam(self) -> str:
        """Address in the form of ``samaddr=``, such as ``127.0.0.1:7656``."""
        host, port = self.address
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    # -- faults --

    def kill(self) -> None:
        """Kill the router: close every socket and refuse connections, but keep the port. Idempotent.

        The far ends of streams at other bridges do not notice it.
        """
        with self._lock:
            if self._alive:
                self._alive = False
                self._network.hub.ask(self._router.kill)

    def restart(self) -> None:
        """Start the router again after :meth:`kill`, on the same port. Does nothing while it runs.

        It remembers nothing; other routers remember its sessions.

        :raises OSError: if no socket is available, or after :meth:`close`.
        """
        with self._lock:
            if not self._alive:
                listening = bound_socket(*self._reservation.getsockname()[:2])
                with contextlib.ExitStack() as undo:
                    undo.enter_context(listening)
                    # Listens in the caller's thread: when this returns, a client can connect, even before the bridge's
                    # thread looks.
                    listening.listen(1024)
                    self._network.hub.ask(lambda: self._router.listen(listening))
                    undo.pop_all()
                self._alive = True

    def cut(self, id: str | None = None) -> None:  # noqa: A002
        """Close the control socket of a session, which ends the session and its streams.

        :param id: of the session; ``None`` for all sessions.
        """

        def cut() -> None:
            for session in list(self._router.sessions.values()):
                if id in (None, session.id):
                    session.control.end()

        self._network.hub.ask(cut)

    def fail_connects(self, count: int, result: str = "CANT_REACH_PEER") -> None:
        """Answer the next ``count`` STREAM CONNECTs with ``result``; 0 for none."""
        self._router.failed_connects.set(count, result)

    def refuse_sessions(self, count: int, result: str = "DUPLICATED_DEST") -> None:
        """Answer the next ``count`` SESSION CREATEs with ``result``, such as ``DUPLICATED_ID``; 0 for none."""
        self._router.refused_sessions.set(count, result)

    def late_error(self, count: int, result: str = "I2P_ERROR") -> None:
        """Answer the next ``count`` STREAM ACCEPTs with OK, then with a STREAM STATUS of ``result``, and end them."""
        self._router.late_errors.set(count, result)

    def hold_answers(self, *commands: str) -> None:
        """Do not answer some commands until :meth:`release_answers`; streams continue.

        :param commands: such as ``'HELLO'``, ``'SESSION CREATE'``, ``'STREAM'``; none for all.
        """
        self._network.hub.ask(lambda: self._router.hold(*commands))

    def release_answers(self) -> None:
        """Answer again, including the commands that came meanwhile."""
        self._network.hub.ask(self._router.release)

    # -- history --

    @property
    def sessions(self) -> list[SAMSession]:
        """Sessions that are ready, the oldest first."""
        return [
            SAMSession(session.id, session.destination.base64, dict(session.options))
            # Read from another thread than the one that changes it; list() of a dict's values is one step for the
            # interpreter.
            for session in list(self._router.sessions.values())
            if session.is_ready
        ]

    @property
    def commands(self) -> list[SAMCommand]:
        """The last thousand commands, without private keys and passwords."""
        return list(self._router.commands)

    @property
    def streams(self) -> int:
        """Number of accepted streams from or to its sessions."""
        return self._router.streams

    @property
    def connections(self) -> int:
        """Number of sockets without a stream: of sessions, pending requests, and clients that have sent nothing yet."""
        return len(self._router.conversations)

    # -- end --

    def close(self) -> None:
        """Close every socket and release the port. Idempotent, from any thread."""
        with self._lock:
            # The lock is released before kill(), which takes it itself.
            closed, self._closed = self._closed, True
        if not closed:
            self.kill()
            self._reservation.close()
            self._leave()

    def _leave(self) -> None:
        if self._network.hub.ask(self._network.leave):
            self._network.hub.join()

    def __enter__(self) -> SAMBridge:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<relay.testing.SAMBridge ({self.settings.personality}) at {self.sam}, {len(self.sessions)} sessions>"


def _login(personality: str, user: str | None, password: str | None) -> tuple[str, str] | None:
    if user is None and password is None:
        return None
    if personality == "i2pd":
        raise ValueError("user, password: SAM of i2pd has no authentication; use personality='java'")
    if user is None or password is None:
        raise ValueError("user, password: give both or neither")
    return user, password


def _main() -> None:
    """Serve until SIGTERM or SIGINT, or until EOF on standard input if that is a pipe."""
    parser = argparse.ArgumentParser(prog="python -m relay.testing.sambridge", description=_main.__doc__)
    parser.add_argument("--port", type=int, default=0, help="port to listen on (default: 0, any free one)")
    parser.add_argument("--personality", choices=sorted(_PERSONALITIES), default="i2pd", help="router to imitate")
    options = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGINT):
        # An exit by exception, so that the with below closes the bridge.
        signal.signal(number, lambda number, frame: sys.exit())
    with SAMBridge(port=options.port, personality=options.personality) as bridge:
        sys.stdout.write(f"listening on {bridge.sam}\n")
        sys.stdout.flush()
        # A test that dies closes its end of the pipe, even by SIGKILL: the bridge must not outlive it.
        if stat.S_ISFIFO(os.fstat(0).st_mode):
            while os.read(0, 4096):
                pass
        else:
            signal.pause()


if __name__ == "__main__":
    _main()
