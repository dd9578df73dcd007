"""``relay.engine.spread``: when each connection ends, with a clock of the test."""

from __future__ import annotations

import math

import pytest

from relay.engine.spread import SpreadEnd
from relay.eventloop.loop import Timers


class Connections(list["Connection"]):
    """Those that are open, and the times of the ends."""

    def __init__(self, count: int) -> None:
        super().__init__(Connection(number, self) for number in range(count))
        self.ends: list[tuple[int, float]] = []


class Connection:
    def __init__(self, number: int, owner: Connections) -> None:
        self.number, self.owner = number, owner

    def close(self, reason: str, now: float) -> None:
        assert reason == "closed"
        self.owner.remove(self)
        self.owner.ends.append((self.number, now))


def run(timers: Timers, until: float) -> None:
    """Let the timers fire, each when the loop would wake up for it."""
    while timers.first <= until:
        timers.run(timers.first)


@pytest.mark.parametrize(
    ("count", "drain", "spread", "expected"),
    [
        (5, 100.0, 50.0, [50, 60, 70, 80, 90]),
        (1, 100.0, 50.0, [50]),
        (4, 20.0, 40.0, [0, 5, 10, 15]),
        (2, 100.0, 0.5, [99.5, 99.75]),
        (3, 100.0, 0.0, []),
    ],
    ids=["the last part", "one", "longer than the drain", "less than a second", "none"],
)
def test_they_end_at_equal_distances(count: int, drain: float, spread: float, expected: list[float]) -> None:
    connections, timers = Connections(count), Timers()
    SpreadEnd(lambda: connections, timers).start(drain, spread, 0.0)
    assert (timers.first == math.inf) == (spread == 0)
    run(timers, drain)
    assert [number for number, _ in connections.ends] == list(range(count if spread else 0))
    assert [now for _, now in connections.ends] == pytest.approx(expected, abs=0.2)


def test_thousands_end_ten_times_a_second() -> None:
    connections, timers = Connections(3000), Timers()
    SpreadEnd(lambda: connections, timers).start(100.0, 30.0, 0.0)
    run(timers, 100.0)
    times = [now for _, now in connections.ends]
    assert 250 <= len(set(times)) <= 300
    assert max(sum(now == one for now in times) for one in set(times)) <= 20
    assert not connections and times[0] >= 70.0


def test_those_that_end_by_themselves_leave_more_time_to_the_others() -> None:
    connections, timers = Connections(10), Timers()
    SpreadEnd(lambda: connections, timers).start(100.0, 100.0, 0.0)
    run(timers, 1.0)
    del connections[2:]
    run(timers, 100.0)
    assert [now for _, now in connections.ends] == pytest.approx([0, 10, 55], abs=0.2)


def test_a_second_call_replaces_the_first_and_stop_ends_nothing_more() -> None:
    connections, timers = Connections(4), Timers()
    spread = SpreadEnd(lambda: connections, timers)
    spread.start(1000.0, 100.0, 0.0)
    spread.start(40.0, 40.0, 0.0)
    run(timers, 15.0)
    assert [now for _, now in connections.ends] == pytest.approx([0, 10], abs=0.2)
    spread.stop()
    run(timers, 1000.0)
    assert len(connections) == 2


@pytest.mark.parametrize("late", [0.0, 5.0])
def test_at_the_deadline_it_ends_none(late: float) -> None:
    connections, timers = Connections(3), Timers()
    SpreadEnd(lambda: connections, timers).start(100.0, 20.0, 0.0)
    timers.run(100.0 + late)
    assert (len(connections), timers.first) == (3, math.inf)


def test_when_all_have_ended_by_themselves_it_is_over(caplog: pytest.LogCaptureFixture) -> None:
    connections, timers = Connections(3), Timers()
    SpreadEnd(lambda: connections, timers).start(100.0, 20.0, 0.0)
    connections.clear()
    run(timers, 100.0)
    assert (timers.first, caplog.text) == (math.inf, "")
