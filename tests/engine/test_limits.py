"""Which limits can be, when a connection is looked at, and which limit ends it."""

from __future__ import annotations

import math
from decimal import Decimal
from types import SimpleNamespace

import pytest

from relay.engine.limits import ConnectionDeadline, Limits
from relay.engine.options import TunnelOptions
from relay.engine.records import ConnectionState
from relay.eventloop.loop import Timers
from relay.eventloop.poller import READ
from relay.streams.checks import check_count, check_time
from relay.streams.proxy_handshake import HandshakeReader

NUMBER = "idle_timeout: expected a number of seconds or None"
POSITIVE = "idle_timeout: must be greater than 0, got"


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        *[(1, 1.0), (0.5, 0.5), (Decimal("2.5"), 2.5), (None, None), (math.inf, None)],
        *((given, NUMBER) for given in (True, "60", b"60", [])),
        *((given, POSITIVE) for given in (-1, -0.001, math.nan, -math.inf, 0)),
        (10**5000, "idle_timeout: number too large; use None"),
    ],
    ids=range(15),
)
def test_a_time_is_a_positive_number_of_seconds_or_none(given, taken):
    if isinstance(taken, str):
        with pytest.raises(TypeError if taken == NUMBER else ValueError, match=taken):
            check_time("idle_timeout", given)
    else:
        assert check_time("idle_timeout", given) == taken


def test_zero_is_allowed_where_it_means_something():
    assert check_time("linger", 0, zero=True) == 0.0
    with pytest.raises(ValueError, match="at least 0"):
        check_time("linger", -1, zero=True)


@pytest.mark.parametrize(("given", "error"), [(0, ValueError), (-2, ValueError), (1.0, TypeError), (True, TypeError)])
def test_a_count_is_positive_or_minus_one(given, error):
    assert (check_count(-1), check_count(7)) == (-1, 7)
    with pytest.raises(error, match="nconnect"):
        check_count(given)


@pytest.mark.parametrize(
    ("limits", "first"),
    [
        ((None, 30, None, None), None),
        ((3600, 30, 600, 60), 60),
        ((5, 30, 600, 60), 5),
        ((None, 30, 2, 0), 2),
        ((None, None, None, 1), 1),
        ((None, None, None, 0.9), None),
        ((None, None, 5, 0.9), 5),
        ((None, None, 5, None, 3), 3),
        ((None, None, None, None, 0.3), 0.3),
    ],
)
def test_the_first_look_is_at_the_shortest_limit_that_matters(limits, first):
    assert Limits(*limits).first_check == first


@pytest.mark.parametrize(
    ("lifetime", "connect", "limit", "handshake"),
    [(None, None, None, 30), (60, None, 60, 60), (None, 40, 40, 40), (60, 40, 40, 40), (7, 40, 7, 7)],
)
def test_a_connect_and_a_handshake_have_the_time_of_the_shorter_limit(lifetime, connect, limit, handshake):
    limits = Limits(lifetime, connect, 3, 2)
    assert (limits.lifetime, limits.connect, limits.idle, limits.linger) == (lifetime, connect, 3, 2)
    assert (limits.connect_limit, limits.handshake) == (limit, handshake)


class CountedTimers(Timers):
    """Timers that count how often a deadline was set, which costs something."""

    def __init__(self):
        super().__init__()
        self.sets = 0

    def set(self, item, due, now):
        self.sets += 1
        super().set(item, due, now)


Terms = tuple[float | None, ...]  # those of Limits

STARTED = 100.0  # when the connection was accepted
OPENED = 110.0


class Subject:
    """A connection whose state the test sets, and its deadline."""

    def __init__(
        self,
        state,
        limits,
        *,
        pending=None,
        half_close=True,
        last=(0.0, 0.0),
        ended=(0.0, 0.0),
        first=(0.0, 0.0),
        masks=(READ, READ),
    ):
        self.state = state
        self.summary = SimpleNamespace(started=STARTED, opened=OPENED)
        self.pending = pending
        self.client_stream = SimpleNamespace(half_close=half_close)
        self.queued = (0, 0)
        self.flows = None
        if state in (ConnectionState.OPEN, ConnectionState.HALF_CLOSED, ConnectionState.DISCARDING):
            up, down = (
                SimpleNamespace(last=last[side], ended=ended[side], first=first[side], mask=masks[side])
                for side in range(2)
            )
            up.reverse, down.reverse = down, up
            self.flows = SimpleNamespace(upstream=up, downstream=down, unsent=lambda: self.queued)
        self.ends: list[tuple[str, float]] = []
        self.timers = CountedTimers()
        self.deadline = ConnectionDeadline(self, Limits(*limits), self.timers)

    def limit_reached(self, reason, now):
        self.ends.append((reason, now))

    def close(self, reason, now):
        self.ends.append((reason, now))

    @property
    def due(self) -> float | None:
        """The time of the next look, if there is one."""
        if not self.deadline.tick:
            assert self.timers.first == math.inf
            return None
        return self.deadline.due

    def look(self, now):
        """Let the timers look at this time, as the loop does."""
        self.timers.run(now)


