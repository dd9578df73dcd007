"""``relay.socks_listen``: clients of SOCKS5, SOCKS4 and SOCKS4a, and those who speak none of it."""

import contextlib
import errno
import logging
import shutil
import socket
import struct
import subprocess
import threading
import time

import psutil
import pytest
from helpers import (
    BLOCK,
    WAIT,
    Thread,
    black_hole,
    echo,
    ended,
    ending,
    exchange,
    expire,
    fate_of_client,
    in_child,
    makes,
    page,
    receive_all,
    receive_exactly,
    refusing,
    send_and_end,
    wait_until,
)
from hypothesis import given
from hypothesis import strategies as st

import relay
from relay.engine import entrance
from relay.eventloop.sockets import reset
from relay.streams import proxy_handshake as handshake_module
from relay.streams.stream import RejectedRequest, Request
from relay.testing import FakeListener
from relay.transports.dynamic import dynamic
from relay.transports.proxies import listener as module
from relay.transports.proxies.listener import Login, login_of
from relay.transports.proxies.protocols import http_listen
from relay.transports.proxies.socks_server import SOCKSHandshake, socks_listen

LONG = 1000.0  # seconds of a limit that comes when the test says so

HELLO, NO_LOGIN = b"\5\1\0", b"\5\0"
LOGIN = Login("me", "secret")
GRANTED, GRANTED_4 = b"\5\0\0\1" + bytes(6), b"\0\x5a" + bytes(6)
REFUSED_4 = b"\0\x5b" + bytes(6)


def reply(code):
    return bytes([5, code, 0, 1]) + bytes(6)


def request(address, command=1):
    """A request of SOCKS5 for an address or a name."""
    host, port = address[:2]
    for kind, family in ((1, socket.AF_INET), (4, socket.AF_INET6)):
        with contextlib.suppress(OSError):
            return bytes([5, command, 0, kind]) + socket.inet_pton(family, host) + struct.pack(">H", port)
    return bytes([5, command, 0, 3, len(host)]) + host.encode() + struct.pack(">H", port)


def login(user=b"me", password=b"secret"):
    return bytes([1, len(user)]) + user + bytes([len(password)]) + password


def request_4(address, user=b"me", name=b"", command=1):
    host = b"\0\0\0\1" if name else socket.inet_aton(address[0])
    return struct.pack(">BBH", 4, command, address[1]) + host + user + b"\0" + (name + b"\0" if name else b"")


# -- the language, without a socket -----------------------------------------------------------------------------------


def heard(text, who=None, size=None):
    """Return what is answered to a text that comes in pieces of a size, and the outcome."""
    greeting = SOCKSHandshake(who)
    size = size or len(text) or 1
    said = b""
    for start in range(0, len(text), size):
        piece = text[start : start + size]
        if greeting.outcome is not None:
            assert isinstance(greeting.outcome, RejectedRequest) or greeting.outcome.early is not None
            break
        said += greeting.feed(piece)
    return said, greeting.outcome


@pytest.mark.parametrize("size", [None, 1, 2, 7])
@pytest.mark.parametrize(
    ("text", "who", "said", "place"),
    [
        (HELLO + request(("127.0.0.1", 80)), None, NO_LOGIN, "127.0.0.1:80"),
        (HELLO + request(("::1", 65535)), None, NO_LOGIN, "[::1]:65535"),
        (HELLO + request(("db.internal", 5432)), None, NO_LOGIN, "db.internal:5432"),
        (HELLO + request(("x" * 255, 1)), None, NO_LOGIN, f"{'x' * 255}:1"),
        (b"\5\3\2\0\1" + request(("a", 1)), None, NO_LOGIN, "a:1"),
        (b"\5\2\0\2" + login() + request(("a", 1)), LOGIN, b"\5\2\1\0", "a:1"),
        (request_4(("127.0.0.1", 80)), None, b"", "127.0.0.1:80"),
        (request_4(("", 80), name=b"db.internal"), None, b"", "db.internal:80"),
        (request_4(("", 80), user=b"", name=b"site.i2p"), None, b"", "site.i2p:80"),
        (request_4(("", 80), user=b"x" * 255, name=b"y" * 255), None, b"", f"{'y' * 255}:80"),
    ],
)
def test_a_request_is_understood_however_it_is_cut(text, who, said, place, size):
    answer, outcome = heard(text, who, size)
    assert answer == said
    assert isinstance(outcome, Request)
    assert (str(outcome), repr(outcome)) == (place, f"<request for {place}>")
    assert outcome.early == b""
    assert outcome.login == (("socks", "me") if who else None)
    assert outcome.success_reply == (GRANTED_4 if text[0] == 4 else GRANTED)


NO_SUCH_COMMAND = "command {} is not supported; CONNECT is"
NEITHER = "it speaks neither SOCKS5 nor SOCKS4"
NO_METHOD = "it does not offer the one method of login that there is"
NO_HOST = "it names no host, or port 0"
TOO_LONG = "a user or a host that is too long"


