"""``relay.transports.proxies.dialer``: streams through SOCKS5 and HTTP proxies, real ones and scripted ones."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from types import SimpleNamespace

import pytest
from helpers import (
    WAIT,
    Relayed,
    Thread,
    black_hole,
    ended,
    ending,
    exchange,
    makes,
    receive_all,
    receive_exactly,
    refusing,
    send_and_end,
    wait_until,
)
from proxy_world import (
    ASKED,
    CONNECT,
    CONNECTED,
    FORBIDDEN,
    GRANTED,
    HELLO,
    HELLO_LOGIN,
    HTTP,
    HTTP_LOGIN,
    PASSWORD,
    PLACE,
    SOCKS,
    SOCKS_LOGIN,
    USER,
    WELCOME,
    Begun,
    Way,
    dante,
    hear,
    members,
    microsocks,
    tinyproxy,
)

import relay
from relay.addresses.hops import Proxy
from relay.addresses.ssh import SSHServer
from relay.addresses.tor import TorProxy
from relay.addresses.values import TCPAddress
from relay.errors import AddressError, AuthenticationError, CarrierError, ConnectError, HostKeyError
from relay.eventloop.background import IOThread
from relay.eventloop.sockets import reset
from relay.streams.trace import SILENT
from relay.testing import check_factory
from relay.transports.proxies.dialer import Proxied, ProxyNetwork

# -- real proxies ------------------------------------------------------------------------------------------------------

WISH = ("me", "secret")  # tinyproxy knows no other letters

KINDS = {
    "microsocks": microsocks,
    "microsocks with a login": lambda folder: microsocks(folder, (USER, PASSWORD)),
    "dante": dante,
    "tinyproxy": tinyproxy,
    "tinyproxy with a login": lambda folder: tinyproxy(folder, WISH),
}
WITH_LOGIN = [name for name in KINDS if "login" in name]


@pytest.fixture(scope="module")
def proxies(tmp_path_factory, spawner_thread):
    """The real proxies by their names."""
    with contextlib.ExitStack() as stack:  # one that is not installed ends those that have been started
        made = {}
        for name, make in KINDS.items():
            made[name] = make(tmp_path_factory.mktemp("proxy")).start()
            stack.callback(made[name].stop)
        yield made


@pytest.fixture(params=KINDS)
def real(proxies, request):
    """Each of the real proxies."""
    return proxies[request.param]


def made_by(factory, seconds=WAIT):
    """A stream, whose socket has a time-out."""
    stream = factory(deadline=time.monotonic() + seconds)
    stream.socket.settimeout(WAIT)
    return stream


def failure_of(factory):
    """Return why there is no stream."""
    with pytest.raises(relay.RelayError) as failed:
        factory(deadline=time.monotonic() + WAIT)
    return failed.value


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_stream(real, echo_server, host):
    place = (host, echo_server.address[1])
    factory = real.to(place)
    factory.ready(WAIT)
    with made_by(factory) as stream:
        assert stream.target == f"{host}:{place[1]}" and stream.half_close
        assert [number for number, _ in stream.path.steps] == [1, 2]
        stream.socket.sendall(b"ping")
        assert receive_exactly(stream.socket, 4) == b"ping"


def test_ipv6(real):
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as listening:
        listening.settimeout(WAIT)
        with made_by(real.to(listening.getsockname())) as stream, listening.accept()[0] as far:
            far.settimeout(WAIT)
            exchange(stream.socket, far)


def test_the_target_speaks_first(real, serve):
    """Its first bytes may come together with the proxy's answer."""
    server = serve(lambda connection: send_and_end(connection, b"welcome" * 1000))
    for _ in range(20):
        with made_by(real.to(server.address)) as stream:
            assert receive_all(stream.socket) == b"welcome" * 1000


def test_conformance(proxies):
    """Dante keeps half-close; the others end both directions with one, which no client of theirs can mend."""
    with socket.create_server(("127.0.0.1", 0), backlog=512) as listening:
        check_factory(proxies["dante"].to(listening.getsockname()), listening)


