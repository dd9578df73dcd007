"""The keys at the top of the file, and what a reload does if they have changed."""

from __future__ import annotations

import enum
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a command without a file needs none of its models
    from ..config.models import File

TABLES = frozenset({"defaults", "hops", "tunnels"})
"""The keys that are tables; the verdicts are about them."""
TUNED = frozenset(
    {"control", "status", "status_public", "status_token_file", "log_file", "log_interval", "shutdown_delay"}
)
"""The keys that a reload changes."""
UPGRADED = frozenset({"resume_memory", "state", "workers"})
"""The keys that an upgrade changes. All others need a restart."""


class KeyEffect(enum.Enum):
    """Effects of a reload on a key that has changed."""

    TUNED = "tuned"
    OVERRIDDEN = "overridden"
    """An option of the command line counts."""
    UPGRADE = "upgrade"
    """It is in force only after an upgrade, or a restart."""
    RESTART = "restart"
    """It is in force only after a restart."""


@dataclass(frozen=True, slots=True)
class KeyChange:
    """A key at the top of the file that has changed.

    :param key: the key.
    :param effect: what a reload does with it.
    :param remedy: what puts it in force; empty if the reload does.
    """

    key: str
    effect: KeyEffect
    remedy: str = ""

    @classmethod
    def of(cls, key: str, effect: KeyEffect) -> KeyChange:
        """Return the change of a key, with the remedy."""
        return cls(key, effect, _remedy(key, effect))

    def __str__(self) -> str:
        return f"key {self.key}: {self.remedy or self.effect.value}"


def _remedy(key: str, effect: KeyEffect) -> str:
    """Return the action that puts a key in force; empty if a reload does."""
    if effect is KeyEffect.TUNED:
        return ""
    if effect is KeyEffect.UPGRADE:
        return "a reload does not change it; relay ctl upgrade does"
    if effect is KeyEffect.RESTART:
        return "a reload does not change it; restart relay"
    return f"--{key.replace('_', '-')} of the command line counts; restart relay without it"


def compare_keys(started: File, current: File, new: File, given: Collection[str]) -> tuple[KeyChange, ...]:
    """Compare the keys at the top of two files.

    :param started: the file at the start, which counts for the keys that a reload does not change.
    :param current: the file of the last reload.
    :param new: the file.
    :param given: the keys that an option of the command line overrides.
    """
    found = []
    for key in type(new).model_fields.keys() - TABLES:
        if getattr(new, key) == getattr(started, key) == getattr(current, key):
            continue
        effect = KeyEffect.OVERRIDDEN if key in given else _effect(key)
        before = started if effect in (KeyEffect.UPGRADE, KeyEffect.RESTART) else current
        if getattr(new, key) != getattr(before, key):
            found.append(KeyChange.of(key, effect))
    order = list(type(new).model_fields)
    return tuple(sorted(found, key=lambda change: order.index(change.key)))


def _effect(key: str) -> KeyEffect:
    """Return the effect of a reload on a key that no option overrides."""
    if key in TUNED:
        return KeyEffect.TUNED
    return KeyEffect.UPGRADE if key in UPGRADED else KeyEffect.RESTART