@pytest.mark.parametrize(
    ("text", "who", "said", "last", "problem"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", None, b"", b"", NEITHER),
        (b"\x16\3\1\2\0", None, b"", b"", NEITHER),
        (b"\0", None, b"", b"", NEITHER),
        (b"\5\0", None, b"", b"\5\xff", NO_METHOD),  # no method at all
        (b"\5\1\2", None, b"", b"\5\xff", NO_METHOD),
        (b"\5\1\0", LOGIN, b"", b"\5\xff", NO_METHOD),
        (b"\5\1\2" + login(password=b"guess"), LOGIN, b"\5\2", b"\1\1", "a wrong user or password"),
        (b"\5\1\2" + login(user=b"you"), LOGIN, b"\5\2", b"\1\1", "a wrong user or password"),
        (b"\5\1\2" + login(b"", b""), LOGIN, b"\5\2", b"\1\1", "a wrong user or password"),
        (b"\5\1\2\2" + login()[1:], LOGIN, b"\5\2", b"\1\1", "a wrong user or password"),
        (b"\4", LOGIN, b"", REFUSED_4, "SOCKS4 has no password, and one is required"),
        (HELLO + request(("a", 1), command=2), None, NO_LOGIN, reply(7), NO_SUCH_COMMAND.format(2)),  # BIND
        (HELLO + request(("a", 1), command=3), None, NO_LOGIN, reply(7), NO_SUCH_COMMAND.format(3)),  # UDP ASSOCIATE
        (HELLO + request(("a", 1), command=0xF0), None, NO_LOGIN, reply(7), NO_SUCH_COMMAND.format(240)),
        (HELLO + b"\5\1\0\2\0", None, NO_LOGIN, reply(8), "there is no address type 2"),
        (HELLO + b"\4\1\0\1\0", None, NO_LOGIN, reply(1), "its request is not one of SOCKS5"),
        (HELLO + request(("a", 0)), None, NO_LOGIN, reply(1), NO_HOST),
        (HELLO + request(("", 1)), None, NO_LOGIN, reply(1), NO_HOST),
        (HELLO + request(("-oProxyCommand=x", 1)), None, NO_LOGIN, reply(1), NO_HOST),
        (HELLO + request(("a\nb", 1)), None, NO_LOGIN, reply(1), NO_HOST),
        (HELLO + request(("a b", 1)), None, NO_LOGIN, reply(1), NO_HOST),
        (HELLO + request(("me@a", 1)), None, NO_LOGIN, reply(1), NO_HOST),
        (HELLO + request(("bücher.example", 1)), None, NO_LOGIN, reply(1), NO_HOST),
        (HELLO + request(("a/b", 1)), None, NO_LOGIN, reply(1), NO_HOST),
        (request_4(("127.0.0.1", 80), command=2), None, b"", REFUSED_4, NO_SUCH_COMMAND.format(2)),
        (request_4(("127.0.0.1", 0)), None, b"", REFUSED_4, NO_HOST),
        (request_4(("", 1), name=b"a b"), None, b"", REFUSED_4, NO_HOST),
        (request_4(("127.0.0.1", 80), user=b"x" * 256), None, b"", REFUSED_4, TOO_LONG),
        (request_4(("127.0.0.1", 80), user=b"x" * 5000)[:-1], None, b"", REFUSED_4, TOO_LONG),
        (request_4(("", 80), name=b"x" * 256), None, b"", REFUSED_4, TOO_LONG),
        (request_4(("", 80), name=b"x" * 5000)[:-1], None, b"", REFUSED_4, TOO_LONG),
    ],
)
def test_what_cannot_be_is_answered_by_the_book(text, who, said, last, problem):
    answer, outcome = heard(text, who)
    assert answer == said
    assert isinstance(outcome, RejectedRequest)
    assert (outcome.last, outcome.reason) == (last, "denied")
    assert outcome.problem == problem


@pytest.mark.parametrize("size", [None, 1])
def test_what_follows_the_request_is_kept(size):
    text = HELLO + request(("a", 1)) + b"early"
    _, outcome = heard(text, None, size)
    assert outcome.early == (b"early" if size is None else b"")  # no more is read than was sent at once
    early = b"\0early\0" * 100
    _, outcome = heard(request_4(("", 1), name=b"a") + early)
    assert outcome.early == early


def test_a_client_that_says_nothing_is_no_failure():
    greeting = SOCKSHandshake()
    assert greeting.feed(b"") == b""
    assert greeting.outcome == RejectedRequest(b"", "", "done")


@pytest.mark.parametrize("text", [b"\5", HELLO, HELLO + b"\5\1", b"\4", request_4(("", 1), name=b"a")[:-1]])
def test_a_client_that_ends_too_early_is_a_failure(text):
    greeting = SOCKSHandshake()
    greeting.feed(text)
    assert greeting.feed(b"") == b""
    assert greeting.outcome == RejectedRequest(b"", "it ended before it had said what it wants")


