"""Measurements of ``relay pipe``, and of the way over two SSH servers."""

from __future__ import annotations

import json
import os
import shlex
import statistics
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO

from ..goals import CPU_BULK, GBIT, Goal, Metric, Row, Sample
from ..jobs import Job, Target
from ..loads.tcp import GIB, Lab, iperf3, warm_iperf3
from ..machine import MeasurementError, free_port, program, run
from ..peers.chain import configured

PATIENCE = 60.0  # seconds for a program to end
FEWEST = 5  # first bytes in one measurement
PIPES = ("pipe", "pipe-nc", "pipe-socat")
OVER_SSH = ("pipe-paramiko", "pipe-openssh", "pipe-ssh")


@contextmanager
def piped(lab: Lab, peer: str, target: Target, source: int | IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """One peer that takes ``source`` to a target; its output is a pipe."""
    arguments = lab.command(peer, target)
    with subprocess.Popen(arguments, stdin=source, stdout=subprocess.PIPE, start_new_session=True) as process:
        try:
            yield process
        finally:
            process.kill()


def poured(answer: bytes, process: subprocess.Popen[bytes], peer: str) -> Sample:
    """The result of pour.c for a transfer, with the cost of the peer, which has ended."""
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if not answer or process.returncode:
        raise MeasurementError(f"{peer}: status {process.returncode}, {len(answer)} bytes of an answer")
    done = json.loads(answer)
    rate = done["bytes"] * 8 / done["seconds"]
    return {"rate": rate, "cpu": (used.ru_utime + used.ru_stime) / (done["bytes"] / GIB)}


def bulk_up(lab: Lab, peer: str) -> Sample:
    """Zeros out of a pipe, to a server that counts them and answers at their end."""
    writer = [lab.pour(), "write", str(lab.seconds)]
    with lab.pouring("take") as target, subprocess.Popen(writer, stdout=subprocess.PIPE) as pour:
        assert pour.stdout is not None
        with piped(lab, peer, target, pour.stdout) as process:
            pour.stdout.close()
            assert process.stdout is not None
            return poured(process.stdout.read(), process, peer)


def bulk_down(lab: Lab, peer: str) -> Sample:
    """Zeros from a server, into a pipe that another program reads."""
    with lab.pouring("give", str(lab.seconds)) as target, piped(lab, peer, target, subprocess.DEVNULL) as process:
        done = subprocess.run([lab.pour(), "read"], stdin=process.stdout, capture_output=True, check=True, timeout=90)
        return poured(done.stdout, process, peer)


def rsync(lab: Lab, peer: str) -> Sample:
    """One large file to an SSH server behind another one, from the command's beginning to its end."""
    with lab.ssh_server() as bastion, lab.ssh_server() as server:
        directory = server.key.parent
        with (directory / "file").open("wb") as file:
            file.truncate(GIB)
        command = lab.command(peer, Target(server.port, server=bastion))
        ssh = configured(Job(directory, 0, Target(0), 0), [server])
        shell = shlex.join([*ssh, "-o", f"ProxyCommand={shlex.join(command)}"])
        begin = time.monotonic()
        copy = ["rsync", "-q", "--whole-file", "-e", shell, str(directory / "file"), f"server0:{directory}/copy"]
        run([program(copy[0]), *copy[1:]], PATIENCE)
        seconds = time.monotonic() - begin
        if (directory / "copy").stat().st_size != GIB:
            raise MeasurementError("rsync: the copy is not whole")
        _forget(directory, ("file", "copy"))
        return {"rate": GIB * 8 / seconds}


def _forget(directory: Path, names: Sequence[str]) -> None:
    for name in names:
        (directory / name).unlink()


@contextmanager
def two_servers(lab: Lab, port: int) -> Iterator[Target]:
    """A place behind two SSH servers."""
    with lab.ssh_server() as before, lab.ssh_server() as server:
        yield Target(port, server=server, before=before)


def bulk(lab: Lab, peer: str, down: bool) -> Sample:
    """One stream of iperf3 for as long as the lab says, on connections that are up."""
    with two_servers(lab, free_port()) as target, lab.relay(peer, target) as relay:
        with lab.iperf3_server(target.port):
            warm_iperf3(relay.port)
        with lab.iperf3_server(target.port):
            relay.begin()
            size, seconds = iperf3(relay.port, 1, lab.seconds, down=down)
        return {"rate": size * 8 / seconds} | relay.cost(size / GIB)


def first_byte(lab: Lab, peer: str) -> Sample:
    """The time from the start of a command to the first byte of a server behind two others."""
    with lab.opening_server("greet") as greeting, two_servers(lab, greeting.port) as target:
        taken: list[float] = []
        end = time.monotonic() + lab.seconds
        while len(taken) < FEWEST or time.monotonic() < end:
            taken.append(_first_byte(lab, peer, target))
        return {"p50": statistics.median(taken), "least": min(taken)}


def _first_byte(lab: Lab, peer: str, target: Target) -> float:
    source, writer = os.pipe()
    try:
        begin = time.monotonic()
        with piped(lab, peer, target, source) as process:
            assert process.stdout is not None
            if not process.stdout.read(1):
                raise MeasurementError(f"{peer}: nothing came")
            seconds = time.monotonic() - begin
            process.terminate()
            process.wait(PATIENCE)
            return seconds
    finally:
        os.close(source)
        os.close(writer)


BULK = (
    GBIT((Goal("pipe-nc", 0.95, peer="pipe"), Goal("pipe-socat", 0.95, peer="pipe"))),
    CPU_BULK(),
)
CHAIN = (
    GBIT(
        (Goal("chain-ssh", 0.9, peer="chain-openssh"), Goal("chain-asyncssh", 1.2, peer="chain-paramiko")),
    ),
    CPU_BULK(),
)
MILLISECONDS = partial(Metric, more=False, scale=1e3)

ROWS = {
    "pipe-up": Row("bulk up", "pipe", PIPES, BULK, bulk_up),
    "pipe-down": Row("bulk down", "pipe", PIPES, BULK, bulk_down),
    "pipe-rsync": Row(
        "rsync of 1 GiB over a ProxyCommand",
        "pipe",
        OVER_SSH,
        (GBIT((Goal("pipe-ssh", 0.95, peer="pipe-paramiko"), Goal("pipe-ssh", 0.95, peer="pipe-openssh"))),),
        rsync,
    ),
    "chain-up": Row(
        "bulk up, ssh → ssh",
        "chain",
        ("chain-paramiko", "chain-openssh", "chain-ssh", "chain-asyncssh"),
        CHAIN,
        partial(bulk, down=False),
    ),
    "chain-down": Row(
        "bulk down, ssh → ssh",
        "chain",
        ("chain-paramiko", "chain-openssh", "chain-ssh", "chain-asyncssh"),
        CHAIN,
        partial(bulk, down=True),
    ),
    "chain-first": Row(
        "from the command to the first byte, ssh → ssh",
        "chain",
        OVER_SSH,
        (
            MILLISECONDS(key="p50", title="p50 ms", goals=(Goal("pipe-ssh", 1.1, peer="pipe-paramiko"),)),
            MILLISECONDS(key="least", title="least ms"),
        ),
        first_byte,
    ),
}
