"""``wss://``: through nginx, HAProxy, Apache and Caddy, and to and from programs that speak plain WebSockets."""

import asyncio
import contextlib
import os
import socket

import pytest
import websockets.asyncio.client
import websockets.sync.client
from command_rig import commands
from helpers import (
    WAIT,
    Thread,
    echo,
    ended,
    ending,
    receive_all,
    receive_exactly,
    receive_until_reset,
    send_all,
    send_and_end,
    wait_until,
)
from proxy_world import LOOPBACK
from websocket_world import REVERSE_PROXIES, nginx, npm, python_server, raw, websockify

import relay
from relay.errors import AuthenticationError, ConnectError
from relay.eventloop.sockets import set_to_reset
from relay.transports.websocket import session

pytestmark = pytest.mark.usefixtures("spawner_thread")

MANY = 64 << 20  # bytes each way
SIZE = 8 << 20
CLIENT = "192.0.2.7"


def listening(more="", scheme="ws"):
    return relay.listen(f"{scheme}://{LOOPBACK}:0/a/path{more}")


@pytest.fixture
def echoing(serve):
    """A listener for WebSockets that leads to an echo."""
    with relay.Tunnel(
        listening(f"?trusted_proxies={LOOPBACK}"), relay.target(serve(echo).address[1]), timeout=None
    ) as it:
        yield it


def to(port, certificates, path="/a/path", more=""):
    return f"wss://{LOOPBACK}:{port}{path}?ca={certificates.ca}{more}"


def check_repeated(end, size):
    """Send much and an end, and get all of it back, and an end."""
    data = os.urandom(size)
    end.settimeout(3 * WAIT)
    sending = Thread(send_and_end, end, data)
    assert receive_all(end) == data
    sending.result(3 * WAIT)


@pytest.fixture(params=REVERSE_PROXIES)
def proxy(request, tmp_path, certificates, echoing):
    made = REVERSE_PROXIES[request.param](tmp_path, certificates, echoing.address[1])
    try:
        yield made.start()
    finally:
        made.stop()


@contextlib.contextmanager
def client_of(url, **options):
    """A tunnel to a WebSocket, and the address of its listener."""
    with relay.Tunnel(relay.listen(":0"), relay.target(url), timeout=None, **options) as tunnel:
        yield tunnel


def test_ends_and_resets_go_through_each_proxy(proxy, certificates, echoing):
    size = MANY if proxy.name == "nginx" else SIZE
    with client_of(to(proxy.port, certificates)) as tunnel:
        with socket.create_connection(tunnel.address, WAIT) as client:
            check_repeated(client, size)
        with socket.create_connection(tunnel.address, WAIT) as client:
            client.sendall(b"ping")
            assert receive_exactly(client, 4) == b"ping"
            set_to_reset(client)
        assert ended(echoing, 2) == ["done", "client_reset"]
        assert ended(tunnel, 2) == ["done", "client_reset"]
        with socket.create_connection(tunnel.address, WAIT) as client:
            client.sendall(b"ping")
            assert receive_exactly(client, 4) == b"ping"
            echoing.kill(echoing.connections()[0].id)
            assert ending(client) == "reset"


def test_two_hundred_streams_at_a_time(certificates, echoing, tmp_path):
    proxy = nginx(tmp_path, certificates, echoing.address[1])
    try:
        proxy.start()
        with client_of(to(proxy.port, certificates)) as tunnel, contextlib.ExitStack() as stack:
            clients = [stack.enter_context(socket.create_connection(tunnel.address, WAIT)) for _ in range(200)]
            for number, client in enumerate(clients):
                client.settimeout(WAIT)
                send_all(client, b"%d." % number * 1000)
            for number, client in enumerate(clients):
                text = b"%d." % number * 1000
                assert receive_exactly(client, len(text)) == text
            # It is restarted: the streams over it are reset, and the next one is made.
            proxy.kill()
            assert {ending(client) for client in clients} == {"reset"}
            proxy.start()
            with socket.create_connection(tunnel.address, WAIT) as client:
                check_repeated(client, 1000)
    finally:
        proxy.stop()


def test_idle_streams_outlive_the_limit_of_a_proxy(certificates, echoing, tmp_path, monkeypatch):
    """A ping each third of a second, where the proxy ends what is idle for a second."""
    monkeypatch.setattr(session, "PING_EVERY", 0.3)
    proxy = nginx(tmp_path, certificates, echoing.address[1], idle=1)
    try:
        proxy.start()
        with client_of(to(proxy.port, certificates)) as tunnel:
            with socket.create_connection(tunnel.address, WAIT) as client:
                client.sendall(b"ping")
                assert receive_exactly(client, 4) == b"ping"
                client.settimeout(3.0)
                with pytest.raises(TimeoutError):
                    client.recv(1)
                client.settimeout(WAIT)
                check_repeated(client, 1000)
    finally:
        proxy.stop()