@given(
    start=st.sampled_from([b"", b"\5", b"\4\1", HELLO, HELLO + b"\5\1\0\3", b"\5\1\2", b"\5\1\2\1"]),
    pieces=st.lists(st.binary(max_size=600), max_size=20),
    who=st.sampled_from([None, LOGIN]),
)
def test_garbage_in_any_pieces_is_understood_or_ended_and_never_kept(start, pieces, who):
    greeting = SOCKSHandshake(who)
    said = b""
    for piece in [start, *pieces, b""]:
        if greeting.outcome is None:
            said += greeting.feed(piece)
            assert greeting.outcome is not None or len(greeting._held) < 1024
    assert greeting.outcome is not None
    assert len(said) <= 4
    if isinstance(greeting.outcome, Request):
        assert 0 < greeting.outcome.port < 65536
        assert greeting.outcome.host.isprintable()


@pytest.mark.parametrize(
    ("reason", "code"),
    [("refused", 5), ("unreachable", 4), ("connect_timeout", 6), ("denied", 2), ("carrier_lost", 1), ("x", 1)],
)
def test_a_failure_is_told_by_its_number(reason, code):
    _, outcome = heard(HELLO + request(("a", 1)))
    assert outcome.failure_reply(reason) == reply(code)
    _, outcome = heard(request_4(("127.0.0.1", 1)))
    assert outcome.failure_reply(reason) == REFUSED_4


# -- with a tunnel ----------------------------------------------------------------------------------------------------


@pytest.fixture
def proxy():
    """Makes tunnels with such a listener: ``proxy(factory, listener, **options of the tunnel)``."""

    def make(factory=None, listener=None, **options):
        return relay.Tunnel(listener or socks_listen("127.0.0.1", 0), factory or dynamic(), **options)

    yield from makes(make)


@pytest.fixture
def connect():
    """Makes connections to a tunnel, and says something on them at once."""

    def make(tunnel, text=b""):
        client = socket.create_connection(tunnel.address[:2], WAIT)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.sendall(text)
        return client

    yield from makes(make)


def have_asked(tunnel, count=1):
    """Return whether so many clients are there, and have named their targets."""
    targets = [one.target for one in tunnel.connections()]
    return len(targets) == count and None not in targets


def ask(client, address):
    """Greet, and ask for an address; returns the code of the reply."""
    client.sendall(HELLO)
    assert receive_exactly(client, 2) == NO_LOGIN
    client.sendall(request(address))
    answer = receive_exactly(client, 10)
    assert answer == reply(answer[1])
    return answer[1]


def test_it_leads_where_each_client_wants(proxy, connect, serve, any_engine):
    tunnel = proxy()
    for server in (serve(echo), serve(echo)):
        client = connect(tunnel)
        assert ask(client, server.address) == 0
        send_and_end(client, BLOCK[:100_000])
        assert receive_all(client) == BLOCK[:100_000]
        assert ended(tunnel) == ["done"]
        assert tunnel.recent()[-1].target == "{}:{}".format(*server.address)
        assert tunnel.recent()[-1].received == 100_000


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1"])
@pytest.mark.parametrize("size", [b"early", BLOCK[:200_000]])
def test_what_is_sent_before_the_reply_is_kept(proxy, connect, echo_server, name, size, any_engine):
    client = connect(proxy())
    sending = Thread(send_and_end, client, HELLO + request((name, echo_server.address[1])) + size)
    assert receive_exactly(client, 12) == NO_LOGIN + GRANTED
    assert receive_all(client) == size
    sending.result()


def test_a_target_that_refuses(proxy, connect):
    tunnel = proxy()
    with refusing() as address:
        client = connect(tunnel)
        assert ask(client, address) == 5
        assert ending(client) == "end of file"
    client.close()
    assert ended(tunnel) == ["refused"]
    assert tunnel.recent()[0].target == "{}:{}".format(*address)


@pytest.mark.parametrize("name", ["exec:id", "unix:x", "tcp:x", "a:1", "[::1]"])
def test_a_name_that_is_none_goes_no_further(proxy, connect, name):
    client = connect(proxy())
    assert ask(client, (name, 80)) == 1
    assert ending(client) == "end of file"


def test_a_name_that_does_not_exist(proxy, connect):
    client = connect(proxy())
    assert ask(client, ("nothing.invalid", 80)) == 4
    assert ending(client) == "end of file"


def test_a_target_that_does_not_answer_in_time(proxy, connect):
    tunnel = proxy(connect_timeout=LONG, timeout=None)
    with black_hole() as nobody:
        client = connect(tunnel)
        asking = Thread(ask, client, nobody.getsockname())
        wait_until(lambda: have_asked(tunnel))
        expire(tunnel, time.monotonic() + LONG)
        assert asking.result() == 6
        assert ending(client) == "end of file"
        client.close()
        assert ended(tunnel) == ["connect_timeout"]


def test_a_place_that_is_not_allowed(proxy, connect, echo_server):
    tunnel = proxy(dynamic(rules=["127.0.0.1=refuse", "*=direct"]))
    client = connect(tunnel)
    assert ask(client, echo_server.address) == 2
    assert ending(client) == "end of file"
    client.close()
    assert ended(tunnel) == ["denied"]


def test_a_refusal_arrives_though_the_client_goes_on_talking(proxy, connect):
    with refusing() as address:
        client = connect(proxy())
        sending = Thread(client.sendall, HELLO + request(address) + BLOCK * 4)
        assert receive_all(client) == NO_LOGIN + reply(5)
        sending.result()


