"""``relay doctor``: test a route hop by hop, and name the step that fails."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from ...addresses.hops import is_slow
from ...addresses.printable import shown
from ...daemon.failures import carriers_quiet, configuration_read
from ...daemon.options import Options
from ...daemon.routed_targets import with_bridge, with_bridges
from ..addresses import read_hops, read_target
from ..i2p_options import read_bridges, sam
from ..options import SECONDS, GroupedCommand, debug, finite_seconds, via
from ..output import failures_reported, logged_to_stderr, print_line

if TYPE_CHECKING:
    from ...config import Config
    from ..doctor.jobs import Job
    from ..doctor.report import Check, Section

EXAMPLES = """Examples:

relay doctor (this machine only: limits, versions, the kernel)

relay doctor db:5432 --via ssh://me@bastion (each step of the route to a database)

relay doctor --via ssh://me@bastion --via ssh://me@inner (the hops, without a target)

relay doctor tls://db.example:5433?ca=ca.pem --json (for programs; the certificate's end is among the facts)

relay doctor i2p://NAME.b32.i2p (the SAM bridge, the session, the destination)

relay doctor --config relay.toml db site (two tunnels of a file)
"""

_TIMEOUT, _OVER_I2P = 60.0, 300.0


@click.command(cls=GroupedCommand, epilog=EXAMPLES)
@click.argument(
    "words",
    metavar="[ADDRESS | NAME …]",
    nargs=-1,
    help="A target as in relay forward; with --config, names of tunnels [all].",
)
@via
@click.option("--config", metavar="FILE", help="Test the tunnels of a relay.toml.")
@sam
@click.option(
    "--timeout",
    metavar=SECONDS,
    type=finite_seconds,
    help="Maximum time for each route, hops included [60; over I2P or Tor 300].",
)
@click.option(
    "--listen",
    "open_remote",
    is_flag=True,
    help="With --config: listen on SSH servers and on I2P for a moment.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@debug
def doctor(
    words: Sequence[str],
    via: Sequence[str],
    config: str | None,
    sam: Sequence[str],
    timeout: float | None,
    open_remote: bool,
    as_json: bool,
    debug: bool,
) -> None:
    """Test the route to ADDRESS, or the tunnels of a file, with the code that relays.

    Prints one line for each step: ✓ it works, ✗ it fails, ! it works but needs attention, – it was not tested. A line
    with an arrow says what to change. Exits with status 0 if no step failed, 1 if one did, and 2 for a wrong command
    line or file.

    It changes nothing: no host key or key file is written, nothing is left listening. I2P sessions have new
    destinations, so that a running relay keeps its own. Secrets are never printed.
    """
    with (
        logged_to_stderr("text", verbose=False, debug=debug),
        # The report names each failure with its step; the log of the carriers would say the same between its lines.
        contextlib.nullcontext() if debug else carriers_quiet(logging.WARNING),
        failures_reported(debug=debug),
    ):
        if config is not None:
            with configuration_read():
                from ... import config as files

                read = files.read(config)
            with contextlib.chdir(read.folder):
                _report(_of_file(read, words, via, sam), timeout, open_remote=open_remote, as_json=as_json, file=config)
            return
        if len(words) > 1:
            raise ValueError(f"{shown(words[1])}: expected one ADDRESS; --config FILE tests tunnels by name")
        if open_remote:
            raise ValueError("--listen: there is no address to listen on; use it with --config FILE")
        _report(_of_line(words, via, sam), timeout, open_remote=False, as_json=as_json)


def _of_line(words: Sequence[str], via: Sequence[str], sam: Sequence[str]) -> list[Job]:
    """Return the route of the command line; nothing if only this machine is tested."""
    from ...daemon.routed_targets import over
    from ..doctor.jobs import Job, jobs_of_routers

    bridges = read_bridges(sam)
    if not words and not via:
        if bridges is None:
            return []
        raise ValueError("--sam: there is no I2P address; name one, or use --via i2p:")
    if not words:
        route = tuple(with_bridge(bridges, hop) for hop in read_hops(via, ""))
        return jobs_of_routers(Job("route", over(route).removeprefix(" "), route))
    route = read_hops(via, words[0])
    target, route = with_bridges(bridges, read_target(words[0], route), route)
    return jobs_of_routers(Job("route", f"{shown(str(target))}{over(route)}", route, target))


def _of_file(config: Config, names: Sequence[str], via: Sequence[str], sam: Sequence[str]) -> list[Job]:
    """Return the routes of the tunnels of a file.

    :raises ProblemsError: if the file has problems.
    """
    from ...daemon.plan_from_file import check_problems, plans_of
    from ..doctor.jobs import jobs_of_plan

    for option, given in (("--via", via), ("--sam", sam)):
        if given:
            raise ValueError(f"{option}: the file has the hops; leave it out, or leave --config out")
    known = [entry.name for entry in config.entries]
    for name in names:
        if name not in known:
            raise ValueError(f"{shown(name)}: no such tunnel in the file; it has {', '.join(known) or 'none'}")
    plans = plans_of(config, Options())
    check_problems(config)
    return [job for plan in plans if not names or plan.name in names for job in jobs_of_plan(plan)]


def _report(
    jobs: Sequence[Job], timeout: float | None, *, open_remote: bool, as_json: bool, file: str | None = None
) -> None:
    """Test the routes and this machine, and print what was found.

    :raises click.exceptions.Exit: with status 1 if a step failed.
    """
    from ...daemon.probes import report_slow
    from ..doctor.files import mode_checks
    from ..doctor.jobs import run_jobs
    from ..doctor.machine import machine
    from ..doctor.report import Report, Section, print_section, print_summary

    def show(section: Section) -> None:
        if not as_json:
            print_section(section, brief=section is own and bool(jobs))

    limits = [job.connections for job in jobs]
    most = sum(filter(None, limits)) if limits and None not in limits else None
    checks: list[Check] = [*machine(most), *(mode_checks("config file", file, 0o022) if file else [])]
    own = Section("machine", "this machine", checks)
    if any(map(_is_slow, jobs)) and sys.stderr is not None and sys.stderr.isatty():
        report_slow()
    limit = timeout or max([_TIMEOUT, *(_OVER_I2P for job in jobs if _is_slow(job))])
    report = Report([*run_jobs(jobs, limit, show, open_remote=open_remote), own])
    # Last, below the routes: what is wrong with the machine explains them only after they are read.
    show(own)
    if as_json:
        print_line(json.dumps(report.as_json(), indent=2))
    else:
        print_summary(report)
    if report.failed:
        raise click.exceptions.Exit(1)


def _is_slow(job: Job) -> bool:
    ends = [each for each in (job.target, job.listen) if each is not None]
    return is_slow((*job.route, *job.listen_via), *ends)
