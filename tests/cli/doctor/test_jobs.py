"""The routes to test: side by side, shown in their order, and hops that are broken are tested once."""

from __future__ import annotations

import threading
from typing import ClassVar

import pytest
from helpers import WAIT, Thread, wait_until

from relay.addresses.hops import Proxy
from relay.addresses.i2p import I2PListen, I2PRouter, I2PTarget
from relay.addresses.i2p_parser import parse_sam
from relay.addresses.parse import parse_listen
from relay.addresses.resume import ResumeListen, ResumeServer
from relay.addresses.values import TCPAddress
from relay.cli.doctor import jobs as module
from relay.cli.doctor.jobs import Job, jobs_of_plan, jobs_of_routers, run_jobs
from relay.cli.doctor.report import Check, Status
from relay.daemon.options import Options
from relay.daemon.plan import make_plan, make_proxy_plan
from relay.transports.dynamic import parse_rule

A, B = Proxy("socks5", "127.0.0.1", 1), Proxy("socks5", "127.0.0.1", 2)
DB = TCPAddress("127.0.0.1", 5432)


class Probe:
    """The probe of a route, as the test has it."""

    made: ClassVar[list[Probe]] = []
    work = staticmethod(lambda probe, target: [Check("connect", str(target), Status.OK, "connected")])

    def __init__(self, route, cancelled):
        self.route, self.cancelled = route, cancelled
        self.targets = []
        self.is_closed = False
        self.woken = threading.Event()
        self.made.append(self)

    def test(self, target, deadline):
        self.targets.append(target)
        return self.work(self, target)

    def wake(self):
        self.woken.set()

    def close(self):
        self.is_closed = True


@pytest.fixture
def probes(monkeypatch):
    monkeypatch.setattr(module, "RouteProbe", Probe)
    monkeypatch.setattr(Probe, "made", [])
    yield Probe.made
    wait_until(lambda: all(probe.is_closed for probe in Probe.made))


def test_sections_come_in_their_order_whatever_ends_first(probes, monkeypatch):
    first = threading.Event()

    def work(probe, target):
        assert target == DB or first.wait(WAIT)
        first.set()
        return [Check("connect", str(target), Status.OK, "connected")]

    monkeypatch.setattr(Probe, "work", staticmethod(work))
    shown = []
    jobs = [Job("slow", "slow: …", (A,), TCPAddress("localhost", 1)), Job("fast", "fast: …", (B,), DB)]
    sections = run_jobs(jobs, WAIT, lambda section: shown.append(section.name))
    assert shown == [section.name for section in sections] == ["slow", "fast"]
    assert [section.title for section in sections] == ["slow: …", "fast: …"]


def test_jobs_of_one_name_are_one_section_and_of_one_route_share_its_probe(probes):
    jobs = [Job("a", "a", (A,), DB), Job("a", "a", (B,), DB), Job("b", "b", (A,), DB)]
    sections = run_jobs(jobs, WAIT, lambda _: None)
    assert [len(section.checks) for section in sections] == [2, 1]
    assert sorted((str(probe.route[0]), len(probe.targets)) for probe in probes) == [(str(A), 2), (str(B), 1)]


def test_routes_without_hops_share_nothing(probes):
    run_jobs([Job("a", "a", (), DB), Job("b", "b", (), DB)], WAIT, lambda _: None)
    assert [probe.targets for probe in probes] == [[DB], [DB]]


@pytest.mark.parametrize(("step", "count"), [("login", 1), ("target", 2), ("first bytes", 2)])
def test_hops_that_failed_are_not_tested_again_but_those_of_a_target_that_failed(probes, monkeypatch, step, count):
    monkeypatch.setattr(Probe, "work", staticmethod(lambda *_: [Check(step, "x", Status.FAILED, "no")]))
    one, two = run_jobs([Job("a", "a", (A,), DB), Job("b", "b", (A,), DB)], WAIT, lambda _: None)
    (probe,) = probes
    assert len(probe.targets) == count
    (check,) = two.checks
    assert (check.step == "hops", "they have failed for a" in check.text) == (count == 1, count == 1)
    assert one.failed == two.failed == 1


def test_a_mistake_in_the_configuration_is_not_connected_to(probes, tmp_path):
    listen = parse_listen(f"tls://127.0.0.1:0?cert={tmp_path}/none&key={tmp_path}/none")
    (section,) = run_jobs([Job("a", "a", (), DB, listen)], WAIT, lambda _: None)
    assert probes == []
    assert [check.step for check in section.checks] == ["configuration"]


