"""``close()`` returns in under a second, whatever is under way, from wherever it is called."""

import contextlib
import itertools
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
    ended,
    ending,
    exchange,
    fate_of_client,
    flood,
    is_gone,
    receive_all,
    send_and_end,
    wait_until,
)

import relay
from relay.testing import FakeListener


def close_in_time(tunnel):
    begin = time.monotonic()
    tunnel.close()
    assert time.monotonic() - begin < PROMPT


def test_with_live_connections(relayed, any_engine):
    rig = relayed()
    address = rig.tunnel.address
    pairs = [rig.connect() for _ in range(50)]
    for client, far in pairs:
        exchange(client, far)
    close_in_time(rig.tunnel)
    for client, far in pairs:
        assert (ending(client), ending(far)) == ("reset", "reset")
    assert ended(rig.tunnel, 50) == ["closed"] * 50
    assert rig.tunnel.stats().failed == {}
    assert is_gone(address)


def test_with_bulk_under_way_and_with_stalled_readers(relayed, any_engine):
    rig = relayed()
    pairs = [rig.connect() for _ in range(10)]
    sending = [Thread(flood, client) for client, _ in pairs]
    reading = [Thread(ending, far) for _, far in pairs[::2]]
    wait_until(lambda: rig.tunnel.stats().active == 10 and all(one.received for one in rig.tunnel.connections()))
    close_in_time(rig.tunnel)
    for thread in sending:
        with pytest.raises(ConnectionError):
            thread.result()
    assert [thread.result() for thread in reading] == ["reset"] * 5


def test_with_connecting_ones(any_engine):
    with black_hole() as hole:
        tunnel = relay.Tunnel(relay.listen(":0"), relay.tcp(*hole.getsockname()))
        clients = [socket.create_connection(tunnel.address, timeout=WAIT) for _ in range(10)]
        wait_until(lambda: tunnel.stats().active == 10)
        close_in_time(tunnel)
        assert [ending(client) for client in clients] == ["reset"] * 10
        for client in clients:
            client.close()
        assert ended(tunnel, 10) == ["closed"] * 10


def test_with_factories_that_are_blocked(any_engine):
    """Nothing of a tunnel survives but the calls that are still blocked; what they return is closed."""
    release, fars = threading.Event(), []

    def make():
        near, far = socket.socketpair()
        fars.append(far)
        release.wait(WAIT)
        return near

    tunnel = relay.Tunnel(relay.listen(":0"), make)
    clients = [socket.create_connection(tunnel.address, timeout=WAIT) for _ in range(10)]
    wait_until(lambda: len(fars) == 10)
    close_in_time(tunnel)
    assert [ending(client) for client in clients] == ["reset"] * 10
    release.set()
    for end in fars:
        end.settimeout(WAIT)
        assert end.recv(1) == b""
    for end in (*clients, *fars):
        end.close()


def test_twice_and_from_many_threads_at_once(relayed, any_engine):
    rig = relayed()
    rig.connect()
    for thread in [Thread(close_in_time, rig.tunnel) for _ in range(10)]:
        thread.result()
    close_in_time(rig.tunnel)
    rig.tunnel.join(WAIT)


@pytest.mark.parametrize("mark", [relay.nonblocking, lambda make: make], ids=["engine", "thread"])
@pytest.mark.parametrize("drain", [0.0, WAIT])
def test_from_inside_make_send(listener, mark, drain):
    """It marks the tunnel as closing and returns, and so does the tunnel's end."""
    took = []

    @mark
    def make():
        begin = time.monotonic()
        tunnel.close(drain)
        took.append(time.monotonic() - begin)
        made = socket.socket()
        made.connect(listener.getsockname())
        return made

    tunnel = relay.Tunnel(relay.listen(":0"), make)
    if drain:
        with socket.create_connection(tunnel.address, timeout=WAIT) as client:
            far, _ = listener.accept()
            with far:
                far.settimeout(WAIT)
                exchange(client, far)
    else:
        assert fate_of_client(tunnel.address) == "reset"
    tunnel.join(WAIT)
    assert took[0] < PROMPT
    close_in_time(tunnel)
    assert tunnel.stats().active == 0


