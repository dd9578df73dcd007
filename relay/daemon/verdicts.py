"""The verdicts of a reload: a comparison of values by name. Nothing here opens or touches anything."""

from __future__ import annotations

import dataclasses
import enum
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..addresses.hops import ProxyListen, listens_at_tor, owner_of_keys
from ..addresses.https import WITH_CERTIFICATE, HTTPSListen
from ..addresses.i2p import I2PListen, I2PRouter
from ..addresses.mptcp import without_mptcp
from ..addresses.options import files_of
from ..addresses.values import TargetOverTCP, TLSListen, TLSTarget, WithCertificate, has_mptcp
from ..config import LIMITS, LISTS, Entry
from ..engine.command_options import CommandOptions
from ..engine.options import tunnel_options
from .plan import Plan


class Verdict(enum.IntEnum):
    """The effect of a reload on a tunnel; a tunnel that changes in several ways has the greatest."""

    SAME = 0
    """Nothing has changed, and nothing is touched."""
    TUNED = 1
    """It changes in place."""
    REROUTED = 2
    """New connections take another route; the listener stays open."""
    MOVED = 3
    """It listens elsewhere, or with another identity."""
    GONE = 4
    """It is not in the file any more."""
    NEW = 5
    """It was not in the file."""

    @property
    def word(self) -> str:
        """The word in the log."""
        return self.name.lower()


TUNED, REROUTED, MOVED = Verdict.TUNED, Verdict.REROUTED, Verdict.MOVED

EFFECTS: Mapping[str, Verdict] = {
    **{name: Verdict[option.effect.upper()] for name, option in tunnel_options(CommandOptions).items() if option.key},
    **dict.fromkeys(("required", "on_reload", "probe", "probe_interval"), TUNED),
    **dict.fromkeys(("user", "password", "password_file", "password_env"), TUNED),
    **dict.fromkeys(("target", "via", "policy", "rule"), REROUTED),
    **dict.fromkeys(("listen", "listen_via", "keys", "session", "transient", "sam"), MOVED),
    **dict.fromkeys(("workers", "carrier_sharing", "mptcp"), MOVED),
}
"""The verdict for a change of each key of a tunnel; one of ``sam`` or ``mptcp`` that spares the listener is
*rerouted*."""

_FILES = {"listen": TUNED, "target": REROUTED}  # a file with the same name has another content


def with_files(plan: Plan) -> Plan:
    """Return a plan of a file with the identities that the files it names have now."""
    files = {key: tuple(map(_identity, paths)) for key, paths in _files(plan.table)}
    return plan if files == plan.files else dataclasses.replace(plan, files=files)  # most tunnels name none


def values_of(plan: Plan) -> dict[str, Any]:
    """Return the value of each key of a tunnel: after defaults and hops have been applied."""
    entry, where = plan.table, plan.routes.where
    tunnel = entry.tunnel
    destination = owner_of_keys(where)
    targets = (entry.target, *(end for _, end in entry.others))
    values: dict[str, Any] = {
        **{name: getattr(plan.options, name) for name in LIMITS},
        "required": plan.is_required,
        "on_reload": plan.on_reload,
        "probe": tunnel.probe or "none",
        "probe_interval": tunnel.probe_interval,
        "listen": (_place(entry.listen), entry.is_proxy, entry.resumes),
        "listen_via": entry.listen_via,
        "target": tuple(dict.fromkeys(map(without_mptcp, targets))),
        "via": tuple(dict.fromkeys((entry.via, *(route for route, _ in entry.others)))),
        "policy": tunnel.policy or "first",
        "rule": entry.rules,
        "mptcp": (
            has_mptcp(entry.listen),
            tuple(one for one in targets if has_mptcp(one)),
        ),
        "sam": entry.bridges,
        "keys": destination and destination.keys,
        "session": destination and destination.session,
        "transient": bool(tunnel.transient),
        **{name: getattr(plan.options, name) for name in LISTS},
        **{name: _login(entry, name) for name in ("user", "password", "password_file", "password_env")},
    }
    return values | {name: getattr(tunnel, name) for name in EFFECTS if name not in values}


