"""The entrance of a tunnel: clients that its gate denies, and who they are."""

import contextlib
import dataclasses
import logging
import os
import pwd
import socket
import threading
import time
import types

import pytest
from helpers import WAIT, ended, ending, fate_of_client, wait_until

import relay
from relay.access.options import check_policy
from relay.access.policy import ClientPolicy, Decision, Denial
from relay.addresses.printable import printable
from relay.engine import questions
from relay.engine.acceptor import own_listener
from relay.engine.options import TunnelOptions
from relay.engine.records import ConnectionState
from relay.engine.relay_thread import RelayThread
from relay.streams import user_names
from relay.streams.stream import RejectedRequest
from relay.testing import pair


class Rules:
    """Deny the clients that a function finds, and remember who came."""

    def __init__(self, denies, files=()):
        self.denies = denies
        self.files = files
        self.seen = []
        self.readers = []
        self.reading, self.readable = threading.Event(), threading.Event()
        self.readable.set()

    def decide(self, identity):
        self.seen.append(identity)
        return Decision(False, "deny it") if self.denies(identity) else Decision(True)

    decide_by_address = decide

    def refresh(self, name):
        self.readers.append(threading.current_thread())
        self.reading.set()
        assert self.readable.wait(WAIT)


@pytest.fixture
def make(request):
    """Make a relay thread at a listener, whose factory counts its calls."""

    def make(receive, denies=lambda identity: False, admit=None, nconnect=-1, files=(), name="it", factory=None):
        rules = Rules(denies, files)
        dialed = []

        @relay.nonblocking
        def refuse(identity, destination=None):
            dialed.append(identity)
            raise ConnectionRefusedError

        policy = ClientPolicy(rules=rules, admit=admit)
        options = TunnelOptions(name=name, nconnect=nconnect, timeout=None, connect_timeout=10.0, linger=None)
        thread = RelayThread(own_listener(receive), factory or refuse, options, policy)
        request.addfinalizer(lambda: (thread.close(0.0), thread.join(WAIT)))
        thread.rules, thread.dialed = rules, dialed
        return thread

    return make


def listen():
    return socket.create_server(("127.0.0.1", 0))


def reset_client(receive):
    """Check that a new client is reset, which may be before its connect is over; return its port."""
    with socket.socket() as client:
        client.settimeout(WAIT)
        client.bind(("127.0.0.1", 0))
        with pytest.raises(ConnectionResetError):
            client.connect(receive.getsockname())
            client.recv(1)
        return client.getsockname()[1]


def test_a_denied_client_is_reset_and_nothing_is_dialed(make, caplog):
    receive = listen()
    thread = make(receive, lambda identity: True)
    port = reset_client(receive)
    (record,) = thread.recent()
    assert (record.reason, record.by, record.rule) == ("denied", "relay", "deny it")
    assert record.identity == relay.Identity("tcp", "127.0.0.1", "127.0.0.1", port)
    assert not thread.dialed
    assert f"denied peer=127.0.0.1:{port} tunnel=it rule=deny it" in caplog.text
    assert thread.count == 0


def test_an_admitted_client_is_dialed_for_with_its_identity(make):
    receive = listen()
    thread = make(receive)
    port = reset_client(receive)
    assert thread.dialed == [relay.Identity("tcp", "127.0.0.1", "127.0.0.1", port)]
    assert thread.rules.seen == thread.dialed


def test_a_denied_proxy_client_is_told_so(make):
    receive = relay.socks_listen("127.0.0.1", 0, user="alice", password="secret")
    thread = make(receive, lambda identity: identity.login == "alice")
    with socket.create_connection(receive.address) as client:
        client.settimeout(WAIT)
        client.sendall(b"\5\1\2" + b"\1\5alice\6secret" + b"\5\1\0\1\x7f\0\0\1\0\x50")
        answer = b""
        while piece := client.recv(64):
            answer += piece
    assert answer[:4] == b"\5\2\1\0"
    assert answer[4:6] == b"\5\2"  # connection not allowed by ruleset
    wait_until(lambda: thread.count == 0)
    (record,) = thread.recent()
    assert (record.reason, record.rule, str(record.identity)) == ("denied", "deny it", "socks:alice")
    assert not thread.dialed


