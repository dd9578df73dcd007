"""Peers that connect standard input and output, and peers that go over two SSH servers."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from urllib.parse import quote

from ..jobs import Job, Peer
from ..machine import LOOPBACK, UnavailableError, program, relay_command
from ..sshd import Server
from .ssh import AES_GCM, WARM

SERVER = """Host server{number}
    HostName {address}
    Port {server.port}
    User {server.user}
    IdentityFile {server.key}
    UserKnownHostsFile {server.known_hosts}
    IdentitiesOnly yes
    BatchMode yes
    ExitOnForwardFailure yes
    Ciphers {ciphers}
"""


def configured(job: Job, servers: Sequence[Server]) -> list[str]:
    """The OpenSSH client that knows the servers as ``server0``, ``server1`` and so on, with the cipher AES-GCM."""
    hosts = [
        SERVER.format(number=number, address=LOOPBACK, server=server, ciphers=AES_GCM)
        for number, server in enumerate(servers)
    ]
    return [program("ssh"), "-F", job.write("ssh_config", "".join(hosts))]


def _via(job: Job, backend: str) -> list[str]:
    """The servers as hops for relay."""
    ciphers = job.write("ciphers", f"Ciphers {AES_GCM}\n") if backend == "openssh" else "/dev/null"
    hops = []
    for server in job.route:
        files = {"keyfile": server.key, "known_hosts": server.known_hosts, "config": ciphers}
        options = "&".join(f"{name}={quote(str(path))}" for name, path in files.items())
        hops += ["--via", f"ssh://{server.user}@{LOOPBACK}:{server.port}?backend={backend}&{options}"]
    return hops


def _place(job: Job) -> str:
    return f"{LOOPBACK}:{job.target.port}"


def _pipe(backend: str = "") -> Callable[[Job], list[str]]:
    def start(job: Job) -> list[str]:
        return [relay_command(), "pipe", _place(job), *(_via(job, backend) if backend else [])]

    return start


def _forward(backend: str, *options: str) -> Callable[[Job], list[str]]:
    def start(job: Job) -> list[str]:
        return [relay_command(), "forward", *options, f"{LOOPBACK}:{job.port}", _place(job), *_via(job, backend)]

    return start


def _nc(job: Job) -> list[str]:
    return [program("nc"), "-N", LOOPBACK, str(job.target.port)]


def _socat(job: Job) -> list[str]:
    return [program("socat"), "-t", "60", "-", f"TCP4:{_place(job)},nodelay"]


def _ssh(job: Job, options: Sequence[str]) -> list[str]:
    *before, last = (f"server{number}" for number in range(len(job.route)))
    jumps = ["-J", ",".join(before)] if before else []
    return [*configured(job, job.route), *jumps, *options, last]


def _ssh_pipe(job: Job) -> list[str]:
    return _ssh(job, ["-W", _place(job)])


def _ssh_forward(job: Job) -> list[str]:
    return _ssh(job, ["-N", "-L", f"{LOOPBACK}:{job.port}:{_place(job)}"])


def _asyncssh(job: Job) -> list[str]:
    if find_spec("asyncssh") is None:
        raise UnavailableError("asyncssh is not installed: make bench")
    servers = [str(word) for one in job.route for word in (one.port, one.user, one.key, one.known_hosts)]
    return [sys.executable, "-m", "benchmarks.peers.chain_programs", str(job.port), str(job.target.port), *servers]


PEERS = {
    "pipe": Peer("relay pipe", _pipe()),
    "pipe-nc": Peer("nc (OpenBSD)", _nc),
    "pipe-socat": Peer("socat", _socat),
    "pipe-paramiko": Peer("relay pipe", _pipe("paramiko")),
    "pipe-openssh": Peer("relay pipe, openssh", _pipe("openssh")),
    "pipe-ssh": Peer("ssh -W", _ssh_pipe),
    "chain-paramiko": Peer("relay, paramiko", _forward("paramiko")),
    "chain-warm": Peer(f"relay, paramiko, warm = {WARM[1]}", _forward("paramiko", *WARM)),
    "chain-openssh": Peer("relay, openssh", _forward("openssh")),
    "chain-ssh": Peer("ssh -J, AES-GCM", _ssh_forward),
    "chain-asyncssh": Peer("asyncssh", _asyncssh),
}
