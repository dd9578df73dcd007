"""The tunnels of a file as plans. A key has the meaning of the option with its name."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from ..addresses.hops import Hop, listens_at_tor
from ..addresses.i2p import I2PListen
from ..addresses.resume import ResumeListen
from ..config import LIMITS, LISTS, OTHERS, Config, Entry
from ..config.lines import Path
from ..config.models import File
from ..errors import can_retry
from .failures import ProblemsError, describe_error
from .loops import find_loops
from .options import NOT_NONE, Options
from .plan import RESUME_SESSION, Plan, make_plan, make_proxy_plan
from .routed_targets import RoutedTarget, with_bridge, with_bridges, with_session

if TYPE_CHECKING:
    from ..access.access_list import EntryError

_OPTION = re.compile(r"--([a-z][a-z0-9-]*)")


def plans_of(config: Config, shown: Options, known: Mapping[str, Plan] | None = None) -> list[Plan]:
    """Return the plans of all tunnels without problems; problems of others are added to the file.

    :param shown: the options of output.
    :param known: the plans of an earlier state of the file, by name; an entry that is the same keeps its plan.
    """
    found: list[Plan] = []
    for entry in config.entries:
        path = ("tunnels", entry.name)
        same = known.get(entry.name) if known is not None else None
        has_hop_with_problem = entry.target is None and not entry.is_proxy  # it has none of its own then
        if config.problems.about(*path) or has_hop_with_problem:
            continue
        if same is not None and same.entry is entry:
            found.append(same)
        else:
            with collect_problems(config, *path):
                found.append(plan_of(entry, shown))
    loops = {loop.name: loop.text for loop in find_loops(found)}
    for name, text in loops.items():
        config.problems.add(("tunnels", name, "target"), text)
    return [one for one in found if one.name not in loops]


@contextmanager
def collect_problems(config: Config, *path: str) -> Iterator[None]:
    """Add a failure to the problems of the value at a path."""
    try:
        yield
    except (OSError, ValueError, TypeError) as error:
        add_problem(config, path, error)


def add_problem(config: Config, path: Path, error: Exception, hop: Hop | None = None) -> None:
    """Add a failure to the problems of the value at a path, of the entry of an access list there, or of a named hop."""
    from ..access.access_list import EntryError

    text = describe_error(error)
    if isinstance(error, EntryError) and (place := _place_of(error, config.file, path)) is not None:
        path, text = place, error.problem
    path = next((("hops", name) for name, value in config.hops.items() if value == hop), path)
    config.problems.add(path, options_to_keys(text), is_config_error=not can_retry(error))


def _place_of(error: EntryError, file: File, path: Path) -> Path | None:
    """Return the path of an entry of a tunnel, or of the defaults; ``None`` if it is part of an address."""
    entries = getattr(file.tunnels[str(path[1])], error.option) if path[0] == "tunnels" else ()
    if entries is None:
        path, entries = ("defaults",), getattr(file.defaults, error.option) or ()
    return (*path, error.option, entries.index(error.entry)) if error.entry in entries else None


def options_to_keys(text: str) -> str:
    """Return a message with the keys of a file instead of the options of a command line."""
    return _OPTION.sub(lambda found: found[1].replace("-", "_"), text)


def plan_of(entry: Entry, shown: Options) -> Plan:
    """Return the plan of a tunnel.

    :param entry: its table.
    :param shown: the options of output.
    :raises ValueError: if it has a problem.
    """
    return dataclasses.replace(_plan_of(entry, shown), entry=entry, is_required=bool(entry.tunnel.required))


def _plan_of(entry: Entry, shown: Options) -> Plan:
    tunnel = entry.tunnel
    options = limits(entry, shown)
    assert entry.listen is not None, "a tunnel without problems has an address to listen on"
    if entry.is_proxy:
        return make_proxy_plan(
            _resume_server(entry) if entry.resumes else entry.listen,
            options,
            name=entry.name,
            via=entry.via,
            rules=entry.rules,
            user=tunnel.user,
            password=tunnel.password,
            password_file=tunnel.password_file,
            password_env=tunnel.password_env,
            bridges=entry.bridges,
            listen_via=tuple(with_bridge(entry.bridges, hop) for hop in entry.listen_via),
        )
    assert entry.target is not None, "a tunnel that is no proxy has a target"
    listen = with_bridge(entry.bridges, entry.listen)
    target, via = with_bridges(entry.bridges, entry.target, entry.via)
    if isinstance(listen, I2PListen) or listens_at_tor(listen):
        listen = with_session(
            cast("Any", listen),
            entry.target,
            keys=tunnel.keys,
            session=tunnel.session,
            transient=bool(tunnel.transient),
        )
    listen_via = tuple(with_bridge(entry.bridges, hop) for hop in entry.listen_via)
    others: list[RoutedTarget] = []
    for route, end in entry.others:
        bridged = with_bridges(entry.bridges, end, route)
        others.append((bridged[1], bridged[0]))
    policy = tunnel.policy or "first"
    return make_plan(
        listen, target, options, name=entry.name, via=via, listen_via=listen_via, others=others, policy=policy
    )


def _resume_server(entry: Entry) -> ResumeListen:
    tunnel, place = entry.tunnel, with_bridge(entry.bridges, entry.listen)
    if isinstance(place, I2PListen):
        given = tunnel.keys, tunnel.session, bool(tunnel.transient)
        place = with_session(place, RESUME_SESSION, keys=given[0], session=given[1], transient=given[2])
    return ResumeListen(place)


def limits(entry: Entry, shown: Options) -> Options:
    """Return the options with the limits of a tunnel."""
    names = (*LIMITS, *LISTS, *OTHERS, "probe", "probe_interval", "workers", "carrier_sharing")
    said = {name: value for name in names if (value := getattr(entry.tunnel, name)) is not None}
    unlimited = [name for name, value in said.items() if value == math.inf and name not in NOT_NONE]
    lists = {name: tuple(value) for name, value in said.items() if isinstance(value, list)}
    return dataclasses.replace(shown, **said | dict.fromkeys(unlimited) | lists)


def check_problems(config: Config) -> None:
    """Check that a file has no problems.

    :raises ProblemsError: if there are any: with status 2 if the user has to change something, 1 if host names cannot
        be resolved.
    """
    if problems := config.problems.in_order():
        status = 2 if any(problem.is_config_error for problem in problems) else 1
        raise ProblemsError([config.problems.format(problem) for problem in problems], status)
