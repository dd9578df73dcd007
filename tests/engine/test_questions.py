"""``relay.engine.questions``: ``admit`` of a tunnel, its answers, its errors and its time."""

from __future__ import annotations

import contextlib
import errno
import socket
import threading

import pytest
from helpers import WAIT, wait_until

import relay
from relay.access.access_list import AccessList
from relay.engine import questions
from relay.eventloop.sockets import reset


@pytest.fixture
def world():
    """Make a tunnel to a server that is never served, and clients of it."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))

        def make(admit, **options):
            receive = socket.create_server(("127.0.0.1", 0))
            target = relay.target(f"127.0.0.1:{server.getsockname()[1]}")
            return stack.enter_context(relay.Tunnel(receive, target, admit=admit, name="it", **options))

        def connect(tunnel):
            client = stack.enter_context(socket.socket())
            client.settimeout(WAIT)
            with contextlib.suppress(ConnectionResetError):  # it may be before the connect is over
                client.connect(tunnel.address)
            return client

        make.connect = connect
        yield make


def is_reset(client):
    """Return whether a client was reset, perhaps before its connect was over: then it has no peer."""
    try:
        client.recv(1)
        client.getpeername()
    except OSError as error:
        return error.errno in (errno.ECONNRESET, errno.ENOTCONN)
    return False


def denied(tunnel):
    wait_until(lambda: tunnel.stats().active == 0)
    return [(record.reason, record.rule) for record in tunnel.recent()]


def test_the_answer_decides(world):
    seen = []

    def admit(identity):
        seen.append(identity)
        return len(seen) == 1

    tunnel = world(admit)
    client = world.connect(tunnel)
    wait_until(lambda: [record.state for record in tunnel.connections()] == ["open"])
    assert is_reset(world.connect(tunnel))
    host, port = client.getsockname()
    assert seen[0] == relay.Identity("tcp", host, host, port)
    client.close()
    wait_until(lambda: len(tunnel.recent()) == 1 and tunnel.metrics().denied.get("admit") == 1)


LOGIN = relay.Limit(name="login", rate="5/m", ban="1m")


@pytest.mark.parametrize(
    "answer",
    [None, 1, "yes", [], [None], LOGIN, [relay.Limit(concurrent=1)] * 2, ValueError("a\nb"), SystemExit()],
    ids=repr,
)
def test_anything_but_true_means_no(world, answer, caplog):
    def admit(identity):
        if isinstance(answer, BaseException):
            raise answer
        return answer

    tunnel = world(admit)
    assert is_reset(world.connect(tunnel))
    assert denied(tunnel) == [("denied", "admit")]
    (error,) = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert error.isprintable()
    assert "admit" in error


@pytest.mark.parametrize("wrap", [tuple, list, lambda limits: limits[0]])
def test_limits_let_a_client_in_until_they_are_reached(world, wrap):
    plan = relay.Limit(name="plan", per="tunnel", concurrent=1)
    tunnel = world(lambda identity: wrap([plan]))
    client = world.connect(tunnel)
    wait_until(lambda: [record.state for record in tunnel.connections()] == ["open"])
    assert is_reset(world.connect(tunnel))
    wait_until(lambda: [(record.reason, record.rule) for record in tunnel.recent()] == [("denied", "limit plan")])
    reset(client)
    wait_until(lambda: not tunnel.connections())
    world.connect(tunnel)
    wait_until(lambda: [record.state for record in tunnel.connections()] == ["open"])


def test_a_client_in_the_tarpit_of_such_a_limit_takes_no_place_of_another_one(world):
    plan = relay.Limit(name="plan", per="tunnel", rate="1/h", action="tarpit")
    tunnel = world(lambda identity: plan, limit=[{"name": "all", "per": "tunnel", "concurrent": 1}])
    first = world.connect(tunnel)
    wait_until(lambda: [record.state for record in tunnel.connections()] == ["open"])
    reset(first)
    wait_until(lambda: not tunnel.connections())
    for count in (1, 2):
        world.connect(tunnel)
        wait_until(lambda: [record.rule for record in tunnel.connections()] == ["limit plan"] * count)  # noqa: B023


def test_a_quota_that_was_returned_ends_the_connection_that_uses_it_up(world):
    tunnel = world(lambda identity: relay.Limit(name="little", quota="10B/day"))
    client = world.connect(tunnel)
    client.sendall(bytes(100))
    wait_until(lambda: [(record.reason, record.rule) for record in tunnel.recent()] == [("quota", "limit little")])


def test_no_answer_in_time_means_no_and_a_late_one_is_ignored(world, monkeypatch, caplog):
    monkeypatch.setattr(questions, "_DEADLINE", 0.05)
    answer, answered = threading.Event(), threading.Event()

    def admit(identity):
        answer.wait(WAIT)
        answered.set()
        return True

    tunnel = world(admit)
    assert is_reset(world.connect(tunnel))
    assert denied(tunnel) == [("denied", "admit")]
    assert "admit has not answered within 0.05 s" in caplog.text
    answer.set()
    assert answered.wait(WAIT)
    assert tunnel.stats().active == 0


def test_few_calls_run_at_one_time_and_the_rest_waits(world, monkeypatch):
    monkeypatch.setattr(questions, "_MOST_CALLS", 2)
    answer, running = threading.Event(), []

    def admit(identity):
        running.append(identity)
        return answer.wait(WAIT)

    tunnel = world(admit)
    clients = [world.connect(tunnel) for _ in range(5)]
    wait_until(lambda: len(tunnel.connections()) == 5 and len(running) == 2)
    clients[2].close()
    answer.set()
    wait_until(lambda: [record.state for record in tunnel.connections()].count("open") >= 4)
    assert len(running) in (4, 5)


def test_a_client_that_leaves_before_the_answer_costs_nothing(world):
    answer = threading.Event()
    tunnel = world(lambda identity: answer.wait(WAIT))
    client = world.connect(tunnel)
    wait_until(lambda: [record.state for record in tunnel.connections()] == ["connecting"])
    reset(client)
    wait_until(lambda: [record.reason for record in tunnel.recent()] == ["client_reset"])
    answer.set()


def test_clients_that_are_asked_about_hold_no_slot(world):
    answers = {}

    def admit(identity):
        return answers.setdefault(identity.port, threading.Event()).wait(WAIT)

    tunnel = world(admit, nconnect=1)
    clients = [world.connect(tunnel) for _ in range(3)]
    wait_until(lambda: len(answers) == 3)
    for client in clients[:2]:
        answers[client.getsockname()[1]].set()
    wait_until(lambda: sorted(record.state for record in tunnel.connections()) == ["connecting", "connecting", "open"])
    for client in clients[:2]:
        reset(client)
    answers[clients[2].getsockname()[1]].set()
    wait_until(lambda: [record.state for record in tunnel.connections()] == ["open"])


@pytest.mark.parametrize("admit", [True, "yes"])
def test_admit_is_a_callable(admit):
    with socket.create_server(("127.0.0.1", 0)) as receive:
        with pytest.raises(TypeError, match="admit: expected a callable that is no coroutine function, got"):
            relay.Tunnel(receive, lambda: None, admit=admit)

        async def ask(identity):
            return True

        with pytest.raises(TypeError, match="admit: expected a callable that is no coroutine"):
            relay.Tunnel(receive, lambda: None, admit=ask)


@pytest.mark.parametrize("lists", [{"allow": ["nonsense"]}, {"deny": "10.0.0.1/8"}, {"allow": "/none"}])
def test_a_wrong_list_is_an_error_at_the_call(lists):
    with socket.create_server(("127.0.0.1", 0)) as receive:
        with pytest.raises(ValueError, match="^(allow|deny): "):
            relay.Tunnel(receive, lambda: None, **lists)


def test_clients_that_have_left_are_forgotten_while_all_calls_hang(world, monkeypatch):
    monkeypatch.setattr(questions, "_MOST_CALLS", 1)
    answer = threading.Event()
    tunnel = world(lambda identity: answer.wait(WAIT))
    first = world.connect(tunnel)
    wait_until(lambda: tunnel.stats().active == 1)
    for _ in range(10):
        client = world.connect(tunnel)
        wait_until(lambda: tunnel.stats().active == 2)
        reset(client)
        wait_until(lambda: tunnel.stats().active == 1)
    assert len(tunnel._relay.entrance._questions._waiting) <= 1
    answer.set()
    wait_until(lambda: [record.state for record in tunnel.connections()] == ["open"])
    first.close()


def test_clients_that_have_left_are_forgotten_while_a_file_of_rules_hangs(world, monkeypatch, tmp_path):
    path = tmp_path / "list"
    path.write_text("127.0.0.1")
    tunnel = world(None, allow=[path])
    goes_on = threading.Event()
    monkeypatch.setattr(AccessList, "refresh", lambda rules: goes_on.wait(WAIT))
    first = world.connect(tunnel)
    wait_until(lambda: tunnel.stats().active == 1)
    for _ in range(10):
        client = world.connect(tunnel)
        wait_until(lambda: tunnel.stats().active == 2)
        reset(client)
        wait_until(lambda: tunnel.stats().active == 1)
    assert len(tunnel._relay.entrance._readings._reading_next) <= 1
    goes_on.set()
    wait_until(lambda: [record.state for record in tunnel.connections()] == ["open"])
    first.close()
