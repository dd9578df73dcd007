"""The contract of a connection by either backend: its beginning, its streams, when it is idle, and its end.

What users see over both, of streams, listeners, refusals, host keys and lost servers, is in ``promises/test_ssh_*.py``.
"""

import contextlib
import dataclasses
import functools
import queue
import socket
import threading
import time

import pytest
from helpers import (
    BLOCK,
    PROMPT,
    WAIT,
    Thread,
    black_hole,
    exchange,
    is_gone,
    makes,
    receive_all,
    receive_exactly,
    refusing,
    wait_until,
)
from sshd import embedded

from relay.addresses.values import TCPAddress, UnixAddress
from relay.errors import CarrierError, ConnectError, ForwardError
from relay.streams.promise import Cancellation
from relay.streams.stream import Stream
from relay.testing.ssh import session
from relay.transports.ssh.config.settings import resolve_settings
from relay.transports.ssh.openssh import backend as openssh
from relay.transports.ssh.paramiko import backend as paramiko

CONNECT = {"paramiko": paramiko.connect, "openssh": openssh.connect}


class Client:
    """A connection, and what was reported of it."""

    def __init__(self, connect, server, stream=None, timeout=WAIT, cancel=None):
        self.lost = []
        if stream is None and connect is paramiko.connect:  # ssh connects by itself
            stream = Stream(socket.create_connection((server.host, server.port), WAIT))
            stream.socket.setblocking(False)
        with contextlib.closing(Cancellation()) as none:
            until = time.monotonic() + timeout
            self.connection = connect(resolve_settings(server), stream, until, cancel or none, self.lost.append)

    def begin(self, address, seconds=WAIT, **options):
        """Begin to open a stream; return where its outcome comes."""
        told = queue.SimpleQueue()
        self.connection.open(TCPAddress(*address), time.monotonic() + seconds, told.put, **options)
        return told

    def outcome(self, address, seconds=WAIT, **options):
        """Return a stream, or why there is none."""
        return self.begin(address, seconds, **options).get(timeout=WAIT)

    def open(self, server, **options):
        """Return a stream to a server of the test."""
        stream = self.outcome(server.address, **options)
        assert isinstance(stream, Stream)
        stream.socket.settimeout(WAIT)
        return stream


@pytest.fixture
def make(backend):
    """Makes connections by one of the backends, which end with the test."""
    yield from makes(functools.partial(Client, CONNECT[backend]), lambda made: made.connection.close())


def fate(stream):
    """Return the error of a stream that has ended; ``None`` if it has none."""
    with stream, contextlib.suppress(ConnectionResetError):
        receive_all(stream.socket)
    return stream.failure()


def test_a_stream_carries_both_ways_and_ends_cleanly(make, sshd, echo_server):
    stream = make(sshd.server).open(echo_server)
    sending = Thread(stream.socket.sendall, BLOCK)
    assert receive_exactly(stream.socket, len(BLOCK)) == BLOCK
    sending.result()
    stream.socket.shutdown(socket.SHUT_WR)
    assert fate(stream) is None
    assert stream.target == "{}:{}".format(*echo_server.address)


@pytest.mark.parametrize("option", ["self_contained", "confirmed"])
def test_a_target_that_refuses_is_an_error_where_the_caller_wants_one(make, sshd, option):
    with refusing() as address:
        error = make(sshd.server).outcome(address, **{option: True})
    assert isinstance(error, ConnectError) and error.reason == "refused"


def test_a_target_that_does_not_answer_is_a_timeout(make, sshd):
    with black_hole() as hole:
        error = make(sshd.server).outcome(hole.getsockname(), 0.3, self_contained=True)
    assert isinstance(error, ConnectError) and error.reason == "connect_timeout" and "in time" in str(error)


def test_a_callback_that_fails_ends_nothing_but_itself(make, sshd, echo_server, caplog):
    client = make(sshd.server)

    def opened(stream):
        stream.close()
        raise RuntimeError("not ours")

    client.connection.open(TCPAddress(*echo_server.address), None, opened, confirmed=True)
    wait_until(lambda: "not ours" in caplog.text)
    with client.open(echo_server) as stream:
        stream.socket.sendall(b"on")
        assert receive_exactly(stream.socket, 2) == b"on"
    assert client.lost == []