def test_no_session_with_the_keys_of_a_relay_that_runs(probes, tmp_path):
    router = I2PRouter(session="own")
    jobs = [Job("a", "a", (router,), TCPAddress("a.i2p", 80)), Job("b", "b", (), I2PTarget("a.i2p", router=router))]
    run_jobs(jobs, WAIT, lambda _: None)
    hop, target = sorted(probes, key=lambda probe: not probe.route)
    assert (hop.route[0].session, target.targets[0].router.session) == ("", "")


def test_a_resume_server_at_i2p_is_not_asked_by_the_destination_of_a_tunnel_that_runs(probes, tmp_path):
    hop = ResumeServer(I2PTarget("far.i2p", router=I2PRouter(keys=f"{tmp_path}/me.dat")))
    (section,) = run_jobs([Job("a", "a", (A, hop), DB)], WAIT, lambda _: None)
    (probe,) = probes
    assert (probe.route, probe.targets) == ((A,), [I2PTarget("far.i2p")])
    assert [(check.step, check.status) for check in section.checks] == [("connect", "ok"), ("resume", "skipped")]


def test_each_router_is_tested():
    one, other, both = (I2PRouter(parse_sam(sam)) for sam in ("a:1", "b:1", ["a:1", "b:1"]))
    listen, name = parse_listen(":0"), TCPAddress("x.i2p", 80)
    table = {
        Job("j", "j", (A,), DB, listen): [Job("j", "j", (A,), DB, listen)],
        Job("j", "j", (A, both), name, listen): [
            Job("j", "j", (A, one), name, listen),
            Job("j", "j", (A, other), name),
        ],
        Job("j", "j", (), I2PTarget("x.i2p", router=both)): [
            Job("j", "j", (), I2PTarget("x.i2p", router=one)),
            Job("j", "j", (), I2PTarget("x.i2p", router=other)),
        ],
        Job("j", "j", (), None, ResumeListen(I2PListen(both))): [
            Job("j", "j", (), None, ResumeListen(I2PListen(one))),
            Job("j", "j", (), None, ResumeListen(I2PListen(other))),
        ],
        Job("j", "j", (A,), DB, I2PListen(both), (one,)): [
            Job("j", "j", (A,), DB, I2PListen(one), (one,)),
            Job("j", "j", (), None, I2PListen(other), (one,)),
        ],
    }
    assert {job: jobs_of_routers(job) for job in table} == table


def test_the_end_wakes_the_tests(probes, monkeypatch):
    """Such as Ctrl-C, while the sections are shown."""
    begun = threading.Event()

    def work(probe, target):
        if target == DB:
            return [Check("connect", "x", Status.OK, "connected")]
        begun.set()
        assert probe.woken.wait(WAIT) and probe.cancelled.is_set()
        return []

    def interrupt(_):
        assert begun.wait(WAIT)
        raise KeyboardInterrupt

    monkeypatch.setattr(Probe, "work", staticmethod(work))
    jobs = [Job("a", "a", (A,), DB), Job("b", "b", (B,), TCPAddress("localhost", 1))]
    caller = Thread(run_jobs, jobs, WAIT, interrupt)
    with pytest.raises(KeyboardInterrupt):
        caller.result()


def test_a_bug_in_a_check_is_a_check_that_failed(probes, monkeypatch):
    def work(probe, target):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(Probe, "work", staticmethod(work))
    sections = run_jobs([Job("a", "a", (A,), DB), Job("b", "b", (A,), DB)], WAIT, lambda _: None)
    assert [section.failed for section in sections] == [1, 1]
    assert "ZeroDivisionError: a bug" in sections[0].checks[0].text


def test_the_jobs_of_a_tunnel_and_of_a_proxy():
    (job,) = jobs_of_plan(make_plan(parse_listen(":80"), DB, Options(nconnect=3), name="db", via=(A,)))
    assert (job.name, job.route, job.target, job.connections) == ("db", (A,), DB, 3)
    assert str(job.listen) == "127.0.0.1:80"
    rules = (parse_rule(f"*.corp={B}"), parse_rule("*=direct"))
    jobs = jobs_of_plan(make_proxy_plan(parse_listen("socks5://:80"), Options(), name="p", via=(A,), rules=rules))
    assert [(job.route, job.target, job.connections) for job in jobs] == [((A,), None, None), ((B,), None, None)]
    assert [job.listen is not None for job in jobs] == [True, False]
