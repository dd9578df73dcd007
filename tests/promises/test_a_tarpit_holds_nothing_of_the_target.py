"""A client in the tarpit waits: it holds no descriptor but its own, no slot, and nothing at the target."""

import contextlib
import os
import socket

from helpers import WAIT, ending, fate_of_client, receive_exactly, wait_until

import relay
from relay.engine import changes, tarpit

TARPIT = [{"per": "tunnel", "rate": "1/1h", "ban": "1h", "action": "tarpit", "name": "slow"}]


def served(address):
    client = socket.create_connection(address, WAIT)
    client.sendall(b"ping")
    assert receive_exactly(client, 4) == b"ping"
    return client


def open_descriptors():
    return len(os.listdir("/proc/self/fd"))


def test_clients_are_kept_without_a_target_and_without_a_slot(echo_server):
    with contextlib.ExitStack() as stack:
        tunnel = stack.enter_context(
            relay.Tunnel(relay.listen(":0"), echo_server.factory(), nconnect=2, timeout=None, limit=TARPIT)
        )
        stack.enter_context(served(tunnel.address))
        before = open_descriptors()
        kept = [stack.enter_context(socket.create_connection(tunnel.address, WAIT)) for _ in range(20)]
        for client in kept:
            client.sendall(b"GET / HTTP/1.1\r\n\r\n")
        wait_until(lambda: len(tunnel.connections()) == 21)
        assert open_descriptors() == before + 40, "each has its own descriptor here and at its client"
        assert {record.state for record in tunnel.connections()[1:]} == {"connecting"}
        assert all(record.target is None and record.received == 0 for record in tunnel.connections()[1:])
        kept[0].close()
        wait_until(lambda: len(tunnel.connections()) == 20)
        assert (tunnel.recent()[0].reason, tunnel.recent()[0].rule) == ("denied", "limit slow")
        changes.update(tunnel, nconnect=2, timeout=None, connect_timeout=WAIT, idle_timeout=None, linger=60.0)
        stack.enter_context(served(tunnel.address))


def test_it_lasts_until_the_ban_ends(echo_server):
    limit = [{"rate": "1/1h", "ban": "0.2s", "action": "tarpit"}]
    with relay.Tunnel(relay.listen(":0"), echo_server.factory(), limit=limit) as tunnel, served(tunnel.address):
        assert fate_of_client(tunnel.address) == "reset"
        wait_until(lambda: tunnel.recent() and tunnel.recent()[-1].reason == "denied")
        assert tunnel.recent()[-1].age >= 0.2


def test_tunnels_share_the_places_and_without_one_a_client_is_reset(echo_server, monkeypatch):
    monkeypatch.setattr(tarpit, "_MOST", 3)
    with contextlib.ExitStack() as stack:
        options = {"timeout": None, "limit": TARPIT}
        tunnels = [
            stack.enter_context(relay.Tunnel(relay.listen(":0"), echo_server.factory(), **options)) for _ in range(2)
        ]
        for tunnel in tunnels:
            stack.enter_context(served(tunnel.address))
        for count, tunnel in ((1, tunnels[0]), (1, tunnels[1]), (2, tunnels[1])):
            client = stack.enter_context(socket.create_connection(tunnel.address, WAIT))
            wait_until(lambda tunnel=tunnel, count=count: tunnel.stats().accepted == count + 1)
        assert [fate_of_client(tunnel.address) for tunnel in tunnels] == ["reset"] * 2
        client.close()
        wait_until(lambda: len(tunnels[1].connections()) == 2)
        stack.enter_context(socket.create_connection(tunnels[0].address, WAIT))
        wait_until(lambda: len(tunnels[0].connections()) == 3)


def test_the_end_of_the_tunnel_does_not_wait_for_them(echo_server):
    with relay.Tunnel(relay.listen(":0"), echo_server.factory(), timeout=None, limit=TARPIT) as tunnel:
        served(tunnel.address).close()
        with socket.create_connection(tunnel.address, WAIT) as client:
            wait_until(lambda: tunnel.stats().accepted == 2)
            tunnel.close(drain=3600.0)
            assert ending(client) == "reset"
