"""``relay.engine.header_clients`` step by step: what becomes of a client, and what is recorded of it."""

from __future__ import annotations

import logging
import socket
from types import SimpleNamespace

import pytest
from notes import Notes

import relay
from relay.access.gate import Denial
from relay.access.proxy_header import AUTHORITY, Address, HeaderReader, ProxyHeaderError, build_local, build_v2
from relay.engine import header_clients as module
from relay.engine.header_clients import CHECK, HeaderClients
from relay.engine.records import ConnectionState, ConnectionSummary

NOW = 1234.5
PEER = ("127.0.0.1", 5)
CLIENT, TARGET = Address("192.0.2.7", 56324), Address("198.51.100.1", 443)
CLIENT_6 = Address("2001:db8::7", 1234)


def header_of(data):
    reader = HeaderReader()
    reader.feed(data)
    return reader.header


class Connection(Notes):
    """A client that was admitted."""

    state = pending = None

    def __init__(self, owner, client, peer):
        super().__init__()
        self.owner, self.client, self.summary = owner, client, ConnectionSummary(peer, NOW)
        self.deadline = SimpleNamespace(
            start_request=lambda now: self.calls.append(("start_request", now)),
            release=lambda: self.calls.append(("release",)),
        )


class Owner(Notes):
    """The relay thread."""

    name = "it"

    def __init__(self):
        super().__init__()
        self.loop = Notes()

    def admit(self, client, stream, peer, now, count):
        connection = Connection(self, client, peer)
        self.calls.append(("admit", client, stream, peer, now, count, connection))
        return connection

    @property
    def admitted(self):
        return [call[1:] for call in self.calls if call[0] == "admit"]

    @property
    def counted(self):
        return self.calls.count(("count_accepted",))


class Entrance(Notes):
    """The entrance; screens by what the test says."""

    denial = None

    def __init__(self):
        super().__init__()
        self.half_open = {}

    def screen(self, peer, now):
        self.calls.append(("screen", peer, now))
        return self.denial


class Senders:
    """Those that may connect; notes who was looked at."""

    def __init__(self, known):
        self.known, self.looked_at = known, []

    def include(self, client, peer):
        self.looked_at.append((client, peer))
        return self.known


class Input(Notes):
    """The reader of a header, whose outcome the test reports."""

    def __init__(self, client, loop, done):
        super().__init__()
        self.client, self.loop, self.done = client, loop, done


@pytest.fixture
def client():
    near, far = socket.socketpair()
    with near, far:
        yield near


class World:
    """The clients of a tunnel with senders that are known or not."""

    def __init__(self, known=True):
        self.owner, self.entrance, self.senders = Owner(), Entrance(), Senders(known)
        self.clients = HeaderClients(self.owner, self.entrance, self.senders)

    def read(self, client, handshake=None, peer=PEER, listener=None):
        self.clients.read(client, handshake, peer, NOW, listener)
        return self.owner.admitted[-1][-1]


@pytest.fixture
def make(monkeypatch):
    monkeypatch.setattr(module, "HeaderInput", Input)
    return World


@pytest.mark.parametrize(("peer", "shown"), [(PEER, "127.0.0.1:5"), ("", "a local program")])
@pytest.mark.parametrize("senders", ["none", "others"])
def test_who_is_no_sender_is_denied(make, client, caplog, senders, peer, shown):
    world = make(known=False)
    if senders == "none":
        world.clients.senders = None
    connection = world.read(client, peer=peer)
    assert world.owner.admitted == [(client, None, peer, NOW, 1, connection)]
    assert connection.summary.rule == "accept-proxy"
    assert connection.calls == [("close", "denied", NOW)]
    assert world.entrance.calls == [("log_denied", connection, NOW)]
    assert world.senders.looked_at == ([] if senders == "none" else [(client, peer)])
    problem = "it is no sender of headers of the PROXY protocol; see accept_proxy"
    assert caplog.record_tuples == [("relay", logging.WARNING, f"it: {shown}: {problem}")]
    assert world.clients.end(connection)
    assert world.owner.counted == 0, "it was counted when it was admitted"


