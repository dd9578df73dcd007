"""Headers that a tunnel sends to its targets: before every other byte, over TLS before the handshake."""

import contextlib
import os
import socket
from types import SimpleNamespace

import pytest
from helpers import WAIT, ending, wait_until

import relay
from relay.access.proxy_header import (
    ALPN,
    AUTHORITY,
    CLIENT,
    DESTINATION,
    NOOP,
    SERVER,
    SSL,
    UNIQUE_ID,
    Address,
    HeaderReader,
    SSLEntry,
    build_v1,
    build_v2,
)
from relay.engine.header_sender import HeaderSender
from relay.testing import FakeListener, pair

NOWHERE = ("0.0.0.0", 0)


class Sending:
    """A tunnel that sends headers, the test, and its target."""

    def __init__(self, stack, version="v2", receive=None, family=socket.AF_INET, **options):
        self.stack = stack
        host = "127.0.0.1" if family == socket.AF_INET else "::1"
        self.target = stack.enter_context(socket.create_server((host, 0), family=family))
        self.target.settimeout(WAIT)
        self.receive = receive or socket.create_server(("127.0.0.1", 0))
        make_send = options.pop("make_send", None) or relay.tcp(host, self.target.getsockname()[1])
        self.tunnel = stack.enter_context(
            relay.Tunnel(self.receive, make_send, send_proxy=version, name="it", **options)
        )

    def connect(self, data=b""):
        address = self.receive.getsockname()
        client = self.stack.enter_context(socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET))
        client.settimeout(WAIT)
        client.connect(address)
        client.sendall(data)
        return client

    def accept(self):
        server, _ = self.target.accept()
        server.settimeout(WAIT)
        return self.stack.enter_context(server)


def read_header(server):
    """Read one header; return it, and leave what follows in the socket."""
    reader = HeaderReader()
    while reader.header is None:
        seen = server.recv(4096, socket.MSG_PEEK)
        assert seen, "the connection ended within the header"
        server.recv(reader.feed(seen))
    return reader.header


@pytest.fixture
def sending():
    with contextlib.ExitStack() as stack:
        yield lambda *arguments, **options: Sending(stack, *arguments, **options)


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_the_target_gets_the_header_first_and_at_once(sending, version, family):
    world = sending(version, family=family)
    client = world.connect()
    header = read_header(server := world.accept())
    assert header.source == client.getsockname()
    assert header.destination == client.getpeername()
    (record,) = world.tunnel.connections()
    assert header.text(UNIQUE_ID) == (record.id if version == "v2" else None)
    client.sendall(b"hello")
    assert server.recv(100) == b"hello"
    server.sendall(b"back")
    assert client.recv(100) == b"back"
    (record,) = world.tunnel.connections()
    assert (record.received, record.sent) == (5, 4)  # the header is not the client's


def test_the_client_of_a_balancer_is_passed_on(sending):
    world = sending(accept_proxy=["127.0.0.1"])
    ends = Address("192.0.2.7", 5), Address("198.51.100.1", 443)
    world.connect(build_v1(*ends) + b"x")
    header = read_header(server := world.accept())
    assert (header.source, header.destination) == ends
    assert server.recv(10) == b"x"


SESSION = SSLEntry("TLSv1.2", "X", "alice", is_verified=True).value()
LONG_SESSION = SESSION + b"\xf0\x10\0" + bytes(4096)
CLOUD = 0xEA  # an endpoint at a cloud


@pytest.mark.parametrize(
    ("entries", "passed", "server_name", "unique_id"),
    [
        ([(AUTHORITY, b"db.example"), (ALPN, b"h2")], {AUTHORITY: b"db.example", ALPN: b"h2"}, "db.example", None),
        ([(UNIQUE_ID, b"an id")], {UNIQUE_ID: b"an id"}, None, "an id"),
        ([(UNIQUE_ID, b"\xff\n")], {UNIQUE_ID: b"\xff\n"}, None, "\\xff\\n"),
        ([(SSL, SESSION)], {SSL: SESSION}, None, None),
        ([(CLOUD, b"\1vpce-1")], {CLOUD: b"\1vpce-1"}, None, None),
        ([(AUTHORITY, b"one"), (AUTHORITY, b"two")], {AUTHORITY: b"one"}, "one", None),
        ([(AUTHORITY, b"a\nb")], {AUTHORITY: b"a\nb"}, r"a\nb", None),
        # What is about the header itself, of the machine of the balancer, empty, or too long stays behind.
        ([(NOOP, b"???"), (0x30, b"netns"), (AUTHORITY, b""), (UNIQUE_ID, b"")], {}, None, None),
        ([(ALPN, b"x" * 256), (UNIQUE_ID, b"x" * 129), (SSL, LONG_SESSION)], {}, None, None),
        ([(AUTHORITY, b"x" * 256), (AUTHORITY, b"two"), (SSL, LONG_SESSION), (SSL, b"cut")], {}, None, None),
    ],
)
@pytest.mark.parametrize("source", [Address("192.0.2.7", 5), None])
def test_the_entries_of_a_balancer_reach_the_target(sending, source, entries, passed, server_name, unique_id):
    world = sending(accept_proxy=["127.0.0.1"])
    client = {DESTINATION: b"a" * 52 + b".b32.i2p"}  # else one without an address is a check
    world.connect(build_v2(source, source, [*entries, *client.items()]))
    header = read_header(world.accept())
    (record,) = world.tunnel.connections()
    assert dict(header.entries) == {UNIQUE_ID: record.id.encode()} | passed | client
    assert (record.server_name, record.unique_id) == (server_name, unique_id)


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_a_client_of_a_unix_socket_has_no_address(sending, version, tmp_path):
    world = sending(version, receive=relay.listen(f"unix://{tmp_path}/s"))
    world.connect(b"hello")
    header = read_header(server := world.accept())
    assert header.source is None and header.is_local == (version == "v2") and not header.is_check
    if version == "v2":
        import pwd

        assert header.text(CLIENT) == f"unix:{pwd.getpwuid(os.getuid()).pw_name}"
    assert server.recv(100) == b"hello"


