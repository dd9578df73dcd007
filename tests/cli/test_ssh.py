"""``relay forward --via`` and ``relay expose``, as their users run them."""

import functools
import re
import signal
import socket
import threading
import time
from pathlib import Path
from urllib.parse import quote

import paramiko
import pytest
from command_rig import run
from helpers import (
    PROMPT,
    WAIT,
    black_hole,
    echo,
    is_gone,
    receive_all,
    receive_exactly,
    refusing,
    send_and_end,
    wait_until,
)

import relay
from relay.addresses.parse import parse_listen
from relay.addresses.redact import redact
from relay.carriers.link import CarrierState
from relay.daemon.plan import warn_if_unsure
from relay.daemon.probes import BackgroundCall, HopProbe
from relay.streams.dialer import Dialer
from relay.testing.ssh.login import LoginHandler

VIA = re.compile(r"listening on (\S+):(\d+) → (\S+) via (.+)\n")
ON = re.compile(r"(?:listening on )?(\S+):(\d+) on (\S+) → (\S+)\n")


@pytest.fixture
def expose(start):
    return functools.partial(start, command="expose")


def line_of(command, pattern):
    line = command.process.stdout.readline()
    match = pattern.fullmatch(line)
    assert match, f"{line!r}, then {command.process.communicate(timeout=WAIT)}"
    return match


def address_of(match):
    return match[1], int(match[2])


def speak(address):
    with socket.create_connection(address, timeout=WAIT) as client:
        send_and_end(client, b"hello")
        return receive_all(client)


def name_of(url):
    return url.partition("?")[0]


def test_forward_over_a_hop(start, target, far_end):
    command = start(":0", target, "--via", far_end.url)
    match = line_of(command, VIA)
    assert match.group(3, 4) == (target, name_of(far_end.url))
    for _ in range(3):
        assert speak(address_of(match)) == b"hello"
    assert far_end.logins == 1
    status, said = command.end()
    assert status == 0
    assert "3 connections, 15 B received, 15 B sent, 0 failed" in said


def test_forward_over_two_hops_to_a_unix_socket(start, serve, make_ssh_server, tmp_path):
    far = f"unix://{serve(echo, str(tmp_path / 'far')).address}"
    hops = [make_ssh_server().url, make_ssh_server().url]
    command = start(":0", far, "--via", hops[0], "--via", hops[1])
    match = line_of(command, VIA)
    assert match.group(3, 4) == (far, ", ".join(map(name_of, hops)))
    assert speak(address_of(match)) == b"hello"
    assert command.end()[0] == 0


def test_a_carrier_that_is_lost_is_told_and_comes_back(start, target, ssh_server):
    command = start(":0", target, "--via", ssh_server.url)
    address = address_of(line_of(command, VIA))
    assert speak(address) == b"hello"
    ssh_server.stop()
    assert name_of(ssh_server.url) in command.hear("trying again in")
    ssh_server.start()
    assert "WARNING" in command.hear(f"{name_of(ssh_server.url)}: connected")
    assert speak(address) == b"hello"
    assert command.end()[0] == 0


def test_a_relay_that_was_stopped_does_not_take_its_own_silence_for_the_servers(start, target, ssh_server):
    """For longer than three intervals, as a laptop that sleeps; after that the server has one interval to answer."""
    command = start(":0", target, "--via", f"{ssh_server.url}&keepalive=1&backend=paramiko")
    with socket.create_connection(address_of(line_of(command, VIA)), WAIT) as client:
        client.sendall(b"before")
        assert receive_exactly(client, 6) == b"before"
        command.process.send_signal(signal.SIGSTOP)
        threading.Event().wait(3.5)
        command.process.send_signal(signal.SIGCONT)
        threading.Event().wait(1.5)
        client.sendall(b"after")
        assert receive_exactly(client, 5) == b"after"
    assert ssh_server.logins == 1
    assert command.end()[0] == 0


@pytest.fixture
def unfinished(ssh_server, monkeypatch):
    """The logins that the server has ended before it asked who comes: all of them."""
    logins = []

    def hang_up(handler, message):
        logins.append(handler)
        raise paramiko.SSHException("no")

    monkeypatch.setattr(LoginHandler, "_parse_service_request", hang_up)
    return logins


