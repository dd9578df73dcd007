"""Changes of a running tunnel: its limits, its route and its listener, with open connections."""

import contextlib
import functools
import math
import socket
import threading

import pytest
from helpers import WAIT, fate_of_client, receive_all, receive_exactly, send_and_end, wait_until

import relay
from relay.access.policy import Decision
from relay.engine import changes, relay_thread

LIMITS = {"nconnect": -1, "timeout": None, "connect_timeout": WAIT, "idle_timeout": None, "linger": 60.0}


class Factory:
    """A factory to a server that notes when it is closed."""

    def __init__(self, server, *, waits=False):
        self.inner = relay.tcp(*server.address)
        self.closed = threading.Event()
        self.goes_on = threading.Event()
        if not waits:
            self.goes_on.set()
        self.calls = 0

    def __call__(self):
        self.calls += 1
        assert self.goes_on.wait(WAIT)
        return self.inner()

    def close(self):
        self.closed.set()


def letter(which):
    """A server that sends a letter, then repeats what it gets."""

    def work(connection):
        connection.sendall(which)
        while data := connection.recv(1000):
            connection.sendall(data)

    return work


@pytest.fixture
def world(serve):
    """A tunnel to a server a, and a server b."""
    a, b = Factory(serve(letter(b"a"))), Factory(serve(letter(b"b")))
    with relay.Tunnel(relay.listen(":0"), a, timeout=None) as tunnel, contextlib.ExitStack() as stack:

        def connect(expected, address=None):
            client = stack.enter_context(socket.create_connection(address or tunnel.address, WAIT))
            assert receive_exactly(client, 1) == expected
            return client

        yield tunnel, a, b, connect
    assert b.closed.is_set() or b.calls == 0
    assert a.closed.is_set()


def repeats(client):
    client.sendall(b"x")
    return receive_exactly(client, 1) == b"x"


def test_a_new_route_is_for_new_connections_and_the_old_factory_is_closed_after_its_last_one(world):
    tunnel, a, b, connect = world
    old, older = connect(b"a"), connect(b"a")
    changes.reroute(tunnel, b, None)
    new = connect(b"b")
    assert repeats(old) and repeats(older) and repeats(new)
    old.close()
    wait_until(lambda: tunnel.stats().active == 2)
    assert not a.closed.is_set()
    older.close()
    assert a.closed.wait(WAIT)
    assert repeats(new) and not b.closed.is_set()
    assert tunnel.stats().accepted == 3


def test_a_factory_without_connections_is_closed_at_once(world):
    tunnel, a, b, connect = world
    changes.reroute(tunnel, b, None)
    assert a.closed.wait(WAIT)
    connect(b"b")


def test_a_tunnel_closes_without_a_caller_that_waits(world):
    tunnel, _, _, connect = world
    client, over = connect(b"a"), threading.Event()
    changes.start_close(tunnel, math.inf, over.set)
    assert repeats(client)
    assert not over.is_set()
    client.close()
    assert over.wait(WAIT)


def test_an_attempt_that_has_begun_keeps_its_route(serve):
    a, b = Factory(serve(letter(b"a")), waits=True), Factory(serve(letter(b"b")))
    with relay.Tunnel(relay.listen(":0"), a) as tunnel, socket.create_connection(tunnel.address, WAIT) as client:
        wait_until(lambda: a.calls == 1)
        changes.reroute(tunnel, b, None)
        assert not a.closed.is_set()
        a.goes_on.set()
        assert receive_exactly(client, 1) == b"a"


def test_warm_streams_of_another_route_replace_the_old_ones(world):
    tunnel, _, b, connect = world
    changes.keep_warm(tunnel, 1)
    wait_until(lambda: tunnel.metrics().warm.ready == 1)
    changes.reroute(tunnel, b, None)
    wait_until(lambda: tunnel.metrics().warm.ready == 1 and b.calls == 1)
    connect(b"b")
    assert tunnel.metrics().warm.hits == 1


def test_open_connections_are_cut_if_that_is_wanted(world):
    tunnel, a, b, connect = world
    old = connect(b"a")
    changes.reroute(tunnel, b, 0)
    with pytest.raises(ConnectionResetError):
        old.recv(1)
    assert a.closed.wait(WAIT)
    assert tunnel.recent()[-1].reason == "closed"
    assert repeats(connect(b"b"))


