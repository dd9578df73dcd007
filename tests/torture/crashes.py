"""``relay up`` and its peers while processes are killed or stopped at random points.

A world has one relay with two workers and a tunnel of each kind, ``sshd`` and a SAM bridge. A round checks this:

1. A fault resets only connections of the tunnels that it concerns. All others obey the rules of ``model.py``. A reload,
   which may be under way at that moment, resets none.
2. Each tunnel serves a new client by a deadline after each fault.
3. Nothing is left behind after a fault or at the end: processes, sockets, temporary files, locks, half-written files.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import getpass
import json
import os
import random
import select
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from helpers import reserved_port

from relay.addresses.destinations import PrivateKey
from relay.eventloop.sockets import format_address

from .programs import FaultError, marked, name_of, send
from .traffic import Traffic
from .world import Entrance, World, write_certificate

_GONE = 20.0  # seconds for the processes of a relay that is gone to end
_AT_ONCE = 4  # connections of a tunnel
_STUCK = 15.0  # seconds after which relay has killed a worker that is stopped
_WORKERS = 2
_MASTERS = range(
    1 + _WORKERS, 3 + _WORKERS
)  # ssh: of the shared carrier, each worker, and relay's own login at the start

_IN_WORKERS = ("tcp", "unix", "tls")
_OVER_OPENSSH = ("openssh", "per-worker")
_OVER_SSH = ("paramiko", *_OVER_OPENSSH)
_CARRIED = (*_OVER_SSH, "i2p")
_ALL = (*_IN_WORKERS, "quota", *_CARRIED)

_FILE = """
workers = {workers}
state = "state/relay.state"
log_file = "access.log"
[defaults]
connect_timeout = 20
linger = 900
drain = 5
[tunnels.tcp]
listen = "127.0.0.1:{ports[tcp]}"
target = "{far[tcp]}"
[tunnels.unix]
listen = "unix://{folder}/near"
target = "unix://{folder}/far"
[tunnels.tls]
listen = "127.0.0.1:{ports[tls]}"
target = "tls://127.0.0.1:{ports[inner]}?servername=localhost&ca={folder}/ca.pem"
[tunnels.inner]
listen = "tls://127.0.0.1:{ports[inner]}?cert={folder}/cert.pem"
target = "{far[tls]}"
[tunnels.quota]
listen = "127.0.0.1:{ports[quota]}"
target = "{far[quota]}"
limit = [{{name = "much", per = "tunnel", quota = "100TB/month"}}]
[tunnels.paramiko]
listen = "127.0.0.1:{ports[paramiko]}"
target = "{far[paramiko]}"
via = ["{ssh}&known_hosts={folder}/hosts/paramiko&backend=paramiko"]
[tunnels.openssh]
listen = "127.0.0.1:{ports[openssh]}"
target = "{far[openssh]}"
via = ["{ssh}&known_hosts={folder}/hosts/openssh&backend=openssh"]
[tunnels.per-worker]
listen = "127.0.0.1:{ports[per-worker]}"
target = "{far[per-worker]}"
via = ["{ssh}&known_hosts={folder}/hosts/per-worker&backend=openssh"]
carrier_sharing = "per-worker"
[tunnels.site]
listen = "i2p:?sam={sam}"
keys = "keys/site.dat"
target = "{far[i2p]}"
[tunnels.i2p]
listen = "127.0.0.1:{ports[i2p]}"
target = "i2p://{b32}"
via = ["visitor"]
[hops.visitor]
address = "i2p:"
sam = "{sam}"
keys = "keys/visitor.dat"
"""

_SSHD = """
ListenAddress 127.0.0.1:{port}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/client_key.pub
PidFile none
UsePAM no
StrictModes no
UseDNS no
PermitRootLogin yes
PasswordAuthentication no
KbdInteractiveAuthentication no
MaxStartups 500
KexAlgorithms -sntrup*
"""


class FaultCounts:
    """The faults so far, and the longest recovery after each kind, in seconds."""

    def __init__(self) -> None:
        self.counts: collections.Counter[str] = collections.Counter()
        self.longest: dict[str, float] = {}

    def add(self, kind: str, seconds: float) -> None:
        """Count a fault."""
        self.counts[kind] += 1
        self.longest[kind] = max(seconds, self.longest.get(kind, 0.0))

    def __str__(self) -> str:
        return ", ".join(
            f"{count} {kind} (≤ {self.longest[kind]:.1f} s)" for kind, count in sorted(self.counts.items())
        )


# -- the world -----------------------------------------------------------------------------------------------------


class CrashWorld(World):
    """A relay, its peers and its files.

    :param folder: empty; for all files. Its path is short, for the sockets in it.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        names = (*_ALL, "inner", "sshd", "sam")
        self._ports = {name: self._opened.enter_context(reserved_port()) for name in names if name != "unix"}
        self._far = {name: self._target(name) for name in _ALL}
        self.entrances = {
            # The kernel ends the connections of a killed process as it likes, with an EOF or a reset.
            name: Entrance(self._enter(name), self._far[name], half_close=name != "i2p")
            for name in _ALL
        }
        for name in ("run", "tmp", "state", "keys", "hosts"):
            (folder / name).mkdir(0o700)
        self._write_files()
        self.relay = self._relay("relay")
        sshd = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin") or "sshd"
        self.sshd = self._program("sshd", [sshd, "-D", "-e", "-f", f"{folder}/sshd_config"])
        bridge = [sys.executable, "-m", "relay.testing.sambridge", "--port", str(self._ports["sam"])]
        self.bridge = self._program("bridge", bridge)

    def _target(self, name: str) -> socket.socket:
        if name != "unix":
            return self._opened.enter_context(socket.create_server(("127.0.0.1", 0), backlog=1024))
        far = self._opened.enter_context(socket.socket(socket.AF_UNIX))
        far.bind(f"{self.folder}/far")
        far.listen(1024)
        return far

    def _enter(self, name: str) -> Callable[[], socket.socket]:
        if name != "unix":
            return lambda: socket.create_connection(("127.0.0.1", self._ports[name]), 30)

        def enter() -> socket.socket:
            client = socket.socket(socket.AF_UNIX)
            try:
                client.connect(f"{self.folder}/near")
            except OSError as error:
                client.close()
                if isinstance(error, FileNotFoundError):  # it is not there yet
                    raise ConnectionRefusedError(*error.args) from None
                raise
            return client

        return enter

    def _write_files(self) -> None:
        folder = self.folder
        write_certificate(folder)
        for name in ("host_key", "client_key"):
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", f"{folder}/{name}"]
            subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
        self._host_key = (folder / "host_key.pub").read_text().split()[:2]
        command = [sys.executable, "-m", "relay", "keys", "new", f"{folder}/keys/site.dat"]
        subprocess.run(command, check=True, capture_output=True)
        self._keys = {"site.dat": (folder / "keys/site.dat").read_bytes()}
        (folder / "sshd_config").write_text(_SSHD.format(port=self._ports["sshd"], folder=folder))
        if os.geteuid() == 0:
            os.makedirs("/run/sshd", 0o755, exist_ok=True)  # without it a server of root refuses to start
        user, port = getpass.getuser(), self._ports["sshd"]
        more = f"keyfile={folder}/client_key&config=/dev/null&accept_new=yes&keepalive=1"
        text = _FILE.format(
            workers=_WORKERS,
            folder=folder,
            ports=self._ports,
            far={name: format_address(far.getsockname()) for name, far in self._far.items() if name != "unix"},
            ssh=f"ssh://{user}@127.0.0.1:{port}?{more}",
            sam=f"127.0.0.1:{self._ports['sam']}",
            b32=PrivateKey.from_bytes(self._keys["site.dat"]).b32,
        )
        self._text = text
        self.configure({})

    def configure(self, changes: Mapping[str, int]) -> None:
        """Write the file of tunnels.

        :param changes: seconds of ``connect_timeout`` by tunnel.
        """
        text = self._text
        for name, seconds in changes.items():
            text = text.replace(f"[tunnels.{name}]", f"[tunnels.{name}]\nconnect_timeout = {seconds}")
        (self.folder / "relay.toml").write_text(text)

    def victims(self, kind: str) -> list[int]:
        """Return the processes of a kind that run now."""
        if kind in self.programs:
            return [self.programs[kind].pid]
        if kind == "session":
            return self.sshd.family()[1:]
        names = {pid: name_of(pid) for pid in self.relay.family()[1:]}
        if kind == "ssh":
            return [pid for pid, name in names.items() if name == "ssh"]
        return [pid for pid, name in names.items() if name and name != "ssh"]

    # -- what is left --

    def strays(self) -> dict[int, str]:
        """Return the processes of programs that are gone."""
        known = {pid for program in self.programs.values() for pid in program.family()}
        return {pid: name for pid, name in marked(self.token).items() if pid not in known}

    def check_files(self) -> None:
        """Check that each file is whole at this moment; relay may be running, or have been killed.

        :raises FaultError: if one is not.
        """
        for path in (self.folder / "hosts").iterdir():
            text = path.read_text()
            whole = f"[127.0.0.1]:{self._ports['sshd']} {' '.join(self._host_key)}\n"
            if text and set(text.splitlines(True)) != {whole}:
                raise FaultError(f"known_hosts of {path.name}: {text!r}")
        for name in ("site.dat", "visitor.dat"):
            path = self.folder / "keys" / name
            if not path.exists():
                continue
            data = path.read_bytes()
            if self._keys.setdefault(name, data) != data:
                raise FaultError(f"{name}: another key")
            try:
                is_whole = PrivateKey.from_bytes(data).consistent
            except ValueError:
                is_whole = False
            if not is_whole or path.stat().st_mode & 0o077:
                raise FaultError(f"{name}: not a private key of its owner alone")
        self._check_log()

    def _check_log(self) -> None:
        path = self.folder / "access.log"
        for number, line in enumerate(path.read_text().splitlines(True) if path.exists() else [], 1):
            try:
                json.loads(line)
            except ValueError:
                raise FaultError(f"access.log: line {number}: {line!r}") from None

    def used(self) -> int:
        """Return the bytes of the quota in a copy of the state file; relay does not run.

        :raises FaultError: if the file is damaged.
        """
        with contextlib.ExitStack() as undo:
            copy = self.folder / "copy"
            shutil.copytree(self.folder / "state", copy)
            undo.callback(shutil.rmtree, copy)
            path = copy / "relay.state"
            if not path.exists() or not path.stat().st_size:
                return 0
            if path.stat().st_mode & 0o077:
                raise FaultError("the state file is open to others")
            database = undo.enter_context(contextlib.closing(sqlite3.connect(path)))
            if (found := database.execute("PRAGMA integrity_check").fetchone()) != ("ok",):
                raise FaultError(f"the state file is damaged: {found}")
            if not database.execute("SELECT 1 FROM sqlite_master WHERE name = 'entry'").fetchone():
                return 0
            (used,) = database.execute("SELECT sum(used) FROM entry").fetchone()
            return int(used or 0)

    def check_end(self) -> None:
        """End relay, and check that nothing is left.

        :raises FaultError: if something is.
        """
        done = self._ctl("status", "--json")
        if done.returncode != 0:
            raise FaultError(f"relay ctl status: {done.stderr}")
        self.relay.end()
        self.check_files()
        expected = {"keys": {"site.dat", "visitor.dat"}, "state": {"relay.state"}, "hosts": set(_OVER_SSH)}
        for name in ("run", "tmp", "state", "keys", "hosts"):
            found = {str(path.relative_to(self.folder / name)) for path in (self.folder / name).rglob("*")}
            if found != expected.get(name, set()):
                raise FaultError(f"left in {name}: {sorted(found)}")
        if (self.folder / "near").exists():
            raise FaultError("left: the Unix socket of a tunnel")
        for name, port in self._ports.items():
            if name not in ("sshd", "sam"):
                with socket.socket() as client:
                    if not client.connect_ex(("127.0.0.1", port)):
                        raise FaultError(f"the port of {name} is still open")
        deadline = time.monotonic() + _GONE
        while (left := self.strays()) or (left := {pid: name_of(pid) for pid in self.sshd.family()[1:]}):
            if time.monotonic() > deadline:
                raise FaultError(f"processes that are left: {left}")
            select.select([], [], [], 0.05)  # no event reports the end of the process of another one

    def _ctl(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "relay", "ctl", *words]
        return subprocess.run(command, env=self.environment(), capture_output=True, text=True, timeout=60)


