"""``nconnect`` holds under churn, waiting callers are served and not dropped, no slot is lost by any kind of ending."""

import itertools
import queue
import random
import socket
import threading
import time

import pytest
from helpers import (
    WAIT,
    Thread,
    ended,
    ending,
    exchange,
    expire,
    fate_of_client,
    flood,
    receive_all,
    refusing,
    send_and_end,
    wait_until,
)

import relay
from relay.eventloop.sockets import reset
from relay.testing import FakeListener

CHURN = 500
LONG = 1000.0  # seconds, which pass when the test says so


def test_500_connections_of_churn(serve, any_engine):
    most = queue.SimpleQueue()

    def answer(connection):
        most.put((tunnel.stats().active, len(tunnel.connections())))
        data = connection.recv(100)
        if data == b"reset me":
            reset(connection)
        else:
            connection.sendall(data)
            receive_all(connection)

    server = serve(answer)
    with relay.Tunnel(relay.listen(":0"), server.factory(), nconnect=8) as tunnel:
        work = queue.SimpleQueue()
        for number in range(CHURN):
            work.put(number)
        callers = [Thread(call, tunnel.address, work) for _ in range(40)]
        served = list(itertools.chain.from_iterable(caller.result(40) for caller in callers))
        assert sorted(served) == list(range(CHURN)), "every caller is served, also one that had to wait"
        wait_until(lambda: tunnel.stats().active == 0)
        assert tunnel.stats().accepted == CHURN
    seen = [most.get() for _ in range(most.qsize())]
    assert max(active for active, _ in seen) <= 8
    assert max(records for _, records in seen) <= 8
    assert max(active for active, _ in seen) > 1, "or the limit was never tried"


def call(address, work):
    """Take numbers and make a connection for each, ended in one of several ways; returns who was served."""
    served = []
    while True:
        try:
            number = work.get_nowait()
        except queue.Empty:
            return served
        with socket.create_connection(address, timeout=WAIT) as client:
            kind = random.Random(number).choice(["end", "close", "reset", "be reset"])
            text = b"reset me" if kind == "be reset" else b"caller %d" % number
            client.sendall(text)
            if kind == "be reset":
                assert ending(client) == "reset"
            else:
                assert client.recv(100) == text
            if kind == "end":
                client.shutdown(socket.SHUT_WR)
                assert ending(client) == "end of file"
            if kind == "reset":
                reset(client)
        served.append(number)


def test_at_the_limit_callers_wait_in_the_backlog_and_are_served_in_turn(relayed, any_engine):
    rig = relayed(nconnect=3)
    live = [rig.connect() for _ in range(3)]
    waiting = [rig.client() for _ in range(5)]
    for number, client in enumerate(waiting):
        client.sendall(bytes([number]))
    rig.target.settimeout(0.3)
    with pytest.raises(TimeoutError):
        rig.target.accept()
    assert (rig.tunnel.stats().active, rig.tunnel.stats().accepted) == (3, 3)
    rig.target.settimeout(WAIT)
    for number, client in enumerate(waiting):
        old_client, old_far = live.pop(0)
        old_client.close()
        assert ending(old_far) == "end of file"
        old_far.close()
        far = rig.accept()
        assert far.recv(10) == bytes([number])
        live.append((client, far))
        assert rig.tunnel.stats().active <= 3


def test_connecting_ones_count(listener):
    release = threading.Event()

    def make():
        release.wait(WAIT)
        return socket.create_connection(listener.getsockname())

    with relay.Tunnel(relay.listen(":0"), make, nconnect=2) as tunnel:
        clients = [socket.create_connection(tunnel.address, timeout=WAIT) for _ in range(4)]
        wait_until(lambda: tunnel.stats().active == 2)
        threading.Event().wait(0.2)
        assert tunnel.stats().accepted == 2
        release.set()
        for client in clients:
            listener.accept()[0].close()
            client.close()


