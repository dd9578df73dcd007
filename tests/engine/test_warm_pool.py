"""``relay.engine.warm_pool``: each row of the table of states, and what the pool counts and logs."""

import enum
import errno
import gc
import socket
import time
import weakref
from types import SimpleNamespace

import pytest
from helpers import few_descriptors, makes
from state_table import rows_of

import relay
from relay.addresses.printable import printable
from relay.engine import warm_pool as module
from relay.engine.attempt import Plan
from relay.engine.limits import Limits
from relay.engine.warm_pool import PoolState, WarmPool, check_factory
from relay.engine.workspace import Workspace
from relay.errors import CarrierError, ConnectError
from relay.eventloop.loop import Loop
from relay.eventloop.sockets import Endpoint
from relay.streams.dialer import Dialer
from relay.streams.stream import Stream

NOW = float(int(time.monotonic()))  # a whole number, so that sums are exact
KEEP = 30.0
REFUSED = ConnectError("db:5432: connection refused; check that the service is running", reason="refused")


class Hop(enum.Enum):
    UP = "up"
    DOWN = "backing off"


class OverHop(Dialer):
    """A dialer over a hop that is up or not."""

    def __init__(self, hop=Hop.UP):
        super().__init__("db:5432")
        self.hop = hop
        self.watchers = []

    @property
    def state(self):
        return self.hop.value

    def subscribe(self, watcher):
        self.watchers.append(watcher)

    def change(self, hop):
        self.hop = hop
        for watcher in self.watchers:
            watcher(hop, None)


class Unwatched(OverHop):
    """A dialer over a hop that cannot be watched for a while."""

    def __init__(self, failures, hop=Hop.UP):
        super().__init__(hop)
        self.failures = failures

    def subscribe(self, watcher):
        if self.failures:
            self.failures -= 1
            raise OSError(errno.EMFILE, "Too many open files")
        super().subscribe(watcher)


class Rig:
    """A pool of two streams, its connector and its owner."""

    def __init__(self, hop=Hop.UP, count=2):
        self.loop = Loop()
        self.workspace = Workspace(self.loop, None)
        self.name, self.limits = "web", Limits(None, 5.0, None, None)
        self.dialer = OverHop(hop)
        self.attempts = []  # those that are under way
        self.begun = 0
        self.times = []  # of their beginnings
        self.nested = self.deepest = 0  # attempts that begin while another one does
        self.answer = None  # what an attempt leads to at once: an error, or "stream"
        self.far = []
        self.clients = []
        self.closed = []
        self.plan = Plan(self.dialer)
        self.pool = WarmPool(self, self, self.plan)
        self.pool.change(count, KEEP, NOW)

    # -- the connector

    def begin(self, attempt, now):
        self.begun += 1
        self.times.append(now)
        self.attempts.append(attempt)
        self.nested += 1
        self.deepest = max(self.deepest, self.nested)
        if isinstance(self.answer, ConnectError):
            self.fail()
        elif self.answer is not None:
            self.make()
        self.nested -= 1

    def close_stream(self, stream, clean):
        self.closed.append((stream, clean))
        stream.close()

    def submit(self, job):
        job()

    # -- events

    @property
    def state(self):
        return self.pool.state.value

    @property
    def timer(self):
        """The timer of its next step."""
        return self.pool._timer

    @property
    def failures(self):
        """Those in a row."""
        return self.pool._backoff.failures

    def give_up(self, *attempts):
        """Close the streams of attempts that are under way; of all, if none is named."""
        for attempt in attempts or self.attempts[:]:
            self.attempts.remove(attempt)
            attempt.connection.close("discarded", NOW)

    def make(self, now=NOW):
        near, far = socket.socketpair()
        near.setblocking(False)
        self.far.append(far)
        self.attempts.pop(0).connection.open(near, None, self.workspace, now)

    def fail(self, error=REFUSED):
        self.attempts.pop(0).failed(error, NOW)

    def use(self):
        client = SimpleNamespace(summary=SimpleNamespace())
        client.open = lambda target, stream, work, now: self.clients.append(target)
        given = self.pool.give(client, NOW)
        if given and self.timer.due < NOW + 0.01:
            self.retry()
        return given

    def streams(self):
        return list(self.pool._ready)

    def end(self, after=5.0):
        self.streams()[0].close("ended", NOW + after)

    def end_at_once(self):
        self.end(0.1)

    def expire(self):
        self.streams()[0].close("expired", NOW + KEEP)

    def retry(self):
        self.timer.expire(self.timer.due)

    last = retry  # the time is over for which a stream must last

    def hang(self):
        """The last attempts were calls that are given up and do not return."""
        self.plan.warm_calls = 2
        self.fail()
        self.retry()

    def run_short(self):
        self.use()
        self.fail(OSError(errno.EMFILE, "Too many open files"))

    def take_hop_down_and_fill(self):
        self.dialer.change(Hop.DOWN)
        if self.streams():
            self.end()
        else:
            self.fail()

    def bring_hop_up(self):
        self.dialer.change(Hop.UP)
        self.turn()

    def turn(self):
        """A turn of the loop that waits for nothing."""
        self.loop.call(lambda: None)
        self.loop.turn()

    def start(self):
        self.pool.change(2, KEEP, NOW)

    def stop(self):
        self.pool.stop(NOW)

    def change_to_a_hop_that_cannot_be_watched(self):
        self.pool.change_plan(Plan(Unwatched(1)), NOW)

    def finish(self):
        self.stop()
        self.turn()
        self.loop.close()
        for one in (*self.far, *self.clients):
            one.close()


