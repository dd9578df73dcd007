"""Rules of access lists that can never match a client of their tunnel, and the notices about those of a file."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import pwd
from collections.abc import Container, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from ..access.limit import LOGIN
from ..access.networks import version_at
from ..access.useless import Known, Useless, find_useless, find_useless_senders, possible_kinds, rules_in
from ..addresses.hops import AT_PORT, ProxyListen, listens_at_tor
from ..addresses.https import WITH_CERTIFICATE, HTTPSListen
from ..addresses.i2p import I2PListen
from ..addresses.ssh import SSHListen
from ..addresses.values import SystemdListen, TLSListen, UnixListen, WithCertificate, is_ip_address, is_loopback
from .plan import Plan, to_any_server

if TYPE_CHECKING:  # a command line has no file
    from ..config import Config, Entry
    from ..config.lines import Path

logger = logging.getLogger("relay.cli")


class RuleNotice(NamedTuple):
    """A notice about an access list or a limit of a file.

    :param path: of the key.
    :param text: the notice.
    :param is_warning: whether the rule is surely in vain. A file of rules may be for several listeners, and groups
        decide whom the mode of a socket lets in.
    """

    path: Path
    text: str
    is_warning: bool = True


def rule_notices(config: Config, entry: Entry, plan: Plan, *, files: bool = True) -> Iterator[RuleNotice]:
    """Describe the rules of a tunnel that can never match, and the limit that has nothing to count.

    The entries of ``[defaults]`` are for several kinds of listeners, so one that cannot match here is no mistake,
    unless that is so for all of ``allow``.

    :param config: the file.
    :param entry: the tunnel.
    :param plan: its plan, whose lists have been checked.
    :param files: whether to read the files of rules, too.
    """
    inherited = _inherited(config, entry)
    yield from _open_proxy(plan)
    if plan.user is None and "limit" not in inherited:
        yield from _limits_of_logins(plan)
    allow, deny = plan.routes.lists
    if allow is not None and not allow:
        text = "no client could connect: the list is empty; name the clients that may, or leave it out for all"
        yield RuleNotice(_path(plan, "allow", inherited), text)
    if not (allow or deny or plan.options.accept_proxy):
        return
    where = plan.routes.where
    if files and isinstance(where, UnixListen) and plan.options.accept_proxy is None:
        yield from _locked_out(plan, where, inherited)
    count, misplaced = 0, 0
    for useless in useless_rules(plan, files=files):
        option, number, line = useless.place
        if option in inherited and useless.is_misplaced:
            misplaced += option == "allow"
            continue
        count += 1
        more = "; there may be more of these" if count == MOST else ""
        yield RuleNotice((*_path(plan, option, inherited), number), f"{useless}{more}", not line)
        if more:
            return
    if misplaced and misplaced == sum(1 for _ in (rules_in(allow, "allow") if files else allow or ())):
        text = (
            "no client could connect: no rule of defaults.allow is for clients of this listener; give it its own allow"
        )
        yield RuleNotice(("tunnels", plan.name), text)


def rule_warnings(config: Config, entry: Entry, plan: Plan) -> Iterator[str]:
    """Describe the rules of a tunnel that are surely in vain, for a start and a reload; no file of rules is read.

    The parameters are those of :func:`rule_notices`.
    """
    with contextlib.suppress(ValueError):  # of a wrong entry; opening the tunnel fails then
        for notice in rule_notices(config, entry, plan, files=False):
            if notice.is_warning:
                yield config.problems.notice(notice.path, notice.text)


def _locked_out(plan: Plan, where: UnixListen, inherited: Container[str]) -> Iterator[RuleNotice]:
    """Describe rules for users whom the mode of a Unix socket does not let in."""
    mode = where.mode or "0600"
    here = {"root", "0", str(os.geteuid())}
    with contextlib.suppress(KeyError):
        here.add(pwd.getpwuid(os.geteuid()).pw_name)
    allowed = [rule.value for _, rule in rules_in(plan.routes.lists[0] or (), "allow") if rule.kind == "user"]
    if not int(mode, 8) & 0o022 and (others := [one for one in allowed if one not in here]):
        text = (
            f"only the owner of the socket can connect (mode {mode}), perhaps not {others[0]}; "
            "write ?mode=0660&group=NAME after its path"
        )
        yield RuleNotice(_path(plan, "allow", inherited), text, is_warning=False)


def _inherited(config: Config, entry: Entry) -> Container[str]:
    """Return those of ``allow``, ``deny`` and ``limit`` that are from the defaults."""
    own = config.file.tunnels[entry.name]
    return {name for name in ("allow", "deny", "limit") if getattr(own, name) is None}


def _open_proxy(plan: Plan) -> Iterator[RuleNotice]:
    """Describe what a start warns of, if it is sure: other machines can use a proxy."""
    where = plan.routes.where
    if type(where) is not ProxyListen or not is_ip_address(where.host) or is_loopback(where.host):
        return
    if plan.any_name:
        yield RuleNotice(("tunnels", plan.name, "rule"), to_any_server(plan.any_name), is_warning=False)
    elif plan.user is None and where.protocol in ("socks5", "http"):
        text = "the proxy has no password: any host that can connect may use it; set user and password_file"
        yield RuleNotice(("tunnels", plan.name, "listen"), text, is_warning=False)


def _path(plan: Plan, option: str, inherited: Container[str]) -> Path:
    return ("defaults", option) if option in inherited else ("tunnels", plan.name, option)


def _limits_of_logins(plan: Plan) -> Iterator[RuleNotice]:
    for number, limit in enumerate(plan.options.limit):
        if limit.name == LOGIN:
            text = "login: counts wrong passwords, but the clients of this listener do not log in; leave it out"
            yield RuleNotice(("tunnels", plan.name, "limit", number), text)


MOST = 20  # lines about one tunnel: a list may have thousands of rules


def useless_rules(plan: Plan, *, files: bool) -> Iterator[Useless]:
    """Find the rules of a tunnel that can never match. This looks users up, which may block.

    :param plan: the plan of the tunnel.
    :param files: whether to read the files of rules, too.
    :raises ValueError: if an entry is wrong.
    :raises OSError: if a file cannot be read.
    """
    where: Any = plan.routes.where
    host = where.host if isinstance(where, AT_PORT) else ""
    at_listener = Known(version=version_at(host), has_loopback=bool(host) and is_loopback(host))
    senders, listener = plan.options.accept_proxy, _listener(where)
    is_behind = getattr(where, "trusted_proxies", None) is not None  # they say who the clients are
    kinds = possible_kinds(
        listener,
        has_certificates=isinstance(where, WITH_CERTIFICATE) and where.client_ca is not None,
        has_login=plan.user is not None,
        has_header=senders is not None,
    )
    known = at_listener._replace(user=plan.user, are_local=True) if senders is None and not is_behind else Known()
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
        HTTPSListen: "tls",
    }
    if listens_at_tor(where):
        return "tor"
    return kinds.get(type(where), "tls" if isinstance(where, WithCertificate) else "tcp")
