"""A limit of clients is exact: so many get in and no more, however connections end, with workers, after a reload."""

import socket
import struct

import pytest
from helpers import WAIT, ended, ending, fate_of_client, makes, receive_exactly, refusing, send_and_end, wait_until

import relay
from relay.engine import changes, ledgers
from relay.eventloop.sockets import reset

LIMITS = {"nconnect": -1, "timeout": None, "connect_timeout": WAIT, "idle_timeout": None, "linger": 60.0}


def is_served(client):
    client.settimeout(WAIT)
    client.sendall(b"ping")
    return receive_exactly(client, 4) == b"ping"


@pytest.fixture
def connect():
    yield from makes(lambda address: socket.create_connection(address, WAIT))


def test_the_number_at_a_time_holds_whatever_way_connections_end(echo_server, connect):
    limit = [{"per": "ip", "concurrent": 1, "name": "one"}]
    endings = [
        lambda client: client.close(),
        reset,
        lambda client: send_and_end(client, b"bye"),
        lambda client: tunnel.kill(tunnel.connections()[0].id),
    ]
    with relay.Tunnel(relay.listen(":0"), echo_server.factory(), timeout=None, limit=limit) as tunnel:
        for end in endings * 2:
            client = connect(tunnel.address)
            assert is_served(client)
            assert fate_of_client(tunnel.address) == "reset"
            end(client)
            client.close()
            wait_until(lambda: tunnel.stats().active == 0)
        assert tunnel.metrics().denied["limit one"] == len(endings) * 2
        assert tunnel.stats().failed["denied"] == len(endings) * 2


def test_a_dial_that_fails_and_one_that_is_given_up_leave_their_place(connect):
    limit = [{"concurrent": 1}]
    with refusing() as address, relay.Tunnel(relay.listen(":0"), relay.tcp(*address), limit=limit) as tunnel:
        for _ in range(3):
            assert fate_of_client(tunnel.address) == "reset"
            assert ended(tunnel) == ["refused"]


def test_a_rate_lets_so_many_in_and_the_record_has_the_rule(echo_server, connect):
    limit = [{"rate": "3/1h", "name": "few", "ban": "1h"}]
    with relay.Tunnel(relay.listen(":0"), echo_server.factory(), limit=limit) as tunnel:
        clients = [connect(tunnel.address) for _ in range(3)]
        assert all(map(is_served, clients))
        assert [fate_of_client(tunnel.address) for _ in range(2)] == ["reset"] * 2
        wait_until(lambda: len(tunnel.recent()) == 2)
        first, second = tunnel.recent()
        assert [(one.reason, one.by, one.rule, one.target) for one in (first, second)] == [
            ("denied", "relay", "limit few", None),
            ("denied", "relay", "ban few", None),
        ]
        assert all(map(is_served, clients)), "a ban does not end what is open"


def test_close_is_an_end_of_file_also_for_a_client_that_has_sent_something(echo_server, connect):
    limit = [{"rate": "1/1h", "action": "close"}]
    with relay.Tunnel(relay.listen(":0"), echo_server.factory(), limit=limit) as tunnel:
        assert is_served(connect(tunnel.address))
        with socket.create_connection(tunnel.address, WAIT) as client:
            client.sendall(b"hello")
            assert ending(client) == "end of file"
        wait_until(lambda: tunnel.recent())
        assert tunnel.recent()[0].reason == "denied"


def test_a_reload_keeps_what_a_limit_has_counted(echo_server, connect):
    limit = [{"rate": "1/1h", "name": "few"}, {"concurrent": 5, "name": "now"}]
    with relay.Tunnel(relay.listen(":0"), echo_server.factory(), timeout=None, limit=limit) as tunnel:
        client = connect(tunnel.address)
        assert is_served(client)
        changes.update(tunnel, **LIMITS, limit=[{"concurrent": 1, "name": "now"}, {"rate": "1/1h", "name": "few"}])
        assert fate_of_client(tunnel.address) == "reset"
        changes.update(tunnel, **LIMITS, limit=[{"concurrent": 2, "name": "now"}, {"rate": "1/1h", "name": "few"}])
        assert fate_of_client(tunnel.address) == "reset"
        assert [record.rule for record in tunnel.recent()] == ["limit now", "limit few"]
        changes.update(tunnel, **LIMITS)
        assert is_served(connect(tunnel.address))


