"""The reload of the tunnels of a file, with real sockets: each verdict, and that a mistake changes nothing."""

import contextlib
import errno
import os
import signal
import socket
import ssl
import threading
import time

import pytest
import trustme
from group_rig import letter, repeats, running
from helpers import WAIT, ending, fate_of_client, is_gone, receive_exactly, wait_until

import relay
from relay.addresses.destinations import PrivateKey
from relay.daemon.drains import Drains
from relay.daemon.failures import ConflictError, ReloadError
from relay.engine.relay_thread import RelayThread
from relay.testing import SAMBridge
from relay.transports.i2p import key_file


@pytest.fixture
def places(serve):
    """The addresses of two servers, which send different letters."""
    return ["{}:{}".format(*serve(letter(which)).address) for which in (b"a", b"b")]


@pytest.fixture
def up(tmp_path):
    """Runs the tunnels of a text."""
    with contextlib.ExitStack() as stack:
        yield lambda text: stack.enter_context(running(tmp_path / "relay.toml", text))


@pytest.fixture
def port(reserved):
    return reserved


def toml(name, target, *more, listen=":0"):
    return "\n".join([f"[tunnels.{name}]", f'listen = "{listen}"', f'target = "{target}"', *more, ""])


def first(client, which):
    assert receive_exactly(client, 1) == which
    return client


def test_same_touches_nothing(up, places):
    text = toml("one", places[0])
    group = up(text)
    before = group.now("one")
    with first(group.connect("one"), b"a") as client:
        assert group.rewrite(text) == {"one": "same"}
        assert group.rewrite("# a comment\n" + text) == {"one": "same"}
        assert repeats(client)
    assert group.now("one").ends is before.ends
    assert group.reload_figures[:3] == (2, 0, True)


def test_tuned_is_in_force_for_new_connections_and_its_idle_timeout_for_live_ones(up, places):
    group = up(toml("one", places[0]))
    tunnel = group.tunnel("one")
    with first(group.connect("one"), b"a") as client, first(group.connect("one"), b"a") as second:
        assert group.rewrite(toml("one", places[0], "nconnect = 1", "timeout = 0.2")) == {"one": "tuned"}
        third = group.connect("one")
        assert repeats(client) and tunnel.stats().accepted == 2
        second.close()
        wait_until(lambda: tunnel.stats().active == 1)
        assert repeats(client) and tunnel.stats().accepted == 2
        assert group.rewrite(toml("one", places[0], "idle_timeout = 0.2")) == {"one": "tuned"}
        with pytest.raises(ConnectionResetError):
            client.recv(1)
        third.close()
    assert group.tunnel("one") is tunnel
    assert group.now("one").plan.options.idle_timeout == 0.2


def test_limits_of_clients_change_in_place_and_keep_what_they_have_counted(up, places):
    group = up(toml("one", places[0], "limit = [{ concurrent = 1, name = 'now' }]"))
    tunnel = group.tunnel("one")
    with first(group.connect("one"), b"a") as client:
        with pytest.raises(ConnectionResetError), group.connect("one") as second:
            second.recv(1)
        assert group.rewrite(toml("one", places[0], "limit = [{ concurrent = 2, name = 'now' }]")) == {"one": "tuned"}
        with first(group.connect("one"), b"a"):
            with pytest.raises(ConnectionResetError), group.connect("one") as third:
                third.recv(1)
        assert group.tunnel("one") is tunnel
        assert group.rewrite(toml("one", places[0])) == {"one": "tuned"}
        assert repeats(client)


def test_rerouted_keeps_the_socket_and_the_open_connections(up, places):
    group = up(toml("one", places[0]))
    address, tunnel = group.tunnel("one").address, group.tunnel("one")
    with first(group.connect("one"), b"a") as old:
        assert group.rewrite(toml("one", places[1])) == {"one": "rerouted"}
        with first(group.connect("one"), b"b") as new:
            assert repeats(old) and repeats(new)
    assert group.tunnel("one") is tunnel and tunnel.address == address
    assert places[1] in group.now("one").title
    wait_until(lambda: tunnel.stats().active == 0)
    assert (tunnel.stats().accepted, len(tunnel.recent())) == (2, 2)


