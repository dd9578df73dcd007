"""The command ``relay up`` under faults of its system calls; see ``faults.c``."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from helpers import reserved_port

from relay.eventloop.sockets import format_address

from .model import ModelError
from .world import Entrance, write_certificate

KINDS = ("would block", "short", "interrupted", "no cause", "aborted", "hard", "calls")
_COUNTS = struct.Struct(f"{len(KINDS)}Q")
_START = 30.0  # seconds


def build(folder: Path) -> Path:
    """Return the library, built by the system's compiler."""
    library = folder / "faults.so"
    source = Path(__file__).with_name("faults.c")
    subprocess.run(["gcc", "-shared", "-fPIC", "-O2", "-o", str(library), str(source), "-ldl"], check=True)
    return library


class FaultyRig(Entrance):
    """A command that runs; the faults disturb it enough.

    :param process: the command.
    :param address: where it listens.
    :param far: the listening socket of its target.
    :param counts: the file with the counters of the faults.
    :param hard: whether faults may end connections.
    """

    def __init__(
        self, process: subprocess.Popen[str], address: tuple[str, int], far: socket.socket, counts: Path, *, hard: bool
    ) -> None:
        enter = functools.partial(socket.create_connection, address, 30)
        super().__init__(enter, far, half_close=True, reset=True, may_fail=hard)
        self._process = process
        self._counts = counts

    def faults(self) -> dict[str, int]:
        """Return the number of faults of each kind, and of the calls."""
        return dict(zip(KINDS, _COUNTS.unpack(self._counts.read_bytes()[: _COUNTS.size]), strict=True))

    def descriptors(self) -> int:
        """Return the number of open descriptors of the command."""
        return len(os.listdir(f"/proc/{self._process.pid}/fd"))


_TWO = (
    '[tunnels.one]\nlisten = "127.0.0.1:0"\n'
    'target = "{scheme}://127.0.0.1:{port}{path}?servername=localhost&ca={folder}/ca.pem"\n'
    '[tunnels.two]\nlisten = "{scheme}://127.0.0.1:{port}{path}?cert={folder}/cert.pem"\ntarget = "{far}"\n'
)
_FILES = {
    "tcp": '[tunnels.one]\nlisten = "127.0.0.1:0"\ntarget = "{far}"\n',
    "tls": _TWO.replace("{path}", "").replace("{scheme}", "tls"),
    "wss": _TWO.replace("{path}", "/torture").replace("{scheme}", "wss"),
    "limited": (
        '[tunnels.one]\nlisten = "127.0.0.1:0"\ntarget = "{far}"\n'
        'limit = [{{per = "tunnel", bandwidth = "400MB/s"}}, {{per = "ip", quota = "100TB/day"}}]\n'
    ),
}


def faulty(
    kind: str, *, hard: bool, rate: int = 20_000
) -> Callable[[Path, int], contextlib.AbstractContextManager[FaultyRig]]:
    """Return what starts a command under faults.

    :param kind: of its file.
    :param hard: whether there are faults that may end a connection.
    :param rate: the chance of a fault, in 65,536 calls.
    """

    @contextlib.contextmanager
    def start(folder: Path, seed: int) -> Iterator[FaultyRig]:
        write_certificate(folder)
        counts = folder / "counts"
        counts.write_bytes(bytes(4096))
        with socket.create_server(("127.0.0.1", 0), backlog=1024) as far, reserved_port() as port:
            text = _FILES[kind].format(far=format_address(far.getsockname()), folder=folder, port=port)
            (folder / "relay.toml").write_text(
                'control = "none"\n[defaults]\nconnect_timeout = 60\nlinger = 900\ndrain = 8\n' + text
            )
            environment = {
                **os.environ,
                "LD_PRELOAD": str(build(folder)),
                "PYTHONFAULTHANDLER": "1",
                "TORTURE_SEED": str(seed),
                "TORTURE_RATE": str(rate),
                "TORTURE_COUNTS": str(counts),
                **({"TORTURE_HARD": "1"} if hard else {}),
            }
            with _running(folder, environment) as process:
                address = _address(process, text.count("[tunnels."))
                with open(counts, "r+b") as file:
                    file.seek(8 * len(KINDS))
                    file.write(struct.pack("Q", 1))
                yield FaultyRig(process, address, far, counts, hard=hard)
                far.close()  # a target's stream whose client had gone before it came is not waited for

    return start


@contextlib.contextmanager
def _running(folder: Path, environment: Mapping[str, str]) -> Iterator[subprocess.Popen[str]]:
    """Run the command with the file in a folder, and check that it ends in time, without open connections.

    Its log is in errors of the model, and in its own.
    """
    command = [sys.executable, "-m", "relay", "up", str(folder / "relay.toml")]
    with open(folder / "log", "w+") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment)
    try:
        yield process
        process.send_signal(signal.SIGTERM)
        process.wait(_START)
        if "closed" in _summary(folder):
            raise AssertionError(f"connections were open when all clients had gone:\n{_end_of(folder)}")
    except ModelError as error:
        process.terminate()
        process.wait(_START)
        raise ModelError(f"{error}\n{_end_of(folder)}") from None
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGABRT)  # the threads' stacks are in the log then
        process.wait(_START)
        raise AssertionError(f"it does not end:\n{_end_of(folder)}") from None
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def _summary(folder: Path) -> str:
    """Return the line about all connections; ``closed`` is the reason of those that were open after the drain."""
    return next((line for line in reversed((folder / "log").read_text().splitlines()) if " connections, " in line), "")


def _end_of(folder: Path) -> str:
    """Return the last lines of the log."""
    return "".join((folder / "log").read_text().splitlines(True)[-80:])


def _address(process: subprocess.Popen[str], tunnels: int) -> tuple[str, int]:
    """Return the address of the first tunnel, once all listen."""
    assert process.stdout is not None
    found = {}
    for _ in range(tunnels):
        name, _, rest = process.stdout.readline().partition(": listening on ")
        host, _, port = rest.partition(" ")[0].rpartition(":")
        found[name] = host, port
    host, port = found["one"]
    return host, int(port)


FAULTY = {
    **{f"faulty-{kind}": faulty(kind, hard=False) for kind in _FILES},
    **{f"hard-{kind}": faulty(kind, hard=True, rate=300) for kind in _FILES},
}
"""Commands under faults, by name: those that no client may notice, and those that may end a connection."""
