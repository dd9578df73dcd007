"""Targets with the hops to them: their texts in titles, and the SAM bridges and the session of addresses of I2P."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar, cast

from ..addresses.hops import Command, Route
from ..addresses.i2p import Bridges, I2PListen, I2PRouter, I2PTarget, router_of
from ..addresses.options import set_options
from ..addresses.printable import shown
from ..addresses.resume import ResumeServer
from ..addresses.values import Target
from ..errors import AddressError

if TYPE_CHECKING:
    from ..addresses.tor import TorListen

RoutedTarget = tuple[Route, Target | I2PTarget | Command]
"""The hops to a target, and the target."""


def over(via: Route) -> str:
    """Return the hops, for a title."""
    return f" via {', '.join(map(str, via))}" if via else ""


def over_routes(routed: Sequence[RoutedTarget]) -> str:
    """Return the hops of all routes, for a title."""
    texts = dict.fromkeys(over(hops) or " directly" for hops, _ in routed)
    return " or".join(texts) if any(hops for hops, _ in routed) else ""


def route_of_all(routed: Sequence[tuple[Route, object]]) -> Route:
    """Return the hops to all targets, the nearest first; none if they differ."""
    routes = {route for route, _ in routed}
    return routes.pop() if len(routes) == 1 else ()


def targets_of(routed: Sequence[RoutedTarget]) -> str:
    """Return the targets of all routes, for a title."""
    return ", ".join(dict.fromkeys(shown(str(end)) for _, end in routed))


Address = TypeVar("Address")
Destination = TypeVar("Destination", "I2PListen", "TorListen")


def with_bridge(bridges: Bridges | None, address: Address) -> Address:
    """Return an address with other SAM bridges if it is one of I2P, else the address itself.

    :param bridges: ``None`` to leave the address as it is.
    :raises AddressError: if the address has a bridge already.
    """
    if isinstance(address, ResumeServer):
        return cast("Address", replace(address, place=with_bridge(bridges, address.place)))
    router = router_of(address)
    if bridges is None or router is None:
        return address
    router = set_options(router, sam=bridges)
    changed: Any = router if isinstance(address, I2PRouter) else replace(cast("Any", address), router=router)
    return cast("Address", changed)


def with_bridges(bridges: Bridges | None, target: Target | I2PTarget | Command, route: Route) -> tuple[Any, Route]:
    """Return a target and the hops to it with other SAM bridges; they are those of the last router before it.

    :raises AddressError: if one has a bridge already.
    """
    over_a_router = any(isinstance(hop, I2PRouter) for hop in route)
    return target if over_a_router else with_bridge(bridges, target), tuple(with_bridge(bridges, hop) for hop in route)


def with_session(
    place: Destination,
    target: object,
    *,
    keys: str | None,
    session: str | None,
    transient: bool,
) -> Destination:
    """Return an address to listen on at I2P or Tor, with what gives it its destination or its onion address.

    :param place: the address.
    :param target: the address to connect to, whose text is the session's name by default.
    :param keys: the file of the private key.
    :param session: the session's name.
    :param transient: whether the destination is not stored.
    :raises AddressError: if an option is empty or in the address already, or a transient destination has a name.
    """
    given = {name: value for name, value in (("keys", keys), ("session", session)) if value is not None}
    owner: Any = set_options(place.router if isinstance(place, I2PListen) else place, **given)
    stored = owner.keys or owner.session
    if transient and stored:
        raise AddressError("--transient: a destination that is not saved has no keys and no session; leave one out")
    if not (transient or stored):
        owner = replace(owner, session=str(target))
    changed: Any = replace(place, router=owner) if isinstance(place, I2PListen) else owner
    return cast("Destination", changed)
