"""``relay.spawn`` is a ``Tunnel`` in child processes, with the same members, values and errors."""

import errno
import functools
import hashlib
import logging
import os
import signal
import socket
import threading
import time

import pytest
from helpers import (
    BLOCK,
    PROMPT,
    WAIT,
    Server,
    Thread,
    TLSEnd,
    echo,
    ended,
    ending,
    exchange,
    fate_of_client,
    makes,
    receive_all,
    receive_exactly,
    refusing,
    send_and_end,
    sha256_of,
    wait_until,
)

import relay


def make_tunnel(listen, target, *, timeout=None, **options):
    """A stand-in for ``relay.spawn``, in this process."""
    receive = listen if isinstance(listen, socket.socket) else relay.listen(listen)
    try:
        return relay.Tunnel(receive, relay.target(target), timeout=timeout, **options)
    except BaseException:
        receive.close()
        raise


workers = functools.partial(relay.spawn, workers=2)


@pytest.fixture(params=[make_tunnel, relay.spawn, workers], ids=["Tunnel", "spawn", "workers"])
def make(request):
    """All of them, so that every test here says of each the same."""
    return request.param


class Rig:
    """A relay between clients and a target that the test plays itself."""

    def __init__(self, make, listen=":0", **options):
        self.target = socket.create_server(("127.0.0.1", 0))
        self.target.settimeout(WAIT)
        self.ends = [self.target]
        self.tunnel = make(listen, f"127.0.0.1:{self.target.getsockname()[1]}", **options)

    def client(self):
        address = self.tunnel.address
        made = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
        self.ends.append(made)
        made.settimeout(WAIT)
        made.connect(address)
        return made

    def accept(self):
        made = self.target.accept()[0]
        self.ends.append(made)
        made.settimeout(WAIT)
        return made

    def connect(self):
        return self.client(), self.accept()

    def close(self):
        self.tunnel.close()
        for end in self.ends:
            end.close()


@pytest.fixture
def rig(make):
    """Makes rigs of either kind."""
    yield from makes(lambda **options: Rig(make, **options))


def is_gone(address):
    """No program listens there any more."""
    with socket.socket() as probe:
        return probe.connect_ex(address) == errno.ECONNREFUSED


def send_for_ever(end):
    while True:
        end.sendall(BLOCK)


def test_every_byte_arrives_both_ways_at_once(rig):
    client, far = rig().connect()
    sending = [Thread(send_and_end, client, BLOCK * 8), Thread(send_and_end, far, BLOCK[::-1] * 8)]
    hashes = [Thread(sha256_of, far), Thread(sha256_of, client)]
    for thread in sending:
        thread.result()
    wanted = [hashlib.sha256(BLOCK * 8).hexdigest(), hashlib.sha256(BLOCK[::-1] * 8).hexdigest()]
    assert [thread.result() for thread in hashes] == wanted


def test_a_half_close_is_kept(rig):
    client, far = rig().connect()
    send_and_end(client, b"request")
    assert receive_all(far) == b"request"
    send_and_end(far, b"reply")
    assert receive_all(client) == b"reply"


def test_the_records_and_the_figures(rig):
    one = rig(name="records")
    client, far = one.connect()
    client.sendall(b"12345")
    assert receive_exactly(far, 5) == b"12345"
    far.sendall(b"123")
    assert receive_exactly(client, 3) == b"123"
    wait_until(lambda: one.tunnel.stats().sent)  # bytes are counted just after they were passed on
    [living] = one.tunnel.connections()
    target = "{}:{}".format(*one.target.getsockname())
    assert isinstance(living, tuple)
    assert living[:8] == (client.getsockname(), target, living.age, 5, 3, "copy", "open", None)
    assert one.tunnel.stats()[:5] == (1, 1, 5, 3, {})
    metrics = one.tunnel.metrics()
    assert (metrics.accepted, metrics.received, metrics.sent) == (1, 5, 3)
    assert metrics.states == {"connecting": 0, "open": 1, "half-closed": 0}
    for end in (client, far):
        end.shutdown(socket.SHUT_WR)
    assert ended(one.tunnel) == ["done"]
    [dead] = one.tunnel.recent()
    assert dead[:8] == (client.getsockname(), target, dead.age, 5, 3, "copy", "closed", "done")
    assert dead.id == living.id and dead.by == "client"
    assert sum(one.tunnel.metrics().ages.counts) == 1
    assert 0 < living.age < dead.age < WAIT
    one.tunnel.close()
    assert one.tunnel.recent() == [dead]
    assert one.tunnel.connections() == []
    assert one.tunnel.stats()[:5] == (1, 0, 5, 3, {})
    assert one.tunnel.metrics().ended["done"] == 1
    assert type(one.tunnel.metrics()) is type(metrics)
    assert type(one.tunnel.stats()).__name__ == "Stats"
    assert type(dead).__name__ == "ConnectionRecord"