def begun(begun) -> HandshakeReader:
    reader = HandshakeReader.__new__(HandshakeReader)
    reader.begun = begun
    return reader


S = ConnectionState
NONE = (None, None, None, None)


def test_the_options_of_a_tunnel_and_its_limits():
    options = TunnelOptions(timeout=1, connect_timeout=2, idle_timeout=3, linger=4, first_byte_timeout=5)
    limits = Limits.of(options)
    assert (limits.lifetime, limits.connect, limits.idle, limits.linger, limits.first_byte) == (1, 2, 3, 4, 5)


@pytest.mark.parametrize(
    ("state", "limits", "options", "due", "reason"),
    [
        (S.REQUESTING, NONE, {}, 110, "connect_timeout"),
        (S.REQUESTING, NONE, {"pending": begun(False)}, 110, "connect_timeout"),
        (S.REQUESTING, NONE, {"pending": begun(True)}, 130, "connect_timeout"),
        (S.REQUESTING, (None, 5, None, None), {}, 105, "connect_timeout"),
        (S.REQUESTING, (None, 20, None, None), {"pending": begun(True)}, 120, "connect_timeout"),
        (S.REQUESTING, (None, 20, None, None), {"pending": SimpleNamespace(begun=True)}, 110, "connect_timeout"),
        (S.ADMITTING, NONE, {}, None, None),
        (S.ADMITTING, (None, 40, 1, 1), {}, 140, "connect_timeout"),
        (S.QUEUED, (None, 40, 1, 1), {}, 140, "connect_timeout"),
        (S.CONNECTING, (None, 40, 1, 1), {}, 140, "connect_timeout"),
        (S.CONNECTING, (30, 40, 1, 1), {}, 130, "lifetime"),
        (S.CONNECTING, (30, None, 1, 1), {}, 130, "lifetime"),
        (S.REPLYING, (None, 40, 1, 1), {}, 140, "connect_timeout"),
        (S.TARPIT, (30, 20, 1, 1), {}, 130, "lifetime"),
        (S.OPEN, (None, 40, None, 1), {}, None, None),
        (S.OPEN, (None, 40, 20, 1), {}, 130, "idle"),
        (S.OPEN, (None, 40, 20, 1), {"last": (120, 115)}, 140, "idle"),
        (S.OPEN, (None, 40, 20, 1), {"last": (115, 121)}, 141, "idle"),
        (S.OPEN, (45, 40, 20, 1), {"last": (115, 130)}, 145, "lifetime"),
        (S.OPEN, (None, 1, None, 1, 20), {"last": (125, 0)}, 145, "unreachable"),
        (S.OPEN, (None, 1, None, 1, 20), {"first": (120, 0), "last": (125, 0)}, 140, "unreachable"),
        (S.OPEN, (None, 1, None, 1, 20), {"last": (125, 126)}, None, None),
        (S.OPEN, (None, 1, 50, 1, 20), {"last": (125, 0)}, 145, "unreachable"),
        (S.OPEN, (None, 1, 10, 1, 20), {"last": (125, 0)}, 135, "idle"),
        (S.HALF_CLOSED, (None, 1, None, 30, 20), {"ended": (126, 0), "last": (125, 0)}, 145, "unreachable"),
        (S.HALF_CLOSED, (None, 1, None, 15, 20), {"ended": (126, 0), "last": (125, 0)}, 141, "linger"),
        (S.HALF_CLOSED, (None, 1, None, None, 20), {"ended": (0, 126), "last": (125, 0)}, None, None),
        (S.DISCARDING, (None, 1, None, 5, 1), {"ended": (130, 0), "last": (125, 0)}, 135, "done"),
        (S.HALF_CLOSED, NONE, {"ended": (130, 0)}, None, None),
        (S.HALF_CLOSED, (None, 1, None, 20), {"ended": (130, 0)}, 150, "linger"),
        (S.HALF_CLOSED, (None, 1, None, 20), {"ended": (0, 131)}, 151, "linger"),
        (S.HALF_CLOSED, (None, 1, None, 20), {"ended": (130, 0), "last": (125, 135)}, 155, "linger"),
        (S.HALF_CLOSED, (None, 1, None, 20), {"ended": (0, 130), "last": (136, 125)}, 156, "linger"),
        (S.HALF_CLOSED, (None, 1, 10, 20), {"ended": (130, 0), "last": (125, 120)}, 135, "idle"),
        (S.HALF_CLOSED, (None, 1, None, 0), {"ended": (130, 0)}, 130, "linger"),
        (S.DISCARDING, NONE, {"ended": (130, 120)}, 131, "done"),
        (S.DISCARDING, NONE, {"ended": (120, 132)}, 133, "done"),
        (S.DISCARDING, (None, 1, None, 5), {"ended": (130, 0)}, 135, "done"),
        (S.DISCARDING, (None, 1, 3, 50), {"ended": (130, 0), "last": (125, 126)}, 129, "idle"),
    ],
    ids=lambda value: value.text if isinstance(value, ConnectionState) else None,
)
def test_each_state_has_its_limit(state, limits, options, due, reason):
    subject = Subject(state, limits, **options)
    subject.deadline.update(STARTED)
    assert subject.due == due
    if due is None:
        subject.deadline.expire(1e6)
        assert (subject.due, subject.ends) == (None, [])
        return
    subject.deadline.expire(due - 0.001)
    assert subject.ends == []
    subject.deadline.expire(due)
    assert subject.ends == [(reason, due)]