def test_expose_at_a_server_that_ends_every_login_tries_the_client_once_and_ends(
    expose, target, ssh_server, unfinished
):
    status, said = expose(target, "--on", ssh_server.url).wait()
    assert (status, len(unfinished)) == (1, 4)
    *lines, last = said.splitlines()
    assert ["trying again in" in line for line in lines] == [True, True, False]
    assert all(f"WARNING {name_of(ssh_server.url)}: " in line for line in lines)
    assert lines[-1].endswith("; 3 times in a row; trying the OpenSSH client instead")
    assert last.startswith(f"relay: {name_of(ssh_server.url)}: ") and last.endswith("; 4 times in a row")


def test_expose_ends_with_one_line_where_the_first_login_must_not_fail(target, ssh_server, unfinished):
    done = run("expose", target, "--on", ssh_server.url, "--fail-fast")
    assert (done.returncode, done.stdout, len(unfinished)) == (1, "", 1)
    assert done.stderr.startswith("relay: ssh://") and done.stderr.count("\n") == 1


def test_a_server_that_does_not_speak_ssh_is_given_up(start, target, serve):
    place = serve(lambda connection: connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")).address
    command = start(":0", target, "--via", "ssh://me@{}:{}?config=none".format(*place))
    line = command.hear("will not retry until a client connects")
    assert "ERROR" in line and "check the port; 3 times in a row; will not" in line
    assert command.end()[0] == 0


WRONG_KEY = "SHA256:" + "A" * 43


@pytest.mark.parametrize(
    ("replaced", "said"), [("hostkey=[^&]*", WRONG_KEY), ("keyfile=[^&]*", "publickey")], ids=["host key", "login"]
)
def test_what_is_final_ends_it_with_status_1(target, ssh_server, tmp_path, replaced, said):
    from sshd import make_key

    make_key(tmp_path / "other")
    other = f"hostkey={WRONG_KEY}" if "hostkey" in replaced else f"keyfile={tmp_path}/other"
    done = run("forward", ":0", target, "--via", re.sub(replaced, other, ssh_server.url))
    assert done.returncode == 1
    assert VIA.fullmatch(done.stdout)
    assert done.stderr.startswith(f"relay: {name_of(ssh_server.url)}: ")
    assert done.stderr.count("\n") == 1
    assert said in done.stderr


def test_a_hop_in_a_chain_is_named(ssh_server, make_ssh_server):
    inner = re.sub("hostkey=[^&]*", f"hostkey={WRONG_KEY}", make_ssh_server().url)
    done = run("forward", ":0", "h:1", "--via", ssh_server.url, "--via", inner)
    assert done.returncode == 1
    assert f"relay: hop 2 of 2 ({name_of(inner)}): " in done.stderr


def test_a_signal_during_the_try_ends_it_at_once(start, target):
    with black_hole() as hole:
        command = start(":0", target, "--via", "ssh://me@{}:{}?config=/dev/null".format(*hole.getsockname()))
        line_of(command, VIA)
        began = time.monotonic()
        assert command.end(signal.SIGINT)[0] == 0
        assert time.monotonic() - began < PROMPT


def test_a_password_from_the_environment_lets_it_in(start, target, make_ssh_server, monkeypatch):
    server = make_ssh_server(users={"me": "hunter2"})
    monkeypatch.setenv("PW", "hunter2")
    url = re.sub("keyfile=[^&]*", "password_env=PW", server.url)
    command = start(":0", target, "--via", url, "--debug")
    assert speak(address_of(line_of(command, VIA))) == b"hello"
    assert ("me", "password") in server.attempts
    status, said = command.end()
    assert status == 0
    assert "hunter2" not in said


def test_expose_publishes_a_local_service(expose, target, far_end):
    command = expose(target, "--on", far_end.url)
    match = line_of(command, ON)
    assert match.group(1, 3, 4) == ("127.0.0.1", name_of(far_end.url), target)
    for _ in range(2):
        assert speak(address_of(match)) == b"hello"
    status, said = command.end()
    assert status == 0
    assert "2 connections, 10 B received, 10 B sent, 0 failed" in said
    wait_until(lambda: is_gone(address_of(match)))  # the server notices the end after relay has ended


def test_expose_behind_a_hop_at_a_port_and_at_a_path(expose, target, make_ssh_server, reserved, tmp_path):
    server, bastion = make_ssh_server(), make_ssh_server()
    command = expose(target, "--on", f"{server.url}&listen=:{reserved}", "--via", bastion.url)
    line = command.process.stdout.readline()
    assert line == f"127.0.0.1:{reserved} on {name_of(server.url)} via {name_of(bastion.url)} → {target}\n"
    assert speak(("127.0.0.1", reserved)) == b"hello"
    assert command.end()[0] == 0
    command = expose(target, "--on", f"{server.url}&listen={quote(str(tmp_path / 'far'))}")
    assert command.process.stdout.readline().startswith(f"unix://{tmp_path}/far on {name_of(server.url)} → ")
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(WAIT)
        client.connect(str(tmp_path / "far"))
        send_and_end(client, b"hello")
        assert receive_all(client) == b"hello"
    assert command.end()[0] == 0


@pytest.mark.parametrize("options", [{"allow_forwarding": False}, {"allow_forwarding": "local"}])
def test_expose_that_is_not_allowed_ends_with_one_line(target, make_ssh_server, options):
    done = run("expose", target, "--on", make_ssh_server(**options).url)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("relay: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "arguments", [("forward", ":0", "h:1", "--via"), ("expose", "h:1", "--on"), ("socks", "--via")]
)
def test_fail_fast_ends_with_one_line_at_a_server_that_is_away(arguments):
    with refusing() as place:
        words = (*arguments, "ssh://me@{}:{}?config=/dev/null".format(*place), "--fail-fast")
        done = run(*words, *([":0"] if "socks" in words else []))
    assert done.returncode == 1
    assert done.stderr.startswith("relay: ssh://me@127.0.0.1:")
    assert "connection refused" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("parameter", "told"),
    [
        ("keyfile={}/none", "/none: no such file"),
        ("password_env=NOT_SET_AT_ALL", "'NOT_SET_AT_ALL' is not set"),
        ("password_file={}/open", "accessible to other users (mode 0644)"),
    ],
)
@pytest.mark.parametrize(
    "arguments", [("forward", ":0", "h:1", "--via"), ("expose", "h:1", "--on")], ids=lambda it: it[0]
)
def test_what_is_missing_on_this_machine_is_found_before_anything_is_opened(tmp_path, arguments, parameter, told):
    (tmp_path / "open").touch(0o644)
    (tmp_path / "open").chmod(0o644)
    with refusing() as place:
        server = "ssh://me@{}:{}?config=/dev/null&".format(*place) + parameter.format(tmp_path)
        done = run(*arguments, server)
    assert (done.returncode, done.stdout) == (2, "")
    assert told in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_signal_before_the_server_has_answered_ends_expose_at_once(expose, target):
    with black_hole() as hole:
        command = expose(target, "--on", "ssh://me@{}:{}?config=/dev/null".format(*hole.getsockname()))
        wait_until(lambda: catches(command.process.pid, signal.SIGTERM))
        began = time.monotonic()
        status, said = command.end()
        assert time.monotonic() - began < PROMPT
        assert status == 0
        assert "SIGTERM: closing before there was an answer" in said


