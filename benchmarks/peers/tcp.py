"""The peers, and how each is started."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from functools import partial
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

from ..jobs import DIRECT, Job, Peer
from ..machine import LOOPBACK, UnavailableError, compiled, program, relay_command, run
from . import access, chain, socks, ssh, tls, websocket, zmq
from .ssh import WARM

LIMITS = ["--nconnect", "100000", "--timeout", "3600", "--idle-timeout", "600"]
NEWER = (3, 5)  # of OpenSSL: the first with a post-quantum group
STATUS = "status"  # the socket of the status server, in the directory of the job
SOURCES = Path(__file__).parents[1] / "c"


def relay(*options: str, groups: str = "", openssl: tuple[int, int] | None = None) -> Callable[[Job], list[str]]:
    def start(job: Job) -> list[str]:
        target = f"{job.target.name or LOOPBACK}:{job.target.port}"
        if job.target.ca is not None:
            target = f"tls://{target}?ca={job.target.ca}&servername=localhost{groups and f'&groups={groups}'}"
        return [*with_openssl(openssl, job), relay_command(), "forward", *options, f"{LOOPBACK}:{job.port}", target]

    return start


def with_openssl(version: tuple[int, int] | None, job: Job) -> list[str]:
    """The words in front of a command that give it a newer OpenSSL, of a wheel that the tests need anyway.

    :param version: the least one; ``None`` for the one that it has.
    """
    if version is None:
        return []
    folder = job.directory / "openssl"
    folder.mkdir(exist_ok=True)
    try:
        libraries = [Path(str(one.locate())) for one in files("psycopg-binary") or () if ".libs/" in str(one)]
    except PackageNotFoundError:
        raise UnavailableError("psycopg-binary, which has an OpenSSL, is not installed") from None
    for library in libraries:
        (folder / library.name).symlink_to(library)
        if found := re.match(r"lib(?:ssl|crypto)(?=-)", library.name):
            (folder / f"{found[0]}.so.3").symlink_to(library)
    words = ["env", f"LD_LIBRARY_PATH={folder}"]
    said = run([*words, sys.executable, "-c", "import ssl; print(ssl.OPENSSL_VERSION)"], 60)
    if tuple(map(int, said.split()[1].split(".")[:2])) < version:
        raise UnavailableError(f"this Python takes {said.strip()}")
    return words


def _newer_haproxy(job: Job) -> list[str]:
    return [*with_openssl(NEWER, job), *haproxy("", "option splice-auto")(job)]


def _relay_with_status(job: Job) -> list[str]:
    return relay("--status", f"unix://{job.directory / STATUS}")(job)


def inside(kind: str) -> Callable[[Job], list[str]]:
    """A program that uses the package: programs.py."""

    def start(job: Job) -> list[str]:
        words = [kind, str(job.port), str(job.target.port), str(job.core)]
        return [sys.executable, "-m", "benchmarks.peers.programs", *words]

    return start


def haproxy(
    tuning: str, options: str, threads: int = 1, rules: str = "", server: str = ""
) -> Callable[[Job], list[str]]:
    def start(job: Job) -> list[str]:
        tls = f" ssl verify required ca-file {job.target.ca} sni str(localhost)" if job.target.ca else ""
        configuration = job.write(
            "haproxy.cfg",
            f"""global
    nbthread {threads}
    maxconn {job.connections + 100}
    maxpipes 500
    {tuning}
defaults
    mode tcp
    maxconn {job.connections + 100}
    {options}
    timeout connect 30s
    timeout client 1h
    timeout server 1h
listen bench
    bind {LOOPBACK}:{job.port}
    {rules}
    server target {LOOPBACK}:{job.target.port}{tls} {server}
""",
        )
        return [program("haproxy"), "-db", "-f", configuration]

    return start


def _nginx(job: Job, workers: int = 0) -> list[str]:
    """With so many worker processes; 0 for none beside the one that is started."""
    module = Path("/usr/lib/nginx/modules/ngx_stream_module.so")
    if not module.exists():
        raise UnavailableError("nginx's stream module is not installed")
    configuration = job.write(
        "nginx.conf",
        f"""load_module {module};
daemon off;
{f"worker_processes {workers};" if workers else "master_process off;"}
pid nginx.pid;
error_log stderr;
worker_rlimit_nofile {2 * job.connections + 1000};
events {{ worker_connections {2 * job.connections + 1000}; }}
stream {{
    server {{
        listen {LOOPBACK}:{job.port} backlog=4096{" reuseport" if workers > 1 else ""};
        proxy_pass {LOOPBACK}:{job.target.port};
        proxy_timeout 1h;
    }}
}}
""",
    )
    return [program("nginx"), "-p", str(job.directory), "-c", configuration, "-e", "stderr"]


def _socat(job: Job) -> list[str]:
    listen = f"TCP4-LISTEN:{job.port},bind={LOOPBACK},fork,reuseaddr,backlog=4096,nodelay"
    return [program("socat"), listen, f"TCP4:{LOOPBACK}:{job.target.port},nodelay"]


def _stunnel(job: Job) -> list[str]:
    configuration = job.write(
        "stunnel.conf",
        f"""foreground = yes