@pytest.fixture
def rig():
    yield from makes(Rig, lambda made: made.finish())


def in_state(rig, state):
    made = rig(Hop.DOWN if state == "waiting" else Hop.UP)
    if state == "stopped":
        made.stop()
        made.attempts.clear()
    elif state == "filling":
        made.make()
        made.make()
    elif state == "backing off":
        made.fail()
    elif state == "proving":
        made.fail()
        made.retry()
        made.make()
    made.begun = 0
    assert made.state == state
    return made


# state, event, next state, what brings it about, the streams that it begins to open
STATE_ROWS = [
    ("stopped", "start", "trying", Rig.start, 1),
    ("trying", "stream", "filling", Rig.make, 1),
    ("trying", "stream after failed", "proving", lambda made: (made.fail(), made.retry(), made.make()), 1),
    ("trying", "no stream", "backing off", Rig.fail, 0),
    ("trying", "calls hang", "backing off", Rig.hang, 0),
    ("trying", "hop not up", "waiting", Rig.take_hop_down_and_fill, 0),
    ("trying", "hop not watched", "backing off", Rig.change_to_a_hop_that_cannot_be_watched, 0),
    ("filling", "used", "filling", Rig.use, 1),
    ("filling", "ended", "filling", Rig.end, 1),
    ("filling", "expired", "filling", Rig.expire, 1),
    ("filling", "no stream", "backing off", lambda made: (made.use(), made.fail()), 1),
    ("filling", "ended at once", "backing off", Rig.end_at_once, 0),
    ("filling", "no descriptor", "backing off", Rig.run_short, 1),
    ("filling", "hop not up", "waiting", Rig.take_hop_down_and_fill, 0),
    ("proving", "lasts", "filling", Rig.last, 1),
    ("proving", "no stream", "backing off", lambda made: made.pool._back_off(REFUSED, NOW), 0),
    ("proving", "ended at once", "backing off", Rig.end_at_once, 0),
    ("proving", "hop not up", "waiting", Rig.take_hop_down_and_fill, 0),
    ("backing off", "stream", "backing off", None, 0),
    ("backing off", "retry timer", "trying", Rig.retry, 1),
    ("backing off", "hop is up", "trying", Rig.bring_hop_up, 1),
    ("waiting", "hop is up", "trying", Rig.bring_hop_up, 1),
    ("any", "stop", "stopped", Rig.stop, 0),
]


def test_the_table_is_the_one_that_is_run():
    assert [row[:3] for row in STATE_ROWS] == rows_of(module)


@pytest.mark.parametrize(
    "row",
    [row for row in STATE_ROWS if row[3] and row[0] != "any"]
    + [(state.value, *STATE_ROWS[-1][1:]) for state in PoolState],
    ids=lambda row: f"{row[0]}, {row[1]}",
)
def test_each_row(rig, row):
    before, _, after, event, begins = row
    made = in_state(rig, before)
    event(made)
    assert (made.state, made.begun) == (after, begins)


def test_a_stream_that_comes_while_it_backs_off_is_kept(rig):
    made = in_state(rig, "filling")
    made.use()
    made.use()
    made.fail()
    assert made.state == "backing off"
    made.make()
    assert made.state == "backing off"
    assert made.use()


def test_the_oldest_stream_is_used_first(rig):
    made = in_state(rig, "filling")
    first, second = made.streams()
    assert made.use() and made.use() and not made.use()
    assert made.clients == [first.target, second.target]
    assert made.pool.figures() == (0, 2, 1, 0, 0)


