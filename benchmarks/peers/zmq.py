"""Peers that connect ØMQ sockets over SSH; each is in the program that sends."""

from __future__ import annotations

from ..jobs import Job, Peer


def _inside(job: Job) -> list[str]:
    raise AssertionError("it is in the program that sends")


PEERS = {
    "zmq-openssh": Peer("zmqssh, openssh", _inside),
    "zmq-paramiko": Peer("zmqssh, paramiko", _inside),
    "zmq-original": Peer("zmq.ssh", _inside),
}