@pytest.mark.parametrize("bound", ["", "203.0.113.9", "203.0.113.9:5 tunnel=it rule=x"])
def test_a_client_at_a_unix_socket_is_its_process_whatever_its_socket_is_called(make, tmp_path, caplog, bound):
    receive = relay.listen(f"unix://{tmp_path}/s")
    thread = make(receive, lambda identity: bool(thread.dialed))
    with contextlib.chdir(tmp_path):
        for _ in range(2):
            with socket.socket(socket.AF_UNIX) as client:
                if bound:
                    client.bind(bound)
                client.settimeout(WAIT)
                with pytest.raises(ConnectionResetError):
                    client.connect("s")
                    client.recv(1)
            if bound:
                (tmp_path / bound).unlink()
    (identity,) = thread.dialed
    user = pwd.getpwuid(os.getuid()).pw_name
    assert (identity.kind, identity.name, identity.process) == ("unix", user, os.getpid())
    assert f"denied peer=unix:{user} tunnel=it rule=deny it" in caplog.text
    assert "peer=203" not in caplog.text


@pytest.fixture
def look_up_by(monkeypatch):
    """Lets a function stand for ``pwd.getpwuid``; no name is known before."""

    def look_up_by(getpwuid):
        monkeypatch.setattr(user_names, "_names", {})
        monkeypatch.setattr(pwd, "getpwuid", getpwuid)

    return look_up_by


@pytest.fixture
def short_wait(monkeypatch):
    """Gives names and files of rules 0.05 s."""
    monkeypatch.setattr(questions, "_DEADLINE", 0.05)


