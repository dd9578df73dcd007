"""With ``warm``, a client gets a stream that is open already; a target that is down delays no client."""

import contextlib
import select
import socket
import threading
import time

import pytest
from helpers import WAIT, Thread, black_hole, exchange, fate_of_client, receive_all, receive_exactly, wait_until
from sshd import FarEnd

import relay
from relay.engine import changes

LIMITS = {"nconnect": -1, "timeout": None, "connect_timeout": WAIT, "idle_timeout": None, "linger": 60.0}


def ready(tunnel, count):
    """Wait until so many streams are open for the next clients."""
    wait_until(lambda: (warm := tunnel.metrics().warm) is not None and warm.ready == count)


def hits(tunnel):
    return tunnel.stats().warm_hits, tunnel.stats().warm_misses


@pytest.fixture
def quick(monkeypatch):
    """A short back-off, and no time that a stream must last: how long they are has its own tests."""
    monkeypatch.setattr("relay.engine.warm_pool._BACKOFF", (0.01, 0.05))
    monkeypatch.setattr("relay.engine.warm_pool._STABLE", 0.0)


@pytest.mark.parametrize("way_out", ["tcp", "unix", "tls"])
def test_the_stream_is_there_first(relayed, way_out):
    rig = relayed(way_out=way_out, warm=1, timeout=None)
    far = Thread(rig.accept).result()  # before there is a client
    ready(rig.tunnel, 1)
    client = rig.client()
    exchange(client, far)
    wait_until(lambda: hits(rig.tunnel) == (1, 0))
    (record,) = rig.tunnel.connections()
    assert record.warm
    assert record.hop_times == ()
    rig.accept()  # the next one
    ready(rig.tunnel, 1)


def test_what_a_server_says_first_is_for_the_client(relayed):
    rig = relayed(warm=1, timeout=None)
    far = rig.accept()
    far.sendall(b"220 mail.example ESMTP\r\n")
    ready(rig.tunnel, 1)
    client = rig.client()
    assert receive_exactly(client, 24) == b"220 mail.example ESMTP\r\n"
    exchange(client, far)


def test_any_factory_will_do(relayed, echo_server):
    for factory in (lambda: socket.create_connection(echo_server.address), echo_server.factory()):
        rig = relayed(factory, warm=2, timeout=None)
        ready(rig.tunnel, 2)
        client = rig.client()
        client.sendall(b"ping")
        assert receive_exactly(client, 4) == b"ping"
        assert hits(rig.tunnel) == (1, 0)


def test_warm_streams_take_no_slot(relayed):
    rig = relayed(warm=3, nconnect=1, timeout=None)
    ends = [rig.accept() for _ in range(3)]
    ready(rig.tunnel, 3)
    with rig.client() as client:
        exchange(client, ends[0])
    ends[0].close()
    exchange(rig.client(), ends[1])
    assert hits(rig.tunnel) == (2, 0)


def test_a_target_that_ends_idle_streams(relayed, quick):
    rig = relayed(warm=1, timeout=None)
    for _ in range(5):
        rig.accept().close()
    far = rig.accept()
    ready(rig.tunnel, 1)
    exchange(rig.client(), far)
    assert hits(rig.tunnel) == (1, 0)
    assert rig.tunnel.metrics().warm.ended >= 5


def test_calls_that_never_return_are_no_more_than_the_streams(relayed, quick):
    given_up, calls = threading.Event(), []

    def factory():
        calls.append(None)
        given_up.wait()

    rig = relayed(factory, warm=2, timeout=None, connect_timeout=0.01)
    pool = rig.tunnel._relay._connector
    wait_until(lambda: pool.warm is not None and pool.warm._backoff.failures > 5)
    assert len(calls) == 2
    given_up.set()


def test_without_descriptors_clients_come_first(relayed):
    rig = relayed(warm=8, timeout=None)
    ends = [rig.accept() for _ in range(8)]
    ready(rig.tunnel, 8)
    thread = rig.tunnel._relay
    thread.run_in_thread(lambda: thread.make_room(time.monotonic()))  # as when a client cannot be accepted
    assert [receive_all(end) for end in ends[:2]] == [b"", b""]
    ready(rig.tunnel, 6)
    exchange(rig.client(), ends[2])


def test_an_old_stream_is_replaced(relayed):
    rig = relayed(warm=1, warm_for=0.05, timeout=None)
    for _ in range(3):
        assert receive_all(rig.accept()) == b""
    assert rig.tunnel.metrics().warm.expired >= 3
    assert rig.tunnel.recent() == []


