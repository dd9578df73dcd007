"""Tunnels that lead back to themselves, as far as their addresses show: each client would connect to the next one."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from ..addresses.hops import AT_PORT, Proxy
from ..addresses.printable import shown
from ..addresses.resume import place_of
from ..addresses.ssh import SSHServer
from ..addresses.values import TargetOverTCP, TCPAddress, TLSTarget, UnixAddress, is_loopback
from ..eventloop.own_addresses import is_same
from .plan import Plan

_SSH_PORT = 22


class Loop(NamedTuple):
    """A target, or a first hop, that leads back to its tunnel."""

    name: str
    """Of the tunnel."""
    text: str
    """The problem, in one line."""


def find_loops(plans: Iterable[Plan]) -> Iterator[Loop]:
    """Find the targets that lead back to their tunnels, perhaps through other tunnels. No name is looked up.

    :param plans: the tunnels of one process.
    :returns: one loop for each tunnel that is in one.
    """
    known = {plan.name: plan for plan in plans}
    places = _places(known.values())
    leads = {name: list(_leads(plan, places)) for name, plan in known.items()} if places else {}
    for name, steps in leads.items():
        for place, other in steps:
            if (others := _path(leads, other, name)) is not None:
                through = f"it leads back to this tunnel through {', '.join(others)}" if others else ""
                problem = through or "the tunnel itself listens there"
                yield Loop(name, f"{shown(str(place))}: {problem}; name another target")
                break


def _path(leads: Mapping[str, Sequence[tuple[object, str]]], start: str, end: str) -> list[str] | None:
    """Return the tunnels on the route from one to another, with the first one; ``None`` if there is none."""
    before: dict[str, str | None] = {start: None}
    waiting = [start]
    for name in waiting:
        if name == end:
            found = []
            step = before[name]
            while step is not None:
                found.append(step)
                step = before[step]
            return found[::-1]
        for _, other in leads[name]:
            if other not in before:
                before[other] = name
                waiting.append(other)
    return None


def _places(plans: Iterable[Plan]) -> dict[object, list[tuple[str, str]]]:
    """Return the hosts at which tunnels listen, and their names, by port; or an empty host by the path of a socket."""
    found: dict[object, list[tuple[str, str]]] = defaultdict(list)
    for plan in plans:
        where = plan.routes.where
        if isinstance(where, AT_PORT) and where.port:
            found[where.port].append((where.host, plan.name))
        elif isinstance(where, UnixAddress):
            found[os.path.realpath(where.path)].append(("", plan.name))
    return found


def _leads(plan: Plan, places: Mapping[object, Sequence[tuple[str, str]]]) -> Iterator[tuple[object, str]]:
    """Yield what this machine connects to for a tunnel, and the tunnel that listens there."""
    for route, end in plan.routes.out:
        for hop in (route[0], end) if route and all(map(_is_here, route)) else (*route[:1], end)[:1]:
            place = place_of(hop)
            if isinstance(place, UnixAddress):
                yield from ((place, name) for _, name in places.get(os.path.realpath(place.path), ()))
            elif isinstance(place, TCPAddress | TLSTarget | TargetOverTCP | Proxy | SSHServer):
                for host, name in places.get(place.port or _SSH_PORT, ()):
                    if is_same(place.host, host):
                        yield place, name


def _is_here(hop: object) -> bool:
    """Return whether a hop is this machine: another port of the loopback may be that of a container."""
    return isinstance(hop, SSHServer) and is_loopback(hop.host) and (hop.port or _SSH_PORT) == _SSH_PORT
