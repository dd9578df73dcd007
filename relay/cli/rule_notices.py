"""The notices of ``relay check`` about access lists: rules that can never match a client of their tunnel."""

from __future__ import annotations

from collections.abc import Container, Iterator
from typing import Any

from ..access.limit import LOGIN
from ..access.networks import is_network, parse_network
from ..access.useless import Known, find_useless, possible_kinds, rules_in
from ..addresses.hops import ProxyListen
from ..addresses.i2p import I2PListen
from ..addresses.ssh import SSHListen
from ..addresses.values import SystemdListen, TCPAddress, TLSListen, UnixAddress
from ..config.lines import Path
from ..config.problems import Problem, Problems, dotted
from .plan import Plan

__all__ = ["rule_notices"]

_MOST = 20  # of one tunnel: a file may have thousands


def rule_notices(problems: Problems, plan: Plan, *, user: str | None, inherited: Container[str] = ()) -> Iterator[str]:
    """Describe the rules of a tunnel that can never match, and the limit that has nothing to count.

    :param problems: those of the file, which has none.
    :param plan: the plan of the tunnel, whose lists have been checked.
    :param user: the one who can log in, if it is a proxy with a login that is no part of its address.
    :param inherited: those of ``allow``, ``deny`` and ``limit`` that are from the defaults. Their entries are for
        several kinds of listeners, so one that cannot match here is no mistake, unless that is so for all of ``allow``.
    """
    where: Any = plan.routes.where
    user = user if user is not None else getattr(where, "user", None)
    if user is None and "limit" not in inherited:
        yield from _limits_of_logins(problems, plan)
    allow, deny = plan.routes.lists
    if not allow and not deny:
        return
    listener = _listener(where)
    certificates = isinstance(where, TLSListen) and where.client_ca is not None
    header = plan.options.accept_proxy is not None
    kinds = possible_kinds(listener, has_certificates=certificates, has_login=user is not None, has_header=header)
    known = Known() if header else Known(user, _version(where))
    count, misplaced = 0, 0
    for useless in find_useless(allow, deny, listener, kinds, known):
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


def _limits_of_logins(problems: Problems, plan: Plan) -> Iterator[str]:
    for number, limit in enumerate(plan.options.limit):
        if limit.name == LOGIN:
            path: Path = ("tunnels", plan.name, "limit", number)
            text = "login: counts wrong passwords, but the clients of this listener do not log in; leave it out"
            yield problems.format(Problem(problems.line(path), f"{dotted(path)}: {text}"))


def _version(where: object) -> int | None:
    """Return the version of IP that all clients of a listener have; ``None`` for both, or if it is not known."""
    if not isinstance(where, TCPAddress | TLSListen | ProxyListen) or not is_network(where.host):
        return None
    version, _, number = parse_network(where.host)
    return version if number or version == 4 else None  # :: takes clients of both


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