def test_the_header_of_a_sender_is_read(make, client):
    world = make()
    connection = world.read(client)
    assert world.owner.admitted == [(client, None, PEER, NOW, 0, connection)]
    assert connection.state is ConnectionState.REQUESTING
    assert connection.calls == [("start_request", NOW)]
    assert world.entrance.half_open == {connection: None}
    reader = connection.pending
    assert (reader.client, reader.loop, reader.calls) == (client, world.owner.loop, [("begin", NOW)])


def test_an_error_of_the_socket_is_the_clients(make, client):
    world = make()
    connection = world.read(client)
    connection.pending.done(ConnectionResetError(), NOW + 1)
    assert (connection.pending, connection.state) == (None, ConnectionState.CONNECTING)
    assert connection.calls[1:] == [("close", "client_reset", NOW + 1)]
    assert world.clients.end(connection)
    assert world.owner.counted == 1
    assert world.clients.end(connection)
    assert world.owner.counted == 1, "once"


def test_a_wrong_header_of_a_sender_is_no_line_of_a_denied_client(make, client, caplog):
    world = make()
    connection = world.read(client)
    connection.pending.done(ProxyHeaderError("wrong"), NOW + 1)
    assert connection.calls[1:] == [("close", "denied", NOW + 1)]
    assert connection.summary.rule == "accept-proxy"
    assert world.entrance.calls == []
    assert caplog.messages == ["it: 127.0.0.1:5: no valid header of the PROXY protocol: wrong"]


def test_a_second_rejection_in_a_minute_is_not_logged(make, client, caplog):
    world = make()
    for _ in range(2):
        world.read(client).pending.done(ProxyHeaderError("wrong"), NOW)
    assert len([record for record in caplog.records if record.levelno == logging.WARNING]) == 1


@pytest.mark.parametrize(("peer", "shown"), [(PEER, "127.0.0.1:5"), ("", "a local program")])
def test_a_health_check_is_no_client(make, client, caplog, peer, shown):
    caplog.set_level(logging.INFO, "relay")
    world = make()
    connection = world.read(client, peer=peer)
    connection.pending.done(header_of(build_local("v2")), NOW + 1)
    assert connection.calls[1:] == [("fail", CHECK, NOW + 1, ("clean", True))]
    text = f"it: {shown}: a health check: its header of the PROXY protocol says LOCAL"
    assert caplog.record_tuples == [("relay", logging.INFO, text)]
    connection.summary.reason = CHECK
    assert not world.clients.end(connection)
    assert world.owner.counted == 0
    assert world.clients.end(connection), "its end was taken"


@pytest.mark.parametrize("handshake", [None, object()])
def test_a_header_tells_who_the_client_is(make, client, handshake):
    world = make()
    connection = world.read(client, handshake)
    connection.pending.done(header_of(build_v2(CLIENT, TARGET, [(AUTHORITY, b"db.example")])), NOW + 1)
    summary = connection.summary
    assert summary.identity == relay.Identity("tcp", CLIENT.host, *CLIENT)
    assert summary.peer == tuple(CLIENT)
    assert (summary.server_name, summary.header.text(AUTHORITY)) == ("db.example", "db.example")
    assert world.owner.counted == 1
    expected = ("read_handshake", connection, handshake) if handshake else ("on_request", connection)
    assert world.entrance.calls == [(*expected, NOW + 1)]


def test_a_client_over_ipv6_has_an_address_as_accept_returns_it(make, client):
    world = make()
    connection = world.read(client)
    connection.pending.done(header_of(build_v2(CLIENT_6, CLIENT_6)), NOW)
    assert connection.summary.peer == (*CLIENT_6, 0, 0)


def test_a_header_without_an_address_leaves_that_of_the_sender(make, client, monkeypatch):
    asked = []
    monkeypatch.setattr(module, "identified", lambda header, who: asked.append(who))
    world = make()
    connection = world.read(client)
    header = header_of(build_v2(CLIENT, TARGET))._replace(source=None)
    world.clients._on_header(connection, None, None, header, NOW)
    assert connection.summary.peer == PEER
    assert connection.summary.server_name is None
    assert asked == [relay.Identity("tcp", "127.0.0.1", *PEER)]


# -- before the handshake of a listener ----------------------------------------------------------------------------


