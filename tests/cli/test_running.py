"""The search for the relay that runs; with a real one: test_operators_control_a_running_relay.py."""

import errno

import pytest

from relay.cli import running
from relay.daemon.client import ClientError


@pytest.fixture
def runs(monkeypatch):
    """Lets control sockets be found, whose answers or error the test gives by path; one without any is closed."""
    answers = {}

    class Client:
        def __init__(self, path, timeout=10.0):
            self.path = path

        def get(self, what):
            if self.path not in answers:
                raise ConnectionRefusedError(111, "Connection refused")
            if isinstance(answer := answers[self.path], Exception):
                raise answer
            return answer[what]

        def close(self):
            pass

    monkeypatch.setattr(running, "control_sockets", lambda: ["closed", *answers])
    monkeypatch.setattr(running, "Client", Client)
    return answers


def tunnels(*states):
    """Return the answers of a relay whose tunnels have these states and the ports 1, 2, ..."""
    listed = [
        {"name": f"t{port}", "listen": f"127.0.0.1:{port}", "state": state} for port, state in enumerate(states, 1)
    ]
    return {"/tunnels": {"tunnels": listed}, "/instance": {"pid": 7, "config": None}}


def test_the_process_at_an_address(runs):
    assert running.process_at("127.0.0.1:1") is None
    runs.update(strange={"/tunnels": []}, one=tunnels("failed"), other=tunnels("closed", "listening", "paused"))
    assert [running.process_at(f"127.0.0.1:{port}") for port in range(1, 5)] == [None, 7, 7, None]


@pytest.mark.parametrize("silent", [TimeoutError("timed out"), BlockingIOError(errno.EAGAIN, "backlog full")])
def test_a_relay_that_does_not_answer_is_running(runs, silent):
    runs["hung"] = silent
    with pytest.raises(OSError, match="^control socket hung: no answer in time; is that relay stopped\\?$"):
        with running.connected(None) as client:
            client.get("/instance")
    runs.update(other=tunnels())
    with pytest.raises(ValueError, match="2 relays are running; choose one: --control hung .no answer.; --control oth"):
        with running.connected(None):
            pass


def test_relays_that_do_not_answer_share_one_time(runs, monkeypatch):
    now, given = [0.0], []

    def ask(path, timeout=10.0):
        given.append(timeout)
        now[0] += timeout
        return client(path, timeout)

    client = running.Client
    monkeypatch.setattr(running, "Client", ask)
    monkeypatch.setattr(running.time, "monotonic", lambda: now[0])
    runs.update(one=TimeoutError(), other=TimeoutError())
    with pytest.raises(ValueError, match="2 relays are running"):
        with running.connected(None):
            pass
    assert given == [2.0, 0.1, 0.1]


@pytest.mark.parametrize("stranger", [ClientError("not HTTP"), ConnectionResetError(), FileNotFoundError(), {}])
def test_another_program_at_a_socket_is_no_relay(runs, stranger):
    runs.update(stranger=stranger, own=tunnels())
    with running.connected(None) as client:
        assert client.path == "own"


def test_a_relay_of_another_user_is_named_if_there_is_no_own_one(runs):
    runs["theirs"] = PermissionError(errno.EACCES, "Permission denied")
    with pytest.raises(OSError, match="^control socket theirs: Permission denied$"):
        with running.connected(None) as client:
            client.get("/instance")
    runs.update(own=tunnels())
    with running.connected(None) as client:
        assert client.path == "own"
