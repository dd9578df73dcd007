"""``relay run``: tunnels for the lifetime of one program."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ...addresses.values import TCPAddress, UnixListen
from ...daemon.failures import configuration_read, describe_error
from ...daemon.options import Options
from ...daemon.plan import Plan, make_plan
from ...daemon.private_folder import private_folder
from ...daemon.program import ProgramGroup, signals_held, with_route_probe
from ...daemon.routed_targets import with_bridges
from ...daemon.signals import Signals
from ...process import Process, find_program, start_in_place
from .. import startup
from ..addresses import read_hops, read_target
from ..options import SECONDS, GroupedCommand, debug, finite_seconds_or_zero, option_of_tunnel, via
from ..output import failures_reported, log_from, logged_to_stderr, print_error
from ..reporters import ManyTunnels

if TYPE_CHECKING:
    from ...addresses.hops import Listen, Route
    from ...daemon.member import Snapshot

logger = logging.getLogger("relay.cli")

EXAMPLES = """Examples:

relay run db=db:5432 --via ssh://me@bastion -- psql -h {db.host} -p {db.port} (a port of 127.0.0.1 for psql alone)

relay run db=db:5432 --via ssh://me@bastion -- psql -h {db.dir} (a private Unix socket, and no port)

relay run db=db:5432 cache=cache:6379 --via ssh://me@outer --via ssh://me@inner -- ./app (which reads RELAY_DB_PORT)

relay run --file relay.toml -- make test (all tunnels of a file)

relay run --file relay.toml db site -- bash (some of them, for a shell)

relay help hops lists the parameters of hops.
"""

_NAME = re.compile(r"[a-z][a-z0-9_-]{0,31}")
FIELDS = ("host", "port", "path", "dir")
_PLACEHOLDER = re.compile(r"\{([A-Za-z0-9_.-]+)\.([a-z]+)\}")
_SOCKET = ".s.PGSQL.5432"  # the name that libpq looks for in a directory; to other programs any will do


class _WithProgram(GroupedCommand):
    """A command whose words after ``--`` are a program and its arguments."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Take the program away from the words, and parse the others."""
        words, program = args, list[str]()
        if "--" in args:
            words, program = args[: args.index("--")], args[args.index("--") + 1 :]
        ctx.params["program"] = program
        return super().parse_args(ctx, words)


