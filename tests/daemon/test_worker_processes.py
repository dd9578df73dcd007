"""``relay.daemon.worker_processes``: the pool starts with its first tunnel, keeps its size, and gets plans."""

import base64
import contextlib
import pickle
import socket

import pytest
import trustme
from helpers import WAIT, closed, receive_exactly, wait_until

from relay.addresses.parse import parse_hops, parse_listen, parse_target
from relay.api.urls import listener
from relay.daemon.options import Options
from relay.daemon.plan import make_plan
from relay.daemon.worker_processes import WorkerProcesses, make
from relay.engine.acceptor import own_listener

LIMITS = Options().settled(slow=False, ends_whole=False).of_tunnel("one")


@pytest.fixture
def processes():
    yield from closed(WorkerProcesses(2))


def test_nothing_runs_before_the_first_tunnel(processes):
    assert not processes.are_running
    assert processes.workers() == ()
    assert processes.carriers() == processes.resumes() == ()
    processes.check(3)
    assert processes.size == 3, "it grows until it starts"


def test_a_tunnel_starts_them_and_its_connections_are_logged(processes, echo_server):
    ended = []
    processes.log_connections(lambda name, record: ended.append((name, record)))
    listen = parse_listen(":0")
    values = listen, parse_target("{}:{}".format(*echo_server.address)), ()
    with processes.open(own_listener(listener(listen)), values, 2, LIMITS) as tunnel:
        assert [one.state for one in processes.workers()] == ["running"] * 2
        with socket.create_connection(tunnel.address, WAIT) as client:
            client.sendall(b"ping")
            assert receive_exactly(client, 4) == b"ping"
        wait_until(lambda: ended)
        ((name, record),) = ended
        assert (name, record.received, record.sent, record.reason) == ("one", 4, 4, "done")
        with pytest.raises(ValueError, match="workers: 2 are running, got 3; relay ctl upgrade starts more"):
            processes.check(3)


def test_after_the_end_none_start(processes, echo_server):
    processes.close()
    listen = parse_listen(":0")
    receive = listener(listen)
    with pytest.raises(RuntimeError, match="relay is ending"):
        processes.open(
            own_listener(receive), (listen, parse_target("{}:{}".format(*echo_server.address)), ()), 2, LIMITS
        )
    assert receive.fileno() < 0, "the listener is closed"


@pytest.mark.parametrize(
    ("listen", "target", "sharing", "is_in_workers"),
    [
        (":0", "db:5432", None, True),
        ("unix:///run/relay/socket", "db:5432", None, True),
        (":0", "i2p://example.i2p", None, False),
        (":0", "i2p://example.i2p", "per-worker", True),
        ("ssh://host?listen=:80", "db:5432", "per-worker", False),
        ("i2p:", "db:5432", "per-worker", False),
    ],
)
def test_what_shares_a_connection_stays_in_one_process(processes, listen, target, sharing, is_in_workers):
    options = Options(workers=2, carrier_sharing=sharing, processes=processes)
    plan = make_plan(parse_listen(listen), parse_target(target), options, name="one")
    assert (plan.in_workers is not None) is is_in_workers
    assert plan.workers == (2 if is_in_workers else 1)


def test_without_workers_a_plan_needs_none(processes):
    where, end = parse_listen(":0"), parse_target("db:5432")
    assert make_plan(where, end, Options(workers=1, processes=processes), name="one").in_workers is None
    assert make_plan(where, end, Options(workers=2), name="one").in_workers is None


def packed(listen, target, via=()):
    values = parse_listen(listen), parse_target(target), parse_hops(via, "")
    return base64.b64encode(pickle.dumps(values)).decode()


@pytest.fixture
def receive():
    yield from closed(socket.create_server(("127.0.0.1", 0)))


def made(receive, listen):
    make_send, make_listener = make(receive, values=packed(listen, "db:5432"))
    with contextlib.closing(make_send):
        assert make_send.target == "db:5432"
    return make_listener(contextlib.ExitStack())


def test_a_socket_that_listens_is_the_listener(receive):
    assert made(receive, ":0") is receive


def test_a_listener_of_tls_wraps_it(receive, tmp_path):
    cert = trustme.CA().issue_cert("localhost")
    cert.private_key_and_cert_chain_pem.write_to_path(file := tmp_path / "pem")
    file.chmod(0o600)
    address = receive.getsockname()
    with contextlib.closing(made(receive, f"tls://127.0.0.1:0?cert={file}")) as listener:
        assert listener.address[:2] == address


def test_a_file_that_is_missing_leaves_the_socket_to_the_caller(receive, tmp_path):
    with pytest.raises((OSError, ValueError), match="missing"):
        made(receive, f"tls://127.0.0.1:0?cert={tmp_path}/missing")
    assert receive.fileno() >= 0
