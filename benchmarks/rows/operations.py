"""Measurements of the status server: what its clients cost those of the tunnels, and the time of one answer."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

from ..goals import Goal, Metric, Row, Sample
from ..loads.status import health, scrape, silent
from ..loads.tcp import Lab
from ..machine import LOOPBACK, MeasurementError, Process, free_port, relay_command
from .up import PATIENCE, TUNNELS

SCRAPES = 9
IDLE = 5000  # connections of the long list
SILENT = 120  # clients that read nothing of it; the status server takes 128


def metrics(lab: Lab, peer: str) -> Sample:
    """The time of ``/metrics`` of a file of tunnels."""
    with tempfile.TemporaryDirectory(dir=lab.directory) as folder:
        path, log, status, port = Path(folder, "relay.toml"), Path(folder, "log"), Path(folder, "status"), free_port()
        tunnels = "".join(
            f'[tunnels.t{n}]\nlisten = "{LOOPBACK}:{0 if n else port}"\ntarget = "{LOOPBACK}:1"\n'
            for n in range(TUNNELS)
        )
        path.write_text(f'control = "none"\nstatus = "unix://{status}"\n{tunnels}')
        path.chmod(0o600)
        deadline = time.monotonic() + PATIENCE
        with Process([relay_command(), "up", str(path)], port, log):
            while f"{TUNNELS} of {TUNNELS} tunnels listen" not in log.read_text():
                if time.monotonic() > deadline:
                    raise MeasurementError(f"not all of them listen after {PATIENCE:.0f} s")
                time.sleep(0.01)
            scrape(status)  # the first one starts the server
            times = []
            for _ in range(SCRAPES):
                begin = time.monotonic()
                page = scrape(status)
                times.append(time.monotonic() - begin)
            return {"time": statistics.median(times), "size": len(page)}


def stalled(lab: Lab, peer: str) -> Sample:
    """Round trips beside idle connections, and beside clients of the status server that read nothing."""
    with lab.crowd_server() as target, tempfile.TemporaryDirectory(dir=lab.directory) as folder:
        path, status, port = Path(folder, "relay.toml"), Path(folder, "status"), free_port()
        tunnel = f'[tunnels.t]\nlisten = "{LOOPBACK}:{port}"\ntarget = "{LOOPBACK}:{target.port}"\n'
        path.write_text(f'control = "none"\nstatus = "unix://{status}"\n{tunnel}')
        path.chmod(0o600)
        with Process([relay_command(), "up", str(path)], port, Path(folder, "log")):
            with lab.crowd("hold", port, IDLE):
                scrape(status)  # the first one starts the server
                quiet = lab.ping(port)["p99"]
                with silent(status, SILENT):
                    answered = health(status)
                    beside = lab.ping(port)["p99"]
    return {"p99": beside, "ratio": beside / quiet, "health": answered}


ROWS = {
    "status-silent": Row(
        "64-byte round trips beside 5,000 idle connections and 120 silent clients of the status server",
        "operations",
        ("relay",),
        (
            Metric("p99", "p99 µs", False),
            Metric("ratio", "p99, times that without them", False, (Goal(None, 3.0),)),
            Metric("health", "ms until /livez answers", False, (Goal(None, 100.0),), scale=1e3),
        ),
        stalled,
    ),
    "metrics-500": Row(
        "/metrics, 500 tunnels",
        "operations",
        ("relay",),
        (
            Metric("time", "ms", False, (Goal(None, 50.0),), scale=1e3),
            Metric("size", "KiB", False, scale=1 / 1024),
        ),
        metrics,
    ),
}
