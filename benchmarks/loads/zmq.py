"""ØMQ sockets over SSH under load: with ``relay.compat.zmqssh``, and with the original beside it.

Started as ``python -m benchmarks.loads.zmq push|ask openssh|paramiko|original SERVER_PORT USER KEY KNOWN_HOSTS
DIRECTORY SECONDS SIZE``; says what it has measured in a line of JSON.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import zmq

ADDRESS = "tcp://127.0.0.1:*"
BATCH = 64  # messages that are sent between two looks at the clock
WARM = 200  # questions before the load
ATTEMPTS = 10  # of the original, which gives a login a second


def connected(kind: str, sock: Any, address: str, server: str, folder: Path) -> Any:
    """Connect a socket over SSH; returns the tunnel."""
    if kind == "original":
        return original(sock, address)
    from relay.compat import zmqssh

    url = f"ssh://{server}?config={folder}/config"
    return zmqssh.tunnel_connection(sock, address, url, paramiko=kind == "paramiko")


def original(sock: Any, address: str) -> Any:
    from zmq.ssh import tunnel

    for _ in range(ATTEMPTS):
        try:
            return tunnel.tunnel_connection(sock, address, "server", paramiko=False, timeout=5)
        except (tunnel.MaxRetryExceeded, RuntimeError):
            continue
    raise RuntimeError("the original gives up")


def configure(folder: Path, port: str, user: str, key: str, known_hosts: str) -> None:
    """Set up the user: a configuration, which the original finds by an ``ssh`` of that name, and no hang-ups.

    Its ssh is in a terminal of pexpect's, whose end may hang it up on its way to the background.
    """
    lines = ["HostName 127.0.0.1", f"Port {port}", f"User {user}", f"IdentityFile {key}", "IdentitiesOnly yes"]
    (folder / "config").write_text("\n  ".join(["Host server", *lines, f"UserKnownHostsFile {known_hosts}"]) + "\n")
    (folder / "bin").mkdir()
    ssh = folder / "bin" / "ssh"
    ssh.write_text(f"#!/bin/sh\ntrap '' HUP\nexec {shutil.which('ssh')} -F {folder}/config \"$@\"\n")
    ssh.chmod(0o755)
    os.environ["PATH"] = f"{ssh.parent}:{os.environ['PATH']}"


@contextmanager
def far_end(name: str) -> Iterator[tuple[str, Any]]:
    """A program behind the server: where it listens, and what it says."""
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks.loads.zmq", name], stdout=subprocess.PIPE, text=True
    ) as far:
        try:
            assert far.stdout is not None
            yield far.stdout.readline().strip(), far.stdout
        finally:
            far.kill()


def sink() -> None:
    """Count what comes up to an empty message, from the first one on."""
    puller = bound(zmq.PULL)
    puller.recv()
    begin, count = time.perf_counter(), 0
    while puller.recv():
        count += 1
    print(json.dumps({"rate": count / (time.perf_counter() - begin)}), flush=True)
    puller.recv()


def echo() -> None:
    """Send back what comes."""
    answering = bound(zmq.REP)
    while True:
        answering.send(answering.recv())


def bound(kind: int) -> Any:
    made: Any = zmq.Context.instance().socket(kind)
    made.bind(ADDRESS)
    print(made.last_endpoint.decode(), flush=True)
    return made


def push(sock: Any, said: Any, seconds: float, size: int) -> dict[str, float]:
    """Messages for a while; how many arrived in a second."""
    message = bytes(size)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for _ in range(BATCH):
            sock.send(message)
    sock.send(b"")
    measured: dict[str, float] = json.loads(said.readline())
    return measured


def ask(sock: Any, seconds: float, size: int) -> dict[str, float]:
    """Questions, one after another; how long an answer takes."""
    message, took = bytes(size), []
    for _ in range(WARM):
        sock.send(message)
        sock.recv()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        begin = time.perf_counter()
        sock.send(message)
        sock.recv()
        took.append(time.perf_counter() - begin)
    took.sort()
    return {"p50": took[len(took) // 2] * 1e6, "p99": took[len(took) * 99 // 100] * 1e6}


def main() -> None:
    if sys.argv[1] in ("sink", "echo"):
        return sink() if sys.argv[1] == "sink" else echo()
    what, kind, port, user, key, known_hosts, directory, seconds, size = sys.argv[1:]
    folder = Path(directory)
    configure(folder, port, user, key, known_hosts)
    sock: Any = zmq.Context.instance().socket(zmq.PUSH if what == "push" else zmq.REQ)
    with far_end("sink" if what == "push" else "echo") as (address, said):
        tunnel = connected(kind, sock, address, "server", folder)
        measured = (
            push(sock, said, float(seconds), int(size)) if what == "push" else ask(sock, float(seconds), int(size))
        )
        print(json.dumps(measured), flush=True)
        sock.close(linger=0)
        if kind != "original":
            tunnel.terminate()


if __name__ == "__main__":
    main()
