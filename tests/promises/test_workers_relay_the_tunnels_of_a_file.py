"""Workers relay the tunnels of a file: the promise of ``workers =`` and ``--workers`` for operators."""

import contextlib
import json
import os
import re
import signal
import socket
import ssl

import httpx
import pytest
import trustme
from command_rig import commands, run, tunnel
from group_rig import letter, repeats
from helpers import WAIT, receive_exactly, reserved_port, wait_until

LISTENING = re.compile(r"(\w+): listening on (\S+):(\d+) → ")


@pytest.fixture
def start(environment):
    with commands() as start:
        yield lambda *words, command="up": start(*words, command=command, env=environment)


@pytest.fixture
def places(serve):
    """The addresses of two servers, which send different letters and repeat what they get."""
    return ["{}:{}".format(*serve(letter(which)).address) for which in (b"a", b"b")]


@pytest.fixture
def ctl(environment):
    def call(*words):
        done = run("ctl", *words, env=environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return call


def addresses(command, count):
    """Return where the tunnels listen, by name."""
    found = [LISTENING.match(command.process.stdout.readline()) for _ in range(count)]
    return {one[1]: (one[2], int(one[3])) for one in found}


def connect(address, which=b"a"):
    client = socket.create_connection(address, WAIT)
    assert receive_exactly(client, 1) == which
    return client


def lives(client):
    try:
        return repeats(client)
    except (ConnectionError, AssertionError):
        return False


def status(ctl):
    return json.loads(ctl("status", "--json"))


def pids(ctl):
    return [one["pid"] for one in status(ctl)["workers"]]


def test_clients_are_relayed_by_all_workers_and_counted_together(start, ctl, tmp_path, places):
    path, log = tmp_path / "relay.toml", tmp_path / "access.log"
    path.write_text('workers = 2\nstatus = "127.0.0.1:0"\n' + tunnel("many", places[0]))
    command = start(str(path), "--log-file", str(log))
    url = command.hear("status server at").partition("at ")[2].strip()
    where = addresses(command, 1)["many"]
    clients = [connect(where) for _ in range(20)]
    processes = pids(ctl)
    assert len(set(processes)) == 2 and command.process.pid not in processes
    assert "2 of 2 workers run" in ctl("status")

    (shown,) = json.loads(ctl("list", "--json"))["tunnels"]
    assert (shown["figures"]["active"], shown["figures"]["accepted"]) == (20, 20)
    open_ones = json.loads(ctl("connections", "--json"))["connections"]
    assert len({one["id"] for one in open_ones}) == 20
    answer = httpx.get(f"{url}/metrics", timeout=WAIT).text
    assert 'relay_workers{state="running"} 2' in answer
    assert "relay_worker_restarts_total 0" in answer
    assert 'relay_connections_accepted_total{tunnel="many"} 20' in answer

    ctl("kill", open_ones[0]["id"])
    wait_until(lambda: json.loads(ctl("list", "--json"))["tunnels"][0]["figures"]["active"] == 19)
    for client in clients:
        client.close()
    wait_until(lambda: len(log.read_text().splitlines()) == 20)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert {line["tunnel"] for line in lines} == {"many"}
    assert len({line["id"] for line in lines}) == 20
    assert command.end()[0] == 0


def test_a_worker_that_is_killed_has_a_successor(start, ctl, tmp_path, places):
    path = tmp_path / "relay.toml"
    path.write_text("workers = 2\n" + tunnel("one", places[0]))
    command = start(str(path))
    where = addresses(command, 1)["one"]
    clients = [connect(where) for _ in range(8)]
    first, second = pids(ctl)
    os.kill(first, signal.SIGKILL)
    clients += [connect(where) for _ in range(8)]  # no client is refused meanwhile
    wait_until(lambda: None not in pids(ctl) and first not in pids(ctl))
    assert second in pids(ctl)
    assert sum(one["restarts"] for one in status(ctl)["workers"]) == 1
    (shown,) = json.loads(ctl("list", "--json"))["tunnels"]
    assert shown["figures"]["accepted"] == 16
    lost = sum(not lives(client) for client in clients)  # none, if that worker had no client
    assert shown["figures"]["failed"].get("worker_lost", 0) == lost
    assert shown["figures"]["active"] == 16 - lost
    for client in clients:
        client.close()
    assert command.end()[0] == 0


def test_a_reload_changes_limits_in_place_and_replaces_a_tunnel_for_the_rest(start, ctl, tmp_path, places):
    path = tmp_path / "relay.toml"
    path.write_text("workers = 2\n" + tunnel("one", places[0]) + tunnel("two", places[0]))
    command = start(str(path))
    where = addresses(command, 2)
    with connect(where["one"]) as before, connect(where["two"]) as untouched:
        listen = {"listen": ":{}".format(where["one"][1])}
        # The port of a tunnel is in the file from now on; its workers keep the socket.
        path.write_text("workers = 2\n" + tunnel("one", places[0], **listen) + tunnel("two", places[0], "nconnect = 1"))
        assert "two: tuned (nconnect)" in ctl("reload")
        with socket.create_connection(where["two"], WAIT) as waiting:
            assert repeats(untouched)
            untouched.close()
            assert receive_exactly(waiting, 1) == b"a", "the limit of all workers together"
        path.write_text("workers = 2\n" + tunnel("one", places[1], **listen) + tunnel("two", places[0], "workers = 1"))
        said = ctl("reload")
        assert "one: rerouted (target)" in said
        assert "two: moved (nconnect, workers)" in said or "two: moved (workers, nconnect)" in said
        with connect(where["one"], b"b"):
            assert repeats(before), "it keeps its old stream"
        path.write_text("workers = 3\n" + tunnel("one", places[1], **listen))
        assert "workers" in ctl("reload")
        assert len(pids(ctl)) == 2
    assert command.end()[0] == 0


def test_the_figures_go_on_through_reloads_that_put_another_tunnel_in_its_place(start, ctl, tmp_path, places):
    path = tmp_path / "relay.toml"
    top = 'workers = 2\nstatus = "127.0.0.1:0"\n'
    path.write_text(top + tunnel("one", places[0]))
    command = start(str(path))
    url = command.hear("status server at").partition("at ")[2].strip()
    where = addresses(command, 1)["one"]

    def figures():
        (shown,) = json.loads(ctl("list", "--json"))["tunnels"]
        return [shown["figures"][name] for name in ("accepted", "active", "received", "sent")]

    def reload(place, *more):
        path.write_text(top + tunnel("one", place, *more, listen=f":{where[1]}"))
        assert "one: " in ctl("reload")

    with connect(where) as ended:
        assert repeats(ended)
    with connect(where) as old:
        reload(places[1])
        wait_until(lambda: figures() == [2, 1, 1, 3])
        with connect(where, b"b") as new:
            wait_until(lambda: figures() == [3, 2, 1, 4])
            assert repeats(old) and repeats(new)
            assert figures() == [3, 2, 3, 6]
            reload(places[0], "workers = 1")
            assert figures() == [3, 2, 3, 6]
    wait_until(lambda: figures() == [3, 0, 3, 6])
    assert len(httpx.get(f"{url}/connections/recent", timeout=WAIT).json()["connections"]) == 3
    reload(places[1])
    with connect(where, b"b"):
        wait_until(lambda: figures() == [4, 1, 3, 7])
    status, said = command.end()
    assert status == 0
    assert "4 connections" in said


def test_a_signal_lets_connections_finish(start, tmp_path, places):
    path = tmp_path / "relay.toml"
    path.write_text("workers = 2\n" + tunnel("one", places[0]))
    command = start(str(path))
    with connect(addresses(command, 1)["one"]) as client:
        command.process.send_signal(signal.SIGTERM)
        assert "1 open" in command.hear("closing")
        assert repeats(client)
    assert command.wait()[0] == 0


def test_the_tunnel_of_a_command_line_has_workers_too(start, ctl, tmp_path, places):
    path = f"{tmp_path}/socket"
    command = start(f"unix://{path}", places[0], "--workers", "2", command="forward")
    assert command.process.stdout.readline().startswith(f"listening on unix://{path} → ")
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        assert receive_exactly(client, 1) == b"a"
        assert repeats(client)
    assert command.end()[0] == 0
    assert not os.path.exists(path)


def test_a_wrong_number_is_one_clear_line(tmp_path, places):
    done = run("forward", ":0", places[0], "--workers", "0")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        "relay: --workers: must be from 1 to 128, or auto, got '0'; see relay forward --help"
    ]
    (tmp_path / "relay.toml").write_text("workers = 129\n" + tunnel("one", places[0], 'workers = "two"'))
    done = run("up", str(tmp_path / "relay.toml"))
    assert done.returncode == 2
    assert "workers: must be from 1 to 128, got 129; use 'auto' for one per processor" in done.stderr
    assert "tunnels.one.workers" in done.stderr


