"""A real group of tunnels as an instance."""

import contextlib
import dataclasses
import queue
import socket
import threading

import pytest
from group_rig import repeats, running, running_pair
from helpers import WAIT, receive_until_reset, wait_until
from instance_double import check_contract

from relay.addresses.parse import parse_hops, parse_listen, parse_target
from relay.carriers.listing import CarrierStatus
from relay.daemon.failures import ConflictError, NotFoundError
from relay.daemon.group import Group
from relay.daemon.instance import Instance
from relay.daemon.member import Member
from relay.daemon.options import Options
from relay.daemon.plan import make_plan, make_proxy_plan
from relay.daemon.signals import Signals
from relay.transports.dynamic import parse_rule
from relay.transports.resume.figures import ResumeFigures


@pytest.fixture
def group(echo_server):
    with running_pair("{}:{}".format(*echo_server.address), required=True) as made:
        yield made


@pytest.fixture
def instance(group):
    return Instance(group, "/etc/relay.toml", lambda: "/run/c.sock")


def connect(group):
    return socket.create_connection(group.members[0].relay.address, WAIT)


def test_it_keeps_the_contract_of_the_double(instance, group):
    with connect(group) as client:
        client.sendall(b"x")
        assert client.recv(1) == b"x"
        check_contract(instance)


def test_a_part_of_the_connections_goes_over_all_tunnels(instance, group):
    with contextlib.ExitStack() as stack:
        for member in (group.members[0], group.members[0], group.members[1], group.members[1]):
            client = stack.enter_context(socket.create_connection(member.relay.address, WAIT))
            client.sendall(b"x")
            assert client.recv(1) == b"x"
        ids = [each.id for each in instance.connections()]
        assert [each.tunnel for each in instance.connections()] == ["a", "a", "b", "b"]
        for first in range(6):
            for most in range(6):
                part = [each.id for each in instance.connections(first=first, most=most)]
                assert part == ids[first : first + most], (first, most)
        assert [each.id for each in instance.connections("b", 1, 5)] == ids[3:]


def test_it_shows_a_tunnel(instance, group, echo_server):
    tunnel = instance.tunnels()[0]
    host, port = group.members[0].relay.address
    assert (tunnel.name, tunnel.state, tunnel.required, tunnel.hops) == ("a", "listening", True, "up")
    assert (tunnel.listen, tunnel.target) == (f"{host}:{port}", "{}:{}".format(*echo_server.address))
    assert tunnel.figures.accepted == 0
    assert not instance.tunnels()[1].required


def test_it_shows_the_warm_streams_of_a_tunnel(tmp_path, echo_server):
    target = "{}:{}".format(*echo_server.address)
    text = (
        f'[tunnels.a]\nlisten = ":0"\ntarget = "{target}"\nwarm = 1\n[tunnels.b]\nlisten = ":0"\ntarget = "{target}"\n'
    )
    with running(tmp_path / "relay.toml", text) as group:
        instance = Instance(group, "/etc/relay.toml", str)
        wait_until(lambda: instance.tunnels()[0].warm is not None and instance.tunnels()[0].warm.ready == 1)
        assert instance.tunnels()[1].warm is None
        with socket.create_connection(group.tunnel("a").address, WAIT) as client:
            assert repeats(client)
            assert [one.warm for one in instance.connections()] == [True]
            assert (instance.tunnels()[0].warm.hits, instance.tunnels()[0].warm.misses) == (1, 0)


def test_it_shows_the_carriers_of_its_workers(instance, group, monkeypatch):
    own, other = CarrierStatus("ssh://b", "ssh", "up", 1.0, 0, 0), CarrierStatus("ssh://a", "ssh", "up", 1.0, 0, 0)
    of_workers = [dataclasses.replace(own, worker=number) for number in (2, 1)]
    monkeypatch.setattr("relay.daemon.instance.carriers", lambda: [other, own])
    monkeypatch.setattr(group.processes, "carriers", lambda: of_workers)
    assert [(one.name, one.worker) for one in instance.carriers()] == [
        ("ssh://a", None),
        ("ssh://b", None),
        ("ssh://b", 1),
        ("ssh://b", 2),
    ]


def test_it_adds_up_the_resumable_streams_of_its_workers(instance, group, monkeypatch):
    own, theirs = ResumeFigures(1, 2, 3, 4, 5), ResumeFigures(10, 20, 30, 40, 50)
    monkeypatch.setattr("relay.daemon.instance.resume_figures", lambda: own)
    monkeypatch.setattr(group.processes, "resumes", lambda: [theirs, theirs])
    assert instance.status(figures=True).resumes == (21, 42, 63, 84, 105)
    assert instance.status().resumes is None


def test_it_shows_and_kills_a_connection(instance, group):
    with connect(group) as client:
        client.sendall(b"abc")
        assert client.recv(3) == b"abc"
        (shown,) = instance.connections("a")
        assert shown.tunnel == "a"
        assert shown.peer == "{}:{}".format(*client.getsockname())
        assert (shown.state, shown.reason) == ("open", None)
        assert shown.id
        instance.kill(shown.id)
        receive_until_reset(client)
    wait_until(lambda: instance.recent("a"))
    (ended,) = instance.recent("a")
    assert (ended.id, ended.reason) == (shown.id, "killed")


