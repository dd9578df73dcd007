"""The recorder of steps: what it keeps of sockets and TLS connections."""

from __future__ import annotations

import socket

from relay.cli.doctor.recorder import Recorder
from relay.streams.trace import Stage


def test_steps_are_kept_in_their_order():
    changes = []
    recorder = Recorder(lambda: changes.append(1))
    first = recorder.begin(Stage.RESOLVE, "db:5432")
    second = recorder.begin(Stage.CONNECT, "db:5432", endpoints=())
    first.done(endpoints=[1])
    error, late = OSError("no"), OSError("late")
    second.note(late)
    second.failed(error)
    one, two = recorder.steps()
    assert (one.stage, one.facts, one.is_running, one.error) == (Stage.RESOLVE, {"endpoints": [1]}, False, None)
    assert (two.error, two.noted, two.seconds >= 0) == (error, late, True)
    assert len(changes) == 4
    recorder.clear()
    assert recorder.steps() == []


def test_it_changes_nothing():
    assert Recorder(lambda: None).changes_nothing


def test_a_socket_is_not_kept(listener):
    recorder = Recorder(lambda: None)
    with socket.create_connection(listener.getsockname()) as connected:
        recorder.begin(Stage.CONNECT, "target").done(socket=connected)
    (step,) = recorder.steps()
    assert step.facts == {
        "local": "127.0.0.1",
        "interface": "lo",
        "peer": "127.0.0.1:{}".format(*listener.getsockname()[1:]),
    }


def test_a_socket_that_is_closed_already():
    recorder = Recorder(lambda: None)
    made = socket.socket()
    made.close()
    recorder.begin(Stage.CONNECT, "target").done(socket=made)
    assert recorder.steps()[0].facts == {}