@click.command(cls=_WithProgram, epilog=EXAMPLES)
@click.argument(
    "words",
    metavar="NAME[=TARGET]... -- PROGRAM [ARG]...",
    nargs=-1,
    help="Tunnels: a name, and HOST:PORT, PORT, unix:///PATH, tls://HOST:PORT?ca=FILE or i2p://NAME.i2p[:PORT]; or the "
    "names of some of the file. Then the program.",
)
@via
@click.option(
    "--file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Open the tunnels of this relay.toml, all of them unless you name some.",
)
@click.option("--no-port", is_flag=True, help="Open no port for NAME=TARGET, only its Unix socket.")
@click.option(
    "--no-wait",
    is_flag=True,
    help="Start the program at once. A route that fails is reported; relay tries it again when the program connects.",
)
@option_of_tunnel("connect_timeout")
@click.option(
    "--drain",
    metavar=SECONDS,
    type=finite_seconds_or_zero,
    default=2.0,
    show_default=True,
    help="Maximum time for what the program has sent to arrive after its end.",
)
@click.option("--verbose", "-v", is_flag=True, help="Log to standard error what relay does.")
@debug
def run(
    program: Sequence[str],
    words: Sequence[str],
    via: Sequence[str],
    file: Path | None,
    no_port: bool,
    no_wait: bool,
    connect_timeout: float | None,
    drain: float,
    verbose: bool,
    debug: bool,
) -> None:
    """Open tunnels, run PROGRAM, and close them when it ends. Its exit status is that of relay.

    Each NAME=TARGET has a port of 127.0.0.1 and a Unix socket in a private directory. In the arguments of PROGRAM,
    {NAME.host}, {NAME.port}, {NAME.path} and {NAME.dir} (the directory of the socket) stand for them; its environment
    has RELAY_NAME_HOST, RELAY_NAME_PORT and RELAY_NAME_PATH. The port is not opened if PROGRAM has only {NAME.path} or
    {NAME.dir}. A tunnel of a file listens where the file says.

    PROGRAM starts when each route works: relay has opened a stream to each target. It has the terminal, and gets the
    signals. After its end relay closes what is still open and removes the sockets. If relay is killed, PROGRAM is, too.

    relay prints nothing unless a tunnel fails; it reconnects after a loss.

    Exit status: that of PROGRAM, or 128 and the number of the signal that ended it; 126 if PROGRAM cannot be executed,
    127 if there is none; before its start 1 if a route fails and 2 if you have to change something.
    """
    shown = Options(connect_timeout=connect_timeout, drain=drain, fail_fast=not no_wait, verbose=verbose, debug=debug)
    with signals_held(), logged_to_stderr("text", verbose=verbose, debug=debug), failures_reported(debug=debug):
        if not verbose and not debug:
            log_from(logging.ERROR)
        path = _path_of(program)
        given = [_parsed(word) for word in words if "=" in word]
        names = [word for word in words if "=" not in word]
        if names and file is None:
            raise ValueError(
                f"{names[0]}: target missing; write {names[0]}=HOST:PORT, or --file FILE for those of a file"
            )
        if not words and file is None:
            raise ValueError("NAME=TARGET: missing; write for example db=HOST:5432, or --file FILE")
        routes = [read_hops(via, target) for _, target in given]
        for route in routes[:1]:
            startup.preload_backend(route)
        here = os.getcwd()
        with contextlib.ExitStack() as stack:
            plans = _of_file(stack, file, names, shown) if file is not None else []
            known = [plan.name for plan in plans] + [name for name, _ in given]
            used = _check(program, known)
            # Also for the sockets of ssh, which would stay behind a relay that is killed.
            folder = tempfile.tempdir = stack.enter_context(private_folder())
            for (name, target), route in zip(given, routes, strict=True):
                has_port = not no_port and not (used[name] and used[name] <= {"path", "dir"})
                if no_port and used[name] & {"host", "port"}:
                    raise ValueError(f"{{{name}.port}}: there is no such value; leave --no-port out")
                plans += _plans(name, target, route, shown, folder, has_port=has_port)
            if file is not None:
                stack.enter_context(contextlib.chdir(os.path.dirname(os.path.abspath(file))))
            signals = stack.enter_context(Signals(catch=False))
            start = functools.partial(_start, program, path, here)
            group = ProgramGroup(plans, signals, _Quiet(watch=False), start, wait=not no_wait)
            status = group.run()
            if group.error is not None:
                raise group.error
    raise click.exceptions.Exit(status)


class _Quiet(ManyTunnels):
    """The tunnels of a program, which has the terminal: only failures are printed."""

    def on_opened(self, tunnel: Snapshot) -> None:
        logger.info("%s: listening on %s", tunnel.name, tunnel.title)


def _path_of(program: Sequence[str]) -> str:
    """Return the path of the program.

    :raises ValueError: if there is no word for one.
    :raises click.exceptions.Exit: if it cannot be run; one line has been printed then.
    """
    if not program:
        raise ValueError("PROGRAM: missing; write it after --")
    try:
        return find_program(program[0])
    except FileNotFoundError as error:
        is_file = "/" in program[0] and os.path.exists(program[0])
        print_error(f"{program[0]}: cannot be executed; chmod +x it" if is_file else describe_error(error))
        raise click.exceptions.Exit(126 if is_file else 127) from None


def _parsed(word: str) -> tuple[str, str]:
    """Return the name and the target of a word.

    :raises ValueError: if the name cannot be one.
    """
    name, _, target = word.partition("=")
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"'{name}': cannot be the name of a tunnel; allowed are a-z, then a-z, 0-9, _ and - (32 at most)"
        )
    return name, target


def variable(name: str) -> str:
    """Return the environment variable of a tunnel, without the field at its end."""
    return "RELAY_" + re.sub("[^A-Z0-9]", "_", name.upper())