def test_it_shows_and_kills_a_connection_of_a_tunnel_that_a_reload_has_removed(tmp_path, echo_server):
    target = "{}:{}".format(*echo_server.address)
    one, other = (f'[tunnels.{name}]\nlisten = ":0"\ntarget = "{target}"\n' for name in ("one", "other"))
    with running(tmp_path / "relay.toml", one + other) as made:
        instance = Instance(made, "", str)
        with made.connect("one") as client, made.connect("one") as second:
            assert repeats(client) and repeats(second)
            first, last = (each.id for each in instance.connections("one"))
            assert made.rewrite(other)["one"] == "gone"
            assert [tunnel.name for tunnel in instance.tunnels()] == ["other"]
            assert [each.id for each in instance.connections()] == [first, last]
            instance.kill(first)
            receive_until_reset(client)
            assert repeats(second)
            instance.kill(last)
            receive_until_reset(second)
        wait_until(lambda: made.leaving == ())
        for killed in (first, last):
            with pytest.raises(NotFoundError, match="there is no open connection with this id"):
                instance.kill(killed)


def test_a_tunnel_that_is_not_open_shows_its_configuration():
    hops = parse_hops(["ssh://me@bastion"], "db:5432")
    plan = make_plan(parse_listen("8080"), parse_target("db:5432"), Options(), name="db", via=hops)
    with contextlib.ExitStack() as stack:
        signals = Signals()
        stack.callback(signals._reader.close)
        stack.callback(signals._writer.close)
        member = Member(plan)
        member.on_postponed("no route; trying again")
        (tunnel,) = Instance(Group([member], signals), "", str).tunnels()
    assert (tunnel.state, tunnel.problem, tunnel.figures) == ("waiting", "no route; trying again", None)
    assert (tunnel.listen, tunnel.target, tunnel.via) == ("127.0.0.1:8080", "db:5432", ("ssh://me@bastion",))


@pytest.mark.parametrize(
    ("others", "target", "via"),
    [
        ([(["ssh://me@bastion"], "db2:1")], "db:5432, db2:1", ("ssh://me@bastion",)),
        ([(["ssh://me@other"], "db:5432")], "db:5432 via ssh://me@bastion or via ssh://me@other", ()),
    ],
)
def test_a_tunnel_shows_all_its_targets(others, target, via):
    ways = [(parse_hops(hops, end), parse_target(end)) for hops, end in [(["ssh://me@bastion"], "db:5432"), *others]]
    plan = make_plan(parse_listen("8080"), ways[0][1], Options(), name="db", via=ways[0][0], others=ways[1:])
    with contextlib.ExitStack() as stack:
        signals = Signals()
        stack.callback(signals._reader.close)
        stack.callback(signals._writer.close)
        (tunnel,) = Instance(Group([Member(plan)], signals), "", str).tunnels()
    assert (tunnel.target, tunnel.via) == (target, via)


@pytest.mark.parametrize(
    ("rules", "target", "via"),
    [((), "anywhere", ("ssh://me@bastion",)), (("*=direct",), "anywhere via ssh://me@bastion by 1 rule", ())],
)
def test_a_proxy_with_rules_does_not_show_one_route_as_that_of_all_clients(rules, target, via):
    hops = parse_hops(["ssh://me@bastion"], None)
    ways = [parse_rule(rule) for rule in rules]
    plan = make_proxy_plan(parse_listen(":0"), Options(), name="proxy", via=hops, rules=ways)
    with contextlib.ExitStack() as stack:
        signals = Signals()
        stack.callback(signals._reader.close)
        stack.callback(signals._writer.close)
        (tunnel,) = Instance(Group([Member(plan)], signals), "", str).tunnels()
    assert (tunnel.target, tunnel.via) == (target, via)


def test_after_the_end_an_action_is_a_conflict(instance, group):
    group.call(group.end, 0)
    wait_until(lambda: group._main_thread.is_over)
    with pytest.raises(ConflictError, match="relay is ending"):
        instance.pause("a")
    assert instance.status().draining


def test_loops_are_timed(instance, group):
    timed = queue.SimpleQueue()
    assert instance.time_loops(["b", "nope"], lambda *turn: timed.put(turn)) == {"b"}
    name, seconds = timed.get(timeout=WAIT)
    assert name == "b" and 0 < seconds < WAIT


def test_a_loop_that_does_not_turn_is_named(instance, group):
    release = threading.Event()

    def threads() -> set[threading.Thread]:
        answers: queue.SimpleQueue[threading.Thread] = queue.SimpleQueue()
        for member in group.members:
            member.relay.ping(lambda: answers.put(threading.current_thread()))
        return {answers.get(timeout=WAIT) for _ in group.members}

    # With a client the second tunnel has a thread of its own, beside the one that waits for the first client of others.
    # That one answers for it until it has started the other.
    with socket.create_connection(group.members[1].relay.address, WAIT):
        wait_until(lambda: len(threads()) == 2)
    group.members[1].relay.ping(lambda: release.wait(WAIT))
    try:
        assert instance.stuck_loops(1.0) == ["b"]  # the other one may be late on a busy machine
    finally:
        release.set()
    assert instance.stuck_loops(WAIT) == []


def test_of_a_tunnel_that_a_reload_has_removed_nothing_is_kept(instance, group):
    """Else a program that is never restarted would grow with each new name."""
    assert [each.name for each in instance.tunnels()] == ["a", "b"]
    removed, group._members = group._members[1], group._members[:1]
    removed.close()
    assert [each.name for each in instance.tunnels()] == ["a"]
    assert "b" not in instance._texts
