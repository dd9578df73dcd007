"""``relay.spawning.pool`` and its tunnels: what the program sees of workers that relay several tunnels."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading

import pytest
from helpers import WAIT, Thread, receive_exactly, wait_until

import relay
from relay.process import start
from relay.spawning import parent, pool_parts, starting
from relay.spawning.pool import WorkerPool
from relay.spawning.recipes import Recipe
from relay.streams.checks import check_workers

OPTIONS = {
    "nconnect": -1,
    "timeout": None,
    "connect_timeout": 30.0,
    "idle_timeout": None,
    "linger": 60.0,
}


@pytest.fixture(autouse=True, scope="module")
def spawner():
    """The thread that makes all children outlives every test, so it is there before the first one."""
    start(["true"]).wait(WAIT)


@pytest.fixture
def pool():
    made = WorkerPool(2)
    yield made
    made.close()


@pytest.fixture
def open_tunnel(pool, echo_server):
    def build(name, *, listen=":0", receive=True, **more):
        arguments = {"listen": listen, "target": "{}:{}".format(*echo_server.address), "via": []}
        shared = relay.listen(listen) if receive else None
        try:
            return pool.open(
                Recipe("relay.spawning.recipes:by_address", arguments), shared, {**OPTIONS, "name": name}, **more
            )
        except BaseException:
            if shared is not None:
                shared.close()
            raise

    return build


def exchange(tunnel):
    with relay.connect("{}:{}".format(*tunnel.address)) as client:
        client.settimeout(WAIT)
        client.sendall(b"ping")
        assert receive_exactly(client, 4) == b"ping"


@pytest.mark.parametrize(
    ("workers", "error", "text"),
    [
        (0, ValueError, "workers: must be from 1 to 128, got 0"),
        (-1, ValueError, "workers: must be from 1 to 128, got -1"),
        (129, ValueError, "workers: must be from 1 to 128, got 129"),
        ("two", TypeError, "workers: expected a whole number or 'auto', got 'two'"),
        (True, TypeError, "workers: expected a whole number or 'auto', got bool"),
        (1.5, TypeError, "workers: expected a whole number or 'auto', got float"),
    ],
)
def test_a_number_of_workers_that_cannot_be(workers, error, text):
    with pytest.raises(error, match=text):
        relay.spawn(":0", "127.0.0.1:1", workers=workers)


def test_carriers_that_cannot_be():
    with pytest.raises(ValueError, match="carriers: expected 'shared' or 'per-worker', got 'none'"):
        relay.spawn(":0", "127.0.0.1:1", workers=2, carriers="none")  # type: ignore[call-overload]


def test_auto_is_one_per_processor():
    assert check_workers("auto") == len(os.sched_getaffinity(0))


def test_many_tunnels_have_two_children(pool, open_tunnel):
    tunnels = [open_tunnel(f"tunnel {number}") for number in range(5)]
    for tunnel in tunnels:
        exchange(tunnel)
    assert {tuple(tunnel.pids) for tunnel in tunnels} == {tuple(one.pid for one in pool.workers())}
    assert [tunnel.stats().accepted for tunnel in tunnels] == [1] * 5
    tunnels[0].close()
    exchange(tunnels[1])
    assert tunnels[0].state == "closed"


def test_the_successor_has_all_tunnels(pool, open_tunnel):
    one, other = open_tunnel("one"), open_tunnel("other")
    other.pause()
    pids = one.pids
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    exchange(one)
    wait_until(lambda: len(other.pids) == 2)
    assert not set(pids) & set(one.pids)
    with relay.connect("{}:{}".format(*other.address)) as client:
        wait_until(lambda: set(other._parts) == {pool_parts.PartState.OPEN})
        assert other.stats().accepted == 0, "it is still paused"
        other.resume()
        client.settimeout(WAIT)
        client.sendall(b"ping")
        assert receive_exactly(client, 4) == b"ping"


def test_a_shared_carrier_keeps_tunnels_in_one_worker(open_tunnel, pool):
    same = [open_tunnel(f"{number}", carrier="ssh://a") for number in range(2)]
    other = open_tunnel("other", carrier="ssh://b")
    assert same[0].pids == same[1].pids != other.pids
    assert [len(tunnel.pids) for tunnel in (*same, other)] == [1, 1, 1]
    for tunnel in (*same, other):
        exchange(tunnel)


def test_a_worker_may_make_the_listener(open_tunnel):
    tunnel = open_tunnel("own", receive=False)
    exchange(tunnel)
    (pid,) = tunnel.pids
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: tunnel.pids not in ([], [pid]))
    wait_until(lambda: tunnel._parts == [pool_parts.PartState.OPEN])


def test_a_worker_that_cannot_open_its_part_again_goes_on_trying(open_tunnel, caplog):
    """Another program has taken the address meanwhile; a part that makes its listener itself shows that."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match="in use"):
            open_tunnel("doomed", listen=f"127.0.0.1:{port}", receive=False)
    tunnel = open_tunnel("own", listen=f"127.0.0.1:{port}", receive=False)
    (pid,) = tunnel.pids
    os.kill(pid, signal.SIGSTOP)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: tunnel.pids not in ([], [pid]))
    wait_until(lambda: tunnel._parts == [pool_parts.PartState.OPEN])
    exchange(tunnel)


def test_what_a_worker_raises_comes_back_and_the_socket_stays(pool):
    with relay.listen(":0") as shared:
        recipe = Recipe("relay.spawning.recipes:by_address", {"listen": ":0", "target": "no port", "via": []})
        with pytest.raises(relay.AddressError, match="no port"):
            pool.open(recipe, shared, {**OPTIONS, "name": "bad"})
        assert shared.fileno() != -1
    assert [one.state for one in pool.workers()] == ["running"] * 2


