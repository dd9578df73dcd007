"""``relay.addresses.port``: programs that listen, as values."""

import pytest

import relay
from relay.addresses.hops import Command
from relay.addresses.parse import parse_hop, parse_hops, parse_target
from relay.addresses.port import PortProgram
from relay.addresses.redact import redact
from relay.addresses.values import TCPAddress

KUBECTL = "kubectl port-forward svc/db {port}:5432"


def test_the_place_is_filled_in():
    program = PortProgram("sh -c 'x {host}:{port} {port}' a{other}b %%")
    assert program.at("{host}", "127.0.0.1") == ["sh", "-c", "x 127.0.0.1:{host} {host}", "a{other}b", "%"]
    assert not program.has_path
    assert PortProgram("socat UNIX-LISTEN:{path},fork -").at("/a b", "h")[1] == "UNIX-LISTEN:/a b,fork"
    assert PortProgram("x {path}").has_path


def test_a_hop_gets_what_follows():
    program = PortProgram("ssh -N -L {port}:%h:%p bastion")
    assert program.is_hop
    made = program.to(TCPAddress("db", 5432))
    assert type(made) is PortProgram
    assert made.at("8080", "127.0.0.1") == ["ssh", "-N", "-L", "8080:db:5432", "bastion"]


def test_its_name_shows_no_word():
    assert str(PortProgram(f"/usr/bin/{KUBECTL}")) == "port:kubectl …"
    assert redact(f"port:{KUBECTL}") == "port:kubectl …"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "kubectl port-forward 8080",
            r"port: \{port\} or \{path\} is missing, or both are there; for example port:kub",
        ),
        ("x {port} {path}", "or both are there"),
        ("", "port: no command is given; for example port:kubectl"),
        ("x '{port}", "port: no closing quotation; words are quoted as in a shell"),
        ("x {port} %x", "port: %x is unknown; %h is the host"),
    ],
)
def test_what_it_cannot_be(text, said):
    with pytest.raises(ValueError, match=f"^{said}" if said.startswith("port") else said):
        PortProgram(text)


def test_as_a_target_and_as_a_hop():
    assert parse_target(f"port:{KUBECTL}") == parse_hop(f"PORT:{KUBECTL}") == PortProgram(KUBECTL)
    assert parse_target(f"exec:{KUBECTL}") == Command(KUBECTL) != PortProgram(KUBECTL)
    assert parse_target("port:8080") == TCPAddress("port", 8080)  # a host of that name
    assert parse_hops([f"port:{KUBECTL}", "ssh://db"])[0] == PortProgram(KUBECTL)
    with pytest.raises(relay.AddressError, match=r"^target 'port:kubectl …': \{port\} or \{path\} is missing"):
        parse_target("port:kubectl port-forward")
    with pytest.raises(relay.AddressError, match="%h and %p have no meaning in a target"):
        parse_target("port:ssh -L {port}:%h:%p bastion")


@pytest.mark.parametrize(
    ("via", "target", "said"),
    [
        (
            ["ssh://b"],
            f"port:{KUBECTL}",
            "port:kubectl …: it runs on this machine alone, where nothing is before it; the",
        ),
        (["i2p:", f"port:{KUBECTL}"], "db:1", "hop 2 of 2 .* it runs on this machine alone"),
        ([f"port:{KUBECTL}"], "unix:///x", "a Unix socket is on this machine"),
    ],
)
def test_where_it_cannot_be(via, target, said):
    with pytest.raises(relay.AddressError, match=said):
        relay.target(target, via)
