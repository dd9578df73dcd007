"""Each step of a metered flow alone: what it asks its meters and quotas for, and what it counts."""

from __future__ import annotations

import fcntl
import socket
from types import SimpleNamespace

import pytest
from flow_parts import BLOCKED, GONE, REFUSED, FlowOwner, Kernel, LoopRecord, Pipes, Sock

from relay.engine.flow import _NONBLOCK, BUFFER, WATCHED, Flow
from relay.engine.metered_flow import Budget, MeteredFlow, MeteredSessionFlow
from relay.eventloop.pipes import Pipe
from relay.eventloop.poller import END, IN, OUT, PRI


class Meter:
    """A meter that grants what the test has scripted."""

    def __init__(self, *grants):
        self.grants = list(grants)
        self.taken = []
        self.spent = []
        self.left_by = []

    def take(self, flow, now):
        self.taken.append((flow, now))
        return self.grants.pop(0) if self.grants else 0

    def spend(self, flow, size):
        self.spent.append((flow, size))

    def leave(self, flow):
        self.left_by.append(flow)


class Quota:
    """A quota of so many bytes."""

    def __init__(self, size):
        self.size = size
        self.spent = []

    def left(self):
        return max(0, self.size)

    def spend(self, size):
        self.spent.append(size)
        self.size -= size


class Metered(FlowOwner):
    """A metered flow, the flow back, their owner, and what happened to it."""

    def __init__(self, grants=(), *, quotas=(), kind=MeteredFlow, family=socket.AF_INET):
        super().__init__()
        self.loop, self.pipes = LoopRecord(), Pipes()
        self.client, self.target = Sock(5, family), Sock(6, family)
        work = SimpleNamespace(loop=self.loop, pipes=self.pipes, throttled=0.0)
        self.meter, self.quotas = Meter(*grants), [Quota(size) for size in quotas]
        self.up = kind(self, work, self.client, self.target)
        self.up.budget = self.budget = Budget([self.meter], self.quotas, self.used_up)
        self.up.begin_metering()
        self.down = Flow(self, work, self.target, self.client)
        self.up.reverse, self.down.reverse = self.down, self.up
        self.up.set_interest(WATCHED)
        self.down.set_interest(WATCHED)

    def passes_end_of(self, flow):
        return True

    def used_up(self, quota, now):
        self.calls.append(("used up", quota, now))
        self.is_closed = True

    @property
    def spent(self):
        """The sizes that the flow has reported to its meter."""
        assert all(flow is self.up for flow, _ in self.meter.spent)
        return [size for _, size in self.meter.spent]

    @property
    def mask(self):
        return self.loop.masks.get(5)


@pytest.fixture
def kernel(monkeypatch):
    return Kernel(monkeypatch)


# -- the budget -------------------------------------------------------------------------------------------------------


def budget(meters=(), quotas=()):
    reported = []
    made = Budget(meters, quotas, lambda quota, now: reported.append((quota, now)))
    return made, reported


def test_a_new_budget_has_nothing_and_waits_for_nothing():
    made, _ = budget()
    assert (made.allowance, made.is_waiting) == (0, False)


@pytest.mark.parametrize(
    ("grants", "quotas", "allowance"),
    [
        ([], [], 1 << 20),
        ([500, 300, 400], [], 300),
        ([500], [200, 100, 300], 100),
        ([50], [200, 100, 300], 50),
        ([1 << 30], [1 << 30], 1 << 20),
    ],
)
def test_a_read_may_take_what_the_narrowest_has(grants, quotas, allowance):
    meters, flow = [Meter(grant) for grant in grants], object()
    made, _ = budget(meters, [Quota(size) for size in quotas])
    made.is_waiting = True
    assert made.ask(flow, 3.0)
    assert (made.allowance, made.is_waiting) == (allowance, False)
    assert all(meter.taken == [(flow, 3.0)] for meter in meters)


