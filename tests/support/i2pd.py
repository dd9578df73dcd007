"""Real i2pd routers for the tests and the measurements: an I2P network of their own, in a network namespace.

Nothing of it meets the real I2P network or the machine's own router: the namespace has a loopback interface only.
"""

from __future__ import annotations

import base64
import hashlib
import os
import select
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from helpers import stop
from namespace import LOOPBACK, Namespace, Unavailable

if TYPE_CHECKING:
    from relay.process import Process

__all__ = [
    "PROGRAM",
    "Network",
    "Router",
    "Section",
    "Unavailable",
    "address_of",
    "client_tunnel",
    "make_keys",
    "server_tunnel",
]

PROGRAM = shutil.which("i2pd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
WAIT = 30.0  # seconds that a router may take for one step; a tenth of a second is usual

Section = tuple[str, Mapping[str, object]]  # of tunnels.conf: a name of its own, and options


_ALL = "198.18.0.0/24"  # the addresses of all routers
_LAST = 20  # lines of a log that are shown after a crash


class Network:
    """A floodfill and some routers, which know each other. A context manager; entering it takes half a second.

    The floodfill is router 0. It has no clients, for it cannot read their lease sets, which it stores itself.

    :param folder: where it may put its files; a directory that exists.
    :param routers: how many beside the floodfill; with three of them a tunnel can have one hop.
    :param ready: how many destinations each router has for :meth:`Router.ready_keys`.
    :param hops: of the tunnels of those.
    :param exploratory: hops of the routers' own tunnels. With none, routers meet only when there is something to send:
        of two that connect to each other at one moment, one may take the other for dead for minutes.
    :param loglevel: ``error``, ``warn``, ``info`` or ``debug``.
    :param floodfills: routers without clients that keep lease sets; one is number 0, the others follow the rest.
    :raises Unavailable: where there can be no network namespace.
    """

    def __init__(
        self,
        folder: Path,
        routers: int = 1,
        *,
        ready: int = 0,
        hops: int = 0,
        exploratory: int = 1,
        loglevel: str = "error",
        floodfills: int = 1,
    ) -> None:
        assert PROGRAM is not None, "there is no i2pd"
        # A copy: where AppArmor is on, Debian's profile keeps the program at its own path to the system's directories.
        self.program = str(shutil.copy(PROGRAM, folder / "i2pd"))
        self.settings = {"exploratory": exploratory, "loglevel": loglevel}
        self.namespace = Namespace(["198.18.0.1"])
        self._has_rules = False
        self.routers = [
            Router(self, folder / f"router-{number}", number, floodfill=not 0 < number <= routers)
            for number in range(routers + floodfills)
        ]
        for router in self.routers[1 : routers + 1]:
            router.keep_ready(ready, hops)

    @property
    def pid(self) -> int:
        """Of the process that holds the namespace, for :func:`namespace.enter`."""
        return self.namespace.pid

    def router(self, number: int) -> Router:
        """One of the routers that have clients; the first has number 1."""
        return self.routers[number]

    def run(self, argv: Sequence[str], **options: Any) -> Process:
        """Start a program in the network; see :meth:`namespace.Namespace.run`."""
        return self.namespace.run(argv, **options)

    def drop_packets_of(self, address: str) -> None:
        """Drop what one of its addresses sends to the others, and gets from them, from now on."""
        if not self._has_rules:  # the kernel asks this table first of all, unless it is moved
            self._rule("add", "pref", "100", "lookup", "local")
            self._rule("del", "pref", "0", "lookup", "local")
            self._has_rules = True
        for rule in _both_ways(address):
            self._rule("add", *rule)

    def pass_packets_of(self, address: str) -> None:
        """End :meth:`drop_packets_of`."""
        for rule in _both_ways(address):
            self._rule("del", *rule)

    def _rule(self, *words: str) -> None:
        with self.run(["ip", "rule", *words]) as process:
            assert process.wait(WAIT) == 0, f"ip rule {' '.join(words)}"

    def start(self) -> Network:
        """Start all routers; returns when they answer."""
        new = self.routers
        while new:  # one that is killed while it writes its description again leaves half of it
            for router in new:
                router.launch(tunnels=False)
            for step in (Router.wait_for_identity, Router.kill):
                for router in new:
                    step(router)
            new = [router for router in new if not router.has_identity]
        # The floodfill gets to know the others when they come, so that it does not connect to them, too.
        for router in self.routers[1:]:
            router.learn(self.routers)
        for step in (Router.launch, Router.wait_until_ready):
            for router in self.routers:
                step(router)
        return self

    def restore(self) -> None:
        """Make it what it was after a test: frozen routers go on, and those that were ended start again.

        :raises AssertionError: with its log, if one has crashed; it runs again all the same.
        """
        crashed = [router for router in self.routers if router.crashed]
        logs = [f"i2pd has crashed: {router.folder.name}, which says:\n{router.last_lines()}" for router in crashed]
        for router in crashed:
            router.kill()
        for router in self.routers:
            if router.runs:
                router.thaw()
            else:
                router.start()
        assert not logs, "\n".join(logs)

    def close(self) -> None:
        """Kill everything in it. Idempotent."""
        for router in self.routers:
            router.close()
        self.namespace.close()

    def __enter__(self) -> Network:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *_: object) -> None:
        self.close()


