"""The targets that an operator has disabled (``relay ctl disable``): a reload and an upgrade keep that."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Any

from ..targets.health import HealthState

__all__ = ["disable", "disabled"]


def disabled(make_send: Any) -> list[str]:
    """Return the disabled targets of a factory; none if it has one target only."""
    states = make_send.states() if hasattr(make_send, "states") else ()
    return [one.target for one in states if one.state == HealthState.DISABLED.value]


def disable(make_send: Any, targets: Iterable[str]) -> None:
    """Disable those of some targets that a factory has, if it has several."""
    if hasattr(make_send, "set_enabled"):
        for target in targets:
            with contextlib.suppress(KeyError):
                make_send.set_enabled(target, False)