def test_a_connection_that_is_given_is_used_and_closed(make, sshd, echo_server):
    """The name of the server is looked up nowhere."""
    closed = []
    given = Stream(socket.create_connection(("127.0.0.1", sshd.port)), on_close=lambda: closed.append(1))
    given.socket.setblocking(False)
    known = sshd.folder / "known"
    known.write_text(f"[nowhere.invalid]:{sshd.port} {sshd.host_key_line}\n")
    server = dataclasses.replace(sshd.server, host="nowhere.invalid", known_hosts=str(known))
    client = make(server, given)
    with client.open(echo_server) as stream:
        stream.socket.sendall(b"x")
        assert receive_exactly(stream.socket, 1) == b"x"
    client.connection.close()
    wait_until(lambda: closed == [1])
    assert given.fileno() == -1


def test_a_cancellation_ends_it_at_once(make, sshd, listener):
    with contextlib.closing(Cancellation()) as cancel:
        server = dataclasses.replace(sshd.server, port=listener.getsockname()[1])
        beginning = Thread(lambda: make(server, timeout=3 * WAIT, cancel=cancel))
        with listener.accept()[0]:
            cancel.set()
            with pytest.raises(ConnectError, match="given up"):
                beginning.result()


@pytest.mark.parametrize("self_contained", [False, True])
def test_idle_is_when_the_last_stream_is_over(make, sshd, echo_server, self_contained):
    connection = (client := make(sshd.server)).connection
    idle, later, never = threading.Event(), threading.Event(), threading.Event()
    connection.when_idle(idle.set)
    assert idle.wait(WAIT)
    first, second = client.open(echo_server), client.open(echo_server, self_contained=self_contained)
    connection.when_idle(never.set)
    connection.when_idle(later.set)
    first.close()
    assert not later.wait(0.1)  # the time is what is looked at
    second.socket.close() if self_contained else second.close()
    assert later.wait(WAIT)
    assert not never.is_set(), "the later one takes its place"


def fill(stream):
    """Send until nothing more goes in for a moment; return how much did."""
    stream.socket.settimeout(0.2)
    sent = 0
    with contextlib.suppress(TimeoutError):
        while True:
            sent += stream.socket.send(BLOCK)
    return sent


def test_what_was_sent_goes_out_before_it_is_idle(make, sshd, serve):
    """The target reads late; as long as bytes are under way, the connection is needed."""
    go, received = threading.Event(), []
    target = serve(lambda connection: (go.wait(WAIT), received.append(len(receive_all(connection)))))
    client, idle = make(sshd.server), threading.Event()
    with client.open(target) as stream:
        sent = fill(stream)
    client.connection.when_idle(idle.set)
    assert not idle.wait(0.1)  # the time is what is looked at
    go.set()
    assert idle.wait(WAIT)
    client.connection.close()
    wait_until(lambda: received)
    assert received == [sent]


@pytest.mark.parametrize("end", ["lost", "closed"])
def test_idle_is_also_when_the_connection_is_over(make, make_sshd, echo_server, end):
    sshd = make_sshd()
    client = make(sshd.server)
    with client.open(echo_server):
        for _ in range(2):
            idle = threading.Event()
            client.connection.when_idle(idle.set)
            sshd.kill() if end == "lost" else client.connection.close()
            assert idle.wait(WAIT)


def test_idle_is_when_what_came_in_is_over_as_well(make, sshd):
    connection, came, idle = make(sshd.server).connection, queue.SimpleQueue(), threading.Event()
    deadline = time.monotonic() + WAIT
    place = connection.listen(TCPAddress("127.0.0.1", 0), lambda stream, peer: came.put(stream), deadline)
    with socket.create_connection((place.host, place.port), WAIT):
        stream = came.get(timeout=WAIT)
        connection.when_idle(idle.set)
        assert not idle.wait(0.1)  # the time is what is looked at
        stream.close()
    assert idle.wait(WAIT)
    connection.stop_listening(place)


def test_what_waits_for_a_server_that_dies_has_an_error(make, make_sshd):
    sshd = make_sshd()
    client = make(sshd.server)
    sshd.freeze()
    told = client.begin(("127.0.0.1", 9), confirmed=True)
    listening = Thread(client.connection.listen, TCPAddress("127.0.0.1", 0), print, time.monotonic() + WAIT)
    wait_until(lambda: client.connection.streams == 1)
    sshd.kill()
    assert isinstance(told.get(timeout=WAIT), CarrierError)
    with pytest.raises(CarrierError):
        listening.result()