pid =
debug = warning
[bench]
client = yes
accept = {LOOPBACK}:{job.port}
connect = {LOOPBACK}:{job.target.port}
CAfile = {job.target.ca}
verifyChain = yes
checkHost = localhost
sni = localhost
""",
    )
    return [program("stunnel4"), configuration]


def _c(job: Job, *rate: str) -> list[str]:
    return [compiled(SOURCES / "relay.c", job.directory.parent), str(job.port), str(job.target.port), *rate]


def _least(job: Job) -> list[str]:
    return [sys.executable, str(Path(__file__).with_name("least.py")), str(job.port), str(job.target.port)]


def _c_paced(job: Job) -> list[str]:
    return _c(job, str(access.FAST))


def _started_with_the_network(job: Job) -> list[str]:
    raise AssertionError("it is started with its network")


def _direct(job: Job) -> list[str]:
    raise AssertionError("nothing to start")


def _workers(count: int) -> str:
    return f"{count} worker{'s' if count > 1 else ''}"


PEERS = {
    "relay": Peer("relay", relay()),
    "relay-warm": Peer(f"relay, warm = {WARM[1]}", relay(*WARM)),
    "relay-limits": Peer("relay, limits set", relay(*LIMITS)),
    "relay-rules": Peer("relay, 5 rules, 5 limits", relay(*access.RULES)),
    "relay-paced": Peer("relay, bandwidth of each stream", relay(*access.PACED)),
    "relay-metered": Peer("relay, bandwidth of all streams", relay(*access.METERED)),
    "relay-shared": Peer("relay, 50 MB/s for all streams", relay(*access.SHARING)),
    "relay-3.5": Peer("relay, OpenSSL 3.5", relay(openssl=NEWER)),
    "relay-3.5-x25519": Peer("relay, OpenSSL 3.5, X25519", relay(openssl=NEWER, groups="X25519")),
    "relay-status": Peer("relay, scraped each second", _relay_with_status),
    "haproxy": Peer("HAProxy", haproxy("", "option splice-auto")),
    "haproxy-3.5": Peer("HAProxy, OpenSSL 3.5", _newer_haproxy),
    "haproxy-tuned": Peer(
        "HAProxy tuned",
        haproxy("tune.pipesize 1048576", "option splice-request\n    option splice-response"),
    ),
    "nginx": Peer("nginx stream", _nginx),
    "socat": Peer("socat", _socat),
    "stunnel": Peer("stunnel", _stunnel),
    "c": Peer("C, epoll + splice", _c),
    "python": Peer("Python, least relay", _least),
    "c-paced": Peer("C, paced by the kernel", _c_paced),
    "relay-callable": Peer("relay.Tunnel, own callable", inside("callable")),
    "relay-beside": Peer("relay, busy program beside", relay()),
    "relay-spawn": Peer("relay.spawn, busy program", inside("spawn")),
    "relay-thread": Peer("relay.Tunnel, busy program", inside("thread")),
    **ssh.PEERS,
    **chain.PEERS,
    **socks.PEERS,
    **tls.PEERS,
    **websocket.PEERS,
    **zmq.PEERS,
    **{f"workers-{count}": Peer(f"relay, {_workers(count)}", inside(f"workers-{count}")) for count in (1, 2)},
    **{
        f"haproxy-{count}": Peer(f"HAProxy, nbthread {count}", haproxy("", "option splice-auto", count))
        for count in (1, 2)
    },
    **{f"nginx-{count}": Peer(f"nginx stream, {_workers(count)}", partial(_nginx, workers=count)) for count in (1, 2)},
    "i2p-relay": Peer("relay", _started_with_the_network),
    "i2p-warm": Peer(f"relay, warm = {WARM[1]}", _started_with_the_network),
    "i2pd": Peer("i2pd's own tunnels", _started_with_the_network),
    "i2p-raw": Peer("SAM, nothing between", _started_with_the_network),
    "i2p-c": Peer("SAM, a C relay at each end", _started_with_the_network),
    DIRECT: Peer("none (direct)", _direct),
}

VERSIONS = {
    "relay": [str(Path(sys.executable).with_name("relay")), "--version"],
    "HAProxy": ["haproxy", "-v"],
    "nginx": ["nginx", "-v"],
    "socat": ["socat", "-V"],
    "stunnel": ["stunnel4", "-version"],
    "ghostunnel": ["ghostunnel", "--version"],
    "OpenSSH": ["ssh", "-V"],
    "i2pd": ["i2pd", "--version"],
    "gcc": ["gcc", "--version"],
    "iperf3": ["iperf3", "-v"],
    "wrk": ["wrk", "-v"],
    "curl": ["curl", "-V"],
    "rsync": ["rsync", "--version"],
}
PACKAGES = ["paramiko", "asyncssh", "sshtunnel"]