def test_moved_opens_the_new_listener_and_keeps_the_open_connections(up, places, port):
    group = up(toml("one", places[0]))
    before = group.tunnel("one").address
    with first(group.connect("one"), b"a") as old:
        assert group.rewrite(toml("one", places[1], listen=f":{port}")) == {"one": "moved"}
        assert group.tunnel("one").address[1] == port
        with first(group.connect("one"), b"b"):
            assert repeats(old)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(before, WAIT)
    assert group.tunnel("one").stats().accepted == 2


def test_gone_closes_its_listener_and_new_opens(up, places):
    group = up(toml("one", places[0]) + toml("two", places[0]))
    address = group.tunnel("one").address
    with first(group.connect("one"), b"a") as old:
        assert group.rewrite(toml("two", places[0]) + toml("three", places[1])) == {
            "two": "same",
            "three": "new",
            "one": "gone",
        }
        assert [member.name for member in group.members] == ["two", "three"]
        assert [member.name for member in group.leaving] == ["one"]
        wait_until(lambda: is_gone(address))
        assert repeats(old)
        with first(group.connect("three"), b"b"):
            pass
    wait_until(lambda: group.leaving == ())
    assert group.stats().accepted == 2  # the totals of the one that is gone stay in the sum


def test_a_reload_warns_of_rules_that_can_never_match_once_it_is_done(up, places, caplog):
    def warned():
        return [record.getMessage() for record in caplog.records if "can never match" in record.getMessage()]

    text, rule = toml("one", places[0]), "deny = ['user:www-data']"
    group = up(text + toml("two", places[0]))
    assert warned() == []
    group.write(text + toml("two", places[0], rule))
    group.reload(dry_run=True)
    group.rewrite(text + toml("two", places[0], rule))
    (warning,) = warned()
    assert "tunnels.two.deny[0]: user:www-data can never match: user: rules match no client of this listener" in warning
    assert {record.levelname for record in caplog.records if warning == record.getMessage()} == {"WARNING"}


def test_a_dry_run_says_what_would_change(up, places):
    group = up(toml("one", places[0]) + toml("two", places[0]))
    before = group.members
    group.write(toml("one", places[1], "timeout = 3") + toml("three", places[0]))
    result = group.reload(dry_run=True)
    assert [(change.name, change.verdict.word, change.keys) for change in result.changes] == [
        ("one", "rerouted", ("timeout", "target")),
        ("three", "new", ()),
        ("two", "gone", ()),
    ]
    assert result.keys == ()
    assert group.members == before


def test_a_tunnel_takes_over_the_socket_of_another(up, places, port):
    """A new name for a tunnel, or another kind of listener at its port: no client is refused."""
    group = up(toml("old", places[0], listen=f":{port}"))
    with first(group.connect("old"), b"a") as client:
        assert group.rewrite(toml("renamed", places[1], listen=f":{port}")) == {"renamed": "new", "old": "gone"}
        with first(group.connect("renamed"), b"b"):
            assert repeats(client)
        assert group.rewrite(toml("renamed", "anywhere", listen=f"socks5://:{port}")) == {"renamed": "moved"}
        with group.connect("renamed") as asking:
            asking.sendall(b"\5\1\0")
            assert receive_exactly(asking, 2) == b"\5\0"
        assert repeats(client)


def test_the_one_who_asked_gets_those_that_opened_or_changed_and_those_that_are_gone(up, places):
    group = up(toml("one", places[0]) + toml("two", places[0]))
    told = []
    group.on_change = lambda changed: told.append([member.name for member in changed])
    group.rewrite(toml("two", places[1]) + toml("three", places[0]))
    assert told == [["three"], ["two", "three", "one"]]
    assert group.member("two") is group.now("two")
    assert group.member("one") is None


