"""Clients of balancers: their headers, who may send one, and what becomes of everything else."""

import contextlib
import logging
import socket
import ssl
import struct

import pytest
from helpers import WAIT, TLSEnd, ending, fate_of_client, receive_exactly, wait_until

import relay
from relay.access.options import check_policy
from relay.access.proxy_header import (
    AUTHORITY,
    CLIENT,
    CRC32C,
    DESTINATION,
    NOOP,
    SERVER,
    SSL,
    UNIQUE_ID,
    Address,
    HeaderReader,
    SSLEntry,
    build_local,
    build_v1,
    build_v2,
)
from relay.engine import changes

ONE, OTHER = Address("192.0.2.7", 56324), Address("198.51.100.1", 443)
ONE_6 = Address("2001:db8::7", 1234)
B32 = "a" * 52 + ".b32.i2p"


class Balanced:
    """A tunnel behind a balancer, the test, and its target."""

    def __init__(self, stack, receive=None, senders=("127.0.0.1",), **options):
        self.target = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        self.target.settimeout(WAIT)
        self.receive = receive or socket.create_server(("127.0.0.1", 0))
        self.address = self.receive.getsockname()
        self.stack = stack
        make_send = options.pop("make_send", None) or relay.tcp("127.0.0.1", self.target.getsockname()[1])
        self.tunnel = stack.enter_context(
            relay.Tunnel(self.receive, make_send, accept_proxy=senders, name="it", **options)
        )

    def connect(self, data=b""):
        family = socket.AF_UNIX if isinstance(self.address, str) else socket.AF_INET
        client = self.stack.enter_context(socket.socket(family))
        client.settimeout(WAIT)
        client.connect(self.address)
        client.sendall(data)
        return client

    def is_reset(self, data=b"", half_close=False):
        """Return whether a client that sends this is reset, which may be at any time."""
        try:
            client = self.connect(data)
            if half_close:
                client.shutdown(socket.SHUT_WR)
            return ending(client) == "reset"
        except OSError:
            return True

    def accept(self):
        server, _ = self.target.accept()
        server.settimeout(WAIT)
        return self.stack.enter_context(server)

    def identity(self):
        (record,) = self.tunnel.connections()
        return record.identity


@pytest.fixture
def balanced():
    with contextlib.ExitStack() as stack:
        yield lambda **options: Balanced(stack, **options)


@pytest.fixture
def balanced_tls(balanced, certificates):
    def make(**options):
        address = f"tls://127.0.0.1:0?cert={certificates.cert}&key={certificates.key}"
        return balanced(receive=relay.listen(address), **options)

    return make


def shaken(world, certificates, header):
    """A client whose balancer sends a header before its handshake."""
    return TLSEnd(world.connect(header), certificates.client())


@pytest.mark.parametrize("source", [ONE, ONE_6])
@pytest.mark.parametrize("build", [build_v1, build_v2])
@pytest.mark.parametrize("shakes_hands", [False, True])
def test_the_address_of_the_header_is_the_clients(balanced, balanced_tls, certificates, build, source, shakes_hands):
    world = balanced_tls() if shakes_hands else balanced()
    header = build(source, source)
    client = shaken(world, certificates, header) if shakes_hands else world.connect(header)
    client.sendall(b"hello")
    server = world.accept()
    assert server.recv(100) == b"hello"
    server.sendall(b"back")
    assert receive_exactly(client, 4) == b"back"
    (record,) = world.tunnel.connections()
    assert record.identity == relay.Identity("tcp", source.host, source.host, source.port)
    assert record.peer == ((*source, 0, 0) if ":" in source.host else source)
    stats = world.tunnel.stats()
    assert (stats.accepted, stats.active) == (1, 1)