def test_open_connections_may_drain(world):
    tunnel, a, b, connect = world
    old, rest = connect(b"a"), connect(b"a")
    changes.reroute(tunnel, b, 0.3)
    new = connect(b"b")
    send_and_end(old, b"1")
    with pytest.raises(ConnectionResetError):
        rest.recv(1)
    assert a.closed.wait(WAIT)
    assert repeats(new)


def test_another_listener_takes_over_and_the_clients_of_the_old_one_are_served(world):
    tunnel, _a, _b, connect = world
    before, old = tunnel.address, connect(b"a")
    tunnel.pause()
    waiting = [socket.create_connection(before, WAIT) for _ in range(20)]  # in the backlog
    tunnel.resume()
    changes.relisten(tunnel, relay.listen(":0"), None)
    assert tunnel.address != before
    for client in waiting:
        with client:
            assert receive_exactly(client, 1) == b"a"
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(before, WAIT)
    assert repeats(old) and repeats(connect(b"a"))
    assert tunnel.stats().accepted == 22


def test_the_clients_of_the_old_listener_get_no_more_slots_than_there_are(world):
    tunnel, _a, _b, _connect = world
    changes.update(tunnel, **LIMITS | {"nconnect": 2})
    counts = []

    def fill_and_move():  # in the relay thread, so that the clients are in the backlog when the listener changes
        waiting.extend(socket.create_connection(tunnel.address, WAIT) for _ in range(5))
        changes.relisten(tunnel, relay.listen(":0"), None)
        counts.append(tunnel.stats().accepted)

    waiting = []
    changes.in_thread(tunnel, lambda thread, now: fill_and_move())
    assert counts == [2]
    for client in waiting:
        client.close()


def test_a_listener_goes_before_the_next_one_comes(world):
    tunnel, _a, _b, connect = world
    before, old = tunnel.address, connect(b"a")
    changes.listen_nowhere(tunnel)
    with relay.listen(f":{before[1]}") as again:  # its port is free
        again.close()
    old.close()
    wait_until(lambda: tunnel.stats().active == 0)
    changes.relisten(tunnel, relay.listen(f":{before[1]}"), None)
    assert tunnel.address == before
    connect(b"a")


@pytest.mark.parametrize("kind", ["object", "tls"])
def test_a_listener_of_another_kind(world, certificates, kind):
    tunnel, _a, _b, connect = world
    old = connect(b"a")
    if kind == "tls":
        made = relay.listen(f"tls://127.0.0.1:0?cert={certificates.cert}&key={certificates.key}")
    else:
        made = Plain(relay.listen(":0"))
    changes.relisten(tunnel, made, None)
    assert repeats(old)
    if kind == "object":
        assert repeats(connect(b"a", made.address))
    changes.relisten(tunnel, relay.listen(":0"), None)
    assert repeats(connect(b"a")) and repeats(old)


class Plain:
    """A listener object."""

    def __init__(self, listening):
        self._listening = listening
        self.address = listening.getsockname()

    def accept(self):
        return self._listening.accept()

    def close(self):
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()


def test_fewer_connections_are_allowed_for_live_ones_too(world):
    tunnel, _a, _b, connect = world
    clients = [connect(b"a") for _ in range(3)]
    changes.update(tunnel, **LIMITS | {"nconnect": 2})
    late = socket.create_connection(tunnel.address, WAIT)
    clients[0].close()
    wait_until(lambda: tunnel.stats().active == 2)
    assert tunnel.stats().accepted == 3
    clients[1].close()
    assert receive_exactly(late, 1) == b"a"
    later = socket.create_connection(tunnel.address, WAIT)
    changes.update(tunnel, **LIMITS)
    assert receive_exactly(later, 1) == b"a"
    later.close()
    late.close()


def test_clients_of_a_proxy_that_wait_for_a_slot_get_one(serve):
    target = serve(letter(b"a"))
    with contextlib.ExitStack() as stack:
        listening = relay.socks_listen("127.0.0.1", 0)
        tunnel = stack.enter_context(relay.Tunnel(listening, relay.dynamic(), nconnect=1))

        def ask():
            client = stack.enter_context(socket.create_connection(tunnel.address, WAIT))
            port = target.address[1].to_bytes(2, "big")
            client.sendall(b"\5\1\0" + b"\5\1\0\1\x7f\0\0\1" + port)
            assert receive_exactly(client, 2) == b"\5\0"
            return client

        first = ask()
        assert receive_exactly(first, 11)[-1:] == b"a"
        changes.update(tunnel, **LIMITS | {"nconnect": 2})
        second, third = ask(), socket.create_connection(tunnel.address, WAIT)
        third.close()
        assert receive_exactly(second, 11)[-1:] == b"a"