def test_a_client_that_stays_after_a_refusal_is_ended(proxy, connect, monkeypatch):
    monkeypatch.setattr(handshake_module, "_PARTING", 0.05)
    tunnel = proxy()
    client = connect(tunnel, b"garbage")
    assert ended(tunnel) == ["denied"]
    assert receive_all(client) == b""


@pytest.mark.parametrize("text", [b"", b"\5", b"\5\1", HELLO, HELLO + request(("a", 1))[:-1], b"\4\1\0\1"])
def test_half_a_greeting_that_stays_is_ended_in_time(proxy, connect, text):
    tunnel = proxy(connect_timeout=0.2)
    client = connect(tunnel, text)
    if text:  # one that says nothing is not even accepted where the system can wait for the first byte
        assert ending(client) == "reset"
        assert ended(tunnel) == ["connect_timeout"]


def test_half_a_greeting_that_ends(proxy, connect):
    tunnel = proxy()
    client = connect(tunnel)
    send_and_end(client, HELLO[:2])
    assert receive_all(client) == b""
    client.close()
    assert ended(tunnel) == ["denied"]
    connect(tunnel).close()
    assert ended(tunnel, 2)[-1] == "done"
    assert tunnel.stats().failed == {"denied": 1}


@pytest.mark.parametrize("text", [b"\5\1", HELLO, HELLO + b"\5"])
def test_a_client_that_resets_in_the_middle(proxy, connect, text):
    tunnel = proxy()
    client = connect(tunnel, text)
    wait_until(lambda: tunnel.stats().accepted)
    reset(client)
    assert ended(tunnel) == ["client_reset"]


def test_a_client_that_resets_while_it_is_connected(proxy, connect):
    tunnel = proxy()
    with black_hole() as nobody:
        client = connect(tunnel, HELLO + request(nobody.getsockname()) + b"early")
        wait_until(lambda: have_asked(tunnel))
        reset(client)
        assert ended(tunnel) == ["client_reset"]


def test_closing_the_tunnel_ends_those_who_are_heard(proxy, connect):
    tunnel = proxy()
    clients = [connect(tunnel, text) for text in (b"\5", b"garbage", HELLO)]
    wait_until(lambda: tunnel.stats().active == 3)
    tunnel.close()
    assert [ending(client) for client in clients] == ["reset", "end of file", "reset"]


def test_half_open_clients_take_none_of_the_connections_that_are_allowed(proxy, connect, echo_server):
    tunnel = proxy(nconnect=1)
    half_open = [connect(tunnel, b"\5") for _ in range(3)]
    wait_until(lambda: tunnel.stats().active == 3)
    client = connect(tunnel)
    assert ask(client, echo_server.address) == 0
    exchange_with_itself(client)
    assert len(half_open) == 3


def test_the_limit_of_connections_holds_for_those_who_have_named_their_target(proxy, connect, echo_server):
    tunnel = proxy(nconnect=1)
    clients = [connect(tunnel, HELLO) for _ in range(3)]
    for client in clients:
        assert receive_exactly(client, 2) == NO_LOGIN
    clients[0].sendall(request(echo_server.address))
    assert receive_exactly(clients[0], 10) == GRANTED
    for client in clients[1:]:
        client.sendall(request(echo_server.address))
    wait_until(lambda: have_asked(tunnel, 3))
    clients[0].close()
    assert receive_exactly(clients[1], 10) == GRANTED
    exchange_with_itself(clients[1])
    assert sorted(one.state for one in tunnel.connections()) == ["connecting", "open"]
    reset(clients[2])
    wait_until(lambda: tunnel.stats().failed == {"client_reset": 1})  # it has no slot any more before it is counted
    assert tunnel.stats().active == 1


def test_whoever_waits_for_its_turn_waits_no_longer_than_for_its_target(proxy, connect, echo_server):
    tunnel = proxy(nconnect=1, connect_timeout=LONG, timeout=None)
    first = connect(tunnel, HELLO)
    second = connect(tunnel, HELLO)
    assert receive_exactly(first, 2) == receive_exactly(second, 2) == NO_LOGIN
    first.sendall(request(echo_server.address))
    assert receive_exactly(first, 10) == GRANTED
    second.sendall(request(echo_server.address))
    wait_until(lambda: have_asked(tunnel, 2))
    expire(tunnel, time.monotonic() + LONG)
    assert receive_all(second) == reply(6)
    exchange_with_itself(first)


def test_the_oldest_half_open_clients_give_way(proxy, connect, echo_server, monkeypatch, caplog):
    monkeypatch.setattr(entrance, "_MAX_HALF_OPEN", 2)
    tunnel = proxy(name="mine")
    first, second = (connect(tunnel, b"\5") for _ in range(2))
    wait_until(lambda: tunnel.stats().active == 2)
    third = connect(tunnel, HELLO)
    assert receive_exactly(third, 2) == NO_LOGIN
    assert ending(first) == "reset"
    wait_until(lambda: tunnel.stats().failed == {"overloaded": 1})
    third.sendall(request(echo_server.address))
    assert receive_exactly(third, 10) == GRANTED
    second.sendall(HELLO[1:] + request(echo_server.address))
    assert receive_exactly(second, 12) == NO_LOGIN + GRANTED
    (line,) = [record.getMessage() for record in caplog.records if "half-open" in record.getMessage()]
    peer = "{}:{}".format(*first.getsockname())
    assert line == f"mine: 2 clients at a time are half-open; the oldest of the largest source are reset ({peer})"


