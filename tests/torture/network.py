"""``relay up`` while the network between it and its peers fails.

A world has two networks, which a link joins. relay and its clients are in the near one, to which this process has been
moved. The far one has ``sshd``, dropbear, the other end of TLS and the targets, behind proxies that disturb their
streams. A network of I2P routers may be a third one, with a proxy before the bridge of one router. A round checks this:

1. A fault that delays bytes, or cuts them into pieces, resets no connection. Neither does a link that comes back.
2. A fault that ends streams resets only connections of the tunnels that it concerns, and none looks whole.
3. Each tunnel serves a new client by a deadline after each fault.
4. At the end relay ends, and leaves nothing.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import os
import random
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from foreign_ssh import Dropbear
from helpers import reserved_port
from i2pd import Network, address_of
from namespace import LOOPBACK, Namespace
from sshd import RealServer, Sshd, server_url

from relay.eventloop.sockets import format_address
from relay.process import PIPE, start

from .model import ModelError
from .programs import FaultError, Program, marked
from .toxics import BACKLOG, Proxies, Proxy, Toxic
from .traffic import Traffic
from .world import Entrance, World, write_certificate

if TYPE_CHECKING:
    from relay.process import Process

_AT_ONCE = 12  # connections of a tunnel
_NEAR, _FAR = "198.18.1.1", "198.18.1.2"  # the two ends of the link
_LINK = {"near": "to_far", "far": "to_near"}  # the interfaces
_DEADLINE = 60.0  # seconds for each tunnel to serve again
_I2P_DEADLINE = 180.0  # the same, if routers have to find new leases of a session
_SETTLE = 1.0  # seconds before a link is cut
_CONNECT = 120  # seconds of relay's connect_timeout

_SSH = ("paramiko", "openssh", "dropbear")
_FAR_ONES = ("tcp", "tls", *_SSH)
_HAS_ENDS = ("tls", *_SSH)  # an end of the TCP stream is not an end of theirs

_FILE = """
workers = 2
[defaults]
connect_timeout = {connect}
linger = 900
drain = 5
[tunnels.tcp]
listen = "127.0.0.1:{ports[tcp]}"
target = "{proxies[tcp]}"
[tunnels.tls]
listen = "127.0.0.1:{ports[tls]}"
target = "tls://{proxies[tls]}?servername=localhost&ca={folder}/ca.pem"
[tunnels.paramiko]
listen = "127.0.0.1:{ports[paramiko]}"
target = "{far[paramiko]}"
via = ["{urls[paramiko]}"]
[tunnels.openssh]
listen = "127.0.0.1:{ports[openssh]}"
target = "{far[openssh]}"
via = ["{urls[openssh]}"]
[tunnels.dropbear]
listen = "127.0.0.1:{ports[dropbear]}"
target = "{far[dropbear]}"
via = ["{urls[dropbear]}"]
"""

_I2P = """
[tunnels.site]
listen = "i2p:?sam={sam}"
keys = "{folder}/site.dat"
target = "{far[i2p]}"
[tunnels.i2p]
listen = "127.0.0.1:{ports[i2p]}"
target = "i2p://{b32}"
via = ["visitor"]
[hops.visitor]
address = "i2p:"
sam = "{proxies[i2p]}"
keys = "{folder}/visitor.dat"
"""

_OTHER_END = """
[tunnels.tls]
listen = "tls://127.0.0.1:{port}?cert={folder}/cert.pem"
target = "{far}"
"""


class NetworkFaults(collections.Counter[str]):
    """The faults so far, by kind: one for each stream that a toxic has acted upon, one for each event of the link."""

    def __init__(self) -> None:
        super().__init__()
        self.events = 0
        self.longest = 0.0

    def __str__(self) -> str:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.items()))
        return f"{self.events} events, {self.total()} faults: {kinds}; longest recovery {self.longest:.1f} s"


class NetworkWorld(World):
    """Two networks, or three, the programs in them, and the link.

    This process has been isolated before: see :func:`namespace.isolate`.

    :param folder: empty; for all files.
    :param i2p: whether there are routers.
    """

    def __init__(self, folder: Path, *, i2p: bool) -> None:
        super().__init__(folder)
        self.names = (*_FAR_ONES, "i2p") if i2p else _FAR_ONES
        with self._opened as opened:
            self.network = opened.enter_context(Namespace())
            self._join()
            self.proxies = opened.enter_context(Proxies())
            for name in ("run", "run-tls", "tmp", "sshd", "dropbear", "routers"):
                (folder / name).mkdir(0o700)
            self._far = {name: opened.enter_context(self._target(name)) for name in self.names}
            self._ports = {name: opened.enter_context(reserved_port()) for name in self.names}
            self.entrances = {
                name: Entrance(
                    functools.partial(socket.create_connection, (LOOPBACK, self._ports[name]), 30),
                    self._far[name],
                    half_close=name != "i2p",
                    # sshd ends the target's connections when its client has gone, and a router its streams.
                    reset=name in ("tcp", "tls"),
                    takes_ends=name == "tls",
                )
                for name in self.names
            }
            servers = [self._server(Sshd, "sshd"), self._server(Dropbear, "dropbear", folder)]
            for server in servers:
                opened.callback(server.stop)
                server.start()
            opened.callback(self._tls(opened).kill_family)
            self.between = self._put_proxies(*servers)
            self._write(*servers)
            if i2p:
                self._add_routers(opened)
            self.relay = self._relay("relay")
            self._opened = opened.pop_all()

    # -- the networks --

    def _join(self) -> None:
        """Connect the two networks by a link."""
        self._ip("link", "add", _LINK["near"], "type", "veth", "peer", _LINK["far"], "netns", str(self.network.pid))
        self._ip("address", "add", f"{_NEAR}/24", "dev", _LINK["near"])
        self._ip("link", "set", _LINK["near"], "up")
        self.return_address()
        self.set_link("far", "up")

    def _ip(self, *words: str, far: bool = False) -> None:
        run: Callable[..., Process] = self.network.run if far else start
        with run(["ip", *words]) as process:
            if process.wait(30) != 0:
                raise OSError(f"ip {' '.join(words)} ends with status {process.returncode}")

    def set_link(self, side: str, state: str) -> None:
        """Set one end of the link ``up`` or ``down``. With the near end down there is no route to the far one."""
        self._ip("link", "set", _LINK[side], state, far=side == "far")

    def remove_address(self) -> None:
        """Take the far network's address away."""
        self._ip("address", "del", f"{_FAR}/24", "dev", _LINK["far"], far=True)

    def return_address(self) -> None:
        """Give the far network its address."""
        self._ip("address", "add", f"{_FAR}/24", "dev", _LINK["far"], far=True)

    def fill(self, name: str) -> contextlib.ExitStack:
        """Fill the backlog of a proxy that does not accept; return the connections that do."""
        fillers = contextlib.ExitStack()
        for _ in range(BACKLOG + 4):
            filler = fillers.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(self.between[name].address)
        return fillers

    # -- the programs --

    def _target(self, name: str) -> socket.socket:
        made = socket.socket() if name == "i2p" else self.network.socket()
        made.bind((LOOPBACK, 0))
        made.listen(1024)
        return made

    def _server(self, kind: type[RealServer], name: str, *more: Path) -> RealServer:
        return kind(self.folder / name, *more, namespace=self.network)

    def _tls(self, opened: contextlib.ExitStack) -> Program:
        """Return the other end of TLS, with its port in the far network; it runs."""
        write_certificate(self.folder)
        reserved = opened.enter_context(self.network.socket())
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind((LOOPBACK, 0))
        self._tls_port = reserved.getsockname()[1]
        far = format_address(self._far["tls"].getsockname())
        text = _OTHER_END.format(port=self._tls_port, folder=self.folder, far=far)
        (self.folder / "tls.toml").write_text(text)
        made = self._relay("tls", run="run-tls", start=self.network.run)
        made.start()
        return made

    def _put_proxies(self, sshd: RealServer, dropbear: RealServer) -> dict[str, Proxy]:
        targets = {
            "tcp": self._far["tcp"].getsockname()[1],
            "tls": self._tls_port,
            "paramiko": sshd.inner_port,
            "openssh": sshd.inner_port,
            "dropbear": dropbear.inner_port,
        }
        made = {}
        for name, port in targets.items():
            listener = self.network.socket()
            listener.bind((_FAR, 0))
            made[name] = self.proxies.add(listener, self.network.socket, (LOOPBACK, port))
        return made

    def _write(self, sshd: RealServer, dropbear: RealServer) -> None:
        urls = {}
        for name, server in zip(_SSH, (sshd, sshd, dropbear), strict=True):
            port = self.between[name].address[1]
            known_hosts = self.folder / f"known_hosts.{name}"
            known_hosts.write_text(f"[{_FAR}]:{port} {server.host_key_line}\n")
            backend = "openssh" if name == "openssh" else "paramiko"
            there = dataclasses.replace(
                server.server, host=_FAR, port=port, known_hosts=str(known_hosts), backend=backend
            )
            urls[name] = server_url(there, keepalive=5)
        text = _FILE.format(
            connect=_CONNECT,
            folder=self.folder,
            ports=self._ports,
            far={name: format_address(far.getsockname()) for name, far in self._far.items()},
            proxies={name: format_address(proxy.address) for name, proxy in self.between.items()},
            urls=urls,
        )
        (self.folder / "relay.toml").write_text(text)

    def _add_routers(self, opened: contextlib.ExitStack) -> None:
        """Start two routers, and add the tunnels over them."""
        network = opened.enter_context(Network(self.folder / "routers", 2, ready=1))
        listener = socket.socket()
        listener.bind((LOOPBACK, 0))
        self.between["i2p"] = self.proxies.add(listener, socket.socket, network.router(2).sam)
        shutil.copy(network.router(1).ready_keys(), self.folder / "site.dat")
        shutil.copy(network.router(2).ready_keys(), self.folder / "visitor.dat")
        text = _I2P.format(
            folder=self.folder,
            sam="{}:{}".format(*network.router(1).sam),
            far={"i2p": format_address(self._far["i2p"].getsockname())},
            ports=self._ports,
            b32=address_of(self.folder / "site.dat"),
            proxies={"i2p": "{}:{}".format(*self.between["i2p"].address)},
        )
        with open(self.folder / "relay.toml", "a") as file:
            file.write(text)

    def describe(self) -> str:
        """Return the connections as relay and the two kernels see them."""
        ctl = [sys.executable, "-m", "relay", "ctl", "connections"]
        commands: list[tuple[Callable[..., Process], list[str]]] = [
            (start, ctl),
            (start, ["ss", "-tanoi"]),
            (self.network.run, ["ss", "-tanoi"]),
        ]
        texts = []
        for run, command in commands:
            with run(command, env=self.environment(), stdout=PIPE) as process:
                texts.append(process.stdout.read().decode())  # type: ignore[union-attr]
        return "\n".join(texts)

    def check_end(self) -> None:
        """End relay, and check that nothing is left.

        :raises FaultError: if something is.
        """
        for far in self._far.values():
            far.close()  # a stream whose client had gone before the target accepted it is not waited for
        for name in ("relay", "tls"):
            self.programs[name].end()
        for name in ("run", "run-tls", "tmp"):
            if found := sorted(os.listdir(self.folder / name)):
                raise FaultError(f"left in {name}: {found}")
        if left := marked(self.token):
            raise FaultError(f"processes that are left: {left}")


