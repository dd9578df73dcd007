"""Proxies whose clients name their targets, and how each is started."""

from __future__ import annotations

from ..jobs import Job, Peer
from ..machine import LOOPBACK, program, relay_command
from .chain import configured


def _relay(job: Job) -> list[str]:
    return [relay_command(), "socks", f"{LOOPBACK}:{job.port}"]


def _microsocks(job: Job) -> list[str]:
    return [program("microsocks"), "-i", LOOPBACK, "-p", str(job.port)]


def _dante(job: Job) -> list[str]:
    configuration = job.write(
        "danted.conf",
        f"""logoutput: /dev/null
internal: {LOOPBACK} port = {job.port}
external: {LOOPBACK}
clientmethod: none
socksmethod: none
client pass {{ from: 127.0.0.0/8 to: 0.0.0.0/0 }}
socks pass {{ from: 0.0.0.0/0 to: 0.0.0.0/0 command: connect }}
""",
    )
    return [program("danted"), "-f", configuration, "-p", f"{configuration}.pid"]


def _ssh(job: Job) -> list[str]:
    return [*configured(job, [job.server]), "-N", "-D", f"{LOOPBACK}:{job.port}", "server0"]


PEERS = {
    "socks-relay": Peer("relay socks", _relay),
    "socks-relay-alone": Peer("relay socks, no crowd", _relay),
    "microsocks": Peer("microsocks", _microsocks),
    "dante": Peer("dante", _dante),
    "ssh-dynamic": Peer("ssh -D, AES-GCM", _ssh),
}