def test_with_a_meter_that_grants_nothing_a_flow_waits_and_asks_no_other():
    meters, flow = [Meter(500), Meter(0), Meter(500)], object()
    made, _ = budget(meters)
    assert not made.ask(flow, 3.0)
    assert (made.allowance, made.is_waiting) == (0, True)
    assert [len(meter.taken) for meter in meters] == [1, 1, 0]


def test_what_was_read_is_counted_by_all():
    meters, quotas, flow = [Meter(500), Meter(400)], [Quota(300), Quota(200)], object()
    made, _ = budget(meters, quotas)
    made.ask(flow, 3.0)
    made.spend(flow, 120)
    assert made.allowance == 0
    assert [meter.spent for meter in meters] == [[(flow, 120)]] * 2
    assert [quota.spent for quota in quotas] == [[120]] * 2
    made.spend(flow, 1)
    assert [quota.spent for quota in quotas] == [[120, 1]] * 2


def test_what_was_not_read_is_given_back_to_meters_and_costs_no_quota():
    meters, quotas, flow = [Meter(500)], [Quota(300)], object()
    made, _ = budget(meters, quotas)
    made.spend(flow, 0)
    assert (meters[0].spent, quotas[0].spent) == ([(flow, 0)], [])


def test_the_first_quota_that_has_nothing_left_is_found_and_reported():
    quotas = [Quota(1), Quota(0), Quota(0)]
    made, reported = budget((), quotas)
    assert made.empty_quota() is quotas[1]
    made.used_up(quotas[1], 3.0)
    assert reported == [(quotas[1], 3.0)]
    assert budget((), quotas[:1])[0].empty_quota() is None


def test_who_leaves_waits_no_more():
    meters, flow = [Meter(0), Meter(0)], object()
    made, _ = budget(meters)
    made.ask(flow, 3.0)
    made.leave(flow)
    assert made.is_waiting is False
    assert [meter.left_by for meter in meters] == [[flow]] * 2


# -- copying ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("granted", "asked"), [(300, 300), (1 << 20, BUFFER)])
def test_a_step_reads_what_is_granted_and_no_more_than_the_buffer(granted, asked):
    one = Metered([granted], quotas=[1 << 20])
    one.client.gives = [b"bytes"]
    one.up.copy(IN, 3.0)
    assert (one.client.asked, one.target.sent, one.spent) == ([asked], [b"bytes"], [5])
    assert one.meter.taken == [(one.up, 3.0)]
    assert one.quotas[0].spent == [5]
    assert (one.up.moved, one.up.last, one.budget.allowance) == (5, 3.0, 0)


@pytest.mark.parametrize("error", [BLOCKED, GONE])
def test_what_was_granted_and_not_read_is_given_back(error):
    one = Metered([300])
    one.client.gives = [error]
    one.up.copy(IN, 3.0)
    assert (one.spent, one.budget.allowance) == ([0], 0)
    assert one.calls == ([] if error is BLOCKED else [("failed", one.client, 3.0)])


@pytest.mark.parametrize("method", ["copy", "splice"])
def test_a_flow_to_which_nothing_is_granted_is_parked(method):
    one = Metered([0])
    one.client.gives = [b"bytes"]
    one.up.set_interest(WATCHED | OUT)
    getattr(one.up, method)(IN, 3.0)
    assert (one.client.asked, one.mask, one.budget.is_waiting) == ([], OUT | PRI, True)
    assert (one.spent, one.calls) == ([], [])


def test_a_flow_that_is_not_watched_is_watched_for_nothing_while_it_is_parked():
    one = Metered([0])
    one.up.set_interest(-1)
    one.up.copy(IN, 3.0)
    assert one.mask == 0


@pytest.mark.parametrize("method", ["copy", "splice"])
def test_other_events_ask_for_nothing(method):
    one = Metered([300])
    one.down.queue(memoryview(b"reply"))
    getattr(one.up, method)(OUT, 3.0)
    assert (one.client.sent, one.meter.taken, one.down.last) == ([b"reply"], [], 3.0)