def test_a_refused_client_gives_way_without_losing_its_answer(proxy, connect, monkeypatch):
    monkeypatch.setattr(entrance, "_MAX_HALF_OPEN", 1)
    tunnel = proxy(listener=socks_listen("127.0.0.1", 0, user="me", password="secret"))
    first = connect(tunnel, HELLO)
    assert receive_exactly(first, 2) == b"\5\xff"
    connect(tunnel, b"\5")
    wait_until(lambda: tunnel.stats().failed == {"denied": 1})
    assert receive_all(first) == b""


def test_a_silent_client_has_less_time_than_one_that_has_begun(proxy, connect, monkeypatch):
    tunnel = proxy(connect_timeout=None, timeout=None)
    begun = connect(tunnel, b"\5")
    wait_until(lambda: any(one.pending.begun for one in tunnel._relay._slots.connections))
    monkeypatch.setattr("relay.engine.limits.FIRST_BYTE", 0.1)
    expire(tunnel, time.monotonic() + 1)
    silent = connect(tunnel)
    assert ending(silent) == "reset"
    wait_until(lambda: tunnel.stats().failed == {"connect_timeout": 1})
    (left,) = tunnel.connections()
    assert left.peer == begun.getsockname()


def test_without_limits_a_greeting_still_has_one(proxy, connect, monkeypatch):
    monkeypatch.setattr("relay.engine.limits.HANDSHAKE", 0.1)
    listener = socks_listen("127.0.0.1", 0)
    tunnel = proxy(listener=listener, connect_timeout=None, timeout=None)
    assert listener.handshake_timeout == 0.1
    assert ending(connect(tunnel, b"\5")) == "reset"
    assert ended(tunnel) == ["connect_timeout"]


def test_five_hundred_who_are_never_done_cost_little_and_are_gone_in_time(proxy, connect, echo_server, monkeypatch):
    monkeypatch.setattr(handshake_module, "_PARTING", LONG)  # a rejected client stays until the test leaves
    texts = [b"\5", HELLO, b"\4\1" + b"x" * 200, HELLO + b"\5\1\0\3\xff" + b"x" * 200, b"garbage" * 100]
    tunnel = proxy(connect_timeout=LONG, timeout=None)
    process = psutil.Process()
    before = process.memory_info().rss
    stay = [connect(tunnel, texts[number % len(texts)]) for number in range(500)]
    wait_until(lambda: tunnel.stats().active == 500)
    client = connect(tunnel)  # no client is delayed
    assert ask(client, echo_server.address) == 0
    exchange_with_itself(client)
    assert process.memory_info().rss - before < 16 << 20
    client.close()
    for client in stay[4::5]:
        assert receive_all(client) == b""
        client.close()
    wait_until(lambda: tunnel.stats().active == 400)
    expire(tunnel, time.monotonic() + LONG)
    ended(tunnel, 100)
    assert tunnel.stats().failed == {"connect_timeout": 400, "denied": 100}


def exchange_with_itself(client):
    client.sendall(b"hello")
    assert receive_exactly(client, 5) == b"hello"


def test_a_factory_of_ones_own_is_told_the_destination(proxy, connect, echo_server, any_engine):
    asked = []

    def factory(*, destination, peer):
        asked.append((destination.host, destination.port, peer))
        return socket.create_connection(echo_server.address)

    tunnel = proxy(factory)
    client = connect(tunnel)
    assert ask(client, ("db.internal", 5432)) == 0
    exchange_with_itself(client)
    assert asked == [("db.internal", 5432, client.getsockname())]
    assert tunnel.connections()[0].target == "db.internal:5432"


def test_a_factory_that_raises_is_answered(proxy, connect):
    def factory(*, destination):
        raise relay.ConnectError("no", reason="denied")

    client = connect(proxy(factory))
    assert ask(client, ("a", 1)) == 2
    failing = connect(proxy(lambda: 1 / 0))
    assert ask(failing, ("a", 1)) == 1


def test_a_call_that_comes_back_after_the_refusal_is_dropped(proxy, connect, serve):
    go, over = threading.Event(), threading.Event()

    def until_it_ends(connection):
        receive_all(connection)
        over.set()

    server = serve(until_it_ends)

    def factory():
        go.wait(WAIT)
        return socket.create_connection(server.address)

    tunnel = proxy(factory, connect_timeout=LONG, timeout=None)
    client = connect(tunnel)
    asking = Thread(ask, client, ("a", 1))
    wait_until(lambda: have_asked(tunnel))
    expire(tunnel, time.monotonic() + LONG)
    assert asking.result() == 6
    go.set()
    assert over.wait(WAIT)
    assert tunnel.stats().active == 1  # the client has not taken its leave yet
    assert receive_all(client) == b""
    client.close()
    assert ended(tunnel) == ["connect_timeout"]


