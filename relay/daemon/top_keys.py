"""The keys at the top of the file, and what a reload does if they have changed."""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a command without a file needs none of its models
    from ..config.models import File

__all__ = ["TUNED", "UPGRADED", "KeyChange", "KeyEffect", "Swap", "compare_keys", "prepare_all"]

TABLES = frozenset({"defaults", "hops", "tunnels"})
"""The keys that are tables; the verdicts are about them."""
TUNED = frozenset(
    {"control", "status", "status_public", "status_token_file", "log_file", "log_interval", "shutdown_delay"}
)
"""The keys that a reload changes."""
UPGRADED = frozenset({"state", "workers"})
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


@dataclass(frozen=True, slots=True)
class Swap:
    """A change that is prepared: what it needs is open.

    :param commit: makes it, in the main thread; must not block.
    :param undo: closes what is open, if it is not made.
    """

    commit: Callable[[], object]
    undo: Callable[[], object]


def prepare_all(prepares: Iterable[Callable[[], Swap | None]]) -> Swap:
    """Prepare changes; if one fails, undo those before it.

    :param prepares: each returns a change, or ``None`` if there is nothing to change.
    :returns: all of them as one.
    """
    swaps: list[Swap] = []
    with contextlib.ExitStack() as undone:
        for prepare in prepares:
            if (swap := prepare()) is not None:
                undone.callback(swap.undo)
                swaps.append(swap)
        undone.pop_all()
    return Swap(lambda: [swap.commit() for swap in swaps], lambda: [swap.undo() for swap in swaps])


def compare_keys(started: File, current: File, new: File, given: Collection[str]) -> tuple[KeyChange, ...]:
    """Compare the keys at the top of two files.

    :param started: the file at the start, which counts for the keys that a reload does not change.
    :param current: the file of the last reload.
    :param new: the file.
    :param given: the keys that an option of the command line overrides.
    """
    found = []
    for key in type(new).model_fields.keys() - TABLES:
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