def finish(rig):
    client, far = rig.connect()
    send_and_end(client, b"a")
    assert receive_all(far) == b"a"
    far.close()


def client_resets(rig):
    client, _ = rig.connect()
    reset(client)


def target_resets(rig):
    client, far = rig.connect()
    reset(far)
    assert ending(client) == "reset"


def both_reset(rig):
    client, far = rig.connect()
    reset(far)
    reset(client)


def client_closes_in_bulk(rig):
    client, far = rig.connect()
    sending = Thread(flood, far)
    client.recv(1000)
    client.close()
    with pytest.raises(ConnectionError):
        sending.result()


def goes_quiet(rig):
    client, _ = rig.connect()
    for times in (1, 2, 4):  # the first looks may find that the kernel has moved something
        expire(rig.tunnel, time.monotonic() + times * LONG)
    assert ending(client) == "reset"  # idle_timeout


def lingers(rig):
    client, _ = rig.connect()
    client.shutdown(socket.SHUT_WR)
    assert ending(client) == "reset"


def is_refused(rig):
    rig.fail.append(ConnectionRefusedError())
    assert fate_of_client(rig.tunnel.address) == "reset"


def meets_a_bug(rig):
    rig.fail.append(SystemExit(3))
    assert fate_of_client(rig.tunnel.address) == "reset"


def gets_nonsense(rig):
    rig.fail.append("nonsense")
    assert fate_of_client(rig.tunnel.address) == "reset"


def leaves_while_connecting(rig):
    gate = threading.Event()
    rig.fail.append(gate)
    client = rig.client()
    wait_until(lambda: not rig.fail)
    reset(client)
    wait_until(lambda: rig.tunnel.stats().active == 0)
    gate.set()
    ending(rig.accept())  # the stream that came too late is closed


ENDINGS = [
    finish,
    client_resets,
    target_resets,
    both_reset,
    client_closes_in_bulk,
    goes_quiet,
    lingers,
    is_refused,
    meets_a_bug,
    gets_nonsense,
    leaves_while_connecting,
]


@pytest.mark.parametrize("way", ENDINGS, ids=lambda way: way.__name__)
def test_no_slot_is_lost(relayed, way):
    fail = []

    def make():
        if fail:
            what = fail.pop()
            if isinstance(what, BaseException):
                raise what
            if isinstance(what, str):
                return what
            what.wait(WAIT)
        return socket.create_connection(rig.target.getsockname())

    limits = {"idle_timeout": LONG, "timeout": None} if way is goes_quiet else {"linger": 0.1} if way is lingers else {}
    rig = relayed(make, nconnect=2, **limits)
    rig.fail = fail
    for number in range(5):  # more often than there are slots
        way(rig)
        ended(rig.tunnel, number + 1)
    pairs = [rig.connect() for _ in range(2)]
    for client, far in pairs:
        exchange(client, far)


def test_a_listener_object_stops_at_the_limit(listener):
    fake = FakeListener()
    with relay.Tunnel(fake, relay.tcp(*listener.getsockname()), nconnect=1) as tunnel:
        first = fake.connect()
        far, _ = listener.accept()
        second = fake.connect()
        second.sendall(b"second")
        listener.settimeout(0.2)
        with pytest.raises(TimeoutError):
            listener.accept()
        assert tunnel.stats().active == 1
        listener.settimeout(WAIT)
        far.close()
        first.close()
        far, _ = listener.accept()
        with far, second:
            far.settimeout(WAIT)
            assert far.recv(10) == b"second"


def test_with_refused_targets_the_waiting_come_through(any_engine):
    with refusing() as address, relay.Tunnel(relay.listen(":0"), relay.tcp(*address), nconnect=1) as tunnel:
        clients = [Thread(fate_of_client, tunnel.address) for _ in range(20)]
        assert [client.result() for client in clients] == ["reset"] * 20
        assert ended(tunnel, 20) == ["refused"] * 20