def test_a_tunnel_that_leaves_serves_no_new_client_also_before_its_drain_begins(up, places, port, monkeypatch):
    """Its successor shares the socket, so either could accept."""
    begun, begin = [], Drains.begin
    monkeypatch.setattr(Drains, "begin", lambda *arguments: begun.append(arguments))
    group = up(toml("old", places[0], listen=f":{port}"))
    try:
        group.rewrite(toml("renamed", places[1], listen=f":{port}"))
        for _ in range(20):
            with first(group.connect("renamed"), b"b"):
                pass
    finally:
        for arguments in begun:
            begin(*arguments)
    wait_until(lambda: group.leaving == ())


def test_an_address_that_overlaps_the_old_one(up, places, port, listener):
    group = up(toml("one", places[0], listen=f"127.0.0.1:{port}"))
    with first(group.connect("one"), b"a") as client:
        assert group.rewrite(toml("one", places[0], listen=f"0.0.0.0:{port}")) == {"one": "moved"}
        with first(socket.create_connection(("127.0.0.2", port), WAIT), b"a"):
            pass
        taken = listener.getsockname()[1]  # a failure after the old listener has closed: it listens again
        text = toml("one", places[0], listen=f"127.0.0.1:{port}")
        group.write(text + toml("two", places[0], listen=f":{taken}"))
        with pytest.raises(ReloadError, match="two: "):
            group.reload()
        with first(socket.create_connection(("127.0.0.2", port), WAIT), b"a"):
            assert repeats(client)


def test_a_unix_socket_becomes_that_of_a_proxy(up, places, tmp_path):
    listen = f"unix://{tmp_path}/socket"
    group = up(toml("one", places[0], listen=listen))
    assert group.rewrite(toml("one", "anywhere", listen=listen)) == {"one": "moved"}
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(WAIT)
        client.connect(f"{tmp_path}/socket")
        client.sendall(b"\5\1\0")
        assert receive_exactly(client, 2) == b"\5\0"


def test_new_certificates_are_for_new_handshakes(up, places, tmp_path):
    cert, key, authority = tmp_path / "cert.pem", tmp_path / "key.pem", trustme.CA()

    def issue():
        leaf = authority.issue_cert("localhost")
        leaf.private_key_pem.write_to_path(str(key))
        leaf.cert_chain_pems[0].write_to_path(str(cert))

    issue()
    text = toml("one", places[0], listen=f"tls://127.0.0.1:0?cert={cert}&key={key}")
    group = up(text)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with context.wrap_socket(group.connect("one")) as old:
        assert receive_exactly(old, 1) == b"a"
        shown = old.getpeercert(binary_form=True)
        assert group.rewrite(text) == {"one": "same"}
        issue()
        assert group.rewrite(text) == {"one": "tuned"}
        with context.wrap_socket(group.connect("one")) as new:
            assert receive_exactly(new, 1) == b"a"
            assert new.getpeercert(binary_form=True) != shown
        assert repeats(old)
        key.write_text("this is no key")
        with pytest.raises(ReloadError, match="one: key: "):
            group.reload()
        with context.wrap_socket(group.connect("one")) as new:
            assert receive_exactly(new, 1) == b"a"


def test_the_login_of_a_proxy_changes_in_place(up):
    listen = '[tunnels.one]\nlisten = "http://127.0.0.1:0"\n'
    group = up(listen + 'user = "me"\npassword = "old"\n')
    tunnel = group.tunnel("one")

    def answer(password):
        with group.connect("one") as client:
            client.sendall(b"CONNECT localhost:1 HTTP/1.1\r\nHost: localhost:1\r\n")
            client.sendall(f"Proxy-Authorization: Basic {login(password)}\r\n\r\n".encode())
            return receive_exactly(client, 12)[-3:]

    assert answer("old") != b"407"
    assert group.rewrite(listen + 'user = "me"\npassword = "new"\n') == {"one": "tuned"}
    assert answer("old") == b"407"
    assert answer("new") != b"407"
    assert group.tunnel("one") is tunnel


def login(password):
    import base64

    return base64.b64encode(f"me:{password}".encode()).decode()


