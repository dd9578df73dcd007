"""``relay.daemon.preflight``: what is checked of a tunnel before it is opened, and what is not."""

import socket

import pytest

from relay.addresses.parse import parse_hops, parse_listen, parse_target
from relay.daemon import preflight
from relay.daemon.preflight import Preflight, Routes
from relay.errors import ConnectError, RelayError


class Factory:
    """A factory that notes that it was closed."""

    is_closed = False

    def close(self):
        self.is_closed = True


@pytest.fixture
def resolved(monkeypatch):
    """The names that were resolved; those that begin with ``no`` do not exist."""
    names = []

    def getaddrinfo(host, *_, **__):
        names.append(host)
        if host.startswith("no"):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return []

    monkeypatch.setattr(preflight.socket, "getaddrinfo", getaddrinfo)
    return names


def routes(listen=":0", target="there:1", via=(), before=()):
    return Routes(parse_listen(listen), parse_hops(before), [(parse_hops(via), parse_target(target))])


@pytest.mark.parametrize(
    ("listen", "address"),
    [
        (":0", "127.0.0.1:0"),
        ("socks5://:1080", "127.0.0.1:1080"),
        ("unix:///run/it.sock", "unix:///run/it.sock"),
        ("systemd:web", "systemd:web"),
    ],
)
def test_it_returns_the_address_to_listen_at(resolved, listen, address):
    assert Preflight().check(routes(listen), Factory) == address


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ({}, ["there", "127.0.0.1"]),
        ({"via": ["socks5://first:1", "http://second:2"]}, ["first", "127.0.0.1"]),
        ({"target": "unix:///run/it.sock"}, ["127.0.0.1"]),
        ({"target": "tls://there:1"}, ["there", "127.0.0.1"]),
        ({"target": "i2p://name.i2p"}, ["127.0.0.1", "127.0.0.1"]),
    ],
)
def test_only_names_that_this_machine_resolves_are_resolved(resolved, words, names):
    assert Preflight().check(routes(**words), Factory)
    assert resolved == names


def test_names_are_resolved_only_if_that_may_block(resolved):
    assert Preflight(names=False).check(routes(target="nowhere:1"), Factory) == "127.0.0.1:0"
    assert resolved == []


@pytest.mark.parametrize(
    ("words", "problem", "kind"),
    [
        ({"target": "nowhere:1"}, "nowhere: cannot resolve the host name", ConnectError),
        ({"via": ["socks5://nowhere:1"]}, "socks5://nowhere:1: nowhere: cannot resolve the host name", ConnectError),
        ({"target": "exec:no-such-program"}, "exec:no-such-program: program not found", RelayError),
        ({"via": ["exec:no-such-program %h"]}, "exec:no-such-program …: program not found", RelayError),
        ({"listen": "tls://:0?cert=/no/such.pem"}, "/no/such.pem", OSError),
        ({"listen": "socks5://me@:0?password_file=/no/such"}, "/no/such", OSError),
        ({"via": ["socks5://me@first:1?password_file=/no/such"]}, "/no/such", OSError),
    ],
)
def test_the_first_problem_is_raised_and_all_are_noted(resolved, words, problem, kind):
    with pytest.raises(kind, match=problem):
        Preflight().check(routes(**words), Factory)
    noted = []
    assert Preflight().check(routes(**words), Factory, lambda error, _: noted.append(error)) is None
    assert [str(error).startswith(problem) or problem in str(error) for error in noted] == [True]


def test_a_program_behind_a_hop_is_not_looked_for_here(resolved):
    assert Preflight().check(routes(target="exec:no-such-program", via=["ssh://me@first?config=/dev/null"]), Factory)


def test_what_several_tunnels_share_is_checked_and_noted_once(resolved):
    one, noted = Preflight(), []
    for _ in range(2):
        assert one.check(routes(target="nowhere:1"), Factory, lambda error, _: noted.append(error)) is None
    assert len(noted) == 1
    assert resolved == ["nowhere", "127.0.0.1"]
    with pytest.raises(ConnectError):  # and raised again for the next tunnel
        one.check(routes(target="nowhere:1"), Factory)


def test_the_factory_is_made_and_closed(resolved):
    factory = Factory()
    Preflight().check(routes(), lambda: factory)
    assert factory.is_closed


def test_a_factory_that_cannot_be_made_is_a_problem(resolved):
    def fail():
        raise ValueError("no certificate")

    noted = []
    assert Preflight().check(routes(), fail, lambda error, _: noted.append(error)) is None
    assert [str(error) for error in noted] == ["no certificate"]


def test_what_is_wrong_with_a_hop_is_noted_once_and_with_the_hop(resolved):
    """The factory, which needs the hop, fails in the same way."""

    def fail():
        raise RelayError("exec:no-such-program …: program not found; install it, or give its path")

    one, noted, needs = Preflight(), [], routes(via=["exec:no-such-program %h"])
    for _ in range(2):
        assert one.check(needs, fail, lambda error, hop: noted.append((str(error)[:20], hop))) is None
    assert noted == [("exec:no-such-program", needs.out[0][0][0])]


def test_what_a_proxy_leads_to_is_known_only_from_its_clients(resolved):
    assert Preflight().check(Routes(parse_listen("socks5://:0"), (), [((), None)]), Factory)
    assert resolved == ["127.0.0.1"]