def test_a_trusted_proxy_says_who_the_client_is(proxy, certificates, echoing):
    url, headers = f"wss://{LOOPBACK}:{proxy.port}/a/path", {"X-Forwarded-For": f"10.9.9.9, {CLIENT}"}

    async def repeated():
        # Of one thread: websockets.sync reads and writes TLS in two, and Python before 3.13 has no lock for that, so
        # that a request was lost, once in 400 times.
        connect = websockets.asyncio.client.connect
        async with connect(
            url, ssl=certificates.client(), additional_headers=headers, proxy=None, open_timeout=WAIT
        ) as client:
            await client.send(b"ping")
            assert await client.recv() == b"ping"
            assert echoing.connections()[0].identity.host == CLIENT  # each proxy adds its own client, which is trusted

    asyncio.run(repeated())
    assert ended(echoing) == ["done"]


def test_only_a_trusted_proxy_says_so(serve):
    with relay.Tunnel(listening(), relay.target(serve(echo).address[1]), timeout=None) as tunnel:
        client, answer = raw(tunnel.address[1], "/a/path", f"X-Forwarded-For: {CLIENT}")
        with client:
            assert answer.startswith(b"HTTP/1.1 101 ")
            wait_until(tunnel.connections)
            assert tunnel.connections()[0].identity.host == LOOPBACK


def test_rules_are_about_the_client_behind_the_proxy(serve, caplog):
    receive = listening(f"?trusted_proxies={LOOPBACK}")
    with relay.Tunnel(receive, relay.target(serve(echo).address[1]), timeout=None, deny=[CLIENT]) as tunnel:
        for forwarded, outcome in ((CLIENT, "denied"), ("192.0.2.8", "open"), ("", "open")):
            client, answer = raw(
                tunnel.address[1], "/a/path", *([f"X-Forwarded-For: {forwarded}"] if forwarded else [])
            )
            with client:
                assert answer.startswith(b"HTTP/1.1 101 ")
                if outcome == "denied":
                    client.settimeout(WAIT)
                    receive_until_reset(client)
                else:
                    wait_until(tunnel.connections)
            wait_until(lambda: not tunnel.connections())
        assert sorted(one.reason for one in tunnel.recent()) == ["client_reset", "client_reset", "denied"]


def test_websockify_is_a_server(serve, tmp_path):
    """Which refuses clients that offer a subprotocol it does not know."""
    peer = websockify(tmp_path, serve(echo).address[1])
    try:
        peer.start()
        with client_of(f"ws://{LOOPBACK}:{peer.port}/", linger=0.3) as tunnel:
            for _ in range(2):
                with socket.create_connection(tunnel.address, WAIT) as client:
                    check_whole(client, SIZE)
            assert ended(tunnel, 2) == ["linger", "linger"]  # their ends were held back
    finally:
        peer.stop()


def test_the_end_of_a_server_without_half_close_is_an_end(serve, tmp_path):
    def answer(connection):
        receive_exactly(connection, 4)
        connection.sendall(b"pong")

    peer = websockify(tmp_path, serve(answer).address[1])
    try:
        peer.start()
        with client_of(f"ws://{LOOPBACK}:{peer.port}/") as tunnel:
            with socket.create_connection(tunnel.address, WAIT) as client:
                client.settimeout(WAIT)
                client.sendall(b"ping")
                assert receive_all(client) == b"pong"
            assert ended(tunnel) == ["done"]
    finally:
        peer.stop()


def check_whole(end, size):
    """Send much, and get all of it back."""
    data = os.urandom(size)
    end.settimeout(3 * WAIT)
    sending = Thread(send_all, end, data)
    assert receive_exactly(end, size) == data
    sending.result(3 * WAIT)


def test_npm_is_a_server():
    """Which repeats the name of any subprotocol that a client offers."""
    with npm("server") as said, client_of(f"ws://{LOOPBACK}:{said['port']}/", linger=0.3) as tunnel:
        with socket.create_connection(tunnel.address, WAIT) as client:
            check_whole(client, SIZE)
        assert ended(tunnel) == ["linger"]


def test_npm_is_a_client(proxy, certificates):
    with npm("client", f"wss://{LOOPBACK}:{proxy.port}/a/path", str(SIZE), str(certificates.ca)) as said:
        assert said == {"code": 1000, "same": True}


@pytest.mark.parametrize("tls", [False, True])
def test_pythons_websockets_is_a_server(certificates, tls):
    with python_server(certificates.server() if tls else None) as port:
        url = f"wss://localhost:{port}/?ca={certificates.ca}" if tls else f"ws://{LOOPBACK}:{port}"
        with relay.connect(url) as client:
            data = os.urandom(SIZE)
            client.settimeout(3 * WAIT)
            sending = Thread(send_all, client, data)
            assert receive_exactly(client, SIZE) == data
            sending.result(3 * WAIT)


def test_pythons_websockets_is_a_client(echoing):
    """An end of the target is a close with the code 1000, and a reset is one with 1011."""
    with websockets.sync.client.connect(f"ws://{LOOPBACK}:{echoing.address[1]}/a/path", proxy=None) as client:
        client.send(b"one")
        client.send(["two", "three"])
        got = b""
        while len(got) < 11:
            got += client.recv()
        assert got == b"onetwothree"
        echoing.kill(echoing.connections()[0].id)
        with pytest.raises(websockets.exceptions.ConnectionClosed) as closed:
            client.recv()
        assert closed.value.rcvd.code == 1011