def test_the_last_bytes_are_copied_as_others_and_the_end_in_the_next_step():
    one = Metered([300, 300])
    one.client.gives = [b"last", b""]
    one.up.copy(IN | END, 3.0)
    assert (one.target.sent, one.target.flags, one.calls) == ([b"last"], [0], [])
    one.up.copy(IN | END, 4.0)
    assert one.calls == [("ended", one.up, 4.0)]
    assert one.spent == [4, 0]


@pytest.mark.parametrize("method", ["copy", "splice"])
def test_without_any_quota_left_the_connection_ends(method):
    one = Metered([300], quotas=[0])
    one.client.gives = [b"one more"]
    getattr(one.up, method)(IN, 3.0)
    assert one.calls == [("used up", one.quotas[0], 3.0)]
    assert (one.client.asked, one.client.peeked, one.meter.taken) == ([], [1], [])


@pytest.mark.parametrize("method", ["copy", "splice"])
def test_an_end_needs_no_quota(method):
    one = Metered([300], quotas=[0])
    one.client.gives = [b""]
    getattr(one.up, method)(IN, 3.0)
    assert (one.calls, one.up.ended) == ([("ended", one.up, 3.0)], 3.0)


def test_an_error_is_no_end():
    one = Metered([300], quotas=[0])
    one.client.gives = [GONE]
    one.up.copy(IN, 3.0)
    assert one.calls == [("used up", one.quotas[0], 3.0)]


def test_what_came_with_a_request_is_counted_and_written_first():
    one = Metered()
    one.up.queue_first(memoryview(b"early"))
    assert (one.spent, bytes(one.up.pending)) == ([5], b"early")


def test_bulk_out_of_a_unix_socket_is_still_metered():
    one = Metered([1 << 20] * 4, family=socket.AF_UNIX)
    one.client.gives = [bytes(BUFFER)] * 4
    for _ in range(4):
        one.up.copy(IN, 3.0)
    assert one.client.asked == [BUFFER] * 4
    assert one.spent == [BUFFER] * 4


def test_large_reads_in_a_row_make_a_metered_flow_splice():
    one = Metered([1 << 20] * 3)
    one.client.gives = [bytes(BUFFER)] * 3
    for _ in range(3):
        one.up.copy(IN, 3.0)
    assert one.up.handler == one.up.splice


# -- when a meter grants something ------------------------------------------------------------------------------------


def parked(*grants, **options):
    """A flow for which a meter has to call it."""
    one = Metered([0, *grants], **options)
    one.up.handler(IN, 3.0)
    assert one.budget.is_waiting and one.mask == PRI
    return one


def test_a_parked_flow_reads_what_is_granted_and_is_watched_again():
    one = parked(300)
    one.client.gives = [b"bytes"]
    one.up.granted(4.0)
    assert (one.target.sent, one.up.last, one.mask) == ([b"bytes"], 4.0, WATCHED)
    assert one.meter.taken[1:] == [(one.up, 4.0)]
    assert one.budget.is_waiting is False


@pytest.mark.parametrize(("granted", "size"), [(300, 300), (1 << 20, BUFFER)])
def test_a_parked_flow_that_has_read_all_it_might_waits_for_its_next_turn(granted, size):
    one = parked(granted)
    one.client.gives = [bytes(size)]
    one.up.granted(4.0)
    assert (one.target.sent, one.mask) == ([bytes(size)], PRI)
    assert one.meter.taken[1:] == [(one.up, 4.0)] * 2
    assert one.budget.is_waiting is True
    one.meter.grants = [300]
    one.client.gives = [b"the rest"]
    one.up.granted(5.0)
    assert (one.target.sent[1:], one.mask, one.budget.is_waiting) == ([b"the rest"], WATCHED, False)


def test_a_parked_flow_that_has_read_all_it_might_goes_on_if_it_may():
    one = parked(300, 300)
    one.client.gives = [bytes(300)]
    one.up.granted(4.0)
    assert (one.mask, one.budget.is_waiting) == (WATCHED, False)