SSH = {"server": "me@host"}


@pytest.mark.parametrize(
    ("identity", "entries", "ends"),
    [
        (relay.Identity("i2p", "a.b32.i2p", destination="a.b32.i2p"), {DESTINATION: "a.b32.i2p"}, (None, None)),
        (relay.Identity("ssh", "me@host", "not an address", 1, **SSH), {SERVER: "me@host"}, (None, None)),
        (relay.Identity("ssh", "me@host", "192.0.2.7", 5, **SSH), {SERVER: "me@host"}, (("192.0.2.7", 5), NOWHERE)),
        (relay.Identity("socks", "alice", login="alice"), {CLIENT: "socks:alice"}, (None, None)),
        (relay.Identity("tls", "x" * 255, certificate=None), {CLIENT: "tls:" + "x" * 251}, (None, None)),
    ],
)
def test_the_identity_of_another_client_is_in_entries(sending, identity, entries, ends):
    listener = FakeListener()
    world = sending(receive=listener)
    near, client = pair()
    with client:
        stream = relay.Stream(near)
        stream.identity = identity
        listener.put(stream)
        header = read_header(world.accept())
    assert (header.source, header.destination) == ends
    assert {kind: header.text(kind) for kind, _ in header.entries if kind != UNIQUE_ID} == entries


def test_a_warm_stream_gets_the_header_with_its_client(sending):
    world = sending(warm=1)
    server = world.accept()
    server.setblocking(False)
    with pytest.raises(BlockingIOError):
        server.recv(1)
    server.settimeout(WAIT)
    wait_until(lambda: world.tunnel.metrics().warm.ready == 1)
    client = world.connect(b"x")
    assert read_header(server).source == client.getsockname()
    assert server.recv(10) == b"x"


def test_a_factory_of_ones_own_gets_it_too(sending):
    world = sending(make_send=lambda: socket.create_connection(world.target.getsockname()))
    client = world.connect()
    assert read_header(world.accept()).source == client.getsockname()


def test_a_proxys_target_gets_it_before_early_bytes(sending):
    world = sending(receive=relay.listen("http://127.0.0.1:0"), make_send=relay.dynamic())
    client = world.connect(b"CONNECT 127.0.0.1:%d HTTP/1.1\r\nHost: x\r\n\r\nearly" % world.target.getsockname()[1])
    header = read_header(server := world.accept())
    assert header.source == client.getsockname()
    assert server.recv(10) == b"early"


def test_a_target_that_takes_no_header_ends_the_connection(sending):
    near, far = pair()
    with far:
        world = sending(make_send=lambda: near)
        near.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionResetError):  # which may be before it is used
            assert ending(world.connect()) == "reset"
        wait_until(lambda: world.tunnel.recent())
        assert world.tunnel.recent()[0].reason == "target_reset"


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_a_tls_target_gets_it_before_the_handshake(sending, version, certificates):
    context = certificates.server()
    listener = socket.create_server(("127.0.0.1", 0))
    make_send = relay.tls("localhost", listener.getsockname()[1], ca=certificates.ca)
    with listener:
        listener.settimeout(WAIT)
        world = sending(version, make_send=make_send)
        for _ in range(2):  # the second one is not introduced by the header of the first
            client = world.connect(b"hello")
            server, _ = listener.accept()
            server.settimeout(WAIT)
            with server:
                assert read_header(server).source == client.getsockname()
                with context.wrap_socket(server, server_side=True) as session:
                    assert session.recv(100) == b"hello"
                    session.sendall(b"back")
                    assert client.recv(100) == b"back"


def test_warm_streams_to_a_tls_target_would_need_their_client(certificates):
    with socket.create_server(("127.0.0.1", 0)) as receive:
        make_send = relay.tls("localhost", 443, ca=certificates.ca)
        with pytest.raises(ValueError, match="warm: the header of send_proxy goes before the TLS handshake"):
            relay.Tunnel(receive, make_send, warm=1, send_proxy="v2")
        chained = relay.target(
            f"tls://localhost:443?ca={certificates.ca}", via=["socks5://127.0.0.1:1", "socks5://b:2"]
        )
        with pytest.raises(ValueError, match="send_proxy"):
            relay.Tunnel(receive, chained, warm=1, send_proxy="v2")


