"""The options of commands for I2P, and addresses with these options."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar, cast

import click

from ..addresses.hops import Command, Route
from ..addresses.i2p import Bridges, I2PListen, I2PRouter, I2PTarget
from ..addresses.i2p_parser import parse_sam
from ..addresses.options import set_options
from ..addresses.values import Target
from ..errors import AddressError
from .output import print_line

__all__ = ["read_bridges", "sam", "tell_published", "with_bridge", "with_bridges", "with_session"]

logger = logging.getLogger("relay.cli")

_STANDING_BY = "standing by"  # a state of a listener

sam = click.option(
    "--sam",
    metavar="HOST:PORT",
    multiple=True,
    help="SAM bridge of the I2P router [127.0.0.1:7656]. Repeatable: the next router when one is lost.",
)

Address = TypeVar("Address")


def read_bridges(sam: Sequence[str]) -> Bridges | None:
    """Return the SAM bridges of the command line, as :func:`relay.addresses.i2p_parser.parse_sam` does.

    :param sam: the values of ``--sam``; ``None`` is returned if there are none.
    """
    return parse_sam(tuple(sam)) if sam else None


def with_bridge(bridges: Bridges | None, address: Address) -> Address:
    """Return an address with other SAM bridges if it is one of I2P, else the address itself.

    :param bridges: ``None`` to leave the address as it is.
    :raises AddressError: if the address has a bridge already.
    """
    router: Any = address if isinstance(address, I2PRouter) else getattr(address, "router", None)
    if bridges is None or router is None:
        return address
    router = set_options(router, sam=bridges)
    changed: Any = router if isinstance(address, I2PRouter) else replace(cast("Any", address), router=router)
    return cast("Address", changed)


def with_bridges(bridges: Bridges | None, target: Target | I2PTarget | Command, route: Route) -> tuple[Any, Route]:
    """Return a target and the hops to it with other SAM bridges; they are those of the last router on the way.

    :raises AddressError: if one has a bridge already.
    """
    over_a_router = any(isinstance(hop, I2PRouter) for hop in route)
    return target if over_a_router else with_bridge(bridges, target), tuple(with_bridge(bridges, hop) for hop in route)


def with_session(
    place: I2PListen,
    target: object,
    *,
    keys: str | None,
    session: str | None,
    transient: bool,
) -> I2PListen:
    """Return an address to listen on at I2P, with the session that gives it its destination.

    :param place: the address.
    :param target: the address to connect to, whose text is the session's name by default.
    :param keys: the file of the private key.
    :param session: the session's name.
    :param transient: whether the destination is not stored.
    :raises AddressError: if an option is empty or in the address already, or a transient destination has a name.
    """
    given = {name: value for name, value in (("keys", keys), ("session", session)) if value is not None}
    router = set_options(place.router, **given)
    stored = router.keys or router.session
    if transient and stored:
        raise AddressError("--transient: a destination that is not saved has no keys and no session; leave one out")
    if not (transient or stored):
        router = replace(router, session=str(target))
    return replace(place, router=router)


def tell_published(listener: Any, prefix: str = "") -> None:
    """Report when a listener at I2P has been reached from outside, or stands by: on standard output, later in the log.

    :param listener: any listener; ignored if it is not at I2P.
    :param prefix: the beginning of the line.
    """
    if hasattr(listener, "wait_published"):
        if listener.state == _STANDING_BY:
            print_line(f"{prefix}standing by {listener.b32}")
        listener.subscribe(lambda state, _: _log_standing_by(state, prefix))
        try:
            threading.Thread(target=_tell, args=(listener, prefix), name="relay-published", daemon=True).start()
        except RuntimeError as error:  # the system has no thread left
            logger.warning("%s%s; relay will not report that it is published", prefix, error)


def _log_standing_by(state: str, prefix: str) -> None:
    if state == _STANDING_BY:
        logger.info("%sstanding by: another relay serves the destination", prefix)


def _tell(listener: Any, prefix: str) -> None:
    if not listener.wait_published(None):
        return
    print_line(f"{prefix}published {listener.b32}")
    listener.subscribe(lambda state, _: logger.info("%spublished again", prefix) if state == "published" else None)
