"""The rules of a planned tunnel that can never match a client of its listener."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

from ..access.networks import version_at
from ..access.useless import Known, Useless, find_misplaced, find_useless, possible_kinds
from ..addresses.hops import ProxyListen
from ..addresses.i2p import I2PListen
from ..addresses.ssh import SSHListen
from ..addresses.values import SystemdListen, TCPAddress, TLSListen, UnixListen
from .plan import Plan

__all__ = ["MOST", "denials_in_vain", "useless_rules", "warn_of_denials"]

logger = logging.getLogger("relay.cli")

MOST = 20  # lines about one tunnel: a list may have thousands of rules


def useless_rules(plan: Plan) -> Iterator[Useless]:
    """Find the rules of a tunnel that can never match. This looks users up, which may block.

    :param plan: the plan of the tunnel.
    :raises ValueError: if an entry is wrong.
    :raises OSError: if a file cannot be read.
    """
    kinds, known = _clients(plan)
    yield from find_useless(*plan.routes.lists, _listener(plan.routes.where), kinds, known)


def denials_in_vain(plan: Plan) -> Iterator[Useless]:
    """Find the rules of ``deny`` that deny no client of this kind of listener: a start warns of them.

    A file of rules may be for several listeners, so its rules are none of them; neither is a rule that another one
    covers, because its clients are denied. A list with a wrong entry has none; opening the tunnel fails then.

    :param plan: the plan of the tunnel.
    """
    kinds, known = _clients(plan)
    with contextlib.suppress(ValueError):
        yield from list(find_misplaced(plan.routes.lists[1], kinds, known))[:MOST]


def warn_of_denials(plan: Plan) -> None:
    """Warn of each rule of a command line that denies no client.

    :param plan: the plan of the tunnel.
    """
    for useless in denials_in_vain(plan):
        logger.warning("%s: %s", useless.place, useless)


def _clients(plan: Plan) -> tuple[frozenset[str], Known]:
    """Return the kinds of rules that can match a client, and what is known of all clients."""
    where: Any = plan.routes.where
    has_header = plan.options.accept_proxy is not None
    kinds = possible_kinds(
        _listener(where),
        has_certificates=isinstance(where, TLSListen) and where.client_ca is not None,
        has_login=plan.user is not None,
        has_header=has_header,
    )
    return kinds, Known() if has_header else Known(plan.user, _version(where), are_local=True)


def _version(where: object) -> int | None:
    """Return the version of IP that all clients of a listener have; ``None`` for both, or if it is not known."""
    return version_at(where.host) if isinstance(where, TCPAddress | TLSListen | ProxyListen) else None


def _listener(where: object) -> str:
    kinds: dict[type, str] = {
        TLSListen: "tls",
        UnixListen: "unix",
        SystemdListen: "systemd",
        SSHListen: "ssh",
        I2PListen: "i2p",
        ProxyListen: "tcp",
    }
    return kinds.get(type(where), "tcp")