def test_a_group_of_targets_sends_it_where_each_expects_it(sending, certificates):
    listener = socket.create_server(("127.0.0.1", 0))
    with listener:
        listener.settimeout(WAIT)
        secured = f"tls://localhost:{listener.getsockname()[1]}?ca={certificates.ca}"
        world = sending(make_send=relay.target([secured, "127.0.0.1:1"]))
        client = world.connect(b"hello")
        server, _ = listener.accept()
        server.settimeout(WAIT)
        with server:
            assert read_header(server).source == client.getsockname()
            with certificates.server().wrap_socket(server, server_side=True) as session:
                assert session.recv(100) == b"hello"


@pytest.mark.parametrize("protocol", ["http/1.1", None])
def test_the_session_of_a_tls_client_is_in_entries(sending, certificates, protocol):
    url = f"tls://127.0.0.1:0?cert={certificates.cert}&key={certificates.key}"
    receive = relay.listen(f"{url}&alpn=h2,{protocol}" if protocol is not None else url)
    context = certificates.client()
    context.set_alpn_protocols(["http/1.1"])
    world = sending(receive=receive)
    with socket.create_connection(receive.getsockname()) as raw:
        raw.settimeout(WAIT)
        with context.wrap_socket(raw, server_hostname="localhost") as client:
            client.sendall(b"hello")
            header = read_header(server := world.accept())
            assert (header.text(ALPN), header.text(AUTHORITY)) == (protocol, "localhost")
            assert (header.source, header.destination) == (client.getsockname(), receive.getsockname())
            assert header.ssl() == SSLEntry(client.version(), client.cipher()[0])
            assert server.recv(100) == b"hello"
            assert [record.server_name for record in world.tunnel.connections()] == ["localhost"]


def connection_of(local=("127.0.0.1", 80), stream=None):
    """A connection whose client's socket has this name."""
    summary = SimpleNamespace(
        number=1, started=1.0, who=lambda: relay.Identity("tcp", "192.0.2.7", "192.0.2.7", 5), reported=lambda: None
    )
    client = SimpleNamespace(getsockname=lambda: local)
    return SimpleNamespace(summary=summary, client=client, client_stream=stream)


def header_from(data):
    reader = HeaderReader()
    assert reader.feed(data) == len(data)
    return reader.header


def session_of(cipher):
    tls = SimpleNamespace(version=lambda: "TLSv1.3", cipher=lambda: cipher, selected_alpn_protocol=lambda: "h2")
    return SimpleNamespace(tls=tls, server_name="localhost", identity=None)


@pytest.mark.parametrize("cipher", [("X", "TLSv1.3", 256), None])
@pytest.mark.parametrize("local", [("127.0.0.1", 80), "/a/path", (), ("1",)])
def test_the_cipher_and_the_address_of_the_client_may_not_be_known(cipher, local):
    header = header_from(HeaderSender("v2").header(connection_of(local, session_of(cipher))))
    assert header.ssl() == SSLEntry("TLSv1.3", cipher and "X")
    assert (header.source, header.destination) == (("192.0.2.7", 5), local if len(local) == 2 else NOWHERE)


def test_a_header_of_version_1_has_nothing_of_a_session():
    data = HeaderSender("v1").header(connection_of(stream=session_of(None)))
    assert data == b"PROXY TCP4 192.0.2.7 127.0.0.1 5 80\r\n"


@pytest.mark.parametrize("introduces", [True, False])
def test_only_a_dialer_that_introduces_gets_the_header_of_its_client(introduces):
    sender, connection = HeaderSender("v2"), connection_of()
    dialer = SimpleNamespace(introduces=introduces, introducing=lambda header: header)
    assert sender.over(dialer, connection) == (sender.header(connection) if introduces else dialer)


@pytest.mark.parametrize("name", ["localhost", None])
def test_what_relay_knows_of_a_session_is_sent_and_not_what_a_balancer_says(sending, certificates, name):
    receive = relay.listen(f"tls://127.0.0.1:0?cert={certificates.cert}&key={certificates.key}")
    world = sending(receive=receive, accept_proxy=["127.0.0.1"])
    said = [(SSL, SESSION), (AUTHORITY, b"other"), (UNIQUE_ID, b"an id")]
    context = certificates.client()
    context.check_hostname = False
    ends = Address("192.0.2.7", 5), Address("198.51.100.1", 443)
    with world.connect(build_v2(*ends, said)) as raw, context.wrap_socket(raw, server_hostname=name) as client:
        client.sendall(b"hello")
        header = read_header(world.accept())
        (record,) = world.tunnel.connections()
        # The session is that with relay. The identity is what the balancer says: the client has shown no certificate.
        assert header.ssl() == SSLEntry(client.version(), client.cipher()[0], "alice", is_verified=True)
        assert header.text(AUTHORITY) == record.server_name == (name or "other")
        assert header.text(UNIQUE_ID) == record.unique_id == "an id"
        assert (header.source, header.destination) == ends
