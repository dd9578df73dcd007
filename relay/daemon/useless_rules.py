"""The rules of a planned tunnel that can never match a client of its listener."""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections.abc import Iterator
from typing import Any

from ..access.networks import version_at
from ..access.useless import Known, Useless, find_useless, find_useless_senders, possible_kinds
from ..addresses.hops import ProxyListen
from ..addresses.i2p import I2PListen
from ..addresses.ssh import SSHListen
from ..addresses.values import SystemdListen, TCPAddress, TLSListen, UnixListen, is_loopback
from .plan import Plan

logger = logging.getLogger("relay.cli")

MOST = 20  # lines about one tunnel: a list may have thousands of rules


def useless_rules(plan: Plan, *, files: bool) -> Iterator[Useless]:
    """Find the rules of a tunnel that can never match. This looks users up, which may block.

    :param plan: the plan of the tunnel.
    :param files: whether to read the files of rules, too.
    :raises ValueError: if an entry is wrong.
    :raises OSError: if a file cannot be read.
    """
    where: Any = plan.routes.where
    host = where.host if isinstance(where, TCPAddress | TLSListen | ProxyListen) else ""
    at_listener = Known(version=version_at(host), has_loopback=bool(host) and is_loopback(host))
    senders, listener = plan.options.accept_proxy, _listener(where)
    kinds = possible_kinds(
        listener,
        has_certificates=isinstance(where, TLSListen) and where.client_ca is not None,
        has_login=plan.user is not None,
        has_header=senders is not None,
    )
    known = at_listener._replace(user=plan.user, are_local=True) if senders is None else Known()
    yield from find_useless(*plan.routes.lists, listener, kinds, known, files=files)
    yield from find_useless_senders(senders or (), listener, at_listener)


def warn_of_rules(plan: Plan) -> None:
    """Warn of the rules of a command line that can never match, those of files left out.

    :param plan: the plan of the tunnel.
    """
    with contextlib.suppress(ValueError):  # opening the tunnel fails then
        for useless in itertools.islice(useless_rules(plan, files=False), MOST):
            logger.warning("%s: %s", useless.place, useless)


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
