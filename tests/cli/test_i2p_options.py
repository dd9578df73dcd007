"""``relay expose --on i2p`` and ``relay forward … i2p://…``, as their users run them, and ``relay keys``."""

import functools
import logging
import os
import re
import signal
import socket
import threading
from types import SimpleNamespace

import click
import pytest
from command_rig import run
from helpers import WAIT, closed, receive_all, wait_until

import relay
from relay.addresses.destinations import PrivateKey
from relay.addresses.i2p import I2PListen, I2PRouter, I2PTarget
from relay.addresses.parse import parse_hops, parse_listen, parse_target
from relay.addresses.ssh import SSHServer
from relay.addresses.values import TCPAddress
from relay.cli.i2p_options import tell_published
from relay.cli.run import serve
from relay.daemon.options import Options
from relay.daemon.plan import make_plan
from relay.daemon.probes import SessionProbe
from relay.daemon.routed_targets import with_bridge, with_bridges, with_session
from relay.streams.dialer import Dialer
from relay.testing import SAMBridge

AT = re.compile(r"(\S+\.b32\.i2p) → (\S+)\n")
TO = re.compile(r"listening on (\S+):(\d+) → (i2p://\S+)(?: via \S+)?\n")


@pytest.fixture
def router():
    yield from closed(SAMBridge())


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """The directory of the destinations."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return tmp_path / "data" / "relay" / "i2p"


@pytest.fixture
def expose(start, router):
    return functools.partial(start, "--on", "i2p", "--sam", router.sam, command="expose")


def line_of(command, pattern):
    line = command.process.stdout.readline()
    match = pattern.fullmatch(line)
    assert match, f"{line!r}, then {command.process.communicate(timeout=WAIT)}"
    return match


def speak(match):
    with socket.create_connection((match[1], int(match[2])), timeout=WAIT) as client:
        client.sendall(b"hello")
        return client.recv(100)


def test_a_service_is_published_and_reached(router, start, expose, target):
    server = expose(target)
    at = line_of(server, AT)
    assert at[2] == target
    assert server.process.stdout.readline() == f"published {at[1]}\n"
    client = start(":0", f"i2p://{at[1]}", "--sam", router.sam, "--linger", "0.1")
    to = line_of(client, TO)
    assert to[3] == f"i2p://{at[1]}"
    assert speak(to) == b"hello"
    status, said = client.end()
    assert (status, "1 connection" in said) == (0, True)
    status, said = server.end()
    assert (status, "1 connection" in said) == (0, True)


def kept(expose, target, *options, folder=None):
    """The address at which a target is published, once more."""
    server = expose(target, *options)
    address = line_of(server, AT)[1]
    assert server.end()[0] == 0
    for keys in folder.glob("**/*.dat") if folder else ():
        written = keys.stat().st_mtime_ns
        os.utime(keys, ns=(written, written))  # it has rested for long: the bridge does not remember the last session
    return address


def test_a_target_keeps_its_destination_and_others_have_theirs(expose, target, home, tmp_path):
    again = functools.partial(kept, expose, folder=tmp_path)
    first = again(target)
    assert again(target) == first
    assert len({first, again("127.0.0.1:1"), again(target, "--transient")}) == 3
    assert len(list(home.iterdir())) == 2
    named = again(target, "--session", "site")
    assert again("127.0.0.1:1", "--session", "site") == named != first
    assert (home / "site.dat").exists()
    keys = str(tmp_path / "mine.dat")
    in_a_file = again(target, "--keys", keys)
    assert run("keys", "show", keys).stdout.startswith(f"{in_a_file}\n")


def test_the_parameters_of_the_address_do_the_same(router, start, target, tmp_path):
    on = f"i2p:?sam={router.sam}&keys={tmp_path}/a%26b.dat&accept=accept&inbound.quantity=2"
    server = start(target, "--on", on, command="expose")
    line_of(server, AT)
    assert (tmp_path / "a&b.dat").exists()
    assert {session.options.get("inbound.quantity") for session in router.sessions} >= {"2"}
    words = [command.words for command in router.commands]
    assert ("STREAM", "ACCEPT") in words
    assert ("STREAM", "FORWARD") not in words
    server.end()


def test_who_is_denied_is_reset_and_named(router, expose, target, tmp_path):
    friends = tmp_path / "friends"
    friends.write_text("# nobody yet\n")
    server = expose(target, "--allow", str(friends), "-v")
    at = line_of(server, AT)[1]
    with (
        relay.TunnelClient("", 0, at, router.sam) as tunnel,
        socket.create_connection(tunnel.address, timeout=WAIT) as client,
    ):
        with pytest.raises(ConnectionResetError):
            receive_all(client)
        assert f"denied peer={tunnel.b32}" in server.hear("rule=allow")
        friends.write_text(f"{tunnel.b32}  # a friend\n")
        with socket.create_connection(tunnel.address, timeout=WAIT) as client:
            client.sendall(b"hello")
            assert client.recv(100) == b"hello"
    assert f"{tunnel.b32} → {target}: done" in server.hear(": done")
    server.end()


def test_a_tunnel_may_listen_at_i2p(router, start, target):
    server = start("i2p:", target, "--sam", router.sam)
    assert re.fullmatch(r"listening on \S+\.b32\.i2p → \S+\n", server.process.stdout.readline())
    assert server.end()[0] == 0


def test_a_slow_router_is_waited_for_and_said_so(router, expose, start, target):
    router.hold_answers("SESSION CREATE")
    server = expose(target)
    client = start(":0", "i2p://name.i2p", "--sam", router.sam)
    for command in (server, client):
        assert "INFO" in command.hear("the router makes a session and builds tunnels for it, which may take a minute")
    router.release_answers()
    line_of(server, AT)
    assert "INFO" in client.hear("the session is up")


def test_a_standby_says_that_it_asks_whether_another_relay_serves_the_destination(router, start, target, tmp_path):
    keys = tmp_path / "site.dat"
    keys.touch(0o600)
    keys.write_bytes(PrivateKey.generate().data)
    router.hold_answers("SESSION CREATE")
    server = start(target, "--on", "i2p:?standby=yes", "--keys", str(keys), "--sam", router.sam, command="expose")
    told = "asking whether another relay serves the destination, which may take two minutes"
    assert "INFO" in server.hear(told)
    assert server.end()[0] == 0


def test_a_signal_ends_it_while_a_session_is_made(router, expose, target):
    router.hold_answers("SESSION CREATE")
    server = expose(target)
    wait_until(lambda: router.commands)
    status, said = server.end(signal.SIGINT)
    assert (status, "closing before there was an answer" in said) == (0, True)


def test_a_bridge_behind_a_bastion(router, start, ssh_server, target):
    server = start(target, "--on", "i2p", "--sam", router.sam, "--via", ssh_server.url, "--transient", command="expose")
    line = server.process.stdout.readline()
    at = re.fullmatch(r"(\S+\.b32\.i2p) via ssh://\S+ → \S+\n", line)
    client = start(":0", f"i2p://{at[1]}", "--sam", router.sam, "--via", ssh_server.url, "--linger", "0.1")
    assert speak(line_of(client, TO)) == b"hello"
    for command in (client, server):
        assert command.end()[0] == 0


def test_the_limits_are_those_of_i2p_unless_they_are_given():
    usual, there = (Options().settled(slow=at_i2p, ends_whole=at_i2p) for at_i2p in (False, True))
    assert (usual.connect_timeout, usual.linger) == (30.0, 60.0)
    assert (there.connect_timeout, there.linger) == (90.0, 5.0)
    given = Options(connect_timeout=1.0, linger=0.0)
    assert given.settled(slow=True, ends_whole=True) == given.settled(slow=False, ends_whole=False) == given


def test_a_command_over_i2p_has_these_limits(monkeypatch, router):
    seen = []

    def tunnel(bound, limits, **_):
        bound.receive.close()
        seen.append((limits["connect_timeout"], limits["linger"]))
        raise OSError("that will do")

    monkeypatch.setattr("relay.daemon.plan._tunnel", tunnel)
    for listen, target in ((":0", "h:1"), (":0", "name.i2p"), (f"i2p:?sam={router.sam}", "h:1")):
        with pytest.raises(click.exceptions.Exit):
            serve(parse_listen(listen), parse_target(target), Options(), name="x", title="")
    assert seen == [(30.0, 60.0), (90.0, 5.0), (90.0, 5.0)]


# What ends it at once: one line, and a status.


def check(done, status, words):
    assert done.returncode == status
    assert words in done.stderr
    assert done.stderr.startswith("relay: ")
    assert done.stderr.count("\n") == 1


def test_damaged_keys(router, tmp_path):
    keys = tmp_path / "keys.dat"
    keys.touch(0o600)
    keys.write_bytes(b"x" * 700)
    done = run("expose", "h:1", "--on", "i2p", "--sam", router.sam, "--keys", str(keys))
    check(done, 2, "keys.dat: not an I2P private key")
    check(run("forward", ":0", f"name.i2p?sam={router.sam}&keys={keys}"), 2, "keys.dat: not an I2P private key")
    assert keys.read_bytes() == b"x" * 700


def test_keys_in_use(router, expose, target):
    line_of(expose(target), AT)
    check(run("expose", target, "--on", "i2p", "--sam", router.sam), 1, "the key is in use by another session")


def test_a_second_router_takes_over(router, start, target):
    with SAMBridge(network=router) as other:
        both = ("--sam", router.sam, "--sam", other.sam)
        done = run("doctor", "--via", "i2p:", *both)
        assert [done.stdout.count(f"i2p:?sam={one.sam}: created") for one in (router, other)] == [1, 1], done.stdout
        server = start("--on", "i2p", *both, "--transient", target, command="expose")
        at = line_of(server, AT)[1]
        router.kill()
        server.hear(f"the session is at the router {other.sam}; {router.sam}: the router has ended the session")
        client = start(":0", f"i2p://{at}", *both)
        assert speak(line_of(client, TO)) == b"hello"


BRIDGE = (TCPAddress("h", 1), TCPAddress("h", 2))


def test_only_addresses_of_i2p_get_the_bridge():
    router = I2PRouter(sam=BRIDGE)
    assert with_bridge(BRIDGE, I2PRouter()) == router
    assert with_bridge(BRIDGE, I2PListen(accept="accept")) == I2PListen(router, "accept")
    assert with_bridge(BRIDGE, I2PTarget("a.i2p", 80)) == I2PTarget("a.i2p", 80, router)
    for same in (SSHServer("h"), TCPAddress("h", 1)):
        assert with_bridge(BRIDGE, same) == same
    assert with_bridge(None, I2PRouter()) == I2PRouter()


def test_the_last_router_on_the_way_has_the_bridge():
    target, router = I2PTarget("a.i2p"), I2PRouter(sam=BRIDGE)
    over_ssh, over_i2p = parse_hops(["ssh://h"]), parse_hops(["i2p:"])
    assert with_bridges(BRIDGE, target, over_ssh) == (I2PTarget("a.i2p", None, router), over_ssh)
    assert with_bridges(BRIDGE, target, over_i2p) == (target, (router,))


@pytest.mark.parametrize("address", ["i2p", "i2p:?in_depth=1"])
def test_the_text_of_the_target_names_the_session_unless_something_else_does(address):
    place, target = parse_listen(address), TCPAddress("127.0.0.1", 80)
    given = {"keys": None, "session": None, "transient": False}
    assert with_session(place, target, **given).router.session == "127.0.0.1:80"
    assert with_session(place, target, **{**given, "session": "a"}).router.session == "a"
    assert with_session(place, target, **{**given, "transient": True}) == place
    kept = with_session(place, target, **{**given, "keys": "f"}).router
    assert (kept.keys, kept.session) == ("f", "")


def test_lists_of_the_address_and_of_the_options_add_up():
    place = parse_listen("i2p:?allow=a&deny=b")
    target = TCPAddress("127.0.0.1", 80)
    plan = make_plan(place, target, Options(allow=("c",), deny=("d",)), name="t")
    assert (plan.options.allow, plan.options.deny) == (("a", "c"), ("b", "d"))
    assert plan.routes.lists == (("a", "c"), ("b", "d"))
    assert plan.routes.where.allow is None and plan.routes.where.deny == ()
    assert make_plan(parse_listen("i2p"), target, Options(), name="t").options.allow is None


class Slow(Dialer):
    """A stand-in for a factory whose session is not ready at once."""

    state = "backing off"

    def __init__(self, *outcomes):
        self.outcomes = list(outcomes)
        self.asked = []

    def ready(self, timeout):
        self.asked.append(timeout)
        outcome = self.outcomes.pop(0)
        if outcome is not None:
            raise outcome

    def subscribe(self, watcher):
        pass


SLOW = relay.ConnectError("slow", reason="connect_timeout")


@pytest.mark.parametrize(
    "outcomes",
    [[None], [SLOW, None], [relay.CarrierError("lost")], [relay.ConnectError("none", reason="refused")]],
    ids=str,
)
def test_a_trial_of_a_session_takes_its_time(outcomes):
    ended = threading.Event()
    factory = Slow(*outcomes)
    trial = SessionProbe(factory, 90, ended.set)
    wait_until(lambda: not factory.outcomes)
    assert factory.asked == [3.0, None][: len(outcomes)]
    assert not ended.wait(0.05)
    assert trial.error is None


@pytest.mark.parametrize("before", [[], [SLOW]], ids=["at once", "late"])
def test_a_trial_of_a_session_that_cannot_be_made_is_the_end(before):
    error = relay.SAMError("x")
    ended = threading.Event()
    trial = SessionProbe(Slow(*before, error), 90, ended.set)
    assert ended.wait(WAIT)
    assert trial.error is error


@pytest.mark.parametrize(
    ("error", "heard"), [(None, True), (relay.CarrierError("x"), True), (relay.SAMError("x"), False)]
)
def test_what_a_carrier_says_meanwhile_is_heard_unless_it_is_the_end(caplog, error, heard):
    class Factory(Slow):
        def ready(self, timeout):
            said = {"name": "relay", "module": "carrier", "levelno": logging.ERROR, "msg": "lost; not again"}
            logging.getLogger("relay").handle(logging.makeLogRecord(said))
            assert not caplog.messages
            super().ready(timeout)

    ended = threading.Event()
    trial = SessionProbe(Factory(error), 90, ended.set)
    if heard:
        wait_until(lambda: "lost; not again" in caplog.messages)
        assert trial.error is None
    else:
        assert ended.wait(WAIT)
        assert not caplog.messages


def test_without_a_thread_a_tunnel_at_i2p_opens_all_the_same(monkeypatch, caplog):
    """The main thread of all tunnels calls it, and would end."""
    listener = SimpleNamespace(state="creating", subscribe=lambda watcher: None, wait_published=lambda timeout: True)

    def refuse(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    tell_published(listener, "site: ")
    assert "site: can't start new thread; relay will not report that it is published" in caplog.messages
