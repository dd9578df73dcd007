"""Measurements of ``relay up``: many tunnels that start, cost nothing without clients, and are reloaded."""

from __future__ import annotations

import contextlib
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from ..goals import Goal, Metric, Row, Sample
from ..loads.tcp import Lab, wrk_figures
from ..machine import LOOPBACK, MeasurementError, Process, free_port, relay_command, run

TUNNELS = 500
PATIENCE = 600.0  # seconds for all of them to listen, counted or not
BETWEEN = 1.0  # seconds from one upgrade to the next, in which clients have the machine for themselves
SETTLED = 0.5  # seconds until what was begun is over


@contextmanager
def _running(lab: Lab, tunnels: int, target: int) -> Iterator[tuple[Process, Path, Path, int, float]]:
    """The command with a file of tunnels, once all of them listen; the first one has a port that is known.

    :returns: the command, its file, its log, the port, and the seconds that it took.
    """
    with tempfile.TemporaryDirectory(dir=lab.directory) as folder:
        path, log, port = Path(folder, "relay.toml"), Path(folder, "log"), free_port()
        path.touch(0o600)
        _rewrite(path, _text(tunnels, port, target))
        begin = time.monotonic()
        with Process([relay_command(), "up", str(path)], port, log) as process:
            wait_for(log, f"{tunnels} of {tunnels} tunnels listen")
            yield process, path, log, port, time.monotonic() - begin


def _control_of(path: Path) -> Path:
    """The control socket of the command with a file."""
    return path.with_name("control")


def _rewrite(path: Path, tunnels: str) -> None:
    path.write_text(f'control = "{_control_of(path)}"\n{tunnels}')


