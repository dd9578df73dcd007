"""The common syntax of all addresses, read on its own; :mod:`relay.addresses.parse` has the whole of them."""

import pytest

from relay.addresses.address_parser import LONGEST_ADDRESS, AddressParser
from relay.addresses.options import DESTINATIONS, FLAG, SECONDS, TEXT, Option
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


@pytest.mark.parametrize("text", ["", "a\n", "a\x00", "ftp://h", "http://h", "ssh:x", "h" * (LONGEST_ADDRESS + 1)])
def test_what_cannot_be_split_is_refused(text):
    with pytest.raises(AddressError, match="^place '"):
        parser(text).split()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("https://h:1", r"unknown scheme https:// \(did you mean tls://\?\); allowed are host:port"),
        ("WSS://h:1", r"unknown scheme wss:// \(did you mean tls://\?\)"),
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


def test_who_reads_a_chain_tells_the_place_in_it():
    with pytest.raises(AddressError, match=r"^hop 1 of 2 \(x\): wrong; right is allowed$"):
        AddressParser("x", "hop 1 of 2").fail("wrong", "right is allowed")


@pytest.mark.parametrize("text", ["h:x", "me@h:x", "me:secret@h:x", "me@h:x?ca=a", "me@h?ca=a@b&keepalive=x"])
def test_a_part_that_is_no_secret_is_repeated(text):
    assert parser(text).part("x") == "x"


@pytest.mark.parametrize("text", ["me:x?y@h", "h:22?x@y", "me@h:22?ca=x@y", "h?ca=a:x@y"])
def test_a_part_that_may_be_a_password_is_not_repeated(text):
    assert parser(text).part("x") == "***"


def test_a_part_is_short_and_printable():
    assert parser().part("a\n" + "x" * 500) == "a\\n" + "x" * 118 + "…"


@pytest.mark.parametrize("query", ["ca=1&wrong=1", "ca=1@&wrong", "wrong"])
def test_the_name_of_an_unknown_parameter_is_repeated(query):
    with pytest.raises(AddressError, match="unknown parameter 'wrong'"):
        parser(f"h?{query}").options("x://", query, texts("ca"))


@pytest.mark.parametrize("query", ["password=hun&ter2", "pasword=hun&ter2=1", "ter2@", "a@ter2=1"])
def test_the_name_of_an_unknown_parameter_that_may_be_a_secret_is_not_repeated(query):
    with pytest.raises(AddressError) as failure:
        parser(f"h?{query}").options("x://", query, texts("a", "password"))
    assert "ter2" not in str(failure.value)


@pytest.mark.parametrize(("scheme", "place"), [("tcp", "[fe80::1%25eth0]:1"), ("", "[fe80::1%eth0]:1")])
def test_a_zone_is_encoded_in_a_url(scheme, place):
    assert parser().place(scheme, place) == ("fe80::1%eth0", 1, "")


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


def test_the_query_is_what_follows_the_first_question_mark():
    assert parser().place("tcp", "h:1?a=b?c") == ("h", 1, "a=b?c")


def test_parameters():
    read = parser().options("x://", "a=1%2B+&b=%ff&c=%C3%BC", texts("a", "b", "c"))
    assert read == {"a": "1++", "b": "\udcff", "c": "ü"}
    assert parser().options("x://", "", {}) == {}


@pytest.mark.parametrize("query", ["a", "a=", "=1", "d=1", "a=1&a=1", "a=1&", "a=%", "a=%0a"])
def test_bad_parameters(query):
    with pytest.raises(AddressError):
        parser().options("x://", query, texts("a", "b", "c"))


@pytest.mark.parametrize(("text", "port"), [("1", 1), ("065535", None), ("65535", 65535), ("0", None), ("٣", None)])
def test_a_port(text, port):
    if port is not None:
        assert parser().port(text) == port
    else:
        with pytest.raises(AddressError, match="a port is a number from 1 to 65535"):
            parser().port(text)
    assert parser().port("0", 0) == 0


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


def test_a_value_has_the_type_of_its_option():
    declared = {"flag": Option(FLAG, "some"), "time": Option(SECONDS, "some")}
    assert parser().options("x://", "flag=yes&time=1.5", declared) == {"flag": True, "time": 1.5}
    with pytest.raises(AddressError, match="flag=maybe; yes and no are allowed"):
        parser().options("x://", "flag=maybe", declared)