def test_the_next_stream_is_opened_after_the_clients_first_bytes_and_never_put_off(rig):
    made = in_state(rig, "filling")
    client = SimpleNamespace(summary=SimpleNamespace(), open=lambda *_: made.clients.append(_[0]))
    assert made.pool.give(client, NOW)
    due = made.timer.due
    assert (made.begun, due) == (0, NOW + 0.001)
    assert made.pool.give(client, NOW + 0.0005)
    assert made.timer.due == due
    made.retry()
    assert made.begun == 2


def test_a_client_never_gets_a_stream_that_has_ended(rig):
    made = in_state(rig, "filling")
    kept = made.streams()[1]
    made.far[0].close()
    assert made.use()
    assert made.clients == [kept.target]
    assert made.pool.figures()[1:] == (1, 0, 1, 0)


def test_the_client_gets_the_stream_with_what_its_flows_need(rig):
    made = in_state(rig, "filling")
    (first, _), given = made.streams(), []
    client = SimpleNamespace(summary=SimpleNamespace(), open=lambda *arguments: given.append(arguments))
    made.pool.give(client, NOW + 3)
    assert given == [(first.target, first.target_stream, made.workspace, NOW + 3)]
    first.target.close()


def test_all_that_has_become_of_the_streams_is_counted(rig):
    made = rig(count=4)
    for _ in range(4):
        made.make()
    made.end()
    made.end()
    made.expire()
    assert made.pool.figures() == (1, 0, 0, 2, 1)
    assert [made.use(), made.use(), made.use()] == [True, False, False]
    assert made.pool.figures() == (0, 1, 2, 2, 1)


def test_a_stopped_pool_counts_no_client(rig):
    made = in_state(rig, "stopped")
    assert not made.use()
    assert made.pool.figures() == (0, 0, 0, 0, 0)


def test_a_target_that_is_down_is_tried_less_and_less_often_and_logged_once(rig, caplog):
    made = rig()
    delays = []
    for _ in range(9):
        assert len(made.attempts) == 1, "one at a time"
        made.fail()
        delays.append(made.timer.due - NOW)
        made.retry()
    longest = (0.5, 1, 2, 4, 8, 16, 30, 30, 30)
    assert all(0.5 <= delay / most <= 1 for delay, most in zip(delays, longest, strict=True))
    (line,) = [record.getMessage() for record in caplog.records]
    assert (
        line == f"web: no stream is ready for the next client: {REFUSED}; relay retries, and clients connect without it"
    )
    made.make()
    made.last()
    made.make()
    assert made.use()
    made.fail()
    assert made.timer.due - NOW <= 0.5, "a stream that was used ends the row of failures"


def twice(error):
    return lambda made: (made.fail(error), made.retry(), made.fail(error))


def closed_at_once(factory):
    """Two streams of this factory are closed at once."""

    def event(made):
        made.stop()
        made.attempts.clear()
        made.pool.change_plan(Plan(factory), NOW)
        made.start()
        for _ in range(2):
            made.make()
            made.end_at_once()
            made.retry()

    return event


@pytest.mark.parametrize(
    ("event", "cause"),
    [
        (twice(REFUSED), str(REFUSED)),
        (twice(CarrierError("the connection was lost")), None),  # which is logged by itself
        (twice(OSError("x" * 2000)), printable("x" * 2000, 500)),
        (closed_at_once(OverHop()), "db:5432: it closed the stream at once; check it, or set warm to 0"),
        (closed_at_once(lambda: None), "the target: it closed the stream at once; check it, or set warm to 0"),
        (
            lambda made: (made.pool.make_room(NOW), made.retry(), made.pool.make_room(NOW)),
            "no descriptor is left for a warm stream; raise the limit of open files (ulimit -n)",
        ),
        (Rig.hang, "db:5432: no answer in time; earlier calls of it have not returned"),
    ],
)
def test_the_second_failure_in_a_row_is_worth_a_line_with_its_cause(rig, caplog, event, cause):
    event(rig())
    text = f"web: no stream is ready for the next client: {cause}; relay retries, and clients connect without it"
    assert caplog.messages == ([text] if cause is not None else [])


