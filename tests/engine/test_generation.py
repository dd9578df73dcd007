"""Generations of connections: when the last one has ended, and when the rest is reset."""

from __future__ import annotations

import math
import time
from types import SimpleNamespace
from typing import Any

import pytest
from helpers import closed

from relay.engine import generation as module
from relay.engine.generation import Generation, Generations
from relay.eventloop.loop import Loop


class Connection:
    """A connection whose end is reported to the generations."""

    def __init__(self, owner: list[Any]) -> None:
        self.owner = owner
        self.reasons: list[str] = []
        self.ends: list[float] = []

    def close(self, reason: str, now: float) -> None:
        self.reasons.append(reason)
        self.ends.append(now)
        for generations in self.owner:
            generations.remove(self)


@pytest.fixture
def loop():  # type: ignore[no-untyped-def]
    yield from closed(Loop())


def test_the_rest_is_reset_at_once_or_after_a_while(loop: Loop) -> None:
    owner: list[Any] = []
    generations = Generations(loop.timers)
    owner.append(generations)
    one, two = Connection(owner), Connection(owner)
    over: list[str] = []
    before = time.monotonic()
    generations.begin([one], lambda: over.append("cut"), 0.0)
    assert (one.reasons, over) == (["closed"], ["cut"])
    assert before <= one.ends[0] <= time.monotonic()
    made = Generation([two], lambda: over.append("drained"), loop.timers)
    owner.append(made)
    made.start(5.0, 100.0)
    assert two.reasons == []
    loop.timers.run(104.9)
    assert two.reasons == []
    loop.timers.run(105.1)
    assert (two.reasons, two.ends, over) == (["closed"], [105.1], ["cut", "drained"])


def test_less_than_a_second_is_a_while(loop: Loop) -> None:
    owner: list[Any] = []
    one = Connection(owner)
    made = Generation([one], None, loop.timers)
    owner.append(made)
    made.start(0.5, 100.0)
    assert one.reasons == []
    loop.timers.run(100.6)
    assert one.ends == [100.6]


@pytest.mark.parametrize(
    ("options", "ends"), [({}, [[105.1], [105.1]]), ({"spread": 4.0}, [[101.1], [103.1]])], ids=["all", "spread"]
)
def test_a_while_begins_now(
    loop: Loop, monkeypatch: pytest.MonkeyPatch, options: dict[str, float], ends: list[list[float]]
) -> None:
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: 100.0))
    owner: list[Any] = []
    one, two = Connection(owner), Connection(owner)
    generations = Generations(loop.timers)
    owner.append(generations)
    generations.begin([one, two], None, 5.0, **options)
    for tenth in range(60):
        loop.timers.run(100.0 + tenth / 10 + 0.1)
    assert [one.ends, two.ends] == [pytest.approx(end) for end in ends]


def test_a_connection_of_others_is_not_the_last_one(loop: Loop) -> None:
    over: list[bool] = []
    made = Generation([], lambda: over.append(True), loop.timers)
    made.remove(Connection([]))
    assert over == []
    made.start(5.0, 100.0)
    assert over == [True]


@pytest.mark.parametrize("seconds", [None, math.inf])
def test_without_a_limit_the_rest_is_never_reset(loop: Loop, seconds: float | None) -> None:
    owner: list[Any] = []
    one = Connection(owner)
    generations = Generations(loop.timers)
    owner.append(generations)
    generations.begin([one], None, seconds, 5.0)
    loop.timers.run(time.monotonic() + 1e6)
    assert one.reasons == [] and generations.living
