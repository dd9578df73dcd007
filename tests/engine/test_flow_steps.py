"""Each step of a flow alone: sockets, pipes and a loop that do what the test says, and a record of what came of it."""

from __future__ import annotations

import errno
import fcntl
import socket
import sys
from types import SimpleNamespace

import pytest
from flow_parts import BLOCKED, GONE, REFUSED, FlowOwner, Kernel, LoopRecord, Pipes, Sock

from relay.engine.flow import _MORE, _NONBLOCK, BUFFER, WATCHED, Flow
from relay.eventloop.pipes import Pipe
from relay.eventloop.poller import END, ERR, HUP, IN, OUT, PRI, READ

LARGE = bytes(32768)
SMALL = bytes(100)


class Pair(FlowOwner):
    """Two flows, their owner, and what happened to it."""

    def __init__(self, family=socket.AF_INET, splices=True):
        super().__init__()
        self.loop, self.pipes = LoopRecord(), Pipes() if splices else None
        self.client, self.target = Sock(5, family), Sock(6, family)
        work = SimpleNamespace(loop=self.loop, pipes=self.pipes)
        self.up = Flow(self, work, self.client, self.target)
        self.down = Flow(self, work, self.target, self.client)
        self.up.reverse, self.down.reverse = self.down, self.up
        self.closes_itself = False
        self.passes_end = True

    def passes_end_of(self, flow):
        assert flow is self.up
        return self.passes_end

    def flow_ended(self, flow, now):
        super().flow_ended(flow, now)
        self.is_closed = self.is_closed or self.closes_itself

    def watch(self):
        """Begin to read, as an open connection does."""
        self.up.set_interest(WATCHED)
        self.down.set_interest(WATCHED)
        return self

    @property
    def masks(self):
        return self.loop.masks.get(5), self.loop.masks.get(6)

    def moved(self):
        return self.up.moved, self.up.last


@pytest.fixture
def pair():
    return Pair().watch()


@pytest.fixture
def kernel(monkeypatch):
    return Kernel(monkeypatch)


# -- copying ----------------------------------------------------------------------------------------------------------


def test_a_new_flow_has_moved_nothing_and_is_not_watched():
    one = Pair()
    up = one.up
    assert (up.moved, up.count(), up.spliced, up.spliced_bytes(), up.piped) == (0, 0, 0, 0, 0)
    assert (up.first, up.last, up.ended, up.mask, up.descriptor) == (0.0, 0.0, 0.0, -1, 5)
    assert (up.pending, up.pipe, up.spliceable, up.handler) == (None, None, None, up.copy)


def test_bytes_are_copied_and_counted_before_the_sink_has_them(pair):
    seen = []
    pair.target.on_send = lambda: seen.append(pair.moved())
    pair.client.gives = [b"one", b"three"]
    pair.up.copy(IN, 3.0)
    pair.up.copy(IN, 4.0)
    assert pair.target.sent == [b"one", b"three"]
    assert pair.client.asked == [BUFFER, BUFFER]
    assert seen == [(3, 3.0), (8, 4.0)]
    assert pair.up.count() == 8
    assert (pair.up.first, pair.up.last) == (3.0, 4.0)
    assert (pair.calls, pair.masks) == ([], (WATCHED, WATCHED))


@pytest.mark.parametrize(("takes", "left"), [(2, b"st of it"), (BLOCKED, b"rest of it")])
def test_what_the_sink_does_not_take_is_kept_and_the_reading_stops(pair, takes, left):
    pair.client.gives = [b"one", b"rest of it"]
    pair.up.copy(IN, 3.0)
    pair.target.takes = [takes]
    pair.up.copy(IN, 4.0)
    taken = len(b"rest of it") - len(left)
    assert bytes(pair.up.pending) == left
    assert pair.moved() == (3 + taken, 4.0)
    assert pair.masks == (PRI, WATCHED | OUT)


@pytest.mark.parametrize("method", ["copy", "copy_to_the_end"])
def test_a_sink_that_fails_has_taken_nothing(pair, method):
    pair.client.gives = [b"one", b"three"]
    pair.up.copy(IN, 3.0)
    pair.target.takes = [GONE]
    pair.up.copy(IN, 4.0) if method == "copy" else pair.up.copy_to_the_end(4.0)
    assert pair.up.moved == 3
    assert pair.calls == [("failed", pair.target, 4.0)]


@pytest.mark.parametrize("method", ["copy", "copy_to_the_end"])
@pytest.mark.parametrize(("error", "is_told"), [(GONE, True), (BLOCKED, False)])
def test_a_source_that_fails_is_told_unless_it_only_has_nothing(pair, method, error, is_told):
    pair.client.gives = [error]
    pair.up.copy(IN, 4.0) if method == "copy" else pair.up.copy_to_the_end(4.0)
    assert pair.calls == ([("failed", pair.client, 4.0)] if is_told else [])
    assert (pair.up.moved, pair.target.sent) == (0, [])


