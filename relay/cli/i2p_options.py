"""What the commands have in common that may go over I2P: their options, which become parameters of an address."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Sequence
from typing import Any

import click

from ..addresses.address_parser import with_parameters
from ..addresses.i2p import I2PListen, I2PRouter, I2PTarget
from ..addresses.parse import parse_hops, parse_listen, parse_target
from ..errors import AddressError
from .output import say

__all__ = ["sam", "tell_published", "with_bridge", "with_parameters", "with_session"]

logger = logging.getLogger("relay.cli")

sam = click.option("--sam", metavar="HOST:PORT", help="SAM bridge of the I2P router [127.0.0.1:7656].")


def with_bridge(
    sam: str | None, listen: str, target: str, via: Sequence[str], listen_via: Sequence[str] = ()
) -> tuple[str, str, list[str], list[str]]:
    """Addresses, with a SAM bridge in those of I2P.

    :param sam: where the bridge is; ``None`` to leave all as they are.
    :param listen: the address to listen at.
    :param target: the address to connect to.
    :param via: the hops to the target.
    :param listen_via: those to where it listens.
    :returns: the same four.
    :raises AddressError: if one cannot be understood.
    """
    bridge = [("sam", sam)]

    def leading(hops: Sequence[str]) -> list[str]:
        routers = (isinstance(hop, I2PRouter) for hop in parse_hops(hops))
        return [with_parameters(text, bridge) if router else text for text, router in zip(hops, routers, strict=True)]

    last = parse_hops(via)[-1] if via else None
    over_a_router = any(isinstance(hop, I2PRouter) for hop in parse_hops(via))
    to_i2p = isinstance(parse_target(target, last), I2PTarget) and not over_a_router
    return (
        with_parameters(listen, bridge) if isinstance(parse_listen(listen), I2PListen) else listen,
        with_parameters(target, bridge) if to_i2p else target,
        leading(via),
        leading(listen_via),
    )


def with_session(
    listen: str,
    target: str,
    *,
    keys: str | None,
    session: str | None,
    transient: bool,
    names: Iterable[tuple[str, str | None]] = (),
) -> str:
    """A place to listen at I2P, with what tells its destination.

    :param listen: its address.
    :param target: the address to connect to, whose text is the session's name where nothing else tells.
    :param keys: the file of the private key.
    :param session: the session's name.
    :param transient: whether the destination is kept nowhere.
    :param names: further parameters.
    :raises AddressError: if an address cannot be understood, or says that it is to be kept as well as not.
    """
    listen = with_parameters(listen, [("keys", keys), ("session", session), *names])
    place = parse_listen(listen)
    assert isinstance(place, I2PListen)
    kept = place.router.keys or place.router.session
    if transient and kept:
        raise AddressError("--transient: a destination that is kept nowhere has no keys and no session; leave one out")
    return listen if transient or kept else with_parameters(listen, [("session", str(parse_target(target)))])


def tell_published(listener: Any, prefix: str = "") -> None:
    """Say when a listener at I2P has been reached from outside, the first time on standard output.

    :param listener: one that is not at I2P says nothing.
    :param prefix: what the line begins with.
    """
    if hasattr(listener, "wait_published"):
        threading.Thread(target=_tell, args=(listener, prefix), name="relay-published", daemon=True).start()


def _tell(listener: Any, prefix: str) -> None:
    if not listener.wait_published(None):
        return
    say(f"{prefix}published {listener.b32}")
    listener.subscribe(lambda state, _: logger.info("%spublished again", prefix) if state == "published" else None)
