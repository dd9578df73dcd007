"""Rows of the tables: a load, the figures measured under it, and the goals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from .loads.tcp import Lab

Sample = dict[str, float]  # what one measurement gives: a figure for each metric, by key


@dataclass(frozen=True)
class Goal:
    """A bound of one peer's figure: at least (or at most, where less is better) ``factor`` times another's.

    :param of: the key of the other peer; ``None`` if ``factor`` is itself the bound.
    :param factor: what to reach.
    :param limit: what is just accepted, if that is less.
    :param peer: the key of the peer that is to reach it.
    """

    of: str | None
    factor: float
    limit: float | None = None
    peer: str = "relay"


@dataclass(frozen=True)
class Metric:
    """One figure of a row.

    :param key: its name in a :data:`Sample`.
    :param title: what it is, with the unit.
    :param more: whether more is better.
    :param scale: what a sample is multiplied by to be in that unit.
    """

    key: str
    title: str
    more: bool
    goals: tuple[Goal, ...] = ()
    scale: float = 1.0


@dataclass(frozen=True)
class Row:
    """One load.

    :param title: what it is.
    :param table: the table it stands in, a key of :data:`TABLES`.
    :param peers: whom it is measured of, in the order of a round.
    :param measure: makes one measurement of one peer.
    :param size: how many of what grows in its table, whose picture has a curve over it; ``None`` elsewhere.
    """

    title: str
    table: str
    peers: tuple[str, ...]
    metrics: tuple[Metric, ...]
    measure: Callable[[Lab, str], Sample]
    size: int | None = None


# The least relay that the interpreter allows needs 83,000 user instructions for a connection, HAProxy 25,000.
LEAST_CONNECTIONS = 0.9  # of HAProxy's rate
MOST_FOR_CONNECTIONS = 1.25  # of its CPU

GBIT = partial(Metric, "rate", "Gbit/s", True, scale=1e-9)
CPU_BULK = partial(Metric, "cpu", "CPU ms per GiB", False, scale=1e3)
RATE = partial(Metric, "rate", more=True)
CPU = partial(Metric, "cpu", more=False, scale=1e6)
