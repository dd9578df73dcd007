"""A soak test: ``python -m tests.torture.soak --minutes 30 --folder results``.

``relay up`` serves connections and bulk streams through several tunnels until the time is over. Sixty samples are taken
meanwhile: descriptors, threads, resident memory, Python objects, the size of the log, and the latencies of the clients.
None of them may grow; latencies depend on the machine, and are only printed. ``--folder`` takes the samples and a plot.
``tests/support`` has to be in ``PYTHONPATH``.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from helpers import reserved_port
from sshd import Sshd, server_url

from relay.process import start

from .programs import Program
from .world import write_certificate

_SOURCE = Path(__file__).with_name("load.c")
_WRAPPER = Path(__file__).with_name("counted.py")
_BULK = 256  # MiB of a bulk stream
_SAMPLES = 60  # of a run
_SETTLED = 0.25  # part of a run after which nothing may grow any more
_NOISE = 0.03  # growth over the rest of a run that counts as none, as a part of the mean

_FILE = """
control = "none"
[defaults]
drain = 10
[tunnels.tcp]
listen = "127.0.0.1:{ports[tcp]}"
target = "127.0.0.1:{far[tcp]}"
[tunnels.bulk]
listen = "127.0.0.1:{ports[bulk]}"
target = "127.0.0.1:{far[bulk]}"
[tunnels.limited]
listen = "127.0.0.1:{ports[limited]}"
target = "127.0.0.1:{far[tcp]}"
limit = [{{per = "ip", rate = "1000000/s", concurrent = 10000, quota = "1000TB/day"}}]
[tunnels.outer]
listen = "127.0.0.1:{ports[outer]}"
target = "tls://127.0.0.1:{ports[inner]}?servername=localhost&ca={folder}/ca.pem"
[tunnels.inner]
listen = "tls://127.0.0.1:{ports[inner]}?cert={folder}/cert.pem"
target = "127.0.0.1:{far[tcp]}"
[tunnels.paramiko]
listen = "127.0.0.1:{ports[paramiko]}"
target = "127.0.0.1:{far[tcp]}"
via = ["{ssh}&backend=paramiko"]
[tunnels.openssh]
listen = "127.0.0.1:{ports[openssh]}"
target = "127.0.0.1:{far[tcp]}"
via = ["{ssh}&backend=openssh"]
"""
THREADS = {"tcp": 16, "limited": 4, "outer": 2, "paramiko": 2, "openssh": 2, "bulk": 2}
"""The clients of each tunnel."""


@dataclasses.dataclass
class Sample:
    """Figures at one moment.

    :param seconds: since the start.
    :param descriptors: of all processes of relay, as the others up to ``rss``.
    :param rss: resident memory in bytes.
    :param objects: of Python, in relay's own process.
    :param log: bytes.
    :param clients: the last line of the clients of each tunnel, see ``load.c``.
    """

    seconds: float
    descriptors: int
    threads: int
    processes: int
    rss: int
    objects: int
    log: int
    clients: dict[str, dict[str, float]]

    @property
    def connections(self) -> int:
        """Connections that have been served."""
        return int(sum(line["done"] for line in self.clients.values()))

    @property
    def failed(self) -> int:
        """Connections that have failed."""
        return int(sum(line["failed"] for line in self.clients.values()))

    @property
    def bytes(self) -> int:
        """Bytes that clients have sent and received."""
        return int(sum(line["bytes"] for line in self.clients.values()))


def growth(values: Sequence[float]) -> float:
    """Return how much values grow from the first to the last, by a line through them, as a part of their mean."""
    if len(values) < 2 or not (mean := statistics.fmean(values)):
        return 0.0
    return statistics.linear_regression(range(len(values)), values).slope * (len(values) - 1) / mean


class _Clients:
    """The clients of a tunnel."""

    def __init__(self, argv: Sequence[str]) -> None:
        self.last: dict[str, float] = dict.fromkeys(("done", "failed", "bytes", "p50", "p99"), 0)
        self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.last = json.loads(line)

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._reader.join()
        self._process.stdout.close()


class Soak:
    """relay, its servers and its clients. A context manager.

    :param folder: empty; for all files.
    :param threads: clients of each tunnel.
    """

    def __init__(self, folder: Path, threads: Mapping[str, int]) -> None:
        self._folder = folder
        with contextlib.ExitStack() as opened:
            program = str(folder / "load")
            subprocess.run(["gcc", "-O2", "-o", program, str(_SOURCE), "-lpthread", "-lm"], check=True)
            (folder / "sshd").mkdir()
            sshd = Sshd(folder / "sshd")
            opened.callback(sshd.stop)
            sshd.start()
            ports = {name: opened.enter_context(reserved_port()) for name in (*THREADS, "inner")}
            far = {name: opened.enter_context(reserved_port()) for name in ("tcp", "bulk")}
            for kind, port in (("echo", far["tcp"]), ("count", far["bulk"])):
                server = start([program, kind, str(port)])
                opened.callback(server.wait)
                opened.callback(server.kill)
                _wait_for(port)
            write_certificate(folder)
            text = _FILE.format(folder=folder, ports=ports, far=far, ssh=server_url(sshd.server))
            (folder / "relay.toml").write_text(text)
            self._objects = str(folder / "objects")
            argv = [sys.executable, str(_WRAPPER), self._objects, "up", str(folder / "relay.toml")]
            self._relay = Program(argv, {**os.environ, "RUNTIME_DIRECTORY": str(folder)}, folder / "relay.log")
            opened.callback(self._relay.kill_family)
            self._relay.start()
            for port in ports.values():
                _wait_for(port)
            self._clients = {}
            for name, count in threads.items():
                more = ["pour", str(ports[name]), str(count), str(_BULK)]
                few = ["connect", str(ports[name]), str(count)]
                self._clients[name] = _Clients([program, *(more if name == "bulk" else few)])
                opened.callback(self._clients[name].close)
            self._begun = time.monotonic()
            self._opened = opened.pop_all()

    @property
    def seconds(self) -> float:
        """Seconds since the clients began."""
        return time.monotonic() - self._begun

    def sample(self) -> Sample:
        """Take a sample."""
        figures = [found for pid in self._relay.family() if (found := _figures(pid)) is not None]
        return Sample(
            seconds=self.seconds,
            descriptors=sum(one[0] for one in figures),
            threads=sum(one[1] for one in figures),
            processes=len(figures),
            rss=sum(one[2] for one in figures) * os.sysconf("SC_PAGE_SIZE"),
            objects=self._count_objects(),
            log=(self._folder / "relay.log").stat().st_size,
            clients={name: dict(clients.last) for name, clients in self._clients.items()},
        )

    def _count_objects(self) -> int:
        with socket.socket(socket.AF_UNIX) as asking:
            asking.settimeout(60)
            asking.connect(self._objects)
            return int(asking.recv(100))

    def close(self) -> None:
        """End the clients, then relay, then the servers.

        :raises FaultError: if relay ends badly.
        """
        with self._opened:
            for clients in self._clients.values():
                clients.close()
            self._relay.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()


def _figures(pid: int) -> tuple[int, int, int] | None:
    """Return the numbers of descriptors, threads and resident pages of a process; ``None`` if it has ended."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return len(os.listdir(f"/proc/{pid}/fd")), len(os.listdir(f"/proc/{pid}/task")), pages
    except (FileNotFoundError, ProcessLookupError):
        return None


