"""``relay.streams.connect``: direct connects that begin at once and report later."""

import errno
import os
import queue
import socket
import threading
import time

import psutil
import pytest
from helpers import WAIT, Thread, black_hole, closed, refusing, wait_until

import relay
from relay import ConnectError
from relay.engine.workspace import Workspace
from relay.eventloop.background import IOThread
from relay.eventloop.loop import Loop
from relay.eventloop.sockets import Endpoint
from relay.streams import connect
from relay.streams.connect import SocketDialer
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
    return len(IOThread.clients())


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
        assert stream.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


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
    error = told.get(timeout=WAIT)
    assert error.reason == "connect_timeout" and "DNS lookup timed out" in str(error)
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


def connecting():
    """Return the number of sockets of this process that wait for their connects."""
    found = psutil.Process().net_connections("tcp")
    return sum(one.status == psutil.CONN_SYN_SENT for one in found)


def test_a_forked_child_closes_its_copies():
    with black_hole() as hole:
        before = connecting()
        told, give_up = dial(to(hole.getsockname()))
        wait_until(lambda: connecting() > before)
        child = os.fork()
        if child == 0:
            os._exit(0 if connecting() == before else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        give_up()
    assert told.empty()


def test_giving_up_races_with_the_connect(echo_server, never_at_once):
    for _ in range(100):
        told, give_up = dial(to(echo_server.address))
        Thread(give_up).result()
        wait_until(lambda: members() == 0)
        if not told.empty():
            told.get().close()


def test_a_bug_is_the_outcome_also_without_a_deadline(monkeypatch, caplog):
    monkeypatch.setattr(connect, "_open", lambda endpoint: {}[endpoint])
    told, _ = dial(to(("127.0.0.1", 1), ("127.0.0.1", 2)), None)
    outcome = told.get(timeout=WAIT)
    assert isinstance(outcome, ConnectError) and outcome.reason == "factory_error"
    wait_until(lambda: "KeyError" in caplog.text)


# -- in the thread of an engine ----------------------------------------------------------------------------------------


class Engine:
    """The relay thread of a tunnel, which dials and has not dialed elsewhere."""

    def __init__(self):
        self.home = Workspace(Loop(), None, "test")
        self._running = Thread(self.home.loop.run)

    def dial(self, factory, seconds=WAIT):
        """Begin there; the outcome comes out of the queue."""
        told, begun = queue.SimpleQueue(), queue.SimpleQueue()
        deadline = None if seconds is None else time.monotonic() + seconds
        factory = factory.on(self.home)

        def on_outcome(outcome):
            assert self.home.loop.is_here() and members() == 0
            told.put(outcome)

        self.home.loop.call(lambda: begun.put(factory.dial(deadline, on_outcome)))
        return told, begun.get(timeout=WAIT)

    def settle(self):
        """Wait until it has done all that it was asked."""
        done = threading.Event()
        self.home.loop.call(done.set)
        assert done.wait(WAIT)

    def close(self):
        self.home.loop.call(self.home.workers.close)
        self.home.loop.call(self.home.loop.stop)
        self._running.result()
        self.home.workers.join(WAIT)
        self.home.loop.close()


@pytest.fixture
def engine():
    yield from closed(Engine())


@pytest.mark.parametrize("literal", [True, False])
def test_an_engine_connects_by_itself(engine, echo_server, at_once_or_later, literal):
    told, give_up = engine.dial(to(echo_server.address, literal=literal))
    with told.get(timeout=WAIT) as stream:
        give_up()
        assert stream.socket.getpeername() == echo_server.address


@pytest.mark.parametrize("literal", [True, False])
def test_an_engine_is_told_of_a_refusal(engine, at_once_or_later, literal):
    with refusing() as address:
        told, _ = engine.dial(to(address, literal=literal))
        assert told.get(timeout=WAIT).reason == "refused"


def test_an_engine_is_told_that_a_name_cannot_be_resolved(engine, monkeypatch):
    def fail(*arguments, **more):
        raise socket.gaierror(socket.EAI_NONAME, "unknown")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    told, _ = engine.dial(relay.tcp("db.invalid", 9))
    text = "db.invalid:9: cannot resolve the host name (unknown); check the spelling"
    assert str(told.get(timeout=WAIT)) == text
    told, _ = engine.dial(to(UnicodeError("label too long"), literal=False))
    assert str(told.get(timeout=WAIT)) == "the target: label too long"


def test_dialers_of_one_engine_share_the_look_up_of_a_name(engine, echo_server, serve, monkeypatch):
    go, calls = threading.Event(), queue.SimpleQueue()

    def look_up(host, port, **more):
        calls.put(host)
        go.wait(WAIT)
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", port))]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    servers = (echo_server, serve(lambda connection: None))
    begun = [engine.dial(relay.tcp(host, one.address[1])) for one in servers for host in ("db.invalid", "DB.invalid")]
    go.set()
    ports = []
    for told, _ in begun:
        with told.get(timeout=WAIT) as stream:
            ports.append(stream.socket.getpeername()[1])
    assert ports == [one.address[1] for one in servers for _ in range(2)]
    assert calls.qsize() == 1
    told, _ = engine.dial(relay.tcp("db.invalid", echo_server.address[1]))
    told.get(timeout=WAIT).close()
    assert calls.qsize() == 2  # nothing is kept of the one before


def test_an_engine_is_told_at_the_deadline(engine):
    go = threading.Event()
    told, _ = engine.dial(SocketDialer("the target", lambda: go.wait(WAIT) and [], literal=False), 0.05)
    error = told.get(timeout=WAIT)
    assert error.reason == "connect_timeout" and "DNS lookup timed out" in str(error)
    go.set()
    with black_hole() as hole:
        told, _ = engine.dial(to(hole.getsockname()), 0.05)
        assert told.get(timeout=WAIT).reason == "connect_timeout"


@pytest.mark.parametrize("elsewhere", [True, False])
def test_an_engine_gives_up(engine, elsewhere):
    go = threading.Event()
    with black_hole() as hole:
        before = connecting()
        begun = [
            engine.dial(SocketDialer("the target", lambda: go.wait(WAIT) and [], literal=False), None),
            engine.dial(to(hole.getsockname()), None),
        ]
        for _, give_up in begun:
            if elsewhere:
                give_up()
            else:
                engine.home.loop.call(give_up)
        wait_until(lambda: connecting() == before)
    go.set()
    engine.settle()
    assert all(told.empty() for told, _ in begun)


def test_a_dial_of_another_thread_is_left_to_the_io_thread(engine, echo_server):
    told, _ = dial(to(echo_server.address, literal=False).on(engine.home))
    told.get(timeout=WAIT).close()


def test_an_order_holds_in_an_engine(engine, serve):
    server = serve(lambda connection: None)
    with refusing() as closed:
        made = relay.tcp("localhost", server.address[1]).avoiding(closed.__eq__)
        made.resolve = lambda resolve=made.resolve: [*resolve(), Endpoint(socket.AF_INET, closed)]
        told, _ = engine.dial(made)
        with told.get(timeout=WAIT) as stream:
            assert stream.socket.getpeername() == server.address


def test_a_forked_child_closes_the_copies_of_an_engine(engine):
    with black_hole() as hole:
        before = connecting()
        _, give_up = engine.dial(to(hole.getsockname()))
        wait_until(lambda: connecting() > before)
        child = os.fork()
        if child == 0:
            engine.home.abandon()
            os._exit(0 if connecting() == before else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        give_up()
        engine.settle()


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