def test_a_parked_flow_that_was_taken_out_of_the_loop_is_watched_again():
    one = parked(300)
    one.up.set_interest(-1)
    one.client.gives = [b"bytes"]
    one.up.granted(4.0)
    assert one.mask == WATCHED


def test_a_parked_flow_keeps_waiting_for_its_own_writes():
    one = parked(300)
    one.up.set_interest(OUT)
    one.client.gives = [b"bytes"]
    one.up.granted(4.0)
    assert one.mask == WATCHED | OUT


@pytest.mark.parametrize("mask", [PRI, PRI | OUT])
def test_a_parked_flow_that_has_seen_urgent_data_copies_it_when_it_may(monkeypatch, mask):
    monkeypatch.setattr(fcntl, "ioctl", lambda *_: b"\1\0\0\0")
    one = parked(300, 300)
    one.up.set_interest(mask)
    one.up.copy(PRI, 4.0)
    assert (one.client.asked, one.mask) == ([], mask & ~PRI)
    one.client.gives = [b"!", b"after"]
    one.up.granted(4.0)
    assert (one.target.sent, one.target.flags) == ([b"!"], [socket.MSG_OOB])
    assert (one.client.asked, one.spent, one.mask) == ([1], [1], WATCHED | mask)
    one.up.copy(IN, 5.0)
    assert (one.client.asked, one.target.flags) == ([1, 300], [socket.MSG_OOB, 0])


def test_a_parked_flow_that_has_to_wait_again_is_not_watched():
    one = parked(0)
    one.up.granted(4.0)
    assert (one.mask, one.budget.is_waiting) == (PRI, True)


def test_a_parked_flow_whose_sink_is_full_is_not_watched():
    one = parked(300)
    one.client.gives = [b"bytes"]
    one.target.takes = [2]
    one.up.granted(4.0)
    assert (bytes(one.up.pending), one.mask) == (b"tes", PRI)


def test_a_parked_flow_whose_pipe_is_not_empty_is_not_watched(kernel):
    one = Metered([0, 30_000])
    one.up.use(one.up.splice)
    one.up.splice(IN, 3.0)
    kernel.results = [20_000, 5_000]
    one.up.granted(4.0)
    assert (one.up.piped, one.mask) == (15_000, PRI)


def test_a_parked_flow_whose_source_has_come_to_its_end_is_not_watched():
    one = parked(300)
    one.client.gives = [b""]
    one.up.granted(4.0)
    assert (one.calls, one.mask) == ([("ended", one.up, 4.0)], 0)


def test_a_parked_flow_that_finds_its_end_when_the_quota_is_used_up_waits_no_more():
    one = parked(300, quotas=[100])
    one.quotas[0].size = 0
    one.client.gives = [b""]
    one.up.granted(4.0)
    assert (one.calls, one.budget.is_waiting) == ([("ended", one.up, 4.0)], False)


def test_a_parked_flow_whose_read_ends_the_connection_is_not_watched():
    one = parked(300)
    one.client.gives = [GONE]
    one.up.granted(4.0)
    assert (one.calls, one.mask) == ([("failed", one.client, 4.0)], PRI)


@pytest.mark.parametrize("cause", ["closed", "ended", "not waiting"])
def test_a_grant_that_comes_too_late_is_given_back(cause):
    one = parked(300)
    one.is_closed = cause == "closed"
    one.up.ended = 3.0 if cause == "ended" else 0.0
    one.budget.is_waiting = cause != "not waiting"
    one.up.granted(4.0)
    assert one.meter.left_by == [one.up]
    assert (one.client.asked, one.mask, one.budget.is_waiting) == ([], PRI, False)