def test_a_refusal(real):
    with refusing() as address:
        error = failure_of(real.to(address))
    place = "{}:{}".format(*address)
    if real.scheme == "socks5":
        assert error.reason == "refused"
        assert (
            str(error)
            == f"{place}: {real.hop()} says that it refused the connection; check that the service is running"
        )
    else:
        assert str(error) == f"{place}: {real.hop()} says that it cannot be reached (500 Unable to connect)"


def test_a_name_that_nobody_knows(real):
    error = failure_of(real.to(("nowhere.invalid", 80)))
    assert isinstance(error, ConnectError) and error.reason == "unreachable"
    assert "nowhere.invalid:80" in str(error) and str(real.hop()) in str(error)


def test_what_the_proxy_forbids(proxies):
    error = failure_of(proxies["dante"].to((FORBIDDEN, 80)))
    assert error.reason == "denied"
    assert str(error).startswith(f"{FORBIDDEN}:80: {proxies['dante'].hop()} does not allow it")


@pytest.mark.parametrize("name", WITH_LOGIN)
def test_a_wrong_password(proxies, name):
    factory = proxies[name].to(("127.0.0.1", 9), user="me", password="wrong")
    error = failure_of(factory)
    assert isinstance(error, AuthenticationError)
    assert str(error).startswith(f"{proxies[name].hop(user='me', password='x')}: it does not accept the user and")
    if proxies[name].scheme == "socks5":
        with pytest.raises(AuthenticationError):
            factory.ready(WAIT)


@pytest.mark.parametrize("name", WITH_LOGIN)
def test_no_password(proxies, name):
    error = failure_of(proxies[name].to(("127.0.0.1", 9), user=None))
    assert isinstance(error, AuthenticationError)
    assert str(error).startswith(f"{proxies[name].address}: it requires a user and a password; set user@")


def test_a_password_that_nobody_asked_for(proxies, echo_server):
    for name in ("microsocks", "dante", "tinyproxy"):
        made_by(proxies[name].to(echo_server.address, user="me", password="x")).close()


def test_the_other_kind_of_proxy(proxies):
    for name, scheme in (("microsocks", "http"), ("dante", "http"), ("tinyproxy", "socks5")):
        port = proxies[name].port
        hop = Proxy(scheme, "127.0.0.1", port)
        factory = Proxied(relay.tcp("127.0.0.1", port), hop, PLACE, ())
        with pytest.raises(ConnectError) as failed:
            factory(deadline=time.monotonic() + 0.5)
        assert str(failed.value).startswith(f"{hop}: ")
        assert any(
            word in str(failed.value) for word in ("may be a SOCKS5", "closed the", "check that it speaks SOCKS5")
        )


# -- proxies that the test plays ---------------------------------------------------------------------------------------


@pytest.fixture
def way():
    """Makes ways to a proxy that the test plays."""
    yield from makes(Way, lambda one: one.clean_up())


def socks(way, proxy=SOCKS, before=()):
    return Proxied(way, proxy, PLACE, before)


STEPS = {
    "SOCKS5 hello": (SOCKS, [(HELLO, b"")]),
    "SOCKS5 login": (SOCKS_LOGIN, [(HELLO_LOGIN, b"\x05\x02"), (b"\x01\x02me", b"")]),
    "SOCKS5 request": (SOCKS, [(HELLO, WELCOME), (ASKED, b"")]),
    "SOCKS5 half a reply": (SOCKS, [(HELLO, WELCOME), (ASKED, GRANTED[:6])]),
    "HTTP request": (HTTP, [(CONNECT, b"")]),
    "HTTP half a head": (HTTP, [(CONNECT, CONNECTED[:20])]),
}


@pytest.fixture(params=["tcp", "unix"])
def kind(request):
    return request.param