def test_a_target_that_goes_down_and_comes_back(reserved, quick):
    with relay.Tunnel(relay.listen(":0"), relay.tcp("127.0.0.1", reserved), warm=2, timeout=None) as tunnel:
        for number in range(1, 3):
            assert fate_of_client(tunnel.address) == "reset", "as without warm"
            wait_until(lambda: tunnel.stats().failed == {"refused": number})  # noqa: B023
            with contextlib.ExitStack() as stack:
                server = stack.enter_context(socket.create_server(("127.0.0.1", reserved)))
                server.settimeout(WAIT)
                ends = [stack.enter_context(server.accept()[0]) for _ in range(2)]
                ready(tunnel, 2)
                client = stack.enter_context(socket.create_connection(tunnel.address, WAIT))
                exchange(client, ends[0])
            ready(tunnel, 0)
            wait_until(lambda: tunnel.stats().active == 0)
        assert hits(tunnel) == (2, 2)


@pytest.mark.parametrize("drain", [0.0, WAIT])
def test_nothing_is_left(relayed, drain):
    rig = relayed(warm=2, timeout=None)
    used, spare = rig.accept(), rig.accept()
    ready(rig.tunnel, 2)
    client = rig.client()
    exchange(client, used)
    third = rig.accept()
    closing = Thread(rig.tunnel.close, drain)
    assert receive_all(spare) == receive_all(third) == b""
    if drain:
        exchange(client, used)
        client.close()
        used.close()
    closing.result()
    assert rig.tunnel.metrics().warm.ready == 0


def test_closing_gives_up_what_is_under_way(relayed):
    with black_hole() as listening:
        rig = relayed(relay.tcp(*listening.getsockname()), warm=2, timeout=None, connect_timeout=None)
        rig.client()
        wait_until(lambda: hits(rig.tunnel) == (0, 1))
        rig.tunnel.close()


def test_a_reload_touches_no_connection(relayed):
    rig = relayed(warm=2, timeout=None)
    used, first = rig.accept(), rig.accept()
    ready(rig.tunnel, 2)
    client = rig.client()
    exchange(client, used)
    second = rig.accept()
    changes.update(rig.tunnel, **LIMITS, warm=1)
    assert receive_all(first) == b""
    ready(rig.tunnel, 1)
    changes.update(rig.tunnel, **LIMITS, warm=0)
    assert receive_all(second) == b""
    changes.update(rig.tunnel, **LIMITS, warm=1)
    rig.accept()
    exchange(client, used)


def test_a_new_route_gets_streams_of_its_own(relayed, listener):
    rig = relayed(warm=1, timeout=None)
    old = rig.accept()
    ready(rig.tunnel, 1)
    changes.reroute(rig.tunnel, relay.tcp(*listener.getsockname()), None)
    assert receive_all(old) == b""
    far = listener.accept()[0]
    with far:
        far.settimeout(WAIT)
        ready(rig.tunnel, 1)
        exchange(rig.client(), far)


def test_over_ssh(far_end, over_ssh):
    rig = over_ssh(far_end.url, warm=2)
    ends = [rig.accept() for _ in range(2)]
    ready(rig.tunnel, 2)
    for end in ends:
        end.sendall(b"hello")
    clients = [rig.client(), rig.client()]
    assert [receive_exactly(client, 5) for client in clients] == [b"hello"] * 2
    ends = ends_of(clients, ends)
    for client, far in zip(clients, ends, strict=True):
        exchange(client, far)
    assert hits(rig.tunnel) == (2, 0)
    assert {record.carrier for record in rig.tunnel.connections()} == {str(far_end.server)}
    [rig.accept() for _ in range(2)]
    ready(rig.tunnel, 2)


@pytest.mark.parametrize("way_out", ["tcp", "tls", "ssh"])
def test_more_of_them_need_no_more_threads(way_out, relayed, openssh_server, request):
    def rig(count):
        if way_out == "ssh":
            make, server = request.getfixturevalue("over_ssh"), request.getfixturevalue("sshd")
            return make(FarEnd("sshd", "paramiko", server).url, warm=count)
        return relayed(way_out=way_out, warm=count, timeout=None)

    threads = []
    for count in (1, 20):
        made = rig(count)
        accepted = [Thread(made.accept) for _ in range(count)]
        [one.result() for one in accepted]
        ready(made.tunnel, count)
        threads.append(sum(not isinstance(one, Thread) for one in threading.enumerate()))
        made.close()
    assert threads[1] <= threads[0]


def ends_of(clients, ends):
    """The ends in the order of their clients: streams that were opened together may be ready in any order."""
    for number, client in enumerate(clients):
        client.sendall(bytes([number]))
    found = {receive_exactly(end, 1)[0]: end for end in ends}
    return [found[number] for number in range(len(clients))]


def exchange_with_any(rig):
    """Prove that a client is relayed by one of the streams that the target has accepted; some have ended already."""
    client, fars = rig.client(), []
    client.sendall(b"ping")
    while True:
        readable, _, _ = select.select([rig.target, *fars], [], [], WAIT)
        assert readable, "no stream has the client's bytes"
        for one in readable:
            if one is rig.target:
                fars.append(rig.accept())
            elif one.recv(4) == b"ping":
                one.sendall(b"pong")
                assert receive_exactly(client, 4) == b"pong"
                return
            else:
                fars.remove(one)


