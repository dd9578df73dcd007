"""``relay.daemon.tunnel_probes``: which tunnels have a probe, and what it is."""

from types import SimpleNamespace

import pytest

from relay.access.proxy_header import build_local
from relay.daemon import probing
from relay.daemon.member import MemberState
from relay.daemon.options import Options
from relay.daemon.preflight import Routes
from relay.daemon.status import ProbeStatus
from relay.daemon.tunnel_probes import TunnelProbes
from relay.streams.dialer import Dialer
from relay.targets.group import ProbeOutcome, ProbeSchedule, TargetGroup

TARGET = [((), "t:1")]
ANYWHERE = [((), None)]


def member(name="a", *, state=MemberState.LISTENING, out=TARGET, is_open=True, rules=0, **options):
    plan = SimpleNamespace(options=Options(**options), routes=Routes(":1", out=out), rules=rules)
    return SimpleNamespace(name=name, plan=plan, has_opened=is_open, make_send=Dialer("t:1"), state=state)


class Prober:
    """The prober: notes the targets each time that it is woken."""

    def __init__(self, target_of):
        self.target_of = target_of
        self.seen = []
        self.is_closed = False

    def wake(self, names):
        self.seen.append([target for name in names if (target := self.target_of(name)) is not None])

    def status(self, name):
        return "known" if name == "known" else None

    def close(self):
        self.is_closed = True


@pytest.fixture
def probers(monkeypatch):
    made = []

    def make(target_of):
        made.append(Prober(target_of))
        return made[-1]

    monkeypatch.setattr(probing, "Prober", make)
    return made


def probes_of(*members):
    known = {member.name: member for member in members}
    group = SimpleNamespace(member=known.get, on_change=None, without_probes=frozenset())
    return TunnelProbes(group), lambda: group.on_change(members)


def test_a_tunnel_whose_session_another_process_is_about_to_have_is_not_probed(probers):
    one, several = member("one", probe="connect"), member("several", probe="connect")
    several.make_send = Targets()
    probes, change = probes_of(one, several)
    change()
    assert [len(seen) for seen in probers[0].seen] == [1]
    probes._group.without_probes = frozenset({"one", "several"})
    change()
    assert [len(seen) for seen in probers[0].seen] == [1, 0]
    assert not several.make_send.schedules[0].is_wanted()


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"probe": "none"},
        {"probe": "connect", "out": ANYWHERE},
        {"probe": "connect", "out": []},
        {"probe": "connect", "rules": 1},
    ],
)
def test_a_tunnel_without_a_probe_starts_nothing(probers, fields):
    made = member(**fields)
    probes, change = probes_of(made)
    change()
    assert probers == []
    assert probes.status(made) is None
    probes.close()


@pytest.mark.parametrize(
    ("state", "is_open", "count"),
    [
        (MemberState.LISTENING, True, 1),
        (MemberState.PAUSED, True, 1),
        (MemberState.DRAINING, True, 0),
        (MemberState.OPENING, False, 0),
    ],
)
def test_a_tunnel_is_probed_while_it_has_its_listener(probers, state, is_open, count):
    _, change = probes_of(member(state=state, is_open=is_open, probe="banner"), member("b"))
    change()
    assert [len(seen) for seen in probers[0].seen] == [count]


@pytest.mark.parametrize(
    ("options", "interval", "timeout"),
    [
        ({}, probing.DEFAULT_INTERVAL, probing.DEFAULT_INTERVAL),
        ({"probe_interval": 5.0}, 5.0, 5.0),
        ({"probe_interval": 5.0, "connect_timeout": 2.0}, 5.0, 2.0),
        ({"connect_timeout": 60.0}, probing.DEFAULT_INTERVAL, probing.DEFAULT_INTERVAL),
    ],
)
def test_a_probe_ends_before_the_next_one_and_with_the_connect_timeout(probers, options, interval, timeout):
    _, change = probes_of(member(probe="http://path", **options))
    change()
    [target] = probers[0].seen[0]
    assert (target.name, target.kind, target.interval, target.timeout, target.host) == (
        "a",
        "http",
        interval,
        timeout,
        "t:1",
    )


class Targets(TargetGroup):
    """Several targets that probe themselves."""

    target = "t:1, t:2"

    def __init__(self):
        self.schedules = []
        self.outcome = None
        self.alternatives = ("t:1", "t:2")

    def probe_every(self, schedule):
        self.schedules.append(schedule)

    def probe_outcome(self):
        return self.outcome


def test_several_targets_are_probed_one_by_one(probers):
    """By themselves, so that one that fails gets no clients; the tunnel is ready if one of them passes."""
    made, targets = member(probe="http://path", probe_interval=5.0, connect_timeout=2.0), Targets()
    made.make_send = targets
    probes, change = probes_of(made)
    change()
    assert probers == []
    (found,) = targets.schedules
    assert found == ProbeSchedule("http://path", 5.0, 2.0)
    assert found.is_wanted()
    assert probes.status(made) == ProbeStatus("http", 5.0)
    targets.outcome = ProbeOutcome(17.0, 0.5, "t:1: status 503")
    assert probes.status(made) == ProbeStatus("http", 5.0, 17.0, 0.5, "t:1: status 503")
    made.make_send = Targets()  # after a reload
    assert not found.is_wanted()
    made.make_send = targets
    made.state = MemberState.DRAINING
    assert not found.is_wanted()
    change()
    assert targets.schedules[1:] == []  # they end by themselves: a connect alone would take back one that hangs


def test_one_prober_serves_all_changes_and_is_closed(probers):
    probes, change = probes_of(member(probe="connect"))
    change()
    change()
    probes.close()
    [prober] = probers
    assert len(prober.seen) == 2
    assert prober.is_closed


def test_the_status_before_the_first_probe(probers):
    made = member(probe="http://path", probe_interval=5.0)
    probes, change = probes_of(made)
    assert (probes.status(made).kind, probes.status(made).interval) == ("http", 5.0)
    assert probes.status(made).finished is None
    change()
    assert probes.status(member("known", probe="connect")) == "known"


@pytest.mark.parametrize("version", [None, "v1", "v2"])
def test_a_probe_says_that_it_is_relays_own(probers, version):
    _, change = probes_of(member(probe="connect", send_proxy=version))
    change()
    change()
    (first,), (again,) = probers[0].seen
    assert first.header == (b"" if version is None else build_local(version))
    assert first == again  # else the prober would begin anew each time that it looks
