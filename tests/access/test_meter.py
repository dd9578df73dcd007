"""The shared bandwidth, on a clock of its own: exact over ten seconds, and fair."""

from __future__ import annotations

import pytest

from relay.access.meter import Meter
from relay.eventloop.loop import Timers


class Clock:
    """The turns of a loop, as far as its timers go."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.timers = Timers()

    def run(self, seconds: float) -> None:
        """Advance from deadline to deadline."""
        end = self.now + seconds
        while self.timers.first <= end:
            self.now = max(self.now, self.timers.first)
            self.timers.run(self.now)
        self.now = end


class Reader:
    """A flow that has bytes always, or ``size`` of them after each ``pause``."""

    def __init__(self, meter: Meter, most: int = 65536) -> None:
        self.meter = meter
        self.most = most
        self.read = 0
        self.longest = 0.0
        self._last: float | None = None

    def granted(self, now: float) -> None:
        if self._last is not None:
            self.longest = max(self.longest, now - self._last)
        self._last = now
        while size := self.meter.take(self, now):
            size = min(size, self.most)
            self.meter.spend(self, size)
            self.read += size


@pytest.mark.parametrize("rate", [1e3, 50e3, 2e6, 100e6, 1e9])
@pytest.mark.parametrize("count", [1, 2, 7, 100])
def test_within_five_per_cent_over_ten_seconds_and_fair(rate: float, count: int) -> None:
    clock = Clock()
    meter = Meter(rate, clock.timers)
    readers = [Reader(meter, 65536 if number % 2 else 1 << 20) for number in range(count)]
    for reader in readers:
        reader.granted(clock.now)
    clock.run(10.0)
    assert sum(reader.read for reader in readers) == pytest.approx(rate * 10, rel=0.05)
    if rate / count >= 100:
        assert min(reader.read for reader in readers) >= rate * 10 / count / 2
        assert max(reader.longest for reader in readers) < 1.0


def test_a_flow_that_comes_late_gets_its_share_at_once() -> None:
    clock = Clock()
    meter = Meter(1e6, clock.timers)
    first, second = Reader(meter), Reader(meter)
    first.granted(clock.now)
    clock.run(5.0)
    before = first.read
    second.granted(clock.now)
    clock.run(5.0)
    assert second.read == pytest.approx(2.5e6, rel=0.1) and first.read - before == pytest.approx(2.5e6, rel=0.1)


def test_a_quiet_time_saves_no_more_than_the_bucket_holds() -> None:
    clock = Clock()
    meter = Meter(1e6, clock.timers)
    reader = Reader(meter)
    meter.take(reader, clock.now)
    meter.spend(reader, 0)
    clock.run(3600.0)
    reader.granted(clock.now)
    clock.run(1.0)
    assert reader.read <= 1.125e6


class OneTurn:
    """A flow that reads all of each turn, but asks for no other one."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter
        self.turns: list[int] = []

    def granted(self, now: float) -> None:
        self.turns.append(self.meter.take(self, now))
        self.meter.spend(self, self.turns[-1])


def test_a_flow_that_reads_less_at_once_goes_on_with_its_turn_before_the_others() -> None:
    clock = Clock()
    meter = Meter(1e9, clock.timers)
    order: list[str] = []

    class Named(Reader):
        def granted(self, now: float) -> None:
            order.append("small" if self.most == 1 << 16 else "large")
            size = min(meter.take(self, now), self.most)
            meter.spend(self, size)
            meter.take(self, now)

    flows = [Named(meter, 1 << 16), Named(meter, 1 << 20)]
    meter.spend(flows[0], int(1e9))
    assert not any(meter.take(flow, clock.now) for flow in flows)
    clock.run(0.9)
    assert order[:34] == (["small"] * 16 + ["large"]) * 2


@pytest.mark.parametrize(
    ("size", "event", "is_first"),
    [(1, "", True), (1 << 16, "", True), (0, "", False), (1, "leave", False), (1, "take", False)],
)
def test_what_is_left_of_a_turn_is_kept_while_others_wait(size: int, event: str, is_first: bool) -> None:
    clock = Clock()
    meter = Meter(1e7, clock.timers)
    served: list[int] = []

    class Numbered:
        def __init__(self, number: int) -> None:
            self.number = number

        def granted(self, now: float) -> None:
            served.append(self.number)

    one, other, last = (Numbered(number) for number in range(3))
    meter.spend(one, int(1e7))
    meter.take(one, clock.now)
    while not served:
        clock.run(0.001)
    meter.spend(other, int(1e7))
    assert not meter.take(last, clock.now)
    meter.spend(one, size)  # while the last one waits
    for flow in (last, *([one] if event == "leave" else [])):
        meter.leave(flow)
    if event == "take":  # no other flow waits now, so it has a whole turn
        clock.run(1.0)
        assert meter.take(one, clock.now) == 625_000
        meter.spend(one, 625_000)
    meter.spend(last, int(2e7))
    served.clear()
    for flow in (last, one):
        meter.take(flow, clock.now)
    clock.run(4.0)
    assert served[:2] == ([0, 2] if is_first else [2, 0])


def test_the_bucket_holds_two_turns() -> None:
    meter = Meter(1e6, Timers())
    flow = OneTurn(meter)
    for _ in range(2):
        assert meter.take(flow, 1000.0) == meter.take(flow, 1000.0) == 62_500  # the same turn, as none of it was read
        meter.spend(flow, 62_500)
    assert meter.level == (0.0, 1000.0)
    assert meter.take(flow, 1000.0) == 0