def test_a_server_that_dies_is_reported_once_in_one_line(make, make_sshd, echo_server):
    sshd = make_sshd()
    client = make(sshd.server)
    streams = [client.open(echo_server) for _ in range(3)]
    for stream in streams:
        stream.socket.sendall(b"x")
        assert receive_exactly(stream.socket, 1) == b"x"
    sshd.kill()
    assert all(isinstance(fate(stream), CarrierError) for stream in streams)
    wait_until(lambda: client.lost)
    (error,) = client.lost
    assert "\n" not in str(error)
    assert "the connection was lost: " in str(error)
    assert "closed" in str(error) or "reset" in str(error)
    assert isinstance(client.outcome(echo_server.address), CarrierError)
    with pytest.raises(CarrierError):
        client.connection.listen(TCPAddress("127.0.0.1", 0), print, time.monotonic() + WAIT)
    client.connection.stop_listening(TCPAddress("127.0.0.1", 1))
    client.connection.check()
    assert client.lost == [error]


def test_close_is_prompt_and_silent_also_if_the_server_is_frozen_and_nothing_goes_out(make, make_sshd, serve):
    sshd, sink = make_sshd(), serve(receive_all)
    client = make(dataclasses.replace(sshd.server, keepalive=WAIT))
    streams = [client.open(sink) for _ in range(8)]
    sshd.freeze()
    assert all(map(fill, streams))
    told = client.begin(("192.0.2.1", 9), confirmed=True)
    begun = time.monotonic()
    client.connection.close()
    client.connection.close()
    assert time.monotonic() - begun < PROMPT
    assert isinstance(told.get(timeout=WAIT), CarrierError)
    for stream in streams:
        error = fate(stream)
        assert isinstance(error, CarrierError) and "was closed" in str(error)
    assert client.lost == []
    sshd.thaw()


# Listening.

ANY = TCPAddress("127.0.0.1", 0)


def listen(client, place=ANY, seconds=WAIT):
    """Return the place, and where its streams come."""
    came = queue.SimpleQueue()
    return client.connection.listen(place, lambda stream, peer: came.put(stream), time.monotonic() + seconds), came


def greet(place, came):
    """Prove that a stream from there gets through."""
    is_path = isinstance(place, UnixAddress)
    with socket.socket(socket.AF_UNIX if is_path else socket.AF_INET) as caller:
        caller.settimeout(WAIT)
        caller.connect(place.path if is_path else (place.host, place.port))
        with came.get(timeout=WAIT) as stream:
            stream.socket.settimeout(WAIT)
            exchange(caller, stream.socket)


def stop(client, place):
    client.connection.stop_listening(place)
    wait_until(lambda: is_gone((place.host, place.port)))


def test_a_port_that_was_taken_can_be_had_later(make, sshd):
    client = make(sshd.server)
    with socket.create_server(("127.0.0.1", 0)) as other:
        place = TCPAddress(*other.getsockname())
        for _ in range(2):
            with pytest.raises(ForwardError, match=f"{place.port}.*is free there"):
                listen(client, place)
    for _ in range(2):  # ssh remembers what was refused, and that outlives what was granted
        given, came = listen(client, place)
        assert given == place
        greet(place, came)
        stop(client, place)


def test_a_path_that_was_taken_can_be_had_later(make, sshd, tmp_path):
    client, path = make(sshd.server), tmp_path / "far"
    path.touch()
    words = "check that (it is free there|the file does not exist, and AllowStreamLocalForwarding)"
    with pytest.raises(ForwardError, match=words):
        listen(client, UnixAddress(str(path)))
    path.unlink()
    greet(*listen(client, UnixAddress(str(path))))  # sshd leaves the path


def test_a_port_is_listened_at_again_at_once(make, sshd):
    client = make(sshd.server)
    place, _ = listen(client)
    for _ in range(20):
        client.connection.stop_listening(place)
        place, came = listen(client, place)
        greet(place, came)
    with pytest.raises(ForwardError):
        listen(client, place)
    greet(place, came)  # the first one keeps it
    stop(client, place)


def test_an_answer_that_comes_too_late_leaves_nothing(make, make_sshd, reserved):
    sshd = make_sshd()
    client = make(sshd.server)
    sshd.freeze()
    with pytest.raises(ForwardError, match="in time"):
        listen(client, TCPAddress("127.0.0.1", reserved), 0.1)
    sshd.thaw()
    stop(client, listen(client)[0])  # what is asked for now is answered after all that was asked for before
    wait_until(lambda: is_gone(("127.0.0.1", reserved)))


@pytest.mark.parametrize("port", [65536, 0x7FFFFFFF])
def test_a_server_that_grants_what_is_no_port(make, make_ssh_server, monkeypatch, port):
    client = make(embedded(make_ssh_server()))
    for policy in [one for one in vars(session).values() if hasattr(one, "check_port_forward_request")]:
        monkeypatch.setattr(policy, "check_port_forward_request", lambda *_: port)
    with pytest.raises(ForwardError, match=f"{port}|does not listen there"):
        listen(client)
