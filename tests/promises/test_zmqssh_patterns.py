"""Every kind of ØMQ socket talks over SSH, with both backends, to a real and to an embedded server; as the original."""

from __future__ import annotations

import gc

import pytest
import zmq.ssh.tunnel
from zmq_world import PATTERNS, User, named, sockets

from relay.compat import zmqssh

ATTEMPTS = 10  # of the original, which gives a login a second
TRANSIENT = (zmq.ssh.tunnel.MaxRetryExceeded, RuntimeError)


@pytest.fixture
def user(far_end, tmp_path, monkeypatch):
    made = User(tmp_path / "home", monkeypatch)
    made.knows(far_end.server)
    return made


@pytest.mark.parametrize("pattern", PATTERNS)
def test_over_ipc(far_end, user, pattern):
    opened = []

    def connect(socket, address):
        server = named(far_end.server)
        paramiko = far_end.backend == "paramiko"
        opened.append(zmqssh.tunnel_connection(socket, address, server, far_end.server.keyfile, paramiko=paramiko))

    with sockets() as make:
        PATTERNS[pattern](make, connect)
        (tunnel,) = opened
        assert tunnel.address.startswith("/") and tunnel.stats().accepted == 1
        tunnel.terminate()


@pytest.mark.parametrize("pattern", PATTERNS)
def test_over_a_port(far_end, user, pattern):
    opened = []

    def connect(socket, address):
        server = named(far_end.server)
        paramiko = far_end.backend == "paramiko"
        url, tunnel = zmqssh.open_tunnel(address, server, far_end.server.keyfile, None, paramiko, 60)
        opened.append(tunnel)
        socket.connect(url)

    with sockets() as make:
        PATTERNS[pattern](make, connect)
        opened.pop().terminate()


@pytest.mark.parametrize("pattern", PATTERNS)
def test_over_the_original(sshd, backend, tmp_path, monkeypatch, pattern):
    """The same conversations on the original, where it works: with a real server, which runs its ``sleep``."""
    user = User(tmp_path / "home", monkeypatch)
    user.knows(sshd.server)
    opened = []

    def connect(socket, address):
        opened.append(original_connection(socket, address, named(sshd.server), sshd.keyfile, backend == "paramiko"))

    try:
        with sockets() as make:
            PATTERNS[pattern](make, connect)
    finally:
        sshd.kill_sessions()  # which ends the ssh that the original lets go of
        for tunnel in opened:
            if backend == "paramiko":
                tunnel.terminate()
                tunnel.join()
                tunnel.close()
        gc.collect()  # the terminal of pexpect's


def original_connection(socket, address, server, keyfile, paramiko):
    """The original's, which gives a login a second."""
    for left in reversed(range(ATTEMPTS)):
        try:
            return zmq.ssh.tunnel.tunnel_connection(socket, address, server, str(keyfile), None, paramiko, 1)
        except TRANSIENT:
            if not left:
                raise
    return None