def test_an_unchanged_hop_keeps_its_login(up, places, ssh_server):
    hops = f'[hops]\nbastion = "{ssh_server.url}"\n'
    over = toml("one", places[0], 'via = ["bastion"]')
    group = up(hops + over)
    with first(group.connect("one"), b"a") as client:
        assert ssh_server.logins == 1
        assert group.rewrite(hops + over + toml("two", places[0]))["one"] == "same"
        text = hops + toml("one", places[1], 'via = ["bastion"]')
        assert group.rewrite(text) == {"one": "rerouted", "two": "gone"}
        with first(group.connect("one"), b"b"):
            assert repeats(client)
        assert ssh_server.logins == 1


def test_an_unchanged_session_stays(up, places):
    with SAMBridge() as router:
        session = toml("one", f"i2p://name.i2p?sam={router.sam}")
        group = up(session + toml("two", places[0]))
        wait_until(lambda: len(router.sessions) == 1)
        before = list(router.sessions)
        assert group.rewrite(session + toml("two", places[1])) == {"one": "same", "two": "rerouted"}
        assert list(router.sessions) == before


def test_access_lists_are_for_live_streams_too(up, places, tmp_path, monkeypatch):
    """Both are let in; then the stranger is denied, then the friend alone is allowed, then both are let in again."""
    monkeypatch.setattr("relay.transports.i2p.connector._REMEMBERED", (0.0, 0.0))
    with SAMBridge() as router, contextlib.ExitStack() as stack:
        listen = f"i2p:?sam={router.sam}&keys={tmp_path}/server.dat"
        group = up(toml("one", places[0], listen=listen))
        wait_until(lambda: group.now("one").state.value == "listening")
        name = group.tunnel("one").address
        keys = {who: tmp_path / f"{who}.dat" for who in ("friend", "stranger")}

        for file in keys.values():
            key_file.write(file, PrivateKey.generate())
        factories = {
            who: stack.enter_context(relay.target(f"i2p://{name}?sam={router.sam}&keys={file}"))
            for who, file in keys.items()
        }

        def connect(who):
            stream = stack.enter_context(factories[who](deadline=time.monotonic() + WAIT))
            stream.socket.settimeout(WAIT)
            return stream.socket

        b32 = {who: key_file.read(file).b32 for who, file in keys.items()}
        friend, stranger = (first(connect(who), b"a") for who in keys)
        assert group.rewrite(toml("one", places[0], f'deny = ["{b32["stranger"]}"]', listen=listen)) == {"one": "tuned"}
        assert ending(stranger) in ("end of file", "reset")
        wait_until(lambda: group.tunnel("one").recent() and group.tunnel("one").recent()[-1].reason == "denied")
        assert repeats(friend)
        assert ending(connect("stranger")) in ("end of file", "reset")
        first(connect("friend"), b"a").close()
        assert group.rewrite(toml("one", places[0], f'allow = ["{b32["friend"]}"]', listen=listen)) == {"one": "tuned"}
        assert ending(connect("stranger")) in ("end of file", "reset")
        assert group.rewrite(toml("one", places[0], listen=listen)) == {"one": "tuned"}
        first(connect("stranger"), b"a")
        assert repeats(friend)


def test_access_lists_hold_for_open_connections_of_any_listener(up, places, tmp_path):
    group = up(toml("one", places[0]))
    with first(group.connect("one"), b"a") as client:
        assert group.rewrite(toml("one", places[0], 'allow = ["127.0.0.0/8"]')) == {"one": "tuned"}
        assert repeats(client)
        assert group.rewrite(toml("one", places[0], 'deny = ["127.0.0.1"]')) == {"one": "tuned"}
        assert ending(client) == "reset"
    assert fate_of_client(group.tunnel("one").address) == "reset"
    wait_until(lambda: len(group.tunnel("one").recent()) == 2)
    assert {record.rule for record in group.tunnel("one").recent()} == {"deny cidr:127.0.0.1/32"}
    (tmp_path / "friends").write_text("127.0.0.1\n")
    assert group.rewrite(toml("one", places[0], f'allow = ["{tmp_path}/friends"]')) == {"one": "tuned"}
    with first(group.connect("one"), b"a") as client:
        assert group.rewrite(toml("one", places[0], f'allow = ["{tmp_path}/friends"]', "idle_timeout = 60")) == {
            "one": "tuned"
        }
        assert repeats(client)
        assert group.tunnel("one")._relay.entrance.policy.rules.files == (f"{tmp_path}/friends",)


