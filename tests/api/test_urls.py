"""The table of schemes: one address for each way out and in."""

import asyncio
import dataclasses
import inspect
import math
import os
import socket
import time
import typing
from importlib import import_module

import pytest
from helpers import WAIT, echo, receive_all, send_and_end

import relay
import relay.aio
from relay.addresses import hops, https, values
from relay.addresses.resume import ResumeListen
from relay.api import urls


@pytest.fixture
def addresses(serve, tmp_path):
    """A server's address for each scheme of a plain socket."""
    return {
        "tcp": "tcp://{}:{}".format(*serve(echo).address),
        "bare": "{}:{}".format(*serve(echo).address),
        "unix": f"unix://{serve(echo, str(tmp_path / 'socket')).address}",
    }


@pytest.mark.parametrize("scheme", ["tcp", "bare", "unix"])
def test_target_makes_a_factory_that_connects(addresses, scheme):
    factory = relay.target(addresses[scheme])
    assert factory.target == addresses[scheme].removeprefix("tcp://")
    with factory() as stream:
        stream.socket.settimeout(WAIT)
        send_and_end(stream.socket, b"hello")
        assert receive_all(stream.socket) == b"hello"


@pytest.mark.parametrize("scheme", ["tcp", "bare", "unix"])
def test_connect_returns_a_blocking_socket(addresses, scheme):
    with relay.connect(addresses[scheme], timeout=WAIT) as connected:
        assert type(connected) is socket.socket
        assert connected.gettimeout() is None
        send_and_end(connected, b"hello")
        assert receive_all(connected) == b"hello"


def test_a_port_is_a_target_on_the_loopback(echo_server):
    port = echo_server.address[1]
    assert relay.target(port).target == relay.target([port]).target == f"127.0.0.1:{port}"
    with relay.connect(port) as client, asyncio.run(relay.aio.connect(port)) as other:
        assert client.getpeername() == other.getpeername() == ("127.0.0.1", port)
    with relay.listen(0) as listener:
        assert listener.getsockname()[0] == "127.0.0.1"
    with relay.local(port) as path:
        assert os.path.exists(path)


@pytest.mark.parametrize("function", [relay.target, relay.connect, relay.local, relay.listen])
@pytest.mark.parametrize(
    ("wrong", "error"), [(True, TypeError), (1.5, TypeError), (b"h:1", TypeError), (None, TypeError), (-1, ValueError)]
)
def test_what_is_no_address_is_named(function, wrong, error):
    with pytest.raises(error, match="expected a str such as|-1"):
        function(wrong)


@pytest.mark.parametrize("timeout", [None, math.inf, 10, 10.5])
def test_connect_takes_every_sensible_timeout(addresses, timeout):
    relay.connect(addresses["tcp"], timeout=timeout).close()


@pytest.mark.parametrize(("timeout", "error"), [(0, ValueError), (-1, ValueError), (math.nan, ValueError)])
def test_connect_refuses_other_timeouts(addresses, timeout, error):
    with pytest.raises(error, match="^timeout: "):
        relay.connect(addresses["tcp"], timeout=timeout)


@pytest.mark.parametrize("timeout", ["1", True])
def test_a_timeout_is_a_number(addresses, timeout):
    with pytest.raises(TypeError, match="^timeout: expected a number of seconds or None"):
        relay.connect(addresses["tcp"], timeout=timeout)


def test_connect_says_why_it_failed(tmp_path):
    with pytest.raises(relay.ConnectError, match="No such file") as failure:
        relay.connect(f"unix://{tmp_path}/none")
    assert failure.value.reason == "unreachable"


def test_listen_makes_a_plain_listening_socket(tmp_path):
    for text, family in (
        (":0", socket.AF_INET),
        ("[::1]:0", socket.AF_INET6),
        (f"unix://{tmp_path}/s", socket.AF_UNIX),
    ):
        with relay.listen(text) as listening:
            assert isinstance(listening, socket.socket)
            assert listening.family == family
            relay.connect(_text(listening.getsockname()), timeout=WAIT).close()


def _text(name):
    return f"unix://{name}" if isinstance(name, str) else str(values.TCPAddress(*name[:2]))


@pytest.mark.parametrize("function", [relay.target, relay.connect, relay.listen])
def test_a_bad_address_is_a_value_error_at_once(function):
    with pytest.raises(ValueError, match="port 99999"):
        function("h:99999")


