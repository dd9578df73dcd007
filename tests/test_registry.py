"""The table of schemes: one address for each way out and in."""

from __future__ import annotations

import dataclasses
import inspect
import math
import socket
import typing
from importlib import import_module

import pytest
from helpers import echo, receive_all, send_and_end

import relay
from relay import address, registry


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
        stream.socket.settimeout(10)
        send_and_end(stream.socket, b"hello")
        assert receive_all(stream.socket) == b"hello"


@pytest.mark.parametrize("scheme", ["tcp", "bare", "unix"])
def test_connect_returns_a_blocking_socket(addresses, scheme):
    with relay.connect(addresses[scheme], timeout=10) as connected:
        assert type(connected) is socket.socket
        assert connected.gettimeout() is None
        send_and_end(connected, b"hello")
        assert receive_all(connected) == b"hello"


@pytest.mark.parametrize("timeout", [None, math.inf, 10, 10.5])
def test_connect_takes_every_sensible_timeout(addresses, timeout):
    relay.connect(addresses["tcp"], timeout=timeout).close()


@pytest.mark.parametrize(("timeout", "error"), [(0, ValueError), (-1, ValueError), (math.nan, ValueError)])
def test_connect_refuses_other_timeouts(addresses, timeout, error):
    with pytest.raises(error, match="^timeout: "):
        relay.connect(addresses["tcp"], timeout=timeout)


@pytest.mark.parametrize("timeout", ["1", True])
def test_a_timeout_is_a_number(addresses, timeout):
    with pytest.raises(TypeError, match="^timeout: a number of seconds or None is wanted"):
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
            relay.connect(_text(listening.getsockname()), timeout=10).close()


def _text(name):
    return f"unix://{name}" if isinstance(name, str) else str(address.TCPAddress(*name[:2]))


@pytest.mark.parametrize("function", [relay.target, relay.connect, relay.listen])
def test_a_bad_address_is_a_value_error_at_once(function):
    with pytest.raises(ValueError, match="port 99999"):
        function("h:99999")


@pytest.mark.parametrize("function", [relay.target, relay.connect])
def test_there_are_no_hops_yet(function):
    with pytest.raises(relay.AddressError, match=r"hop 'ssh://me:\*\*\*@bastion': hops are not available"):
        function("h:80", via=["ssh://me:hunter2@bastion"])
    with pytest.raises(TypeError, match="^via: a list of addresses is wanted"):
        function("h:80", via="ssh://bastion")


@pytest.mark.parametrize(("table", "union"), [(registry.SENDERS, address.Target), (registry.LISTENERS, address.Listen)])
def test_every_kind_of_address_has_its_function(table, union):
    assert set(table) == set(typing.get_args(union))
    for kind, entry in table.items():
        module, name = entry.split(":")
        function = getattr(import_module(f"relay.{module}"), name)
        fields = {field.name for field in dataclasses.fields(kind)}
        assert fields == set(inspect.signature(function).parameters)


def test_tls_leads_to_tls(serve, certificates):
    def serve_tls(connection):
        with certificates.server().wrap_socket(connection, server_side=True) as encrypted:
            encrypted.sendall(encrypted.recv(5))

    port = serve(serve_tls).address[1]
    with relay.connect(f"tls://localhost:{port}?ca={certificates.ca}", timeout=10) as connected:
        connected.sendall(b"hello")
        assert receive_all(connected) == b"hello"