def test_a_listener_that_waits_for_its_server_counts_as_open(up, places, make_ssh_server):
    server = make_ssh_server()
    server.stop()
    group = up(toml("one", places[0]))
    assert group.rewrite(toml("one", places[0]) + toml("late", places[0], listen=server.url)) == {
        "one": "same",
        "late": "new",
    }
    assert group.now("late").state.value == "waiting"
    server.start()
    wait_until(lambda: group.now("late").state.value == "listening")
    with first(group.connect("late"), b"a"):
        assert group.rewrite(toml("one", places[0])) == {"one": "same", "late": "gone"}


def test_a_tunnel_moves_to_a_server_once_that_can_be_reached(up, places, make_ssh_server):
    server = make_ssh_server()
    server.stop()
    group = up(toml("one", places[0]))
    with first(group.connect("one"), b"a") as client:
        assert group.rewrite(toml("one", places[1], listen=server.url)) == {"one": "moved"}
        with first(group.connect("one"), b"a"):  # as before, until the server is there
            pass
        before = group.tunnel("one").address
        server.start()
        wait_until(lambda: group.tunnel("one").address != before)
        with first(group.connect("one"), b"b"):
            assert repeats(client)


def test_a_move_that_waits_is_given_up_by_the_next_reload(up, places, make_ssh_server):
    server = make_ssh_server()
    server.stop()
    group = up(toml("one", places[0]))
    assert group.rewrite(toml("one", places[0], listen=server.url)) == {"one": "moved"}
    assert group.rewrite(toml("one", places[1], listen="127.0.0.2:0")) == {"one": "moved"}
    assert group.tunnel("one").address[0] == "127.0.0.2"
    with first(group.connect("one"), b"b"):
        pass


def test_a_tunnel_that_has_not_opened_begins_anew(up, places, make_ssh_server):
    server, other = make_ssh_server(), make_ssh_server()
    server.stop()
    group = up(toml("one", places[0], listen=server.url))
    assert group.now("one").state.value == "waiting"
    assert group.rewrite(toml("one", places[0], listen=other.url)) == {"one": "moved"}
    wait_until(lambda: group.now("one").state.value == "listening")
    with first(group.connect("one"), b"a"):
        pass


def test_a_required_tunnel_that_waits_can_be_removed(up, places, capfd):
    """Its opening ends with an error then, which is no failure of the start."""
    waiting = "ssh://nobody@127.0.0.1:1?listen=:0&hostkey=SHA256:" + "A" * 43
    group = up(toml("a", places[0]) + toml("b", places[0], "required = true", listen=waiting))
    removed = group._members[1]
    assert group.rewrite(toml("a", places[0])) == {"a": "same", "b": "gone"}
    wait_until(lambda: removed._attempt is None)  # its outcome has come
    group.call(lambda: None)
    assert not group.is_ending and "the listener was closed" not in capfd.readouterr().err
    with group.connect("a") as client:
        assert client.recv(1) == b"a"


def test_a_tunnel_that_has_failed_is_tried_again_and_prevents_no_reload(up, places, port):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        bad = toml("bad", places[0], listen=f":{taken.getsockname()[1]}")
        group = up(toml("one", places[0]) + bad)
        assert group.now("bad").state.value == "failed"
        assert group.rewrite(toml("one", places[1]) + bad) == {"one": "rerouted", "bad": "new"}
        assert group.now("bad").state.value == "failed"
    assert group.rewrite(toml("one", places[1]) + bad) == {"one": "same", "bad": "new"}
    with first(group.connect("bad"), b"a"):
        pass