# -- the faults ----------------------------------------------------------------------------------------------------


class Faults:
    """One round: faults one after the other, while clients run traffic through each tunnel.

    :param world: relay is not started yet.
    :param seed: decides the faults, their order and how long they last.
    :param events: how many.
    :param tell: called with a line about each event, to explain a failure.
    :param counts: of the faults.
    """

    def __init__(
        self, world: NetworkWorld, seed: int, events: int, tell: Callable[[str], object], counts: NetworkFaults
    ) -> None:
        self._world = world
        self._chance = random.Random(seed)
        self._events = events
        self._counts = counts
        deadline = _I2P_DEADLINE if "i2p" in world.names else _DEADLINE
        self.traffic = Traffic(world.entrances, seed, _AT_ONCE, tell, lambda: world.relay.log, deadline)

    def run(self) -> None:
        """Run the round.

        :raises AssertionError: if a rule is broken, a tunnel does not recover, or something is left behind.
        """
        try:
            self._world.relay.start()
            self._recover(self._world.names, "the start")
            for _ in range(self._events):
                self.traffic.run_for(self._chance.uniform(0.05, 0.5))
                self._strike()
            self.traffic.finish()
        except ModelError as error:
            raise FaultError(f"{error}\n{self._world.relay.log}\n{self._world.describe()}") from None
        finally:
            self.traffic.close()
        self._world.check_end()

    def _recover(self, hit: Sequence[str], after: str) -> None:
        begun = time.monotonic()
        self.traffic.serve(self._world.names, f"after {after}")
        self._counts.longest = max(self._counts.longest, time.monotonic() - begun)
        self.traffic.demand(hit)

    def _strike(self) -> None:
        self._counts.events += 1
        what = self._chance.random()
        if what < 0.1:
            self._cut_link(self._chance.choice(("near", "far")))
        elif what < 0.15:
            self._hide_address()
        elif what < 0.25:
            self._stop_accepting(self._chance.choice(_FAR_ONES))
        else:
            self._poison(self._choose_toxic())

    def _cut_link(self, side: str) -> None:
        """Set the link down and up. What is open goes on; while it is down, connections may fail."""
        seconds = self._chance.uniform(0.1, 4.0)
        self.traffic.note(f"the {side} end of the link is down for {seconds:.2f} s")
        self.traffic.excuse_new(_FAR_ONES)
        self._settle()
        self._world.set_link(side, "down")
        self.traffic.run_for(seconds, stepping=False)
        self._world.set_link(side, "up")
        self._counts["link down"] += 1
        self._recover(_FAR_ONES, f"the link was down at its {side} end")

    def _settle(self) -> None:
        """Let resets arrive. A kernel sends each of them once, so that a link that is cut may swallow it."""
        self.traffic.run_for(_SETTLE, stepping=False)

    def _hide_address(self) -> None:
        seconds = self._chance.uniform(0.1, 4.0)
        self.traffic.note(f"the far address is gone for {seconds:.2f} s")
        self.traffic.excuse_new(_FAR_ONES)
        self._settle()
        self._world.remove_address()
        self.traffic.run_for(seconds, stepping=False)
        self._world.return_address()
        self._counts["address gone"] += 1
        self._recover(_FAR_ONES, "the address was gone")

    def _stop_accepting(self, name: str) -> None:
        """Let a backlog be full for some seconds. Connections wait for it, and do not fail."""
        seconds = self._chance.uniform(0.1, 4.0)
        self.traffic.note(f"{name}: the backlog is full for {seconds:.2f} s")
        world = self._world
        world.proxies.stop_accepting(world.between[name])
        with world.fill(name):
            self.traffic.run_for(seconds)
        world.proxies.end(world.between[name])
        self._counts["full backlog"] += 1
        self._recover((), f"the backlog of {name} was full")

    def _choose_toxic(self) -> Toxic:
        chance = self._chance
        return chance.choice(
            (
                Toxic("latency", latency=chance.uniform(0.005, 0.5)),
                Toxic("jitter", latency=0.01, jitter=chance.uniform(0.01, 0.3)),
                Toxic("bandwidth", rate=chance.randint(2_000_000, 20_000_000)),
                Toxic("slicer", pieces=chance.choice((1, 10, 100, 1500))),
                Toxic("timeout", silence=chance.uniform(0.05, 2.0), is_reset=chance.random() < 0.5),
                Toxic("reset", silence=0.001),
                Toxic("limit", most=chance.randint(1, 300_000), is_reset=chance.random() < 0.5),
            )
        )

    def _poison(self, toxic: Toxic) -> None:
        """Let a toxic act at some proxies."""
        world = self._world
        names = self._chance.sample(world.names, self._chance.randint(1, len(world.names)))
        if toxic.cuts and "i2p" in names and self._chance.random() < 0.9:
            names.remove("i2p")  # a new session takes its router 20 s
        seconds = self._chance.uniform(0.1, 1.5)
        self.traffic.note(f"{toxic} at {', '.join(names)} for {seconds:.2f} s")
        if toxic.cuts:
            self.traffic.excuse(names)
        for name in names:
            has_ends = name in _HAS_ENDS
            world.proxies.begin(world.between[name], toxic if has_ends else dataclasses.replace(toxic, is_reset=True))
        self.traffic.run_for(seconds)
        if not toxic.cuts and self._chance.random() < 0.5:
            self.traffic.serve(names, f"while {toxic.kind} acts")
        for name in names:
            self._counts[toxic.kind] += world.proxies.end(world.between[name])
        self._recover(names if toxic.cuts else (), f"{toxic.kind} at {', '.join(names)}")


@contextlib.contextmanager
def world(*, i2p: bool) -> Iterator[NetworkWorld]:
    """A world in a folder of its own."""
    with (
        tempfile.TemporaryDirectory(prefix="torture-", dir="/tmp") as folder,
        NetworkWorld(Path(folder), i2p=i2p) as made,
    ):
        yield made
