"""``relay.streams.peer_source``: addresses of the loopback that stand for clients."""

import base64
import hashlib
import ipaddress
import socket

import pytest

import relay
from relay.streams import peer_source
from relay.streams.identity import Identity, identity_of_peer
from relay.streams.peer_source import PeerSource, bound_to, check_source, source_address_of

HASH = bytes(range(7, 39))
B32 = base64.b32encode(HASH).decode().lower().rstrip("=") + ".b32.i2p"
ALICE = Identity("tls", "alice", "192.0.2.7", 4000)


def of_hash(text):
    return str(ipaddress.IPv4Address(b"\x7f" + hashlib.sha256(text.encode()).digest()[:3]))


def test_a_destination_has_the_address_that_i2pd_gives_it():
    assert source_address_of(Identity("i2p", B32, destination=B32)) == "127.7.8.9"
    expected = str(ipaddress.IPv6Address(b"\xfd" + HASH[:15]))
    assert source_address_of(Identity("i2p", B32, destination=B32), socket.AF_INET6) == expected


@pytest.mark.parametrize("text", ["short.b32.i2p", "1!.b32.i2p", "name.i2p", ""])
def test_a_destination_that_is_none_still_has_an_address(text):
    assert source_address_of(Identity("i2p", text, destination=text)) == of_hash(f"i2p:{text}")


@pytest.mark.parametrize(
    ("identity", "text"),
    [
        (ALICE, "tls:alice"),
        (Identity("unix", "www-data", user="www-data", process=7), "unix:www-data"),
        (Identity("socks", "bob", "192.0.2.7", 4000, login="bob"), "socks:bob"),
        (Identity("ssh", "ssh://me@vps", server="ssh://me@vps"), "ssh:ssh://me@vps"),
        (Identity("ssh", "ssh://me@vps", "192.0.2.9", 1, is_verified=False), "ssh:ssh://me@vps 192.0.2.9"),
        (identity_of_peer(("192.0.2.7", 4000)), "tcp:192.0.2.7"),
        (identity_of_peer(("2001:db8::1", 4000, 0, 0)), "tcp:2001:db8::1"),
        (identity_of_peer(("127.0.0.1", 4000)), "tcp:127.0.0.1"),
        (identity_of_peer(("127.0.0.0", 4000)), "tcp:127.0.0.0"),
        (identity_of_peer(("127.255.255.255", 4000)), "tcp:127.255.255.255"),
        (Identity("tcp", "a text", "a text"), "tcp:a text"),
        (Identity("socks", "bob", "127.5.5.5", 4000, login="bob"), "socks:bob"),
        (Identity("socks", "\udcff", login="\udcff"), None),
        (Identity("ssh", "me@vps", ":\ud800", 1), None),
    ],
)
def test_others_have_one_made_of_their_identity(identity, text):
    address = source_address_of(identity)
    assert text is None or address == of_hash(text)
    assert address == source_address_of(identity._replace(port=5, process=8))
    assert ipaddress.ip_address(address) in ipaddress.ip_network("127.0.0.0/8")
    assert source_address_of(identity, socket.AF_INET6).startswith("fd")


def test_a_client_of_the_loopback_keeps_its_address():
    assert source_address_of(identity_of_peer(("127.7.8.9", 4000))) == "127.7.8.9"
    assert source_address_of(identity_of_peer(("::ffff:127.7.8.9", 4000, 0, 0))) == "127.7.8.9"


def test_nobody_known_has_an_address_too():
    assert source_address_of(None) == of_hash("")


@pytest.mark.parametrize("start", [b"\0\0\0", b"\0\0\1", b"\xff\xff\xff"])
def test_nobody_gets_an_address_that_servers_trust(monkeypatch, start):
    digest = start + bytes(29)
    monkeypatch.setattr(peer_source, "_digest_of", lambda identity: digest)
    assert source_address_of(ALICE) == str(ipaddress.IPv4Address(b"\x7f" + hashlib.sha256(digest).digest()[:3]))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "localhost", "LOCALHOST", "db.localhost"])
def test_a_target_on_the_loopback(host):
    made = PeerSource(relay.tcp(host, 80)).dialer_for(ALICE)
    found = made.endpoints or made.name.endpoints(relay.tcp("127.0.0.1", 80).endpoints)
    assert [endpoint.source for endpoint in found] == [(of_hash("tls:alice"), 0)]


def test_a_tls_target_on_the_loopback():
    made = PeerSource(relay.tls("127.0.0.1", 443)).dialer_for(ALICE)
    assert made.inner.endpoints[0].source == (of_hash("tls:alice"), 0)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: relay.tcp("192.0.2.7", 80), "^source: 192.0.2.7:80: it is not on the loopback"),
        (lambda: relay.tcp("2001:db8::1", 80), r"^source: \[2001:db8::1\]:80: it has no IPv4 address"),
        (
            lambda: relay.tcp("db.example", 80),
            "^source: db.example:80 may be another machine, and peer needs one on the",
        ),
        (lambda: relay.tls("localhost.example", 80), "^source: tls://localhost.example:80 may be another machine"),
        (lambda: relay.unix("/run/x"), "^source: unix:///run/x is a Unix socket"),
        (lambda: relay.target("localhost:9", via=["socks5://localhost:1080"]), "^source: relay does not connect to "),
        (lambda: relay.target("i2p://x.i2p"), "^source: relay does not connect to "),
        (lambda: relay.dynamic(), "^source: relay does not connect to anywhere"),
    ],
)
def test_another_target_is_named(make, text):
    with make() as made, pytest.raises(ValueError, match=text):
        check_source("peer", made)


def test_an_ipv6_target_needs_addresses_that_can_be_bound(monkeypatch):
    text = (
        r"^source: \[::1\]:80: this system has no addresses like fd01:203::1, which peer needs; name the target by 127"
    )
    with pytest.raises(ValueError, match=text):
        PeerSource(relay.tcp("::1", 80))
    monkeypatch.setitem(peer_source._TRIED, socket.AF_INET6, "::1")
    (endpoint,) = PeerSource(relay.tcp("::1", 80)).dialer_for(ALICE).endpoints
    assert endpoint.source == (source_address_of(ALICE, socket.AF_INET6), 0, 0, 0)


def test_a_source_by_its_address():
    assert bound_to(relay.tcp("192.0.2.7", 80), "192.0.2.1").endpoints[0].source == ("192.0.2.1", 0)


def test_a_factory_of_the_user_binds_its_sockets_itself():
    with pytest.raises(ValueError, match="^source: the factory connects by itself; bind its sockets there, and remove"):
        check_source("127.0.0.2", socket.socket)


def test_warm_streams_have_no_client():
    check_source("192.0.2.1", relay.tcp("192.0.2.7", 80), warm=1)
    check_source(None, socket.socket, warm=1)
    with pytest.raises(ValueError, match="^warm: with source = peer each stream belongs to its client, so none can be"):
        check_source("peer", relay.tcp("127.0.0.1", 80), warm=1)
