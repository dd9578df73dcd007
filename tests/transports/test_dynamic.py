"""``relay.dynamic``: the route to the address that a client requests, and the carriers for it."""

import contextlib
import socket
import time

import pytest
from helpers import WAIT, echo, receive_exactly, refusing, wait_until

import relay
from relay.addresses.destinations import b32_of
from relay.addresses.i2p import I2PRouter
from relay.addresses.i2p_parser import parse_sam
from relay.addresses.ssh import SSHServer
from relay.addresses.values import TCPAddress, UnixAddress
from relay.streams.connect import SocketDialer
from relay.streams.stream import Request
from relay.testing import SAMBridge
from relay.transports import dynamic as module
from relay.transports.dynamic import dynamic, parse_rule
from relay.transports.proxies.sni_server import NamedRequest

pytestmark = pytest.mark.usefixtures("spawner_thread")


def asked(host, port=80):
    return Request(host, port, b"", lambda reason: b"")


def soon():
    return time.monotonic() + WAIT


def prove(stream):
    """Prove that a stream leads to a server that sends back what it gets."""
    with stream:
        stream.socket.setblocking(True)
        stream.socket.settimeout(WAIT)
        stream.socket.sendall(b"hello")
        assert receive_exactly(stream.socket, 5) == b"hello"


# -- rules ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "host", "port", "matches"),
    [
        ("*", "anything", 80, True),
        ("*", "::1", 80, True),
        ("*:443", "anything", 80, False),
        ("*:443", "anything", 443, True),
        ("*.corp.example", "db.corp.example", 80, True),
        ("*.corp.example", "a.b.corp.example", 80, True),
        ("*.CORP.example", "DB.corp.EXAMPLE", 80, True),
        ("*.corp.example", "db.corp.example.", 80, True),
        ("*.corp.example.", "db.corp.example", 80, True),
        ("*.corp.example", "corp.example", 80, False),
        ("*.corp.example", "db.corp.example.org", 80, False),
        ("db?.example", "db1.example", 80, True),
        ("db?.example", "db12.example", 80, False),
        ("a.example", "axexample", 80, False),
        ("10.0.0.0/8", "10.1.2.3", 80, True),
        ("10.0.0.0/8", "11.1.2.3", 80, False),
        ("10.0.0.0/8", "::ffff:10.1.2.3", 80, True),
        ("10.0.0.0/8:22", "10.1.2.3", 22, True),
        ("10.0.0.0/8:22", "10.1.2.3", 23, False),
        ("10.0.0.0/8", "10.example", 80, False),
        ("10.1.2.3", "10.1.2.3", 80, True),
        ("10.*", "10.1.2.3", 80, True),
        ("[fd00::]/8", "fd12::1", 80, True),
        ("[fd00::]/8", "fe80::1", 80, False),
        ("[fd00::]/8:22", "fd12::1", 22, True),
        ("[::1]", "0:0:0:0:0:0:0:1", 80, True),
        ("[::1]:80", "::1", 81, False),
        ("*.i2p", "site.i2p", 80, True),
    ],
)
def test_what_a_pattern_is_about(pattern, host, port, matches):
    factory = dynamic(rules=[f"{pattern}=direct", "*=refuse"])
    with contextlib.closing(factory):
        if matches:
            factory.select(asked(host, port))
        else:
            with pytest.raises(relay.ConnectError, match="the rules refuse it") as raised:
                factory.select(asked(host, port))
            assert raised.value.reason == "denied"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "no route is given"),
        ("a", "no route is given"),
        ("a=", "no route is given"),
        ("=direct", "the pattern cannot be read"),
        ("a b=direct", "the pattern cannot be read"),
        ("fd00::/8=direct", "the pattern cannot be read"),
        ("[fd00::=direct", "the pattern cannot be read"),
        ("[name]=direct", "the pattern cannot be read"),
        ("a:0=direct", "port 0"),
        ("a:65536=direct", "port 65536"),
        ("10.0.0.0/33=direct", "'10.0.0.0/33' does not appear"),
        ("10.0.0.1/8=direct", "has host bits set"),
        ("[fd00::1]/8=direct", "has host bits set"),
        ("name/8=direct", "is no address"),
        ("*=somewhere", "has no scheme"),
        ("*=tls://a:1", "is a target, not a hop"),
        ("*=ssh://a,ssh://", "the host is empty"),
        ("*=ssh://me:secret@", "the host is empty"),
        ("*=tcp://a", "no port"),
        ("*=tcp://a:1,ssh://b", "port"),
        ("*=tcp://a:1,tcp://b:1", "tcp:// is a target, not a hop"),
        ("*=unix://a", "the path is not absolute"),
        ("*=socks5://a:1,unix:///a", "leads to hosts and ports only"),
        ("*=i2p:,tcp://a:1", "what follows i2p: has a name in .i2p"),
        ("*=ssh://a,tcp://b:1?mptcp=yes", "leave mptcp out"),
    ],
)
def test_a_rule_that_cannot_be_is_named(text, problem):
    with pytest.raises(relay.AddressError, match="^rule ") as raised:
        dynamic(rules=[text])
    assert problem in str(raised.value)
    assert "\n" not in str(raised.value)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("rules", ["*=direct", 7, [7]])
