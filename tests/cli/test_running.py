"""The search for the relay that runs; with a real one: test_operators_control_a_running_relay.py."""

from __future__ import annotations

import pytest

from relay.cli import running


@pytest.fixture
def runs(monkeypatch):
    """Lets control sockets be found, whose answers the test gives by path; a socket without any is closed."""
    answers = {}

    class Client:
        def __init__(self, path, timeout=10.0):
            self.path = path

        def get(self, what):
            if self.path not in answers:
                raise ConnectionRefusedError(111, "Connection refused")
            return answers[self.path][what]

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


def test_the_names_of_tunnels_for_a_completion(runs):
    assert running.tunnel_names(None) == []
    runs.update(one=tunnels("failed"), other=tunnels("closed", "listening"))
    assert running.tunnel_names(None) == ["t1", "t1", "t2"]
    assert running.tunnel_names("other") == ["t1", "t2"]


def test_the_relay_is_the_only_one(runs):
    with pytest.raises(ValueError, match="no relay with a control socket is running; start relay up"):
        with running.connected(None):
            pass
    runs.update(one=tunnels())
    with running.connected(None) as client:
        assert client.path == "one"
    runs.update(other=tunnels())
    with pytest.raises(ValueError, match="2 relays are running; choose one: --control one .7.; --control other"):
        with running.connected(None):
            pass