def ends_at(path):
    """Connect to a Unix socket; return how that ends."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(WAIT)
        client.connect(path)
        return ending(client)


@pytest.mark.parametrize("denies", [None, lambda identity: False])
def test_the_name_of_a_user_is_looked_up_before_the_client_is_judged(make, tmp_path, look_up_by, denies):
    seen = []

    def getpwuid(number):
        seen.append((number, threading.current_thread()))
        return types.SimpleNamespace(pw_name="alice")

    look_up_by(getpwuid)
    thread = make(relay.listen(f"unix://{tmp_path}/s"))
    if denies is None:
        thread.run_in_thread(lambda: thread.entrance.set_policy(None))
    for _ in range(2):
        assert ends_at(f"{tmp_path}/s") == "reset"
    assert [identity.user for identity in thread.dialed] == ["alice", "alice"]
    assert thread.rules.seen == (thread.dialed if denies is not None else [])
    ((number, looker),) = seen
    thread.run_in_thread(lambda: seen.append(threading.current_thread()))
    assert number == os.getuid()
    assert looker is not seen[-1]


def test_a_user_whose_name_is_not_found_in_time_is_its_number(make, tmp_path, look_up_by, short_wait, caplog):
    answered = threading.Event()
    look_up_by(lambda number: answered.wait(WAIT) and types.SimpleNamespace(pw_name="alice"))
    thread = make(relay.listen(f"unix://{tmp_path}/s"))
    for _ in range(2):
        assert ends_at(f"{tmp_path}/s") == "reset"
    assert [identity.user for identity in thread.dialed] == [str(os.getuid())] * 2
    assert caplog.text.count("were not read within 0.05 s") == 1
    answered.set()
    # The answer is kept for the next client. It must also come before the names of this process are restored.
    wait_until(lambda: ends_at(f"{tmp_path}/s") and thread.dialed[-1].user == "alice")


def test_another_policy_holds_for_the_next_client(make):
    receive = listen()
    thread = make(receive, lambda identity: True)
    thread.run_in_thread(lambda: thread.entrance.set_policy(ClientPolicy()))
    assert thread.entrance.gate is None
    reset_client(receive)
    assert len(thread.dialed) == 1


def test_files_of_rules_are_read_on_another_thread_before_the_client_is_judged(make):
    receive = listen()
    thread = make(receive, lambda identity: len(thread.rules.readers) == 2, files=["list"])
    reset_client(receive)
    reset_client(receive)
    wait_until(lambda: thread.count == 0)
    assert [record.rule for record in thread.recent()].count("deny it") == 1
    assert len(thread.dialed) == 1
    thread.run_in_thread(lambda: thread.rules.readers.append(threading.current_thread()))
    assert thread.rules.readers[-1] not in thread.rules.readers[:-1]


def test_before_a_handshake_files_of_rules_decide_if_they_were_just_read(make):
    receive = listen()
    thread = make(receive, lambda identity: True, files=["list"])
    peer, seen = ("192.0.2.7", 5), []

    def screen(seconds):
        seen.append(thread.entrance.screen(peer, time.monotonic() + seconds))

    thread.run_in_thread(lambda: screen(0.0))
    reset_client(receive)
    wait_until(lambda: thread.count == 0)
    thread.run_in_thread(lambda: screen(-WAIT))
    thread.run_in_thread(lambda: screen(WAIT))
    other = Rules(lambda identity: True, ["other"])
    thread.run_in_thread(lambda: thread.entrance.set_policy(ClientPolicy(rules=other)))
    thread.run_in_thread(lambda: screen(-WAIT))
    assert seen == [None, Denial("deny it"), None, None]


def test_rules_without_files_are_not_read(make):
    receive = listen()
    thread = make(receive)
    reset_client(receive)
    assert len(thread.dialed) == 1
    assert not thread.rules.readers


def test_clients_that_come_while_rules_are_read_share_one_reading_that_begins_later(make):
    receive = listen()
    thread = make(receive, files=["list"])
    rules = thread.rules
    rules.readable.clear()
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(socket.create_connection(receive.getsockname())) for _ in range(3)]
        assert rules.reading.wait(WAIT)
        wait_until(lambda: len(thread.connections()) == 3)
        assert not rules.seen
        rules.readable.set()
        for client in clients:
            client.settimeout(WAIT)
            with pytest.raises(ConnectionResetError):
                client.recv(1)
    wait_until(lambda: thread.count == 0)
    assert len(thread.dialed) == 3
    assert len(rules.readers) in (2, 3)


def test_a_reading_that_hangs_keeps_back_only_the_clients_that_came_in_time(make, monkeypatch, short_wait, caplog):
    receive = listen()
    thread = make(receive, files=["list"])
    rules = thread.rules
    rules.readable.clear()
    try:
        with socket.create_connection(receive.getsockname()):
            assert rules.reading.wait(WAIT)
            reset_client(receive)
        wait_until(lambda: len(thread.dialed) == 2)
        with monkeypatch.context() as patched:
            patched.setattr(questions, "Question", None)  # no client waits
            reset_client(receive)
        assert len(thread.dialed) == 3
        assert len(rules.readers) == 1
    finally:
        rules.readable.set()
    wait_until(lambda: reset_client(receive) and len(rules.readers) == 2)
    assert caplog.text.count("it: the files of allow and deny, or the name of a user, were not read within 0.05 s") == 1


def test_a_reading_that_follows_takes_the_rules_that_a_reload_has_brought(make):
    receive = listen()
    thread = make(receive, files=["list"])
    thread.rules.readable.clear()
    other = Rules(lambda identity: True, ["other"])
    with socket.create_connection(receive.getsockname()) as first:
        first.settimeout(WAIT)
        assert thread.rules.reading.wait(WAIT)
        thread.run_in_thread(lambda: thread.entrance.set_policy(ClientPolicy(rules=other)))
        with socket.create_connection(receive.getsockname()) as second:
            wait_until(lambda: len(thread.connections()) == 2)
            thread.rules.readable.set()
            second.settimeout(WAIT)
            for client in (first, second):
                with pytest.raises(ConnectionResetError):
                    client.recv(1)
    assert len(other.readers) == 1
    assert len(thread.rules.readers) == 1


def test_other_rules_end_the_connections_that_they_deny(make):
    receive = relay.socks_listen("127.0.0.1", 0)
    asked = threading.Event()
    thread = make(receive, admit=lambda identity: asked.wait(WAIT))
    with socket.create_connection(receive.address) as client:
        client.settimeout(WAIT)
        client.sendall(b"\5\1\0" + b"\5\1\0\1\x7f\0\0\1\0\x50")
        wait_until(lambda: [one.state for one in thread.all_connections] == [ConnectionState.ADMITTING])
        rules = Rules(lambda identity: True)
        thread.run_in_thread(lambda: thread.entrance.set_rules(rules, thread.all_connections, time.monotonic()))
        assert thread.entrance.policy.rules is rules
        assert client.recv(2) == b"\5\0"
        assert client.recv(10)[:2] == b"\5\2"
    asked.set()
    wait_until(lambda: thread.count == 0)
    assert [record.rule for record in thread.recent()] == ["deny it"]


def states(thread):
    return sorted(one.state.name for one in thread.all_connections)


@pytest.fixture
def tarpit(make):
    """Make a relay thread with a client that is asked about, and two in the tarpit."""
    asked = threading.Event()
    receive = listen()
    thread = make(receive, admit=lambda identity: not asked.wait(WAIT))
    policy = check_policy(limit=[{"per": "tunnel", "concurrent": 1, "action": "tarpit", "name": "one"}])
    policy = dataclasses.replace(policy, admit=thread.entrance.policy.admit)
    thread.run_in_thread(lambda: thread.entrance.set_policy(policy))
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(socket.create_connection(receive.getsockname(), WAIT)) for _ in range(3)]
        wait_until(lambda: states(thread) == ["ADMITTING", "TARPIT", "TARPIT"])
        yield thread, clients
        asked.set()


def test_clients_that_are_not_served_go_when_no_descriptor_is_left(tarpit, caplog):
    thread, clients = tarpit
    thread.run_in_thread(lambda: thread.make_room(time.monotonic()))
    for client in clients:
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    assert sorted(record.reason for record in thread.recent()) == ["denied", "denied", "overloaded"]
    assert (
        "it: 1 clients at a time are half-open; the oldest of the largest source are reset (127.0.0.1:" in caplog.text
    )


def test_a_tunnel_that_drains_keeps_nobody_in_its_tarpit(make):
    receive = relay.socks_listen("127.0.0.1", 0)
    thread = make(receive)
    policy = check_policy(limit=[{"per": "tunnel", "concurrent": 1, "action": "tarpit", "name": "one"}])
    asked = threading.Event()
    policy = dataclasses.replace(policy, admit=lambda identity: asked.wait(WAIT))
    thread.run_in_thread(lambda: thread.entrance.set_policy(policy))
    with contextlib.ExitStack() as stack:
        first, second = [stack.enter_context(socket.create_connection(receive.address, WAIT)) for _ in range(2)]
        first.sendall(b"\5\1\0" + b"\5\1\0\1\x7f\0\0\1\0\x50")
        wait_until(lambda: states(thread) == ["ADMITTING", "REQUESTING"])
        thread.start_close(WAIT)
        second.sendall(b"\5\1\0" + b"\5\1\0\1\x7f\0\0\1\0\x50")
        assert second.recv(2) == b"\5\0"
        assert second.recv(10)[:2] == b"\5\2"
        asked.set()


def test_connections_that_were_opened_before_a_ban_are_no_further_guesses(make, caplog):
    receive = relay.socks_listen("127.0.0.1", 0, user="alice", password="secret")
    thread = make(receive)
    policy = check_policy(limit=[{"name": "login", "per": "ip", "rate": "2/1m", "ban": "1m", "action": "tarpit"}])
    thread.run_in_thread(lambda: thread.entrance.set_policy(policy))
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(socket.create_connection(receive.address, WAIT)) for _ in range(6)]
        for client in clients:
            client.sendall(b"\5\1\2")
            assert client.recv(2) == b"\5\2"
        for client in clients[:2]:
            client.sendall(b"\1\5alice\5wrong")
            assert client.recv(2) == b"\1\1"
        for client in clients[2:]:
            with pytest.raises(ConnectionResetError):
                client.recv(2)
    wait_until(lambda: thread.count == 0)
    rules = [record.rule for record in thread.recent()]
    assert (rules.count("login"), rules.count("ban login")) == (2, 4)
    (line,) = [message for message in caplog.messages if message.endswith(" wrong passwords; it is rejected for 60 s")]
    assert line.startswith("it: 127.0.0.1:") and " sent 2 " in line


def test_a_wrong_password_is_rejected_also_while_the_tunnel_drains(make, caplog):
    """Its listener is closed, whose address says whether wrong passwords count."""
    receive = relay.socks_listen("127.0.0.1", 0, user="alice", password="secret")
    thread = make(receive)
    with socket.create_connection(receive.address, WAIT) as client:
        client.sendall(b"\5\1\2")
        assert client.recv(2) == b"\5\2"
        thread.start_close(WAIT)
        wait_until(lambda: receive.listening.fileno() < 0)
        client.sendall(b"\1\5alice\5wrong")
        assert client.recv(2) == b"\1\1"
    wait_until(lambda: thread.is_closed)
    assert [record.rule for record in thread.recent()] == ["login"]
    assert "bug in relay" not in caplog.text


def test_other_rules_leave_alone_what_the_end_of_another_connection_has_ended(make, caplog):
    receive = relay.socks_listen("127.0.0.1", 0)
    asked = threading.Event()
    thread = make(receive, admit=lambda identity: asked.wait(WAIT))
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(socket.create_connection(receive.address, WAIT)) for _ in range(2)]
        for client in clients:
            client.sendall(b"\5\1\0" + b"\5\1\0\1\x7f\0\0\1\0\x50")
        wait_until(lambda: states(thread) == ["ADMITTING"] * 2)
        first, second = thread.all_connections

        def denies(identity):
            second.close("refused", time.monotonic())
            return True

        thread.run_in_thread(lambda: thread.entrance.set_rules(Rules(denies), [first, second], time.monotonic()))
        asked.set()
    wait_until(lambda: thread.count == 0)
    assert sorted((record.reason, record.rule) for record in thread.recent()) == [
        ("denied", "deny it"),
        ("refused", None),
    ]
    assert caplog.text.count("denied peer=") == 1


# -- the line about a denied client, which programs such as fail2ban read ---------------------------------------------


class Header:
    """The header of a client of a balancer; without a source the address is the balancer's."""

    def __init__(self, source):
        self.source = source


