"""``relay.streams.connect``: direct connects that begin at once and report later."""

from __future__ import annotations

import errno
import os
import queue
import socket
import threading
import time

import pytest
from helpers import WAIT, Thread, black_hole, exchange, refusing, wait_until

import relay
from relay import ConnectError
from relay.eventloop.background import IOThread
from relay.eventloop.sockets import Endpoint
from relay.streams import connect
from relay.streams.cancellation import Cancellation
from relay.streams.connect import SocketDialer
from relay.streams.dialer import Dialer
from relay.streams.source import Source


def to(*addresses, literal=True, family=socket.AF_INET):
    """A factory for one of these addresses; what is no address is raised."""

    def resolve():
        for address in addresses:
            if isinstance(address, Exception):
                raise address
        return [Endpoint(family, address) for address in addresses]

    return SocketDialer("the target", resolve, literal=literal)


def dial(factory, seconds=WAIT):
    """Begin; the outcome comes out of the queue."""
    told = queue.SimpleQueue()
    deadline = None if seconds is None else time.monotonic() + seconds
    return told, factory.dial(deadline, told.put)


def members():
    """Return the number of clients of the I/O thread."""
    io_thread = IOThread._current
    return len(io_thread._clients) if io_thread is not None else 0


@pytest.fixture
def never_at_once(monkeypatch):
    """No connect is over at once, as if its target were far away."""

    def open_socket(endpoint, kind):
        made, status = kept(endpoint, kind)
        return made, status or errno.EINPROGRESS

    kept = connect.open_socket
    monkeypatch.setattr(connect, "open_socket", open_socket)


@pytest.fixture(params=["at once", "later"])
def at_once_or_later(request):
    if request.param == "later":
        request.getfixturevalue("never_at_once")


def test_a_factory_that_is_dialed_stays_what_it_is():
    factory = Dialer("the target")
    assert factory is factory


@pytest.mark.parametrize("literal", [True, False])
def test_a_stream(echo_server, at_once_or_later, literal):
    told, give_up = dial(to(echo_server.address, literal=literal))
    with told.get(timeout=WAIT) as stream:
        give_up()
        stream.socket.setblocking(True)
        stream.socket.settimeout(WAIT)
        stream.socket.sendall(b"ping")
        assert stream.socket.recv(4) == b"ping"
        assert stream.target == "the target" and stream.half_close


def test_what_is_over_at_once_needs_no_thread(echo_server):
    told, _ = dial(relay.tcp(*echo_server.address))
    told.get_nowait().close()
    assert members() == 0


def test_a_unix_socket(serve, tmp_path):
    server = serve(lambda connection: None, str(tmp_path / "s"))
    told, _ = dial(relay.unix(server.address))
    told.get(timeout=WAIT).close()


@pytest.mark.parametrize("literal", [True, False])
def test_a_refusal(at_once_or_later, literal):
    with refusing() as address:
        told, _ = dial(to(address, literal=literal))
        error = told.get(timeout=WAIT)
    assert isinstance(error, relay.ConnectError) and error.reason == "refused"
    assert str(error) == "the target: connection refused; check that the service is running"


def test_the_next_address_is_tried(echo_server):
    with refusing() as address:
        told, _ = dial(to(address, echo_server.address))
        with told.get(timeout=WAIT) as stream:
            assert stream.socket.getpeername() == echo_server.address


def test_the_next_address_is_tried_beside_one_that_does_not_answer(echo_server):
    with black_hole() as hole:
        told, _ = dial(to(hole.getsockname(), echo_server.address))
        with told.get(timeout=WAIT) as stream:
            assert stream.socket.getpeername() == echo_server.address


def test_the_first_error_is_told_when_all_have_failed():
    with refusing() as address:
        told, _ = dial(to(address, address))
        assert told.get(timeout=WAIT).reason == "refused"


def test_a_name_that_cannot_be_resolved():
    told, _ = dial(to(relay.ConnectError("the target: no such name"), literal=False))
    assert str(told.get(timeout=WAIT)) == "the target: no such name"
    told, _ = dial(to(UnicodeError("label too long"), literal=False))
    error = told.get(timeout=WAIT)
    assert isinstance(error, relay.ConnectError) and str(error) == "the target: label too long"


def test_a_name_without_addresses():
    told, _ = dial(to(literal=False))
    assert str(told.get(timeout=WAIT)) == "the target: no address"


def test_who_does_not_answer_is_told_at_the_deadline():
    with black_hole() as hole:
        told, _ = dial(to(hole.getsockname()), 0.05)
        assert told.get(timeout=WAIT).reason == "connect_timeout"