def test_a_factory_that_knows_no_destination_leads_where_it_leads(proxy, connect, echo_server):
    tunnel = proxy(echo_server.factory())
    client = connect(tunnel)
    assert ask(client, ("elsewhere", 1)) == 0
    exchange_with_itself(client)
    assert tunnel.connections()[0].target == "{}:{}".format(*echo_server.address)


def test_a_factory_of_destinations_without_one(caplog):
    with relay.Tunnel(relay.listen(":0"), dynamic(), name="t") as tunnel:
        assert fate_of_client(tunnel.address) == "reset"
        assert ended(tunnel) == ["denied"]
    assert "the client names no target" in caplog.text


def test_a_stream_of_another_listener_may_carry_a_request(serve):
    """As what ``accept`` returned is handed on to a tunnel."""
    listener = FakeListener()
    with relay.Tunnel(listener, dynamic()) as tunnel:
        ours, theirs = socket.socketpair()
        with theirs:
            theirs.settimeout(WAIT)
            stream = relay.Stream(ours)
            host, port = serve(echo).address
            stream.request = Request(host, port, b"yes", lambda reason: reason.encode(), b"early")
            listener.put(stream, "me")
            assert receive_exactly(theirs, 8) == b"yesearly"
        ours, theirs = socket.socketpair()
        with theirs, refusing() as address:
            theirs.settimeout(WAIT)
            stream = relay.Stream(ours)
            stream.request = Request(*address, b"yes", lambda reason: reason.encode())
            listener.put(stream, "me")
            assert receive_all(theirs) == b"refused"
        assert "refused" in ended(tunnel, 2)


def test_a_bug_in_the_language_ends_one_client_only(proxy, connect, echo_server, monkeypatch, caplog):
    tunnel = proxy()
    with monkeypatch.context() as patch:
        patch.setattr(SOCKSHandshake, "feed", lambda self, data: 1 // 0)
        client = connect(tunnel, HELLO)
        assert receive_all(client) == b""
        client.close()
        assert ended(tunnel) == ["factory_error"]
    assert ask(connect(tunnel), echo_server.address) == 0
    assert "this is a bug in relay" in caplog.text


def test_a_tunnel_closes_the_listener(proxy):
    listener = socks_listen("127.0.0.1", 0)
    assert repr(listener) == f"<relay.SOCKSListener at 127.0.0.1:{listener.getsockname()[1]}, open>"
    proxy(listener=listener).close()
    assert repr(listener).endswith("closed>")
    with pytest.raises(OSError, match="Bad file descriptor"):
        listener.accept()


def test_a_forked_child_closes_its_copies(proxy, connect, echo_server):
    listener = socks_listen("127.0.0.1", 0)
    tunnel = proxy(listener=listener)
    client = connect(tunnel, b"\5")
    wait_until(lambda: tunnel.stats().active)
    assert in_child(lambda: listener.listening.fileno() < 0) == 0
    client.sendall(HELLO[1:])
    assert receive_exactly(client, 2) == NO_LOGIN


# -- a password -------------------------------------------------------------------------------------------------------


def test_a_password(proxy, connect, echo_server, caplog):
    caplog.set_level(logging.DEBUG)
    tunnel = proxy(listener=socks_listen("127.0.0.1", 0, user="me", password="secret"))
    client = connect(tunnel, b"\5\2\0\2" + login() + request(echo_server.address) + b"hello")
    assert receive_exactly(client, 19) == b"\5\2\1\0" + GRANTED + b"hello"
    wrong = connect(tunnel, b"\5\1\2" + login(password=b"wrong!"))
    assert receive_all(wrong) == b"\5\2\1\1"
    assert receive_all(connect(tunnel, HELLO)) == b"\5\xff"
    assert receive_all(connect(tunnel, request_4(echo_server.address))) == REFUSED_4
    assert "a wrong user or password" in caplog.text
    assert "secret" not in caplog.text and "wrong!" not in caplog.text


def test_guesses_are_seen_and_do_not_flood_the_log(proxy, connect, caplog):
    tunnel = proxy(listener=socks_listen("127.0.0.1", 0, user="me", password="secret"), name="mine")
    for number in range(5):
        client = connect(tunnel, b"\5\1\2" + login(password=b"%d" % number))
        assert receive_all(client) == b"\5\2\1\1"
        if not number:
            peer = "{}:{}".format(*client.getsockname())
        client.close()
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    denied = [line for line in lines if line.startswith("denied")]
    assert [line for line in lines if line not in denied] == [f"mine: a wrong user or password (client {peer})"]
    assert len(denied) == 5 and f"denied peer={peer} tunnel=mine rule=login" in denied
    wait_until(lambda: tunnel.metrics().denied == {"access-list": 0, "login": 5})


def test_guesses_are_seen_alone(caplog):
    with socks_listen("127.0.0.1", 0, user="me", password="secret") as alone:
        with talk(alone, b"\5\1\2" + login(password=b"x")) as client:
            accepting = Thread(alone.accept)
            assert receive_all(client) == b"\5\2\1\1"
            with talk(alone, b"\5\1\2" + login() + request(("a", 1))):
                accepting.result()[0].close()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "a wrong user or password (127.0.0.1:" in caplog.text


def test_where_a_password_may_be(tmp_path, monkeypatch):
    file = tmp_path / "password"
    file.write_text("sécret\n")
    file.chmod(0o600)
    monkeypatch.setenv("PROXY_PASSWORD", "sécret")
    for where in ({"password_file": str(file)}, {"password_env": "PROXY_PASSWORD"}, {"password": lambda: "sécret"}):
        who = login_of("me", **{"password": None, "password_file": None, "password_env": None, **where})
        assert who.admits(b"me", "sécret".encode())
        assert not who.admits(b"me", b"secret")
        assert not who.admits(b"m", b"es\xc3\xa9cret")
    file.chmod(0o644)
    with pytest.raises(relay.AuthenticationError, match="accessible to other users"):
        socks_listen("127.0.0.1", 0, user="me", password_file=str(file))


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"user": "me"}, ValueError, "user: password missing"),
        ({"password": "secret"}, ValueError, "password: user missing"),
        ({"user": "", "password": "secret"}, ValueError, "user: it is empty"),
        ({"user": "m:e", "password": "secret"}, ValueError, "no colon"),
        ({"user": "me", "password": "secret" * 50}, ValueError, "password: it is empty or too long"),
        ({"user": "me", "password": ""}, ValueError, "password: it is empty"),
        ({"user": "me", "password": "secret", "password_env": "X"}, ValueError, "given twice"),
        ({"user": 1, "password": "secret"}, TypeError, "user: expected a str"),
        ({"user": "me", "password": 1}, TypeError, "password: expected a str"),
        ({"user": "me", "password_env": "NOT_SET_AT_ALL"}, relay.AuthenticationError, "is not set"),
        ({"host": ""}, ValueError, "host"),
        ({"port": 65536}, ValueError, "port"),
    ],
)
def test_arguments_that_cannot_be_right(options, error, text):
    with pytest.raises(error, match=text) as raised:
        socks_listen(**{"host": "127.0.0.1", "port": 0, **options})
    assert "secret" not in str(raised.value)