@pytest.mark.parametrize(
    ("entries", "identity"),
    [
        ([(SSL, SSLEntry("TLSv1.3", "X", "alice", is_verified=True).value())], "tls:alice"),
        ([(SSL, SSLEntry("TLSv1.3", "X", "alice").value())], "tcp:192.0.2.7"),
        ([(DESTINATION, B32)], f"i2p:{B32}"),
        ([(DESTINATION, struct.pack("!Q", 7))], "tcp:192.0.2.7"),  # as a cloud uses this type
        ([(SERVER, "ssh://me@bastion")], "ssh:ssh://me@bastion"),
        ([(CLIENT, "unix:www-data")], "unix:www-data"),
        ([(CLIENT, "socks:alice")], "socks:alice"),
        ([(CLIENT, "tls:db.internal")], "tls:db.internal"),
        ([(CLIENT, "root:root")], "tcp:192.0.2.7"),
        ([(CLIENT, "unix:" + "x" * 300 + "\n")], "unix:" + "x" * 250),
    ],
)
def test_entries_tell_more_of_the_client(balanced, entries, identity):
    world = balanced()
    world.connect(build_v2(ONE, OTHER, entries) + b"x")
    world.accept()
    found = world.identity()
    assert str(found) == identity
    assert found.user == (found.name if found.kind == "unix" else None)
    assert found.login == (found.name if found.kind == "socks" else None)
    assert (found.certificate is not None) == (identity == "tls:alice")


def test_a_client_without_an_address_has_that_of_the_sender(balanced):
    world = balanced()
    client = world.connect(build_v1(None, None) + b"x")
    world.accept()
    assert world.identity() == relay.Identity("tcp", "127.0.0.1", *client.getsockname())


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\0\1\0",
        b"PROXY UNKNOWN " + b"x" * 92 + b"\r\n",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 0 65536\r\n",
        build_v2(ONE, OTHER)[:-1],
        build_v2(ONE, OTHER, [(0x03, b"abcd")]),
        b"",
    ],
)
def test_a_sender_without_a_valid_header_is_denied_and_the_log_has_the_cause_alone(balanced, sent, caplog):
    """Another line would have fail2ban ban the balancer."""
    world = balanced()
    assert world.is_reset(sent, half_close=sent in (b"", build_v2(ONE, OTHER)[:-1]))
    wait_until(lambda: world.tunnel.recent())
    (record,) = world.tunnel.recent()
    port = record.peer[1]
    assert (record.reason, record.rule) == ("denied", "accept-proxy")
    (line,) = [line for line in caplog.messages if "denied" in line or "PROXY" in line]
    assert line.startswith(f"it: 127.0.0.1:{port}: no valid header of the PROXY protocol: ")
    assert world.tunnel.stats().accepted == 1
    assert world.tunnel.metrics().denied["accept-proxy"] == 1


def test_a_stranger_is_denied_before_it_sends(balanced, caplog):
    world = balanced(senders=["10.0.0.0/8", "::1", "unix"])
    assert world.is_reset()
    wait_until(lambda: world.tunnel.recent())
    (record,) = world.tunnel.recent()
    assert (record.reason, record.rule) == ("denied", "accept-proxy")
    assert f"denied peer=127.0.0.1:{record.peer[1]} tunnel=it rule=accept-proxy" in caplog.messages
    assert "it is no sender of headers of the PROXY protocol; see accept_proxy" in caplog.text
    assert world.tunnel.stats().accepted == 1


@pytest.mark.parametrize(
    ("header", "peer", "rule"),
    [
        (build_v1(ONE, OTHER), "192.0.2.7:56324", "allow"),
        (build_v1(None, None), "-", "allow"),
        (build_v2(None, None, [(UNIQUE_ID, "an id")]), "-", "allow"),
        (build_v2(None, None, [(CLIENT, "unix:www-data")]), "unix:www-data", "allow"),
        (build_v2(None, None, [(DESTINATION, B32)]), B32, "allow"),
        (build_v1(None, None), "-", "deny cidr:127.0.0.1/32"),  # before its handshake
    ],
)
def test_the_line_of_a_denied_client_never_has_the_address_of_its_balancer(
    balanced, balanced_tls, caplog, header, peer, rule
):
    world = balanced(allow=["10.0.0.0/8"]) if rule == "allow" else balanced_tls(deny=["127.0.0.1"])
    assert world.is_reset(header)
    wait_until(lambda: world.tunnel.recent())
    assert f"denied peer={peer} tunnel=it rule={rule}" in caplog.messages