@pytest.fixture(params=STEPS)
def halfway(request, way, kind):
    """Makes attempts that have come so far: the way, the attempt and the proxy's end."""
    proxy, lines = STEPS[request.param]

    def make(seconds=WAIT):
        made = way(kind)
        begun = Begun(socks(made, proxy), seconds)
        far = made.end()
        try:
            for said, answer in lines:
                hear(far, said)
                far.sendall(answer)
        except (AssertionError, ConnectionError):
            assert begun.told, "it has failed before its time"
            assert seconds < WAIT
        return made, begun, far

    return make


def test_the_stream_is_the_very_same(way, kind):
    """No bridge, no copy: all that it knew before it knows still."""
    made = way(kind)
    known = {"half_close": False, "failure": lambda: None, "settle": 0.25}

    def prepare(stream):
        stream.answered = False
        for name, value in known.items():
            setattr(stream, name, value)

    made.prepare = prepare
    begun = Begun(socks(made))
    far = made.end()
    number = made.streams[0].fileno()
    far.sendall(WELCOME + GRANTED + b"early")
    stream = begun.stream()
    assert stream is made.streams[0] and stream.fileno() == number
    assert {name: getattr(stream, name) for name in known} == known
    assert stream.target == "db.internal:5432"
    assert stream.answered  # the proxy has
    assert receive_exactly(stream.socket, 5) == b"early"
    stream.close()
    assert made.over == ["closed"]


def test_what_comes_with_the_answer_is_the_clients(way, relayed):
    """The answer and the target's first bytes in one segment."""
    made = way()
    rig: Relayed = relayed(socks(made, HTTP))
    client = rig.client()
    far = made.end()
    hear(far, CONNECT)
    far.sendall(CONNECTED + b"220 welcome\r\n\r\n")
    assert receive_exactly(client, 15) == b"220 welcome\r\n\r\n"
    exchange(client, far)


def test_lasting_and_patient_are_for_the_way(way):
    made = way()
    for self_contained, wait_for_reconnect in ((True, False), (False, True)):
        begun = Begun(socks(made), self_contained=self_contained, wait_for_reconnect=wait_for_reconnect)
        assert made.asked[-1] == (begun.deadline, self_contained, wait_for_reconnect)
        begun.give_up()


def test_giving_up(halfway):
    made, begun, far = halfway()
    begun.give_up()
    begun.give_up()
    receive_all_or_reset(far)
    wait_until(lambda: members() == 0 and made.over == ["closed"])
    assert not begun.told


def receive_all_or_reset(far):
    try:
        receive_all(far)
    except ConnectionResetError:
        pass


def test_a_deadline(halfway):
    made, begun, _ = halfway(seconds=0.3)
    error = begun.error()
    assert isinstance(error, ConnectError) and error.reason == "connect_timeout"
    wait_until(lambda: members() == 0 and made.over == ["closed"])


@pytest.mark.parametrize("reset_it", [False, True])
def test_an_end_in_place_of_an_answer(halfway, reset_it):
    made, begun, far = halfway()
    reset(far) if reset_it else far.close()
    error = begun.error()
    assert type(error) is ConnectError and error.reason == "unreachable"
    assert str(error).split(": ")[0] in ("socks5://proxy:1080", "socks5://me@proxy:1080", "http://proxy:3128")
    wait_until(lambda: members() == 0 and made.over == ["closed"])


def test_whose_fault_silence_is(way):
    for proxy, said, text in (
        (SOCKS, b"", "socks5://proxy:1080: no answer in time; check that it speaks SOCKS5"),
        (SOCKS, WELCOME, "db.internal:5432: socks5://proxy:1080 has not reached it in time"),
        (HTTP, b"", "db.internal:5432: http://proxy:3128 has not answered in time"),
    ):
        made = way()
        begun = Begun(socks(made, proxy), 0.2)
        made.end().sendall(said)
        assert str(begun.error()) == text


def test_giving_up_before_there_is_a_way(way):
    made = way()
    made.silent = True
    begun = Begun(socks(made))
    begun.give_up()
    assert made.calls == ["given up"] and not begun.told