def test_a_resolver_that_does_not_answer_is_told_at_the_deadline():
    go = threading.Event()
    factory = SocketDialer("the target", lambda: go.wait(WAIT) and [], literal=False)
    told, _ = dial(factory, 0.05)
    assert told.get(timeout=WAIT).reason == "connect_timeout"
    go.set()


def test_nothing_is_left_of_what_was_given_up():
    with black_hole() as hole:
        told, give_up = dial(to(hole.getsockname()), None)
        assert members() == 1
        give_up()
        give_up()
        wait_until(lambda: members() == 0)
    assert told.empty()


def test_what_was_given_up_before_it_began_is_closed(echo_server, never_at_once):
    member = object()
    io_thread = IOThread.acquire(member)
    go = threading.Event()
    io_thread.loop.call(lambda: go.wait(WAIT))
    try:
        told, give_up = dial(to(echo_server.address))
        give_up()
        go.set()
        wait_until(lambda: members() == 1)
    finally:
        go.set()
        io_thread.release(member)
    assert told.empty()


def test_a_resolver_that_was_given_up(echo_server):
    go, resolved = threading.Event(), threading.Event()

    def resolve():
        go.wait(WAIT)
        resolved.set()
        return [Endpoint(socket.AF_INET, echo_server.address)]

    told, give_up = dial(SocketDialer("the target", resolve, literal=False))
    give_up()
    wait_until(lambda: members() == 0)
    go.set()
    assert resolved.wait(WAIT) and told.empty()


def test_a_name_is_looked_up_once_for_all_who_ask_at_one_time(echo_server):
    go, calls = threading.Event(), queue.SimpleQueue()

    def resolve():
        calls.put(None)
        go.wait(WAIT)
        return [Endpoint(socket.AF_INET, echo_server.address)]

    factory = SocketDialer("the target", resolve, literal=False)
    told = queue.SimpleQueue()
    for _ in range(20):
        factory.dial(time.monotonic() + WAIT, told.put)
    go.set()
    for _ in range(20):
        told.get(timeout=WAIT).close()
    assert calls.qsize() == 1
    factory.dial(time.monotonic() + WAIT, told.put)
    told.get(timeout=WAIT).close()
    assert calls.qsize() == 2


def test_no_descriptor_is_told(echo_server, monkeypatch):
    def fail(endpoint, kind):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(connect, "open_socket", fail)
    for literal in (True, False):
        told, _ = dial(to(echo_server.address, literal=literal))
        assert str(told.get(timeout=WAIT)) == "the target: Too many open files"


