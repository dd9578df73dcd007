"""The relays under test: tunnels over each transport, whose both sides are plain sockets."""

from __future__ import annotations

import contextlib
import random
import select
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

from helpers import WAIT, Server, wait_until

import relay
from relay.engine import changes

from .world import Entrance, write_certificate

_KEPT = 5.0  # seconds for which a stream without a carrier is kept


class Rig(Entrance):
    """A chain of tunnels in this process.

    :param tunnels: those that may be disturbed. The other parameters are those of the class.
    """

    def __init__(
        self,
        enter: Callable[[], socket.socket],
        far: socket.socket,
        tunnels: list[relay.Tunnel],
        *,
        half_close: bool = True,
        reset: bool = True,
    ) -> None:
        super().__init__(enter, far, half_close=half_close, reset=reset, may_fail=False)
        self.tunnels = tunnels

    def disturb(self, chance: random.Random) -> bool:
        """Change a tunnel; return whether that may reset connections."""
        if not self.tunnels:
            return False
        tunnel = chance.choice(self.tunnels)
        what = chance.randrange(4)
        if what == 0:
            tunnel.pause()
            tunnel.resume()
        elif what == 1:
            changes.update(tunnel, nconnect=-1, timeout=None, connect_timeout=60.0, idle_timeout=None, linger=900.0)
        elif what == 2:
            tunnel.connections()
            tunnel.metrics()
        else:
            open_ones = tunnel.connections()
            if open_ones:
                tunnel.kill(chance.choice(open_ones).id)
                return True
        return False


def _target() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0), backlog=1024)


def _tcp(address: tuple[str, int]) -> Callable[[], socket.socket]:
    return lambda: socket.create_connection(address, 30)


@contextlib.contextmanager
def _tunnel(receive: object, factory: object) -> Iterator[relay.Tunnel]:
    with relay.Tunnel(receive, factory, timeout=None, connect_timeout=60.0, linger=900.0) as tunnel:  # type: ignore[arg-type]
        yield tunnel


@contextlib.contextmanager
def tcp(folder: Path, seed: int) -> Iterator[Rig]:
    """One tunnel from TCP to TCP."""
    with _target() as far, _tunnel(relay.listen("127.0.0.1:0"), relay.tcp(*far.getsockname())) as tunnel:
        yield Rig(_tcp(tunnel.address), far, [tunnel])


@contextlib.contextmanager
def unix(folder: Path, seed: int) -> Iterator[Rig]:
    """One tunnel from a Unix socket to another."""
    with socket.socket(socket.AF_UNIX) as far:
        far.bind(str(folder / "far"))
        far.listen(1024)
        with _tunnel(relay.listen(f"unix://{folder}/near"), relay.unix(str(folder / "far"))) as tunnel:

            def enter() -> socket.socket:
                client = socket.socket(socket.AF_UNIX)
                client.connect(str(folder / "near"))
                return client

            yield Rig(enter, far, [tunnel], reset=False)


def _two(scheme: str, path: str = "") -> Callable[[Path, int], contextlib.AbstractContextManager[Rig]]:
    @contextlib.contextmanager
    def two(folder: Path, seed: int) -> Iterator[Rig]:
        """Two tunnels with TLS between them, or WebSockets over it."""
        write_certificate(folder)
        listen = f"{scheme}://127.0.0.1:0{path}?cert={folder}/cert.pem"
        with _target() as far, _tunnel(relay.listen(listen), relay.tcp(*far.getsockname())) as inner:
            target = f"{scheme}://127.0.0.1:{inner.address[1]}{path}?servername=localhost&ca={folder}/ca.pem"
            with _tunnel(relay.listen("127.0.0.1:0"), relay.target(target)) as outer:
                yield Rig(_tcp(outer.address), far, [outer, inner])

    return two


@contextlib.contextmanager
def socks(folder: Path, seed: int) -> Iterator[Rig]:
    """A SOCKS proxy, and a tunnel that goes through it."""
    with _target() as far, _tunnel(relay.socks_listen("127.0.0.1", 0), relay.dynamic()) as inner:
        host, port = far.getsockname()
        via = [f"socks5://127.0.0.1:{inner.address[1]}"]
        with _tunnel(relay.listen("127.0.0.1:0"), relay.target(f"{host}:{port}", via=via)) as outer:
            yield Rig(_tcp(outer.address), far, [outer, inner])


@contextlib.contextmanager
def spawned(folder: Path, seed: int) -> Iterator[Rig]:
    """A tunnel in two worker processes."""
    with _target() as far:
        target = "{}:{}".format(*far.getsockname())
        with relay.spawn("127.0.0.1:0", target, workers=2, connect_timeout=60.0) as tunnel:
            yield Rig(_tcp(tunnel.address), far, [])


@contextlib.contextmanager
def limited(folder: Path, seed: int) -> Iterator[Rig]:
    """A tunnel whose clients share a bandwidth, with a quota that is never used up."""
    limit = [{"per": "tunnel", "bandwidth": "400MB/s"}, {"per": "ip", "quota": "100TB/day", "concurrent": 10_000}]
    with _target() as far:
        factory = relay.tcp(*far.getsockname())
        with relay.Tunnel(relay.listen("127.0.0.1:0"), factory, timeout=None, linger=900.0, limit=limit) as tunnel:
            yield Rig(_tcp(tunnel.address), far, [tunnel])


