"""Measurements of ``relay up``: the time until many tunnels listen, and their cost without clients."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from ..goals import Goal, Metric, Row, Sample
from ..loads.tcp import Lab
from ..machine import LOOPBACK, MeasurementError, Process, free_port, relay_command

__all__ = ["ROWS"]

TUNNELS = 500
PATIENCE = 30.0  # seconds for all of them to listen
SETTLED = 0.5  # seconds until what was begun is over


def idle_tunnels(lab: Lab, peer: str) -> Sample:
    """The command with a file of tunnels without clients."""
    with tempfile.TemporaryDirectory(dir=lab.directory) as folder:
        path, log, port = Path(folder, "relay.toml"), Path(folder, "log"), free_port()
        listen = [f'listen = "{LOOPBACK}:{0 if number else port}"' for number in range(TUNNELS)]
        path.write_text("".join(f'[tunnels.t{n}]\n{one}\ntarget = "{LOOPBACK}:1"\n' for n, one in enumerate(listen)))
        path.chmod(0o600)
        begin = time.monotonic()
        with Process([relay_command(), "up", str(path)], port, log) as process:
            while f"{TUNNELS} of {TUNNELS} tunnels listen" not in log.read_text():
                if time.monotonic() > begin + PATIENCE:
                    raise MeasurementError(f"not all of them listen after {PATIENCE:.0f} s")
                time.sleep(0.01)
            ready = time.monotonic() - begin
            time.sleep(SETTLED)
            before = process.cpu()
            time.sleep(lab.seconds)
            return {"ready": ready, "memory": process.memory(), "idle": (process.cpu() - before) / lab.seconds}


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
}