def _text(tunnels: int, port: int, target: int, changed: int = 1) -> str:
    """A file: the first tunnel leads to a target, and one in the middle to a port that changes."""
    listen = [f'listen = "{LOOPBACK}:{0 if number else port}"' for number in range(tunnels)]
    targets = {0: target, tunnels // 2: changed}
    return "".join(
        f'[tunnels.t{number}]\n{one}\ntarget = "{LOOPBACK}:{targets.get(number, 1)}"\n'
        for number, one in enumerate(listen)
    )


def wait_for(log: Path, words: str, count: int = 1) -> None:
    until = time.monotonic() + PATIENCE
    while log.read_text().count(words) < count:
        if time.monotonic() > until:
            raise MeasurementError(f"it does not say '{words}' after {PATIENCE:.0f} s")
        time.sleep(0.005)


def idle_tunnels(lab: Lab, peer: str) -> Sample:
    """The command with a file of tunnels without clients."""
    with _running(lab, TUNNELS, 1) as (process, _, _, _, ready):
        time.sleep(SETTLED)
        before = process.cpu()
        time.sleep(lab.seconds)
        return {"ready": ready, "memory": process.memory(), "idle": (process.cpu() - before) / lab.seconds}


def one_change(lab: Lab, peer: str) -> Sample:
    """A reload of many tunnels of which one has changed."""
    with _running(lab, TUNNELS, 1) as (process, path, log, port, _):
        _rewrite(path, _text(TUNNELS, port, 1, changed=2))
        before, begin = process.cpu(), time.monotonic()
        process.signal(signal.SIGHUP)
        wait_for(log, f"reload: 1 of {TUNNELS} tunnels changed")
        return {"seconds": time.monotonic() - begin, "cpu": process.cpu() - before}


def many_reloads(lab: Lab, peer: str) -> Sample:
    """Ten reloads a second of ten tunnels, of which one changes, while clients send small requests to the first one.

    Half of the clients keep their connections for 100 requests, the others make one for each.
    """
    stop = threading.Event()
    failed, served = [], []

    def answer(connection: socket.socket) -> None:
        with connection:
            while data := connection.recv(100):
                connection.sendall(data)

    def accept(listening: socket.socket) -> None:
        with contextlib.suppress(OSError):  # it is closed at the end
            while True:
                threading.Thread(target=answer, args=(listening.accept()[0],), daemon=True).start()

    def ask(port: int, requests: int) -> None:
        count = 0
        while not stop.is_set():
            try:
                with socket.create_connection((LOOPBACK, port), PATIENCE) as client:
                    for _ in range(requests):
                        client.sendall(b"ping")
                        if client.recv(100) != b"ping":
                            raise ConnectionError("no answer")
                        count += 1
            except OSError as error:
                failed.append(error)
        served.append(count)

    with socket.create_server((LOOPBACK, 0)) as listening:
        threading.Thread(target=accept, args=(listening,), daemon=True).start()
        target = listening.getsockname()[1]
        with _running(lab, 10, target) as (process, path, log, port, _):
            clients = [threading.Thread(target=ask, args=(port, count)) for count in (1, 100) * 4]
            for client in clients:
                client.start()
            begin, reloads = time.monotonic(), 10 * lab.seconds
            for number in range(reloads):
                _rewrite(path, _text(10, port, target, changed=2 + number % 2))
                process.signal(signal.SIGHUP)
                time.sleep(max(0.0, begin + (number + 1) / 10 - time.monotonic()))
            stop.set()
            for client in clients:
                client.join()
            wait_for(log, "tunnels changed", 1)
            done = log.read_text().count("tunnels changed")
            seconds = time.monotonic() - begin
        return {"failed": len(failed), "reloads": done / seconds, "requests": sum(served) / seconds}


def many_upgrades(lab: Lab, peer: str) -> Sample:
    """Upgrades, one after the other, while wrk makes a connection for each request."""
    times = []
    with (
        lab.web_server() as target,
        _running(lab, 2, target.port) as (_, path, _, port, _),
        ThreadPoolExecutor(1) as threads,
    ):
        control = ["--control", str(_control_of(path))]
        try:
            load = threads.submit(wrk_figures, port, lab.seconds, keep=False)
            while not load.done():
                begin = time.monotonic()
                run([relay_command(), "ctl", "upgrade", *control], PATIENCE)
                times.append(time.monotonic() - begin)
                time.sleep(BETWEEN)
            done = load.result()
        finally:
            run([relay_command(), "ctl", "stop", *control], PATIENCE)  # the last one is no child of this process
    return {
        "failed": done["errors"],
        "requests": done["requests"] / done["seconds"],
        "upgrades": len(times),
        "each": sum(times) / len(times),
    }


ROWS = {
    "up-500": Row(
        "relay up, 500 idle tunnels",
        "up",
        ("relay",),
        (
            Metric("ready", "seconds until all listen", False, (Goal(None, 5.0),)),
            Metric("memory", "MiB", False, (Goal(None, 120.0),), scale=1 / 2**20),
            Metric("idle", "CPU ms per second", False, (Goal(None, 0.0),), scale=1e3),
        ),
        idle_tunnels,
    ),
    "up-reload": Row(
        "relay up, reload of 500 tunnels, one changed",
        "up",
        ("relay",),
        (
            Metric("seconds", "seconds", False, (Goal(None, 0.5),)),
            Metric("cpu", "CPU ms", False, scale=1e3),
        ),
        one_change,
    ),
    "up-reloads": Row(
        "relay up, ten reloads a second under load",
        "up",
        ("relay",),
        (
            Metric("failed", "failed requests", False, (Goal(None, 0.0),)),
            Metric("requests", "requests per second", True),
            Metric("reloads", "reloads per second", True),
        ),
        many_reloads,
    ),
    "up-upgrades": Row(
        "relay up, upgraded again and again under load",
        "up",
        ("relay",),
        (
            Metric("failed", "failed connections", False, (Goal(None, 0.0),)),
            Metric("requests", "new connections per second", True),
            Metric("upgrades", "upgrades", True),
            Metric("each", "seconds for each upgrade", False),
        ),
        many_upgrades,
    ),
}