class _Cutter:
    """Cuts each carrier after a number of bytes, in whatever direction they go; what is under way is lost.

    :param near: the path that it listens at.
    :param far: the path that it leads to.
    :param chance: decides the numbers.
    """

    def __init__(self, near: str, far: str, chance: random.Random) -> None:
        self._far = far
        self._chance = chance
        self._open: set[tuple[socket.socket, socket.socket]] = set()
        self.cuts = 0
        self._server = Server(self._carry, near)

    def _carry(self, near: socket.socket) -> None:
        hello = near.recv(1 << 16)
        with socket.socket(socket.AF_UNIX) as far, contextlib.suppress(OSError):
            far.settimeout(WAIT)
            far.connect(self._far)
            ends = near, far
            if hello[15:16] == b"\0":  # a session that has not begun is not kept: its greetings are let through
                far.sendall(hello)
                near.sendall(far.recv(1 << 16))
                hello = b""
            self._open.add(ends)
            try:
                self._copy(near, far, hello)
            finally:
                self._open.discard(ends)
                self._end(ends)

    def _copy(self, near: socket.socket, far: socket.socket, data: bytes) -> None:
        left = int(2 ** self._chance.uniform(1, 20))
        other = {near: far, far: near}
        while True:
            # Without a hello either end may be the next to speak: the request has gone with it.
            for end in [near] if data else select.select((near, far), (), (), WAIT)[0]:
                data = data or end.recv(min(left, 1 << 16))
                other[end].sendall(data[:left])
                left -= len(data)
                self.cuts += left <= 0
                if left <= 0 or not data:
                    return
                data = b""

    def cut(self) -> None:
        """Cut every carrier now."""
        for ends in tuple(self._open):
            self.cuts += 1
            self._end(ends)

    @staticmethod
    def _end(ends: tuple[socket.socket, socket.socket]) -> None:
        for end in ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Cut all, and take no more."""
        self._server.close()


class _ResumeRig(Rig):
    """One whose carriers are cut."""

    cutter: _Cutter

    def disturb(self, chance: random.Random) -> bool:
        """Cut all carriers, or do what is done to any tunnel."""
        if chance.randrange(2):
            self.cutter.cut()
            return False
        return super().disturb(chance)

    def faults(self) -> dict[str, int]:
        """Return the number of cuts."""
        return {"cuts": self.cutter.cuts}


@contextlib.contextmanager
def resume(folder: Path, seed: int) -> Iterator[Rig]:
    """Streams that go on over other carriers, and what cuts these."""
    from relay.addresses.hops import Proxy
    from relay.addresses.values import TCPAddress
    from relay.transports.proxies.dialer import Proxied
    from relay.transports.proxies.socks_client import request_of
    from relay.transports.resume.client import Resuming
    from relay.transports.resume.figures import BUDGET
    from relay.transports.resume.server import Bounds
    from relay.transports.resume_server.unix import ResumeListener
    from relay.transports.unix import listen_unix

    near, end = str(folder / "near"), str(folder / "end")
    with (
        _target() as far,
        _tunnel(ResumeListener(listen_unix(end), Bounds(_KEPT)), relay.dynamic(rules=["*=direct"])) as inner,
    ):
        cutter = _Cutter(near, end, random.Random(seed))
        try:
            target = TCPAddress(*far.getsockname())
            resuming = Resuming(relay.unix(near), "far relay")
            asking = resuming.saying(request_of(target))
            dialer = Proxied(resuming, Proxy("socks5", "far", 1), target, (), asking=asking)
            with _tunnel(relay.listen("127.0.0.1:0"), dialer) as outer:
                rig = _ResumeRig(_tcp(outer.address), far, [outer, inner])
                rig.cutter = cutter
                yield rig
            wait_until(
                lambda: BUDGET.offered == BUDGET.held == 0
            )  # each end has the last word of the other, or has waited for it
        finally:
            cutter.close()


def _ssh(backend: str) -> Callable[[Path, int], contextlib.AbstractContextManager[Rig]]:
    @contextlib.contextmanager
    def over_ssh(folder: Path, seed: int) -> Iterator[Rig]:
        from relay.testing import SSHServer

        with _target() as far, SSHServer() as server:
            host, port = far.getsockname()
            factory = relay.target(f"{host}:{port}", via=[f"{server.url}&backend={backend}"])
            with _tunnel(relay.listen("127.0.0.1:0"), factory) as tunnel:
                yield Rig(_tcp(tunnel.address), far, [tunnel], reset=False)

    return over_ssh


@contextlib.contextmanager
def i2p(folder: Path, seed: int) -> Iterator[Rig]:
    """A destination at the embedded SAM bridge, and the port that leads to it."""
    from relay.testing import SAMBridge

    with _target() as far, SAMBridge() as bridge:
        keys = folder / "keys.dat"
        with relay.TunnelServer("torture", far.getsockname()[1], bridge.sam, keys=keys, timeout=None) as server:
            with relay.TunnelClient("visitor", 0, server.b32, bridge.sam, timeout=None) as tunnel:
                yield Rig(_tcp(tunnel.address), far, [tunnel, server], half_close=False, reset=False)


RELAYS = {
    "tcp": tcp,
    "unix": unix,
    "tls": _two("tls"),
    "wss": _two("wss", "/torture"),
    "socks": socks,
    "spawned": spawned,
    "limited": limited,
    "paramiko": _ssh("paramiko"),
    "openssh": _ssh("openssh"),
    "i2p": i2p,
    "resume": resume,
}
"""The relays by name."""