# -- alone ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def alone():
    with socks_listen("127.0.0.1", 0) as listener:
        yield listener


def talk(listener, text):
    client = socket.create_connection(listener.address[:2], WAIT)
    client.sendall(text)
    return client


def test_accept_gives_who_has_said_what_it_wants(alone):
    with talk(alone, b"garbage") as bad, talk(alone, HELLO + request(("a", 1)) + b"early") as client:
        stream, peer = Thread(alone.accept).result()
        with stream:
            assert peer == client.getsockname()
            assert (str(stream.request), stream.request.early) == ("a:1", b"early")
            stream.socket.sendall(stream.request.success_reply)
            assert receive_exactly(client, 12) == NO_LOGIN + GRANTED
            stream.socket.settimeout(WAIT)
            exchange(client, stream.socket)
        assert receive_all(bad) == b""


def test_half_a_greeting_alone_is_ended_in_time(alone, monkeypatch):
    monkeypatch.setattr(module, "FIRST_BYTE", 0.05)
    alone.handshake_timeout = 0.1
    with talk(alone, b"\5\1") as client:
        accepting = Thread(alone.accept)
        assert ending(client) == "reset"
        assert alone.handshake_timeout == 0.1
        monkeypatch.setattr(module, "FIRST_BYTE", WAIT)
        alone.handshake_timeout = WAIT
        with talk(alone, HELLO + request(("a", 1))):
            accepting.result()[0].close()
    with socks_listen("127.0.0.1", 0) as fresh:
        assert fresh.handshake_timeout == 30.0


def test_a_client_that_goes_away_alone(alone):
    with talk(alone, HELLO) as client:
        accepting = Thread(alone.accept)
        assert receive_exactly(client, 2) == NO_LOGIN
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    with talk(alone, HELLO + request(("a", 1))):
        accepting.result()[0].close()


def test_half_open_clients_give_way_alone_where_there_are_no_descriptors_left(alone, caplog):
    failures = []

    class Flaky(socket.socket):
        def accept(self):
            if failures:
                raise failures.pop()
            return super().accept()

    alone.handshake_timeout = None
    alone.listening = Flaky(fileno=alone.listening.detach())
    with talk(alone, b"\5") as first:
        accepting = Thread(alone.accept)
        wait_until(lambda: alone._alone is not None and any(guest._under_way.begun for guest in alone._alone._clients))
        failures.append(OSError(errno.EMFILE, "no more"))
        with talk(alone, HELLO + request(("a", 1))):
            assert ending(first) == "reset"
            accepting.result()[0].close()
    assert "no more clients for now" in caplog.text


def test_the_oldest_half_open_clients_give_way_alone(alone, monkeypatch, caplog):
    monkeypatch.setattr(module, "MOST_PENDING", 2)
    with talk(alone, b"\5") as first, talk(alone, b"garbage") as second:
        accepting = Thread(alone.accept)
        wait_until(lambda: alone._alone is not None and len(alone._alone._clients) == 2)
        with talk(alone, HELLO + request(("a", 1))), talk(alone, b"\5"):
            accepting.result()[0].close()
            assert ending(first) == "reset"
            accepting = Thread(alone.accept)
            with talk(alone, HELLO + request(("b", 1))):
                accepting.result()[0].close()
            assert receive_all(second) == b""
    assert caplog.text.count("clients at a time are half-open") == 1


