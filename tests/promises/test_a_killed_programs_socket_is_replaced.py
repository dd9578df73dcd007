"""A program that was killed leaves the file of its Unix socket; the next start takes its place, also with workers."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import WAIT, family, is_running, receive_exactly, stop, wait_until

from relay.transports.unix import listen_unix

ROOT = Path(__file__).parents[2]


def assert_serves(command, path):
    line = command.process.stdout.readline()
    assert line.startswith("listening on unix:"), command.wait()
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(WAIT)
        client.connect(path)
        client.sendall(b"ping")
        assert receive_exactly(client, 4) == b"ping"


only_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells who made a listener")


@pytest.mark.parametrize(("workers", "is_faster"), [(1, False), (2, False), pytest.param(2, True, marks=only_linux)])
def test_by_the_next_start(workers, is_faster, start, echo_server, tmp_path):
    """Also if that is faster than the end of the workers of the killed one."""
    path = str(tmp_path / "a.sock")
    words = (f"unix://{path}", "{}:{}".format(*echo_server.address), "--workers", str(workers))
    killed = start(*words)
    assert_serves(killed, path)
    left = family(killed.process.pid)[1:] if is_faster else []
    for worker in left:
        stop(worker)
    killed.process.kill()
    killed.process.wait()
    assert os.path.exists(path)
    following = start(*words)
    try:
        wait_until(lambda: is_waiting_at(path) or not is_faster)
    finally:
        for worker in left:
            os.kill(worker, signal.SIGCONT)
    assert_serves(following, path)
    assert following.end()[0] == 0
    assert not os.path.exists(path) and not any(map(is_running, left))


def is_waiting_at(path):
    """Return whether a client has connected to the socket, and it was not accepted."""
    with open("/proc/net/unix") as table:
        return any(line.split()[-1] == path and line.split()[5] == "02" for line in table)


HEIR = """
import os, subprocess, sys
from relay.transports.unix import listen_unix
listening = listen_unix(sys.argv[1])
subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], pass_fds=[listening.fileno()])
os._exit(0)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells who made a listener")
def test_not_from_a_successor_of_the_program_that_made_it(tmp_path, monkeypatch):
    monkeypatch.setattr("relay.transports.unix._PATIENCE", 0.05)
    path = str(tmp_path / "a.sock")
    with subprocess.Popen([sys.executable, "-c", HEIR, path], stdin=subprocess.PIPE, cwd=ROOT) as process:
        assert process.wait(WAIT) == 0
        with pytest.raises(OSError, match="another program listens there"):
            listen_unix(path)
        assert os.path.exists(path)
    monkeypatch.setattr("relay.transports.unix._PATIENCE", WAIT)
    listen_unix(path).close()  # once the successor has ended, too