def test_a_longer_idle_timeout_spares_live_connections(world):
    tunnel, _a, _b, connect = world
    changes.update(tunnel, **LIMITS | {"idle_timeout": 0.5})
    old = connect(b"a")
    changes.update(tunnel, **LIMITS)
    short = connect(b"a")
    changes.update(tunnel, **LIMITS | {"timeout": 0.3})
    witness = connect(b"a")
    with pytest.raises(ConnectionResetError):  # it began later, and has the limit of new ones
        witness.recv(1)
    assert repeats(old) and repeats(short)
    assert tunnel.recent()[-1].reason == "lifetime"


class OnePort:
    """Rules that deny one port."""

    files = ()

    def __init__(self, port):
        self.port = port

    def decide(self, identity):
        return Decision(identity.port != self.port, "deny it")


def test_other_rules_hold_for_open_connections_as_well(world):
    tunnel, _a, _b, connect = world
    out, stays = connect(b"a"), connect(b"a")
    changes.set_rules(tunnel, OnePort(out.getsockname()[1]))
    with pytest.raises(ConnectionResetError):
        out.recv(1)
    assert repeats(stays)
    assert (tunnel.recent()[-1].reason, tunnel.recent()[-1].rule) == ("denied", "deny it")
    assert repeats(connect(b"a"))
    changes.set_rules(tunnel, None)
    assert repeats(stays)


def test_a_listener_its_rules_and_its_limits_come_at_once(world, monkeypatch):
    tunnel, _a, b, connect = world
    seen = []

    def note(function, *arguments, **keywords):
        listens = changes.in_thread(tunnel, lambda thread, now: thread.listening)
        seen.append((threading.current_thread().name == tunnel.name, listens))
        return function(*arguments, **keywords)

    for name in ("update", "reroute"):
        monkeypatch.setattr(changes, name, functools.partial(note, getattr(changes, name)))
    fresh = relay.listen(":0")
    early = socket.create_connection(fresh.getsockname(), WAIT)
    rules = OnePort(early.getsockname()[1])
    tune = functools.partial(note, changes.set_rules, tunnel, rules)
    stays = connect(b"a")
    changes.replace(tunnel, LIMITS, tune, make_send=b, receive=fresh)
    assert seen == [(True, False)] * 3  # no client can come in between
    with early, pytest.raises(ConnectionResetError):
        early.recv(1)
    assert repeats(stays)
    assert repeats(connect(b"b"))
    assert tunnel.address == fresh.getsockname()


def test_the_senders_of_headers_come_with_the_rules(world):
    tunnel, _a, _b, _connect = world
    tune = functools.partial(changes.set_rules, tunnel, None)
    changes.set_rules(tunnel, OnePort(1))
    changes.replace(tunnel, {**LIMITS, "accept_proxy": ["192.0.2.1"]}, tune)
    assert fate_of_client(tunnel.address) == "reset"
    wait_until(lambda: [record.rule for record in tunnel.recent()] == ["accept-proxy"])


def test_a_closed_tunnel_stays_as_it_is(serve):
    a, b = Factory(serve(letter(b"a"))), Factory(serve(letter(b"b")))
    tunnel = relay.Tunnel(relay.listen(":0"), a)
    tunnel.close()
    changes.reroute(tunnel, b, None)
    assert b.closed.is_set()
    fresh = relay.listen(":0")
    changes.relisten(tunnel, fresh, None)
    assert fresh.fileno() < 0
    changes.update(tunnel, **LIMITS)
    changes.set_rules(tunnel, None)
    fresh, b = relay.listen(":0"), Factory(serve(letter(b"b")))
    changes.replace(tunnel, LIMITS, lambda: None, make_send=b, receive=fresh)
    assert fresh.fileno() < 0
    assert b.closed.is_set()


