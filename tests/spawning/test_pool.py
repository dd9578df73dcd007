"""``relay.spawning.pool`` and its tunnels: what the program sees of workers that relay several tunnels."""

import contextlib
import logging
import os
import signal
import socket
import threading
from pathlib import Path

import pytest
from helpers import WAIT, Thread, closed, receive_exactly, receive_rest, wait_until

import relay
from relay.spawning import parent, pool_parts, pool_tunnel, worker_slot
from relay.spawning.parent import ChildProcess
from relay.spawning.pool import WorkerPool
from relay.spawning.questions import NoAnswerError, Question
from relay.spawning.recipes import Recipe
from relay.streams.checks import check_workers

OPTIONS = {"nconnect": -1, "timeout": None, "connect_timeout": 30.0, "idle_timeout": None, "linger": 60.0}


@pytest.fixture
def pool():
    yield from closed(WorkerPool(2))


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
    with pytest.raises(ValueError, match="carrier_sharing: expected 'shared' or 'per-worker', got 'none'"):
        relay.spawn(":0", "127.0.0.1:1", workers=2, carrier_sharing="none")  # type: ignore[call-overload]


def test_the_old_name_of_carrier_sharing_warns():
    with (
        pytest.warns(DeprecationWarning, match="carriers: it is carrier_sharing now"),
        pytest.raises(ValueError, match="carrier_sharing: expected 'shared' or 'per-worker', got 'none'"),
    ):
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


def is_stopped(pid):
    try:
        return "State:\tT" in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def stop(pid):
    """Stop a worker; until that is in force it may take clients, and answer."""
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: is_stopped(pid))


@pytest.fixture
def impatient(pool, monkeypatch):
    """A worker that is stopped is stuck if it does not answer at once.

    The others and its successor may be slow, as the machine is busy: a worker that was killed for that has lost the
    clients of the test.
    """
    monkeypatch.setattr(worker_slot, "ANSWER", 0.05)
    monkeypatch.setattr(pool_parts, "ANSWER", 0.05)
    for slot in pool._slots:

        def suspect(process, suspect=slot.suspect):
            if is_stopped(process.pid):
                suspect(process)

        monkeypatch.setattr(slot, "suspect", suspect)


def connect_to_all(tunnel):
    """Connect until each worker has a connection; return the clients."""
    clients = []
    while min(tunnel.loads()) == 0:
        clients.append(relay.connect("{}:{}".format(*tunnel.address)))
        clients[-1].settimeout(WAIT)
        clients[-1].sendall(b"ping")
        assert receive_exactly(clients[-1], 4) == b"ping"
    return clients


def test_a_stuck_worker_counts_with_its_last_figures_until_it_goes_on(
    pool, open_tunnel, impatient, monkeypatch, caplog
):
    monkeypatch.setattr(worker_slot, "_STEP", WAIT)
    tunnel = open_tunnel("stuck")
    clients = connect_to_all(tunnel)
    monkeypatch.setattr(pool_parts, "ANSWER", WAIT)
    before = tunnel.stats()
    monkeypatch.setattr(pool_parts, "ANSWER", 0.05)
    assert before.active == len(clients) == before.accepted
    stopped, running = tunnel.pids
    stop(stopped)
    problem = f"worker 1 (process {stopped}) does not answer; relay replaces it unless it answers within 10 s"
    assert tunnel.stats() == before
    assert (tunnel.problem, pool.workers()[0].state) == (problem, "stuck")
    monkeypatch.setattr(pool_parts, "ANSWER", WAIT)
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING] == [problem]
    assert len(tunnel.connections()) == tunnel.loads()[1]
    assert tunnel.recent() == []
    turned = threading.Event()
    assert tunnel.ping(turned.set)
    assert turned.wait(WAIT), "the other one turns"
    tunnel.pause()
    late = open_tunnel("late")  # the other one opens it
    assert [part.value for part in late._parts] == ["absent", "open"]
    os.kill(stopped, signal.SIGCONT)
    wait_until(lambda: [part.value for part in late._parts] == ["open", "open"])
    assert (tunnel.problem, tunnel.pids) == ("", [stopped, running])
    assert f"worker 1 (process {stopped}) answers again" in caplog.messages
    assert len(tunnel.connections()) == len(clients)
    with socket.create_connection(tunnel.address) as waiting:
        exchange(late)
        assert tunnel.stats() == before, "it has paused"
        tunnel.resume()
        waiting.settimeout(WAIT)
        waiting.sendall(b"ping")
        assert receive_exactly(waiting, 4) == b"ping"
    for client in clients:
        client.close()


def test_a_worker_that_stays_stuck_is_killed_and_replaced(pool, open_tunnel, impatient, monkeypatch, caplog):
    monkeypatch.setattr(worker_slot, "_STEP", 0.01)
    tunnel = open_tunnel("stuck")
    clients = connect_to_all(tunnel)
    stopped, running = tunnel.pids
    lost = tunnel.loads()[0]
    stop(stopped)
    turned = threading.Event()
    assert tunnel.ping(turned.set), "a question of a watchdog is enough"
    assert turned.wait(WAIT), "relay takes care of the worker"
    wait_until(lambda: pool.workers()[0].restarts == 1)
    monkeypatch.setattr(pool_parts, "ANSWER", WAIT)
    wait_until(lambda: tunnel.pids not in ([running], [stopped, running]))
    text = "connections are lost, and another process takes its place"
    assert f"worker 1: the process {stopped} did not answer and was killed; {lost} {text}" in caplog.messages
    assert tunnel.stats().failed == {"worker_lost": lost}
    exchange(tunnel)
    for client in clients:
        client.close()