@pytest.mark.parametrize(
    ("half_close", "ended", "last", "due"),
    [
        (False, (0, 130), (100, 100), 130.0),
        (False, (0, 130), (100, 129.9), 130.15),  # not too near to the last byte of the target
        (False, (0, 130), (129.5, 100), 130.5),  # the client may still send
        (True, (0, 130), (129.5, 129.9), None),
        (False, (130, 0), (129.5, 129.9), None),  # it is the target that has not ended
    ],
)
def test_the_end_of_a_target_is_held_back_from_a_client_without_half_close(half_close, ended, last, due):
    subject = Subject(S.HALF_CLOSED, NONE, half_close=half_close, ended=ended, last=last)
    subject.deadline.update(130.0)
    assert subject.due == pytest.approx(due)
    if due is not None:
        subject.look(135.0)
        assert subject.ends == [("done", 135.0)]


def test_the_end_of_a_target_is_not_held_back_from_a_client_without_a_stream():
    subject = Subject(S.HALF_CLOSED, NONE, ended=(0, 130))
    subject.client_stream = None
    subject.deadline.update(130.0)
    assert subject.due is None


@pytest.mark.parametrize(("connect", "due"), [(None, 115), (4, 109)])
def test_a_client_has_a_while_for_the_first_byte_of_its_request(connect, due):
    subject = Subject(S.REQUESTING, (None, connect, None, None))
    subject.deadline.start_request(105.0)
    assert subject.due == due


@pytest.mark.parametrize(("connect", "due"), [(None, None), (40, 140)])
def test_a_connect_has_a_while_from_the_acceptance(connect, due):
    subject = Subject(S.CONNECTING, (None, connect, None, None))
    subject.deadline.start_connecting(STARTED, 105.0)
    assert subject.due == due


def test_an_open_connection_without_limits_is_never_looked_at():
    subject = Subject(S.OPEN, (None, 40, None, 0.5))
    subject.deadline.start_open(OPENED)
    subject.deadline.update(OPENED)
    assert (subject.due, subject.timers.sets) == (None, 0)


@pytest.mark.parametrize("method", ["start_open", "update"])
@pytest.mark.parametrize(("before", "sets"), [(None, 1), (119.0, 0), (120.0, 0), (121.0, 1)])
def test_a_look_that_is_due_earlier_costs_nothing_more(method, before, sets):
    subject = Subject(S.OPEN, (None, None, 10, None))
    if before is not None:
        subject.deadline._set(before, OPENED)
    subject.timers.sets = 0
    getattr(subject.deadline, method)(OPENED)
    assert (subject.due, subject.timers.sets) == (120.0 if sets else before, sets)