def test_streams_that_end_at_once_are_failures_until_one_stays(rig, caplog):
    made = rig()
    made.make()
    made.end_at_once()
    made.give_up()
    for _ in range(2):
        made.retry()
        made.make()
        assert not made.attempts, "the others wait until this one has lasted"
        made.end_at_once()
    made.retry()
    assert made.failures == 3
    assert "it closed the stream at once" in caplog.records[0].getMessage()
    assert len(caplog.records) == 1
    made.make()
    made.last()
    made.end(after=2.0)
    assert (made.failures, made.state) == (0, "filling")


@pytest.mark.parametrize(("after", "state"), [(0.999, "backing off"), (1.0, "filling")])
def test_a_stream_that_has_lasted_for_a_second_has_not_ended_at_once(rig, after, state):
    made = in_state(rig, "filling")
    made.end(after)
    assert made.state == state


def test_the_others_are_opened_when_the_first_stream_after_a_failure_has_lasted_for_a_second(rig):
    made = in_state(rig, "proving")
    assert made.timer.due == NOW + 1.0


def test_a_stream_that_was_never_answered_is_a_failure_when_it_ends_late(rig):
    made = rig()
    near, far = socket.socketpair()
    made.far.append(far)
    stream = Stream(near)
    stream.answered = False
    made.attempts.pop(0).connection.open(near, stream, made.workspace, NOW)
    made.end(after=20.0)
    assert made.state == "backing off"


def test_attempts_that_are_over_at_once_neither_recur_nor_run_for_ever(rig):
    made = in_state(rig, "stopped")
    made.answer = "stream"
    made.pool.change(50, KEEP, NOW)
    assert (len(made.streams()), made.state, made.deepest) == (50, "filling", 1)
    made.answer = REFUSED
    assert made.use() and made.use()
    assert (len(made.streams()), made.begun, made.state) == (48, 51, "backing off")


def test_other_numbers_and_times(rig):
    made = in_state(rig, "filling")
    made.pool.change(3, 10.0, NOW)
    assert made.begun == 1
    made.make()
    made.loop.timers.run(NOW + 8.9)
    assert len(made.streams()) == 3
    newest = made.streams()[2]
    made.pool.change(1, 10.0, NOW)
    assert (made.streams(), made.pool.figures()[3:]) == ([newest], (0, 0))
    made.use()
    made.pool.change(0, 10.0, NOW)
    assert made.state == "stopped"


def test_a_shorter_time_to_keep_streams_is_for_those_that_are_ready_too(rig):
    made = in_state(rig, "filling")
    made.pool.change(2, 10.0, NOW)
    made.loop.timers.run(NOW + 10.0)
    assert (made.streams(), made.pool.figures()[4]) == ([], 2)


def test_a_stream_for_which_there_is_no_room_any_more_is_closed(rig):
    made = in_state(rig, "filling")
    made.use()
    made.pool.change(1, KEEP, NOW)
    made.make()
    assert len(made.streams()) == 1
    assert made.pool.figures() == (1, 1, 0, 0, 0)


def test_another_factory_opens_no_stream_if_none_is_wanted(rig):
    made = in_state(rig, "filling")
    made.pool.change(0, KEEP, NOW)
    made.pool.change_plan(Plan(OverHop()), NOW)
    assert made.state == "stopped"


def test_another_factory_replaces_the_streams(rig):
    made = in_state(rig, "filling")
    old = made.streams()
    other = OverHop()
    made.pool.change_plan(Plan(other), NOW)
    made.turn()
    assert [stream.target.fileno() for stream in old] == [-1, -1]
    assert [attempt.plan.factory for attempt in made.attempts] == [other]


def test_a_factory_whose_streams_depend_on_the_client_has_none(rig):
    made = in_state(rig, "filling")
    made.pool.change_plan(Plan(relay.dynamic()), NOW)
    assert (made.state, made.streams(), made.attempts) == ("stopped", [], [])


@pytest.mark.parametrize("limit", [None, 5.0])
def test_an_attempt_has_a_deadline_and_hurries_no_hop(rig, limit):
    made = rig()
    made.limits = Limits(None, limit, None, None)
    made.dialer.dial = lambda deadline, done, **options: made.far.append((deadline, options)) or (lambda: None)
    made.make()
    (attempt,) = made.attempts
    attempt.dial(made.dialer, NOW)
    assert made.far.pop() == (NOW + (limit or 30.0), {"wait_for_reconnect": False})
    assert attempt.is_warm
    assert attempt.connection.summary.started == NOW


def test_a_connect_is_that_of_the_relay_thread_without_its_spare_descriptor(rig):
    made = rig()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        endpoint = Endpoint(socket.AF_INET, listening.getsockname())
        opened, status = made.pool.open(endpoint)
        assert type(opened) is socket.SocketType and status in (0, errno.EINPROGRESS)
        assert not opened.getblocking()
        opened.close()
        with few_descriptors(0), pytest.raises(OSError, match="Too many open files"):
            made.pool.open(endpoint)