def test_arguments_of_a_wrong_kind(rules):
    with pytest.raises(TypeError, match="^rule"):
        dynamic(rules=rules)


def test_a_way_is_hops_with_commas_between():
    assert parse_rule("*=direct").route == ()
    assert parse_rule("*=refuse").route is None
    assert parse_rule("*=ssh://a").route == (SSHServer("a"),)
    route = parse_rule("*=ssh://a?known_hosts=x,y,ssh://b,i2p:?sam=h:1").route
    assert route == (SSHServer("a", known_hosts="x,y"), SSHServer("b"), I2PRouter(sam=parse_sam("h:1")))


def test_a_way_may_end_at_a_target():
    assert parse_rule("*=tcp://a:1").target == TCPAddress("a", 1)
    rule = parse_rule("*=ssh://a?known_hosts=x,y,ssh://b,unix:///run/c")
    assert rule.route == (SSHServer("a", known_hosts="x,y"), SSHServer("b"))
    assert rule.target == UnixAddress("/run/c")
    named = parse_rule("*=b,a,TCP://c:1", {"a": SSHServer("a"), "b": SSHServer("b")})
    assert (named.route, named.target) == ((SSHServer("b"), SSHServer("a")), TCPAddress("c", 1))
    assert parse_rule("*=ssh://a").target is None
    behind = parse_rule("*=ssh://a,tor:,tcp://b.onion:1")
    assert ([type(hop).__name__ for hop in behind.route], behind.target) == (
        ["SSHServer", "TorProxy"],
        TCPAddress("b.onion", 1),
    )


def test_a_target_stands_for_what_the_client_asks_for():
    with contextlib.closing(dynamic(rules=["a=tcp://b:1", "c=unix:///run/c", "*=ssh://h,tcp://d:2"])) as factory:
        assert factory.select(asked("a")).target == "b:1"
        assert factory.select(asked("c")).target == "unix:///run/c"
        over = factory.select(asked("e"))
        assert (over.target, over.route) == ("d:2", (SSHServer("h"),))
        with pytest.raises(relay.ConnectError, match="invalid target"):  # a rule makes no name right
            factory.select(asked("e..e"))


def test_a_target_of_i2p_goes_over_its_router():
    rules = ["a=tcp://site.i2p:80", f"b=i2p:?sam=127.0.0.3:7656,tcp://{'a' * 52}.b32.i2p:80"]
    with contextlib.closing(dynamic(rules=rules, sam="127.0.0.2:7656")) as factory:
        assert factory.select(asked("a")).route == (I2PRouter(sam=parse_sam("127.0.0.2:7656")),)
        assert factory.select(asked("b")).route == (I2PRouter(sam=parse_sam("127.0.0.3:7656")),)


HERE = ("0.0.0.0", 443)


@pytest.mark.parametrize(
    ("rules", "via", "name"),
    [
        ([], [], "a"),
        ([], ["ssh://h"], "a"),
        (["b=direct"], ["ssh://h"], "a"),
        (["b=direct"], [], "site.i2p"),
        (["a=refuse", "*=direct"], [], "a"),
        (["*=direct"], [], ""),
        (["a=tcp://b:1"], [], ""),
    ],
)
def test_a_server_that_is_only_named_needs_a_rule(rules, via, name):
    with contextlib.closing(dynamic(via, rules)) as factory:
        with pytest.raises(relay.ConnectError, match="the rules refuse it") as raised:
            factory.select(NamedRequest(name, b"", HERE))
        assert raised.value.reason == "denied"


