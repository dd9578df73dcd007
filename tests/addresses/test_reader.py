"""What every address as text has in common, read on its own; :mod:`relay.addresses.parse` has the whole of them."""

from __future__ import annotations

import pytest

from relay.addresses.reader import LONGEST_ADDRESS, AddressReader
from relay.errors import AddressError


def reader(text="h:1"):
    return AddressReader(text, "place")


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
    assert reader(text).split() == parts


@pytest.mark.parametrize("text", ["", "a\n", "a\x00", "ftp://h", "http://h", "ssh:x", "h" * (LONGEST_ADDRESS + 1)])
def test_what_cannot_be_split_is_refused(text):
    with pytest.raises(AddressError, match="^place '"):
        reader(text).split()


def test_who_reads_a_chain_tells_the_place_in_it():
    with pytest.raises(AddressError, match=r"^hop 1 of 2 \(x\): wrong; right is allowed$"):
        AddressReader("x", "hop 1 of 2").fail("wrong", "right is allowed")


@pytest.mark.parametrize("text", ["h:x", "me@h:x", "me:secret@h:x", "me@h:x?ca=a", "me@h?ca=a@b&keepalive=x"])
def test_a_part_that_is_no_secret_is_repeated(text):
    assert reader(text).part("x") == "x"


@pytest.mark.parametrize("text", ["me:x?y@h", "h:22?x@y", "me@h:22?ca=x@y", "h?ca=a:x@y"])
def test_a_part_that_may_be_a_password_is_not_repeated(text):
    assert reader(text).part("x") == "***"


def test_a_part_is_short_and_printable():
    assert reader().part("a\n" + "x" * 500) == "a\\n" + "x" * 118 + "…"


@pytest.mark.parametrize("query", ["ca=1&wrong=1", "ca=1@&wrong", "wrong"])
def test_the_name_of_an_unknown_parameter_is_repeated(query):
    with pytest.raises(AddressError, match="unknown parameter 'wrong'"):
        reader(f"h?{query}").parameters("x://", query, ("ca",))


@pytest.mark.parametrize("query", ["password=hun&ter2", "pasword=hun&ter2=1", "ter2@", "a@ter2=1"])
def test_the_name_of_an_unknown_parameter_that_may_be_a_secret_is_not_repeated(query):
    with pytest.raises(AddressError) as failure:
        reader(f"h?{query}").parameters("x://", query, ("a", "password"))
    assert "ter2" not in str(failure.value)


@pytest.mark.parametrize(("scheme", "place"), [("tcp", "[fe80::1%25eth0]:1"), ("", "[fe80::1%eth0]:1")])
def test_a_zone_is_encoded_in_a_url(scheme, place):
    assert reader().place(scheme, place) == ("fe80::1%eth0", 1, "")


def test_the_query_is_what_follows_the_first_question_mark():
    assert reader().place("tcp", "h:1?a=b?c") == ("h", 1, "a=b?c")


def test_parameters():
    read = reader().parameters("x://", "a=1%2B+&b=%ff&c=%C3%BC", ("a", "b", "c"))
    assert read == {"a": "1++", "b": "\udcff", "c": "ü"}
    assert reader().parameters("x://", "", ()) == {}


@pytest.mark.parametrize("query", ["a", "a=", "=1", "d=1", "a=1&a=1", "a=1&", "a=%", "a=%0a"])
def test_bad_parameters(query):
    with pytest.raises(AddressError):
        reader().parameters("x://", query, ("a", "b", "c"))


@pytest.mark.parametrize(("text", "port"), [("1", 1), ("065535", None), ("65535", 65535), ("0", None), ("٣", None)])
def test_a_port(text, port):
    if port is not None:
        assert reader().port(text) == port
    else:
        with pytest.raises(AddressError, match="a port is a number from 1 to 65535"):
            reader().port(text)
    assert reader().port("0", 0) == 0


@pytest.mark.parametrize("host", ["x.i2p", "X.I2P", "x.b32.i2p.", "i2p"])
def test_a_name_of_i2p_is_not_looked_up_in_the_dns(host):
    with pytest.raises(AddressError, match="is a name of I2P; it is not looked up in the DNS; only i2p://"):
        reader().host(host)
    reader().refuse_i2p("i2p.example")


def test_some_parameters_may_be_repeated_and_others_go_further():
    read = reader().repeated_parameters("x://", "a=1&b=2&a=3&x.y=4", ("a", "b"), ("a",), lambda name: name[:2] == "x.")
    assert read == {"a": ["1", "3"], "b": ["2"], "x.y": ["4"]}
    with pytest.raises(AddressError, match="b= is written twice"):
        reader().repeated_parameters("x://", "b=1&b=1", ("a", "b"), ("a",))
    with pytest.raises(AddressError, match=r"x\.y= is written twice"):
        reader().repeated_parameters("x://", "x.y=1&x.y=1", ("a", "b"), ("a",), lambda name: name[:2] == "x.")
    with pytest.raises(AddressError, match="unknown parameter 'y'; x:// takes a=, b="):
        reader().repeated_parameters("x://", "y=1", ("a", "b"), ("a",), lambda name: name[:2] == "x.")