@pytest.mark.parametrize("more", [b"", b"GET / HTTP/1.0\r\n\r\n"])
def test_a_check_is_answered_by_an_end_and_is_no_client(balanced, caplog, more):
    caplog.set_level(logging.INFO, "relay")
    ended = []
    world = balanced(on_end=ended.append)
    checks = [world.connect(build_local("v2") + more) for _ in range(3)]
    assert [check.recv(1) for check in checks] == [b"", b"", b""]
    (text,) = [text for text in caplog.messages if "a health check" in text]
    name, _, rest = text.partition(": 127.0.0.1:")
    assert name == "it" and rest.endswith(": a health check: its header of the PROXY protocol says LOCAL")
    for check in checks:
        check.close()
    wait_until(lambda: not world.tunnel.connections())
    client = world.connect(build_v1(ONE, OTHER))
    world.accept().close()
    assert client.recv(1) == b""
    client.close()
    wait_until(lambda: world.tunnel.recent())
    assert [record.peer for record in world.tunnel.recent()] == [ONE]
    metrics = world.tunnel.metrics()
    assert metrics.accepted == 1 and sum(metrics.ended.values()) == 1
    world.tunnel.close()
    assert len(ended) == 1


def test_a_silent_sender_is_reset_after_the_time_for_a_handshake(balanced):
    world = balanced(connect_timeout=0.2)
    assert ending(world.connect()) == "reset"
    slow = world.connect(b"PROXY TCP4 ")
    assert ending(slow) == "reset"
    wait_until(lambda: len(world.tunnel.recent()) == 2)
    assert {record.reason for record in world.tunnel.recent()} == {"connect_timeout"}
    assert world.tunnel.stats().accepted == 2


def test_a_sender_that_goes_is_client_reset(balanced):
    world = balanced()
    client = world.connect(b"PROXY ")
    wait_until(lambda: world.tunnel.connections())
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    wait_until(lambda: world.tunnel.recent())
    assert world.tunnel.recent()[0].reason == "client_reset"
    assert world.tunnel.stats().accepted == 1


def test_half_open_clients_have_no_slot(balanced):
    world = balanced(nconnect=1)
    silent = [world.connect() for _ in range(3)]
    client = world.connect(build_v1(ONE, OTHER) + b"x")
    server = world.accept()
    waiting = world.connect(build_v1(ONE_6, ONE_6) + b"y")
    server.close()
    client.close()
    assert world.accept().recv(1) == b"y"
    del silent, waiting


def test_programs_at_a_unix_socket_are_senders_when_listed(balanced, tmp_path):
    world = balanced(receive=relay.listen(f"unix://{tmp_path}/s"), senders=["unix"])
    world.connect(build_v2(ONE, OTHER) + b"x")
    world.accept()
    assert world.identity().host == "192.0.2.7"


