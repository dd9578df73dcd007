"""Every kind of ØMQ socket talks over SSH as over the original, each kind over some of the backends and servers."""

import gc

import pexpect
import pytest
import zmq.ssh.tunnel
from covering import FAR_ENDS, each_value
from helpers import WAIT
from zmq_world import PATIENCE, PATTERNS, User, named, sockets

from relay.compat import zmqssh


@pytest.fixture
def user(far_end, tmp_path, monkeypatch):
    made = User(tmp_path / "home", monkeypatch)
    made.knows(far_end.server)
    return made


def kinds(shift):
    """A mark for each kind of socket, over one of the far ends."""
    rows = [(pattern, *far_end) for pattern, far_end in each_value(PATTERNS, FAR_ENDS, shift=shift)]
    return pytest.mark.parametrize(("pattern", "backend", "far_end"), rows, indirect=["backend", "far_end"])


@kinds(0)
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


@kinds(1)
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


@pytest.mark.parametrize(("pattern", "backend"), each_value(PATTERNS, ["paramiko", "openssh"]), indirect=["backend"])
def test_over_the_original(sshd, backend, tmp_path, monkeypatch, pattern):
    """The same conversations on the original, where it works: with a real server, which runs its ``sleep``."""
    user = User(tmp_path / "home", monkeypatch)
    user.knows(sshd.server)
    monkeypatch.setattr("pexpect.spawn.expect", pexpect.spawn.expect)  # put back after the test
    exec(PATIENCE)
    opened = []

    def connect(socket, address):
        login = (named(sshd.server), str(sshd.keyfile), None, backend == "paramiko", WAIT)
        opened.append(zmq.ssh.tunnel.tunnel_connection(socket, address, *login))

    try:
        with sockets() as make:
            PATTERNS[pattern](make, connect)
    finally:
        sshd.kill_sessions()  # which ends the ssh that the original leaves behind
        for tunnel in opened:
            if backend == "paramiko":
                tunnel.terminate()
                tunnel.join()
                tunnel.close()
        gc.collect()  # the terminal of pexpect's
