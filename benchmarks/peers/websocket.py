"""The near ends of two relays, and how each is started; the far ends are of the rows."""

from __future__ import annotations

from collections.abc import Callable

from ..jobs import Job, Peer
from ..machine import LOOPBACK, relay_command


def _to(scheme: str) -> Callable[[Job], list[str]]:
    def start(job: Job) -> list[str]:
        more = f"?ca={job.target.ca}&servername=localhost" if scheme in ("wss", "tls") else ""
        path = "" if scheme == "tls" else "/"
        target = f"{scheme}://{LOOPBACK}:{job.target.port}{path}{more}"
        return [relay_command(), "forward", f"{LOOPBACK}:{job.port}", target]

    return start


def _through_proxy(job: Job) -> list[str]:
    hop = f"https://{LOOPBACK}:{job.target.port}?ca={job.target.ca}&servername=localhost"
    return [relay_command(), "forward", f"{LOOPBACK}:{job.port}", f"{LOOPBACK}:{job.target.behind}", "--via", hop]


PEERS = {
    "websocket-wss": Peer("two relays, wss://", _to("wss")),
    "websocket-tls": Peer("two relays, tls://", _to("tls")),
    "websocket-https": Peer("two relays, https://", _through_proxy),
    "websocket-ws": Peer("two relays, ws://", _to("ws")),
    "websocket-websockify": Peer("relay and websockify, ws://", _to("ws")),
}