def test_clients_of_a_tls_listener_are_relayed_by_the_workers_alone(start, ctl, tmp_path, places):
    path, cert = tmp_path / "relay.toml", tmp_path / "live.pem"

    def renewed():
        """Make another certificate; return the context of clients that trust it."""
        authority, context = trustme.CA(), ssl.create_default_context()
        authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(cert)
        authority.configure_trust(context)
        return context

    context = renewed()
    with reserved_port() as port, contextlib.ExitStack() as opened:
        path.write_text("workers = 2\n" + tunnel("secure", places[0], listen=f"tls://127.0.0.1:{port}?cert={cert}"))
        command = start(str(path))
        where = addresses(command, 1)["secure"]

        def secured():
            client = context.wrap_socket(socket.create_connection(where, WAIT), server_hostname="localhost")
            opened.enter_context(client)
            assert receive_exactly(client, 1) == b"a"
            return client

        clients = [secured() for _ in range(12)]
        (shown,) = json.loads(ctl("list", "--json"))["tunnels"]
        assert (shown["figures"]["active"], shown["figures"]["accepted"]) == (12, 12)
        assert shown["certificate_end"] is not None

        context = renewed()
        ctl("reload")
        clients += [secured() for _ in range(6)]
        for client in clients:
            client.sendall(b"x")
            assert receive_exactly(client, 1) == b"x"
    assert command.end()[0] == 0