@pytest.mark.parametrize("method", ["start_open", "update", "update_linger"])
def test_a_look_that_is_over_is_no_look_that_is_due(method):
    subject = Subject(S.HALF_CLOSED, (None, None, None, 10), ended=(OPENED, 0))
    subject.deadline._set(105.0, STARTED)
    subject.deadline.stop()
    getattr(subject.deadline, method)(OPENED)
    assert subject.due == 120.0


@pytest.mark.parametrize(
    ("linger", "before", "due", "sets"),
    [(None, 200.0, 200.0, 0), (10, None, 120.0, 1), (10, 119.0, 119.0, 0), (10, 120.0, 120.0, 0), (10, 121, 120.0, 1)],
)
def test_the_end_of_one_direction_brings_a_look_nearer_only_if_it_lingers(linger, before, due, sets):
    subject = Subject(S.HALF_CLOSED, (None, None, None, linger), ended=(OPENED, 0))
    if before is not None:
        subject.deadline._set(before, OPENED)
    subject.timers.sets = 0
    subject.deadline.update_linger(OPENED)
    assert (subject.due, subject.timers.sets) == (due, sets)


def test_without_linger_the_end_of_one_direction_brings_no_look_though_another_limit_does():
    subject = Subject(S.HALF_CLOSED, (None, None, 10, None), ended=(OPENED, 0))
    subject.deadline.update_linger(OPENED)
    assert subject.due is None


def test_another_limit_of_time_without_traffic_leaves_the_others():
    subject = Subject(S.OPEN, (90, 40, None, 7))
    subject.deadline.change_idle(20.0, OPENED)
    limits = subject.deadline.limits
    assert (limits.lifetime, limits.connect, limits.idle, limits.linger) == (90, 40, 20.0, 7)
    assert subject.due == 130.0


def test_another_limit_of_time_without_traffic_brings_no_look_at_what_is_not_open():
    subject = Subject(S.CONNECTING, (90, 40, None, 7))
    subject.deadline.change_idle(20.0, OPENED)
    assert (subject.deadline.limits.idle, subject.due) == (20.0, None)
    subject.deadline.release()
    subject.deadline.change_idle(30.0, OPENED)
    assert (subject.deadline.limits.idle, subject.due) == (30.0, None)


def test_a_deadline_that_is_stopped_or_released_looks_no_more():
    subject = Subject(S.OPEN, (90, 40, 20, 7))
    subject.deadline.start_open(OPENED)
    subject.deadline.stop()
    assert subject.deadline.tick == 0
    subject.deadline.start_open(OPENED)
    assert subject.due == 117.0
    subject.deadline.release()
    assert subject.deadline.tick == 0
    subject.deadline.expire(1000.0)
    subject.deadline.crashed(1000.0)
    assert subject.ends == []


@pytest.mark.parametrize(
    ("limits", "linger_at", "due"),
    [
        ((60, None, None, None), None, 160.0),  # from the acceptance
        ((None, None, 60, None), None, 170.0),
        ((None, None, None, 60), None, None),  # none has to come before an end
        ((None, None, 60, 60), 112.0, 170.0),
        ((None, None, 200, 60), 112.0, 172.0),
    ],
)
def test_a_limit_that_is_far_has_a_deadline_once_the_thread_has_looked_at_the_connection(
    limits: Terms, linger_at: float | None, due: float | None
) -> None:
    assert not Limits(*limits).come_soon, "a connection that ends soon costs no timer"
    subject = Subject(S.OPEN, limits)
    if linger_at is not None:
        subject.state, subject.flows.upstream.ended = S.HALF_CLOSED, linger_at
    subject.deadline.update(115.0)
    assert subject.due == due
    subject.deadline.update(116.0)
    assert subject.due == due, "a second look changes nothing"


@pytest.mark.parametrize("linger", [0, 2, 14])
def test_a_limit_that_comes_before_this_look_has_a_deadline_at_once(linger: float) -> None:
    assert Limits(60, None, None, linger).come_soon
    subject = Subject(S.OPEN, (60, None, None, linger))
    subject.deadline.start_open(OPENED)
    subject.state, subject.flows.upstream.ended = S.HALF_CLOSED, 111.0
    subject.deadline.update_linger(111.0)
    assert subject.due is not None
    assert subject.due <= 111.0 + linger
    subject.look(112.0 + linger)
    assert subject.ends == [("linger", 112.0 + linger)]