def test_a_drained_tunnel_opens_again(up, places):
    group = up(toml("one", places[0]) + toml("two", places[0]))
    group.drain("one", 0)
    wait_until(lambda: group.now("one").state.value == "closed")
    assert group.reload().changes[0].verdict.word == "new"
    with first(group.connect("one"), b"a"):
        pass


def test_a_paused_tunnel_stays_paused(up, places, port):
    group = up(toml("one", places[0]))
    group.pause("one")
    assert group.rewrite(toml("one", places[1], listen=f":{port}")) == {"one": "moved"}
    with group.connect("one") as client:
        group.resume("one")
        first(client, b"b")


def test_a_signal_starts_no_thread_while_another_one_has_not_begun(up, places, monkeypatch):
    group = up(toml("one", places[0]))
    group._signals.reloading = frozenset({signal.SIGHUP})
    begun, goes_on, read = threading.Event(), threading.Event(), group.reloads.file.again

    def again():
        begun.set()
        assert goes_on.wait(WAIT)
        return read()

    monkeypatch.setattr(group.reloads.file, "again", again)
    try:
        group.call(group._on_signal, signal.SIGHUP)
        assert begun.wait(WAIT)
        for _ in range(50):
            group.call(group._on_signal, signal.SIGHUP)
        assert sum(thread.name == "relay-reload" for thread in threading.enumerate()) == 2
    finally:
        goes_on.set()
    wait_until(lambda: group.reload_figures.succeeded == 2)


def test_a_signal_to_reload_while_it_ends_cuts_no_connection(up, places, caplog):
    group = up(toml("one", places[0]))
    group._signals.reloading = frozenset({signal.SIGHUP})
    with first(group.connect("one"), b"a") as client:
        group.stop()
        wait_until(lambda: group.is_ending)
        group.call(group._on_signal, signal.SIGHUP)
        with pytest.raises(ConflictError):
            group.reload()
        assert repeats(client)
    assert caplog.messages.count("reload: relay is ending; start it again") == 2


def test_a_reload_that_comes_too_late_logs_what_it_cannot_open_again(up, places, monkeypatch, caplog):
    group = up(toml("one", places[0]))

    def prepare(_):
        assert group.reloads.is_under_way
        group.call(lambda: setattr(group, "is_handing_over", True))

    changes = "relay.daemon.change.reload.TunnelChanges."
    monkeypatch.setattr(f"{changes}prepare", prepare)
    monkeypatch.setattr(f"{changes}restore", lambda _: ["one: cannot listen again: it is in use"])
    with pytest.raises(ConflictError):
        group.reload()
    group.is_handing_over = False
    assert "reload: one: cannot listen again: it is in use" in caplog.messages
    assert not group.reloads.is_under_way


def test_a_tunnel_that_drains_is_opened_again_beside_it(up, places, port):
    group = up(toml("one", places[0], listen=f":{port}") + toml("two", places[0]))
    with first(group.connect("one"), b"a") as client:
        group.drain("one", WAIT)
        wait_until(lambda: is_gone(("127.0.0.1", port)))
        assert group.rewrite(toml("one", places[1], listen=f":{port}") + toml("two", places[0]))["one"] == "new"
        with first(group.connect("one"), b"b"):
            assert repeats(client)
        assert [member.name for member in group.leaving] == ["one"]
    wait_until(lambda: group.leaving == ())


@pytest.mark.parametrize(
    ("where", "error", "told"),
    [
        ("threading.Thread.start", RuntimeError("can't start new thread"), "can't start new thread"),
        ("Reloads.run", OSError(errno.EMFILE, os.strerror(errno.EMFILE), "reload.py"), "Too many open files"),
    ],
)
def test_without_a_thread_or_descriptor_a_signal_changes_nothing(up, places, monkeypatch, caplog, where, error, told):
    group = up(toml("one", places[0]))
    group._signals.reloading = frozenset({signal.SIGHUP})

    def refuse(_):
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(f"relay.daemon.change.reload.{where}", refuse)
        group.call(group._on_signal, signal.SIGHUP)
        wait_until(lambda: f"reload: {told}; nothing has changed" in caplog.messages)
        wait_until(lambda: all(thread.name != "relay-reload" for thread in threading.enumerate()))
    group.call(group._on_signal, signal.SIGHUP)
    wait_until(lambda: group.reload_figures.succeeded == 1)