def test_no_way_in_time():
    with black_hole() as hole:
        port = hole.getsockname()[1]
        hop = Proxy("socks5", "127.0.0.1", port)
        error = Begun(Proxied(relay.tcp("127.0.0.1", port), hop, PLACE, ()), 0.3).error()
    assert error.reason == "connect_timeout" and str(error).startswith(f"{hop}: 127.0.0.1:{port}: no answer in time")


BASTION = SSHServer("bastion")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ConnectError("proxy:1080: refused", reason="refused"), "socks5://proxy:1080: proxy:1080: refused"),
        (ConnectError("ssh://bastion: refused", reason="refused"), "ssh://bastion: refused"),
        (HostKeyError("ssh://bastion: changed"), "ssh://bastion: changed"),
        (CarrierError("ssh://bastion: lost"), "ssh://bastion: lost"),
    ],
)
def test_an_error_on_the_way(way, error, text):
    factory = socks(way("tcp", error), before=(BASTION,))
    outcome = Begun(factory).error()
    assert type(outcome) is type(error) and str(outcome) == text and outcome.reason == error.reason
    with pytest.raises(type(error)) as failed:
        factory.ready(WAIT)
    assert str(failed.value) == text


@pytest.mark.parametrize(
    ("failure", "text"),
    [
        (CarrierError("ssh://bastion: lost"), "ssh://bastion: lost"),
        (ConnectError("proxy:1080: refused", reason="refused"), "socks5://proxy:1080: proxy:1080: refused"),
        (ConnectError("ssh://bastion: denied", reason="denied"), "ssh://bastion: denied"),
        (RuntimeError("why not"), "socks5://proxy:1080: the connection to the proxy was lost (why not)"),
    ],
)
def test_why_the_stream_to_the_proxy_has_ended(way, failure, text):
    """It may know: its carrier was lost, or no program was there after all."""
    made = way("unix")
    made.prepare = lambda stream: setattr(stream, "failure", lambda: failure)
    begun = Begun(socks(made, before=(BASTION,)))
    made.end().close()
    assert str(begun.error()) == text


def test_the_proxys_error_ends_its_own_connection(way, relayed):
    made = way()
    rig: Relayed = relayed(socks(made))
    client = rig.client()
    far = made.end()
    far.sendall(WELCOME + b"\x05\x05")
    assert ending(client) == "reset"
    assert ended(rig.tunnel) == ["refused"]
    rig.client()
    made.end().sendall(WELCOME + b"\x05\x02")
    assert ended(rig.tunnel, 2) == ["refused", "denied"]


def test_two_hundred_at_once_need_one_thread(way):
    made = way("unix")
    before = threading.active_count()
    attempts = [Begun(socks(made, HTTP if number % 2 else SOCKS)) for number in range(200)]
    ends = [made.end() for _ in attempts]
    assert threading.active_count() == before + 1
    for number, far in enumerate(ends):
        far.sendall(CONNECTED if number % 2 else WELCOME + GRANTED)
    for attempt in attempts:
        attempt.stream().close()


# -- trying it beforehand ----------------------------------------------------------------------------------------------


def test_ready_logs_in_and_asks_for_nothing(way):
    made = way()
    trying = Thread(socks(made, SOCKS_LOGIN).ready, WAIT)
    far = made.end()
    far.sendall(b"\x05\x02\x01\x00")
    trying.result()
    secret = PASSWORD.encode()
    assert receive_all(far) == HELLO_LOGIN + b"\x01\x02me" + bytes([len(secret)]) + secret
    assert made.calls == [("ready", WAIT), "given up"] or made.calls == [("ready", WAIT)]
    assert made.asked[0][1:] == (False, False)
    wait_until(lambda: made.over == ["closed"])


def test_ready_connects_to_an_http_proxy(way):
    made = way()
    socks(made, HTTP).ready(None)
    assert receive_all(made.end()) == b""


