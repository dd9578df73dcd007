"""A client that was promised an answer hears "connected" only when its target has accepted, whatever leads there.

Each way to a target stands in ``WAYS``, and each fate of a target in ``TARGETS``: a new one is a line there.
"""

import contextlib
import socket
import struct

import pytest
from command_rig import run
from covering import each_pair, each_value
from helpers import WAIT, black_hole, ended, receive_all, receive_exactly, refusing, wait_until
from sshd import FarEnd

import relay

WAYS = ["direct", "paramiko", "openssh", "openssh socks5", "socks5", "http"]
REASONS = ("refused", "unreachable", "connect_timeout", "denied")


@pytest.fixture(params=WAYS)
def via(request, sshd, spawner_thread):
    """The hops of a way."""
    with contextlib.ExitStack() as stack:
        hops = []
        for kind in request.param.split():
            if kind in ("paramiko", "openssh"):
                hops.append(FarEnd("sshd", kind, sshd).url)
            elif kind != "direct":
                listener = relay.socks_listen("127.0.0.1", 0) if kind == "socks5" else relay.http_listen("127.0.0.1", 0)
                proxy = stack.enter_context(relay.Tunnel(listener, relay.dynamic(), connect_timeout=2.0))
                hops.append("{}://{}:{}".format(kind, *proxy.address))
        yield hops


@contextlib.contextmanager
def hole():
    with black_hole() as listening:
        yield listening.getsockname()


TARGETS = {
    "refused": refusing,
    "unresolvable": lambda: contextlib.nullcontext(("no-such-host.invalid", 9)),
    "unreachable": lambda: contextlib.nullcontext(("255.255.255.255", 9)),  # TCP connects to no broadcast address
    "slow": hole,
}


@pytest.fixture(params=TARGETS)
def target(request):
    """A target that accepts no client, and the seconds to wait for it."""
    with TARGETS[request.param]() as (host, port):
        yield host, port, 0.5 if request.param == "slow" else WAIT


@contextlib.contextmanager
def proxied(listen, via, seconds):
    """A client of a proxy whose hops are connected."""
    factory = relay.dynamic(via)
    factory.ready(WAIT)
    with relay.Tunnel(listen("127.0.0.1", 0), factory, connect_timeout=seconds) as tunnel:
        with socket.create_connection(tunnel.address, WAIT) as client:
            yield client
        (reason,) = ended(tunnel)
        assert reason in REASONS


def socks5(via, host, port, seconds):
    with proxied(relay.socks_listen, via, seconds) as client:
        client.sendall(b"\5\1\0\5\1\0\3" + bytes([len(host)]) + host.encode() + struct.pack(">H", port))
        assert receive_exactly(client, 2) == b"\5\0"
        reply = receive_all(client)
        assert len(reply) == 10
        assert reply[1] in (2, 4, 5, 6)


def socks4a(via, host, port, seconds):
    with proxied(relay.socks_listen, via, seconds) as client:
        client.sendall(b"\4\1" + struct.pack(">H", port) + b"\0\0\0\1me\0" + host.encode() + b"\0")
        assert receive_all(client) == bytes([0, 91, *bytes(6)])


def http_connect(via, host, port, seconds):
    with proxied(relay.http_listen, via, seconds) as client:
        client.sendall(f"CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode())
        assert receive_all(client).split()[1] in (b"403", b"502", b"504")


def connect(via, host, port, seconds):
    with relay.target(f"{host}:{port}", via) as held:
        held.ready(WAIT) if via else None
        with pytest.raises(relay.ConnectError) as failed:
            relay.connect(f"{host}:{port}", via, timeout=seconds)
        assert failed.value.reason in REASONS


def pipe(via, host, port, seconds):
    """The time is for the hops as well."""
    words = [word for hop in via for word in ("--via", hop)]
    done = run("pipe", f"{host}:{port}", *words, "--connect-timeout", f"{max(seconds, 3)}s", input="request")
    assert (done.returncode, done.stdout) == (1, "")
    assert "reset" not in done.stderr


CLIENTS = {of.__name__: of for of in (socks5, socks4a, http_connect, connect, pipe)}


@pytest.fixture
def client(request):
    return CLIENTS[request.param]


@pytest.mark.parametrize(("client", "via", "target"), each_pair(CLIENTS, WAYS, TARGETS), indirect=True)
def test_a_target_that_accepts_no_client(client, via, target):
    client(via, *target)


@pytest.mark.parametrize(("via", "target"), each_value(WAYS, TARGETS), indirect=True)
def test_another_target_is_tried(via, target, echo_server):
    host, port, seconds = target
    factory = relay.target([f"{host}:{port}", "{}:{}".format(*echo_server.address)], via)
    factory.ready(WAIT)
    with relay.Tunnel(relay.listen(":0"), factory, connect_timeout=max(seconds, 4.0)) as tunnel:
        with socket.create_connection(tunnel.address, WAIT) as client:
            client.sendall(b"anybody?")
            assert receive_exactly(client, 8) == b"anybody?"
        assert ended(tunnel) == ["done"]


@pytest.mark.parametrize(("via", "target"), each_value(WAYS, TARGETS, shift=1), indirect=True)
def test_no_stream_is_warm(via, target, caplog):
    host, port, seconds = target
    factory = relay.target(f"{host}:{port}", via)
    factory.ready(WAIT)
    with relay.Tunnel(relay.listen(":0"), factory, warm=1, connect_timeout=seconds) as tunnel:
        wait_until(lambda: "no stream is ready" in caplog.text)
        assert tunnel.metrics().warm == (0, 0, 0, 0, 0)


@pytest.mark.parametrize("host", ["no-such-name.i2p", f"{'a' * 52}.b32.i2p"])
@pytest.mark.parametrize("client", ["socks5", "socks4a", "http_connect", "connect"], indirect=True)
def test_a_destination_that_is_not_there(client, host, i2p_double):
    client([f"i2p:?sam={i2p_double.client}"], host, 80, 1.0)