def test_clients_that_were_passed_to_a_stuck_worker_are_served_by_its_successor(open_tunnel, impatient, monkeypatch):
    """Nothing asks the worker: the one that has passed the clients reports that they are not taken."""
    monkeypatch.setattr(worker_slot, "_STEP", 0.01)
    tunnel = open_tunnel("stuck")
    both_take_clients = connect_to_all(tunnel)  # a worker says that a tunnel is open just before it takes clients
    # The one that has fewer connections. The other one, which alone accepts then, passes clients to it as soon as it
    # has clearly more.
    loads = tunnel.loads()
    stopped = tunnel.pids[loads.index(min(loads))]
    stop(stopped)
    clients = [socket.create_connection(tunnel.address) for _ in range(6 + min(loads))]
    for client in clients:
        client.settimeout(WAIT)
        client.sendall(b"ping")
        assert receive_exactly(client, 4) == b"ping"
        client.close()
    assert stopped not in tunnel.pids
    for client in both_take_clients:
        client.close()


@pytest.mark.parametrize("is_known", [True, False])
def test_a_stuck_worker_is_killed_at_the_end(pool, open_tunnel, monkeypatch, caplog, is_known):
    tunnel = open_tunnel("stuck")
    stop(tunnel.pids[0])
    monkeypatch.setattr(worker_slot, "_END", 0.1)
    if is_known:
        monkeypatch.setattr(pool_parts, "ANSWER", 0.05)
        assert tunnel.stats().accepted == 0
        assert tunnel.problem
    pool.close()
    assert tunnel.state == "closed"
    assert [one.state for one in pool.workers()] == ["ended"] * 2
    assert [one.pid for one in pool.workers()] == [None] * 2


def test_a_tunnel_that_closes_does_not_wait_for_a_stuck_worker(pool, open_tunnel, impatient, monkeypatch):
    monkeypatch.setattr(worker_slot, "_STEP", WAIT)
    monkeypatch.setattr(pool_tunnel, "_END", 0.2)
    tunnel, other = open_tunnel("stuck"), open_tunnel("other")
    stopped, running = tunnel.pids
    stop(stopped)
    assert other.stats().accepted == 0
    tunnel.close()
    assert tunnel.state == "closed"
    wait_until(lambda: other.pids not in ([running], [stopped, running]))
    exchange(other)


def test_the_end_of_its_only_tunnel_ends_a_stuck_worker(echo_server, monkeypatch, caplog):
    """It has no successor."""
    monkeypatch.setattr(pool_tunnel, "_END", 0.2)
    tunnel = relay.spawn(":0", "{}:{}".format(*echo_server.address), workers=2)
    pid = tunnel.pids[0]
    os.kill(pid, signal.SIGSTOP)
    tunnel.close()
    assert [one.state for one in tunnel.workers()] == ["ended"] * 2
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert [one for one in caplog.messages if "takes its place" in one] == []


def test_a_worker_that_is_stuck_at_its_start_does_not_hold_up_the_end(pool, monkeypatch):
    """Its interpreter starts, and is stopped before it says that it is up."""
    monkeypatch.setattr(parent, "_CHILD", "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)")
    first = pool.workers()[0].pid
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: pool.workers()[0].pid not in (None, first))
    assert pool.workers()[0].state == "starting"
    pool.close()
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
    monkeypatch.setattr(parent, "_CHILD", "import sys; sys.exit('no')")
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
    with relay.spawn(":0", "127.0.0.1:1", via=[via], workers=2, carrier_sharing="per-worker") as tunnel:
        assert len(tunnel.pids) == 2


def test_one_worker_relays_a_proxy_with_a_login_so_that_each_wrong_password_counts(tmp_path):
    password = tmp_path / "password"
    password.write_text("secret")
    password.chmod(0o600)
    with relay.spawn(f"socks5://alice@0.0.0.0:0?password_file={password}", "127.0.0.1:1", workers=2) as tunnel:
        assert len(tunnel.pids) == 1
        address = "127.0.0.1", tunnel.address[1]
        for _ in range(6):
            with contextlib.suppress(ConnectionError), socket.create_connection(address, WAIT) as client:
                client.sendall(b"\5\1\2" + b"\1\5alice\5wrong")
                receive_rest(client)
        wait_until(lambda: sorted(record.rule or "" for record in tunnel.recent()) == ["ban login"] + ["login"] * 5)


def test_the_carriers_of_all_workers_are_known(pool, tmp_path, monkeypatch):
    assert pool.carriers() == []
    via = f"ssh://me@127.0.0.1:1?keyfile={tmp_path}/none&config=/dev/null"
    arguments = {"listen": ":0", "target": "127.0.0.1:1", "via": [via]}
    recipe = Recipe("relay.spawning.recipes:by_address", arguments)
    with pool.open(recipe, relay.listen(":0"), {**OPTIONS, "name": "over"}) as tunnel:
        with socket.create_connection(tunnel.address, WAIT):  # its stream needs the carrier
            wait_until(pool.carriers)
        [carrier] = pool.carriers()
        assert carrier.name == "ssh://me@127.0.0.1:1"
        assert carrier.worker in (1, 2)
        assert (carrier.kind, carrier.losses, sum(carrier.metrics.counts)) == ("ssh", 0, 0)
        assert pool.resumes() == [(0, 0, 0, 0, 0)] * 2
        ended, silent = Question(), Question()
        ended.set_exception(NoAnswerError("the child process has ended"))
        monkeypatch.setattr("relay.spawning.pool.ANSWER", 0.0)
        for question in (ended, silent):
            with monkeypatch.context() as patch:
                patch.setattr(ChildProcess, "ask", lambda *_, question=question: question)
                assert pool.carriers() == [], "those of workers that do not answer are missing"


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