def test_ready_knows_a_proxy_that_does_not_answer(way):
    made = way()
    with pytest.raises(ConnectError, match="socks5://proxy:1080: no answer in time") as failed:
        socks(made).ready(0.2)
    assert failed.value.reason == "connect_timeout"


@pytest.mark.parametrize(("timeout", "error"), [(0, ValueError), (-1.0, ValueError), ("1", TypeError)])
def test_a_time_that_is_none(way, timeout, error):
    with pytest.raises(error, match="timeout"):
        socks(way()).ready(timeout)


# -- passwords ---------------------------------------------------------------------------------------------------------


def shown_password(factory, made):
    """Return the password that a proxy gets."""
    begun = Begun(factory)
    far = made.end()
    hear(far, HELLO_LOGIN)
    far.sendall(b"\x05\x02")
    length = receive_exactly(far, 5)[-1]
    secret = receive_exactly(far, length)
    begun.give_up()
    return secret


def test_where_a_password_comes_from(way, tmp_path, monkeypatch):
    file = tmp_path / "password"
    file.write_bytes("in a file: ü".encode() + b"\xff\n")
    file.chmod(0o600)
    monkeypatch.setenv("PROXY_PASSWORD", "in the environment")
    asked = []

    def ask(question):
        asked.append((question, threading.current_thread()))
        return "from a callable"

    for source, secret in (
        ({"password": "as text: ü"}, "as text: ü".encode()),
        ({"password": ask}, b"from a callable"),
        ({"password": lambda: "without a question"}, b"without a question"),
        ({"password_file": str(file)}, "in a file: ü".encode() + b"\xff"),
        ({"password_env": "PROXY_PASSWORD"}, b"in the environment"),
    ):
        made = way()
        assert shown_password(socks(made, Proxy("socks5", "proxy", 1080, "me", **source)), made) == secret
    question, thread = asked[0]
    assert question == "me's password of proxy:1080: "
    assert thread.name.startswith("relay password")  # and no thread that waits for anything else


def test_a_password_is_read_for_each_stream(way):
    passwords = iter(("one", "two"))
    made = way()
    factory = socks(made, Proxy("socks5", "proxy", 1080, "me", password=lambda: next(passwords)))
    assert [shown_password(factory, made) for _ in range(2)] == [b"one", b"two"]


def test_a_password_that_cannot_be_had(way, tmp_path, monkeypatch):
    monkeypatch.delenv("PROXY_PASSWORD", raising=False)

    def fails():
        raise RuntimeError(PASSWORD)

    for source, words in (
        ({"password": fails}, "the callable given as password raised RuntimeError"),
        ({"password": lambda: 3}, "the callable given as password returned int, not text"),
        ({"password": "\ud800"}, "the password is no text that can be sent (UTF-8)"),
        ({"password_file": str(tmp_path / "none")}, "No such file or directory"),
        ({"password_env": "PROXY_PASSWORD"}, "the environment variable 'PROXY_PASSWORD' is not set"),
    ):
        made = way()
        factory = socks(made, Proxy("socks5", "proxy", 1080, "me", **source))
        error = Begun(factory).error()
        assert isinstance(error, AuthenticationError)
        assert str(error).startswith("socks5://me@proxy:1080: ") and words in str(error)
        with pytest.raises(AuthenticationError):
            factory.ready(WAIT)
        assert made.asked == []  # nothing was opened


def test_giving_up_while_a_password_is_awaited(way):
    asked, go = threading.Event(), threading.Event()

    def ask():
        asked.set()
        go.wait(WAIT)
        return "late"

    made = way()
    begun = Begun(socks(made, Proxy("socks5", "proxy", 1080, "me", password=ask)))
    assert asked.wait(WAIT)
    begun.give_up()
    go.set()
    wait_until(lambda: not any("relay password" in thread.name for thread in threading.enumerate()))
    assert made.asked == [] and not begun.told