def test_a_client_whose_address_is_barred_does_not_shake_hands(make, client):
    world, listener = make(), Notes()
    world.entrance.denial = denial = Denial("deny")
    connection = world.read(client, listener=listener)
    connection.pending.done(header_of(build_v2(CLIENT, TARGET)), NOW + 1)
    assert world.entrance.calls == [("screen", tuple(CLIENT), NOW + 1), ("deny", connection, denial, NOW + 1)]
    assert (listener.calls, world.owner.counted) == ([], 1)


@pytest.mark.parametrize("has_address", [True, False])
def test_a_client_shakes_hands_after_its_header(make, client, monkeypatch, has_address):
    identity = relay.Identity("tcp", CLIENT.host, *CLIENT) if has_address else relay.Identity("i2p", "a.b32.i2p")
    asked = []
    monkeypatch.setattr(module, "identified", lambda header, who: asked.append(who) or identity)
    world, listener = make(), Notes()
    connection = world.read(client, listener=listener)
    connection.pending.done(header_of(build_v2(CLIENT, TARGET, [(AUTHORITY, b"db.example")])), NOW + 1)
    assert asked == [relay.Identity("tcp", "127.0.0.1", *PEER)]
    assert [call[0] for call in world.entrance.calls] == (["screen"] if has_address else [])
    assert connection.state is ConnectionState.CLOSED
    assert (connection.summary.reason, connection.summary.finished) == (CHECK, NOW + 1)
    assert connection.calls[1:] == [("release",)]
    assert world.owner.loop.calls == [("forget", client.fileno())]
    ((name, sock, peer, now),) = listener.calls
    assert (name, sock, now) == ("upgrade", client, NOW + 1)
    assert tuple(peer) == tuple(CLIENT)
    assert (peer.identity, peer.header) == (identity, connection.summary.header)
    assert peer.header.text(AUTHORITY) == "db.example"
    assert isinstance(peer, module.ScreenedAddress) == has_address
    assert world.owner.calls[-1] == ("connection_over", connection)
    assert not world.clients.end(connection), "it leaves no trace"
    assert world.owner.counted == 0


def test_a_client_without_an_identity_is_screened_by_its_address(make, client, monkeypatch):
    monkeypatch.setattr(module, "identified", lambda header, who: None)
    world = make()
    connection = world.read(client, listener=Notes())
    connection.pending.done(header_of(build_v2(CLIENT, TARGET)), NOW)
    assert world.entrance.calls == [("screen", tuple(CLIENT), NOW)]


def introduced(entries=((AUTHORITY, b"db.example"),)):
    peer = module._Introduced(CLIENT)
    peer.identity, peer.header = relay.Identity("tcp", "192.0.2.7"), header_of(build_v2(CLIENT, TARGET, entries))
    return peer


@pytest.mark.parametrize("own", [None, relay.Identity("tls", "alice")])
@pytest.mark.parametrize("name", [None, "other.example"])
def test_what_the_handshake_has_told_counts_more_than_the_header(make, client, own, name):
    world, stream = make(), relay.Stream(client)
    stream.identity, stream.server_name = own, name
    assert world.clients.offered(stream, peer := introduced(), NOW) is True
    assert stream.identity == (own or peer.identity)
    assert stream.server_name == (name or "db.example")
    assert world.owner.calls == []


@pytest.mark.parametrize(("known", "is_denied"), [(True, False), (False, True), (None, True)])
def test_a_client_that_shook_hands_without_a_header_is_denied(make, client, caplog, known, is_denied):
    world, stream = make(known), relay.Stream(client)
    if known is None:
        world.clients.senders = None
    assert world.clients.offered(stream, PEER, NOW) is False
    ((*admitted, connection),) = world.owner.admitted
    assert admitted == [client, stream, PEER, NOW, 1]
    assert connection.calls == [("close", "denied", NOW)]
    assert world.entrance.calls == ([("log_denied", connection, NOW)] if is_denied else [])
    assert world.senders.looked_at == ([] if known is None else [(client, PEER)])
    problem = "it came before headers of the PROXY protocol were read; it may connect again"
    assert caplog.messages == [f"it: 127.0.0.1:5: {problem}"]
