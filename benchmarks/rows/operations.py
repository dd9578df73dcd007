"""Measurements of the metrics: what a monitor costs the clients, and the time of one answer."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

from ..goals import Goal, Metric, Row, Sample
from ..loads.status import scrape
from ..loads.tcp import Lab
from ..machine import LOOPBACK, MeasurementError, Process, free_port, relay_command
from .up import PATIENCE, TUNNELS

__all__ = ["ROWS"]

SCRAPES = 9


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


ROWS = {
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