def test_a_slow_password_holds_up_no_other_stream(way):
    asked, go = threading.Event(), threading.Event()

    def ask():
        asked.set()
        go.wait(WAIT)
        return "late"

    slow, quick = way(), way()
    waiting = Begun(socks(slow, Proxy("socks5", "proxy", 1080, "me", password=ask)))
    assert asked.wait(WAIT)
    begun = Begun(socks(quick))
    quick.end().sendall(WELCOME + GRANTED)
    begun.stream()
    go.set()
    hear(slow.end(), HELLO_LOGIN)
    waiting.give_up()


def test_no_thread_for_a_password(way, monkeypatch):
    def start(self):
        raise RuntimeError("can't start new thread")

    made = way()
    monkeypatch.setattr(threading.Thread, "start", start)
    error = Begun(socks(made, Proxy("socks5", "proxy", 1080, "me", password=lambda: "x"))).error()
    assert str(error) == "socks5://me@proxy:1080: can't start new thread" and made.asked == []


def test_no_thread_for_a_negotiation(way, monkeypatch):
    def hold(member):
        raise OSError(11, "can't start new thread")

    made = way()
    monkeypatch.setattr(IOThread, "acquire", hold)
    assert "can't start" in str(Begun(socks(made)).outcome())
    assert made.over == ["closed"]


@pytest.mark.parametrize("proxy", [SOCKS_LOGIN, HTTP_LOGIN], ids=["SOCKS5", "HTTP"])
def test_secrets_stay_secret(way, proxy, caplog):
    caplog.set_level(0)
    made = way()
    factory = socks(made, proxy)
    begun = Begun(factory)
    made.end().sendall(b"\x05\x02\x01\x01" if proxy is SOCKS_LOGIN else b"HTTP/1.1 407 No\r\n\r\n")
    begun.error()
    assert PASSWORD not in repr(factory) + repr(proxy) + str(proxy) + caplog.text


# -- places ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "words"),
    [
        ("fe80::1%eth0", "[fe80::1%eth0]:80: a proxy does not know zones"),
        ("x" * 256, f"{'x' * 16}…: a proxy takes no name of more than 255 bytes; a name in .b32.i2p is shorter"),
        ("A" * 516 + ".i2p", f"{'A' * 16}…: a proxy takes no name of more than 255 bytes"),
        ("bücher.example", "bücher.example:80: proxies take only ASCII names"),
        ("a b", "a b:80: proxies take only ASCII names"),
        ("a\r\nHost", "proxies take only ASCII names"),
        ("a:b", "[a:b]:80: proxies take only ASCII names"),
    ],
)
@pytest.mark.parametrize("proxy", [SOCKS, HTTP], ids=["SOCKS5", "HTTP"])
def test_a_place_that_no_proxy_can_be_told(way, proxy, host, words):
    made = way()
    with pytest.raises(AddressError) as failed:
        Proxied(made, proxy, TCPAddress(host, 80), ())
    assert words in str(failed.value) and str(failed.value).isprintable()
    assert made.asked == []


# -- tor ---------------------------------------------------------------------------------------------------------------


class OverWay(SimpleNamespace):
    """The network below a hop, with one way for all places."""

    def to(self, place):
        return self.way


def test_streams_over_tor_end_whole_and_share_the_login_of_their_network(way):
    hop = TorProxy()
    logins, way = [], way()
    for over in [ProxyNetwork(hop, OverWay(way=way, route=(), trace=SILENT)) for _ in range(2)]:
        for name in ("a.onion", "b.onion"):
            begun = Begun(over.to(TCPAddress(name, 80)))
            far = way.end()
            hear(far, b"\x05\x01\x02")
            far.sendall(b"\x05\x02")
            logins.append(receive_exactly(far, 3 + 5 + 32))
            far.sendall(b"\x01\x00")
            hear(far, b"\x05\x01\x00\x03\x07" + name.encode() + b"\x00\x50")
            far.sendall(GRANTED)
            with begun.stream() as stream:
                assert not stream.half_close and stream.target == f"{name}:80"
    assert logins[0] == logins[1] != logins[2] == logins[3]
    assert all(login.startswith(b"\x01\x05relay\x20") for login in logins)