@pytest.mark.parametrize("kind", ["socks5", "http"])
def test_a_proxys_clients_send_their_request_after_the_header(balanced, kind):
    receive = relay.listen(f"{kind}://127.0.0.1:0")
    world = balanced(receive=receive, make_send=relay.dynamic())
    port = world.target.getsockname()[1]
    ask = (
        b"\5\1\0" + b"\5\1\0\1\x7f\0\0\1" + struct.pack("!H", port)
        if kind == "socks5"
        else f"CONNECT 127.0.0.1:{port} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    )
    client = world.connect(build_v2(ONE, OTHER) + ask)
    world.accept().sendall(b"hello")
    answer = b""
    while not answer.endswith(b"hello"):
        answer += client.recv(100)
    assert world.identity().host == "192.0.2.7"


def test_slow_factories_see_the_client_and_miss_no_byte(balanced):
    seen = []

    def make_send(peer, identity):
        seen.append((peer, identity.host))
        return socket.create_connection(world.target.getsockname())

    world = balanced(make_send=lambda peer, identity: make_send(peer, identity))
    world.connect(build_v1(ONE, OTHER) + b"hello")
    assert world.accept().recv(100) == b"hello"
    assert seen == [(ONE, "192.0.2.7")]


def test_a_change_of_the_senders_holds_for_new_clients(balanced):
    world = balanced()
    half = world.connect(b"PROXY ")
    wait_until(lambda: world.tunnel.connections())
    limits = {"nconnect": -1, "timeout": None, "connect_timeout": 30.0, "idle_timeout": None, "linger": 60.0}
    changes.update(world.tunnel, **limits)
    world.connect(b"plain")
    assert world.accept().recv(100) == b"plain"
    half.sendall(b"UNKNOWN\r\nproxied")  # the header of a client that came before is still read
    assert world.accept().recv(100) == b"proxied"
    changes.update(world.tunnel, **limits, accept_proxy=["10.0.0.0/8"])
    assert world.is_reset(b"x")


@pytest.mark.parametrize(
    ("entries", "error", "problem"),
    [
        ("10.0.0.0/8", TypeError, "expected a list of networks"),
        ([1], TypeError, "expected text"),
        ([], ValueError, "the list is empty"),
        (["10.0.0.1/8"], ValueError, "it has host bits set; write 10.0.0.0/8"),
        (["localhost"], ValueError, "accept_proxy: 'localhost': that is no IP address or network"),
        (["10.0.0.0/33"], ValueError, "out of range"),
    ],
)
def test_wrong_senders_are_named(entries, error, problem):
    with pytest.raises(error, match=problem):
        check_policy(accept_proxy=entries)


def test_a_listener_of_another_kind_is_refused_at_the_call():
    class Listener:
        def accept(self):
            raise OSError

        def close(self):
            pass

    with pytest.raises(ValueError, match="accept_proxy: not supported with this listener"):
        relay.Tunnel(Listener(), lambda: None, accept_proxy=["10.0.0.0/8"])
    for family, entries in (
        (socket.AF_UNIX, ["10.0.0.0/8", "::1"]),
        (socket.AF_INET, ["unix"]),
        (socket.AF_INET, ["::1"]),
    ):
        with socket.socket(family) as listening:
            listening.bind("" if family == socket.AF_UNIX else ("127.0.0.1", 0))
            listening.listen()
            with pytest.raises(ValueError, match="accept_proxy: no client could connect"):
                relay.Tunnel(listening, lambda: None, accept_proxy=entries)
    with pytest.raises(ValueError, match="send_proxy: expected v1 or v2, got 'v3'"):
        relay.Tunnel(Listener(), lambda: None, send_proxy="v3")


@pytest.mark.parametrize(
    ("entries", "name"),
    [
        ([(CLIENT, "unix:www-data")], "www-data"),
        ([(DESTINATION, B32)], B32),
        ([(UNIQUE_ID, "an id")], "127.0.0.1"),
        ([], None),
        ([(NOOP, b"???")], None),
        ([(CRC32C, bytes(4))], None),
    ],
)
def test_a_local_header_with_a_client_is_no_check(balanced, entries, name):
    world = balanced()
    client = world.connect(build_v2(None, None, entries))
    if name is None:
        assert client.recv(1) == b""
    else:
        client.sendall(b"x")
        assert world.accept().recv(1) == b"x"
        assert world.identity().name == name
    assert world.tunnel.stats().accepted == (name is not None)


# -- before a TLS handshake ------------------------------------------------------------------------------------------


def test_a_header_in_the_segment_of_the_handshake_is_cut_off_exactly(balanced_tls, certificates):
    world = balanced_tls()
    hello, out = ssl.MemoryBIO(), ssl.MemoryBIO()
    session = certificates.client().wrap_bio(hello, out, server_hostname="localhost")
    with contextlib.suppress(ssl.SSLWantReadError):
        session.do_handshake()
    client = world.connect(build_v2(ONE, OTHER) + out.read())
    while True:  # the answer may come in pieces
        hello.write(client.recv(65536))
        with contextlib.suppress(ssl.SSLWantReadError):
            session.do_handshake()
            break
    session.write(b"hello")
    client.sendall(out.read())
    assert world.accept().recv(100) == b"hello"


def test_a_handshake_without_a_header_is_denied(balanced_tls, certificates):
    world = balanced_tls()
    with pytest.raises((ssl.SSLError, OSError)):
        shaken(world, certificates, b"")
    wait_until(lambda: world.tunnel.recent())
    (record,) = world.tunnel.recent()
    assert (record.reason, record.rule) == ("denied", "accept-proxy")


@pytest.mark.parametrize(("senders", "is_logged"), [(["127.0.0.1"], False), (["10.0.0.0/8"], True)])
def test_a_client_that_has_shaken_hands_before_the_tunnel_is_denied(balanced, certificates, caplog, senders, is_logged):
    receive = relay.listen(f"tls://127.0.0.1:0?cert={certificates.cert}&key={certificates.key}")
    with socket.create_connection(receive.getsockname(), timeout=WAIT) as client:
        TLSEnd(client, certificates.client())
        world = balanced(receive=receive, senders=senders)
        wait_until(lambda: world.tunnel.recent())
    assert "it came before headers of the PROXY protocol were read" in caplog.text
    assert ("denied peer=127.0.0.1:" in caplog.text) == is_logged


def test_a_check_before_a_handshake_is_no_client(balanced_tls):
    world = balanced_tls()
    assert ending(world.connect(build_local("v2"))) == "end of file"
    assert world.tunnel.stats().accepted == 0
    assert world.tunnel.recent() == []


def test_a_handshake_that_fails_after_a_header_leaves_nothing(balanced_tls, caplog):
    world = balanced_tls()
    caplog.set_level(logging.INFO)
    client = world.connect(build_v2(ONE, OTHER) + b"GET / HTTP/1.0\r\n\r\n")
    with contextlib.suppress(ConnectionError):
        ending(client)
    wait_until(lambda: f"the handshake with {ONE.host}:{ONE.port} failed" in caplog.text)
    stats = world.tunnel.stats()
    assert (stats.accepted, stats.active) == (0, 0)


def test_a_reload_begins_and_ends_headers_of_tls_clients(balanced_tls, certificates):
    world = balanced_tls(senders=None)
    first = shaken(world, certificates, b"")
    first.sendall(b"1")
    assert world.accept().recv(1) == b"1"
    limits = {"nconnect": -1, "timeout": None, "connect_timeout": WAIT, "idle_timeout": None, "linger": 60.0}
    changes.update(world.tunnel, **limits, accept_proxy=["127.0.0.1"])
    second = shaken(world, certificates, build_v1(ONE, OTHER))
    second.sendall(b"2")
    assert world.accept().recv(1) == b"2"
    assert [record.peer[0] for record in world.tunnel.connections()] == ["127.0.0.1", ONE.host]


@pytest.mark.parametrize(
    ("entries", "identity", "ends"),
    [([], "tcp:192.0.2.7", (ONE, OTHER)), ([(DESTINATION, B32)], f"i2p:{B32}", (None, None))],
)
def test_a_header_before_a_handshake_tells_as_much_as_another(balanced_tls, certificates, entries, identity, ends):
    world = balanced_tls(send_proxy="v2")
    client = shaken(world, certificates, build_v2(ONE, OTHER, entries))
    client.sendall(b"x")
    server, reader = world.accept(), HeaderReader()
    while reader.header is None:
        server.recv(reader.feed(server.recv(4096, socket.MSG_PEEK)))
    assert str(world.identity()) == identity
    assert (reader.header.source, reader.header.destination) == ends
    assert reader.header.text(DESTINATION) == (entries[0][1] if entries else None)


@pytest.mark.parametrize("name", [None, "localhost"])
@pytest.mark.parametrize("shakes_hands", [True, False])
def test_the_name_that_the_client_has_asked_for_is_known(balanced, balanced_tls, certificates, shakes_hands, name):
    """The name of the handshake counts more than that of the header."""
    header = build_v2(ONE, OTHER, [(AUTHORITY, "db.example")])
    if not shakes_hands:
        world = balanced()
        client = world.connect(header)
    else:
        world, context = balanced_tls(), certificates.client()
        context.check_hostname = False
        client = context.wrap_socket(world.connect(header), server_hostname=name)
    with client:
        client.sendall(b"x")
        assert world.accept().recv(1) == b"x"
        (record,) = world.tunnel.connections()
        assert record.server_name == (name if shakes_hands and name else "db.example")


def test_clients_without_an_address_do_not_count_for_that_of_their_balancer(balanced_tls, certificates):
    world = balanced_tls(limit=[{"name": "x", "rate": "1/h"}], deny=[f"i2p:{B32}"])
    for count, (letter, rule) in enumerate(
        [("b", None), ("c", None), ("b", "limit x"), ("a", f"deny i2p:{B32}")], start=1
    ):
        header = build_v2(None, None, [(DESTINATION, letter * 52 + ".b32.i2p")])
        with contextlib.suppress(OSError):  # one that is denied is reset, perhaps within its handshake
            client = shaken(world, certificates, header)
            client.sendall(b"x")
            if rule is None:
                assert world.accept().recv(1) == b"x"
                client.close()
        wait_until(lambda: len(world.tunnel.recent()) == count)  # noqa: B023
        assert world.tunnel.recent()[-1].rule == rule


# -- what the address decides before a handshake -----------------------------------------------------------------------


def exchange(world, client):
    client.sendall(b"hello")
    server = world.accept()
    assert server.recv(100) == b"hello"
    server.close()
    assert ending(client) == "end of file"
    client.close()


@pytest.mark.parametrize("senders", [None, ["127.0.0.1"]], ids=["plain", "balanced"])
@pytest.mark.parametrize("action", ["reset", "close", "tarpit"])
def test_an_address_that_is_denied_costs_no_handshake(balanced_tls, certificates, senders, action):
    host = ONE.host if senders else "127.0.0.1"
    limit = {"name": "x", "rate": "2/h", "ban": "1h", "action": action}
    world = balanced_tls(senders=senders, limit=[limit], nconnect=1)
    header = build_v2(ONE, OTHER) if senders else b""
    for _ in range(2):  # one that counted twice would be the last
        exchange(world, shaken(world, certificates, header))
    if action == "tarpit":
        client = world.connect(header)
        wait_until(lambda: world.tunnel.stats().accepted == 3)
        client.close()
    else:
        assert fate_of_client(world.address, header) == {"reset": "reset", "close": "end of file"}[action]
    wait_until(lambda: len(world.tunnel.recent()) == 3)
    denied, *served = sorted(world.tunnel.recent(), key=lambda record: record.reason != "denied")
    assert {record.reason for record in served} == {"done"}
    assert (denied.peer[0], denied.reason, denied.rule) == (host, "denied", "limit x")


@pytest.mark.parametrize("senders", [None, ["127.0.0.1"]], ids=["plain", "balanced"])
@pytest.mark.parametrize(
    ("options", "rule"), [({"allow": ["10.0.0.0/8"]}, "allow"), ({"deny": ["ONE", "cn:alice"]}, "deny cidr:ONE/32")]
)
def test_rules_of_addresses_decide_before_the_handshake(balanced_tls, senders, options, rule):
    host = ONE.host if senders else "127.0.0.1"
    options = {key: [entry.replace("ONE", host) for entry in entries] for key, entries in options.items()}
    world = balanced_tls(senders=senders, **options)
    assert fate_of_client(world.address, build_v2(ONE, OTHER) if senders else b"") == "reset"
    wait_until(lambda: world.tunnel.recent())
    (record,) = world.tunnel.recent()
    assert (record.peer[0], record.reason, record.rule) == (host, "denied", rule.replace("ONE", host))
    assert world.tunnel.stats().accepted == 1
