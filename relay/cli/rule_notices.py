"""The notices of ``relay check`` about access lists: rules that can never match a client of their tunnel."""

from __future__ import annotations

from collections.abc import Container, Iterator
from typing import Any

from ..access.useless import find_useless, possible_kinds, rules_in
from ..addresses.hops import ProxyListen
from ..addresses.i2p import I2PListen
from ..addresses.ssh import SSHListen
from ..addresses.values import SystemdListen, TLSListen, UnixAddress
from ..config.lines import Path
from ..config.problems import Problem, Problems, dotted
from .plan import Plan

__all__ = ["rule_notices"]

_MOST = 20  # of one tunnel: a file may have thousands


def rule_notices(problems: Problems, plan: Plan, *, has_login: bool, inherited: Container[str] = ()) -> Iterator[str]:
    """Describe the rules of a tunnel that can never match.

    :param problems: those of the file, which has none.
    :param plan: the plan of the tunnel, whose lists have been checked.
    :param has_login: whether its clients log in at a proxy.
    :param inherited: those of ``allow`` and ``deny`` that are from the defaults. Their rules are for several kinds of
        listeners, so one that cannot match here is no mistake, unless that is so for all of ``allow``.
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
    count, misplaced = 0, 0
    for useless in find_useless(allow, deny, listener, kinds):
        option, number, _ = useless.place
        path: Path = ("tunnels", plan.name, option, number)
        if option in inherited:
            path = ("defaults", option, number)
            if useless.is_misplaced:
                misplaced += option == "allow"
                continue
        count += 1
        more = "; there may be more of these" if count == _MOST else ""
        yield problems.format(Problem(problems.line(path), f"{dotted(path)}: {useless}{more}"))
        if more:
            return
    if misplaced and misplaced == sum(1 for _ in rules_in(allow, "allow")):
        path = ("tunnels", plan.name)
        text = (
            "no client could connect: no rule of defaults.allow is for clients of this listener; give it its own allow"
        )
        yield problems.format(Problem(problems.line(path), f"{dotted(path)}: {text}"))


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