B32, PEER = "abc.b32.i2p", ("192.0.2.7", 5)


@pytest.mark.parametrize(
    ("peer", "rule", "about", "shown", "told"),
    [
        (PEER, None, {}, "192.0.2.7:5", "-"),
        (("2001:db8::7", 5, 0, 0), "one", {}, "[2001:db8::7]:5", "one"),
        (PEER, "bad\n", {}, "192.0.2.7:5", "bad\\n"),
        # Its client has chosen the name of its socket.
        ("192.0.2.99:5", "r", {"identity": None}, "-", "r"),
        (b"\0192.0.2.99:5", "r", {"identity": None}, "-", "r"),
        ("192.0.2.99:5", "r", {"identity": relay.Identity("unix", "some body")}, "unix:some_body", "r"),
        ("", "r", {"identity": relay.Identity("i2p", "somebody", destination=B32)}, B32, "r"),
        # Its server says who it is.
        (PEER, "r", {"identity": relay.Identity("ssh", "192.0.2.7", is_verified=False)}, "ssh:192.0.2.7", "r"),
        # A balancer.
        (PEER, "r", {"header": Header(("192.0.2.50", 9))}, "192.0.2.7:5", "r"),
        (PEER, "r", {"header": Header(None)}, "-", "r"),
        (PEER, "r", {"header": Header(None), "identity": relay.Identity("i2p", "", destination=B32)}, B32, "r"),
    ],
)
def test_the_line_about_a_denied_client_has_no_address_that_others_have_chosen(
    make, caplog, peer, rule, about, shown, told
):
    thread = make(listen(), name="my tunnel/2.x-y_z")
    near, client = pair(socket.AF_INET)
    near.setblocking(False)

    def deny():
        connection = thread.admit(near, None, peer, time.monotonic())
        connection.summary.rule = rule
        for name, value in about.items():
            setattr(connection.summary, name, value)
        thread.entrance.log_denied(connection, time.monotonic())
        connection.close("denied", time.monotonic())

    with client:
        thread.run_in_thread(deny)
    assert caplog.record_tuples == [
        ("relay", logging.WARNING, f"denied peer={shown} tunnel=my_tunnel_2.x-y_z rule={told}")
    ]


