"""ØMQ sockets over SSH: what the user has (a configuration, keys), and conversations of every kind."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import zmq
from helpers import WAIT

from relay.addresses.ssh import SSHServer

TIME = int(WAIT * 1000)  # milliseconds, as ØMQ counts


class User:
    """A user with an SSH configuration, keys and known hosts of a test's own; ``ssh`` in the PATH uses them.

    :param folder: an empty one.
    :param monkeypatch: changes the environment.
    """

    def __init__(self, folder: Path, monkeypatch: Any) -> None:
        self.folder = folder
        self.config = folder / "config"
        self.known_hosts = folder / ".ssh" / "known_hosts"
        self.known_hosts.parent.mkdir(parents=True)
        self.known_hosts.touch()
        # Both files are the user's own; the original with paramiko looks at the second alone.
        self.config.write_text(f"Host *\n  UserKnownHostsFile {self.known_hosts}\n  GlobalKnownHostsFile none\n")
        ssh = folder / "bin" / "ssh"
        ssh.parent.mkdir()
        # The original's ssh is in a terminal of pexpect's, whose end may hang it up on its way to the background.
        ssh.write_text(f"#!/bin/sh\ntrap '' HUP\nexec {shutil.which('ssh')} -F {self.config} \"$@\"\n")
        ssh.chmod(0o755)
        monkeypatch.setenv("PATH", f"{ssh.parent}:{os.environ['PATH']}")
        monkeypatch.setenv("HOME", str(folder))
        monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)

    def knows(self, server: SSHServer) -> None:
        """Write the host key of a server down, as ``ssh-keyscan`` would."""
        assert server.known_hosts is not None
        with self.known_hosts.open("a") as file:
            file.write(Path(server.known_hosts).read_text())

    def configure(self, *lines: str) -> None:
        """Add to the configuration."""
        with self.config.open("a") as file:
            file.writelines(f"{line}\n" for line in lines)


def named(server: SSHServer) -> str:
    """A server as people name it."""
    host = f"[{server.host}]" if ":" in server.host else server.host
    return f"{server.user}@{host}:{server.port}"


@contextmanager
def sockets() -> Iterator[Callable[[int], Any]]:
    """Makes ØMQ sockets that wait for ten seconds at most, and that end with the block."""
    with zmq.Context() as context, ExitStack() as stack:

        def make(kind: int) -> Any:
            made = stack.enter_context(context.socket(kind))
            made.linger = 0
            made.rcvtimeo = made.sndtimeo = TIME
            return made

        yield make


def bound(made: Any, host: str = "127.0.0.1") -> str:
    """Bind a socket to a free port; returns its address."""
    made.bind(f"tcp://{host}:*")
    return str(made.last_endpoint.decode())


# Each makes the socket that is bound, has the other one connected, and proves that they understand each other.
Connect = Callable[[Any, str], object]
Make = Callable[[int], Any]


def req_rep(make: Make, connect: Connect) -> None:
    server, client = make(zmq.REP), make(zmq.REQ)
    connect(client, bound(server))
    for number in range(100):
        client.send(b"%d" % number)
        server.send(server.recv() + b"!")
        assert client.recv() == b"%d!" % number


def push_pull(make: Make, connect: Connect) -> None:
    puller, pusher = make(zmq.PULL), make(zmq.PUSH)
    connect(pusher, bound(puller))
    for number in range(1000):
        pusher.send(b"%d" % number)
    assert [puller.recv() for _ in range(1000)] == [b"%d" % number for number in range(1000)]


def pub_sub(make: Make, connect: Connect) -> None:
    publisher, subscriber = make(zmq.XPUB), make(zmq.SUB)
    publisher.sndhwm = subscriber.rcvhwm = 0
    subscriber.subscribe(b"a")
    connect(subscriber, bound(publisher))
    assert publisher.recv() == b"\1a"  # it has subscribed
    for number in range(1000):
        publisher.send(b"ab"[number % 2 :][:1] + b"%d" % number)
    assert [subscriber.recv() for _ in range(500)] == [b"a%d" % number for number in range(0, 1000, 2)]


def pair(make: Make, connect: Connect) -> None:
    far, near = make(zmq.PAIR), make(zmq.PAIR)
    connect(near, bound(far))
    near.send_multipart([b"one", b"", b"x" * (1 << 20)])
    assert far.recv_multipart() == [b"one", b"", b"x" * (1 << 20)]
    far.send(b"back")
    assert near.recv() == b"back"


def curve(make: Make, connect: Connect) -> None:
    server, client = make(zmq.REP), make(zmq.REQ)
    server.curve_server = True
    public, server.curve_secretkey = zmq.curve_keypair()
    client.curve_publickey, client.curve_secretkey = zmq.curve_keypair()
    client.curve_serverkey = public
    connect(client, bound(server))
    client.send(b"secret")
    assert server.recv() == b"secret"
    server.send(b"reply")
    assert client.recv() == b"reply"


PATTERNS = {"req-rep": req_rep, "push-pull": push_pull, "pub-sub": pub_sub, "pair": pair, "curve": curve}


# The original looks ten times, a tenth of a second each, whether a login is over: too little for a busy machine. So it
# looks a hundred times as often.
PATIENCE = """
import pexpect
def patient(self, patterns, timeout=-1, *rest, _expect=pexpect.spawn.expect, **more):
    for left in reversed(range(100)):
        try:
            return _expect(self, patterns, timeout, *rest, **more)
        except pexpect.TIMEOUT:
            if timeout != 0.1 or not left:
                raise
pexpect.spawn.expect = patient
"""


def program(code: str) -> list[str]:
    """The argument list of a small program that finds what the tests find."""
    return [sys.executable, "-c", f"import sys; sys.path[:] = {sys.path!r}\n{code}"]