def test_with_workers_it_is_that_of_all_of_them_together(echo_server, connect):
    target = "{}:{}".format(*echo_server.address)
    with relay.spawn(":0", target, workers=2, limit=[{"concurrent": 3, "per": "tunnel"}]) as tunnel:
        clients = [connect(tunnel.address) for _ in range(3)]
        assert all(map(is_served, clients))
        assert [fate_of_client(tunnel.address) for _ in range(5)] == ["reset"] * 5
        wait_until(lambda: tunnel.stats().failed.get("denied") == 5)


def test_in_a_child_process_too(echo_server, connect):
    limit = [relay.Limit(rate="1/1h", name="few")]
    with relay.spawn(":0", "{}:{}".format(*echo_server.address), limit=limit) as tunnel:
        assert is_served(connect(tunnel.address))
        assert fate_of_client(tunnel.address) == "reset"
        assert ended_with(tunnel) == "limit few"


def ended_with(tunnel):
    wait_until(lambda: tunnel.recent())
    return tunnel.recent()[0].rule


def test_each_client_counts_by_its_own_address(echo_server, connect):
    with relay.Tunnel(relay.listen(":0"), echo_server.factory(), limit=[{"rate": "1/1h"}]) as tunnel:
        for number in (2, 3, 4):
            with socket.socket() as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                client.bind((f"127.0.0.{number}", 0))
                client.connect(tunnel.address)
                assert is_served(client)
        assert is_served(connect(tunnel.address))
        assert fate_of_client(tunnel.address) == "reset"


def test_bans_are_counted_until_they_end_or_are_cleared(echo_server, connect):
    limit = [{"per": "ip", "rate": "1/1h", "name": "few", "ban": "1h"}, {"concurrent": 99, "name": "other"}]
    with relay.Tunnel(relay.listen(":0"), echo_server.factory(), limit=limit) as tunnel:
        assert tunnel.metrics().bans == {"few": 0}
        assert is_served(connect(tunnel.address))
        for _ in range(2):
            assert fate_of_client(tunnel.address) == "reset"
            assert tunnel.metrics().bans == {"few": 1}
        assert ledgers.clear(tunnel, "bans", "127.0.0.1") == 1
        assert tunnel.metrics().bans == {"few": 0}
        assert tunnel.metrics().throttled == 0


@pytest.mark.parametrize("per", ["ip", "connection"])
def test_the_time_that_connections_wait_for_bandwidth_is_counted(echo_server, connect, per):
    size = 16 << 10
    with relay.Tunnel(relay.listen(":0"), echo_server.factory(), limit=[{"per": per, "bandwidth": "32kB/s"}]) as tunnel:
        client = connect(tunnel.address)
        client.settimeout(WAIT)
        client.sendall(b"x" * size)
        receive_exactly(client, size)
        wait_until(lambda: tunnel.stats().received == size)
        waited = tunnel.metrics().throttled
        assert waited > 0
        assert is_served(client)
        client.close()
        wait_until(lambda: tunnel.stats().active == 0)
        assert tunnel.metrics().throttled >= waited


@pytest.mark.parametrize("options", [{}, {"workers": 2}])
def test_with_workers_and_in_a_child_process_it_is_counted_too(echo_server, connect, options):
    limit, target = [{"per": "connection", "bandwidth": "32kB/s"}], "{}:{}".format(*echo_server.address)
    with relay.spawn(":0", target, limit=limit, **options) as tunnel:
        client = connect(tunnel.address)
        client.settimeout(WAIT)
        client.sendall(b"x" * (16 << 10))
        receive_exactly(client, 16 << 10)
        wait_until(lambda: tunnel.metrics().throttled > 0)