def test_a_long_rule_and_a_long_problem_are_cut_in_the_log(make, caplog):
    caplog.set_level(logging.INFO, "relay")
    thread = make(listen())
    near, client = pair(socket.AF_INET)
    near.setblocking(False)

    def reject():
        connection = thread.admit(near, None, ("192.0.2.7", 5), time.monotonic())
        for is_guess in (False, True):
            rejection = RejectedRequest(b"", "\x07" + "x" * 600, guessed=is_guess)
            thread.entrance.on_rejected_request(connection, rejection, time.monotonic())
        thread.entrance.on_rejected_request(connection, RejectedRequest(b"", ""), time.monotonic())
        connection.summary.rule = "r" * 300
        thread.entrance.log_denied(connection, time.monotonic())
        connection.close("denied", time.monotonic())

    with client:
        thread.run_in_thread(reject)
    problem = f"it: {printable(chr(7) + 'x' * 600, 500)} (client 192.0.2.7:5)"
    levels = [record.levelno for record in caplog.records[:4]]
    assert levels == [logging.INFO, logging.WARNING, logging.WARNING, logging.WARNING]
    assert caplog.messages[:4] == [
        problem,
        "denied peer=192.0.2.7:5 tunnel=it rule=login",
        problem,
        f"denied peer=192.0.2.7:5 tunnel=it rule={printable('r' * 300, 200)}",
    ]