@pytest.mark.parametrize("function", [relay.target, relay.connect, relay.listen])
def test_an_error_in_a_hop_tells_which(function):
    with pytest.raises(relay.AddressError, match=r"^hop 2 of 2 \(sssh://me:\*\*\*@bastion\): unknown scheme"):
        function("h:80", via=["ssh://bastion", "sssh://me:hunter2@bastion"])
    with pytest.raises(TypeError, match="^via: expected a list of addresses"):
        function("h:80", via="ssh://bastion")


def test_hops_do_not_lead_to_what_listens_here():
    with pytest.raises(
        relay.AddressError, match="^listen address '127.0.0.1:0': it is on this machine; hops lead to ssh:// and i2p:"
    ):
        relay.listen(":0", via=["ssh://bastion"])


class Dialer:
    """A stand-in for a factory over SSH: it notes how it was called."""

    target = "h:80"

    def __init__(self, end):
        self.end = end
        self.deadline = None

    def open_socket(self, deadline):
        self.deadline = deadline
        self.end.setblocking(False)
        return self.end


def test_connect_asks_for_a_socket_that_stands_alone(monkeypatch):
    near, far = socket.socketpair()
    with near, far:
        factory = Dialer(near)
        monkeypatch.setattr("relay.transports.chain.chain", lambda *_: factory)
        assert relay.connect("h:80", via=["ssh://a"], timeout=100) is near
        assert near.gettimeout() is None
        assert 90 < factory.deadline - time.monotonic() <= 100


NONSENSE = {
    ("h:1", "i2p:"): "^h:1: what follows i2p: has a name in .i2p; the hop i2p:.sam=127.0.0.1:7656 leads nowhere else",
    ("h:1", "i2p:", "ssh://h.example", "ssh://b"): r"^hop 2 of 3 \(ssh://h.example\): what follows i2p:.* hop 1 of 3",
    ("h:1", "ssh://a", "unix:///x"): r"^hop 2 of 2 \(unix:///x\): unix:// is a target, not a hop.* and h:1 follows",
}


@pytest.mark.parametrize(("way", "said"), NONSENSE.items(), ids=map(" ".join, NONSENSE))
def test_a_chain_that_makes_no_sense_is_refused(way, said):
    url, *via = way
    for function in (relay.target, relay.connect):
        with pytest.raises(relay.AddressError, match=said):
            function(url, via=via)


@pytest.mark.parametrize("place", ["ssh://h.example?listen=:1", "i2p:?sam=h:1"])
def test_so_is_one_that_leads_to_a_listener(place):
    with pytest.raises(relay.AddressError, match="what follows i2p: has a name in .i2p; the hop i2p:"):
        relay.listen(place, via=["i2p:"])


@pytest.mark.parametrize(
    ("table", "union"), [(urls.SENDERS, values.Target), (urls.LISTENERS, hops.Listen | https.HTTPSListen)]
)
def test_every_kind_of_address_has_its_function(table, union):
    # The bases of those of WebSockets, and what holds another address.
    loaded_when_used = {values.TargetOverTCP, values.ListenAtPort, ResumeListen}
    assert set(table) == set(typing.get_args(union)) - loaded_when_used
    for kind, entry in table.items():
        module, name = entry.split(":")
        function = getattr(import_module(f"relay.{module}"), name)
        fields = {field.name for field in dataclasses.fields(kind)}
        assert fields == set(inspect.signature(function).parameters) - {"via", "opening", "kind", "inherited", "make"}


def test_tls_leads_to_tls(serve, certificates):
    def serve_tls(connection):
        with certificates.server().wrap_socket(connection, server_side=True) as encrypted:
            encrypted.sendall(encrypted.recv(5))
            encrypted.unwrap()  # else the stream is cut

    port = serve(serve_tls).address[1]
    with relay.connect(f"tls://localhost:{port}?ca={certificates.ca}", timeout=WAIT) as connected:
        connected.sendall(b"hello")
        assert receive_all(connected) == b"hello"


@pytest.mark.parametrize(
    ("text", "kind"), [("socks5://127.0.0.1:0", "SOCKSListener"), ("http://me:x@[::1]:0", "HTTPListener")]
)
def test_a_proxy_is_listened_at(text, kind):
    with relay.listen(text) as listener:
        assert type(listener).__name__ == kind
        assert listener.address[1] and listener.protected is ("me" in text)