def test_no_thread_is_told(echo_server, monkeypatch):
    member = object()
    io_thread = IOThread.acquire(member)  # or there would be no loop to tell
    started = threading.Event()
    io_thread.loop.call(started.set)
    assert started.wait(WAIT)

    def refuse(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    try:
        told, _ = dial(to(echo_server.address, literal=False))
        assert told.get(timeout=WAIT).errno == errno.EAGAIN
    finally:
        monkeypatch.undo()
        io_thread.release(member)


def test_without_a_io_thread_nothing_is_left_open(echo_server, never_at_once, monkeypatch):
    def refuse(member):
        raise OSError(errno.EAGAIN, "can't start new thread")

    monkeypatch.setattr(IOThread, "acquire", refuse)
    with pytest.raises(BlockingIOError):
        dial(to(echo_server.address))


def test_a_unix_listener_whose_backlog_is_full_is_waited_for(tmp_path):
    with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as first:
        path = str(tmp_path / "s")
        listening.bind(path)
        listening.listen(0)
        first.connect(path)
        told, _ = dial(to(path, family=socket.AF_UNIX))
        assert told.empty()
        listening.accept()[0].close()
        with told.get(timeout=WAIT) as stream:
            assert stream.socket.gettimeout() == 0.0


def test_a_callback_that_fails_leaves_nothing(echo_server, never_at_once, caplog):
    def fail(outcome):
        outcome.close()
        raise RuntimeError("a bug")

    to(echo_server.address).dial(None, fail)
    wait_until(lambda: members() == 0 and "a bug" in caplog.text)


def test_tls_is_put_on_it(certificates, serve):
    def handle(connection):
        with certificates.server().wrap_socket(connection, server_side=True) as tls:
            tls.sendall(tls.recv(4)[::-1])
            tls.recv(1)

    server = serve(handle)
    told, _ = dial(relay.tls("localhost", server.address[1], ca=certificates.ca))
    with told.get(timeout=WAIT) as stream:
        stream.socket.settimeout(WAIT)
        stream.socket.sendall(b"ping")
        assert stream.socket.recv(4) == b"gnip"


def test_tls_that_is_refused():
    with refusing() as (_, port):
        told, _ = dial(relay.tls("127.0.0.1", port))
        assert told.get(timeout=WAIT).reason == "refused"


def test_a_call_waits(echo_server):
    with relay.tcp(*echo_server.address)(deadline=time.monotonic() + WAIT) as stream:
        assert stream.socket.getpeername() == echo_server.address


def test_a_forked_child_closes_its_copies():
    with black_hole() as hole:
        told, give_up = dial(to(hole.getsockname()))
        wait_until(lambda: any(one._race._running for one in IOThread._current._clients))
        (connecting,) = IOThread._current._clients
        child = os.fork()
        if child == 0:
            os._exit(0 if all(made.fileno() < 0 for made, _ in connecting._race._running.values()) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        give_up()
    assert told.empty()


def test_many_at_once(echo_server, never_at_once):
    outcomes = [dial(to(echo_server.address)) for _ in range(50)]
    for told, _ in outcomes:
        stream = told.get(timeout=WAIT)
        far = stream.socket
        far.settimeout(WAIT)
        far.sendall(b"x")
        assert far.recv(1) == b"x"
        stream.close()


def test_giving_up_races_with_the_connect(echo_server, never_at_once):
    for _ in range(100):
        told, give_up = dial(to(echo_server.address))
        Thread(give_up).result()
        wait_until(lambda: members() == 0)
        if not told.empty():
            told.get().close()


def test_the_target_hears_what_is_said(listener):
    told, _ = dial(relay.tcp(*listener.getsockname()))
    with told.get(timeout=WAIT) as stream, listener.accept()[0] as far:
        far.settimeout(WAIT)
        stream.socket.settimeout(WAIT)
        exchange(stream.socket, far)


def listening() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


def test_connect_takes_the_address_that_answers() -> None:
    with listening() as there, listening() as gone:
        refused = Endpoint(socket.AF_INET, gone.getsockname())
        gone.close()
        answers = Endpoint(socket.AF_INET, there.getsockname())
        with SocketDialer("a target", lambda: [refused, answers], literal=True)(
            deadline=time.monotonic() + 10
        ).socket as made:
            assert made.getpeername() == answers.address
            assert made.getblocking() is False
            assert made.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_silent_address_delays_only_by_the_attempt_delay() -> None:
    with listening() as full, listening() as there:
        full.listen(0)
        with socket.create_connection(full.getsockname()):
            silent = Endpoint(socket.AF_INET, full.getsockname())
            answers = Endpoint(socket.AF_INET, there.getsockname())
            with SocketDialer("a target", lambda: [silent, answers], literal=True)(
                deadline=time.monotonic() + 10
            ).socket as made:
                assert made.getpeername() in (silent.address, answers.address)


def test_a_refused_connect_says_what_to_do() -> None:
    with listening() as gone:
        endpoint = Endpoint(socket.AF_INET, gone.getsockname())
    with pytest.raises(ConnectError, match="connection refused; check that the service is running") as caught:
        SocketDialer("db:1", lambda: [endpoint], literal=True)(deadline=time.monotonic() + 10)
    assert caught.value.reason == "refused"


def swallower() -> tuple[socket.socket, list[socket.socket]]:
    """A listener that swallows every further SYN."""
    full = socket.create_server(("127.0.0.1", 0), backlog=0)
    fillers = []
    for _ in range(3):
        filler = socket.socket()
        filler.setblocking(False)
        filler.connect_ex(full.getsockname())
        fillers.append(filler)
    return full, [full, *fillers]


def test_a_deadline_and_a_cancellation_end_the_attempt() -> None:
    full, sockets = swallower()
    dialer = SocketDialer("db:1", lambda: [Endpoint(socket.AF_INET, full.getsockname())], literal=True)
    try:
        with pytest.raises(ConnectError) as caught:
            dialer(deadline=time.monotonic() + 0.05)
        assert caught.value.reason == "connect_timeout"
        cancel = Cancellation()
        threading.Timer(0.05, cancel.set).start()
        with pytest.raises(ConnectError, match="given up"):
            dialer(deadline=time.monotonic() + 10, cancel=cancel)
        cancel.close()
    finally:
        for one in sockets:
            one.close()


def test_a_resolver_that_hangs_does_not_outlast_the_deadline() -> None:
    go = threading.Event()

    def resolve() -> list[Endpoint]:
        go.wait(WAIT)
        return []

    with pytest.raises(ConnectError, match="DNS lookup timed out") as caught:
        SocketDialer("db:1", resolve, literal=False)(deadline=time.monotonic() + 0.05)
    assert caught.value.reason == "connect_timeout"
    go.set()


def test_what_a_resolver_raises_is_raised() -> None:
    def resolve() -> list[Endpoint]:
        raise ConnectError("db:1: no such name")

    with pytest.raises(ConnectError, match="no such name"):
        SocketDialer("db:1", resolve, literal=False)()


def test_a_bug_is_the_outcome_also_without_a_deadline(monkeypatch, caplog):
    monkeypatch.setattr(connect, "_open", lambda endpoint: {}[endpoint])
    told, _ = dial(to(("127.0.0.1", 1), ("127.0.0.1", 2)), None)
    outcome = told.get(timeout=WAIT)
    assert isinstance(outcome, ConnectError) and outcome.reason == "factory_error"
    wait_until(lambda: "KeyError" in caplog.text)


# -- from an address of this machine ----------------------------------------------------------------------------------


def test_some_addresses_may_be_tried_last(serve):
    peers = queue.SimpleQueue()
    port = serve(lambda connection: peers.put(connection.getsockname()[0])).address[1]
    used, other = ("127.0.0.1", port), ("127.0.0.1", port)
    with refusing() as closed:
        for is_used, order in ((closed, [used, closed]), (used, [closed, other])):
            made = to(closed, used, literal=False).avoiding(is_used.__eq__)
            assert [endpoint.address for endpoint in made.resolve()] == order
            made().close()
            assert peers.get(timeout=WAIT) == "127.0.0.1"


FROM = Source(socket.AF_INET, "127.45.6.7")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_bound_dialer_connects_from_its_source(serve, at_once_or_later, host):
    peers = queue.SimpleQueue()
    server = serve(lambda connection: peers.put(connection.getpeername()[0]))
    made = relay.tcp(host, server.address[1])
    told, _ = dial(made.bound(FROM))
    told.get(timeout=WAIT).close()
    assert peers.get(timeout=WAIT) == "127.45.6.7"
    told, _ = dial(made)  # which has not changed
    told.get(timeout=WAIT).close()
    assert peers.get(timeout=WAIT) == "127.0.0.1"


def test_a_bound_dialer_without_a_name(echo_server):
    bound = to(echo_server.address, literal=False).bound(FROM)
    with bound() as stream:
        assert stream.socket.getsockname()[0] == "127.45.6.7"


def test_a_race_starts_at_the_source(echo_server):
    with refusing() as address, to(address, echo_server.address).bound(FROM)() as stream:
        assert stream.socket.getsockname()[0] == "127.45.6.7"
        assert stream.socket.getpeername() == echo_server.address


def test_a_source_that_is_not_there_is_the_error():
    bound = relay.tcp("127.0.0.1", 9).bound(Source(socket.AF_INET, "192.0.2.1"))
    told, _ = dial(bound)
    error = told.get(timeout=WAIT)
    assert isinstance(error, ConnectError)
    assert str(error).startswith("127.0.0.1:9: source 192.0.2.1: this machine has no such address; ")


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: relay.tcp("::1", 9), r"^source: \[::1\]:9: it has no IPv4 address, as"),
        (lambda: relay.tcp("192.0.2.7", 9), "^source: 192.0.2.7:9: it is not on the loopback, as the source"),
        (
            lambda: relay.unix("/run/x"),
            "^source: unix:///run/x is a Unix socket, which has no addresses; remove source",
        ),
        (lambda: relay.target("exec:true"), "^source: relay does not connect to exec:true over TCP itself"),
        (lambda: relay.target("localhost:9", via=["socks5://localhost:1080"]), "^source: relay does not connect to "),
        (
            lambda: relay.target("tls://localhost:9", via=["http://a:1", "socks5://b:2"]),
            "^source: relay does not connect ",
        ),
    ],
)
def test_what_has_no_source_is_named(make, text):
    with make() as made, pytest.raises(ValueError, match=text):
        made.bound(FROM)


def test_a_tls_target_is_reached_from_the_source(serve, certificates):
    peers = queue.SimpleQueue()

    def shake_hands(connection):
        peers.put(connection.getpeername()[0])
        with certificates.server().wrap_socket(connection, server_side=True) as secured:
            secured.recv(1)

    server = serve(shake_hands)
    factory = relay.tls("localhost", server.address[1], ca=certificates.ca)
    with factory.bound(FROM)(deadline=time.monotonic() + WAIT) as stream:
        assert stream.target == f"tls://localhost:{server.address[1]}"
    assert peers.get(timeout=WAIT) == "127.45.6.7"
