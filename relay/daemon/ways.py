"""Targets with the hops to them, and their texts in titles."""

from __future__ import annotations

from collections.abc import Sequence

from ..addresses.hops import Command, Route
from ..addresses.i2p import I2PTarget
from ..addresses.printable import shown
from ..addresses.values import Target

Way = tuple[Route, Target | I2PTarget | Command]
"""The hops to a target, and the target."""


def over(via: Route) -> str:
    """Return the hops, for a title."""
    return f" via {', '.join(map(str, via))}" if via else ""


def over_ways(ways: Sequence[Way]) -> str:
    """Return the hops of all ways, for a title."""
    texts = dict.fromkeys(over(hops) or " directly" for hops, _ in ways)
    return " or".join(texts) if any(hops for hops, _ in ways) else ""


def route_of_all(ways: Sequence[tuple[Route, object]]) -> Route:
    """Return the hops to all targets, the nearest first; none if they differ."""
    routes = {route for route, _ in ways}
    return routes.pop() if len(routes) == 1 else ()


def targets_of(ways: Sequence[Way]) -> str:
    """Return the targets of all ways, for a title."""
    return ", ".join(dict.fromkeys(shown(str(end)) for _, end in ways))
