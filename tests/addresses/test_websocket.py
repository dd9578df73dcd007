"""``relay.addresses.websocket``: WebSockets as values, and what their addresses may have."""

import ipaddress

import pytest

from relay.addresses import websocket
from relay.addresses.parse import parse_hop, parse_listen, parse_target
from relay.addresses.websocket import (
    WSListen,
    WSProxy,
    WSProxyListen,
    WSSListen,
    WSSProxy,
    WSSProxyListen,
    WSSTarget,
    WSTarget,
)
from relay.errors import AddressError

TEXTS = [
    (WSTarget("h", 80), "ws://h:80/"),
    (WSSTarget("fe80::1%eth0", 1, "/p", ca="c d"), "wss://[fe80::1%25eth0]:1/p?ca=c%20d"),
    (WSListen("127.0.0.1", 0, "/p"), "ws://127.0.0.1:0/p"),
    (WSSListen("::", 443, cert="c", hosts="a,b"), "wss://[::]:443/?hosts=a%2Cb&cert=c"),
    (WSProxy("ws", "h", 80, "me", password="p", path="/p"), "ws://me@h:80/p"),
    (WSSProxy("wss", "h", 443), "wss://h:443/"),
]


@pytest.mark.parametrize(("value", "text"), TEXTS, ids=[text for _, text in TEXTS])
def test_values_are_shown_as_addresses(value, text):
    assert str(value).replace(",", "%2C") == text


def test_a_listener_is_one_of_a_proxy_with_all_that_it_has():
    given = {"origin": "*", "hosts": "h", "subprotocol": "b", "trusted_proxies": "::1"}
    assert WSListen("h", 1, "/p", **given).as_proxy({"user": "me", "password": "p"}) == WSProxyListen(
        "ws", "h", 1, "me", password="p", path="/p", **given
    )
    tls = {"cert": "c", "key": "k", "client_ca": "a", "groups": "X25519"}
    secure = WSSListen("h", 1, "/p", **given, **tls).as_proxy({})
    assert secure == WSSProxyListen("wss", "h", 1, path="/p", **given, **tls) and type(secure) is WSSProxyListen
    assert (str(secure), type(WSListen("h", 1).as_proxy({}))) == ("wss://h:1/p", WSProxyListen)


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        (("", 1), ValueError, "host"),
        (("h", 0), ValueError, "port"),
        (("h", 1, None), TypeError, "^path: expected a str, got NoneType$"),
        (("h", 1, "p"), ValueError, "^path: 'p' is not the path of a URL; it begins with a slash"),
        (("h", 1, "/" + "x" * 2048), ValueError, "^path: "),
    ],
)
def test_a_place_that_cannot_be(given, error, said):
    with pytest.raises(error, match=said):
        WSTarget(*given)


def test_a_place_that_can_be():
    assert WSTarget("name.i2p", 80).host == "name.i2p", "behind an I2P router"
    assert len(WSTarget("h", 1, "/" + "x" * 2047).path) == 2048
    assert WSListen("h", 0).port == 0


def test_lists_of_words():
    # The kinds of the options are made when the module is imported: this one is made like them.
    kind = websocket._kind("WORD,…", "[a-z]+|10.*", "words are allowed")
    assert (kind.plain, kind.keyword, kind.placeholder) == (str, "str", "WORD,…")
    for text in ("a", "a,b", ",".join(["a"] * 64)):
        assert kind.parse(text) == text
        kind.check("name", text)
    for text in ("", "a,", "A", "a b", ",".join(["a"] * 65)):
        with pytest.raises(ValueError, match="^words are allowed$"):
            kind.parse(text)
        with pytest.raises(ValueError, match="^name: '[^']*': words are allowed$"):
            kind.check("name", text)
    with pytest.raises(TypeError, match="^name: expected a str, got int$"):
        kind.check("name", 1)
    networks = websocket._kind("", ".*", "networks are allowed", ipaddress.ip_network)
    assert networks.parse("10.0.0.0/8,::1") == "10.0.0.0/8,::1"
    with pytest.raises(ValueError, match="^networks are allowed$"):
        networks.parse("10.0.0.0/8,10.0.0.1/8")


def test_the_parts_of_a_hop():
    assert parse_hop("ws://me:p%40%3A@h:1/p") == WSProxy("ws", "h", 1, "me", password="p@:", path="/p")
    assert parse_hop("ws://h/p?header_file=a?b@c:d") == WSProxy("ws", "h", 80, path="/p", header_file="a?b@c:d")
    assert parse_hop("wss://me@[::1]/?password=x") == WSSProxy("wss", "::1", 443, "me", password="x")


@pytest.mark.parametrize(
    ("parse", "text", "said"),
    [
        (parse_hop, "ws://@h", "the user is empty; write it before the @, or leave both out"),
        (parse_hop, "ws://me:@h", "a password that is empty or given twice; give one, or leave the colon out"),
        (parse_hop, "ws://me:x@h?password=y", "a password that is empty or given twice; give one, or leave"),
        (parse_listen, "ws://me@h:1/p", "ws:// takes no user or password"),
        (parse_listen, "wss://h:1/p?x=1", "unknown parameter 'x'; wss:// takes origin="),
        (parse_listen, "ws://h:1/a b", "path: '/a b' is not the path of a URL; it begins with a slash"),
        (parse_listen, "wss://[::1]/p?cert=c", "an IPv6 address is written [::1]:443"),
        (parse_target, "wss://h:x", "port x"),
    ],
)
def test_addresses_that_cannot_be(parse, text, said):
    with pytest.raises(AddressError) as wrong:
        parse(text)
    assert said in str(wrong.value) and "=y" not in str(wrong.value)