# -- the faults ----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Fault:
    """One fault.

    :param victim: the kind of process.
    :param kill: whether it is killed; else it is stopped, and continued later.
    :param hits: the tunnels whose connections it may reset.
    """

    victim: str
    kill: bool
    hits: Sequence[str]
    weight: int = 1
    shortest: float = 0.0
    longest: float = 0.0

    @property
    def name(self) -> str:
        if self.kill:
            return f"{self.victim} killed"
        return f"{self.victim} stopped for {self.shortest:g} to {self.longest:g} s"


_FAULTS = (
    Fault("relay", True, _ALL, 4),
    Fault("worker", True, (*_IN_WORKERS, "per-worker"), 3),
    Fault("ssh", True, _OVER_OPENSSH, 3),
    Fault("sshd", True, _OVER_SSH, 2),
    Fault("session", True, _OVER_SSH, 3),
    Fault("bridge", True, ("i2p",), 2),
    Fault("relay", False, _CARRIED, 3, 0.01, 5.0),
    Fault("worker", False, ("per-worker",), 3, 0.01, 5.0),
    Fault("worker", False, (*_IN_WORKERS, "per-worker"), 1, _STUCK, _STUCK + 3),
    Fault("ssh", False, _OVER_OPENSSH, 2, 0.01, 6.0),
    Fault("sshd", False, _OVER_SSH, 1, 0.01, 6.0),
    Fault("session", False, _OVER_SSH, 2, 0.01, 6.0),
    Fault("bridge", False, ("i2p",), 2, 0.01, 6.0),
)


