"""500 tunnels, ten of which cannot start: the others run, each failure is one line, and a signal drains all."""

import contextlib
import os
import re
import signal
import socket
import sys
import threading
from pathlib import Path

import psutil
import pytest
from command_rig import commands
from helpers import WAIT, receive_all, receive_exactly, send_and_end, wait_until

TUNNELS, BAD = 500, 10
LINE = re.compile(r"(t\d+): listening on 127\.0\.0\.1:(\d+) → \S+\n")


def is_bad(number):
    return number % (TUNNELS // BAD + 1) == 7


@pytest.fixture
def taken():
    """Ports that another program has."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1] for _ in range(BAD)]


@pytest.fixture
def up(tmp_path, taken):
    """Starts them all, leading to one place; gives the command, and the port of each tunnel that listens."""
    with commands() as make:

        def start(place):
            lines = ["[defaults]", "drain = 20"]
            for number in range(TUNNELS):
                listen = taken[number % BAD] if is_bad(number) else 0
                lines += [f"[tunnels.t{number}]", f"listen = {listen}", f'target = "{place}"']
            path = tmp_path / "relay.toml"
            path.write_text("\n".join(lines))
            path.chmod(0o600)
            command = make(str(path), command="up")
            ports = {}
            while len(ports) < TUNNELS - BAD:
                line = command.process.stdout.readline()
                match = LINE.fullmatch(line)
                assert match, f"{line!r}, then {command.process.communicate(timeout=WAIT)}"
                ports[int(match[1][1:])] = int(match[2])
            return command, ports

        yield start


def test_the_others_run_and_each_failure_is_one_line(up, echo_server):
    command, ports = up("{}:{}".format(*echo_server.address))
    assert ports.keys() == {number for number in range(TUNNELS) if not is_bad(number)}
    for port in list(ports.values())[::35]:
        with socket.create_connection(("127.0.0.1", port), WAIT) as client:
            send_and_end(client, b"hello")
            assert receive_all(client) == b"hello"
    status, said = command.end()
    assert status == 0
    failures = [line for line in said.splitlines() if line.startswith("relay: ")]
    assert sorted(line.split(": ")[1] for line in failures) == sorted(f"t{n}" for n in range(TUNNELS) if is_bad(n))
    assert all("Address already in use" in line for line in failures)
    assert f"INFO {TUNNELS - BAD} of {TUNNELS} tunnels listen; {BAD} do not\n" in said
    assert len(said.splitlines()) == BAD + 3, said  # the count, the signal and the sum


def test_a_signal_drains_all(up, serve):
    goes_on = threading.Event()

    def slow(connection):
        connection.sendall(b"first")
        assert goes_on.wait(3 * WAIT)
        connection.sendall(b"last")

    command, ports = up("{}:{}".format(*serve(slow).address))
    clients = [socket.create_connection(("127.0.0.1", port), 3 * WAIT) for port in list(ports.values())[::10]]
    for client in clients:
        assert receive_exactly(client, 5) == b"first"
    command.process.send_signal(signal.SIGTERM)
    assert f"closing; {len(clients)} open, 20 s to finish" in command.hear("closing")
    goes_on.set()
    for client in clients:
        assert receive_all(client) == b"last"
        client.close()
    status, said = command.wait()
    assert status == 0
    assert f"{len(clients)} connections, " in said.splitlines()[-1]


@pytest.mark.skipif(sys.platform != "linux", reason="reads what the kernel counts from /proc")
def test_they_take_little_memory_and_no_time_when_idle(up, echo_server):
    command, _ = up("{}:{}".format(*echo_server.address))
    command.hear("tunnels listen")
    process = psutil.Process(command.process.pid)
    assert process.memory_info().rss < 80 << 20
    assert process.num_threads() < 20, "none has a thread before its first client"
    assert process.num_fds() < TUNNELS + 50
    wait_until(lambda: is_asleep_for(1.0, process.pid))  # a busy machine may put off the last turns of the loops
    assert command.end()[0] == 0


def is_asleep_for(seconds, pid):
    """Return whether no thread of a process runs in that time."""
    threading.Event().wait(0.5)
    begin = switches(pid)
    threading.Event().wait(seconds)
    return switches(pid) == begin


def switches(pid):
    """Return how often each thread has waited or been put aside, from the kernel."""
    counts = {}
    for thread in os.listdir(f"/proc/{pid}/task"):
        text = Path(f"/proc/{pid}/task/{thread}/status").read_text()
        counts[thread] = sum(int(line.split()[1]) for line in text.splitlines() if "ctxt_switches" in line)
    return counts
