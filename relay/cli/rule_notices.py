"""The notices of ``relay check`` about access lists: rules that can never match a client of their tunnel."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..access.useless import find_useless, possible_kinds
from ..addresses.hops import ProxyListen
from ..addresses.i2p import I2PListen
from ..addresses.ssh import SSHListen
from ..addresses.values import SystemdListen, TLSListen, UnixAddress
from ..config.problems import Problem, Problems, dotted
from .plan import Plan

__all__ = ["rule_notices"]

_MOST = 20  # of one tunnel: a file may have thousands


def rule_notices(problems: Problems, plan: Plan, *, has_login: bool) -> Iterator[str]:
    """Describe the rules of a tunnel that can never match.

    :param problems: those of the file, which has none.
    :param plan: the plan of the tunnel, whose lists have been checked.
    :param has_login: whether its clients log in at a proxy.
    """
    allow, deny = plan.routes.lists
    if not allow and not deny:
        return
    where: Any = plan.routes.where
    listener = _listener(where)
    certificates = isinstance(where, TLSListen) and where.client_ca is not None
    login = has_login or getattr(where, "user", None) is not None
    header = plan.options.accept_proxy is not None
    kinds = possible_kinds(listener, has_certificates=certificates, has_login=login, has_header=header)
    for number, useless in enumerate(find_useless(allow, deny, listener, kinds)):
        path = ("tunnels", plan.name, useless.place.option, useless.place.number)
        more = "; there may be more of these" if number == _MOST - 1 else ""
        yield problems.format(Problem(problems.line(path), f"{dotted(path)}: {useless}{more}"))
        if more:
            return


def _listener(where: object) -> str:
    kinds: dict[type, str] = {
        TLSListen: "tls",
        UnixAddress: "unix",
        SystemdListen: "systemd",
        SSHListen: "ssh",
        I2PListen: "i2p",
        ProxyListen: "tcp",
    }
    return kinds.get(type(where), "tcp")
