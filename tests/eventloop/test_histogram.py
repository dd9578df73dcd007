"""``relay.eventloop.histogram``: durations, counted by size."""

from __future__ import annotations

from relay.eventloop.histogram import Durations


def test_durations_are_counted_by_size() -> None:
    durations = Durations((0.1, 1.0))
    assert durations.counted == ((0, 0, 0), 0.0)
    durations.add([1.5, 0.25, 0.1])
    before = durations.counted
    durations.add([1.0])
    assert durations.counted == ((1, 2, 1), 2.85)
    assert before == ((1, 1, 1), 1.85), "what was read does not change"