@pytest.mark.parametrize("method", ["copy", "copy_to_the_end"])
def test_the_end_of_the_source_ends_this_direction(pair, method):
    pair.client.gives = [b""]
    pair.up.copy(IN, 4.0) if method == "copy" else pair.up.copy_to_the_end(4.0)
    assert pair.calls == [("ended", pair.up, 4.0)]
    assert (pair.up.ended, pair.target.sent) == (4.0, [])
    assert pair.masks == (0, WATCHED)


@pytest.mark.parametrize("is_over", [True, False])
def test_a_flow_that_has_ended_goes_on_to_watch_for_what_else_it_waited_for(pair, is_over):
    pair.up.set_interest(WATCHED | OUT)
    pair.closes_itself = is_over
    pair.up.end(4.0)
    assert pair.masks == ((WATCHED | OUT) if is_over else OUT, WATCHED)


def test_a_flow_that_is_not_watched_is_not_watched_after_its_end():
    one = Pair()
    one.up.end(4.0)
    assert (one.masks, one.up.mask) == ((None, None), -1)


# -- copying to the end -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("passes_end", [True, False])
def test_the_last_bytes_wait_for_the_end_only_if_it_is_passed_on(pair, passes_end):
    pair.passes_end = passes_end
    seen = []
    pair.target.on_send = lambda: seen.append(pair.moved())
    pair.client.gives = [b"one", b"last", b""]
    pair.up.copy(IN, 2.0)
    pair.up.copy_to_the_end(4.0)
    assert (pair.target.sent, pair.target.flags) == ([b"one", b"last"], [0, _MORE if passes_end else 0])
    assert pair.client.asked == [BUFFER] * 3
    assert (seen[1], pair.moved()) == ((7, 4.0), (7, 4.0))
    assert pair.calls == [("ended", pair.up, 4.0)]


@pytest.mark.parametrize(("takes", "left"), [(1, b"ast"), (BLOCKED, b"last")])
def test_the_last_bytes_that_the_sink_does_not_take_are_kept_before_the_end(pair, takes, left):
    pair.client.gives = [b"one", b"last", b""]
    pair.up.copy(IN, 2.0)
    pair.target.takes = [takes]
    pair.up.copy_to_the_end(4.0)
    assert bytes(pair.up.pending) == left
    assert (pair.moved(), pair.calls) == ((7 - len(left), 4.0), [])
    assert pair.masks == (PRI, WATCHED | OUT)


def test_what_comes_behind_the_bytes_that_wait_for_more_is_queued(pair):
    pair.client.gives = [b"last", b"but one"]
    pair.up.copy_to_the_end(4.0)
    assert pair.target.sent == [b"last"]
    assert bytes(pair.up.pending) == b"but one"
    assert (pair.up.moved, pair.calls) == (4, [])


@pytest.mark.parametrize(("error", "is_told"), [(GONE, True), (BLOCKED, False)])
def test_an_error_behind_the_last_bytes_is_told(pair, error, is_told):
    pair.client.gives = [b"last", error]
    pair.up.copy_to_the_end(4.0)
    assert pair.target.sent == [b"last"]
    assert pair.calls == ([("failed", pair.client, 4.0)] if is_told else [])


# -- bulk -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reads", "splices"),
    [
        ([LARGE, LARGE], False),
        ([LARGE] * 3, True),
        ([LARGE, LARGE, SMALL, LARGE, LARGE], False),
        ([SMALL, LARGE, LARGE, LARGE], True),
        ([LARGE, SMALL, LARGE, LARGE], False),
        ([LARGE[1:]] * 5, False),
    ],
)
def test_three_large_reads_in_a_row_are_bulk(pair, reads, splices):
    pair.client.gives = list(reads)
    for moment in range(len(reads)):
        pair.up.handler(IN, moment + 1.0)
    assert pair.up.handler == (pair.up.splice if splices else pair.up.copy)
    assert pair.loop.handlers[5] == pair.up.handler
    assert (pair.up.first, pair.up.last) == (1.0, float(len(reads)))
    assert pair.up.streak == 0 or not splices


def test_bulk_without_pipes_is_copied():
    one = Pair(splices=False).watch()
    one.client.gives = [bytes(BUFFER)] * 5
    for moment in range(5):
        one.up.handler(IN, moment + 1.0)
    assert (one.up.handler, one.up.spliceable) == (one.up.copy, False)
    assert one.client.asked == [BUFFER] * 5


