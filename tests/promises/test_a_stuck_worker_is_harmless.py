"""A worker that is stopped, or blocked in a system call, delays no operator, is named, and is replaced."""

import contextlib
import json
import os
import signal
import socket

import httpx
import pytest
from command_rig import LISTENING, commands, run
from group_rig import letter, repeats
from helpers import WAIT, receive_exactly, wait_until


@pytest.fixture
def start(runtime_directory):
    with commands() as start:
        yield lambda *words, command="up": start(*words, command=command, env={**os.environ})


@pytest.fixture
def place(serve):
    """The address of a server that sends a letter and repeats what it gets."""
    return "{}:{}".format(*serve(letter(b"a")).address)


def ctl(*words):
    done = run("ctl", *words, env={**os.environ})
    assert done.returncode == 0, done.stderr
    return done.stdout


def workers():
    return json.loads(ctl("status", "--json"))["workers"]


def tunnels():
    return {one["name"]: one for one in json.loads(ctl("list", "--json"))["tunnels"]}


def connect(address):
    client = socket.create_connection(address, WAIT)
    assert receive_exactly(client, 1) == b"a"
    return client


@pytest.fixture
def closing():
    """Gives a function that returns a socket, and closes it at the end of the test."""
    with contextlib.ExitStack() as stack:
        yield stack.enter_context


def test_operators_get_answers_and_the_worker_is_replaced(start, closing, tmp_path, place):
    tables = [f'[tunnels.{name}]\nlisten = ":0"\ntarget = "{place}"\n' for name in ("one", "two")]
    path = tmp_path / "relay.toml"
    path.write_text("\n".join(['workers = 2\nstatus = "127.0.0.1:0"', *tables]))
    command = start(str(path))
    url = command.hear("status server at").partition("at ")[2].strip()
    where = {}
    for _ in range(2):
        name, _, line = command.process.stdout.readline().partition(": ")
        where[name] = LISTENING.fullmatch(line).group(1), int(LISTENING.fullmatch(line).group(2))
    clients = [closing(connect(where["one"])) for _ in range(6)]
    before = tunnels()["one"]["figures"]
    assert (before["active"], before["accepted"]) == (6, 6)
    pid = workers()[0]["pid"]

    os.kill(pid, signal.SIGSTOP)
    shown = tunnels()
    problem = f"worker 1 (process {pid}) does not answer; relay replaces it unless it answers within 10 s"
    assert [one["problem"] for one in shown.values()] == [problem] * 2
    assert shown["one"]["state"] == "listening"
    assert shown["one"]["figures"] == before, "its last figures"
    assert command.hear("WARNING").rstrip().endswith(problem)
    assert workers()[0]["state"] == "stuck"
    assert "1 of 2 workers run" in ctl("status")
    alive, ready = (httpx.get(f"{url}/{path}", timeout=WAIT) for path in ("livez", "readyz/one"))
    assert (alive.status_code, ready.status_code) == (200, 503), "relay itself need not be restarted"
    assert ready.json()["problems"] == {"one": problem}
    figures = httpx.get(f"{url}/metrics", timeout=WAIT).text
    assert 'relay_workers{state="stuck"} 1' in figures
    assert 'relay_connections_accepted_total{tunnel="one"} 6' in figures
    ctl("pause", "two")
    ctl("resume", "two")

    said = command.hear("ERROR")
    assert f"worker 1: the process {pid} did not answer and was killed; " in said
    lost = int(said.partition("killed; ")[2].split()[0])
    wait_until(lambda: [one["state"] for one in workers()] == ["running"] * 2)
    assert [one["restarts"] for one in workers()] == [1, 0]
    wait_until(lambda: tunnels()["one"]["figures"]["active"] == 6 - lost)
    assert tunnels()["one"]["figures"]["failed"] == {"worker_lost": lost}
    clients += [closing(connect(where[name])) for name in ("one", "two") for _ in range(4)]
    assert all(repeats(client) for client in clients[6:])
    for client in clients:
        client.close()
    assert command.end()[0] == 0


def test_the_end_does_not_wait_for_it(start, tmp_path, place):
    path = tmp_path / "relay.toml"
    path.write_text(f'workers = 2\n[tunnels.one]\nlisten = ":0"\ntarget = "{place}"\ndrain = 60\n')
    command = start(str(path))
    found = LISTENING.fullmatch(command.process.stdout.readline().partition(": ")[2])
    with contextlib.ExitStack() as clients:
        for _ in range(4):
            clients.enter_context(connect((found[1], int(found[2]))))
        pid = workers()[0]["pid"]
        os.kill(pid, signal.SIGSTOP)
        assert f"worker 1 (process {pid}) does not answer" in ctl("list")
        command.process.send_signal(signal.SIGTERM)
        command.hear("closing")
        status, said = command.end()
    assert status == 0
    assert "Traceback" not in said
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