def test_a_flow_whose_bytes_are_dropped_from_now_on_leaves_its_meters():
    one = parked(300)
    one.up.use(one.up.discard)
    assert (one.meter.left_by, one.budget.is_waiting) == ([one.up], False)
    one.client.gives = [b"dropped", b""]
    one.up.discard(IN, 4.0)
    assert (one.client.asked, one.spent, one.calls) == ([BUFFER], [], [])
    one.up.discard(IN, 5.0)
    assert one.calls == [("done", 5.0)]


def test_a_read_that_makes_the_connection_drop_the_rest_is_not_followed_by_another_interest():
    one = parked(300)
    flow_ended = one.flow_ended

    def discard(flow, now):
        flow_ended(flow, now)
        one.up.ended = 0.0
        one.up.use(one.up.discard)

    one.flow_ended = discard
    one.client.gives = [b""]
    one.up.granted(4.0)
    assert (one.up.handler, one.mask) == (one.up.discard, 0)


def test_another_handler_than_that_which_drops_leaves_no_meter():
    one = Metered()
    receive = one.up.receive
    one.up.use(one.up.splice)
    assert (one.meter.left_by, one.up.receive, one.up.handler) == ([], receive, one.up.splice)


# -- splicing ---------------------------------------------------------------------------------------------------------


def splicing(*grants, quotas=()):
    one = Metered(grants, quotas=quotas)
    one.up.moved, one.up.streak = 50, 0
    one.up.use(one.up.splice)
    return one


@pytest.mark.parametrize(("granted", "asked"), [(700, 700), (30_000, 1000)])
def test_a_splice_moves_what_is_granted_and_no_more_than_the_pipe_holds(kernel, granted, asked):
    one = splicing(granted, quotas=[1 << 20])
    seen = []
    kernel.results = [600, lambda: seen.append((one.up.moved, one.up.last)) or 600]
    one.up.splice(IN, 3.0)
    assert kernel.calls == [(5, 101, asked, _NONBLOCK), (100, 6, 600, _NONBLOCK)]
    assert (seen, one.up.moved, one.up.spliced_bytes()) == ([(650, 3.0)], 650, 600)
    assert (one.spent, one.quotas[0].spent, one.meter.taken) == ([600], [600], [(one.up, 3.0)])
    assert (one.pipes.idle, one.up.pipe, one.mask) == ([Pipe(100, 101, 1000)], None, WATCHED)


def test_the_last_idle_pipe_is_the_next_one(kernel):
    one = splicing(700)
    one.pipes.make()
    one.pipes.make()
    kernel.results = [600, 600]
    one.up.splice(IN, 3.0)
    assert ([call[:2] for call in kernel.calls], one.pipes.made) == ([(5, 201), (200, 6)], 2)


@pytest.mark.parametrize(("sent", "left"), [(150, 450), (BLOCKED, 600)])
def test_what_the_sink_does_not_take_stays_in_the_pipe(kernel, sent, left):
    one = splicing(700)
    kernel.results = [600, sent]
    one.up.splice(IN, 3.0)
    assert (one.up.pipe, one.up.piped, one.pipes.idle) == (Pipe(100, 101, 1000), left, [])
    assert (one.up.moved, one.spent) == (650 - left, [600])
    assert (one.mask, one.loop.masks[6]) == (PRI, WATCHED | OUT)


def test_a_sink_that_fails_has_taken_nothing_and_the_pipe_is_closed(kernel):
    one = splicing(700)
    kernel.results = [600, GONE]
    one.up.splice(IN, 3.0)
    assert (one.up.moved, one.pipes.idle, one.pipes.destroyed) == (50, [], [Pipe(100, 101, 1000)])
    assert one.calls == [("failed", one.target, 3.0)]


def test_without_a_pipe_what_is_granted_is_copied(kernel):
    one = splicing(700, 700)
    one.pipes.can_make = False
    one.client.gives = [b"copied"]
    one.up.splice(IN, 3.0)
    assert (one.target.sent, one.up.handler, one.spent) == ([b"copied"], one.up.copy, [6])
    assert one.up.last == 3.0