@pytest.mark.parametrize(
    ("rate", "count", "size"),
    [
        (1e6, 1, 62_500),  # a sixteenth of a second
        (1e6, 3, 62_500),
        (1e6, 9, 25_000),  # the tenth part of a quarter of a second
        (1e3, 99, 32),  # no less
        (1e9, 1, 1 << 20),  # no more
        (1e9, 2, 1 << 20),
        (2e6, 1, 125_000),
        (2e6, 2, 66_666),  # the third part of a tenth of a second
        (5e6, 9, 1 << 16),
        (1e8, 9, 1_000_000),  # the tenth part of a tenth of a second
    ],
)
def test_a_turn_is_short_if_many_wait(rate: float, count: int, size: int) -> None:
    clock = Clock()
    meter = Meter(rate, clock.timers)
    first, *_ = flows = [OneTurn(meter) for _ in range(count)]
    meter.spend(first, int(rate))  # no flow is served for about a second
    assert not any(meter.take(flow, clock.now) for flow in flows)
    clock.run(2.0)
    assert first.turns == [size]


def test_a_loop_that_is_late_serves_as_many_as_the_bucket_holds() -> None:
    timers = Timers()
    meter = Meter(1e6, timers)
    flows = [OneTurn(meter) for _ in range(2)]
    for times, begin in ((1, 1000.0), (2, 1010.0)):  # the second time, no flow is waiting any more
        meter.take(flows[0], begin)
        meter.spend(flows[0], 125_000)
        assert not any(meter.take(flow, begin) for flow in flows)
        timers.run(begin + 5.0)
        assert [flow.turns for flow in flows] == [[62_500] * times] * 2


def test_another_meter_continues_where_the_one_before_was() -> None:
    before, timers = Meter(1e6, Timers()), Timers()
    flow = OneTurn(before)
    before.take(flow, 1000.0)
    before.spend(flow, 125_000)
    after = Meter(1e6, timers, before.level)
    assert after.take(flow, 1000.03) == 0
    assert (after.level, timers.first) == ((pytest.approx(30_000), 1000.03), pytest.approx(1000.0625))


def test_what_is_read_without_a_grant_counts_also_before_the_first_one() -> None:
    meter = Meter(1e6, Timers())
    flow = OneTurn(meter)
    meter.spend(flow, 100_000)
    assert meter.take(flow, 1000.0) == 0
    assert meter.level == (25_000.0, 1000.0)


def test_what_is_given_back_can_be_taken_at_once() -> None:
    meter = Meter(1e6, Timers())
    flows = [OneTurn(meter) for _ in range(3)]
    assert meter.take(flows[0], 1000.0) == 62_500
    assert meter.take(flows[1], 1001.0) == 62_500  # the bucket was full again
    for flow in (*flows[:2], *flows):
        meter.leave(flow)
    assert meter.level == (187_500.0, 1001.0)
    assert [meter.take(flow, 1001.0) for flow in flows] == [62_500] * 3


def test_who_waits_is_served_though_another_one_leaves() -> None:
    clock = Clock()
    meter = Meter(1e6, clock.timers)
    flows = [OneTurn(meter) for _ in range(3)]
    meter.spend(flows[0], 125_000)
    assert not any(meter.take(flow, clock.now) for flow in flows)
    meter.leave(flows[1])
    clock.run(1.0)
    assert [flow.turns for flow in flows] == [[62_500], [], [62_500]]


def test_what_was_read_beyond_the_grant_is_waited_for() -> None:
    clock = Clock()
    meter = Meter(1e6, clock.timers)
    reader = Reader(meter)
    meter.take(reader, clock.now)
    meter.spend(reader, 1_000_000)
    reader.granted(clock.now)
    clock.run(0.8)
    assert reader.read == 0
    clock.run(0.3)
    assert 0 < reader.read < 300_000


def test_a_flow_that_leaves_gives_back_its_grant_and_its_turn() -> None:
    clock = Clock()
    meter = Meter(1e6, clock.timers)
    granted, waits, stays = Reader(meter), Reader(meter), Reader(meter)
    while meter.take(granted, clock.now) and meter._tokens > 0:
        meter.spend(granted, 1000)
    assert meter.take(waits, clock.now) == 0 == meter.take(waits, clock.now)
    for reader in (granted, waits, waits):
        meter.leave(reader)
    assert clock.timers.first == float("inf")
    stays.granted(clock.now)
    clock.run(1.0)
    assert waits.read == 0 and stays.read > 900_000


def test_another_rate_holds_from_now_on() -> None:
    clock = Clock()
    meter = Meter(1e3, clock.timers)
    reader = Reader(meter)
    reader.granted(clock.now)
    clock.run(1.0)
    meter.change(1e6)
    clock.run(1.0)
    assert reader.read == pytest.approx(1e6, rel=0.1)


def test_many_flows_are_served_in_parts_between_which_the_loop_turns() -> None:
    timers, served = Timers(), []
    meter = Meter(1e6, timers)

    class Flow:
        def granted(self, now: float) -> None:
            served.append(self)
            meter.spend(self, meter.take(self, now))

    flows = [Flow() for _ in range(1000)]
    assert meter.take(flows[0], 0.0) > 0
    meter.spend(flows[0], 125_000)
    assert not any(meter.take(flow, 0.0) for flow in flows)
    now, turns = 10.0, 0  # the loop is late, and the bucket full
    while len(served) < 400:
        before, turns = len(served), turns + 1
        timers.run(now)
        assert len(served) - before <= 100
        now += 0.002
    assert turns < 9
    assert served == flows[: len(served)]