def test_without_a_thread_a_tunnel_goes_on_as_it_was_until_the_next_reload(up, places, port, monkeypatch, caplog):
    group = up(toml("one", places[0]) + toml("two", places[0]))
    moved = toml("one", places[0], listen=f":{port}")
    with first(group.connect("one"), b"a"), first(group.connect("two"), b"a"):
        pass  # each has its thread now

    def fail(*_):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(RelayThread, "make_acceptor", fail)
        assert group.rewrite(moved + toml("two", places[1]))["two"] == "rerouted"
    assert "one: can't start new thread; it goes on as it was until the next reload" in caplog.messages
    with first(group.connect("one"), b"a"), first(group.connect("two"), b"b"):
        assert is_gone(("127.0.0.1", port))
    assert group.rewrite(moved + toml("two", places[1])) == {"one": "moved", "two": "same"}
    with first(socket.create_connection(("127.0.0.1", port), WAIT), b"a"):
        pass


def test_a_worker_that_cannot_read_a_file_any_more_does_not_end_the_changes_half_way(
    up, places, tmp_path, monkeypatch, caplog
):
    friends, away = tmp_path / "friends", tmp_path / "away"
    friends.write_text("127.0.0.0/8\n")

    def text(place, number):
        listed = toml("one", places[0], "workers = 2", f'allow = ["{friends}"]', f"nconnect = {number}")
        return listed + toml("two", place)

    group = up(text(places[0], 5))
    commit = group.reloads._commit

    def later(*arguments):
        """The file goes between the check and the changes."""
        friends.rename(away)
        commit(*arguments)

    with contextlib.closing(group.processes):
        with monkeypatch.context() as patched:
            patched.setattr(group.reloads, "_commit", later)
            assert group.rewrite(text(places[1], 6)) == {"one": "tuned", "two": "rerouted"}
        assert f"there is no file {friends}; " in caplog.text
        assert "; it goes on as it was until the next reload" in caplog.text and "one: allow: " in caplog.text
        with first(group.connect("one"), b"a"), first(group.connect("two"), b"b"):
            away.rename(friends)
        assert group.rewrite(text(places[1], 6)) == {"one": "tuned", "two": "same"}


def test_a_listener_opens_again_if_only_the_wait_for_systemd_has_failed(up, places, port, monkeypatch):
    """It needs two descriptors, and nothing had noted yet that the listener was closed."""
    group = up(toml("one", places[0], listen=f"127.0.0.1:{port}"))

    def refuse(name):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(group.supervisor, "on_vacated", refuse)
    with pytest.raises(ReloadError, match="one: Too many open files"):
        group.rewrite(toml("one", places[0], listen=f"0.0.0.0:{port}"))
    with first(socket.create_connection(("127.0.0.1", port), WAIT), b"a"):
        pass


def test_a_tunnel_that_failed_before_does_not_keep_another_one_from_its_next_address(up, places, port, listener):
    """The one whose old listener is in the way of its next one is prepared last."""
    taken = toml("taken", places[0], listen=f"127.0.0.1:{listener.getsockname()[1]}")
    group = up(taken + toml("one", places[0], listen=f"127.0.0.1:{port}"))
    assert group.now("taken").state.value == "failed"
    assert group.rewrite(taken + toml("one", places[0], listen=f"0.0.0.0:{port}"))["one"] == "moved"
    assert group.tunnel("one").address[0] == "0.0.0.0"


def test_a_tunnel_that_has_no_file_cannot_be_reloaded(up, places):
    group = up(toml("one", places[0]))
    group.reloads = None
    with pytest.raises(ReloadError, match="no file to reload"):
        group.reload()
