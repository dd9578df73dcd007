"""``resume:ADDRESS`` as a hop and to listen at: what it is read as, and what is refused with a reason."""

import pytest

import relay
from relay.addresses.options import inline_secrets
from relay.addresses.parse import parse_hop, parse_listen
from relay.addresses.resume import ResumeListen, ResumeServer
from relay.addresses.values import TLSTarget, UnixAddress


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("resume:tls://far:4443?ca=ca.pem&cert=me.pem", "resume:tls://far:4443"),
        ("resume:wss://far/path?cert=me.pem", "resume:wss://far:443/path"),
        ("resume:i2p://name.i2p?keys=me.dat", "resume:i2p://name.i2p"),
        ("resume:unix:///run/far.sock", "resume:unix:///run/far.sock"),
        ("resume:exec:nc -U far.sock", "resume:exec:nc …"),
        ("resume:port:socat TCP-LISTEN:{port} -", "resume:port:socat …"),
    ],
)
def test_a_hop(text, name):
    hop = parse_hop(text)
    assert isinstance(hop, ResumeServer)
    assert str(hop) == name


def test_the_options_are_those_of_the_address():
    hop = parse_hop("resume:tls://far:4443?cert=me.pem&servername=other")
    assert isinstance(hop.place, TLSTarget)
    assert (hop.place.cert, hop.place.servername) == ("me.pem", "other")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("resume:far:4443", "does not know who its clients are there; use tls://"),
        ("resume:ws://far/path", "does not know who its clients are there; use tls://"),
        ("resume:tls://far:4443", "has to know who its clients are; give a client certificate with cert=FILE"),
        ("resume:wss://far/path", "has to know who its clients are; give a client certificate with cert=FILE"),
        ("resume:i2p://name.i2p", "the streams do not belong to; set keys=FILE"),
        ("resume:socks5://far:1080", "a proxy keeps no streams"),
        ("resume:ssh://far", "write ssh://host\\?resume=yes"),
    ],
)
def test_a_hop_whose_far_end_would_not_know_it(text, problem):
    with pytest.raises(relay.AddressError, match=problem):
        parse_hop(text)


@pytest.mark.parametrize(
    "text",
    [
        "resume:unix:///run/far.sock",
        "resume:tls://0.0.0.0:4443?cert=far.pem&client_ca=ca.pem",
        "resume:wss://0.0.0.0:443/path?cert=far.pem&client_ca=ca.pem",
        "resume:i2p:?keys=far.dat",
    ],
)
def test_a_listener(text):
    assert isinstance(parse_listen(text), ResumeListen)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("resume:127.0.0.1:1", "none is known there; use unix:///PATH"),
        ("resume:socks5://127.0.0.1:1", "none is known there; use unix:///PATH"),
        ("resume:ws://127.0.0.1:1/path", "none is known there; use unix:///PATH"),
        ("resume:tls://0.0.0.0:1?cert=far.pem", "any client may connect there; set client_ca=FILE"),
        ("resume:wss://0.0.0.0:1/path?cert=far.pem", "any client may connect there; set client_ca=FILE"),
        (
            "resume:wss://0.0.0.0:1/path?cert=far.pem&client_ca=ca.pem&trusted_proxies=10.0.0.1",
            "leave it out, and let clients connect without a proxy",
        ),
    ],
)
def test_a_listener_that_would_not_know_its_clients(text, problem):
    with pytest.raises(relay.AddressError, match=problem):
        parse_listen(text)


def test_a_secret_in_its_address_is_found():
    hop = parse_hop("resume:i2p://name.i2p?keys=me.dat&user=me&password=secret")
    assert inline_secrets(hop) == ("password",)
    assert "secret" not in f"{hop}"


def test_without_an_address_it_is_a_path_of_the_hop():
    assert isinstance(parse_hop("resume:unix:///run/far.sock").place, UnixAddress)