@pytest.mark.parametrize(
    ("size", "asked"),
    [(BUFFER, [BUFFER, BUFFER, BUFFER, 4 * BUFFER]), (BUFFER - 1, [BUFFER] * 4), (BUFFER // 2, [BUFFER] * 4)],
)
def test_after_bulk_that_fills_the_buffer_a_step_takes_more_out_of_a_unix_socket(size, asked):
    one = Pair(socket.AF_UNIX).watch()
    one.client.gives = [bytes(size)] * 4
    for moment in range(4):
        one.up.handler(IN, moment + 1.0)
    assert one.client.asked == asked
    assert (one.up.handler, one.up.spliceable) == (one.up.copy, False)


# -- splicing ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def splicing(pair):
    """A flow that splices, after it has copied 50 bytes."""
    pair.up.moved, pair.up.last, pair.up.streak = 50, 1.0, 0
    pair.up.use(pair.up.splice)
    return pair


def test_bytes_are_spliced_through_an_idle_pipe_and_counted_before_the_sink_has_them(splicing, kernel):
    seen = []
    kernel.results = [30_000, lambda: seen.append(splicing.moved()) or 30_000, 20_000, 20_000]
    splicing.up.splice(IN, 4.0)
    splicing.up.splice(IN, 5.0)
    assert kernel.calls == [
        (5, 101, 1000, _NONBLOCK),
        (100, 6, 30_000, _NONBLOCK),
        (5, 101, 1000, _NONBLOCK),
        (100, 6, 20_000, _NONBLOCK),
    ]
    assert (seen, splicing.moved()) == ([(30_050, 4.0)], (50_050, 5.0))
    assert (splicing.pipes.made, splicing.pipes.idle) == (1, [Pipe(100, 101, 1000)])
    assert (splicing.up.spliced_bytes(), splicing.up.streak, splicing.up.pipe) == (50_000, 0, None)
    assert splicing.masks == (WATCHED, WATCHED)


def test_the_last_idle_pipe_is_the_next_one(splicing, kernel):
    splicing.pipes.make()
    splicing.pipes.make()
    kernel.results = [20_000, 20_000]
    splicing.up.splice(IN, 4.0)
    assert [call[:2] for call in kernel.calls] == [(5, 201), (200, 6)]
    assert splicing.pipes.made == 2


@pytest.mark.parametrize(("sent", "left"), [(12_000, 8_000), (BLOCKED, 20_000)])
def test_what_the_sink_does_not_take_stays_in_the_pipe(splicing, kernel, sent, left):
    kernel.results = [20_000, sent]
    splicing.up.splice(IN, 4.0)
    assert (splicing.up.pipe, splicing.up.piped) == (Pipe(100, 101, 1000), left)
    assert splicing.moved() == (50 + 20_000 - left, 4.0)
    assert splicing.pipes.idle == []
    assert splicing.masks == (PRI, WATCHED | OUT)


def test_without_a_pipe_the_same_bytes_are_copied(splicing, kernel):
    splicing.pipes.can_make = False
    splicing.client.gives = [b"copied"]
    splicing.up.splice(IN, 4.0)
    assert (splicing.target.sent, splicing.up.handler) == ([b"copied"], splicing.up.copy)
    assert (splicing.moved(), kernel.calls) == ((56, 4.0), [])


def test_sockets_that_cannot_be_spliced_are_copied_from_now_on(splicing, kernel):
    kernel.results = [REFUSED]
    splicing.client.gives = [b"copied"]
    splicing.up.splice(IN, 4.0)
    assert (splicing.target.sent, splicing.up.handler) == ([b"copied"], splicing.up.copy)
    assert splicing.up.spliceable is False
    assert splicing.moved() == (56, 4.0)


@pytest.mark.parametrize(("error", "is_told"), [(GONE, True), (BLOCKED, False)])
def test_a_source_that_fails_while_it_is_spliced_is_told(splicing, kernel, error, is_told):
    kernel.results = [error]
    splicing.up.splice(IN, 4.0)
    assert splicing.calls == ([("failed", splicing.client, 4.0)] if is_told else [])
    assert (splicing.up.moved, splicing.up.handler) == (50, splicing.up.splice)


def test_a_sink_that_fails_while_it_is_spliced_has_taken_nothing_and_the_pipe_is_closed(splicing, kernel):
    kernel.results = [20_000, GONE]
    splicing.up.splice(IN, 4.0)
    assert splicing.up.moved == 50
    assert (splicing.pipes.idle, splicing.pipes.destroyed) == ([], [Pipe(100, 101, 1000)])
    assert splicing.calls == [("failed", splicing.target, 4.0)]


def test_the_end_of_a_source_that_is_spliced(splicing, kernel):
    kernel.results = [0]
    splicing.up.splice(IN, 4.0)
    assert splicing.calls == [("ended", splicing.up, 4.0)]
    assert splicing.up.moved == 50


@pytest.mark.parametrize(
    ("sizes", "copies"),
    [
        ([16_383] * 7, False),
        ([16_383] * 8, True),
        ([16_384] * 9, False),
        ([10] * 7 + [20_000] + [10] * 7, False),
        ([20_000] + [10] * 8, True),
    ],
)
def test_eight_small_splices_in_a_row_are_no_bulk(splicing, kernel, sizes, copies):
    kernel.results = [size for size in sizes for _ in range(2)]
    for moment in range(len(sizes)):
        splicing.up.handler(IN, moment + 4.0)
    assert splicing.up.handler == (splicing.up.copy if copies else splicing.up.splice)
    assert splicing.up.spliced_bytes() == sum(sizes)
    splicing.client.gives = [SMALL]
    splicing.up.copy(IN, 99.0)
    assert splicing.up.spliced_bytes() == sum(sizes) + (0 if copies else 100)


def test_the_bytes_of_each_time_that_it_splices_are_counted(pair):
    up = pair.up
    for moved, handler, spliced in [
        (10, up.splice, 0),
        (110, up.copy, 100),
        (115, up.splice, 100),
        (215, up.splice, 200),
        (216, up.copy, 201),
        (300, up.copy, 201),
    ]:
        up.moved = moved
        up.use(handler)
        assert up.spliced_bytes() == spliced
        assert (up.handler, pair.loop.handlers[5], up.streak) == (handler, handler, 0)


def test_another_handler_is_used_when_the_flow_is_watched_again():
    one = Pair()
    one.up.use(one.up.splice)
    assert one.loop.handlers == {}
    one.up.set_interest(WATCHED)
    assert one.loop.handlers == {5: one.up.splice}


def test_another_handler_does_not_replace_that_of_another_socket_with_the_same_number(pair):
    pair.loop.handlers[5] = print
    pair.up.use(pair.up.splice)
    assert (pair.loop.handlers[5], pair.up.handler) == (print, pair.up.splice)


# -- back pressure ----------------------------------------------------------------------------------------------------


def test_what_is_kept_is_written_when_the_sink_takes_more(pair):
    pair.client.gives = [b"rest of it"]
    pair.target.takes = [BLOCKED, 4, BLOCKED, 2, 4]
    pair.up.copy(IN, 3.0)
    for now, left, last in [(4.0, b" of it", 4.0), (5.0, b" of it", 4.0), (6.0, b"f it", 6.0)]:
        pair.up.drain(now)
        assert bytes(pair.up.pending) == left
        assert pair.moved() == (10 - len(left), last)
        assert pair.masks == (PRI, WATCHED | OUT)
    pair.up.drain(7.0)
    assert (pair.up.pending, pair.moved()) == (None, (10, 7.0))
    assert pair.masks == (WATCHED, WATCHED)
    assert b"".join(pair.target.sent) == b"rest of it"


def test_what_is_in_the_pipe_is_written_when_the_sink_takes_more(splicing, kernel):
    kernel.results = [20_000, 1_000, 3_000, BLOCKED, 16_000]
    splicing.up.splice(IN, 4.0)
    pipe = splicing.up.pipe
    for now, left, last in [(5.0, 16_000, 5.0), (6.0, 16_000, 5.0)]:
        splicing.up.drain(now)
        assert (splicing.up.pipe, splicing.up.piped) == (pipe, left)
        assert splicing.moved() == (20_050 - left, last)
        assert splicing.masks == (PRI, WATCHED | OUT)
    splicing.up.drain(7.0)
    assert kernel.calls[2:] == [(100, 6, 19_000, _NONBLOCK), (100, 6, 16_000, _NONBLOCK), (100, 6, 16_000, _NONBLOCK)]
    assert (splicing.up.pipe, splicing.up.piped, splicing.pipes.given) == (None, 0, [pipe])
    assert (splicing.moved(), splicing.masks) == ((20_050, 7.0), (WATCHED, WATCHED))


def test_a_sink_that_fails_when_it_takes_more_is_told(pair):
    pair.client.gives = [b"rest of it"]
    pair.target.takes = [BLOCKED, GONE]
    pair.up.copy(IN, 3.0)
    pair.up.drain(4.0)
    assert pair.calls == [("failed", pair.target, 4.0)]
    assert pair.up.moved == 0


def test_with_nothing_to_write_the_sink_is_waited_for_no_longer(pair):
    pair.up.block()
    assert pair.masks == (PRI, WATCHED | OUT)
    pair.up.drain(4.0)
    assert (pair.masks, pair.moved()) == ((WATCHED, WATCHED), (0, 0.0))


def test_a_flow_that_has_ended_does_not_read_again(pair):
    pair.up.queue(memoryview(b"last"))
    pair.up.ended = 3.0
    pair.up.drain(4.0)
    assert pair.masks == (PRI, WATCHED)


def test_a_flow_that_could_not_be_watched_is_when_it_may_read_again(pair):
    pair.up.set_interest(-1)
    pair.up.queue(memoryview(b"last"))
    assert pair.masks == (0, WATCHED | OUT)
    pair.up.set_interest(-1)
    pair.up.drain(4.0)
    assert pair.masks == (WATCHED, WATCHED)


def test_a_flow_that_waits_for_its_sink_keeps_waiting_for_its_own_writes(pair):
    pair.up.set_interest(WATCHED | OUT)
    pair.down.set_interest(-1)
    pair.up.block()
    assert pair.masks == (PRI | OUT, OUT)
    pair.up.drain(4.0)
    assert pair.masks == (WATCHED | OUT, 0)


def test_what_a_session_will_use_again_is_copied_and_other_memory_is_not(pair):
    memory = bytearray(b"session")
    pair.up.queue(memoryview(memory))
    memory[:] = b"changed"
    assert bytes(pair.up.pending) == b"session"
    kept = memoryview(b"constant")
    pair.up.queue(kept)
    assert pair.up.pending is kept


def test_what_came_before_the_flow_is_written_first(pair):
    pair.up.queue_first(memoryview(b"early"))
    assert (bytes(pair.up.pending), pair.up.first, pair.masks) == (b"early", 0.0, (PRI, WATCHED | OUT))
    pair.up.drain(4.0)
    pair.client.gives = [b"later"]
    pair.up.copy(IN, 5.0)
    assert pair.target.sent == [b"early", b"later"]
    assert pair.up.moved == 10


def test_the_first_bytes_came_when_they_were_read_though_they_were_kept(pair):
    pair.client.gives = [b"first", b"second"]
    pair.target.takes = [BLOCKED]
    pair.up.copy(IN, 3.0)
    assert (pair.up.first, pair.up.streak) == (3.0, 0)
    pair.up.drain(4.0)
    pair.target.takes = [BLOCKED]
    pair.up.copy(IN, 5.0)
    assert (pair.up.first, pair.up.last) == (3.0, 5.0)


def test_what_waits_in_a_session_is_no_first_byte(pair):
    pair.up.queue(memoryview(b""))
    pair.up.drain(2.0)
    assert (pair.up.first, pair.up.last) == (0.0, 0.0)
    pair.client.gives = [b"first", b"second"]
    pair.up.copy(IN, 3.0)
    pair.up.copy(IN, 4.0)
    assert (pair.up.first, pair.up.last) == (3.0, 4.0)


def test_what_is_kept_ends_no_row_of_large_reads(pair):
    pair.client.gives = [LARGE, LARGE, LARGE]
    pair.target.takes = [len(LARGE), 1]
    pair.up.copy(IN, 3.0)
    pair.up.copy(IN, 4.0)
    assert pair.up.streak == 1


def test_what_is_kept_is_dropped(pair):
    pair.up.pending, pair.up.pipe, pair.up.piped = memoryview(b"kept"), Pipe(100, 101, 1000), 9
    pair.up.drop()
    assert (pair.up.pending, pair.up.pipe, pair.up.piped) == (None, None, 0)
    assert pair.pipes.destroyed == [Pipe(100, 101, 1000)]
    pair.up.drop()
    assert len(pair.pipes.destroyed) == 1


# -- other events -----------------------------------------------------------------------------------------------------


def test_a_sink_that_takes_more_drains_the_flow_to_it(pair):
    pair.down.queue(memoryview(b"reply"))
    pair.up.copy(OUT, 4.0)
    assert (pair.client.sent, pair.down.last) == ([b"reply"], 4.0)
    assert pair.client.asked == []


def test_events_that_come_together_are_all_handled(pair):
    pair.down.queue(memoryview(b"reply"))
    pair.client.gives = [b"request"]
    pair.up.copy(IN | OUT, 4.0)
    assert (pair.client.sent, pair.target.sent) == ([b"reply"], [b"request"])
    assert pair.up.last == 4.0


def test_a_connection_that_its_drain_has_ended_reads_no_more(pair):
    pair.down.queue(memoryview(b"reply"))
    pair.client.takes = [GONE]
    pair.client.gives = [b"request"]
    pair.up.copy(IN | OUT, 4.0)
    assert pair.calls == [("failed", pair.client, 4.0)]


def test_the_end_with_the_last_bytes_is_copied_to_the_end(pair):
    pair.client.gives = [b"last", b""]
    pair.up.copy(IN | END, 4.0)
    assert pair.calls == [("ended", pair.up, 4.0)]
    assert pair.target.flags == [_MORE]


def test_the_end_of_what_is_spliced_comes_by_splicing(splicing, kernel):
    kernel.results = [20_000, 20_000]
    splicing.up.splice(IN | END, 4.0)
    assert (splicing.moved(), splicing.client.asked) == ((20_050, 4.0), [])


@pytest.mark.parametrize("event", [ERR, HUP, IN | ERR, IN | HUP])
def test_an_error_of_a_source_that_is_read_is_found_by_reading(pair, event):
    pair.client.gives = [GONE]
    pair.up.copy(event, 4.0)
    assert pair.calls == [("failed", pair.client, 4.0)]
    assert pair.client.asked == [BUFFER]


def test_an_event_of_the_source_does_not_wake_the_flow_to_it(pair):
    pair.down.set_interest(0)
    pair.client.gives = [b"request"]
    pair.up.copy(IN | HUP, 4.0)
    assert (pair.target.sent, pair.masks) == ([b"request"], (WATCHED, 0))


def test_a_source_whose_end_is_no_event_of_its_own_is_read_as_well(pair):
    pair.up.set_interest(IN)
    pair.client.gives = [b"last"]
    pair.up.copy(IN | HUP, 4.0)
    assert pair.target.sent == [b"last"]


def test_an_error_is_not_looked_for_before_it_is_an_event(pair):
    pair.up.set_interest(OUT)
    pair.client.options[socket.SOL_SOCKET, socket.SO_ERROR] = errno.ECONNRESET
    pair.up.copy(OUT, 4.0)
    assert pair.calls == []


def test_an_event_that_was_not_waited_for_reads_nothing(pair):
    pair.up.block()
    pair.client.gives = [b"later"]
    pair.up.copy(IN | END, 4.0)
    assert (pair.client.asked, pair.masks[0]) == ([], PRI)


def test_events_without_reading_or_writing_do_nothing(pair):
    pair.client.gives = [b"later"]
    pair.up.on_other_event(0, 4.0)
    assert (pair.client.asked, pair.calls, pair.masks) == ([], [], (WATCHED, WATCHED))


@pytest.mark.parametrize("mask", [0, OUT, -1])
def test_a_reset_of_a_source_that_is_not_read_ends_the_connection(pair, mask):
    pair.up.set_interest(mask)
    pair.client.options[socket.SOL_SOCKET, socket.SO_ERROR] = errno.ECONNRESET
    pair.up.copy(ERR | HUP, 4.0)
    assert pair.calls == [("failed", pair.client, 4.0)]
    assert pair.client.asked == []


def test_an_error_that_only_blocks_is_no_failure(pair):
    pair.up.block()
    pair.client.options[socket.SOL_SOCKET, socket.SO_ERROR] = errno.EAGAIN
    pair.up.copy(ERR, 4.0)
    assert pair.calls == []


def test_a_hang_up_that_nothing_waits_for_is_watched_no_longer(pair):
    pair.up.block()
    pair.up.copy(ERR | HUP, 4.0)
    assert (pair.calls, pair.up.mask, pair.loop.forgotten) == ([], -1, [(5, False)])


def test_an_error_without_a_hang_up_leaves_the_source_watched(pair):
    pair.up.block()
    pair.up.copy(ERR, 4.0)
    assert (pair.calls, pair.up.mask) == ([], PRI)


def test_the_bytes_before_a_reset_of_a_unix_socket_are_not_lost():
    one = Pair(socket.AF_UNIX).watch()
    one.up.block()
    one.client.options[socket.SOL_SOCKET, socket.SO_ERROR] = errno.ECONNRESET
    one.up.copy(ERR, 4.0)
    assert (one.calls, one.masks[0]) == ([], PRI)
    one.up.copy(ERR | HUP, 4.0)
    assert (one.calls, one.masks[0]) == ([], None)


def test_a_bug_ends_the_connection(pair):
    pair.up.crashed(4.0)
    assert pair.calls == [("factory_error", 4.0)]


# -- urgent data ------------------------------------------------------------------------------------------------------


IN_LINE = (socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)


@pytest.fixture
def at_mark(monkeypatch):
    """Decides whether the next byte of each socket is an urgent one; an error is what the system says instead."""
    answers = []

    def ioctl(descriptor, request, argument):
        assert (request, argument) == (0x8905, bytes(4))
        if isinstance(answers[0], OSError):
            raise answers[0]
        return answers.pop(0).to_bytes(4, sys.byteorder)

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    return answers


@pytest.mark.parametrize("event", [PRI, IN | PRI, IN | PRI | END])
def test_urgent_data_is_copied_up_to_its_mark_and_the_byte_there_alone(pair, at_mark, event):
    at_mark += [False, True]
    pair.client.gives = [b"before", b"!", b"after"]
    pair.up.copy(event, 4.0)
    pair.up.copy(event, 5.0)
    pair.up.copy(IN, 6.0)
    assert (pair.target.sent, pair.target.flags) == ([b"before", b"!", b"after"], [0, socket.MSG_OOB, 0])
    assert pair.client.asked == [BUFFER, 1, BUFFER]
    assert pair.client.set == [IN_LINE, IN_LINE]
    assert pair.moved() == (12, 6.0)


def test_urgent_data_is_plain_for_a_sink_that_has_none(pair, at_mark):
    at_mark.append(True)
    pair.has_urgent = False
    pair.client.gives = [b"!after"]
    pair.up.copy(IN | PRI, 4.0)
    assert (pair.client.asked, pair.target.flags) == ([BUFFER], [0])


def test_where_the_mark_is_not_known_urgent_data_is_plain(pair, at_mark):
    at_mark.append(OSError(errno.ENOTTY, "Inappropriate ioctl for device"))
    pair.client.gives = [b"!after"]
    pair.up.copy(IN | PRI, 4.0)
    assert (pair.client.asked, pair.target.flags) == ([BUFFER], [0])


def test_urgent_data_of_a_socket_that_was_closed_is_left_to_the_read(pair, at_mark):
    def closed(*_):
        raise GONE

    at_mark.append(False)
    pair.client.setsockopt = closed
    pair.client.gives = [GONE]
    pair.up.copy(IN | PRI, 4.0)
    assert pair.calls == [("failed", pair.client, 4.0)]


def test_urgent_data_is_never_spliced(splicing, kernel, at_mark):
    at_mark.append(True)
    splicing.client.gives = [b"!"]
    splicing.up.splice(IN | PRI, 4.0)
    assert (splicing.target.flags, kernel.calls, splicing.up.handler) == ([socket.MSG_OOB], [], splicing.up.copy)


def test_an_urgent_byte_that_the_sink_did_not_take_is_urgent_when_it_does(pair, at_mark):
    at_mark.append(True)
    pair.client.gives = [b"!", b"after"]
    pair.target.takes = [BLOCKED, BLOCKED]
    pair.up.copy(IN | PRI, 4.0)
    assert (bytes(pair.up.pending), pair.masks) == (b"!", (PRI, WATCHED | OUT))
    pair.up.drain(5.0)
    pair.up.drain(6.0)
    pair.up.copy(IN, 7.0)
    assert (pair.target.sent, pair.target.flags) == ([b"!", b"after"], [socket.MSG_OOB, 0])


def test_after_an_urgent_byte_that_is_dropped_nothing_is_urgent(pair, at_mark):
    at_mark.append(True)
    pair.client.gives = [b"!", b"after"]
    pair.target.takes = [BLOCKED]
    pair.up.copy(IN | PRI, 4.0)
    pair.up.drop()
    pair.up.copy(IN, 5.0)
    assert (pair.target.sent, pair.target.flags) == ([b"after"], [0])


def test_a_sink_that_fails_at_an_urgent_byte_leaves_nothing_behind(pair, at_mark):
    at_mark.append(True)
    pair.client.gives = [b"!"]
    pair.target.takes = [GONE]
    pair.up.copy(IN | PRI, 4.0)
    assert pair.calls == [("failed", pair.target, 4.0)]
    assert pair.up.send == pair.target.send


@pytest.mark.parametrize("event", [PRI, PRI | ERR])
def test_a_flow_that_does_not_read_only_keeps_urgent_data_in_line(pair, event):
    pair.up.block()
    pair.client.options[socket.SOL_SOCKET, socket.SO_ERROR] = errno.ECONNRESET
    pair.up.copy(event, 4.0)
    assert (pair.client.set, pair.client.asked, pair.masks[0]) == ([IN_LINE], [], 0)
    assert pair.calls == ([("failed", pair.client, 4.0)] if event & ERR else [])


@pytest.mark.parametrize("mask", [READ, READ | OUT, OUT, 0, -1])
def test_urgent_data_that_was_not_waited_for_is_no_event(pair, mask):
    pair.up.set_interest(mask)
    pair.up.on_other_event(PRI, 4.0)
    assert (pair.client.set, pair.client.asked, pair.up.mask) == ([], [], mask)


@pytest.mark.parametrize("event", [PRI, PRI | IN])
def test_what_a_unix_peer_sends_out_of_band_is_no_data(event):
    one = Pair(socket.AF_UNIX).watch()
    one.client.gives = [b"after"]
    one.up.copy(event, 4.0)
    assert one.target.sent == ([b"after"] if event & IN else [])
    assert (one.client.set, one.masks[0]) == ([], READ)
    one.up.block()
    one.up.drain(5.0)
    assert one.masks[0] == READ


# -- what the loop watches --------------------------------------------------------------------------------------------


def test_the_loop_is_told_of_changes_only(pair, monkeypatch):
    told = []
    monkeypatch.setattr(pair.loop, "modify", lambda descriptor, mask: told.append((descriptor, mask)))
    for mask in (WATCHED, OUT, OUT, 0, 0, WATCHED):
        pair.up.set_interest(mask)
    assert told == [(5, OUT), (5, 0), (5, WATCHED)]
    pair.up.set_interest(-1)
    pair.up.set_interest(-1)
    assert pair.loop.forgotten == [(5, False)]
    pair.up.set_interest(0)
    assert (pair.loop.handlers[5], pair.loop.masks[5]) == (pair.up.copy, 0)


def test_a_source_that_was_closed_is_not_watched():
    one = Pair()
    one.client.descriptor = -1
    one.up.set_interest(WATCHED)
    assert one.loop.handlers == {}


@pytest.mark.parametrize("mask", [-1, 0, OUT])
def test_another_socket_with_the_same_number_is_left_alone(pair, mask):
    pair.loop.handlers[5] = print
    pair.up.set_interest(mask)
    assert (pair.loop.handlers[5], pair.masks[0], pair.loop.forgotten) == (print, WATCHED, [])
    assert (pair.up.mask, pair.up.is_watched()) == (-1, False)


@pytest.mark.parametrize("own", [True, False])
def test_a_flow_that_is_released_leaves_the_loop_and_drops_what_it_kept(pair, own):
    pair.up.pipe = Pipe(100, 101, 1000)
    pair.up.release(own)
    assert pair.loop.forgotten == [(5, own)]
    assert pair.pipes.destroyed == [Pipe(100, 101, 1000)]
    assert pair.up.reverse is None
    assert not hasattr(pair.up, "handler")
    assert pair.loop.handlers == {6: pair.down.copy}


def test_a_flow_with_bytes_that_is_released_drops_them(pair):
    pair.up.queue(memoryview(b"kept"))
    pair.up.release(True)
    assert pair.up.pending is None


@pytest.mark.parametrize("mask", [0, -1])
def test_a_flow_that_waits_for_nothing_is_released(pair, mask):
    pair.up.set_interest(mask)
    pair.loop.forgotten.clear()
    pair.up.release(True)
    assert pair.loop.forgotten == ([(5, True)] if mask == 0 else [])


def test_a_flow_that_is_released_leaves_another_socket_with_its_number_alone(pair):
    pair.loop.handlers[5] = print
    pair.up.release(True)
    assert (pair.loop.handlers[5], pair.loop.forgotten) == (print, [])


# -- after a reset and after the end ----------------------------------------------------------------------------------


def test_what_came_before_a_reset_is_passed_on(pair):
    pair.target.gives = [b"413", b" too", b" large", BLOCKED]
    pair.down.moved = 5
    pair.up.sink_failed(4.0)
    assert pair.client.sent == [b"413", b" too", b" large"]
    assert pair.down.moved == 18
    assert pair.target.asked == [BUFFER] * 4
    assert pair.calls == [("failed", pair.target, 4.0)]


def test_no_more_is_passed_on_than_sixteen_buffers(pair):
    pair.target.gives = [b"x"] * 20
    pair.down.pass_on_rest()
    assert len(pair.client.sent) == 16


@pytest.mark.parametrize("rest", [[b""], [b"", b"x"], [GONE, b"x"]])
def test_the_rest_ends_with_an_end_or_an_error(pair, rest):
    pair.target.gives = [b"said", *rest]
    pair.down.pass_on_rest()
    assert (pair.client.sent, len(pair.target.asked)) == ([b"said"], 2)


def test_the_rest_is_what_the_other_end_takes_at_once(pair):
    pair.target.gives = [b"said", b"more"]
    pair.client.takes = [2]
    pair.down.pass_on_rest()
    assert (pair.client.sent, pair.down.moved) == ([b"sa"], 2)
    pair.client.takes = [GONE]
    pair.down.pass_on_rest()
    assert (pair.client.sent, pair.down.moved) == ([b"sa"], 2)


@pytest.mark.parametrize(
    ("name", "value"), [("pending", memoryview(b"kept")), ("pipe", Pipe(100, 101, 1000)), ("ended", 3.0)]
)
def test_nothing_is_passed_on_before_what_is_kept_or_after_the_end(pair, name, value):
    setattr(pair.down, name, value)
    pair.target.gives = [b"said"]
    pair.down.pass_on_rest()
    assert (pair.client.sent, pair.target.asked) == ([], [])


@pytest.mark.parametrize(("gives", "closes"), [(b"more", False), (BLOCKED, False), (b"", True), (GONE, True)])
def test_what_comes_to_a_stream_that_has_ended_is_dropped_until_its_end(pair, gives, closes):
    pair.client.gives = [gives]
    pair.up.use(pair.up.discard)
    pair.up.discard(IN, 4.0)
    assert pair.calls == ([("done", 4.0)] if closes else [])
    assert (pair.client.asked, pair.target.sent, pair.up.moved) == ([BUFFER], [], 0)