def test_a_lost_carrier_takes_its_streams_along_and_brings_new_ones(mortal_far_end, over_ssh, monkeypatch, caplog):
    monkeypatch.setattr("relay.carriers.retry._BACKOFF", (0.05, 1.0))
    rig = over_ssh(mortal_far_end.url, warm=2)
    [rig.accept() for _ in range(2)]
    ready(rig.tunnel, 2)
    mortal_far_end.down()
    ready(rig.tunnel, 0)
    mortal_far_end.up()
    ready(rig.tunnel, 2)
    exchange_with_any(rig)
    assert hits(rig.tunnel) == (1, 0)
    assert not [record for record in caplog.records if "no stream is ready" in record.getMessage()]


def test_a_server_with_room_for_no_more_channels(backend, make_ssh_server, over_ssh, quick):
    """The warm streams occupy the last places; the clients get them, and no more of them is refused than without."""
    rig = over_ssh(FarEnd("embedded", backend, make_ssh_server(max_channels=2)).url, warm=2)
    ends = [rig.accept() for _ in range(2)]
    ready(rig.tunnel, 2)
    clients = [rig.client() for _ in range(2)]
    ends = ends_of(clients, ends)
    for client, far in zip(clients, ends, strict=True):
        exchange(client, far)
    assert fate_of_client(rig.tunnel.address) == "reset"
    clients[0].close()
    assert receive_all(ends[0]) == b""
    ends[0].close()
    far = rig.accept()
    ready(rig.tunnel, 1)
    client, clients = rig.client(), 4
    # A stream of the OpenSSH client is open before the server has refused it, so a client may get one, which is reset.
    while not is_first_readable(far, client):
        assert backend == "openssh"
        client, clients = rig.client(), clients + 1
    exchange(client, far)
    assert sum(hits(rig.tunnel)) == clients
    assert backend == "openssh" or hits(rig.tunnel) == (3, 1)


def is_first_readable(far, client):
    """Send a byte; return whether it arrives, and not the end of the client's connection."""
    client.sendall(b"?")
    readable, _, _ = select.select([far, client], [], [], WAIT)
    assert readable, "neither the byte nor an end"
    return far in readable and far.recv(1) == b"?"


@pytest.mark.parametrize("personality", ["i2p_double", "java_double"])
def test_over_i2p(personality, request, relayed):
    world = request.getfixturevalue(personality)
    with socket.create_server(("127.0.0.1", 0)) as target:
        target.settimeout(WAIT)
        with world.serve(target.getsockname()[1]) as server:
            rig = relayed(relay.target(f"i2p://{server.dest}?sam={world.client}"), warm=1, timeout=None)
            with target.accept()[0] as far:
                far.settimeout(WAIT)
                ready(rig.tunnel, 1)
                client = rig.client()
                exchange(client, far)
                assert hits(rig.tunnel) == (1, 0)
                (record,) = rig.tunnel.connections()
                assert record.carrier and record.warm
                client.close()


def test_in_a_child_process(echo_server):
    target = "{}:{}".format(*echo_server.address)
    with relay.spawn(":0", target, warm=2) as tunnel:
        ready(tunnel, 2)
        with socket.create_connection(tunnel.address, WAIT) as client:
            client.sendall(b"ping")
            assert receive_exactly(client, 4) == b"ping"
            wait_until(lambda: [record.warm for record in tunnel.connections()] == [True])
        assert hits(tunnel) == (1, 0)


@pytest.mark.parametrize(
    ("value", "error", "told"),
    [
        ({"warm": -1}, ValueError, "warm: must be from 0 to 1024, got -1; use 0 for none"),
        ({"warm": 1025}, ValueError, "warm: must be from 0 to 1024, got 1025; use 0 for none"),
        ({"warm": True}, TypeError, "warm: expected a whole number, got bool"),
        ({"warm": "2"}, TypeError, "warm: expected a whole number, got str"),
        ({"warm_for": 0}, ValueError, "warm_for: must be greater than 0, got 0; use 30 seconds"),
        ({"warm_for": None}, ValueError, "warm_for: must have a limit, got None; use 30 seconds"),
        ({"warm_for": float("inf")}, ValueError, "warm_for: must have a limit, got inf; use 30 seconds"),
    ],
)
def test_bad_values_are_named_at_the_call(listener, value, error, told):
    for call in (relay.Tunnel, relay.spawn):
        target = relay.tcp("127.0.0.1", 1) if call is relay.Tunnel else "127.0.0.1:1"
        with pytest.raises(error) as caught:
            call(listener, target, **value)
        assert str(caught.value) == told
