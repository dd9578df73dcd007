"""The options of addresses: what is declared, and what is made from it."""

from __future__ import annotations

import dataclasses

import pytest

from relay.addresses.hops import Proxy, ProxyListen
from relay.addresses.i2p import I2PListen, I2PRouter, I2PTarget
from relay.addresses.options import (
    CARRIERS,
    DEPTH,
    FILE,
    FLAG,
    SECONDS,
    SECRET,
    VARIABLE,
    changed_options,
    check_variable,
    choice,
    inline_secrets,
    option,
    options_of,
    secret_variables,
    set_options,
    written,
)
from relay.addresses.ssh import SSHListen, SSHServer
from relay.addresses.tor import TorListen, TorProxy
from relay.addresses.values import TCPAddress, TLSListen, TLSTarget
from relay.errors import AddressError

OWNERS = [SSHServer, I2PRouter, I2PListen, Proxy, ProxyListen, TorProxy, TorListen, TCPAddress, TLSTarget, TLSListen]


@dataclasses.dataclass
class Owner:
    plain: int = 1
    file: str | None = dataclasses.field(default=None, metadata=option(FILE, "a file", "Of any kind.", usual="none"))
    flag: bool = dataclasses.field(default=True, metadata=option(FLAG, "whether it is so"))


def test_options_are_declared_in_the_fields():
    file, flag = options_of(Owner).values()
    assert list(options_of(Owner)) == ["file", "flag"]
    assert (file.help, file.details, file.usual, file.default) == ("a file", "Of any kind.", "none", None)
    assert (file.placeholder, flag.placeholder, flag.default) == ("FILE", "no", True)
    assert changed_options(Owner(flag=False)) == {"flag": False}
    assert list(options_of(TCPAddress)) == ["mptcp"]


@pytest.mark.parametrize("owner", OWNERS)
def test_no_secret_is_in_a_repr_and_every_secret_has_a_file_and_a_variable(owner):
    fields = {field.name: field for field in dataclasses.fields(owner)}
    for name, declared in options_of(owner).items():
        assert fields[name].repr is not declared.is_secret
        if declared.is_secret:
            assert options_of(owner)[f"{name}_file"].kind is FILE
            assert options_of(owner)[f"{name}_env"].kind is VARIABLE


@pytest.mark.parametrize("owner", OWNERS)
def test_every_option_has_a_short_text(owner):
    for declared in options_of(owner).values():
        assert 0 < len(declared.help) <= 50
        assert not declared.help.endswith(".")
        assert not declared.details or declared.details.endswith(".")


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (FLAG, "yes", True),
        (FLAG, "no", False),
        (SECONDS, "1.5", 1.5),
        (SECONDS, "none", None),
        (DEPTH, "7", 7),
        (CARRIERS, "8", 8),
        (FILE, "a b", "a b"),
        (choice("a", "b"), "b", "b"),
    ],
)
def test_a_value_is_written_as_it_is_read(kind, text, value):
    assert kind.parse(text) == value
    assert written(value) == text
    kind.check("x", value)


@pytest.mark.parametrize(
    ("kind", "text"),
    [(FLAG, "true"), (SECONDS, "0"), (SECONDS, "-1"), (DEPTH, "10"), (CARRIERS, "two"), (choice("a", "b"), "c")],
)
def test_what_cannot_be_read_says_what_is_allowed(kind, text):
    with pytest.raises(ValueError, match="allowed"):
        kind.parse(text)


@pytest.mark.parametrize(
    ("kind", "value", "error"),
    [
        (FLAG, 1, TypeError),
        (SECONDS, True, TypeError),
        (SECONDS, float("inf"), ValueError),
        (DEPTH, 8, ValueError),
        (CARRIERS, 0, ValueError),
        (CARRIERS, 9, ValueError),
        (CARRIERS, True, TypeError),
        (SECRET, 7, TypeError),
        (SECRET, "", ValueError),
        (VARIABLE, "A-B", ValueError),
        (choice("a", "b"), "c", ValueError),
    ],
)
def test_what_is_wrong_names_the_option(kind, value, error):
    with pytest.raises(error, match="^x: "):
        kind.check("x", value)


def test_variables_with_secrets_are_remembered():
    check_variable("x", "OF_TEST_OPTIONS")
    assert "OF_TEST_OPTIONS" in secret_variables()


def test_secrets_of_what_leads_to_an_address_are_found():
    server = SSHServer("h", password="x", passphrase=lambda: "y")
    router = I2PRouter(user="me", password="x")
    for value in (server, SSHListen(server), router, I2PTarget("a.i2p", None, router), I2PListen(router)):
        assert inline_secrets(value) == ("password",)
    assert inline_secrets(TCPAddress("h", 1)) == inline_secrets(None) == ()


def test_an_option_is_set_once():
    server = SSHServer("h", keepalive=5.0)
    assert set_options(server, keyfile="f") == SSHServer("h", keyfile="f", keepalive=5.0)
    for name, value, said in (("keepalive", 6.0, "keepalive= is written twice"), ("keyfile", "", "keyfile= is empty")):
        with pytest.raises(AddressError, match=said):
            set_options(server, **{name: value})


@pytest.mark.parametrize("given", [{"carriers": 2}, {"renew_after": 60}])
@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda given: SSHListen(SSHServer("h", **given)), "^{}: this is for hops only; "),
        (lambda given: I2PListen(I2PRouter(**given)), "^{}: this is for hops only; "),
        (lambda given: I2PRouter(keys="k", **given), "^{}: a router has one session of the same keys; "),
    ],
)
def test_several_carriers_and_renewals_are_for_hops_whose_sessions_differ(make, text, given):
    with pytest.raises(ValueError, match=text.format(*given)):
        make(given)


def test_a_time_may_have_a_unit():
    assert [SECONDS.parse(text) for text in ("500ms", "90s", "10m", "1.5h", "2d")] == [0.5, 90, 600, 5400, 172800]
