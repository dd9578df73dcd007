"""Duties of the peers whose instructions are counted, and how each is started for one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from ..jobs import Job
from ..machine import LOOPBACK, relay_command
from . import access, socks, ssh
from .tcp import PEERS, haproxy, relay

Start = Callable[[Job], list[str]]
_spliced = partial(haproxy, "", "option splice-auto")
_PLAIN = ("relay", "haproxy", "c", "python")
_OPENSSL = ("relay", "relay-3.5", "relay-3.5-x25519", "haproxy-3.5")


def _socks(*options: str) -> Start:
    return lambda job: [*socks.PEERS["socks-relay"].start(job), *options]


def _over_i2p(job: Job) -> list[str]:
    assert job.target.name is not None, "its target is an address in I2P"
    return [relay_command(), "forward", f"{LOOPBACK}:{job.port}", job.target.name]


DUTIES: dict[str, dict[str, Start]] = {
    "plain": {name: PEERS[name].start for name in _PLAIN},
    "groups": {name: PEERS[name].start for name in _OPENSSL},
    "limit": {
        "relay": relay("--limit", "per=ip,rate=1000000/1s,concurrent=100000"),
        "haproxy": _spliced(
            rules="""stick-table type ip size 100k expire 10s store conn_rate(1s),conn_cur
    tcp-request connection track-sc0 src
    tcp-request connection reject if { sc0_conn_rate gt 1000000 } or { sc0_conn_cur gt 100000 }"""
        ),
    },
    "access": {
        "relay": relay(*access.LISTS),
        "haproxy": _spliced(
            rules="""tcp-request connection reject if { src 10.66.0.0/16 192.0.2.1 }
    tcp-request connection reject unless { src 10.0.0.0/8 2001:db8::/32 127.0.0.0/8 }"""
        ),
    },
    "header": {"relay": relay("--send-proxy", "v2"), "haproxy": _spliced(server="send-proxy-v2")},
    "log": {"relay": lambda job: relay("--log-file", str(job.directory / "access.log"))(job)},
    "warm": {"relay": PEERS["relay-warm"].start},
    "i2p": {"relay": _over_i2p},
    "socks": {"relay": _socks(), "microsocks": PEERS["microsocks"].start, "dante": PEERS["dante"].start},
    "rule": {"relay": _socks("--rule", "10.0.0.0/8=refuse", "--rule", "127.0.0.0/8=direct", "--rule", "*=refuse")},
    "paramiko": {"relay": ssh.PEERS["ssh-paramiko"].start},
    "openssh": {"relay": ssh.PEERS["ssh-openssh"].start, "ssh": ssh.PEERS["ssh-gcm"].start},
}
"""For each duty the peers that have it."""