def test_jobs_and_streams_are_passed_to_the_connector(rig):
    made = rig()
    done, stream = [], Stream(socket.socket())
    made.pool.submit(lambda: done.append(1))
    made.pool.close_stream(stream, False)
    assert (done, made.closed) == ([1], [(stream, False)])


def test_without_descriptors_clients_come_first(rig):
    made = in_state(rig, "stopped")
    made.answer = "stream"
    made.pool.change(12, KEEP, NOW)
    kept = made.streams()[3:]
    with few_descriptors(0), pytest.raises(OSError, match="Too many open files"):
        made.pool.open(Endpoint(socket.AF_INET, ("127.0.0.1", 1)))
    assert (made.streams(), made.state) == (kept, "backing off"), "a quarter is closed, and none is opened"
    made.pool.make_room(NOW)
    assert made.streams() == kept[2:], "two at least"
    made.pool.change(0, KEEP, NOW)
    made.pool.make_room(NOW)
    assert made.state == "stopped"


def test_a_pool_that_backs_off_goes_on_doing_so_if_the_hop_goes_down_and_a_kept_stream_ends(rig):
    made = in_state(rig, "filling")
    made.use()
    made.fail()
    made.dialer.hop = Hop.DOWN
    made.end()
    assert made.state == "backing off"


def test_a_hop_that_is_found_up_is_used_before_it_tells(rig):
    made = in_state(rig, "waiting")
    made.dialer.hop = Hop.UP
    made.pool.change(3, KEEP, NOW)
    assert (made.state, made.begun) == ("trying", 1)


def test_a_hop_is_watched_once(rig):
    made = rig()
    for count in (0, 2, 0, 2):
        made.pool.change(count, KEEP, NOW)
    assert len(made.dialer.watchers) == 1


def test_a_hop_that_goes_down_ends_no_wait(rig):
    made = in_state(rig, "backing off")
    made.timer.stop()
    made.dialer.change(Hop.DOWN)
    made.turn()
    assert (made.state, made.begun) == ("backing off", 0)


def test_whatever_beginning_raises_ends_one_stream(rig, caplog):
    made = in_state(rig, "stopped")

    def begin(attempt, now):
        raise ZeroDivisionError("a bug")

    made.begin = begin
    made.start()
    made.retry()
    assert made.state == "backing off"
    assert "ZeroDivisionError: a bug" in caplog.text


@pytest.mark.parametrize(("hop", "state"), [(Hop.UP, "trying"), (Hop.DOWN, "waiting")])
def test_a_hop_that_cannot_be_watched_is_watched_by_the_retry(rig, caplog, hop, state):
    made = in_state(rig, "stopped")
    dialer = made.dialer = Unwatched(2, hop)
    made.pool.change_plan(Plan(dialer), NOW)
    made.start()
    assert (made.state, made.begun) == ("backing off", 0)
    made.retry()
    assert (made.state, made.begun) == ("backing off", 0)
    assert "Too many open files; relay retries" in caplog.text
    made.retry()
    assert (made.state, len(dialer.watchers)) == (state, 1)
    if hop is Hop.DOWN:
        made.bring_hop_up()
    assert (made.state, made.begun) == ("trying", 1)


def test_a_dialer_does_not_keep_the_pool_of_a_closed_tunnel(rig):
    made = in_state(rig, "waiting")
    old = weakref.ref(made.pool)
    made.pool = WarmPool(made, made, Plan(OverHop()))
    gc.collect()
    assert old() is None
    made.dialer.change(Hop.UP)


def factory(*, peer):
    """A factory whose stream depends on the client."""


@pytest.mark.parametrize("make_send", [factory, lambda destination: None, relay.dynamic()])
def test_what_depends_on_the_client_is_refused(make_send):
    with pytest.raises(ValueError, match="^warm: the streams of this factory depend on the client .*; set warm to 0$"):
        check_factory(make_send)
    with socket.create_server(("127.0.0.1", 0)) as listener, pytest.raises(ValueError, match="^warm: "):
        relay.Tunnel(listener, make_send, warm=1)


@pytest.mark.parametrize("make_send", [lambda deadline, cancel: None, relay.tcp("127.0.0.1", 1), lambda: None])
def test_what_does_not_is_not(make_send):
    check_factory(make_send)
