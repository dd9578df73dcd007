"""Notices about the access lists of a file: rules that can never match a client of their tunnel."""

from __future__ import annotations

import contextlib
import os
import pwd
from collections.abc import Container, Iterator

from ..access.limit import LOGIN
from ..access.useless import rules_in
from ..addresses.values import UnixListen
from ..config import Config, Entry
from ..config.lines import Path
from .plan import Plan
from .useless_rules import MOST, denials_in_vain, useless_rules

__all__ = ["denial_notices", "rule_notices"]


def rule_notices(config: Config, entry: Entry, plan: Plan) -> Iterator[str]:
    """Describe the rules of a tunnel that can never match, and the limit that has nothing to count.

    The entries of ``[defaults]`` are for several kinds of listeners, so one that cannot match here is no mistake,
    unless that is so for all of ``allow``.

    :param config: the file.
    :param entry: the tunnel.
    :param plan: its plan, whose lists have been checked.
    """
    inherited, notice = _inherited(config, entry), config.problems.notice
    if plan.user is None and "limit" not in inherited:
        yield from _limits_of_logins(config, plan)
    allow, deny = plan.routes.lists
    if allow is not None and not allow:
        text = "no client could connect: the list is empty; name the clients that may, or leave it out for all"
        yield notice(_path(plan, "allow", inherited), text)
    if not allow and not deny:
        return
    where = plan.routes.where
    if isinstance(where, UnixListen) and plan.options.accept_proxy is None:
        yield from _locked_out(config, plan, where, inherited)
    count, misplaced = 0, 0
    for useless in useless_rules(plan):
        option, number, _ = useless.place
        if option in inherited and useless.is_misplaced:
            misplaced += option == "allow"
            continue
        count += 1
        more = "; there may be more of these" if count == MOST else ""
        yield notice((*_path(plan, option, inherited), number), f"{useless}{more}")
        if more:
            return
    if misplaced and misplaced == sum(1 for _ in rules_in(allow, "allow")):
        text = (
            "no client could connect: no rule of defaults.allow is for clients of this listener; give it its own allow"
        )
        yield notice(("tunnels", plan.name), text)


def _locked_out(config: Config, plan: Plan, where: UnixListen, inherited: Container[str]) -> Iterator[str]:
    """Describe rules for users whom the mode of a Unix socket does not let in."""
    mode = where.mode or "0600"
    here = {"root", "0", str(os.geteuid())}
    with contextlib.suppress(KeyError):
        here.add(pwd.getpwuid(os.geteuid()).pw_name)
    allowed = [rule.value for _, rule in rules_in(plan.routes.lists[0] or (), "allow") if rule.kind == "user"]
    if not int(mode, 8) & 0o022 and (others := [one for one in allowed if one not in here]):
        text = f"only the owner of the socket can connect (mode {mode}), perhaps not {others[0]}"
        yield config.problems.notice(
            _path(plan, "allow", inherited), f"{text}; write ?mode=0660&group=NAME after its path"
        )


def denial_notices(config: Config, entry: Entry, plan: Plan) -> Iterator[str]:
    """Describe the rules of ``deny`` that deny no client of a tunnel, those of ``[defaults]`` left out.

    The parameters are those of :func:`rule_notices`.
    """
    inherited = _inherited(config, entry)
    if "deny" not in inherited:
        for useless in denials_in_vain(plan):
            yield config.problems.notice((*_path(plan, "deny", inherited), useless.place.number), str(useless))


def _inherited(config: Config, entry: Entry) -> Container[str]:
    """Return those of ``allow``, ``deny`` and ``limit`` that are from the defaults."""
    own = config.file.tunnels[entry.name]
    return {name for name in ("allow", "deny", "limit") if getattr(own, name) is None}


def _path(plan: Plan, option: str, inherited: Container[str]) -> Path:
    return ("defaults", option) if option in inherited else ("tunnels", plan.name, option)


def _limits_of_logins(config: Config, plan: Plan) -> Iterator[str]:
    for number, limit in enumerate(plan.options.limit):
        if limit.name == LOGIN:
            text = "login: counts wrong passwords, but the clients of this listener do not log in; leave it out"
            yield config.problems.notice(("tunnels", plan.name, "limit", number), text)
