"""I2P addresses as values: what they hold, how they are shown, and what none of them can be."""

import dataclasses
from pathlib import Path

import pytest
from helpers import steady

from relay.addresses.i2p import I2PListen, I2PRouter, I2PTarget, is_option
from relay.addresses.i2p_parser import parse_sam, router_of
from relay.addresses.options import inline_secrets
from relay.addresses.parse import parse_hop
from relay.addresses.values import TCPAddress, TLSTarget
from relay.errors import AddressError

B32 = "a" * 52 + ".b32.i2p"

GOOD = [
    {},
    {"sam": (TCPAddress("::1", 1),)},
    {"sam": (TCPAddress("::1", 1), TLSTarget("h", 1))},
    {"session": "ü b"},
    {"keys": "me.dat", "in_depth": 0, "out_depth": 7},
    {"user": "me", "password": "pw"},
    {"user": "me", "password": lambda: "pw"},
    {"user": "me", "password_file": "f"},
    {"user": "me"},
    {"options": (("inbound.quantity", "2"),)},
]


@pytest.mark.parametrize("given", GOOD, ids=steady)
def test_equal_routers_are_one(given):
    router = I2PRouter(**given)
    assert router == I2PRouter(**given)
    assert hash(router) == hash(I2PRouter(**given))
    assert str(router).startswith("i2p:?sam=")


@pytest.mark.parametrize("given", GOOD[1:], ids=steady)
def test_what_differs_is_another_one(given):
    assert I2PRouter(**given) != I2PRouter()


BAD = [
    ({"sam": "h:1"}, TypeError),
    ({"sam": None}, TypeError),
    ({"sam": ("h", 1)}, TypeError),
    ({"sam": TCPAddress("h", 1)}, TypeError),
    ({"sam": ()}, ValueError),
    ({"sam": (TCPAddress("h", 1), TCPAddress("h", 1))}, ValueError),
    ({"session": None}, TypeError),
    ({"session": "a\n"}, ValueError),
    ({"session": "x" * 201}, ValueError),
    ({"keys": ""}, ValueError),
    ({"keys": 3}, TypeError),
    ({"in_depth": -1}, ValueError),
    ({"out_depth": 8}, ValueError),
    ({"in_depth": "1"}, TypeError),
    ({"out_depth": True}, TypeError),
    ({"out_depth": 1.5}, TypeError),
    ({"user": ""}, ValueError),
    ({"user": 3}, TypeError),
    ({"password": "hunter2"}, ValueError),
    ({"user": "me", "password": ""}, ValueError),
    ({"user": "me", "password": b"hunter2"}, TypeError),
    ({"user": "me", "password": "hunter2", "password_env": "A"}, ValueError),
    ({"user": "me", "password_env": "A-B"}, ValueError),
    ({"options": (("quantity", "2"),)}, ValueError),
    ({"options": (("inbound.quantity", ""),)}, ValueError),
    ({"options": (("inbound.quantity", "a\nb"),)}, ValueError),
    ({"options": (("inbound.nickname", "x" * 1001),)}, ValueError),
]


@pytest.mark.parametrize(("given", "error"), BAD, ids=str)
def test_what_cannot_be_right_is_named_and_no_secret_is_shown(given, error):
    with pytest.raises(error) as failure:
        I2PRouter(**given)
    said = str(failure.value)
    name = next((one for one in ("in_depth", "out_depth", "options", "password", "user") if one in given), None)
    named = given["options"][0][0] if name == "options" else name or next(iter(given))
    assert said.startswith((named, "password"))
    assert "hunter2" not in said


def test_secrets_are_not_shown():
    options = (("i2cp.leaseSetSecret", "hunter2"),)
    router = I2PRouter(parse_sam("tls://h:1?ca=f"), user="me", password="hunter2", options=options)
    for text in (str(router), repr(router), repr(I2PTarget(B32, None, router)), repr(I2PListen(router))):
        assert "hunter2" not in text
    assert str(router) == str(I2PListen(router)) == "i2p:?sam=tls://h:1"
    assert inline_secrets(router) == ("password",)
    assert inline_secrets(I2PRouter(user="me", password=lambda: "x")) == ()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("127.0.0.1:7656", TCPAddress("127.0.0.1", 7656)),
        ("tcp://Router:1", TCPAddress("router", 1)),
        ("[::1]:1", TCPAddress("::1", 1)),
        ("tls://h:1", TLSTarget("h", 1)),
        ("tls://[fe80::1%25eth0]:1", TLSTarget("fe80::1%eth0", 1)),
        ("tls://h:1?servername=s&ca=a%26&cert=c&key=k", TLSTarget("h", 1, "s", "a&", "c", "k")),
    ],
)
def test_where_a_bridge_is(text, value):
    assert parse_sam(text) == (value,)
    assert router_of({"sam": text}) == I2PRouter((value,))
    assert parse_sam(str(value)) == (value,)


