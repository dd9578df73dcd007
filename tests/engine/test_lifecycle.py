"""``relay.engine.lifecycle``: each row of the table of states, in a thread without connections of its own."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import pytest
from helpers import WAIT, wait_until
from state_table import rows_of

from relay.engine import lifecycle as module
from relay.engine.lifecycle import LoopThread, TunnelState


class Life(LoopThread):
    """A thread that notes what it is asked for. Its loop does not stop before the test says so."""

    def __init__(self, connections):
        super().__init__("life")
        self.left = connections
        self.calls = []
        self.go_on = threading.Event()
        self.loop.stop, self._stop_loop = lambda: self.calls.append("stop the loop"), self.loop.stop

    @property
    def count(self):
        return self.left

    def update_listening(self):
        self.calls.append("accept" if self.is_open else "do not accept")

    def close_listener(self):
        self.calls.append("close the listener")

    @property
    def all_connections(self):
        return [SimpleNamespace(close=self.reset_one)] * self.left

    def reset_one(self, reason, now):
        self.calls.append("reset one")
        self.left -= 1
        if not self.left:
            self.look_drained()

    def end_all(self, now):
        self.calls.append("reset")
        self.left = 0
        if self.is_closing:
            self.look_drained()

    def tear_down(self):
        self.loop.close()
        self.calls.append("tear down")

    def drain_sooner(self):
        before = self._drain_timer.due, self._spread._timer.due
        self._close(WAIT, 1.0)
        assert self._drain_timer.due < before[0] and self._spread._timer.due < before[1]

    def spread_ends_one(self):
        self.left = 2
        self._close(900.0, 800.0)
        self._spread._timer.expire(self._spread._timer.due)
        assert self._spread._timer.due < self._drain_timer.due

    def last_ends(self):
        self.left = 0
        self.look_drained()

    def do(self, function, *arguments):
        """Call it in the thread, and return what it led to."""
        self.calls.clear()
        self.run_in_thread(lambda: function(*arguments))
        return self.calls[:]

    def finish(self):
        """End the loop."""
        self.loop.call(self._stop_loop)
        self._thread.join(WAIT)
        assert not self._thread.is_alive()


WAY = {
    "open": [],
    "paused": [("_pause", False)],
    "draining": [("_close", 1000.0)],
    "closing": [("_close", 0.0)],
}
ENDS = ["close the listener", "reset", "stop the loop"]
STATE_ROWS = [
    ("open", "pause", "paused", ("_pause", False), ["do not accept"]),
    ("open", "close", "closing", ("_close", 0.0), [*ENDS, "stop the loop"]),
    ("open", "close with drain", "draining", ("_close", 1000.0), ["close the listener"]),
    ("paused", "resume", "open", ("_resume",), ["accept"]),
    ("paused", "close", "closing", ("_close", 0.0), [*ENDS, "stop the loop"]),
    ("paused", "close with drain", "draining", ("_close", 1000.0), ["close the listener"]),
    ("draining", "pause", "draining", ("_pause", False), []),
    ("draining", "last connection ends", "closing", ("last_ends",), ["stop the loop"]),
    ("draining", "spread timer", "draining", ("spread_ends_one",), ["reset one"]),
    ("draining", "drain timer", "closing", ("_stop", 0.0), ["reset", "stop the loop", "stop the loop"]),
    ("draining", "close", "closing", ("_close", 0.0), ["reset", "stop the loop", "stop the loop"]),
    ("draining", "close with drain", "draining", ("drain_sooner",), []),
    ("closing", "loop has stopped", "closed", ("finish",), ["tear down"]),
    ("closed", "pause, resume or close", "closed", None, []),
    ("any", "fork", "abandoned", None, []),
]


@pytest.fixture
def life():
    made = []

    def make(connections=1):
        made.append(Life(connections))
        made[-1].start()
        wait_until(lambda: made[-1].calls == ["accept"])
        return made[-1]

    yield make
    for one in made:
        one.finish()


def go_to(one, state):
    for name, *arguments in WAY[state]:
        one.do(getattr(one, name), *arguments)
    assert one._state.text == state


@pytest.mark.parametrize(("state", "event", "following", "call", "calls"), [row for row in STATE_ROWS if row[3]])
def test_each_row_of_the_table(life, state, event, following, call, calls):
    one = life()
    go_to(one, state)
    name, *arguments = call
    if name == "finish":
        one.calls.clear()
        one.finish()
        assert one.calls == calls and one.is_closed
    else:
        assert one.do(getattr(one, name), *arguments) == calls
    assert one._state.text == following


def test_nothing_is_done_after_the_end(life):
    one = life()
    one.finish()
    one.calls.clear()
    one.pause(True)
    one.resume()
    one.close(5.0)
    one.join()
    assert one.calls == [] and one.state == "closed"


@pytest.mark.parametrize("state", WAY)
def test_a_forked_child_abandons_it_in_every_state(life, state):
    one = life()
    go_to(one, state)
    one.abandon()
    one.calls.clear()
    one.pause(True)
    one.resume()
    one.close(5.0)
    one.join()
    assert one.calls == [] and one._state is TunnelState.ABANDONED and one.state == "closed" and one.is_closed


def test_the_table_has_these_rows():
    assert rows_of(module) == [row[:3] for row in STATE_ROWS]


@pytest.mark.parametrize("state", ["open", "paused"])
def test_without_a_connection_a_drain_is_over_at_once(life, state):
    one = life(connections=0)
    go_to(one, state)
    one.do(one._close, 1000.0)
    assert one.state == "closing" and one._state is TunnelState.CLOSING


def test_a_pause_may_end_a_drain(life):
    one = life()
    go_to(one, "draining")
    assert one.do(one._pause, True) == ["reset", "stop the loop"]
    assert one._state is TunnelState.CLOSING


def test_a_drain_ends_with_its_timer(life):
    one = life()
    go_to(one, "draining")
    assert one.do(one.loop.timers.run, time.monotonic() + 2000.0)[0] == "reset"
    assert one._state is TunnelState.CLOSING


def test_a_later_drain_changes_nothing(life):
    one = life()
    go_to(one, "draining")
    due = one._drain_timer.due
    one.do(one._close, 2000.0)
    one.do(one._close, None)
    assert one._drain_timer.due == due


def test_callbacks_are_called_at_its_end(life):
    one = life()
    over = threading.Event()
    one.end_callbacks.add(over.set)
    one.finish()
    assert over.wait(WAIT)


def test_who_closes_it_without_waiting_is_called_back_once(life):
    one = life()
    calls, over = [], threading.Event()
    one.start_close(0.0, lambda: calls.append("first"))
    one.start_close(0.0, lambda: (calls.append("second"), over.set()))
    one.finish()
    one.join(WAIT)
    assert sorted(calls) == ["first", "second"]
    assert over.is_set()


def test_who_closes_it_after_its_end_is_called_back_at_once(life):
    one = life()
    one.finish()
    one.join(WAIT)
    calls = []
    one.start_close(0.0, lambda: calls.append(threading.current_thread()))
    assert calls == [threading.current_thread()]
    assert not one.end_callbacks


def test_who_closes_it_while_it_ends_is_called_back_once(life):
    """The loop takes no calls any more, and the thread has not looked yet at who waits."""
    one = life()
    calls = []
    tear_down = one.tear_down
    one.tear_down = lambda: (tear_down(), one.start_close(0.0, lambda: calls.append("over")))
    one.finish()
    one.join(WAIT)
    assert calls == ["over"]
