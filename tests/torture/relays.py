"""The relays under test: tunnels over each transport, whose both sides are plain sockets."""

from __future__ import annotations

import contextlib
import random
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import relay
from relay.engine import changes

from .world import Entrance, write_certificate


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


def target_socket() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0), backlog=1024)


def _tcp(address: tuple[str, int]) -> Callable[[], socket.socket]:
    return lambda: socket.create_connection(address, 30)


@contextlib.contextmanager
def open_tunnel(receive: object, factory: object) -> Iterator[relay.Tunnel]:
    with relay.Tunnel(receive, factory, timeout=None, connect_timeout=60.0, linger=900.0) as tunnel:  # type: ignore[arg-type]
        yield tunnel


@contextlib.contextmanager
def tcp(folder: Path, seed: int) -> Iterator[Rig]:
    """One tunnel from TCP to TCP."""
    with target_socket() as far, open_tunnel(relay.listen("127.0.0.1:0"), relay.tcp(*far.getsockname())) as tunnel:
        yield Rig(_tcp(tunnel.address), far, [tunnel])


@contextlib.contextmanager
def unix(folder: Path, seed: int) -> Iterator[Rig]:
    """One tunnel from a Unix socket to another."""
    with socket.socket(socket.AF_UNIX) as far:
        far.bind(str(folder / "far"))
        far.listen(1024)
        with open_tunnel(relay.listen(f"unix://{folder}/near"), relay.unix(str(folder / "far"))) as tunnel:

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
        with target_socket() as far, open_tunnel(relay.listen(listen), relay.tcp(*far.getsockname())) as inner:
            target = f"{scheme}://127.0.0.1:{inner.address[1]}{path}?servername=localhost&ca={folder}/ca.pem"
            with open_tunnel(relay.listen("127.0.0.1:0"), relay.target(target)) as outer:
                yield Rig(_tcp(outer.address), far, [outer, inner])

    return two


@contextlib.contextmanager
def socks(folder: Path, seed: int) -> Iterator[Rig]:
    """A SOCKS proxy, and a tunnel that goes through it."""
    with target_socket() as far, open_tunnel(relay.socks_listen("127.0.0.1", 0), relay.dynamic()) as inner:
        host, port = far.getsockname()
        via = [f"socks5://127.0.0.1:{inner.address[1]}"]
        with open_tunnel(relay.listen("127.0.0.1:0"), relay.target(f"{host}:{port}", via=via)) as outer:
            yield Rig(_tcp(outer.address), far, [outer, inner])


@contextlib.contextmanager
def spawned(folder: Path, seed: int) -> Iterator[Rig]:
    """A tunnel in two worker processes."""
    with target_socket() as far:
        target = "{}:{}".format(*far.getsockname())
        with relay.spawn("127.0.0.1:0", target, workers=2, connect_timeout=60.0) as tunnel:
            yield Rig(_tcp(tunnel.address), far, [])


@contextlib.contextmanager
def limited(folder: Path, seed: int) -> Iterator[Rig]:
    """A tunnel whose clients share a bandwidth, with a quota that is never used up."""
    limit = [{"per": "tunnel", "bandwidth": "400MB/s"}, {"per": "ip", "quota": "100TB/day", "concurrent": 10_000}]
    with target_socket() as far:
        factory = relay.tcp(*far.getsockname())
        with relay.Tunnel(relay.listen("127.0.0.1:0"), factory, timeout=None, linger=900.0, limit=limit) as tunnel:
            yield Rig(_tcp(tunnel.address), far, [tunnel])


def _ssh(backend: str) -> Callable[[Path, int], contextlib.AbstractContextManager[Rig]]:
    @contextlib.contextmanager
    def over_ssh(folder: Path, seed: int) -> Iterator[Rig]:
        from relay.testing import SSHServer

        with target_socket() as far, SSHServer() as server:
            host, port = far.getsockname()
            factory = relay.target(f"{host}:{port}", via=[f"{server.url}&backend={backend}"])
            with open_tunnel(relay.listen("127.0.0.1:0"), factory) as tunnel:
                yield Rig(_tcp(tunnel.address), far, [tunnel], reset=False)

    return over_ssh


@contextlib.contextmanager
def i2p(folder: Path, seed: int) -> Iterator[Rig]:
    """A destination at the embedded SAM bridge, and the port that leads to it."""
    from relay.testing import SAMBridge

    with target_socket() as far, SAMBridge() as bridge:
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
}
"""The relays by name."""