def _wait_for(port: int) -> None:
    """Wait until a port accepts."""
    deadline = time.monotonic() + 60
    while True:
        with socket.socket() as client:
            if not client.connect_ex(("127.0.0.1", port)):
                return
        if time.monotonic() > deadline:
            raise TimeoutError(f"nothing listens on {port}")
        threading.Event().wait(0.05)  # nothing tells when a port begins to listen


# -- the result ----------------------------------------------------------------------------------------------------


def _series(samples: Sequence[Sample]) -> dict[str, list[float]]:
    """Return what may not grow, by name."""
    made = {
        name: [float(getattr(sample, name)) for sample in samples]
        for name in ("descriptors", "threads", "processes", "rss", "objects")
    }
    for name in samples[0].clients:
        made[f"p99 of {name}"] = [sample.clients[name]["p99"] for sample in samples]
    return made


def _plot(samples: Sequence[Sample], path: Path) -> None:
    from matplotlib import pyplot

    series = _series(samples)
    figure, axes = pyplot.subplots(len(series), 1, figsize=(8, 1.6 * len(series)), sharex=True)
    minutes = [sample.seconds / 60 for sample in samples]
    for axis, (name, values) in zip(axes, series.items(), strict=True):
        axis.plot(minutes, values, linewidth=1)
        axis.set_ylim(0, max(values) * 1.3 or 1)
        axis.set_title(f"{name}{' (bytes)' if name == 'rss' else ' (µs)' if 'p99' in name else ''}", fontsize=8)
    axes[-1].set_xlabel("minutes")
    figure.tight_layout()
    figure.savefig(path)


def main() -> int:
    """Run the test; return the exit status: 1 if a connection has failed, or something grows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--folder", type=Path, help="for the samples and the plot")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that all programs end
    samples = []
    with tempfile.TemporaryDirectory(prefix="soak-") as name, Soak(folder := Path(name), THREADS) as soak:
        for number in range(1, _SAMPLES + 1):
            time.sleep(max(0.0, given.minutes * 60 * number / _SAMPLES - soak.seconds))
            samples.append(soak.sample())
        soak.close()
        log = (folder / "relay.log").read_text(errors="replace")
    last = samples[-1]
    amount = f"{last.connections} connections, {last.failed} failed, {last.bytes / (1 << 40):.2f} TiB"
    print(f"{amount} in {last.seconds / 60:.1f} min")
    is_bad = last.failed > 0
    for name, values in _series(samples[int(len(samples) * _SETTLED) :]).items():
        grown = growth(values)
        print(f"{name}: {values[0]:.0f} to {values[-1]:.0f}, median {statistics.median(values):.0f}, {grown:+.1%}")
        is_bad |= grown > _NOISE and "p99" not in name
    print(f"log: {len(log)} bytes")
    if is_bad:
        print(log[-4000:])
    if given.folder:
        given.folder.mkdir(parents=True, exist_ok=True)
        (given.folder / "soak.json").write_text(json.dumps([dataclasses.asdict(sample) for sample in samples]))
        _plot(samples, given.folder / "soak.png")
    return int(is_bad)


if __name__ == "__main__":
    sys.exit(main())