def test_a_connection_that_has_ended_is_not_looked_at() -> None:
    subject = Subject(S.OPEN, (60, None, None, None))
    subject.deadline.start_open(OPENED)
    subject.deadline.release()
    assert subject.timers.first == math.inf


def test_bytes_that_have_moved_postpone_the_limit_at_the_next_look() -> None:
    subject = Subject(S.OPEN, (None, None, 20, None))
    subject.deadline.update(OPENED)
    assert subject.due == 130.0
    subject.flows.upstream.last = 125.0
    subject.look(131.0)
    assert (subject.due, subject.ends) == (145.0, [])
    subject.look(146.0)
    assert subject.ends == [("idle", 146.0)]


@pytest.mark.parametrize(
    ("state", "limits", "reason"),
    [(S.OPEN, (None, None, 20, None), "idle"), (S.HALF_CLOSED, (None, None, None, 20), "linger")],
)
@pytest.mark.parametrize("queued", [(5, 0), (0, 5), (1, 0), (0, 1)])
def test_bytes_that_still_leave_the_kernel_postpone_the_limit(state, limits, reason, queued):
    subject = Subject(state, limits, ended=(OPENED, 0))
    subject.deadline.update(OPENED)
    assert subject.due == 130.0
    subject.queued = queued
    subject.look(131.0)
    assert (subject.due, subject.ends) == (151.0, []), "the first look has nothing to compare with"
    subject.queued = (queued[0] * 2, queued[1] * 2)
    subject.look(152.0)
    assert (subject.due, subject.ends) == (172.0, []), "some have left, and others have come"
    subject.look(173.0)
    assert subject.ends == [(reason, 173.0)], "none has left since"


def test_the_time_without_traffic_begins_with_the_opening():
    subject = Subject(S.OPEN, (None, None, 20, None))
    subject.summary.opened = 0.0
    subject.deadline.update(0.0)
    assert subject.due == 20.0


def test_bytes_that_have_all_left_the_kernel_postpone_nothing():
    subject = Subject(S.OPEN, (None, None, 20, None))
    subject.deadline.update(OPENED)
    subject.queued = (5, 5)
    subject.look(131.0)
    subject.queued = (0, 0)
    subject.look(152.0)
    assert subject.ends == [("idle", 152.0)]


@pytest.mark.parametrize(
    ("state", "limits", "reason"),
    [
        (S.OPEN, (20, None, None, None), "lifetime"),
        (S.HALF_CLOSED, (None, None, None, 0), "linger"),
        (S.DISCARDING, (None, None, None, 20), "done"),
    ],
)
def test_bytes_in_the_kernel_postpone_no_other_limit(state, limits, reason):
    subject = Subject(state, limits, ended=(STARTED, 0))
    subject.queued = (5, 0)
    subject.deadline.expire(120.0)
    assert subject.ends == [(reason, 120.0)]


def test_without_linger_bytes_in_the_kernel_postpone_idle_all_the_same():
    subject = Subject(S.HALF_CLOSED, (None, None, 20, None), ended=(STARTED, 0))
    subject.queued = (5, 0)
    subject.deadline.expire(130.0)
    assert (subject.due, subject.ends) == (150.0, [])


@pytest.mark.parametrize("options", [{}, {"last": (125.0, 0.0), "masks": (READ, 0)}], ids=["no byte", "parked"])
def test_there_is_no_limit_of_the_first_byte_before_it_is_asked_for_and_read(options):
    """The client has sent nothing, or a limit of bandwidth keeps relay itself from reading the answer."""
    subject = Subject(S.OPEN, (None, None, None, None, 20), **options)
    subject.deadline.update(130.0)
    for due in (150, 170, 190):
        assert subject.due == due
        subject.deadline.expire(due)
    assert subject.ends == []
    up, down = subject.flows.upstream, subject.flows.downstream
    up.last, down.mask = 195.0, READ
    subject.deadline.expire(210)
    assert (subject.due, subject.ends) == (215, [])
    subject.deadline.expire(215)
    assert subject.ends == [("unreachable", 215)]


def test_a_bug_ends_the_connection():
    subject = Subject(S.OPEN, NONE)
    subject.deadline.crashed(120.0)
    assert subject.ends == [("factory_error", 120.0)]