def test_bridges_of_several_routers():
    router = I2PRouter((TCPAddress("a", 1), TLSTarget("b", 2, ca="f")))
    assert router_of({"sam": ["a:1", "tls://b:2?ca=f"]}) == router
    assert parse_hop("i2p:?sam=a:1&sam=tls://b:2?ca%3Df") == router
    assert str(router) == "i2p:?sam=a:1&sam=tls://b:2"
    assert router != I2PRouter(router.sam[::-1])


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ([], "sam: 0 bridges are given; 1 to 8 are allowed"),
        ([f"h:{port}" for port in range(1, 10)], "sam: 9 bridges are given; 1 to 8 are allowed"),
        (["a:1", "b:1", "A:1"], "sam: a:1 is written twice; once is enough"),
        (["a:1", "b"], "sam 'b': no port; write it after a colon: b:7656"),
    ],
)
def test_which_bridges_cannot_be_together(given, problem):
    with pytest.raises(AddressError) as failure:
        parse_sam(given)
    assert str(failure.value) == problem


@pytest.mark.parametrize("text", ["", "h", "h:0", "ssh://h:1", "unix:///x", "me:hunter2@h:1"])
def test_where_no_bridge_can_be(text):
    with pytest.raises(AddressError, match="^sam") as failure:
        parse_sam(text)
    assert "hunter2" not in str(failure.value)


@pytest.mark.parametrize("value", [None, ("h", 1), ["h:1", None]])
def test_a_bridge_is_text(value):
    with pytest.raises(TypeError, match="^sam: "):
        router_of({"sam": value})


def test_a_bridge_in_a_wrong_place_is_told_in_one_line():
    with pytest.raises(AddressError, match=r"^sam 'h:1\?ca=x': unknown parameter 'ca'; tcp:// takes none$"):
        parse_sam("h:1?ca=x")
    with pytest.raises(
        AddressError, match=r"^sam 'i2p:': i2p: without //; allowed are host:port, as in 127.0.0.1:7656"
    ):
        parse_sam("i2p:")


def test_a_target_is_what_it_leads_to():
    assert str(I2PTarget(f" {B32.upper()} ", 80)) == f"i2p://{B32}:80"
    assert str(I2PTarget("Name.i2p")) == "i2p://name.i2p"
    with pytest.raises(dataclasses.FrozenInstanceError):
        I2PTarget(B32).dest = "x.i2p"


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        (("x",), ValueError, "^dest: this has 1 characters and does not end in .i2p; a destination is"),
        ((None,), TypeError, "^dest: expected a str, got NoneType"),
        ((b"x.i2p",), TypeError, "^dest: expected a str, got bytes"),
        ((B32, 0), ValueError, "^port: 0 is out of range; a port is a number from 1 to 65535"),
        ((B32, "80"), TypeError, "^port: expected an int, got str"),
    ],
)
def test_a_target_that_cannot_be_right_is_refused(given, error, said):
    with pytest.raises(error, match=said):
        I2PTarget(*given)


def test_a_way_in_is_one_of_two():
    assert I2PListen(accept="accept") != I2PListen(accept="forward")
    with pytest.raises(
        ValueError, match="^accept: must be accept or forward, got 'both'; leave it out for the default"
    ):
        I2PListen(accept="both")


def test_keywords_make_a_router():
    given = {"sam": "h:1", "keys": Path("me.dat"), "inbound.quantity": 2, "i2cp.dontPublishLeaseSet": True}
    options = (("i2cp.dontPublishLeaseSet", "true"), ("inbound.quantity", "2"))
    assert router_of(given) == I2PRouter(parse_sam("h:1"), keys="me.dat", options=options)
    assert router_of({"user": "me", "password_file": Path("f")}) == I2PRouter(user="me", password_file="f")


@pytest.mark.parametrize("name", ["depth", "options", "inbound", "inbound.", "in.quantity", "inbound.a b"])
def test_an_unknown_keyword_is_a_type_error(name):
    with pytest.raises(
        TypeError, match=rf"^{name}: unexpected keyword argument; i2cp\.\*, inbound\.\* and outbound\.\*"
    ):
        router_of({name: 1})
    assert not is_option(name)


def test_the_value_of_an_option_is_text_or_a_number():
    with pytest.raises(TypeError, match=r"^inbound\.quantity: expected text, a number, True or False, got list"):
        router_of({"inbound.quantity": [2]})