@dataclass(frozen=True, slots=True)
class Change:
    """The effect of a reload on one tunnel, and the keys that cause it.

    :param name: of the tunnel.
    :param verdict: the greatest of those of its keys.
    :param keys: the keys that differ, in the order of the reference; none for *same*, *gone* and *new*.
    """

    name: str
    verdict: Verdict
    keys: tuple[str, ...] = ()

    def __str__(self) -> str:
        keys = f" ({', '.join(self.keys)})" if self.keys else ""
        return f"{self.name}: {self.verdict.word}{keys}"


def compare(old: Iterable[Plan], new: Iterable[Plan]) -> list[Change]:
    """Compare the tunnels of two files by name.

    :param old: the plans of those that run.
    :param new: the plans of the file.
    :returns: a change for each tunnel: those of the new file in its order, then those that are gone.
    """
    before = {one.name: one for one in old}
    found = [_change(before.get(one.name), one) for one in new]
    names = {change.name for change in found}
    return [*found, *(Change(name, Verdict.GONE) for name in before if name not in names)]


def _change(old: Plan | None, new: Plan) -> Change:
    if old is None:
        return Change(new.name, Verdict.NEW)
    effects: dict[str, Verdict] = {}
    if old.entry is not new.entry:  # else nothing that is written has changed
        was, now = values_of(old), values_of(new)
        effects = {key: _effect(key, old, new) for key in now if was[key] != now[key]}
    for key, effect in _FILES.items():
        if key not in effects and old.files.get(key) != new.files.get(key):
            effects[key] = effect
    return Change(new.name, max(effects.values(), default=Verdict.SAME), tuple(effects))


def _effect(key: str, old: Plan, new: Plan) -> Verdict:
    was, now = old.table, new.table
    if key == "sam" and not _listens_at_i2p(was) and not _listens_at_i2p(now):
        return REROUTED
    if key == "mptcp" and has_mptcp(was.listen) == has_mptcp(now.listen):
        return REROUTED
    if key == "listen" and _place(was.listen, tuned=True) == _place(now.listen, tuned=True):
        return TUNED if (was.is_proxy, was.resumes) == (now.is_proxy, now.resumes) else MOVED
    return EFFECTS[key]


def _listens_at_i2p(entry: Entry) -> bool:
    places = (entry.listen, *entry.listen_via)
    return any(isinstance(place, I2PListen | I2PRouter) for place in places)


def _place(listen: Any, *, tuned: bool = False) -> Any:
    """Return an address to listen on without what keys of their own stand for.

    :param tuned: whether to leave out as well what can change in place.
    """
    listen = without_mptcp(listen)
    if isinstance(listen, I2PListen):
        router = dataclasses.replace(listen.router, keys=None, session="")
        return dataclasses.replace(listen, router=router, allow=None, deny=())
    if listens_at_tor(listen):
        return dataclasses.replace(listen, keys=None, session="")
    if isinstance(listen, ProxyListen):
        listen = dataclasses.replace(listen, user=None, password=None, password_file=None, password_env=None)
    if tuned and isinstance(listen, HTTPSListen | WithCertificate):
        return dataclasses.replace(listen, client_ca=None, groups=None)
    if tuned and isinstance(listen, TLSListen):
        return dataclasses.replace(listen, client_ca=None, alpn=None, groups=None)
    return listen


def _login(entry: Entry, name: str) -> Any:
    """Return a key of the login of a proxy, which may be in its address as well."""
    given = getattr(entry.tunnel, name)
    return getattr(entry.listen, name, None) if given is None and entry.is_proxy else given


def _files(entry: Entry) -> Iterator[tuple[str, list[str]]]:
    """Return the files that a tunnel reads when it opens, by the key that names them."""
    paths: list[str | None] = []
    if isinstance(listen := entry.listen, WITH_CERTIFICATE):
        paths += listen.cert, listen.key, listen.client_ca
    if entry.is_proxy:
        paths += entry.tunnel.password_file, getattr(listen, "password_file", None)
    if paths:
        yield "listen", [path for path in paths if path]
    targets = [
        end for end in (entry.target, *(end for _, end in entry.others)) if isinstance(end, TLSTarget | TargetOverTCP)
    ]
    if targets:
        yield "target", [path for end in targets for path in files_of(end)]


def _identity(path: str) -> tuple[str, int, int, int]:
    try:
        status = os.stat(os.path.expanduser(path))
    except OSError:
        return path, 0, 0, 0  # the check of the tunnel reports it
    return path, status.st_mtime_ns, status.st_size, status.st_ino
