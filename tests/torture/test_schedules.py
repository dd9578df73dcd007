"""One schedule through each relay, and a small one under faults; ``make torture`` runs many."""

from __future__ import annotations

import pytest

from .__main__ import Result, run
from .faulty import FAULTY
from .model import Direction, ModelError, pattern
from .relays import RELAYS


@pytest.mark.parametrize("name", RELAYS)
def test_no_byte_is_lost_or_mixed_up(name):
    result = Result()
    run(name, 20, 30, 400, result, lambda text: None)
    assert result.connections == 30


@pytest.mark.parametrize("name", FAULTY)
def test_faults_of_system_calls_lose_no_byte(name):
    result = Result()
    run(name, 20, 60, 800, result, lambda text: None)
    assert sum(count for kind, count in result.faults.items() if kind != "calls") > 0


# -- the model would see it ------------------------------------------------------------------------------------------


def direction(sent=100):
    made = Direction(3, "connection 1, up")
    made.on_sent(sent)
    return made


def test_the_right_bytes_are_right():
    made = direction()
    made.on_received(bytes(pattern(3, 0, 60)))
    made.on_received(bytes(pattern(3, 60, 40)))
    made.is_ended = True
    made.on_eof()
    assert made.is_over


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (bytes(pattern(3, 1, 50)), "wrong bytes"),  # one is lost
        (bytes(pattern(3, 0, 1)) + bytes(pattern(3, 0, 49)), "wrong bytes"),  # one is doubled
        (bytes(pattern(5, 0, 50)), "wrong bytes"),  # those of another connection
        (bytes(pattern(3, 0, 101)), "1 bytes more than the 100"),
    ],
)
def test_wrong_bytes_are_seen(data, problem):
    with pytest.raises(ModelError, match=problem):
        direction().on_received(data)


def test_a_cut_that_looks_whole_is_seen():
    made = direction()
    made.on_received(bytes(pattern(3, 0, 60)))
    with pytest.raises(ModelError, match="the sender has not ended"):
        made.on_eof()
    made.is_ended = True
    with pytest.raises(ModelError, match="60 of 100 bytes: a cut that looks whole"):
        made.on_eof()


def test_a_reset_needs_a_cause():
    made = direction()
    with pytest.raises(ModelError, match="without a cause"):
        made.on_reset()
    made.is_excused = True
    made.on_reset()
    assert made.is_over
