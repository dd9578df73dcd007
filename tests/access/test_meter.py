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
    clock.run(3600.0)
    reader = Reader(meter)
    reader.granted(clock.now)
    clock.run(1.0)
    assert reader.read <= 1.125e6


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
