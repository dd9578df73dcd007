"""Relays that end TLS: their clients speak it, their target does not."""

from __future__ import annotations

from ..jobs import Job, Peer
from ..machine import LOOPBACK, UnavailableError, program, relay_command
from .tunnels import MODULE


def _relay(job: Job) -> list[str]:
    directory = job.certify().parent
    listen = f"tls://{LOOPBACK}:{job.port}?cert={directory / 'server.pem'}&key={directory / 'server.key'}"
    return [relay_command(), "forward", listen, f"{LOOPBACK}:{job.target.port}"]


def _haproxy(job: Job) -> list[str]:
    job.certify()
    configuration = job.write(
        "haproxy.cfg",
        f"""global
    nbthread 1
    maxconn {job.connections + 100}
defaults
    mode tcp
    maxconn {job.connections + 100}
    timeout connect 30s
    timeout client 1h
    timeout server 1h
listen bench
    bind {LOOPBACK}:{job.port} ssl crt both.pem
    server target {LOOPBACK}:{job.target.port}
""",
    )
    return [program("haproxy"), "-db", "-C", str(job.directory), "-f", configuration]


def _nginx(job: Job) -> list[str]:
    if not MODULE.exists():
        raise UnavailableError("nginx's stream module is not installed")
    job.certify()
    configuration = job.write(
        "nginx.conf",
        f"""load_module {MODULE};
daemon off;
master_process off;
pid nginx.pid;
error_log stderr error;
worker_rlimit_nofile {2 * job.connections + 1000};
events {{ worker_connections {2 * job.connections + 1000}; }}
stream {{
    server {{
        listen {LOOPBACK}:{job.port} ssl backlog=4096;
        ssl_certificate server.pem;
        ssl_certificate_key server.key;
        ssl_protocols TLSv1.2 TLSv1.3;
        proxy_pass {LOOPBACK}:{job.target.port};
        proxy_timeout 1h;
    }}
}}
""",
    )
    return [program("nginx"), "-p", str(job.directory), "-c", configuration, "-e", "stderr"]


def _stunnel(job: Job) -> list[str]:
    job.certify()
    configuration = job.write(
        "stunnel.conf",
        f"""foreground = yes
pid =
debug = warning
[bench]
accept = {LOOPBACK}:{job.port}
connect = {LOOPBACK}:{job.target.port}
cert = {job.directory / "both.pem"}
""",
    )
    return [program("stunnel4"), configuration]


def _ghostunnel(job: Job) -> list[str]:
    both = job.certify().with_name("both.pem")
    listen, target = f"{LOOPBACK}:{job.port}", f"{LOOPBACK}:{job.target.port}"
    words = ["--listen", listen, "--target", target, "--keystore", str(both), "--disable-authentication"]
    return [program("ghostunnel"), "server", *words]


PEERS = {
    "tls-relay": Peer("relay", _relay),
    "tls-relay-alone": Peer("relay, no crowd", _relay),
    "tls-haproxy": Peer("HAProxy", _haproxy),
    "tls-nginx": Peer("nginx stream", _nginx),
    "tls-stunnel": Peer("stunnel", _stunnel),
    "tls-ghostunnel": Peer("ghostunnel", _ghostunnel),
}