def _check(program: Sequence[str], names: Sequence[str]) -> Mapping[str, set[str]]:
    """Return the fields of each tunnel that the words of a program have.

    :raises ValueError: if two tunnels have the same variables, or a placeholder is of no tunnel or no field.
    """
    variables: dict[str, str] = {}
    for name in names:
        if (other := variables.setdefault(variable(name), name)) is not name or names.count(name) > 1:
            raise ValueError(f"{name}: {other} has the variables {variable(name)}_… already; use another name")
    used: dict[str, set[str]] = {name: set() for name in names}
    for name, field in _PLACEHOLDER.findall(" ".join(program)):
        if name in used and field in FIELDS:
            used[name].add(field)
        elif name in used or field in FIELDS:
            fields = ", ".join(FIELDS)
            raise ValueError(f"{{{name}.{field}}}: there is no such value; allowed are {fields} of {', '.join(names)}")
    return used


def _of_file(stack: contextlib.ExitStack, file: Path, names: Sequence[str], shown: Options) -> list[Plan]:
    """Return the plans of the tunnels of a file.

    :param stack: ends what they need.
    :param names: of those that are meant; none for all.
    :param shown: the options that no key of the file overrides.
    :raises ProblemsError: if the file has problems.
    :raises ValueError: if it cannot be read, or has no tunnel of a name.
    """
    from ...daemon.tunnel_file import TunnelFile

    config = TunnelFile(os.path.abspath(file), shown, str(file), {"workers": 1})
    stack.enter_context(contextlib.closing(config.processes))
    with configuration_read():
        found = {member.name: member.plan for member in config.first()}
    for name in names:
        if name not in found:
            raise ValueError(f"{file}: there is no tunnel {name}; it has {', '.join(found)}")
    return [with_route_probe(plan, name) for name, plan in found.items() if not names or name in names]


def _plans(name: str, target: str, route: Route, options: Options, folder: str, *, has_port: bool) -> list[Plan]:
    """Return the plans of NAME=TARGET: that of its socket, and that of its port.

    :param folder: the private directory, in which it makes another one.
    :raises AddressError: if the target cannot be understood or holds a secret.
    :raises OSError: if the directory cannot be made.
    """
    end, via = with_bridges(None, read_target(target, route), route)
    place = os.path.join(folder, name)
    os.mkdir(place, 0o700)
    listens: list[Listen] = [UnixListen(os.path.join(place, _SOCKET))]
    if has_port:
        listens.append(TCPAddress("127.0.0.1", 0))
    return [with_route_probe(make_plan(where, end, options, name=name, via=via), name) for where in listens]


def _start(program: Sequence[str], path: str, folder: str, tunnels: Sequence[Snapshot]) -> Process:
    """Start the program.

    :param program: its words, with placeholders.
    :param path: of the program.
    :param folder: its current directory.
    :param tunnels: those that are open.
    :raises ValueError: if a placeholder has no value.
    :raises OSError: if the system has no room for another process.
    """
    places = {tunnel.name: tunnel.plan.routes.where for tunnel in tunnels}
    values: dict[str, dict[str, str]] = {name: {} for name in places}
    for tunnel in tunnels:
        if tunnel.has_opened:
            values[tunnel.name].update(_values(tunnel.relay.address))

    def value(found: re.Match[str]) -> str:
        name, field = found.groups()
        if name not in values:
            return found[0]
        if field not in values[name]:
            raise ValueError(f"{found[0]}: the tunnel has no such value: it listens at {places[name]}; leave it out")
        return values[name][field]

    env = {
        f"{variable(name)}_{field.upper()}": text
        for name, fields in values.items()
        for field, text in fields.items()
        if field != "dir"
    }
    words = [program[0], *(_PLACEHOLDER.sub(value, word) for word in program[1:])]
    return start_in_place(words, path, folder, {**os.environ, **env})


def _values(address: Any) -> dict[str, str]:
    """Return the fields of an address at which a tunnel listens; none if it does not do so on this machine."""
    if isinstance(address, str):
        return {"path": os.path.abspath(address), "dir": os.path.dirname(os.path.abspath(address))}
    if isinstance(address, tuple):
        any_host = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  (it is not listened at here)
        return {"host": any_host.get(address[0], str(address[0])), "port": str(address[1])}
    return {}
