"""Values as JSON: every field by its name, except those that say that they are for the metrics only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from relay.carriers.listing import CarrierStatus
from relay.daemon.status import TunnelStatus
from relay.operations.forms import as_json


class Pair(NamedTuple):
    metrics: int
    other: tuple[int, ...]


@dataclass
class Form:
    metrics: dict[int, Pair]
    text: str = "x"


def test_a_field_is_there_whatever_its_name() -> None:
    assert as_json(Form({1: Pair(2, (3,))})) == {"metrics": {"1": {"metrics": 2, "other": [3]}}, "text": "x"}


def test_the_counters_for_the_metrics_are_left_out() -> None:
    tunnel = TunnelStatus(name="a", state="listening", listen="127.0.0.1:1", target="db:5432")
    carrier = CarrierStatus("ssh://a", "ssh", "up", 0.0, 0, 0)
    assert "metrics" not in as_json(tunnel) and as_json(tunnel)["name"] == "a"
    assert "metrics" not in as_json(carrier) and as_json(carrier)["name"] == "ssh://a"