def test_a_server_that_is_only_named_gets_that_of_its_rule():
    with contextlib.closing(dynamic(rules=["a=tcp://b:1", "*.c=direct", "*=tcp://d:2"])) as factory:
        for name, target in (("a", "b:1"), ("x.c", "x.c:443"), ("e", "d:2"), ("", "d:2")):
            assert factory.select(NamedRequest(name, b"", HERE)).target == target


@pytest.mark.parametrize(
    ("here", "addresses", "left"),
    [
        (("0.0.0.0", 443), ["127.0.0.1", "127.1.2.3"], []),
        (("0.0.0.0", 443), ["127.0.0.1", "192.0.2.1"], ["192.0.2.1"]),
        (("127.0.0.1", 443), ["127.0.0.1", "127.0.0.2"], ["127.0.0.2"]),
        (("::", 443), ["::1", "127.0.0.1", "::ffff:127.0.0.1"], []),
        (("127.0.0.1", 8443), ["127.0.0.1"], ["127.0.0.1"]),
    ],
)
def test_a_name_that_is_the_listener_itself_is_refused(resolves, here, addresses, left):
    resolves(*addresses)
    with contextlib.closing(dynamic(rules=["*=direct"])) as factory:
        direct = factory.select(NamedRequest("name.invalid", b"", here))
        if left:
            assert [endpoint.address[0] for endpoint in direct.resolve()] == left
        else:
            with pytest.raises(relay.ConnectError, match="^name.invalid:443: it is the listener itself; give"):
                direct.resolve()


def test_the_first_rule_that_matches_wins():
    factory = dynamic(rules=["a.example=direct", "*.example=refuse", "*=direct"])
    assert factory.select(asked("a.example")).target == "a.example:80"
    assert factory.select(asked("b.test")).target == "b.test:80"
    with pytest.raises(relay.ConnectError):
        factory.select(asked("b.example"))


def test_what_no_rule_is_about():
    assert isinstance(dynamic().select(asked("a")), SocketDialer)
    with pytest.raises(relay.ConnectError, match="refuse"):
        dynamic(rules=["b=direct"]).select(asked("a"))
    over = dynamic(["ssh://nowhere.invalid"], ["b=direct"])
    assert over.select(asked("a")).route == (SSHServer("nowhere.invalid"),)
    assert isinstance(over.select(asked("b")), SocketDialer)
    over.close()
    for via in ([], ["ssh://nowhere.invalid"]):
        elsewhere = dynamic(via, ["b=direct"], sam="127.0.0.2:7656")
        assert elsewhere.select(asked("site.i2p")).route == (I2PRouter(sam=parse_sam("127.0.0.2:7656")),)
        elsewhere.close()


# -- hosts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    [
        *("0.0.0.0", "::", "::ffff:0.0.0.0", "224.0.0.1", "127.1", "0x7f.0.0.1", "2130706433", "1.2.3"),
        *("-x", "a..b", ".", "a" * 64, "a:1", "x" * 40 + ".b32.i2p", "$(id)", "a b", "a%eth0"),
        *("exec:id", "unix:x", "tcp:x", "ssh:x", "tcp://x", "unix:///x", "exec:cat /etc/passwd;"),
    ],
)
def test_a_host_that_cannot_be_one_goes_no_further(host):
    with pytest.raises(relay.ConnectError) as raised:
        dynamic().select(asked(host))
    assert raised.value.reason == "denied"
    assert "\n" not in str(raised.value)


def test_a_destination_is_wanted():
    with pytest.raises(relay.ConnectError, match="names no target") as raised:
        dynamic()()
    assert raised.value.reason == "denied"


# -- ways -------------------------------------------------------------------------------------------------------------


