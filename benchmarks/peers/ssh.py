"""Peers that relay over SSH."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

from ..jobs import Job, Peer
from ..machine import LOOPBACK, UnavailableError, compiled, free_port, program, relay_command

SOURCES = Path(__file__).parents[1] / "c"
AES_GCM = "aes128-gcm@openssh.com"
WARM = ("--warm", "4")  # more than come while a stream is opened


def url(job: Job, backend: str) -> str:
    """The server as a hop for relay: with the cipher that it picks by itself, or, for the OpenSSH client, AES-GCM."""
    configuration = job.write("ssh_config", f"Ciphers {AES_GCM}\n") if backend == "openssh" else "/dev/null"
    server = job.server
    files = {"keyfile": server.key, "known_hosts": server.known_hosts, "config": configuration}
    options = "&".join(f"{name}={quote(str(path))}" for name, path in files.items())
    return f"ssh://{server.user}@{LOOPBACK}:{server.port}?backend={backend}&{options}"


def _relay(backend: str, *options: str) -> Callable[[Job], list[str]]:
    def start(job: Job) -> list[str]:
        listen, target = f"{LOOPBACK}:{job.port}", f"{LOOPBACK}:{job.target.port}"
        return [relay_command(), "forward", *options, listen, target, "--via", url(job, backend)]

    return start


def _ssh(*options: str) -> Callable[[Job], list[str]]:
    def start(job: Job) -> list[str]:
        return _ssh_command(job, job.port, options)

    return start


def _behind_c(job: Job) -> list[str]:
    """The C relay in front of ``ssh -L``: what any relay there costs at the least."""
    inner = free_port()
    relay = [compiled(SOURCES / "relay.c", job.directory.parent), str(job.port), str(inner)]
    ssh = _ssh_command(job, inner, ("-c", AES_GCM))
    return [sys.executable, "-m", "benchmarks.peers.ssh_programs", "stacked", str(inner), *relay, "--", *ssh]


def _ssh_command(job: Job, port: int, options: Sequence[str]) -> list[str]:
    server = job.server
    settings = {
        "BatchMode": "yes",
        "ExitOnForwardFailure": "yes",
        "IdentitiesOnly": "yes",
        "IdentityFile": server.key,
        "UserKnownHostsFile": server.known_hosts,
    }
    trust = [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]
    forward = f"{LOOPBACK}:{port}:{LOOPBACK}:{job.target.port}"
    there = ["-p", str(server.port), f"{server.user}@{LOOPBACK}"]
    return [program("ssh"), "-F", "/dev/null", *trust, *options, "-N", "-L", forward, *there]


def _package(name: str) -> Callable[[Job], list[str]]:
    """A program of sshprograms.py with another package."""

    def start(job: Job) -> list[str]:
        if find_spec(name) is None:
            raise UnavailableError(f"{name} is not installed: make bench")
        server = job.server
        words = [job.port, job.target.port, server.port, server.user, server.key, server.known_hosts]
        return [sys.executable, "-m", "benchmarks.peers.ssh_programs", name, *map(str, words)]

    return start


def _spawn(job: Job) -> list[str]:
    words = [job.port, job.target.port, url(job, "paramiko"), job.core]
    return [sys.executable, "-m", "benchmarks.peers.ssh_programs", "spawn", *map(str, words)]


PEERS = {
    "ssh-paramiko": Peer("relay, paramiko", _relay("paramiko")),
    "ssh-openssh": Peer("relay, openssh", _relay("openssh")),
    "ssh-warm": Peer(f"relay, paramiko, warm = {WARM[1]}", _relay("paramiko", *WARM)),
    "ssh-warm-openssh": Peer(f"relay, openssh, warm = {WARM[1]}", _relay("openssh", *WARM)),
    "ssh": Peer("ssh -L", _ssh()),
    "ssh-gcm": Peer("ssh -L, AES-GCM", _ssh("-c", AES_GCM)),
    "ssh-c": Peer("C relay in front of ssh -L, AES-GCM", _behind_c),
    "asyncssh": Peer("asyncssh", _package("asyncssh")),
    "sshtunnel": Peer("sshtunnel", _package("sshtunnel")),
    "ssh-spawn": Peer("relay.spawn, paramiko, busy program", _spawn),
}
