"""``relay.carriers.blocking``: attempts and closes on threads of their own."""

import queue
import threading

import pytest
from helpers import WAIT

from relay.carriers.blocking import BlockingCalls


class World:
    """A connector and its link; what is called in the carrier's thread is called at once."""

    def __init__(self):
        self.told = queue.SimpleQueue()
        self.error = None
        self.lost = None
        self.calls = BlockingCalls("c", self, 5.0, lambda function: function() or True)

    def begin(self):
        self.calls.connect(
            lambda *outcome: self.told.put(("connected", *outcome)),
            lambda *outcome: self.told.put(("failed", *outcome)),
            lambda *outcome: self.told.put(("lost", *outcome)),
        )
        return self.told.get(timeout=WAIT)

    def connect(self, deadline, cancel, lost):
        self.lost = lost
        if self.error is not None:
            raise self.error
        return self

    def close(self):
        self.told.put(("closed", threading.current_thread().name))


@pytest.fixture
def world():
    made = World()
    yield made
    made.calls.cancel.close()


def test_an_exit_is_an_error(world):
    world.error = SystemExit(1)
    _, error = world.begin()
    assert isinstance(error, RuntimeError) and str(error) == "SystemExit(1)"


def test_without_a_thread_the_attempt_fails_at_once(world, monkeypatch):
    def refuse(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    kind, error = world.begin()
    assert kind == "failed" and isinstance(error, OSError) and "can't start new thread" in str(error)
    world.calls.close_link(world)
    assert world.told.get(timeout=WAIT) == ("closed", threading.current_thread().name)


def test_a_close_that_fails_is_logged_and_the_rest_is_closed(world, caplog):
    class Link:
        def close(self):
            raise RuntimeError("a bug")

    over = threading.Event()
    world.calls.close(Link(), over.set)
    assert over.wait(WAIT)
    assert world.told.get(timeout=WAIT) == ("closed", "relay c closing")
    assert "c: closing it failed" in caplog.text