def test_sockets_that_cannot_be_spliced_are_copied_from_now_on(kernel):
    one = splicing(700, 700)
    kernel.results = [REFUSED]
    one.client.gives = [b"copied"]
    one.up.splice(IN, 3.0)
    assert (one.target.sent, one.up.handler, one.up.spliceable) == ([b"copied"], one.up.copy, False)
    assert (one.spent, one.up.last) == ([0, 6], 3.0)


@pytest.mark.parametrize(("error", "is_told"), [(GONE, True), (BLOCKED, False)])
def test_a_source_that_fails_gives_back_what_was_granted(kernel, error, is_told):
    one = splicing(700)
    kernel.results = [error]
    one.up.splice(IN, 3.0)
    assert (one.spent, one.budget.allowance) == ([0], 0)
    assert one.calls == ([("failed", one.client, 3.0)] if is_told else [])


def test_the_end_of_a_source_that_is_spliced(kernel):
    one = splicing(700)
    kernel.results = [0]
    one.up.splice(IN, 3.0)
    assert (one.calls, one.spent) == ([("ended", one.up, 3.0)], [0])


@pytest.mark.parametrize(
    ("sizes", "copies"),
    [
        ([16_383] * 7, False),
        ([16_383] * 8, True),
        ([16_384] * 9, False),
        ([10] * 7 + [20_000] + [10] * 7, False),
    ],
)
def test_eight_small_splices_in_a_row_are_no_bulk(kernel, sizes, copies):
    one = splicing(*([1 << 20] * len(sizes)))
    kernel.results = [size for size in sizes for _ in range(2)]
    for _ in sizes:
        one.up.handler(IN, 3.0)
    assert one.up.handler == (one.up.copy if copies else one.up.splice)
    assert one.spent == sizes


# -- ends -------------------------------------------------------------------------------------------------------------


def test_what_came_before_a_reset_is_passed_on_and_counted_whatever_is_granted():
    one = Metered(quotas=[1])
    one.client.gives = [b"said before", BLOCKED]
    one.down.sink_failed(3.0)
    assert (one.target.sent, one.spent, one.quotas[0].spent) == ([b"said before"], [11], [11])
    assert one.client.asked == [BUFFER, BUFFER]
    assert one.meter.taken == []


@pytest.mark.parametrize("own", [True, False])
def test_a_flow_that_is_released_leaves_its_meters_and_the_loop(own):
    one = parked()
    one.up.release(own)
    assert (one.meter.left_by, one.loop.forgotten) == ([one.up], [(5, own)])
    assert not hasattr(one.up, "receive")


# -- out of a session -------------------------------------------------------------------------------------------------


class Session(Sock):
    """A session that has nothing but what the test says."""

    has_input = must_flush = needs_input = is_stalled = False


def out_of_session(*grants, quotas=()):
    one = Metered(grants, quotas=quotas)
    session = Session(5)
    work = SimpleNamespace(loop=LoopRecord(), pipes=None, throttled=0.0)
    flow = MeteredSessionFlow(one, work, session, one.target)
    flow.budget = one.budget
    flow.begin_metering()
    flow.reverse, one.down.reverse = one.down, flow
    one.client, one.up, one.loop = session, flow, work.loop
    flow.set_interest(WATCHED)
    return one


def test_a_session_is_read_by_its_budget():
    one = out_of_session(300, 0)
    one.client.gives = [b"bytes"]
    assert one.loop.handlers[5] == one.up.on_event
    one.up.on_event(IN, 3.0)
    assert (one.target.sent, one.spent, one.client.asked) == ([b"bytes"], [5], [300])
    assert not one.up.is_parked
    one.up.on_event(IN, 4.0)
    assert one.up.is_parked


def test_a_look_at_the_transport_does_not_tell_whether_a_session_has_ended():
    one = out_of_session(300, quotas=[0])
    one.client.gives = [b""]
    one.up.on_event(IN, 3.0)
    assert one.calls == [("used up", one.quotas[0], 3.0)]
    assert one.client.peeked == []