def test_a_page_of_another_origin_is_rejected(serve):
    """A browser sends the origin with each request, also to the loopback."""
    receive = listening("?origin=https://app.example,null&hosts=relay.example")
    with relay.Tunnel(receive, relay.target(serve(echo).address[1]), timeout=None) as tunnel:
        for lines, path, status in (
            (("Host: relay.example",), "/a/path", b"101"),
            (("Host: relay.example", "Origin: https://app.example"), "/a/path", b"101"),
            (("Host: RELAY.example", "Origin: null"), "/a/path", b"101"),
            (("Host: relay.example", "Origin: https://evil.example"), "/a/path", b"403"),
            (("Host: relay.example", "Origin: https://app.example.evil"), "/a/path", b"403"),
            (("Host: relay.example", "Origin: null", "Origin: https://evil"), "/a/path", b"403"),
            (("Host: other.example",), "/a/path", b"404"),
            (("Host: relay.example",), "/a/path/", b"404"),
            (("Host: relay.example",), "/a/%70ath", b"404"),
            (("Host: relay.example",), "/a/path?x", b"404"),
            (("Host: relay.example", "Sec-WebSocket-Version: 12"), "/a/path", b"426"),
            (("Host: relay.example", "Upgrade: h2c"), "/a/path", b"400"),
            (("Host: \xff",), "/a/path", b"400"),
            (("Host: relay.example", "X: " + "x" * 20000), "/a/path", b"431"),
        ):
            client, answer = raw(tunnel.address[1], path, *lines)
            client.close()
            assert answer.split()[1:2] == [status], (lines, path, answer)
        assert tunnel.stats().accepted == 3


def test_answers_are_one_line(proxy, certificates, echoing, tmp_path):
    with pytest.raises(ConnectError, match=r": 404: .*; check the host and the path of the address$"):
        relay.connect(to(proxy.port, certificates, "/elsewhere"))
    echoing.close()
    with pytest.raises(ConnectError, match=r": 50[0-9]: .*; check the server behind the proxy$"):
        relay.connect(to(proxy.port, certificates))


def test_a_header_file_is_sent_and_is_a_secret(serve, tmp_path, caplog):
    secret = tmp_path / "headers"
    secret.touch(0o600)

    def guard(connection):
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += connection.recv(1)
        status = b"401 Unauthorized" if b"CF-Access-Client-Secret: right\r\n" not in head else b"403 Forbidden"
        connection.sendall(b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\n\r\n")

    url = f"ws://{LOOPBACK}:{serve(guard).address[1]}/x?header_file={secret}"
    secret.write_text("# of the CDN\nCF-Access-Client-Id: me\nCF-Access-Client-Secret: wrong\n")
    factory = relay.target(url)
    with pytest.raises(AuthenticationError, match=r"/x: 401: Unauthorized; check header_file$"):
        factory(deadline=None)
    secret.write_text("CF-Access-Client-Id: me\nCF-Access-Client-Secret: right\n")
    with pytest.raises(ConnectError, match=r"/x: 403: Forbidden; check header_file and the path$") as refused:
        factory(deadline=None)
    assert refused.value.reason == "denied"
    assert not caplog.records
    secret.chmod(0o644)
    relay.target(url)
    assert "accessible to other users (mode 0644); run chmod 600" in caplog.text
    for text, said in (
        ("a b: c", "line 1 is no header"),
        ("Host: x", "line 1: Host is set by relay"),
        ("A: \xe4", "ASCII"),
    ):
        secret.write_text(text)
        with pytest.raises(ValueError, match=said):
            relay.target(url)


def test_a_hop_names_the_target(certificates, serve, tmp_path):
    """``relay socks wss://…`` on one side, ``--via wss://…`` on the other, as commands."""
    place = f"{LOOPBACK}:{serve(echo).address[1]}"
    password = tmp_path / "password"
    password.touch(0o600)
    password.write_text("a secret")
    login = ("--user", "me", "--password-file", str(password))
    listen = f"wss://{LOOPBACK}:0/hop?cert={certificates.cert}&key={certificates.key}"
    with commands() as command:
        rules = ("--rule", f"{LOOPBACK}=direct", "--rule", "*=refuse")
        server = command(listen, *login, *rules, command="socks")
        hop = f"wss://me@{LOOPBACK}:{server.address()[1]}/hop?ca={certificates.ca}&password_file={password}"
        with relay.connect(place, via=[hop]) as client:
            check_repeated(client, SIZE)
        with pytest.raises(ConnectError) as refused:
            relay.connect("db.internal:5432", via=[hop])
        assert refused.value.reason == "denied"
        with pytest.raises(AuthenticationError):
            relay.connect(place, via=[hop.replace("me@", "you@")])
        with socket.create_connection(command(":0", place, "--via", hop).address(), WAIT) as client:
            check_repeated(client, SIZE)
