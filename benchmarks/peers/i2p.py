"""A private I2P network of real routers, and the ways through it that are measured, all up at the same time."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import socket
import subprocess
import sys
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import Any

from ..machine import LOOPBACK, MeasurementError, UnavailableError, compiled, relay_command

ROOT = Path(__file__).parents[2]
PATIENCE = 180.0  # seconds until every way through the network must be open
TARGET = 7000
RELAY_PORT = 7001
ROUTER_PORT = 7002
C_NEAR, C_FAR = 7003, 7004  # of the C relays
C_RELAY = ROOT / "benchmarks" / "c" / "relay.c"
SOON = 5.0  # seconds for a program to end

# name → routers beside the floodfill, hops of each tunnel, the client's router, the server's
WORLDS = {"one": (1, 0, 1, 1), "two": (2, 0, 1, 2), "hop": (3, 1, 1, 2)}


class World:
    """One network. Ended by :meth:`close`.

    :param kind: of :data:`WORLDS`.
    :param directory: for its files.
    :raises UnavailableError: where there is no i2pd, or no network namespace.
    """

    def __init__(self, kind: str, directory: Path) -> None:
        routers, self.hops, near, far = WORLDS[kind]
        directory.mkdir()
        i2pd = _rig()
        self._open = ExitStack()
        self._log = self._open.enter_context((directory / "log").open("ab"))
        self._programs: list[subprocess.Popen[bytes]] = []
        self.recovered: dict[str, dict[str, float]] = {}  # what was measured of all peers at once, by peer
        try:
            self.network = i2pd.Network(directory, routers)
            self._open.callback(self.network.close)
            self.near, self.far = self.network.router(near), self.network.router(far)
            self._ports = [RELAY_PORT]
            if not self.hops:  # three routers have enough to do with the tunnels of the others
                keys = self.far.folder / "builtin.dat"
                address = i2pd.make_keys(keys)
                self.far.configure(i2pd.server_tunnel("builtin-server", keys, TARGET))
                self.near.configure(i2pd.client_tunnel("builtin-client", ROUTER_PORT, address))
                self._ports.append(ROUTER_PORT)
            self.network.start()
            self._start_all(directory)
        except i2pd.Unavailable as error:
            self.close()
            raise UnavailableError(str(error)) from None
        except BaseException:
            self.close()
            raise

    def _start_all(self, directory: Path) -> None:
        self._run([sys.executable, "-m", "benchmarks.loads.i2p", "serve", str(TARGET)])
        depth = f"in_depth={self.hops}&out_depth={self.hops}"
        far, near = (f"sam={host}:{port}" for host, port in (self.far.inside, self.near.inside))
        keys = directory / "relay.dat"
        server = self._run(
            [relay_command(), "expose", f"{LOOPBACK}:{TARGET}", "--on", f"i2p:?{far}&{depth}&keys={keys}"]
        )
        self.raw = {"i2p-raw": Raw(self, "raw", TARGET, self.near.inside[1])}
        if self.hops == 0 and self.near is self.far:
            self.raw["i2p-c"] = Raw(self, "c", C_FAR, C_NEAR)
            for port, target in ((C_FAR, TARGET), (C_NEAR, self.near.inside[1])):
                self._run([compiled(C_RELAY, directory), str(port), str(target)])
        assert server.stdout is not None
        address = server.stdout.readline().decode().split()[0]
        client = self._run([relay_command(), "forward", str(RELAY_PORT), f"i2p://{address}?{near}&{depth}"])
        self.server, self.client = server, client
        for port in self._ports:
            self.load("until", str(port), str(PATIENCE), patience=PATIENCE + 30)

    def _run(self, argv: list[str]) -> subprocess.Popen[bytes]:
        program: subprocess.Popen[bytes] = self.network.run(
            argv,
            stdout=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            stderr=self._log,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )
        self._programs.append(program)
        return program

    def place(self, peer: str) -> str:
        """Return the address of a peer for a load."""
        ports = {"i2p-relay": RELAY_PORT, "i2pd": ROUTER_PORT}
        return str(ports[peer]) if peer in ports else self.raw[peer].place

    def load(self, word: str, place: str, *rest: str, patience: float = 120.0) -> dict[str, float]:
        """Run a load inside; returns its figures.

        :raises MeasurementError: if it fails or does not end in time.
        """
        argv = [sys.executable, "-m", "benchmarks.loads.i2p", word, place, *rest]
        program = self.network.run(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            said, complaint = program.communicate(timeout=patience)
        except subprocess.TimeoutExpired:
            program.kill()
            program.communicate()
            raise MeasurementError(f"{word}: no end after {patience:.0f} s") from None
        if program.returncode:
            raise MeasurementError(f"{word}: {' / '.join(complaint.decode().strip().splitlines()[-1:])}")
        figures: dict[str, float] = json.loads(said)
        return figures

    def cpu(self) -> tuple[float, float]:
        """Processor seconds so far: of our two programs, and of the routers between them."""
        ours = sum(_cpu(program.pid) for program in (self.server, self.client))
        return ours, sum(_cpu(router.pid) for router in {self.near, self.far})

    def close(self) -> None:
        """End everything."""
        for program in self._programs:
            program.kill()
            program.wait(SOON)
            if program.stdout is not None:
                program.stdout.close()
        self._open.close()


class Raw:
    """SAM without anything between: a session each, and a router that connects to the target by itself.

    :param world: the network.
    :param name: of the sessions.
    :param target: the port to which the router connects.
    :param sam: the port of the client's bridge, or of what leads there.
    """

    def __init__(self, world: World, name: str, target: int, sam: int) -> None:
        self._world = world
        self._name, self._target, self._sam = name, target, sam
        depth = f"inbound.length={world.hops} outbound.length={world.hops}"
        options = f"SIGNATURE_TYPE=7 i2cp.leaseSetEncType=4,0 {depth} inbound.quantity=3 outbound.quantity=3"
        self._controls = [
            self._control(router, f"SESSION CREATE STYLE=STREAM ID={name}-{side} DESTINATION=TRANSIENT {options}")
            for side, router in (("far", world.far), ("near", world.near))
        ]
        self._place: str | None = None

    def _control(self, router: Any, request: str) -> Any:
        control = self._world._open.enter_context(self._world.network.namespace.socket())
        control.settimeout(PATIENCE)
        control.connect(router.inside)
        _ask(control, "HELLO VERSION MIN=3.1 MAX=3.3")
        control.sendall(f"{request}\n".encode())
        return control

    @property
    def place(self) -> str:
        """For :func:`benchmarks.loads.i2p.through_sam`; the sessions are waited for when it is first asked for."""
        if self._place is None:
            for control in self._controls:
                _line(control)
            forward = self._control(
                self._world.far, f"STREAM FORWARD ID={self._name}-far PORT={self._target} SILENT=true"
            )
            _line(forward)
            destination = _ask(self._controls[0], "NAMING LOOKUP NAME=ME").split("VALUE=")[1]
            self._place = f"{self._sam}/{self._name}-near/{destination}"
            self._world.load("until", self._place, str(PATIENCE), patience=PATIENCE + 30)
        return self._place


class Destination:
    """A destination at a SAM bridge, which connects to a target by itself for each stream.

    :param bridge: its address.
    :param target: a port of 127.0.0.1.
    """

    def __init__(self, bridge: tuple[str, int], target: int) -> None:
        self._open = ExitStack()
        try:
            session = self._ask_first(bridge, "SESSION CREATE STYLE=STREAM ID=there DESTINATION=TRANSIENT")
            self._ask_first(bridge, f"STREAM FORWARD ID=there PORT={target} SILENT=true")
            public = _ask(session, "NAMING LOOKUP NAME=ME").split("VALUE=")[1]
        except BaseException:
            self._open.close()
            raise
        digest = hashlib.sha256(base64.b64decode(public, b"-~")).digest()
        self.address = f"{base64.b32encode(digest).decode().lower().rstrip('=')}.b32.i2p"

    def _ask_first(self, bridge: tuple[str, int], request: str) -> socket.socket:
        control = self._open.enter_context(socket.create_connection(bridge, PATIENCE))
        _ask(control, "HELLO VERSION MIN=3.0 MAX=3.1")
        _ask(control, request)
        return control

    def __enter__(self) -> Destination:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()


def _ask(control: Any, request: str) -> str:
    control.sendall(f"{request}\n".encode())
    return _line(control)


def _line(control: Any) -> str:
    line = b""
    while not line.endswith(b"\n"):
        more = control.recv(1 << 13)
        if not more:
            raise MeasurementError("the SAM bridge has ended a conversation")
        line += more
    answer = line.decode().strip()
    if "RESULT=OK" not in answer:
        raise MeasurementError(f"SAM: {answer}")
    return answer


def _rig() -> Any:
    """The private network of the tests; it needs nothing of them."""
    tests = str(ROOT / "tests" / "support")
    if tests not in sys.path:
        sys.path.append(tests)
    i2pd = import_module("i2pd")
    if i2pd.PROGRAM is None:
        raise UnavailableError("i2pd is not installed")
    return i2pd


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