def test_during_a_storm_of_new_connections(echo_server, any_engine):
    tunnel = relay.Tunnel(relay.listen(":0"), echo_server.factory())
    address, storming = tunnel.address, threading.Event()
    storming.set()

    def storm():
        while storming.is_set():
            with contextlib.suppress(OSError), socket.create_connection(address, timeout=WAIT) as client:
                client.sendall(b"x")
                client.recv(1)

    callers = [Thread(storm) for _ in range(8)]
    wait_until(lambda: tunnel.stats().accepted > 100)
    close_in_time(tunnel)
    storming.clear()
    for caller in callers:
        caller.result()
    assert tunnel.stats().active == 0


def test_with_a_storm_of_closes_and_openings(echo_server, any_engine):
    """Fifty tunnels made, used and closed leave nothing (the leak check tells)."""
    for _ in range(50):
        with relay.Tunnel(relay.listen(":0"), echo_server.factory()) as tunnel:
            with socket.create_connection(tunnel.address, timeout=WAIT) as client:
                client.sendall(b"x")
                assert client.recv(1) == b"x"


def test_what_waits_in_the_backlog_is_ended_too(relayed):
    rig = relayed(nconnect=1)
    rig.connect()
    waiting = rig.client()
    close_in_time(rig.tunnel)
    assert ending(waiting) == "reset"


def test_it_closes_what_it_owns(tmp_path):
    class Factory:
        closed = 0

        def __call__(self):
            raise ConnectionRefusedError

        def close(self):
            self.closed += 1

    factory, fake = Factory(), FakeListener()
    tunnel = relay.Tunnel(fake, factory)
    close_in_time(tunnel)
    tunnel.close()
    assert fake.closed
    assert factory.closed == 1
    path = tmp_path / "socket"
    tunnel = relay.Tunnel(relay.listen(f"unix://{path}"), factory)
    close_in_time(tunnel)
    assert not path.exists()


def test_a_listener_object_that_cannot_be_woken_does_not_hold_it_up():
    gate = threading.Event()

    class Deaf:
        def accept(self):
            gate.wait(WAIT)
            raise OSError("closed long ago")

        def close(self):
            pass

    tunnel = relay.Tunnel(Deaf(), relay.tcp("127.0.0.1", 9))
    close_in_time(tunnel)
    gate.set()


# Drain.


def test_drain_lets_live_connections_finish_and_takes_no_new_ones(relayed, any_engine):
    rig = relayed()
    client, far = rig.connect()
    exchange(client, far)
    address = rig.tunnel.address
    closing = Thread(rig.tunnel.close, 2 * WAIT)
    wait_until(lambda: is_gone(address))
    exchange(client, far)
    upload = Thread(send_and_end, client, BLOCK * 4)
    assert receive_all(far) == BLOCK * 4
    upload.result()
    assert closing.is_alive()
    send_and_end(far, b"bye")
    assert receive_all(client) == b"bye"
    closing.result()
    assert ended(rig.tunnel) == ["done"]


def test_drain_ends_the_rest_when_its_time_is_over(relayed, any_engine):
    rig = relayed()
    client, far = rig.connect()
    exchange(client, far)
    begin = time.monotonic()
    rig.tunnel.close(drain=0.3)
    assert time.monotonic() - begin > 0.25
    assert (ending(client), ending(far)) == ("reset", "reset")
    assert ended(rig.tunnel) == ["closed"]


def test_a_second_close_ends_a_drain_at_once(relayed):
    rig = relayed()
    client, far = rig.connect()
    exchange(client, far)
    address = rig.tunnel.address
    draining = Thread(rig.tunnel.close, 2 * WAIT)
    wait_until(lambda: is_gone(address))
    close_in_time(rig.tunnel)
    draining.result()
    assert ending(client) == "reset"


def test_drain_with_nobody_there_returns_at_once(relayed):
    rig = relayed()
    Thread(rig.tunnel.close, 2 * WAIT).result()


def test_drain_waits_for_one_that_is_still_connecting(listener):
    release, calls = threading.Event(), itertools.count()

    def make():
        next(calls)
        release.wait(WAIT)
        return socket.create_connection(listener.getsockname())

    tunnel = relay.Tunnel(relay.listen(":0"), make)
    with socket.create_connection(tunnel.address, timeout=WAIT) as client:
        wait_until(lambda: tunnel.stats().active == 1)
        address = tunnel.address
        closing = Thread(tunnel.close, 2 * WAIT)
        wait_until(lambda: is_gone(address))
        release.set()
        far, _ = listener.accept()
        with far:
            far.settimeout(WAIT)
            exchange(client, far)
            client.shutdown(socket.SHUT_WR)
            assert far.recv(1) == b""
        closing.result()
    assert next(calls) == 1
