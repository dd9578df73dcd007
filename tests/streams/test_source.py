"""``relay.streams.source``: which address of this machine a connection comes from, and to which targets it can go."""

import socket

import pytest

from relay import ConnectError
from relay.eventloop.sockets import Endpoint
from relay.streams.source import Source, parse_source

HERE = Endpoint(socket.AF_INET, ("127.0.0.1", 80))
HERE6 = Endpoint(socket.AF_INET6, ("::1", 80, 0, 0))
THERE = Endpoint(socket.AF_INET, ("192.0.2.7", 80))


def test_an_address_is_parsed():
    assert parse_source("192.0.2.7") == Source(socket.AF_INET, "192.0.2.7")
    assert parse_source("2001:DB8:0::1") == Source(socket.AF_INET6, "2001:db8::1")
    assert parse_source("peer") is None


@pytest.mark.parametrize(
    "text", ["", "Peer", "eth0", "192.0.2.7:80", "192.0.2.0/24", "0.0.0.0", "::", "224.0.0.1", "fe80::1%lo", "x" * 999]
)
def test_anything_else_is_named(text):
    with pytest.raises(ValueError, match=r"^source: expected peer or an IP address of this machine, got '") as raised:
        parse_source(text)
    assert len(str(raised.value)) < 300


def test_what_is_no_text_is_named():
    with pytest.raises(TypeError, match="source: expected text, got int"):
        parse_source(5)


def test_only_the_addresses_of_its_family_are_left():
    bound = Source(socket.AF_INET, "192.0.2.1").of("db", [HERE6, THERE, HERE])
    assert bound == [THERE._replace(source=("192.0.2.1", 0)), HERE._replace(source=("192.0.2.1", 0))]
    assert Source(socket.AF_INET6, "2001:db8::1").of("db", [HERE6])[0].source == ("2001:db8::1", 0, 0, 0)


def test_from_the_loopback_only_the_loopback_can_be_reached():
    source = Source(socket.AF_INET, "127.1.2.3")
    assert [endpoint.address for endpoint in source.of("db", [THERE, HERE])] == [HERE.address]
    with pytest.raises(ConnectError, match=r"^db: it is not on the loopback, as the source 127\.1\.2\.3 is; set "):
        source.of("db", [THERE])


def test_another_family_is_named():
    text = r"^db: it has no IPv6 address, as the source 2001:db8::1 is; set source to an address of the target's"
    with pytest.raises(ConnectError, match=text):
        Source(socket.AF_INET6, "2001:db8::1").of("db", [HERE])


def test_no_addresses_are_none():
    assert Source(socket.AF_INET, "127.1.2.3").of("db", []) == []