def catches(pid, number):
    (line,) = re.findall(r"^SigCgt:\s(\w+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return int(line, 16) >> (number - 1) & 1


def test_secrets_of_hops_do_not_show_in_a_spawned_child(make_ssh_server, target):
    server = make_ssh_server(users={"me": "hunter2"})
    via = re.sub("keyfile=[^&]*", "password=hunter2", server.url)
    assert "hunter2" not in redact(via)
    with relay.spawn(":0", target, via=[via]) as child:
        assert speak(child.address) == b"hello"
        for name in ("cmdline", "environ"):
            assert b"hunter2" not in Path(f"/proc/{child.pid}/{name}").read_bytes()


# An attempt that is given up, and the trial of the hops, without any.


class Opened:
    closed = 0

    def close(self):
        self.closed += 1


def test_what_was_opened_is_the_outcome():
    over = threading.Event()
    opened = Opened()
    attempt = BackgroundCall(lambda _: opened, over.set, pytest.fail)
    assert over.wait(WAIT)
    assert attempt.outcome() is opened
    assert opened.closed == 0


@pytest.mark.parametrize("when", ["before", "after"])
def test_what_is_opened_and_not_wanted_is_closed(when):
    go, over = threading.Event(), threading.Event()
    opened = Opened()
    attempt = BackgroundCall(lambda _: go.wait(WAIT) and opened, over.set, pytest.fail)
    if when == "before":
        attempt.give_up()
    go.set()
    assert over.wait(WAIT)
    if when == "after":
        attempt.give_up()
    assert opened.closed == 1


class Factory(Dialer):
    state = "backing off"

    def __init__(self, *errors):
        self.errors = list(errors)
        self.timeout = None
        self.watchers = []

    def ready(self, timeout):
        self.timeout = timeout
        error = self.errors.pop(0) if self.errors else None
        if error is not None:
            raise error

    def subscribe(self, watcher):
        self.watchers.append(watcher)

    def become(self, state):
        self.state = state.value
        self.watchers[0](state, None)


AWAY, OTHER, LOST = relay.ConnectError("away"), relay.HostKeyError("another server"), relay.CarrierError("lost")
CONNECTING, UP, FAILED = CarrierState.CONNECTING, CarrierState.UP, CarrierState.FAILED
TRIALS = {
    "a host key": ([OTHER], "", [], "another server"),
    "a login": ([relay.AuthenticationError("refused")], "", [], "refused"),
    "no program": ([relay.RelayError("no ssh")], "", [], "no ssh"),
    "success": ([None], "", [], ""),
    "a server that is away": ([AWAY], "", [], ""),
    "a server that is away, and must not be": ([AWAY], "fail fast", [], "away"),
    "a connection that is lost": ([LOST], "", [], ""),
    "a failure before it was up once": ([AWAY, OTHER], "", [CONNECTING, FAILED], "another server"),
    "a failure after that": ([AWAY, OTHER], "", [UP, FAILED], ""),
    "a failure that was faster than its watch": ([AWAY, OTHER], "failed", [], "another server"),
    "one that passes": ([AWAY, LOST], "failed", [], ""),
}


@pytest.mark.parametrize(("errors", "how", "changes", "error"), TRIALS.values(), ids=TRIALS)
def test_a_trial_ends_with_what_another_try_would_not_mend(errors, how, changes, error):
    factory, ended = Factory(*errors), threading.Event()
    if how == "failed":
        factory.state = "failed"
    trial = HopProbe(factory, WAIT, ended.set, fail_fast=how == "fail fast")
    wait_until(lambda: len(factory.errors) < len(errors))
    if changes:
        wait_until(lambda: factory.watchers)
    for state in changes:
        factory.become(state)
    if error:
        assert ended.wait(WAIT)
        assert str(trial.error) == error
    else:
        wait_until(lambda: "relay-trial" not in [one.name for one in threading.enumerate()])
        assert not ended.is_set() and trial.error is None
        assert len(factory.errors) == (1 if changes else 0)
        assert 0.0 < factory.timeout <= WAIT


class Ways(Factory):
    """A factory whose clients choose among ways."""

    def __init__(self, *ways):
        super().__init__()
        self.per_route = ways

    def ready(self, timeout):
        for way in self.per_route:
            way.ready(timeout)

    def subscribe(self, watcher):
        for way in self.per_route:
            way.subscribe(watcher)


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("first_error", [None, relay.ConnectError("away")])
def test_a_way_that_was_up_does_not_fail_later_whatever_the_others_do(order, first_error):
    tried, ended = threading.Event(), threading.Event()
    works = Factory(first_error, relay.AuthenticationError("the key was removed"))
    away = Factory(relay.ConnectError("away"), relay.HostKeyError("it is another server"))
    trial = HopProbe(Ways(*(works, away)[::order]), WAIT, ended.set, tried.set)
    assert tried.wait(WAIT)
    wait_until(lambda: works.watchers and away.watchers)
    for state in (CarrierState.UP, CarrierState.BACKING_OFF, CarrierState.FAILED):
        works.become(state)
    away.become(CarrierState.FAILED)
    assert ended.wait(WAIT)
    assert str(trial.error) == "it is another server"
    assert len(works.errors) == 1


@pytest.mark.parametrize("order", [1, -1])
def test_a_way_that_was_up_and_failed_during_the_first_attempt_does_not_end_it(order):
    tried = threading.Event()
    works, away = Factory(relay.AuthenticationError("the key was removed")), Factory(relay.ConnectError("away"))
    works.subscribe = lambda watcher: watcher(CarrierState.UP, None)
    trial = HopProbe(Ways(*(works, away)[::order]), WAIT, pytest.fail, tried.set)
    assert tried.wait(WAIT)
    assert trial.error is None


@pytest.mark.parametrize("error", [relay.CarrierError("closed"), relay.AuthenticationError("refused")])
def test_a_trial_does_not_open_hops_again_that_their_tunnel_has_closed(error):
    """A reload may take the tunnel away while its hops still connect."""
    tried, closed = threading.Event(), threading.Event()

    class Hops(Factory):
        def ready(self, timeout):
            assert closed.wait(WAIT)
            self.state = "closed"
            raise error

        def subscribe(self, watcher):
            assert not closed.is_set()
            super().subscribe(watcher)

    hops = Hops()
    trial = HopProbe(hops, WAIT, tried.set, tried.set)
    wait_until(lambda: hops.watchers)
    closed.set()
    assert tried.wait(WAIT)
    wait_until(lambda: "relay-trial" not in [one.name for one in threading.enumerate()])
    assert len(hops.watchers) == 1 and trial.error in (None, error)


def test_without_a_thread_the_hops_are_not_tried_and_relay_goes_on(monkeypatch, caplog):
    def start(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    tried, factory = threading.Event(), Factory()
    factory.target = "db:5432"
    trial = HopProbe(factory, WAIT, pytest.fail, tried.set)
    assert tried.is_set() and trial.error is None
    assert caplog.messages == ["db:5432: the hops are not tried before a client connects: can't start new thread"]


class Opening:
    """A listener that begins to open: its carrier retries until it is closed."""

    def __init__(self):
        self.state = "connecting"
        self.closed = threading.Event()
        self.watchers = []
        self.close = self.closed.set
        self.subscribe = self.watchers.append

    def change(self, state, error=None):
        self.state = state
        for watcher in self.watchers:
            watcher(state, error)


def test_an_attempt_reports_the_retries_of_its_listener_until_it_is_over():
    listener, begun, goes_on, over, errors = Opening(), threading.Event(), threading.Event(), threading.Event(), []

    def call(opening):
        opening(listener)
        begun.set()
        assert goes_on.wait(WAIT)
        return listener

    attempt = BackgroundCall(call, over.set, errors.append)
    assert begun.wait(WAIT)
    away = relay.ConnectError("away")
    for state, error in (("backing off", away), ("connecting", away), ("up", None), ("failed", away)):
        listener.change(state, error)
    assert errors == [away, away]
    goes_on.set()
    assert over.wait(WAIT)
    listener.change("backing off", away)
    assert errors == [away, away]
    assert attempt.outcome() is listener


@pytest.mark.parametrize("moment", ["before the listener begins", "while it retries"])
def test_an_attempt_that_is_given_up_closes_its_listener(moment):
    listener, begun, goes_on, over = Opening(), threading.Event(), threading.Event(), threading.Event()

    def call(opening):
        if moment == "while it retries":
            opening(listener)
        begun.set()
        assert goes_on.wait(WAIT)
        if moment != "while it retries":
            opening(listener)
        assert listener.closed.wait(WAIT)
        raise relay.CarrierError("closed")

    attempt = BackgroundCall(call, over.set, pytest.fail)
    assert begun.wait(WAIT)
    attempt.give_up()
    goes_on.set()
    assert over.wait(WAIT)
    with pytest.raises(relay.CarrierError):
        attempt.outcome()


def test_a_trial_of_a_factory_without_hops_is_none():
    assert HopProbe(relay.tcp("127.0.0.1", 1), 3, pytest.fail).error is None


@pytest.mark.parametrize(("place", "is_said"), [("0.0.0.0:80", True), (":80", False), ("localhost:80", False)])
def test_a_server_that_may_listen_elsewhere_is_named(caplog, place, is_said):
    caplog.set_level("INFO", "relay.cli")
    warn_if_unsure(parse_listen(f"ssh://me@server?listen={place}"))
    assert all(
        "ssh://me@server listens on its loopback alone unless its sshd has GatewayPorts" in one
        for one in caplog.messages
    )
