"""The user instructions of relay: none of the figures in ``instructions.toml`` is exceeded by more than 3 %.

A time on a busy machine differs by a fifth from one run to the next; these differ by less than 1 %.
"""

from __future__ import annotations

import shutil
import signal
import ssl
import subprocess
import sys
import tomllib
from collections.abc import Callable
from contextlib import ExitStack, closing
from functools import partial
from importlib.metadata import version
from pathlib import Path

import pytest
from helpers import wait_until

from benchmarks.counted import CountedProcess, started, wait_until_asleep
from benchmarks.loads.lockstep import Lockstep
from benchmarks.loads.tcp import Lab
from benchmarks.machine import LOOPBACK, relay_command, reserved_port
from benchmarks.rows.instructions import counted, help_of_relay, importing
from benchmarks.sshd import Server

FILE = Path(__file__).with_name("instructions.toml")
KEPT = tomllib.loads(FILE.read_text())
TOLERANCE = 1.03
MORE = 20  # tunnels that a reload adds

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(shutil.which("valgrind") is None, reason="there is no valgrind (Debian: valgrind)"),
]


def measured_with() -> dict[str, str]:
    """Return the versions that the figures depend on."""
    valgrind = subprocess.run(["valgrind", "--version"], capture_output=True, text=True, check=True).stdout.strip()
    packages = {name: version(name) for name in ("cryptography", "paramiko")}
    return {"python": sys.version, "openssl": ssl.OPENSSL_VERSION, "valgrind": valgrind, **packages}


class Tunnels:
    """A file of tunnels, each with a load of its own, and ``relay up`` with that file.

    :param lab: for the other programs.
    :param server: an SSH server.
    """

    def __init__(self, lab: Lab, server: Server) -> None:
        ca = lab.certificate()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(ca.with_name("both.pem"))
        self.loads = {"plain": Lockstep(), "limited": Lockstep(), "tls": Lockstep(context), "ssh": Lockstep()}
        hop = f"ssh://{server.user}@{LOOPBACK}:{server.port}?keyfile={server.key}&known_hosts={server.known_hosts}"
        self._options = {
            "limited": 'limit = [{per="ip", rate="1000000/1s", concurrent=1000}]\nallow = ["cidr:127.0.0.0/8"]\n',
            "ssh": f'via = ["{hop}&config=/dev/null"]\n',
        }
        self.names = ["plain", "limited", "tls"]  # paramiko looks around ten times a second, so its tunnel comes last
        self._ca = ca
        self.path = lab.folder() / "relay.toml"
        self.path.touch(0o600)

    def write(self, more: int, target: int = 1) -> None:
        """Write the file.

        :param more: tunnels without clients.
        :param target: of the first of these.
        """
        text = ['control = "none"\n']
        for name in self.names:
            load = self.loads[name]
            place = f"{LOOPBACK}:{load.target}"
            if name == "tls":
                place = f"tls://{place}?ca={self._ca}&servername=localhost"
            text.append(f'[tunnels.{name}]\nlisten = "{LOOPBACK}:{load.port}"\ntarget = "{place}"\n')
            text.append(self._options.get(name, ""))
        for number in range(more):
            where = 1 if number else target
            text.append(f'[tunnels.t{number}]\nlisten = "{LOOPBACK}:0"\ntarget = "{LOOPBACK}:{where}"\n')
        self.path.write_text("".join(text))

    def start(self) -> CountedProcess:
        """Start the command."""
        self.write(1)
        process = CountedProcess([relay_command(), "up", str(self.path)], self.loads["plain"].port, self.path.parent)
        self.wait_for(process, f"{len(self.names) + 1} of {len(self.names) + 1} tunnels listen")
        return process

    def wait_for(self, process: CountedProcess, words: str, count: int = 1) -> None:
        """Wait until it has said this so often, and done all that goes with it."""
        wait_until(lambda: process.log.read_text().count(words) == count, 300)
        wait_until_asleep(started())


def measure(folder: Path) -> dict[str, float]:
    """All figures but those of programs that start, in thousands."""
    with ExitStack() as stack:
        lab = stack.enter_context(closing(Lab(folder, 1)))
        tunnels = Tunnels(lab, stack.enter_context(lab.ssh_server()))
        for load in tunnels.loads.values():
            stack.enter_context(closing(load))
            load.port = stack.enter_context(reserved_port())
        process = stack.enter_context(tunnels.start())
        loads = tunnels.loads

        found: dict[str, float] = {}

        def each(name: str, work: Callable[[], object], times: int, warm: int = 20) -> None:
            """Note the least of up to three figures: a busy machine only adds to one, as it wakes relay more often."""
            for _ in range(3):
                figure = counted(process, work, times, warm)["instructions"] / 1000
                found[name] = min(figure, found.get(name, figure))
                if found[name] <= TOLERANCE * KEPT["thousands"][name]:
                    break

        each("connection", loads["plain"].connection, 300)
        each("connection-limited", loads["limited"].connection, 300)
        each("connection-tls", loads["tls"].connection, 30)
        client, target = loads["plain"].pair()
        with client, target:
            each("request", partial(loads["plain"].exchange, client, target), 200)
            each("bulk-copied", partial(loads["plain"].pour, client, target, 2**14), 16, 2)
            each("bulk-spliced", partial(loads["plain"].pour, client, target, 2**15), 24, 2)
        assert loads["tls"].resumed

        def reload(more: int, changed: int, port: int = 1) -> None:
            done = process.log.read_text().count("tunnels changed")
            tunnels.write(more, port)
            process.signal(signal.SIGHUP)
            tunnels.wait_for(process, "tunnels changed", done + 1)
            assert f"reload: {changed} of" in process.log.read_text().splitlines()[-1]

        found["tunnel"] = counted(process, lambda: reload(1 + MORE, MORE), 1, 0)["instructions"] / 1000 / MORE
        ports_of_one = iter(range(2, 20))
        each("reload", lambda: reload(1 + MORE, 1, next(ports_of_one)), 2, 1)
        tunnels.names.append("ssh")
        reload(1 + MORE, 2, next(ports_of_one))
        each("stream-ssh", loads["ssh"].connection, 50)
        return found


def starts(folder: Path) -> dict[str, float]:
    """The figures of programs that start and end."""
    with closing(Lab(folder, 1)) as lab:
        kinds = {"import": importing, "help": help_of_relay}
        return {name: one(lab, "relay")["instructions"] / 1000 for name, one in kinds.items()}


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """Every figure, in thousands."""
    if measured_with() != KEPT["measured_with"]:
        pytest.skip(f"this machine has {measured_with()}, and {FILE.name} is for {KEPT['measured_with']}")
    return measure(tmp_path_factory.mktemp("running")) | starts(tmp_path_factory.mktemp("starts"))


@pytest.mark.parametrize("name", KEPT["thousands"])
def test_it_costs_no_more_than_before(name, measured):
    kept = KEPT["thousands"][name]
    assert measured[name] <= TOLERANCE * kept, f"{name}: {measured[name]:.1f} thousand instructions, {kept} before"