def test_directly(echo_server):
    factory = dynamic()
    prove(factory(destination=asked(*echo_server.address), deadline=soon()))
    prove(factory(destination=asked("localhost", echo_server.address[1]), deadline=soon()))
    with refusing() as address, pytest.raises(relay.ConnectError) as raised:
        factory(destination=asked(*address), deadline=soon())
    assert raised.value.reason == "refused"


def test_names_are_looked_up_at_the_far_end(ssh_server, echo_server):
    with contextlib.closing(dynamic([ssh_server.url])) as factory:
        prove(factory(destination=asked("localhost", echo_server.address[1]), deadline=soon()))
    assert ssh_server.opened == 1


def test_one_login_for_all_places_and_it_stays(ssh_server, serve, monkeypatch):
    monkeypatch.setattr(module, "_REMEMBERED", 2)
    factory = dynamic(rules=[f"127.0.0.1={ssh_server.url}", "direct.*=direct"])
    for _ in range(3):
        prove(factory(destination=asked(*serve(echo).address), deadline=soon()))
        for name in ("a.test", "b.test"):  # more places than are remembered
            with pytest.raises(relay.ConnectError, match="the rules refuse it"):
                factory.select(asked(name))
            factory.select(asked(f"direct.{name}"))
        assert all(isinstance(made, SocketDialer) for made in factory._made.values())
    assert ssh_server.logins == 1
    assert ssh_server.connections == 1
    factory.close()
    wait_until(lambda: ssh_server.connections == 0)


def test_it_can_be_used_again_after_a_close(ssh_server, echo_server):
    factory = dynamic([ssh_server.url])
    for _ in range(2):
        prove(factory(destination=asked(*echo_server.address), deadline=soon()))
        factory.close()
    factory.close()
    assert ssh_server.logins == 2


def test_ready_logs_in_and_tells_what_is_wrong(ssh_server, make_ssh_server):
    other = make_ssh_server()
    states = []
    with contextlib.closing(dynamic([ssh_server.url], [f"a={other.url}", "b=direct"])) as factory:
        factory.subscribe(lambda state, error: states.append(state.value))
        factory.ready(WAIT)
        assert (ssh_server.logins, other.logins) == (1, 1)
        assert factory.last_error is None
        wait_until(lambda: states.count("up") == 2)
    with refusing() as (host, port), contextlib.closing(dynamic([f"ssh://me@{host}:{port}"])) as nobody:
        with pytest.raises(relay.ConnectError, match="connection refused"):
            nobody.ready(WAIT)
        assert "connection refused" in nobody.last_error
        assert nobody.state == "backing off"


@pytest.mark.parametrize("order", [1, -1])
def test_ready_tries_every_way_whatever_comes_of_the_first(ssh_server, tmp_path, order):
    (tmp_path / "empty").touch()
    unknown = f"ssh://me@{TCPAddress(*ssh_server.address)}?config=/dev/null&known_hosts={tmp_path}/empty"
    with refusing() as (host, port):
        rules = [f"a=ssh://me@{host}:{port}?config=/dev/null", f"b={unknown}"]
        with contextlib.closing(dynamic(rules=rules[::order])) as factory:
            assert factory.state == "closed"
            with pytest.raises(relay.HostKeyError, match="not known"):
                factory.ready(WAIT)
            assert factory.state == "failed"


def test_an_i2p_name_goes_over_i2p(i2p_double, echo_server):
    with i2p_double.serve(echo_server.address[1]) as server:
        name = b32_of(server.dest)
        with contextlib.closing(dynamic(sam=i2p_double.client)) as factory:
            prove(factory(destination=asked(name), deadline=soon()))
            assert factory.select(asked(f"{name.upper()}.", 81)).target.endswith(f"{name}:81")
        rules = ["*.i2p=refuse"]
        with contextlib.closing(dynamic(rules=rules, sam=i2p_double.client)) as factory:
            with pytest.raises(relay.ConnectError, match="the rules refuse it"):
                factory(destination=asked(name), deadline=soon())
        rules = [f"*.i2p=i2p:?sam={i2p_double.client}", "*=refuse"]
        with contextlib.closing(dynamic(rules=rules)) as factory:
            prove(factory(destination=asked(name), deadline=soon()))