def _both_ways(address: str) -> list[tuple[str, ...]]:
    """The rules of the routing policy that cut an address off."""
    return [(*way, "pref", "10", "blackhole") for way in (("from", address, "to", _ALL), ("from", _ALL, "to", address))]


class Router:
    """A router of a network, which keeps its identity and its addresses however often it ends and starts.

    ``sam`` is the address of its SAM bridge for programs outside the network, ``inside`` for programs in it.
    """

    def __init__(self, network: Network, folder: Path, number: int, *, floodfill: bool) -> None:
        self.folder = folder
        self.inside = (LOOPBACK, 7656 + 2 * number)  # i2pd takes the port below it, too
        self._network = network
        self._door = network.namespace.door(self.inside[1])
        self._hidden = False
        self.sam = self._door.address
        self._pid: int | None = None
        self._ready: list[Path] = []
        self._sections: list[Section] = []
        folder.mkdir()
        self._address = f"198.18.0.{number + 1}"
        values = {"address": self._address, "port": self.inside[1], "floodfill": str(floodfill).lower()}
        (folder / "i2pd.conf").write_text(CONFIGURATION.format(**values, **network.settings))
        self._write_tunnels()

    @property
    def pid(self) -> int:
        """Its process id, while it runs."""
        assert self._pid is not None, "it does not run"
        return self._pid

    @property
    def runs(self) -> bool:
        """Return true while it runs."""
        return self._pid is not None and Path(f"/proc/{self._pid}").exists()

    @property
    def crashed(self) -> bool:
        """Return true if it has ended by itself."""
        return self._pid is not None and not self.runs

    def configure(self, *tunnels: Section) -> None:
        """Add tunnels of its own (:func:`client_tunnel`, :func:`server_tunnel`), from its next start on."""
        self._sections += tunnels
        self._write_tunnels()

    def keep_ready(self, count: int, hops: int = 0) -> None:
        """Keep more destinations for :meth:`ready_keys`, from its next start on."""
        for number in range(len(self._ready), len(self._ready) + count):
            self._ready.append(self.folder / f"ready-{number}.dat")
            make_keys(self._ready[-1])
            self.configure(_ready_destination(self._ready[-1], 20000 + number, hops))

    @property
    def ready(self) -> int:
        """The number of destinations that are left for :meth:`ready_keys`."""
        return len(self._ready)

    def ready_keys(self) -> Path:
        """The private keys of a destination that the router has tunnels for, twelve seconds after its start.

        A session with them is made at once, and not after 20 seconds; it has the tunnels that are there, whatever its
        options. Each is good for one session: when that ends, the router drops the tunnels as well. (The destination is
        that of a UDP tunnel of the router's own, which is public and does not accept streams itself.)
        """
        return self._ready.pop()

    def _write_tunnels(self) -> None:
        lines = []
        for name, options in self._sections:
            lines += [f"[{name}]", *(f"{key} = {value}" for key, value in options.items())]
        (self.folder / "tunnels.conf").write_text("\n".join(lines) + "\n")

    def start(self) -> None:
        """Start it; returns when it answers."""
        self.launch()
        self.wait_until_ready()

    def launch(self, tunnels: bool = True) -> None:
        """Start it and do not wait for it.

        :param tunnels: false for a start that ends by :meth:`kill` before :meth:`wait_until_ready`: a router that is
            killed while it makes the encryption keys of a tunnel's destination leaves an empty file. It takes that for
            keys of zeros ever after, and no peer can decrypt what that destination sends ("Garlic: Payload section AEAD
            verification failed").
        """
        assert self._pid is None, "it runs already"
        tunconf = "tunnels.conf" if tunnels else "none"
        files = {"conf": "i2pd.conf", "tunconf": tunconf, "tunnelsdir": "none", "logfile": "log", "datadir": ""}
        argv = [self._network.program, *(f"--{option}={self.folder / name}" for option, name in files.items())]
        self._pid = self._network.namespace.spawn(argv, self.folder / "output")

    def wait_until_ready(self) -> None:
        """Wait until its SAM bridge answers, then let clients from outside the network through to it."""
        self._wait(self._answers)
        if not self._hidden:
            self._door.open()

    def hide(self) -> None:
        """Block its SAM bridge for programs outside the network, from now on."""
        self._hidden = True
        self._door.shut()

    def connect(self, timeout: float = WAIT) -> socket.socket:
        """A connection to its SAM bridge from inside the network, even while it is hidden.

        :param timeout: seconds; of the new connection, too.
        :raises OSError: if it cannot be made.
        """
        connection = self._network.namespace.socket()
        connection.settimeout(timeout)
        try:
            connection.connect(self.inside)
        except BaseException:
            connection.close()
            raise
        return connection

    def _answers(self) -> bool:
        try:
            probe = self.connect()
        except ConnectionRefusedError:
            return False
        with probe:
            probe.sendall(b"HELLO VERSION MIN=3.0 MAX=3.1\n")
            return probe.recv(1 << 12).startswith(b"HELLO REPLY RESULT=OK")

    @property
    def has_identity(self) -> bool:
        """Return true if its keys and its own description are there, whole."""
        try:
            info = (self.folder / "router.info").read_bytes()
            Ed25519PublicKey.from_public_bytes(info[352:384]).verify(info[-64:], info[:-64])
        except (FileNotFoundError, ValueError, InvalidSignature):
            return False
        return True

    def wait_for_identity(self) -> None:
        """Wait until it has made its keys and its own description."""
        self._wait(lambda: self.has_identity)

    def _wait(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + WAIT
        while not condition():
            assert self.runs, f"i2pd has ended:\n{self.log()}"
            assert time.monotonic() < deadline, f"i2pd is not ready after {WAIT} s:\n{self.log()}"
            threading.Event().wait(0.005)  # nothing tells when a port begins to listen

    def learn(self, routers: Sequence[Router]) -> None:
        """Put the descriptions of routers where it looks for them when it starts."""
        for router in routers:
            info = router.folder / "router.info"
            name = base64.b64encode(_hash_of_identity(info), altchars=b"-~").decode()
            place = self.folder / "netDb" / f"r{name[0]}"
            place.mkdir(parents=True, exist_ok=True)
            shutil.copy(info, place / f"routerInfo-{name}.dat")

    def stop(self) -> None:
        """Ask it to end (SIGTERM), and wait for it, a second; :meth:`start` brings it back. Idempotent."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """The same with SIGKILL."""
        self._end(signal.SIGKILL)

    def _end(self, number: int) -> None:
        if self._pid is not None:
            pid, self._pid = self._pid, None  # first: one that is ended has not crashed
            _end(pid, number)
            self._door.shut()

    def restart(self) -> None:
        """Kill it and start it again; returns when it answers."""
        self.kill()
        self.start()

    def freeze(self) -> None:
        """Stop it as it is (SIGSTOP): connections stay up, and nothing answers."""
        stop(self.pid)

    def thaw(self) -> None:
        """Let it continue."""
        os.kill(self.pid, signal.SIGCONT)

    def part(self) -> None:
        """Cut it off from all other routers; programs reach it as before."""
        self._network.drop_packets_of(self._address)

    def join(self) -> None:
        """End :meth:`part`."""
        self._network.pass_packets_of(self._address)

    def log(self) -> str:
        """Its log so far."""
        files = (self.folder / "log", self.folder / "output")
        return "".join(file.read_text(errors="replace") for file in files if file.exists())

    def last_lines(self, count: int = _LAST) -> str:
        """The last lines of its log; after a crash with the signal that has ended it."""
        return "\n".join(self.log().splitlines()[-count:])

    def close(self) -> None:
        """Kill it and give up its port outside. Idempotent."""
        if self._pid is not None:
            _end(self._pid, signal.SIGKILL)
            self._pid = None
        self._door.close()


def _end(pid: int, number: int) -> None:
    """Send a process that is not our child a signal, and wait until it is gone."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    with open(descriptor, "rb") as process:
        signal.pidfd_send_signal(descriptor, number)
        end = select.poll()
        end.register(process, select.POLLIN)
        assert end.poll(WAIT * 1000), f"i2pd has not ended within {WAIT} s"


def make_keys(path: Path) -> str:
    """Write the private keys of a new destination, in i2pd's form; returns its .b32.i2p address."""
    secret = Ed25519PrivateKey.generate()
    certificate = bytes.fromhex("05 0004 0007 0000")  # a key certificate: Ed25519, and ElGamal, which nothing uses
    destination = os.urandom(256 + 96) + secret.public_key().public_bytes_raw() + certificate
    path.touch(0o600)
    path.write_bytes(destination + os.urandom(256) + secret.private_bytes_raw())
    return address_of(path)


def address_of(keys: Path) -> str:
    """The .b32.i2p address of a file of private keys."""
    return base64.b32encode(_hash_of_identity(keys)).decode().rstrip("=").lower() + ".b32.i2p"


def _hash_of_identity(file: Path) -> bytes:
    """Of the identity at the beginning of a file: its certificate has a length, the rest is always the same."""
    data = file.read_bytes()
    return hashlib.sha256(data[: 387 + int.from_bytes(data[385:387])]).digest()


def server_tunnel(name: str, keys: Path, port: int, *, hops: int = 0) -> Section:
    """A tunnel of the router's own, from a destination to a port of its 127.0.0.1.

    :param keys: a file in the router's folder; it is made there if it is missing.
    """
    return name, {"type": "server", "host": LOOPBACK, "port": port, "keys": keys.name, **_tunnels(hops)}


def client_tunnel(name: str, port: int, destination: str, *, hops: int = 0) -> Section:
    """A tunnel of the router's own, from a port of its 127.0.0.1 to a destination, which is a .b32.i2p address."""
    there = {"address": LOOPBACK, "port": port, "destination": destination, "keys": "transient"}
    return name, {"type": "client", **there, **_tunnels(hops)}


def _ready_destination(keys: Path, port: int, hops: int) -> Section:
    return keys.stem, {"type": "udpserver", "host": LOOPBACK, "port": port, "keys": keys.name, **_tunnels(hops)}


def _tunnels(hops: int) -> dict[str, object]:
    each = {f"{way}bound.{what}": count for way in ("in", "out") for what, count in (("length", hops), ("quantity", 3))}
    return {**each, "i2cp.leaseSetEncType": "4,0"}


# The address book must be on: without it STREAM CONNECT crashes the router.
CONFIGURATION = """\
daemon = false
log = file
loglevel = {loglevel}
netid = 77
ipv4 = true
ipv6 = false
host = {address}
address4 = {address}
port = 9100
nat = false
reservedrange = false
floodfill = {floodfill}
bandwidth = X
share = 100
[ntcp2]
enabled = true
published = true
port = 9100
[ssu2]
enabled = false
published = false
[sam]
enabled = true
address = 127.0.0.1
port = {port}
[reseed]
verify = false
threshold = 0
urls =
[addressbook]
enabled = true
defaulturl = http://none.i2p/hosts.txt
subscriptions = http://none.i2p/hosts.txt
[persist]
profiles = false
[exploratory]
inbound.length = {exploratory}
outbound.length = {exploratory}
inbound.quantity = 2
outbound.quantity = 2
[http]
enabled = false
[httpproxy]
enabled = false
[socksproxy]
enabled = false
[bob]
enabled = false
[i2cp]
enabled = false
[i2pcontrol]
enabled = false
[upnp]
enabled = false
[nettime]
enabled = false
"""
