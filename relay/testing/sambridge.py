"""A SAM bridge inside the program, for tests without an I2P router, and for faults that no router has on demand."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import stat
import sys
import threading
from types import TracebackType

from .sam.i2pd import I2pdConversation
from .sam.java import JavaConversation
from .sam.router import Network, Router
from .sam.values import Command, SessionRecord, Settings

__all__ = ["SAMBridge"]

_PERSONALITIES = {"i2pd": I2pdConversation, "java": JavaConversation}
_VERSIONS = {"i2pd": ("3.0", "3.1"), "java": ("3.0", "3.3")}


class SAMBridge:
    """A SAM bridge that carries streams between its own sessions, in memory. It runs from when it is made.

    Any SAM program can use it; pass it ``samaddr=bridge.sam``. Sessions of the style STREAM, ACCEPT, CONNECT,
    FORWARD, names and keys work as with the router that it imitates, with its faults; the rest is answered as an error.
    Keys are real ones, which a router takes as well. A bridge trusts every program that can connect, so it stays on
    loopback::

        with relay.testing.SAMBridge() as bridge:
            with TunnelServer("web", 8000, samaddr=bridge.sam) as server: ...

    For a bridge behind TLS, put a tunnel in front: ``relay.Tunnel(relay.listen("tls://:0?cert=…&key=…"),
    relay.tcp(*bridge.address), timeout=None)``.

    All times below may be changed while it runs, in :attr:`settings`, where everything has the same name.

    :param personality: ``'i2pd'`` is i2pd 2.45.1, as measured: a CONNECT is OK as soon as the destination is known, one
        ACCEPT at a time is served, a segment holds one command, ``PING`` ends the socket, and the far ends of streams
        never hear of the end of a session. ``'java'`` is the Java router: a CONNECT waits for who accepts, any number
        of ACCEPTs, ports, logins, ``PING`` both ways.
    :param host: where to listen, an IP address.
    :param port: where to listen; 0 for any that is free.
    :param user: who may log in; ``None`` for no login. i2pd has none.
    :param password: of that user.
    :param network: another bridge; both then are routers in one network, whose sessions reach each other, and each can
        die alone. ``None`` for a network of its own.
    :param versions: the lowest and the highest version of SAM that it speaks; ``None`` for those of its personality
        (i2pd 3.0 and 3.1, Java 3.0 and 3.3).
    :param build_time: seconds until a new session is ready (i2pd 2.45: 20).
    :param publish_time: seconds after that until the session can be found by others, and by itself.
    :param lease_life: seconds that a destination can be found after it has ended; a stream to it is OK then, and
        nothing comes (Java: it is not made).
    :param silence: seconds until a stream ends that no program accepts.
    :param remember: seconds after the end of a session for which its keys are a trap: a session made of them meanwhile
        comes at once, works for ``zombie_life``, and then is dead although its socket lives (i2pd: 5). 0 for no trap.
    :param zombie_life: seconds that such a session works.
    :param stale: seconds for which every session believes in the lease set of a destination that it has met after this
        has begun a new life: streams to the new one are OK, and nothing comes; streams from it arrive, empty. Sessions
        that have not met it are not concerned (i2pd: 60 to 150 and more). 0 for no trap.
    :param connect_to_self: whether a session may connect to itself. With i2pd 2.45 such a stream arrives, and no byte
        of it; newer ones do not allow it.
    :param loses_tail: whether what is on its way to a program that reads slowly is lost when the far end closes, but
        for 8 KiB, and no end follows: a fault of i2pd 2.45.
    :param ping_interval: seconds of silence after which the Java router sends ``PING`` (from SAM 3.2 on), and after so
        many more ends the socket.
    :param command_timeout: seconds until HELLO, and below SAM 3.2 from there to the first command, for the Java router.
    :raises OSError: if it cannot listen there, or there are no threads or descriptors left.
    :raises ValueError: if an argument cannot be right; it names the argument.

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
            raise ValueError(f"personality: {personality!r}; allowed are 'i2pd' and 'java'")
        login = _login(personality, user, password)
        #: What it is like.
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
        #: Names that it knows, such as ``site.i2p``, with their destinations: base64, or an address.
        self.addressbook: dict[str, str] = {}
        self._lock = threading.Lock()
        self._closed = False
        self._alive = False
        with contextlib.ExitStack() as undo:
            self._reservation = undo.enter_context(_bound(host, port))
            #: Where it listens: host and port.
            self.address: tuple[str, int] = self._reservation.getsockname()[:2]
            self._network: Network = network._network if network is not None else Network()
            self._network.hub.ask(self._network.enter)
            undo.callback(self._leave)
            self._router = Router(self._network, self.settings, lambda: self.addressbook, _PERSONALITIES[personality])
            self.restart()
            undo.pop_all()

    @property
    def sam(self) -> str:
        """The address as ``samaddr=`` wants it, such as ``127.0.0.1:7656``."""
        host, port = self.address
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    # -- faults --

    def kill(self) -> None:
        """The router dies: every socket is closed, and connections are refused; the port stays taken. Idempotent.

        The far end of a stream, behind another bridge, does not learn of it.
        """
        with self._lock:
            if self._alive:
                self._alive = False
                self._network.hub.ask(self._router.kill)

    def restart(self) -> None:
        """The router returns after :meth:`kill`, at the same port. Does nothing while it runs.

        It remembers nothing; what others remember of its sessions stays.

        :raises OSError: if the system has no socket left, or after :meth:`close`.
        """
        with self._lock:
            if not self._alive:
                listening = _bound(*self._reservation.getsockname()[:2])
                with contextlib.ExitStack() as undo:
                    undo.enter_context(listening)
                    listening.listen(1024)
                    self._network.hub.ask(lambda: self._router.listen(listening))
                    undo.pop_all()
                self._alive = True

    def cut(self, id: str | None = None) -> None:  # noqa: A002
        """Cut the control socket of a session, which ends with it and so do its streams.

        :param id: of the session; ``None`` for all.
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
        """Answer some commands no more, until :meth:`release_answers`; streams go on.

        :param commands: such as ``'HELLO'``, ``'SESSION CREATE'``, ``'STREAM'``; none for all.
        """
        self._network.hub.ask(lambda: self._router.hold(*commands))

    def release_answers(self) -> None:
        """Answer again, also what has come meanwhile."""
        self._network.hub.ask(self._router.release)

    # -- what has happened --

    @property
    def sessions(self) -> list[SessionRecord]:
        """The sessions that live and are ready, the oldest first."""
        return [
            SessionRecord(session.id, session.destination.base64, dict(session.options))
            for session in list(self._router.sessions.values())
            if session.is_ready
        ]

    @property
    def commands(self) -> list[Command]:
        """The last thousand commands, without private keys and passwords."""
        return list(self._router.commands)

    @property
    def streams(self) -> int:
        """The number of accepted streams from or to its sessions."""
        return self._router.streams

    @property
    def connections(self) -> int:
        """The number of sockets without a stream: of sessions, of acceptors, and of silent programs."""
        return len(self._router.conversations)

    # -- its life --

    def close(self) -> None:
        """End everything, and release the port. Idempotent, from any thread."""
        with self._lock:
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
        raise ValueError("user, password: i2pd's SAM has no logins; personality='java' has")
    if user is None or password is None:
        raise ValueError("user, password: give both or neither")
    return user, password


def _bound(host: str, port: int) -> socket.socket:
    """A socket that reserves the port: it is bound and does not listen; another socket of the bridge listens."""
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
    except BaseException:
        bound.close()
        raise
    return bound


def _main() -> None:
    """Serve until SIGTERM or SIGINT comes, or standard input ends if that is a pipe."""
    parser = argparse.ArgumentParser(prog="python -m relay.testing.sambridge", description=_main.__doc__)
    parser.add_argument("--port", type=int, default=0, help="where to listen; 0, the default, for any that is free")
    parser.add_argument(
        "--personality", choices=sorted(_PERSONALITIES), default="i2pd", help="which router it imitates"
    )
    options = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: sys.exit())
    with SAMBridge(port=options.port, personality=options.personality) as bridge:
        sys.stdout.write(f"listening on {bridge.sam}\n")
        sys.stdout.flush()
        if stat.S_ISFIFO(os.fstat(0).st_mode):
            while os.read(0, 4096):
                pass
        else:
            signal.pause()


if __name__ == "__main__":
    _main()
