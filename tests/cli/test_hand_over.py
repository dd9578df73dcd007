"""The old process of an upgrade, after one that has failed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from relay.cli import hand_over
from relay.cli.hand_over import HandOver


@pytest.mark.parametrize(
    ("ends_after", "expected"), [(9, ["taken", "free", "taken", "taken"]), (1, ["taken", "free"]), (0, [])]
)
def test_a_listener_that_cannot_return_delays_no_other(
    monkeypatch: pytest.MonkeyPatch, ends_after: int, expected: list[str]
) -> None:
    tried: list[str] = []
    pauses: list[float] = []

    class Vacated:
        def __init__(self, name: str) -> None:
            self.name = name

        def return_to_listener(self) -> str:
            tried.append(self.name)
            return "taken: cannot listen again" if self.name == "taken" and tried.count("taken") < 3 else ""

    def wait_for_end(seconds: float) -> bool:
        pauses.append(seconds)
        return len(pauses) >= ends_after

    group: Any = SimpleNamespace(is_ending=ends_after == 0, wait_for_end=wait_for_end)
    nothing: Any = None
    vacated: Any = [Vacated("taken"), Vacated("free")]
    HandOver(group, nothing, nothing, nothing)._return(vacated)
    assert tried == expected
    assert pauses == [hand_over._FIRST_PAUSE, 2 * hand_over._FIRST_PAUSE][:ends_after]
