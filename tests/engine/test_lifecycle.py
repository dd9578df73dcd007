"""``relay.engine.lifecycle``: each row of the table of states, in a thread without connections of its own."""

import math
import threading
import time
from types import SimpleNamespace

import pytest
from helpers import WAIT, makes, wait_until
from state_table import rows_of

from relay.engine import lifecycle as module
from relay.engine.lifecycle import LoopThread


class Life(LoopThread):
    """A thread that notes what it is asked for. Its loop does not stop before the test says so."""

    def __init__(self, connections):
        super().__init__("life")
        self.left = connections
        self.calls = []
        self.times = []  # at which something began or ended
        self.drains = []
        self.loop.stop, self._stop_loop = lambda: self.calls.append("stop the loop"), self.loop.stop

    @property
    def count(self):
        return self.left

    def on_start(self, now):
        self.times.append(now)

    def on_close(self, drain, now):
        self.drains.append(drain)
        self.times.append(now)

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
        self.times.append(now)
        self.left = 0
        if self.is_closing:
            self.look_drained()

    def tear_down(self):
        self.loop.close()
        self.calls.append("tear down")

    @property
    def text(self):
        """Its state in the table."""
        return self._state.text

    @property
    def drain_due(self):
        return self._drain_timer.due

    @property
    def spread_timer(self):
        return self._spread._timer

    def drain_sooner(self):
        before = self.drain_due, self.spread_timer.due
        self._close(WAIT, 1.0)
        assert self.drain_due < before[0] and self.spread_timer.due < before[1]

    def spread_ends_one(self):
        self.left = 2
        self._close(900.0, 800.0)
        self.spread_timer.expire(self.spread_timer.due)
        assert self.spread_timer.due < self.drain_due

    def drain_is_over(self):
        self.loop.timers.run(time.monotonic() + 2000.0)

    def last_ends(self):
        self.left = 0
        self.look_drained()

    def do(self, function, *arguments):
        """Call it in the thread, and return what it led to."""
        self.calls.clear()
        self.run_in_thread(lambda: function(*arguments))
        self.run_in_thread(lambda: None)  # after what it has put off
        return self.calls[:]

    def finish(self):
        """End the loop."""
        self.loop.call(self._stop_loop)
        self._thread.join(WAIT)
        assert not self._thread.is_alive()


WAY = {
    "open": [],
    "paused": [("pause", False)],
    "draining": [("start_close", 1000.0)],
    "closing": [("start_close", 0.0)],
}
ENDS = ["close the listener", "reset", "stop the loop"]
STATE_ROWS = [
    ("open", "pause", "paused", ("pause", False), ["do not accept"]),
    ("open", "close", "closing", ("start_close", 0.0), [*ENDS, "stop the loop"]),
    ("open", "close with drain", "draining", ("start_close", 1000.0), ["close the listener"]),
    ("paused", "resume", "open", ("resume",), ["accept"]),
    ("paused", "close", "closing", ("start_close", 0.0), [*ENDS, "stop the loop"]),
    ("paused", "close with drain", "draining", ("start_close", 1000.0), ["close the listener"]),
    ("draining", "pause", "draining", ("pause", False), []),
    ("draining", "last connection ends", "closing", ("last_ends",), ["stop the loop"]),
    ("draining", "spread timer", "draining", ("spread_ends_one",), ["reset one"]),
    ("draining", "drain timer", "closing", ("drain_is_over",), ["reset", "stop the loop", "stop the loop"]),
    ("draining", "close", "closing", ("start_close", 0.0), ["reset", "stop the loop", "stop the loop"]),
    ("draining", "close with drain", "draining", ("drain_sooner",), []),
    ("closing", "loop has stopped", "closed", ("finish",), ["tear down"]),
    ("closed", "pause, resume or close", "closed", None, []),
    ("any", "fork", "abandoned", None, []),
]


@pytest.fixture
def life():
    def make(connections=1):
        one = Life(connections)
        one.start()
        wait_until(lambda: one.calls == ["accept"])
        return one

    yield from makes(make, lambda one: one.finish())


def go_to(one, state):
    for name, *arguments in WAY[state]:
        one.do(getattr(one, name), *arguments)
    assert one.text == state


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
    assert one.text == following


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
    assert one.calls == [] and one.text == "abandoned" and one.state == "closed" and one.is_closed


def test_the_table_has_these_rows():
    assert rows_of(module) == [row[:3] for row in STATE_ROWS]


def test_a_pause_may_end_a_drain(life):
    one = life()
    go_to(one, "draining")
    assert one.do(one.pause, True) == ["reset", "stop the loop"]
    assert one.text == "closing"


def test_a_later_drain_changes_nothing(life):
    one = life()
    one.do(one.start_close, 1000.0, None, 500.0)
    due = one.drain_due, one.spread_timer.due
    one.do(one.start_close, 2000.0)
    one.do(one.start_close, None)
    assert (one.drain_due, one.spread_timer.due) == due


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
    one.tear_down = lambda: (tear_down(), one.start_close(0.0, lambda: calls.append(one.is_closed)))
    one.finish()
    one.join(WAIT)
    assert calls == [True]


def test_it_has_a_daemon_thread_of_its_name(life):
    one = life()
    assert one.name == "life"
    assert [thread.daemon for thread in threading.enumerate() if thread.name == "life"] == [True]


def test_it_answers_a_ping_in_its_thread_until_its_end(life):
    one = life()
    answers, answered = [], threading.Event()
    assert one.ping(lambda: (answers.append(threading.current_thread()), answered.set())) is True
    assert answered.wait(WAIT)
    assert [thread.name for thread in answers] == ["life"]
    one.finish()
    assert one.ping(answered.set) is False


def test_a_forked_child_pings_nobody(life):
    one = life()
    one.loop.call = lambda call: pytest.fail("its lock may be held for ever")
    one.abandon()
    assert one.ping(lambda: None) is False
    del one.loop.call


@pytest.mark.parametrize(("drain", "due"), [(1000.0, 1000.0), (None, None)])
def test_another_thread_begins_a_drain(life, drain, due, caplog):
    one = life()
    begun = time.monotonic()
    one.start_close(drain)
    wait_until(lambda: one.text == "draining")
    one.run_in_thread(lambda: None)
    assert one.drains == [drain]
    ended = time.monotonic()
    if due is None:
        assert one.drain_due == math.inf
    else:
        assert begun + due <= one.drain_due <= ended + due
    assert one.spread_timer.due == math.inf, "nothing is reset before the end"
    assert caplog.messages == []


def test_a_join_may_end_before_it(life):
    one = life()
    one.join(0.0)
    assert not one.is_closed


def test_each_step_gets_the_time(life):
    begun = time.monotonic()
    one = life()
    one.pause(True)
    one.do(one.start_close, 0.0)
    assert len(one.times) == 4  # the start, a reset, the close, and its reset
    assert all(begun <= moment <= time.monotonic() for moment in one.times)


def test_it_is_closing_when_its_connections_are_reset(life):
    one = life()
    states = []
    one.end_all = lambda now: states.append(one.text)
    one.do(one.start_close, 0.0)
    assert states == ["closing"]