def test_limits_change_and_stay_changed_in_the_successor(open_tunnel, pool):
    tunnel = open_tunnel("limited")
    tunnel.update(nconnect=1, timeout=None, connect_timeout=None, idle_timeout=None, linger=None)
    pid = tunnel.pids[0]
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: len(tunnel.pids) == 2 and pid not in tunnel.pids)
    wait_until(lambda: set(tunnel._parts) == {pool_parts.PartState.OPEN})
    clients = [socket.create_connection(tunnel.address) for _ in range(3)]
    clients[0].settimeout(WAIT)
    wait_until(lambda: tunnel.stats().active == 1)
    for client in clients:
        client.close()
    wait_until(lambda: tunnel.stats().accepted == 3)


def test_one_connection_is_killed(open_tunnel):
    tunnel = open_tunnel("killing")
    with relay.connect("{}:{}".format(*tunnel.address)) as client:
        wait_until(lambda: tunnel.stats().active == 1)
        (record,) = tunnel.connections()
        assert not tunnel.kill("no id")
        assert tunnel.kill(record.id)
        client.settimeout(WAIT)
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    assert [one.reason for one in tunnel.recent()] == ["killed"]


def test_the_loops_turn(open_tunnel, pool):
    tunnel = open_tunnel("turning")
    turned = threading.Event()
    assert tunnel.ping(turned.set)
    assert turned.wait(WAIT)
    stopped = tunnel.pids[0]
    os.kill(stopped, signal.SIGSTOP)
    os.kill(stopped, signal.SIGCONT)
    tunnel.close()
    assert not tunnel.ping(turned.set)


def test_a_worker_that_does_not_answer(open_tunnel, monkeypatch):
    tunnel = open_tunnel("stuck")
    monkeypatch.setattr(parent, "_ANSWER", 0.1)
    os.kill(tunnel.pids[0], signal.SIGSTOP)
    try:
        with pytest.raises(relay.RelayError, match="did not answer"):
            tunnel.stats()
    finally:
        os.kill(tunnel.pids[0], signal.SIGCONT)
    monkeypatch.setattr(parent, "_ANSWER", WAIT)
    assert tunnel.stats().accepted == 0


def test_a_worker_that_does_not_close_is_killed(pool, open_tunnel, monkeypatch):
    tunnel = open_tunnel("stuck")
    monkeypatch.setattr(parent, "_ANSWER", 0.1)
    monkeypatch.setattr(parent, "_END", 0.1)
    os.kill(tunnel.pids[0], signal.SIGSTOP)
    pool.close()
    assert tunnel.state == "closed"
    assert [one.state for one in pool.workers()] == ["ended"] * 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_a_worker_changes_nothing(open_tunnel, number):
    """A service manager sends it to all processes of a service; the program decides."""
    tunnel = open_tunnel("steady")
    pids = tunnel.pids
    with relay.connect("{}:{}".format(*tunnel.address)) as client:
        for pid in pids:
            os.kill(pid, number)
            os.kill(pid, number)
        client.settimeout(WAIT)
        client.sendall(b"ping")
        assert receive_exactly(client, 4) == b"ping"
    exchange(tunnel)
    assert tunnel.pids == pids


def test_a_pool_that_cannot_start(monkeypatch, capfd):
    monkeypatch.setattr(starting, "_CHILD", "import sys; sys.exit('no')")
    with pytest.raises(relay.RelayError, match="did not start"):
        WorkerPool(2)
    assert "no" in capfd.readouterr().err


def test_a_forked_child_has_no_part_in_it(pool, open_tunnel):
    tunnel = open_tunnel("parents")
    pid = os.fork()
    if not pid:
        status = 1
        try:
            tunnel.close()
            pool.close()
            status = 0 if tunnel.state == "closed" else 2
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0
    exchange(tunnel)


def test_one_worker_relays_what_shares_a_carrier_and_says_so(caplog, echo_server, tmp_path):
    caplog.set_level(logging.INFO, "relay")
    via = f"ssh://me@127.0.0.1:1?keyfile={tmp_path}/none&config=/dev/null"
    with relay.spawn(":0", "127.0.0.1:1", via=[via], workers=2) as tunnel:
        assert len(tunnel.pids) == 1
    assert [line for line in caplog.messages if line.startswith(":0: one of 2 workers relays it")]
    with relay.spawn(":0", "127.0.0.1:1", via=[via], workers=2, carriers="per-worker") as tunnel:
        assert len(tunnel.pids) == 2


def test_asking_while_it_closes(pool, open_tunnel):
    tunnel = open_tunnel("asked")
    over = threading.Event()

    def ask():
        while not over.is_set():
            assert tunnel.stats().accepted == 0
            assert tunnel.connections() == []

    asking = [Thread(ask) for _ in range(3)]
    tunnel.close()
    tunnel.close()
    over.set()
    for thread in asking:
        thread.result()


def test_its_repr(open_tunnel):
    tunnel = open_tunnel("seen")
    host, port = tunnel.address
    assert repr(tunnel) == f"<PoolTunnel 'seen' at {host}:{port}, 2 workers, open>"
    tunnel.pause()
    assert tunnel.state == "paused"
    tunnel.close()
    assert repr(tunnel) == f"<PoolTunnel 'seen' at {host}:{port}, 2 workers, closed>"
