"""The old process of an upgrade, after one that has failed."""

from __future__ import annotations

import re
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from relay.daemon.change import hand_over
from relay.daemon.change.hand_over import HandOver
from relay.daemon.change.successor import Program, Successor
from relay.daemon.change.upgrade_channel import UpgradeError


@pytest.mark.parametrize(
    ("ends_after", "expected"), [(9, {"taken": 3, "free": 1}), (1, {"taken": 1, "free": 1}), (0, {})]
)
def test_a_listener_that_cannot_return_delays_no_other(ends_after: int, expected: dict[str, int]) -> None:
    tried: Counter[str] = Counter()
    pauses: list[float] = []

    class Vacated:
        def __init__(self, name: str) -> None:
            self.name = name

        def restore(self, call: Any) -> str:
            tried[self.name] += 1
            return "taken: cannot listen again" if self.name == "taken" and tried["taken"] < 3 else ""

    def wait_for_end(seconds: float) -> bool:
        pauses.append(seconds)
        return len(pauses) >= ends_after

    group: Any = SimpleNamespace(is_ending=ends_after == 0, wait_for_end=wait_for_end, call=None)
    nothing: Any = None
    vacated: Any = [Vacated("taken"), Vacated("free")]
    HandOver(group, nothing, nothing, nothing, nothing)._return(vacated)
    assert tried == expected
    assert pauses == [hand_over._FIRST_PAUSE, 2 * hand_over._FIRST_PAUSE][:ends_after]


def test_no_upgrade_begins_while_a_reload_changes_what_it_would_hand_over() -> None:
    group: Any = SimpleNamespace(is_ending=False, tunnels=(), is_handing_over=False)
    reloads: Any = SimpleNamespace(is_under_way=True)
    nothing: Any = None
    with pytest.raises(UpgradeError, match="^a reload is under way; try again when it has ended$"):
        HandOver(group, reloads, nothing, nothing, nothing)._begin(nothing)
    assert not group.is_handing_over


def test_a_working_directory_that_is_gone_is_named_and_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    gone = str(tmp_path / "gone")
    problem = f"cannot start {sys.executable}: working directory {gone}: No such file or directory"
    with pytest.raises(UpgradeError, match=f"^{re.escape(problem)}$"):
        Successor(Program((sys.executable, "-V"), gone), {})
    assert f"upgrade: {problem}; nothing has changed" in caplog.messages
