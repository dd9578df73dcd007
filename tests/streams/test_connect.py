"""``relay.streams.connect``: direct connects that are begun at once and told later."""

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
from relay.eventloop.background import Pump
from relay.streams import connect
from relay.streams.connect import dialed
from relay.streams.dialer import Dialed
from relay.streams.happy_eyeballs import Direct, Endpoint


def to(*addresses, literal=True, family=socket.AF_INET):
    """A factory for one of these addresses; what is no address is raised."""

    def resolve():
        for address in addresses:
            if isinstance(address, Exception):
                raise address
        return [Endpoint(family, address) for address in addresses]

    return Direct("the target", resolve, literal=literal)


def dial(factory, seconds=WAIT):
    """Begin; what is told comes out of the queue."""
    told = queue.SimpleQueue()
    deadline = None if seconds is None else time.monotonic() + seconds
    return told, dialed(factory).dial(deadline, told.put)


def members():
    """How many hold the pump."""
    pump = Pump._current
    return len(pump._members) if pump is not None else 0


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
    factory = Dialed("the target")
    assert dialed(factory) is factory


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
    assert str(error) == "the target: connection refused; is the service running?"


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
    factory = Direct("the target", lambda: go.wait(WAIT) and [], literal=False)
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
    pump = Pump.hold(member)
    go = threading.Event()
    pump.loop.call(lambda: go.wait(WAIT))
    try:
        told, give_up = dial(to(echo_server.address))
        give_up()
        go.set()
        wait_until(lambda: members() == 1)
    finally:
        go.set()
        pump.let_go(member)
    assert told.empty()


def test_a_resolver_that_was_given_up(echo_server):
    go, resolved = threading.Event(), threading.Event()

    def resolve():
        go.wait(WAIT)
        resolved.set()
        return [Endpoint(socket.AF_INET, echo_server.address)]

    told, give_up = dial(Direct("the target", resolve, literal=False))
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

    factory = dialed(Direct("the target", resolve, literal=False))
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
    pump = Pump.hold(member)  # or there would be no loop to tell
    started = threading.Event()
    pump.loop.call(started.set)
    assert started.wait(WAIT)

    def refuse(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    try:
        told, _ = dial(to(echo_server.address, literal=False))
        assert told.get(timeout=WAIT).errno == errno.EAGAIN
    finally:
        monkeypatch.undo()
        pump.let_go(member)


def test_without_a_pump_nothing_is_left_open(echo_server, never_at_once, monkeypatch):
    def refuse(member):
        raise OSError(errno.EAGAIN, "can't start new thread")

    monkeypatch.setattr(Pump, "hold", refuse)
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

    dialed(to(echo_server.address)).dial(None, fail)
    wait_until(lambda: members() == 0)
    assert "a bug" in caplog.text


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
    with dialed(relay.tcp(*echo_server.address))(deadline=time.monotonic() + WAIT) as stream:
        assert stream.socket.getpeername() == echo_server.address


def test_a_forked_child_closes_its_copies():
    with black_hole() as hole:
        told, give_up = dial(to(hole.getsockname()))
        wait_until(lambda: any(one._running for one in Pump._current._members))
        (connecting,) = Pump._current._members
        child = os.fork()
        if child == 0:
            os._exit(0 if all(made.fileno() < 0 for made, _ in connecting._running.values()) else 1)
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