def test_one_connection_is_killed(rig):
    one = rig(name="kill")
    (client, _far), (other, other_far) = one.connect(), one.connect()
    found = {record.peer: record.id for record in one.tunnel.connections()}
    assert one.tunnel.kill(found[client.getsockname()])
    assert not one.tunnel.kill(found[client.getsockname()])
    assert ending(client) == "reset"
    assert [record.reason for record in one.tunnel.recent()] == ["killed"]
    exchange(other, other_far)


def test_the_address_and_the_name(rig):
    one = rig(name="here")
    assert one.tunnel.address == ("127.0.0.1", one.tunnel.address[1])
    assert one.tunnel.name == "here"
    assert "'here'" in repr(one.tunnel)


def test_a_refused_target_resets_the_client(make):
    with refusing() as address, make(":0", "{}:{}".format(*address)) as tunnel:
        assert fate_of_client(tunnel.address) == "reset"
        assert ended(tunnel) == ["refused"]
        assert tunnel.stats().failed == {"refused": 1}


LIMITS = [
    ("timeout", "lifetime"),
    ("idle_timeout", "idle"),
    ("linger", "linger"),
    ("first_byte_timeout", "unreachable"),
]


@pytest.mark.parametrize(("limit", "reason"), LIMITS)
def test_a_limit_ends_a_connection(rig, limit, reason):
    one = rig(**{limit: 0.1})
    client, _far = one.connect()
    if limit == "linger":
        client.shutdown(socket.SHUT_WR)
    elif limit == "first_byte_timeout":
        client.sendall(b"ask")
    assert ending(client) == "reset"
    assert ended(one.tunnel) == [reason]


def test_nconnect_holds(rig):
    one = rig(nconnect=1)
    first, far = one.connect()
    exchange(first, far)
    second = one.client()
    second.sendall(b"later")
    assert one.tunnel.stats().accepted == 1
    first.close()
    far.close()
    assert receive_exactly(one.accept(), 5) == b"later"


def test_pause_and_resume(rig):
    one = rig()
    client, far = one.connect()
    one.tunnel.pause()
    waiting = one.client()
    exchange(client, far)
    assert one.tunnel.stats().accepted == 1
    one.tunnel.resume()
    exchange(waiting, one.accept())
    one.tunnel.pause(close=True)
    assert ending(client) == "reset"
    assert ended(one.tunnel, 2) == ["closed", "closed"]


def test_close_resets_and_frees_the_address(rig):
    one = rig()
    client, far = one.connect()
    exchange(client, far)
    one.tunnel.close()
    assert (ending(client), ending(far)) == ("reset", "reset")
    assert [record.reason for record in one.tunnel.recent()] == ["closed"]
    assert is_gone(one.tunnel.address)
    one.tunnel.join(0)
    one.tunnel.close()
    one.tunnel.pause()
    one.tunnel.resume()


def test_drain_lets_a_live_connection_finish(rig):
    one = rig()
    client, far = one.connect()
    exchange(client, far)
    closing = Thread(one.tunnel.close, WAIT)
    wait_until(lambda: "closing" in repr(one.tunnel))
    exchange(client, far)
    assert [record.state for record in one.tunnel.connections()] == ["open"]
    for end in (client, far):
        end.shutdown(socket.SHUT_WR)
    closing.result()
    assert [record.reason for record in one.tunnel.recent()] == ["done"]


def test_drain_ends_what_is_left_and_a_second_close_ends_the_drain(rig):
    one = rig()
    client, far = one.connect()
    exchange(client, far)
    one.tunnel.close(0.1)
    assert ending(client) == "reset"
    two = rig()
    client, far = two.connect()
    exchange(client, far)
    closing = Thread(two.tunnel.close, None)
    wait_until(lambda: "closing" in repr(two.tunnel))
    two.tunnel.close()
    closing.result()
    assert ending(client) == "reset"