@pytest.mark.parametrize("via", [(), ["ssh://nowhere.invalid"]])
def test_an_i2p_name_is_never_looked_up_in_the_dns(monkeypatch, via):
    def look_up(host, *_, **__):
        raise AssertionError(f"{host} was looked up")

    with SAMBridge() as bridge, contextlib.closing(dynamic(via, sam=bridge.sam)) as factory:
        monkeypatch.setattr(socket, "getaddrinfo", look_up)
        with pytest.raises((relay.SAMError, relay.ConnectError)):
            factory(destination=asked("site.i2p"), deadline=time.monotonic() + 0.5)


@pytest.fixture
def resolves(monkeypatch):
    """Has names resolve to what the test says: ``resolves(address, …)``; returns the addresses of names."""
    look_up = socket.getaddrinfo

    def make(*addresses):
        def found(host, port, *args, **options):
            if host != "name.invalid":
                return look_up(host, port, *args, **options)
            return [one for address in addresses for one in look_up(address, port, *args, **options)]

        monkeypatch.setattr(socket, "getaddrinfo", found)

    return make


GUARD = ["127.0.0.0/8=refuse", "[::1]=refuse", "10.0.0.0/8:80=refuse", "*=direct"]


@pytest.mark.parametrize(
    ("rules", "addresses", "left"),
    [
        (GUARD, ["127.0.0.1"], []),
        (GUARD, ["::1", "127.1.2.3", "::ffff:127.0.0.1"], []),
        (GUARD, ["127.0.0.1", "192.0.2.1", "::1", "2001:db8::1"], ["192.0.2.1", "2001:db8::1"]),
        (GUARD, ["10.1.2.3"], []),
        (GUARD, ["0.0.0.0", "::", "224.0.0.1", "::ffff:0.0.0.0"], []),  # the first two are the loopback to Linux
        ([], ["0.0.0.0"], []),
        ([], ["10.1.2.3"], ["10.1.2.3"]),
        (["10.0.0.0/8:443=refuse", "*=direct"], ["10.1.2.3"], ["10.1.2.3"]),
        (["10.1.0.0/16=direct", "10.0.0.0/8=refuse", "*=direct"], ["10.1.2.3", "10.2.2.3"], ["10.1.2.3"]),
        (["*.invalid=direct", "10.0.0.0/8=refuse"], ["10.1.2.3"], ["10.1.2.3"]),  # the first that matches wins
        (["10.1.2.3=refuse", "*=direct"], ["10.1.2.3", "10.1.2.4"], ["10.1.2.4"]),
    ],
)
def test_networks_that_are_refused_are_refused_to_names(resolves, rules, addresses, left):
    resolves(*addresses)
    with contextlib.closing(dynamic(rules=rules)) as factory:
        direct = factory.select(asked("name.invalid", 80))
        if left:
            assert [endpoint.address[0] for endpoint in direct.resolve()] == left
            assert {endpoint.address[1] for endpoint in direct.resolve()} == {80}
        else:
            text = "^name.invalid:80: the rules refuse every address that it resolves to$"
            with pytest.raises(relay.ConnectError, match=text) as raised:
                direct.resolve()
            assert raised.value.reason == "denied"


def test_a_way_whose_hold_fails_is_held_by_the_next_client(monkeypatch):
    with contextlib.closing(dynamic(["exec:true"])) as factory:
        way = next(iter(factory._routes.values()))
        told = []

        def subscribe(watcher):
            told.append(watcher)
            if len(told) == 1:
                raise OSError("no thread")

        monkeypatch.setattr(way, "subscribe", subscribe)
        with pytest.raises(OSError, match="no thread"):
            factory.select(asked("a", 1))
        for port in (2, 3):
            factory.select(asked("a", port))
        assert len(told) == 2


def test_a_way_that_does_not_lead_there():
    with contextlib.closing(dynamic(rules=["*=i2p:"])) as factory:
        with pytest.raises(relay.ConnectError, match="its route does not lead there") as raised:
            factory.select(asked("example.com"))
        assert raised.value.reason == "denied"


def test_repr_tells_no_secret():
    factory = dynamic(["ssh://me:secret@a"], ["*.b=ssh://me:secret@c"])
    assert repr(factory) == "<relay factory to anywhere, 1 rules, 3 routes over hops>"
    assert "secret" not in repr(factory.rules)
    factory.close()