class Crashes:
    """One round: faults at random points, while clients run traffic through each tunnel.

    :param world: not started yet.
    :param seed: decides the faults, their order and their times, and what the clients do.
    :param faults: how many.
    :param tell: called with a line about each event, to explain a failure.
    :param counts: of the faults.
    """

    def __init__(
        self, world: CrashWorld, seed: int, faults: int, tell: Callable[[str], object], counts: FaultCounts
    ) -> None:
        self._world = world
        self._chance = random.Random(seed)
        self._faults = faults
        self._counts = counts
        self._most_used = 0
        self.traffic = Traffic(world.entrances, seed, _AT_ONCE, tell, lambda: world.relay.log)

    def run(self) -> None:
        """Run the round.

        :raises AssertionError: if a rule is broken, a tunnel does not recover, or something is left behind.
        """
        try:
            for program in (self._world.sshd, self._world.bridge, self._world.relay):
                program.start()
            if self._chance.random() < 0.5:
                self.traffic.run_for(self._chance.uniform(0.0, 2.0))
                self._kill_relay()
                self._world.relay.start()
            self._recover(_ALL, "the start")
            left = self._faults
            while left > 0:
                self.traffic.run_for(self._chance.uniform(0.05, 2.0))
                left -= self._strike(left)
            self.traffic.finish()
        finally:
            self.traffic.close()
        self._world.check_end()
        self._check_quota()

    def _strike(self, most: int) -> int:
        """Inject one or more faults, wait for the recovery, and return their number."""
        faults = [self._choose()]
        while len(faults) < most and self._chance.random() < 0.25:
            faults.append(self._choose())
        if self._chance.random() < 0.3:
            self._reload()
        hit: list[str] = []
        done = []
        names = []
        for fault in faults:
            victims = self._world.victims(fault.victim)
            if not victims:  # those of an earlier fault are not back yet
                self.traffic.note(f"no {fault.victim} to hit")
                continue
            hit += [name for name in fault.hits if name not in hit]
            names.append(self._inject(fault, self._chance.choice(victims), hit))
            done.append(fault)
            if self._chance.random() < 0.5:
                self.traffic.run_for(self._chance.uniform(0.0, 1.5), stepping=False)
        seconds = self._recover(hit, " and ".join(names))
        for fault in done:
            self._counts.add(fault.name, seconds)
        return len(faults)

    def _reload(self) -> None:
        """Let relay reload a changed file. The next fault may come meanwhile."""
        changes = {name: self._chance.randint(15, 25) for name in self._chance.sample(_ALL, 3)}
        self.traffic.note(f"reload: {', '.join(changes)}")
        self._world.configure(changes)
        send(self._world.relay.pid, signal.SIGHUP)
        self.traffic.run_for(self._chance.uniform(0.0, 1.0), stepping=False)

    def _choose(self) -> Fault:
        return self._chance.choices(_FAULTS, [fault.weight for fault in _FAULTS])[0]

    def _inject(self, fault: Fault, pid: int, hit: Sequence[str]) -> str:
        """Inject a fault, and return its description."""
        self.traffic.excuse(hit)
        what = f"{fault.victim} ({pid}) {'killed' if fault.kill else 'stopped'}"
        if not fault.kill:
            seconds = self._chance.uniform(fault.shortest, fault.longest)
            self.traffic.note(f"{what} for {seconds:.2f} s")
            send(pid, signal.SIGSTOP)
            try:
                if fault.victim != "relay":  # a client may be at the worker that is stopped
                    stopped = (*hit, *_IN_WORKERS) if fault.victim == "worker" else hit
                    self.traffic.serve([name for name in _ALL if name not in stopped], f"while {what}")
                self.traffic.run_for(seconds)
            finally:
                send(pid, signal.SIGCONT)
            return f"{what} for {seconds:.2f} s"
        self.traffic.note(what)
        program = self._world.programs.get(fault.victim)
        if program is None:
            send(pid, signal.SIGKILL)
            return what
        if fault.victim == "sshd" and self._chance.random() < 0.5:
            program.kill_family()  # else its sessions go on
        if fault.victim == "relay":
            self._kill_relay()
            if self._chance.random() < 0.4:
                program.start()
                self.traffic.run_for(self._chance.uniform(0.0, 2.5))
                self._kill_relay()
            program.start()
            return what
        program.kill()
        if self._chance.random() < 0.5:
            self.traffic.run_for(self._chance.uniform(0.0, 3.0))
        program.start()
        return what

    def _kill_relay(self) -> None:
        """Kill relay, and check what it leaves for the next one."""
        self.traffic.note("relay killed")
        self._world.relay.kill()
        self._world.check_files()
        self._check_quota()

    def _check_quota(self) -> None:
        """Check that the quota grows, and counts no more than was sent."""
        used = self._world.used()
        if used < self._most_used:
            raise FaultError(f"quota: {used} bytes, and {self._most_used} before")
        self._most_used = used

    # -- recovery --

    def _recover(self, hit: Sequence[str], after: str) -> float:
        """Wait until all tunnels serve new clients, and processes that have lost their parent are gone.

        :param hit: the tunnels whose connections may have been reset.
        :param after: the faults.
        :returns: the seconds until all tunnels served new clients.
        :raises FaultError: if the deadline passes.
        """
        begun = time.monotonic()
        self.traffic.serve(_ALL, f"after {after}")
        seconds = time.monotonic() - begun
        while problem := self._unsettled():
            if time.monotonic() - begun > seconds + _GONE:
                raise FaultError(f"{problem} after {after}:\n{self._world.relay.log}")
            self.traffic.run_for(0.1)
        self._world.check_files()
        self.traffic.demand(hit)
        return seconds

    def _unsettled(self) -> str:
        """Return what is not as it was before the faults."""
        if strays := self._world.strays():
            return f"left behind: {strays}"
        workers, masters = (len(self._world.victims(kind)) for kind in ("worker", "ssh"))
        if workers != _WORKERS or masters not in _MASTERS:
            return f"{workers} workers and {masters} ssh"
        return ""


@contextlib.contextmanager
def world() -> Iterator[CrashWorld]:
    """A world in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="torture-", dir="/tmp") as folder, CrashWorld(Path(folder)) as made:
        yield made