def test_an_error_is_raised_in_the_callers_thread(world, monkeypatch):
    tunnel, _a, _b, connect = world

    def fail(*_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(relay_thread.RelayThread, "make_acceptor", fail)
    with relay.listen(":0") as spare, pytest.raises(RuntimeError, match="thread"):
        changes.relisten(tunnel, spare, None)
    connect(b"a")


def test_close_closes_the_factories_of_old_routes_too(serve):
    a, b = Factory(serve(letter(b"a"))), Factory(serve(letter(b"b")))
    with relay.Tunnel(relay.listen(":0"), a) as tunnel, socket.create_connection(tunnel.address, WAIT) as client:
        assert receive_exactly(client, 1) == b"a"
        changes.reroute(tunnel, b, None)
        tunnel.close()
    assert a.closed.wait(WAIT)
    assert b.closed.is_set()


def peer_seen(tunnel):
    """The address from which a new connection of a tunnel comes to its target, which says it."""
    with socket.create_connection(tunnel.address, WAIT) as client:
        return receive_all(client).decode()


@pytest.fixture
def telling(serve):
    """A server that tells each client where it comes from."""
    return relay.tcp(*serve(lambda connection: connection.sendall(connection.getpeername()[0].encode())).address)


def test_another_source_is_for_new_connections(telling):
    with relay.Tunnel(relay.listen(":0"), telling, timeout=None) as tunnel:
        assert peer_seen(tunnel) == "127.0.0.1"
        changes.update(tunnel, **LIMITS, source="127.0.0.2")
        assert peer_seen(tunnel) == "127.0.0.2"
        changes.update(tunnel, **LIMITS, source="127.0.0.2")
        assert peer_seen(tunnel) == "127.0.0.2"
        changes.replace(tunnel, {**LIMITS, "source": "127.0.0.3"}, lambda: None, make_send=telling)
        assert peer_seen(tunnel) == "127.0.0.3"
        changes.update(tunnel, **LIMITS)
        assert peer_seen(tunnel) == "127.0.0.1"


def test_a_header_for_the_target_comes_with_an_update(serve):
    server = serve(lambda connection: connection.sendall(receive_until(connection, b"\r\n")))
    with relay.Tunnel(relay.listen(":0"), relay.tcp(*server.address), timeout=None) as tunnel:
        changes.update(tunnel, **LIMITS, send_proxy="v1")
        assert peer_seen(tunnel).startswith("PROXY TCP4 127.0.0.1 ")


def receive_until(connection, end):
    data = b""
    while not data.endswith(end):
        data += connection.recv(1)
    return data


def test_who_may_connect_stays_with_an_update(echo_server):
    with relay.Tunnel(relay.listen(":0"), echo_server.factory(), admit=lambda identity: False) as tunnel:
        changes.update(tunnel, **LIMITS)
        assert fate_of_client(tunnel.address) == "reset"
        assert tunnel.recent()[-1].reason == "denied"


@pytest.mark.parametrize("way", ["reroute", "relisten", "replace", "start_close"])
def test_the_end_of_a_drain_may_be_spread(world, way):
    """The oldest connection ends at once, the other one after half of the time."""
    tunnel, _a, b, connect = world
    oldest, other = connect(b"a"), connect(b"a")
    if way == "reroute":
        changes.reroute(tunnel, b, 1000, spread=1000)
    elif way == "relisten":
        changes.relisten(tunnel, relay.listen(":0"), 1000, 1000)
    elif way == "replace":
        changes.replace(tunnel, LIMITS, lambda: None, make_send=b, drain=1000, spread=1000)
    else:
        changes.start_close(tunnel, 1000, lambda: None, 1000)
    with pytest.raises(ConnectionResetError):
        oldest.recv(1)
    assert repeats(other)


def test_the_connections_that_are_meant_are_reset(world):
    tunnel, _a, _b, connect = world
    meant, other = connect(b"a"), connect(b"a")
    changes.reset(tunnel, lambda summary: summary.peer == meant.getsockname())
    with pytest.raises(ConnectionResetError):
        meant.recv(1)
    assert repeats(other)
    (record,) = tunnel.recent()
    assert record.reason == "killed" and 0 <= record.age < WAIT


def test_the_drain_of_a_close_may_be_nothing_at_all(world):
    tunnel, _a, _b, connect = world
    client, over = connect(b"a"), threading.Event()
    with pytest.raises(ValueError, match="^drain: "):
        changes.start_close(tunnel, -1.0, over.set)
    assert repeats(client)
    changes.start_close(tunnel, 0, over.set)
    assert over.wait(WAIT)
    with pytest.raises(ConnectionResetError):
        client.recv(1)


def test_a_factory_that_comes_too_late_and_cannot_be_closed_is_in_the_log(echo_server, caplog):
    class Stubborn:
        def __call__(self):
            """Make no stream."""

        def close(self):
            raise ZeroDivisionError

    tunnel = relay.Tunnel(relay.listen(":0"), echo_server.factory(), name="it")
    tunnel.close()
    changes.reroute(tunnel, Stubborn(), None)
    changes.replace(tunnel, LIMITS, lambda: None, make_send=Stubborn())
    assert caplog.messages == ["it: closing the factory failed"] * 2
