"""Generations of connections: when the last one has ended, and when the rest is reset."""

from __future__ import annotations

import math
import time
from typing import Any

import pytest

from relay.engine.generation import Generation, Generations
from relay.eventloop.loop import Loop


class Connection:
    """A connection whose end is reported to the generations."""

    def __init__(self, owner: list[Any]) -> None:
        self.owner = owner
        self.reasons: list[str] = []

    def close(self, reason: str, now: float) -> None:
        self.reasons.append(reason)
        for generations in self.owner:
            generations.remove(self)


@pytest.fixture
def loop():  # type: ignore[no-untyped-def]
    made = Loop()
    yield made
    made.close()


def test_it_is_over_after_its_last_connection(loop: Loop) -> None:
    owner: list[Any] = []
    one, two, later = (Connection(owner) for _ in range(3))
    over: list[bool] = []
    generations = Generations(loop.timers)
    owner.append(generations)
    assert not generations.living
    generations.begin([one, two], lambda: over.append(True), None)
    assert generations.living
    generations.remove(later)
    generations.remove(one)
    generations.remove(one)
    assert over == []
    generations.remove(two)
    assert over == [True] and not generations.living


def test_without_connections_it_is_over_at_once(loop: Loop) -> None:
    over: list[bool] = []
    generations = Generations(loop.timers)
    generations.begin([], lambda: over.append(True), 5.0)
    assert over == [True] and not generations.living


def test_the_rest_is_reset_at_once_or_after_a_while(loop: Loop) -> None:
    owner: list[Any] = []
    generations = Generations(loop.timers)
    owner.append(generations)
    one, two = Connection(owner), Connection(owner)
    over: list[str] = []
    generations.begin([one], lambda: over.append("cut"), 0.0)
    assert (one.reasons, over) == (["closed"], ["cut"])
    made = Generation([two], lambda: over.append("drained"), loop.timers)
    owner.append(made)
    made.start(5.0, 100.0)
    assert two.reasons == []
    made._end(105.0)
    assert (two.reasons, over) == (["closed"], ["cut", "drained"])


@pytest.mark.parametrize("seconds", [None, math.inf])
def test_without_a_limit_the_rest_is_never_reset(loop: Loop, seconds: float | None) -> None:
    owner: list[Any] = []
    one = Connection(owner)
    generations = Generations(loop.timers)
    owner.append(generations)
    generations.begin([one], None, seconds, 5.0)
    loop.timers.run(time.monotonic() + 1e6)
    assert one.reasons == [] and generations.living


def test_the_rest_is_reset_one_after_the_other(loop: Loop) -> None:
    owner: list[Any] = []
    one, two = Connection(owner), Connection(owner)
    made = Generation([one, two], None, loop.timers)
    owner.append(made)
    made.start(100.0, 0.0, 50.0)
    loop.timers.run(51.0)
    assert (one.reasons, two.reasons) == (["closed"], [])
    made.remove(two)
    loop.timers.run(200.0)
    assert two.reasons == []