def test_those_that_nobody_accepts_are_bounded_alone(alone, monkeypatch):
    monkeypatch.setattr(module, "MOST_PENDING", 2)
    clients = [talk(alone, HELLO + request(("a", number))) for number in (1, 2, 3)]
    with contextlib.ExitStack() as stack:
        for client in clients:
            stack.enter_context(client)
        ports = [Thread(alone.accept).result() for _ in clients]
        for stream, _ in ports:
            stream.close()
        assert sorted(stream.request.port for stream, _ in ports) == [1, 2, 3]


def test_a_silent_client_has_less_time_alone(alone, monkeypatch):
    monkeypatch.setattr(module, "FIRST_BYTE", 0.1)
    alone.handshake_timeout = None
    with talk(alone, b"\5") as begun, talk(alone, b"") as silent:
        accepting = Thread(alone.accept)
        assert ending(silent) == "reset"
        begun.sendall(HELLO[1:] + request(("a", 1)))
        accepting.result()[0].close()


def test_close_wakes_accept_and_resets_who_waits(alone):
    accepting = Thread(alone.accept)
    with talk(alone, b"\5\1") as client, talk(alone, HELLO + request(("a", 1))) as other:
        accepting.result()[0].close()
        accepting = Thread(alone.accept)
        wait_until(lambda: alone._alone is not None)
        alone.close()
        alone.close()
        with pytest.raises(OSError, match="Bad file descriptor"):
            accepting.result()
        assert ending(client) == "reset"
        assert receive_exactly(other, 12)[:2] == NO_LOGIN
    with pytest.raises(OSError, match="Bad file descriptor"):
        alone.accept()
    assert repr(alone).endswith("closed>")


# -- real clients -----------------------------------------------------------------------------------------------------


def run(program, *arguments, **options):
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    return subprocess.run([program, *arguments], capture_output=True, timeout=WAIT, check=False, **options)


@pytest.mark.parametrize("how", ["--socks5", "--socks5-hostname", "--socks4", "--socks4a"])
@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
def test_curl(proxy, serve, how, name):
    tunnel = proxy()
    url = f"http://{name}:{serve(page).address[1]}/"
    done = run("curl", "-sS4", how, "{}:{}".format(*tunnel.address), "--noproxy", "", url)
    assert done.stdout == BLOCK, done.stderr
    assert ended(tunnel) == ["done"]


def test_curl_with_a_password(proxy, serve):
    tunnel = proxy(listener=socks_listen("127.0.0.1", 0, user="me", password="secret"))
    url = f"http://127.0.0.1:{serve(page).address[1]}/"
    where = "{}:{}".format(*tunnel.address)
    assert run("curl", "-sS", "--proxy", f"socks5h://me:secret@{where}", url).stdout == BLOCK
    wrong = run("curl", "-sS", "--proxy", f"socks5h://me:wrong@{where}", url)
    assert (wrong.returncode, wrong.stdout) == (97, b"")


@pytest.mark.parametrize("scheme", ["socks5", "http"])
@pytest.mark.parametrize("user", [None, "me"])
def test_our_own_hop(proxy, echo_server, scheme, user):
    login, at = ({"user": user, "password": "secret"}, f"{user}:secret@") if user else ({}, "")
    listen = socks_listen if scheme == "socks5" else http_listen
    tunnel = proxy(listener=listen("127.0.0.1", 0, **login))
    hop = f"{scheme}://{at}127.0.0.1:{tunnel.address[1]}"
    with relay.connect(f"localhost:{echo_server.address[1]}", [hop], timeout=WAIT) as client:
        send_and_end(client, b"hello")
        assert receive_all(client) == b"hello"
    with refusing() as address, pytest.raises(relay.ConnectError) as raised:
        relay.connect("{}:{}".format(*address), [hop], timeout=WAIT)
    assert raised.value.reason == ("refused" if scheme == "socks5" else "unreachable")


def test_as_an_address_to_listen_at(proxy, serve):
    for scheme, curls in (("socks5", "socks5h"), ("http", "http")):
        tunnel = proxy(listener=relay.listen(f"{scheme}://me:secret@127.0.0.1:0"))
        where = f"{curls}://me:secret@127.0.0.1:{tunnel.address[1]}"
        url = f"http://127.0.0.1:{serve(page).address[1]}/"
        assert run("curl", "-sS", "--proxytunnel", "--proxy", where, url).stdout == BLOCK


def test_netcat_as_the_proxy_command_of_ssh(proxy, sshd):
    tunnel = proxy()
    options = [f"ProxyCommand=nc -X 5 -x {tunnel.address[0]}:{tunnel.address[1]} %h %p", "BatchMode=yes"]
    options += [f"UserKnownHostsFile={sshd.known_hosts}", "IdentitiesOnly=yes", f"IdentityFile={sshd.keyfile}"]
    words = [word for option in options for word in ("-o", option)]
    done = run("ssh", "-F", "/dev/null", *words, "-p", str(sshd.port), f"{sshd.user}@127.0.0.1", "echo there")
    assert done.stdout == b"there\n", done.stderr