# -- slots of clients that first send a request ------------------------------------------------------------------------


def test_the_next_in_the_queue_gets_the_slot_of_one_that_only_gets_a_reply(make):
    receive = relay.socks_listen("127.0.0.1", 0)
    go = threading.Event()

    def factory(destination):
        assert go.wait(WAIT)
        raise ConnectionRefusedError

    thread = make(receive, nconnect=1, factory=factory)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(socket.create_connection(receive.address, WAIT)) for _ in range(3)]
        for client in clients:
            client.sendall(b"\5\1\0")
            assert client.recv(2) == b"\5\0"
        for client in clients:
            client.sendall(b"\5\1\0\1\x7f\0\0\1\0\x50")
        wait_until(lambda: states(thread) == ["CONNECTING", "QUEUED", "QUEUED"])
        assert not thread.listening
        go.set()
        for client in clients:
            assert client.recv(10)[:2] == b"\5\5"  # refused
            assert client.recv(1) == b""
        wait_until(lambda: states(thread) == ["REPLYING"] * 3)
        assert thread.listening
    wait_until(lambda: thread.count == 0)
    records = thread.recent()
    assert [record.reason for record in records] == ["refused"] * 3
    assert all(record.connect_time is None and 0 <= record.age < WAIT for record in records)


@pytest.mark.parametrize(
    ("size", "lines"),
    [
        (
            900,
            [
                "it: 80 % of the quota of 127.0.0.1 is used (limit each)",
                "it: 80 % of the quota of all clients is used (limit all)",
            ],
        ),
        (
            1200,
            [
                "it: all of the quota of 127.0.0.1 is used (limit each)",
                "it: all of the quota of all clients is used (limit all)",
            ],
        ),
    ],
)
def test_a_quota_that_is_used_is_in_the_log_with_its_client(serve, caplog, size, lines):
    limit = [{"name": "each", "per": "ip", "quota": "1KB/hour"}, {"name": "all", "per": "tunnel", "quota": "1KB/hour"}]
    server = serve(lambda connection: connection.sendall(bytes(size)))
    with relay.Tunnel(listen(), server.factory(), limit=limit, name="it") as tunnel:
        assert fate_of_client(tunnel.address) == ("end of file" if size < 1000 else "reset")
        assert ended(tunnel) == ["done" if size < 1000 else "quota"]
    assert sorted(message for message in caplog.messages if "is used" in message) == lines
