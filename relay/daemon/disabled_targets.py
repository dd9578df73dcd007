"""The targets of a tunnel that has several, and those that an operator has disabled (``relay ctl disable``).

A reload and an upgrade keep those disabled.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import TYPE_CHECKING

from ..streams.dialer import Dialer
from ..targets.health import HealthState

if TYPE_CHECKING:  # a tunnel with one target starts faster without it
    from ..targets.group import TargetGroup


def target_group(make_send: Dialer) -> TargetGroup | None:
    """Return the targets of a factory; ``None`` if it has one target only."""
    if not make_send.alternatives:
        return None
    from ..targets.group import TargetGroup

    return make_send if isinstance(make_send, TargetGroup) else None


def disabled(make_send: Dialer) -> list[str]:
    """Return the disabled targets of a factory; none if it has one target only."""
    group = target_group(make_send)
    return [one.target for one in group.states() if one.state == HealthState.DISABLED.value] if group else []


def disable(make_send: Dialer, targets: Iterable[str]) -> None:
    """Disable those of some targets that a factory has, if it has several."""
    if (group := target_group(make_send)) is not None:
        for target in targets:
            with contextlib.suppress(KeyError):
                group.set_enabled(target, False)