def test_close_from_many_threads_with_bulk_under_way(rig):
    one = rig()
    pairs = [one.connect() for _ in range(4)]
    sending = [Thread(send_for_ever, client) for client, _ in pairs]
    reading = [Thread(ending, far) for _, far in pairs]
    wait_until(lambda: all(record.received for record in one.tunnel.connections()))
    closing = [Thread(one.tunnel.close) for _ in range(4)]
    for thread in closing:
        thread.result()
    for thread in sending:
        with pytest.raises(ConnectionError):
            thread.result()
    assert [thread.result() for thread in reading] == ["reset"] * 4


def test_a_unix_socket_to_listen_at(rig, tmp_path):
    path = tmp_path / "socket"
    one = rig(listen=f"unix://{path}")
    assert one.tunnel.address == str(path)
    assert path.stat().st_mode & 0o777 == 0o600
    exchange(*one.connect())
    one.tunnel.close()
    assert not path.exists()


def test_a_listening_socket_is_taken_over(rig):
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = listening.getsockname()
        one = rig(listen=listening)
        assert one.tunnel.address == address
        exchange(*one.connect())
        one.tunnel.close()
        assert listening.fileno() == -1
        assert is_gone(address)


def test_a_listening_socket_is_let_go_while_the_tunnel_drains(rig):
    one = rig(listen=socket.create_server(("127.0.0.1", 0)))
    exchange(*one.connect())
    closing = Thread(one.tunnel.close, None)
    wait_until(lambda: is_gone(one.tunnel.address))
    assert one.tunnel.stats().active >= 1
    one.tunnel.close()
    closing.result()


def test_a_listening_unix_socket_is_taken_over_with_its_file(rig, tmp_path):
    path = tmp_path / "socket"
    one = rig(listen=relay.listen(f"unix://{path}"))
    exchange(*one.connect())
    one.tunnel.close()
    assert not path.exists()


def test_tls_to_the_target(make, certificates):
    server = Server(lambda end: echo(TLSEnd(end, certificates.server(), server_side=True)))
    try:
        with make(":0", f"tls://localhost:{server.address[1]}?ca={certificates.ca}") as tunnel:
            with socket.create_connection(tunnel.address, timeout=WAIT) as client:
                client.sendall(b"secret")
                assert receive_exactly(client, 6) == b"secret"
            wait_until(lambda: not tunnel.connections())
    finally:
        server.close()


@pytest.mark.parametrize(
    ("listen", "options"),
    [
        ("no port", {}),
        ("127.0.0.1:99999", {}),
        ("gopher://127.0.0.1:70", {}),
        ("nowhere.invalid:0", {}),
        ("192.0.2.1:0", {}),
        ("unix:///nowhere/socket", {}),
        ("tls://127.0.0.1:0?cert=/nowhere&key=/nowhere", {}),
        (":0", {"target": "no port"}),
        (":0", {"nconnect": 0}),
        (":0", {"nconnect": "1"}),
        (":0", {"timeout": -1}),
        (":0", {"timeout": "soon"}),
        (":0", {"idle_timeout": float("nan")}),
        (":0", {"connect_timeout": object()}),
        (":0", {"linger": -0.1}),
        (":0", {"first_byte_timeout": 0}),
        (":0", {"name": 7}),
        (":0", {"unknown": 1}),
    ],
)
def test_bad_input_is_the_same_error(listen, options):
    options = {"target": "127.0.0.1:1", **options}
    errors = []
    for make in (make_tunnel, relay.spawn, workers):
        with pytest.raises((OSError, ValueError, TypeError)) as caught:
            make(listen, **options)
        errors.append(caught.value)
    mine, *others = errors
    for theirs in others:
        assert type(mine) is type(theirs)
        if "unknown" not in options:  # there Python's own text has the name of the function
            assert str(mine) == str(theirs)
        assert getattr(mine, "errno", None) == getattr(theirs, "errno", None)


def test_an_address_in_use(make):
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="in use") as caught:
        make(f"127.0.0.1:{taken.getsockname()[1]}", "127.0.0.1:1")
    assert caught.value.errno == errno.EADDRINUSE


@pytest.mark.parametrize("drain", [-1, float("nan"), "1"])
def test_a_bad_drain_closes_nothing(rig, drain):
    one = rig()
    with pytest.raises((ValueError, TypeError), match="drain"):
        one.tunnel.close(drain)
    exchange(*one.connect())


