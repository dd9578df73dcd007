"""The common syntax of all addresses, read on its own; :mod:`relay.addresses.parse` has the whole of them."""

import pytest

from relay.addresses.address_parser import LONGEST_ADDRESS, AddressParser
from relay.addresses.options import DESTINATIONS, TEXT, Option
from relay.addresses.values import LONGEST_UNIX_PATH
from relay.errors import AddressError


def texts(*names):
    return {name: Option(TEXT, "some") for name in names}


def parser(text="h:1"):
    return AddressParser(text, "place")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("h:1", ("", "h:1")),
        ("TCP://h:1", ("tcp", "h:1")),
        ("unix:///a://b", ("unix", "/a://b")),
        ("tls://", ("tls", "")),
        ("a b", ("", "a b")),
        ("h" * LONGEST_ADDRESS, ("", "h" * LONGEST_ADDRESS)),
    ],
)
def test_the_scheme_is_split_off(text, parts):
    assert parser(text).split() == parts


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("https://h:1", r"unknown scheme https:// \(did you mean tls://\?\); allowed are host:port"),
        ("SSL://h:1", r"unknown scheme ssl:// \(did you mean tls://\?\)"),
        ("unx:///a", r"unknown scheme unx:// \(did you mean unix://\?\)"),
        ("exec:cat", "unknown scheme exec://; allowed are host:port"),
    ],
)
def test_an_unknown_scheme_gets_a_near_one(text, said):
    with pytest.raises(AddressError, match=said):
        parser(text).split()


def test_what_may_be_a_password_is_not_repeated_at_all():
    with pytest.raises(AddressError, match=r"^place '\*\*\*': wrong; right is allowed$"):
        AddressParser("x", "place", hidden=True).fail("wrong", "right is allowed")


def test_a_part_is_short_and_printable():
    assert parser().part("a\n" + "x" * 500) == "a\\n" + "x" * 118 + "…"


@pytest.mark.parametrize("query", ["ca=1&wrong=1", "ca=1@&wrong", "wrong"])
def test_the_name_of_an_unknown_parameter_is_repeated(query):
    with pytest.raises(AddressError, match="unknown parameter 'wrong'"):
        parser(f"h?{query}").options("x://", query, texts("ca"))


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("me@h:1", "tcp:// takes no user or password; allowed are host:port"),
        ("h:1/", "something follows the port"),
        ("h:1#x", "something follows the port"),
        ("[::1]]:1", "a broken IPv6 address or no port"),
    ],
)
def test_what_is_no_place(place, said):
    with pytest.raises(AddressError, match=said):
        parser().place("", place)


def test_the_longest_host_and_the_longest_path():
    host, path = "a." * 126 + "a", "/" + "x" * (LONGEST_UNIX_PATH - 1)
    assert (parser().host(host), parser().host(f"{host}."), parser().socket_path(path)) == (host, f"{host}.", path)
    for longer in (f"{host}a", f"{host}a."):
        with pytest.raises(AddressError, match="a host of 254 characters; a name has at most 253"):
            parser().host(longer)
    with pytest.raises(AddressError, match=f"the path is {LONGEST_UNIX_PATH + 1} bytes long"):
        parser().socket_path(f"{path}x")


@pytest.mark.parametrize("host", ["x.i2p", "X.I2P", "x.b32.i2p.", "i2p"])
def test_a_name_of_i2p_is_not_looked_up_in_the_dns(host):
    with pytest.raises(AddressError, match="is a name of I2P; it is not looked up in the DNS; only i2p://"):
        parser().host(host)
    parser().refuse_i2p("i2p.example")


def test_some_parameters_may_be_repeated_and_others_go_further():
    declared = {"a": Option(DESTINATIONS, "some"), **texts("b")}

    def read(query, **given):
        return AddressParser("h", "place", given=given).options("x://", query, declared, lambda name: name[:2] == "x.")

    assert read("a=1&b=2&a=3&x.y=4") == {"a": ("1", "3"), "b": "2", "x.y": "4"}
    assert read("a=1", b="2", **{"x.y": 3}) == {"a": ("1",), "b": "2", "x.y": 3}
    for query, given in (("b=1&b=1", {}), ("b=1", {"b": "1"})):
        with pytest.raises(AddressError, match="b= is written twice"):
            read(query, **given)
    with pytest.raises(AddressError, match=r"x\.y= is written twice"):
        read("x.y=1&x.y=1")
    for query, given in (("y=1", {}), ("", {"y": 1})):
        with pytest.raises(AddressError, match="unknown parameter 'y'; x:// takes a=, b="):
            read(query, **given)
