"""A tunnel ends with its program, also one that is killed, or by itself: no process, port or socket file is left."""

import json
import os
import signal
import socket
import time
from pathlib import Path

import psutil
import pytest
import zmq
from covering import FAR_ENDS
from helpers import PROMPT, WAIT, wait_until
from zmq_world import User, bound, named, program, sockets

from relay.compat import zmqssh
from relay.process import PIPE, start

PROGRAM = """
import json, os, zmq
from relay.compat import zmqssh as ssh
context = zmq.Context()
sock = context.socket(zmq.REQ)
options = json.loads(sys.argv[2])
tunnel = ssh.tunnel_connection(sock, sys.argv[1], **options)
url, other = ssh.open_tunnel(sys.argv[1], **options)
sock.send(b"hello"); sock.recv()
print(json.dumps([tunnel.pid, other.pid, tunnel.address, url]), flush=True)
sys.stdin.read(1)
"""


@pytest.fixture
def user(far_end, tmp_path, monkeypatch):
    made = User(tmp_path / "home", monkeypatch)
    made.knows(far_end.server)
    # Short, for a Unix socket's path is; and of no other test.
    monkeypatch.setenv("TMPDIR", str(tmp_path / "t"))
    (tmp_path / "t").mkdir()
    return made


def options_of(far_end):
    return {
        "server": named(far_end.server),
        "keyfile": far_end.server.keyfile,
        "paramiko": far_end.backend == "paramiko",
    }


def family(pid):
    """A process and all that it has started."""
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def are_gone(processes):
    return all(not process.is_running() or process.status() == psutil.STATUS_ZOMBIE for process in processes)


class Running:
    """The program above, which has two tunnels, and what there is of it."""

    def __init__(self, far_end, address):
        argv = [*program(PROGRAM), address, json.dumps(options_of(far_end))]
        self.process = start(argv, stdin=PIPE, stdout=PIPE)

    def up(self):
        assert self.process.stdout is not None
        first, second, self.path, url = json.loads(self.process.stdout.readline())
        self.port = int(url.rpartition(":")[2])
        self.children = [one for pid in (first, second) for one in family(pid)]
        assert os.stat(os.path.dirname(self.path)).st_mode & 0o777 == 0o700
        assert self.names().count("ssh") in (0, 2)

    def names(self):
        return [one.name() for one in self.children]

    def assert_gone(self, folder):
        wait_until(lambda: are_gone(self.children))
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", self.port)) != 0
        assert not Path(self.path).parent.exists()
        assert list(folder.rglob("socket")) == []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        with self.process:
            pass


@pytest.mark.parametrize(
    ("number", "backend", "far_end"),
    [
        *((signal.SIGKILL, *far_end) for far_end in FAR_ENDS),
        *((number, "openssh", "sshd") for number in (signal.SIGTERM, signal.SIGINT, None)),
    ],
    indirect=["backend", "far_end"],
)
def test_with_the_program(far_end, user, tmp_path, number):
    with sockets() as make:
        server = make(zmq.REP)
        with Running(far_end, bound(server)) as running:
            server.send(server.recv())
            running.up()
            if far_end.backend == "openssh":
                assert running.names().count("ssh") == 2
            if number is None:
                running.process.stdin.close()
                running.process.stdin = None
            else:
                running.process.send_signal(number)
            running.process.wait(WAIT)
            running.assert_gone(tmp_path / "t")
    assert list((tmp_path / "t").iterdir()) == []


def test_with_a_program_that_is_killed_while_it_connects(far_end, user, tmp_path):
    with sockets() as make, socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(WAIT)
        far_end.server = type(far_end.server)(
            "127.0.0.1", far_end.server.user, silent.getsockname()[1], keyfile=far_end.server.keyfile
        )
        with Running(far_end, bound(make(zmq.REP))) as running:
            client, _ = silent.accept()
            with client:
                children = family(running.process.pid)[1:]
                running.process.kill()
                wait_until(lambda: are_gone(children))
    assert list((tmp_path / "t").rglob("socket")) == []


def test_closing(far_end, user, tmp_path):
    with sockets() as make:
        url, tunnel = zmqssh.open_tunnel(bound(make(zmq.REP)), **options_of(far_end))
        children = family(tunnel.pid)
        assert tunnel.pid != os.getpid()
        with tunnel:
            assert socket.create_connection(tunnel.address).close() is None
        assert url == f"tcp://127.0.0.1:{tunnel.address[1]}"
        assert are_gone(children)
        tunnel.close()
        tunnel.terminate()
    assert list((tmp_path / "t").iterdir()) == []


def test_a_time_without_a_connection(far_end, user, tmp_path, caplog):
    with sockets() as make:
        server, client = make(zmq.REP), make(zmq.REQ)
        tunnel = zmqssh.tunnel_connection(client, bound(server), timeout=3.0, **options_of(far_end))
        children = family(tunnel.pid)
        client.send(b"hello")
        server.send(server.recv())
        assert client.recv() == b"hello"
        tunnel.join(4.0)
        assert not are_gone(children[:1])  # for it is used
        begin = time.monotonic()
        client.close()
        tunnel.join(WAIT)
        assert time.monotonic() - begin > 2.9
        wait_until(lambda: are_gone(children))
        assert tunnel.stats().accepted == 1  # it can still be asked
        assert repr(tunnel).endswith(" closed>")
        tunnel.close()
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []
    assert list((tmp_path / "t").iterdir()) == []


def test_a_time_without_any_connection_at_all(far_end, user, tmp_path):
    url, tunnel = zmqssh.open_tunnel("tcp://127.0.0.1:1", timeout=0.3, **options_of(far_end))
    tunnel.join(WAIT)
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", int(url.rpartition(":")[2]))) != 0
    assert list((tmp_path / "t").iterdir()) == []
    tunnel.close()


def test_a_tunnel_that_is_terminated(far_end, user, tmp_path):
    with sockets() as make:
        client = make(zmq.REQ)
        tunnel = zmqssh.tunnel_connection(client, "tcp://127.0.0.1:1", **options_of(far_end))
        children = family(tunnel.pid)
        begin = time.monotonic()
        tunnel.terminate()
        assert time.monotonic() - begin < PROMPT
        wait_until(lambda: are_gone(children))
    assert list((tmp_path / "t").iterdir()) == []