def test_a_socket_that_cannot_be_used_stays_with_the_caller(make):
    with socket.socket() as deaf:
        with pytest.raises(ValueError, match="does not listen"):
            relay.Tunnel(deaf, print) if make is make_tunnel else make(deaf, "127.0.0.1:1")
        assert deaf.fileno() >= 0
    with socket.create_server(("127.0.0.1", 0)) as listening:
        with pytest.raises(relay.AddressError):
            relay.spawn(listening, "no port")
        assert listening.fileno() >= 0


def test_the_log_records(rig, caplog):
    caplog.set_level(logging.INFO, "relay")
    one = rig(name="logged")
    client, far = one.connect()
    exchange(client, far)
    for end in (client, far):
        end.close()
    wait_until(lambda: one.tunnel.recent() and caplog.records)
    [record] = caplog.records
    assert (record.name, record.levelno) == ("relay", logging.INFO)
    assert record.getMessage().startswith("logged: ")
    assert [record.connection] == one.tunnel.recent()


def test_no_log_record_is_made_below_the_level(rig, caplog):
    caplog.set_level(logging.WARNING, "relay")
    one = rig()
    for end in one.connect():
        end.close()
    assert len(ended(one.tunnel)) == 1
    caplog.set_level(logging.INFO, "relay")
    one.tunnel.stats()  # hands the new level on
    for end in one.connect():
        end.close()
    wait_until(lambda: caplog.records)
    one.tunnel.close()
    assert len(caplog.records) == 1


def test_a_log_handler_may_use_the_tunnel(rig, caplog):
    """Its members answer on the thread that hands out the log records, and its ``close()`` does not wait there."""
    caplog.set_level(logging.INFO, "relay")
    one = rig()
    seen = []

    class Closing(logging.Handler):
        def emit(self, record):
            if not seen:
                seen.append(one.tunnel.stats().accepted)
                one.tunnel.close()

    handler = Closing()
    logging.getLogger("relay").addHandler(handler)
    try:
        for end in one.connect():
            end.close()
        one.tunnel.join(WAIT)
    finally:
        logging.getLogger("relay").removeHandler(handler)
    assert seen == [1]


def test_a_busy_thread_of_the_program_does_not_matter(rig):
    one = rig()
    client, far = one.connect()
    over = False

    def spin():
        while not over:
            pass

    busy = Thread(spin)
    try:
        for _ in range(20):
            exchange(client, far)
        assert len(one.tunnel.connections()) == 1
    finally:
        over = True
        busy.result()


def test_spawned_by_threads_that_end():
    """The kernel's parent-death signal follows a thread, and these children must outlive theirs."""
    spawning = [Thread(Rig, relay.spawn) for _ in range(8)]
    rigs = [thread.result() for thread in spawning]
    try:
        assert not any(thread.is_alive() for thread in spawning)
        assert len({rig.tunnel.pid for rig in rigs} | {os.getpid()}) == 9
        for rig in rigs:
            exchange(*rig.connect())
    finally:
        for rig in rigs:
            rig.close()


def test_close_is_prompt_and_leaves_no_zombie():
    rig = Rig(relay.spawn)
    try:
        exchange(*rig.connect())
        begin = time.monotonic()
        rig.tunnel.close()
        assert time.monotonic() - begin < PROMPT
        with pytest.raises(ChildProcessError):
            os.waitpid(rig.tunnel.pid, os.WNOHANG)
        assert not any(thread.name == rig.tunnel.name for thread in threading.enumerate())
    finally:
        rig.close()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_death_of_the_child_is_noticed(number, caplog):
    rig = Rig(relay.spawn, listen=socket.create_server(("127.0.0.1", 0)), name="doomed")
    try:
        client, far = rig.connect()
        exchange(client, far)
        os.kill(rig.tunnel.pid, number)
        rig.tunnel.join(WAIT)
        [record] = caplog.records
        assert record.levelno == logging.ERROR
        assert "doomed" in record.getMessage()
        for call in (rig.tunnel.stats, rig.tunnel.recent, rig.tunnel.connections, rig.tunnel.pause, rig.tunnel.resume):
            with pytest.raises(relay.RelayError, match=rf"child process {rig.tunnel.pid} .*spawn it again"):
                call()
        assert is_gone(rig.tunnel.address)
        rig.tunnel.close()
        assert ending(client) == ("reset" if number == signal.SIGTERM else "end of file")
    finally:
        rig.close()
