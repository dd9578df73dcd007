"""The routes to test, of a command line or of a file: side by side, and shown in their order."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import queue
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from ...addresses.hops import Listen, Route
from ...addresses.i2p import Bridges, I2PListen, I2PRouter, I2PTarget, router_of
from ...addresses.printable import shown
from ...addresses.resume import ResumeListen, ResumeServer, place_of
from ...addresses.ssh import SSHServer
from ...daemon.plan import Plan
from ...daemon.routed_targets import over
from .files import configuration, permissions
from .listening import check_listen
from .probe import Destination, RouteProbe
from .report import Check, Section, Status

logger = logging.getLogger("relay.cli")

AT_ONCE = 4  # routes that are tested at one time
_OF_TARGET = ("target", "forwarding", "first bytes", "tls", "certificate", "proxy request", "destination")

Address = TypeVar("Address")


@dataclass(frozen=True, slots=True)
class Job:
    """One route to test.

    :param name: of its section; jobs with one name are one section.
    :param title: of its section.
    :param route: the hops to the target.
    :param target: ``None`` for the hops alone.
    :param listen: the address to listen on; ``None`` for none.
    :param listen_via: the hops to that.
    :param connections: that the tunnel allows at one time; ``None`` if there is no limit.
    """

    name: str
    title: str
    route: Route = ()
    target: Destination = None
    listen: Listen | None = None
    listen_via: Route = ()
    connections: int | None = None

    @property
    def group(self) -> Hashable:
        """Equal for jobs that share the connections of their hops."""
        # Without hops there is nothing to share, so such jobs need not wait for each other.
        return self.route or id(self)


def jobs_of_routers(job: Job) -> list[Job]:
    """Return a job for each router of I2P at which its sessions may be, or the job itself."""
    count = max(len(_bridges(one)) for one in (*job.route, *job.listen_via, job.target, job.listen, None))
    return [_at_router(job, number) for number in range(count)] if count > 1 else [job]


def jobs_of_plan(plan: Plan) -> list[Job]:
    """Return the routes of a tunnel; a proxy has one for each set of hops of its rules."""
    connections = plan.options.nconnect if plan.options.nconnect > 0 else None
    where, before, out = plan.routes[:3]
    jobs = [
        Job(plan.name, f"{plan.name}: {plan.configured}", route, target, connections=connections)
        for route, target in out or [((), None)]
    ]
    jobs[0] = dataclasses.replace(jobs[0], listen=where, listen_via=before)
    return [one for job in jobs for one in jobs_of_routers(job)]


def run_jobs(
    jobs: Sequence[Job],
    timeout: float,
    on_section: Callable[[Section], object],
    *,
    open_remote: bool = False,
) -> list[Section]:
    """Test routes, several at a time.

    :param jobs: in the order in which they are shown.
    :param timeout: seconds for each of them.
    :param on_section: called in the caller's thread with each section, in that order, as soon as it is complete.
    :param open_remote: whether to listen on SSH servers and on I2P for a moment.
    :returns: the sections.
    """
    cancelled = threading.Event()
    groups: dict[Hashable, list[Job]] = {}
    for job in jobs:
        groups.setdefault(job.group, []).append(job)
    waiting: queue.SimpleQueue[list[Job] | None] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[Job, list[Check]]] = queue.SimpleQueue()
    for group in groups.values():
        waiting.put(group)
    tester = _Tester(timeout, cancelled, done.put, open_remote=open_remote)
    workers = min(AT_ONCE, len(groups))
    for _ in range(workers):
        # One for each worker, behind all groups: each takes exactly one of them as its end.
        waiting.put(None)
        # Daemon: a resolver that does not answer cannot be stopped, and must not hold the program after Ctrl-C.
        threading.Thread(target=tester.work, args=(waiting,), name="relay-doctor", daemon=True).start()
    try:
        return _collect(jobs, done, on_section)
    finally:
        cancelled.set()
        # After the flag: a test that is woken before would look, find nothing and wait again.
        tester.wake()


def _collect(
    jobs: Sequence[Job], done: queue.SimpleQueue[tuple[Job, list[Check]]], on_section: Callable[[Section], object]
) -> list[Section]:
    results: dict[int, list[Check]] = {}
    sections: list[Section] = []
    parts = [(name, list(group)) for name, group in itertools.groupby(jobs, key=lambda job: job.name)]
    for name, part in parts:
        # Results come in any order; the sections are shown in the order of the file.
        while not all(id(job) in results for job in part):
            job, checks = done.get()
            results[id(job)] = checks
        sections.append(Section(name, part[0].title, [check for job in part for check in results[id(job)]]))
        on_section(sections[-1])
    return sections


class _Tester:
    """Tests groups of jobs, on several threads."""

    def __init__(
        self,
        timeout: float,
        cancelled: threading.Event,
        done: Callable[[tuple[Job, list[Check]]], object],
        *,
        open_remote: bool,
    ) -> None:
        self._timeout = timeout
        self._cancelled = cancelled
        self._done = done
        self._open_remote = open_remote
        self._lock = threading.Lock()
        self._probes: list[RouteProbe] = []

    def work(self, waiting: queue.SimpleQueue[list[Job] | None]) -> None:
        """Test one group after the other."""
        while (group := waiting.get()) is not None and not self._cancelled.is_set():
            self._group(group)

    def wake(self) -> None:
        """Let all tests look at the cancellation."""
        with self._lock:
            probes = list(self._probes)
        for probe in probes:
            probe.wake()

    def probe(self, route: Route) -> RouteProbe:
        """Return a probe that :meth:`wake` reaches; the caller closes it."""
        made = RouteProbe(route, self._cancelled)
        with self._lock:
            self._probes.append(made)
        return made

    def _group(self, group: Sequence[Job]) -> None:
        route = _RouteTest(self.probe)
        try:
            for job in group:
                checks: list[Check] = []
                try:
                    self._test(job, route, checks)
                # A worker that died here would leave the caller waiting for the results of its other jobs.
                except Exception as error:
                    logger.debug("a check has failed", exc_info=True)
                    detail = f"{type(error).__name__}: {error}"
                    checks.append(Check("check", job.name, Status.FAILED, detail, "this is a bug of relay: report it"))
                self._done((job, checks))
        finally:
            route.close()

    def _test(self, job: Job, route: _RouteTest, checks: list[Check]) -> None:
        checks += _local_checks(job)
        # What cannot be opened on this machine is not dialled: the dial would fail for the same reason.
        if any(check.status is Status.FAILED for check in checks):
            return
        if job.route or job.target is not None:
            checks += route.test(job, time.monotonic() + self._timeout)
        if job.listen is not None:
            # A time of its own: a route that used all of its time must not fail the address to listen on.
            deadline = time.monotonic() + self._timeout
            checks += check_listen(job.listen, job.listen_via, self.probe, deadline, self._open_remote)


class _RouteTest:
    """The test of the targets of one route; once a hop has failed, it is not tested again.

    :param make_probe: makes the probe of a route.
    """

    def __init__(self, make_probe: Callable[[Route], RouteProbe]) -> None:
        self._make_probe = make_probe
        self._probe: RouteProbe | None = None
        self._broken = ""  # the name of the job whose hops have failed

    def test(self, job: Job, deadline: float) -> list[Check]:
        """Test the target of a job."""
        job, left_out = _without_own_keys(job)
        if self._broken:
            detail = f"its hops were not tested again: they have failed for {self._broken}"
            return [Check("hops", shown(over(job.route).strip()), Status.FAILED, detail, "see there")]
        if self._probe is None:
            # Made with the first target that is tested: a group whose configuration is wrong needs no hops.
            self._probe = self._make_probe(_anonymous(job.route))
        found = self._probe.test(_for_a_test(job.target), deadline)
        failed = [check for check in found if check.status is Status.FAILED]
        if job.route and any(check.step not in _OF_TARGET for check in failed):
            self._broken = job.name
            self._probe.close()  # else it would try again, and a server may count the logins
        return [*found, *left_out]

    def close(self) -> None:
        """Close the hops."""
        if self._probe is not None:
            self._probe.close()


def _local_checks(job: Job) -> list[Check]:
    hops: list[Any] = [*job.route, *job.listen_via, job.target, job.listen]
    hops += [getattr(each, name, None) for each in hops for name in ("router", "server")]
    subject = str(job.target) if job.target is not None else job.name
    where: Any = "" if job.listen is None else job.listen
    problems = configuration(where, job.listen_via, job.route, job.target, subject)
    return problems or permissions(filter(None, hops))


def _without_own_keys(job: Job) -> tuple[Job, list[Check]]:
    """Return a job that ends at a resume server at I2P, and says so.

    Streams there belong to the destination of the tunnel; a session with its keys would end that of a running relay.
    """
    for number, hop in enumerate(job.route):
        if isinstance(hop, ResumeServer) and isinstance(hop.place, I2PTarget):
            detail = "not tested: it would take the keys of the tunnel, whose session the router would end"
            skipped = Check("resume", str(hop), Status.SKIPPED, detail, "relay connect tests it while no relay runs")
            return dataclasses.replace(job, route=job.route[:number], target=hop.place), [skipped]
    return job, []


def _bridges(address: object) -> Bridges | tuple[()]:
    router = router_of(place_of(address))
    return router.sam if router is not None else ()


def _at_router(job: Job, number: int) -> Job:
    """Return a job with one bridge of each address; after the first one, without the rest that was tested before."""
    route, before = (tuple(_with_bridge(hop, number) for hop in hops) for hops in (job.route, job.listen_via))
    target, listen = _with_bridge(job.target, number), _with_bridge(job.listen, number)
    made = dataclasses.replace(job, route=route, target=target, listen=listen, listen_via=before)
    if number and not any(map(_bridges, (*route, target))):
        made = dataclasses.replace(made, route=(), target=None)
    if number and not any(map(_bridges, (*before, listen))):
        made = dataclasses.replace(made, listen=None, listen_via=())
    return made


def _with_bridge(address: Address, number: int) -> Address:
    """Return an address of I2P with one of its bridges, the last one if there are fewer; others as they are."""
    if isinstance(address, ResumeServer | ResumeListen):
        return cast("Address", type(address)(_with_bridge(address.place, number)))
    router, bridges = router_of(address), _bridges(address)
    if router is None or len(bridges) < 2:
        return address
    router = dataclasses.replace(router, sam=(bridges[min(number, len(bridges) - 1)],))
    made: Any = router if isinstance(address, I2PRouter) else dataclasses.replace(cast("Any", address), router=router)
    return cast("Address", made)


def _anonymous(route: Route) -> Route:
    return tuple(_for_a_test(hop) for hop in route)


def _for_a_test(address: Address) -> Address:
    """Return an address with one carrier; one of I2P has a new destination: a test must not end one in use."""
    if isinstance(address, SSHServer):
        return dataclasses.replace(address, carriers=1)
    if isinstance(address, I2PRouter):
        return dataclasses.replace(address, keys=None, session="", carriers=1)
    if isinstance(address, (I2PTarget, I2PListen)):
        return dataclasses.replace(address, router=_for_a_test(address.router))
    return address
