"""A lost SSH connection ends its streams at once, with their reason, and comes back with no action of the user's."""

import contextlib
import socket
import time

import pytest
from helpers import BLOCK, WAIT, Thread, ended, ending, exchange, flood, receive_exactly, wait_until
from sshd import FarEnd

import relay

KEEPALIVE = 0.5  # seconds; OpenSSH's client rounds it up to one. A busy server answers within three times that


@pytest.fixture
def quick(monkeypatch):
    """A short back-off: how long it is has its own tests."""
    monkeypatch.setattr("relay.carriers.retry._BACKOFF", (0.05, 1.0))
    monkeypatch.setattr("relay.carriers.retry._MAX_BACKOFF_WITH_WAITERS", 0.1)
    monkeypatch.setattr("relay.transports.ssh.listener._BACKOFF", (0.05, 1.0))


def connected(address):
    """A client that gets an answer of ``echo``; tries until it does."""
    deadline = time.monotonic() + WAIT
    while True:
        with contextlib.suppress(OSError), socket.create_connection(address, WAIT) as client:
            client.sendall(b"anybody?")
            if receive_exactly(client, 8) == b"anybody?":
                return
        assert time.monotonic() < deadline


def test_the_server_is_killed_in_mid_stream(mortal_far_end, over_ssh):
    rig = over_ssh(mortal_far_end.address(keepalive=10 * WAIT))  # which notices nothing
    pairs = [rig.connect() for _ in range(3)]
    for client, far in pairs:
        exchange(client, far)
    with contextlib.closing(pairs[0][0]) as bulk:
        sending = Thread(flood, bulk)
        assert receive_exactly(pairs[0][1], 1 << 20) == BLOCK
        mortal_far_end.down()
        with pytest.raises(ConnectionError):
            sending.result()
    assert [ending(client) for client, _ in pairs[1:]] == ["reset", "reset"]
    assert ended(rig.tunnel, 3) == ["carrier_lost"] * 3


def test_the_same_listener_serves_again_and_who_came_meanwhile_waits(mortal_far_end, over_ssh):
    """With the back-off that it has."""
    rig = over_ssh(mortal_far_end.url)
    exchange(*rig.connect())
    mortal_far_end.down()
    rig.wait_for_loss()
    waiting = rig.client()
    waiting.sendall(b"I wait")
    mortal_far_end.up()
    far = rig.accept()
    assert receive_exactly(far, 6) == b"I wait"
    exchange(waiting, far)
    exchange(*rig.connect())


def test_who_waits_for_longer_than_connect_timeout_is_reset(mortal_far_end, over_ssh):
    rig = over_ssh(mortal_far_end.url, connect_timeout=0.3)
    rig.factory.ready(WAIT)  # a login may take longer than that
    mortal_far_end.down()
    rig.wait_for_loss()
    begin = time.monotonic()
    assert ending(rig.client()) == "reset"
    assert time.monotonic() - begin > 0.2
    assert ended(rig.tunnel, 1)[-1] in ("connect_timeout", "carrier_lost", "refused")


def test_often(mortal_far_end, over_ssh, quick):
    rig = over_ssh(mortal_far_end.url)
    for _ in range(2):
        client, far = rig.connect()
        exchange(client, far)
        mortal_far_end.down()
        assert ending(client) == "reset"
        rig.wait_for_loss()
        mortal_far_end.up()
    exchange(*rig.connect())


def test_a_server_that_is_not_there_yet(mortal_far_end, over_ssh, quick):
    mortal_far_end.down()
    rig = over_ssh(mortal_far_end.url)
    client = rig.client()
    wait_until(lambda: rig.tunnel.stats().active == 1)
    mortal_far_end.up()
    exchange(client, rig.accept())


def test_a_frozen_server_is_noticed(backend, make_sshd, over_ssh, quick):
    server = make_sshd()
    rig = over_ssh(FarEnd("sshd", backend, server).address(keepalive=KEEPALIVE))
    (client, far), (idle, _) = rig.connect(), rig.connect()
    exchange(client, far)
    sending = Thread(flood, client)
    receive_exactly(far, 1 << 20)
    begin = time.monotonic()
    server.freeze()
    assert ending(idle) == "reset"
    assert time.monotonic() - begin > KEEPALIVE
    with pytest.raises(ConnectionError):
        sending.result()
    assert ended(rig.tunnel, 2) == ["carrier_lost"] * 2
    rig.wait_for_loss()
    server.thaw()
    exchange(*rig.connect())


def test_a_frozen_embedded_server_is_noticed(ssh_server, over_ssh, quick):
    rig = over_ssh(FarEnd("embedded", "paramiko", ssh_server).address(keepalive=KEEPALIVE))
    client, far = rig.connect()
    exchange(client, far)
    ssh_server.freeze()
    assert ending(client) == "reset"
    assert ended(rig.tunnel) == ["carrier_lost"]
    rig.wait_for_loss()
    ssh_server.thaw()
    exchange(*rig.connect())


def test_an_idle_connection_is_not_mistaken_for_a_dead_one(backend, sshd, over_ssh):
    rig = over_ssh(FarEnd("sshd", backend, sshd).address(keepalive=KEEPALIVE))
    client, far = rig.connect()
    client.settimeout(4 * KEEPALIVE)  # four times keepalive; three without an answer are the end
    with pytest.raises(TimeoutError):
        client.recv(1)
    client.settimeout(WAIT)
    exchange(client, far)
    assert sshd.logins == 1


def test_a_listener_on_the_server_is_there_again_at_the_same_port(mortal_far_end, echo_server, quick):
    listener = relay.ssh_listen(mortal_far_end.url)
    address = listener.address
    with relay.Tunnel(listener, echo_server.factory(), timeout=None) as tunnel:
        connected(address)
        mortal_far_end.down()
        ended(tunnel)
        mortal_far_end.up()
        connected(address)
        assert listener.address == address


def test_what_comes_to_a_listener_ends_with_the_connection(mortal_far_end, listener):
    remote = relay.ssh_listen(mortal_far_end.url)
    with relay.Tunnel(remote, relay.tcp(*listener.getsockname()), timeout=None) as tunnel:
        with socket.create_connection(remote.address, WAIT) as client:
            far, _ = listener.accept()
            with far:
                far.settimeout(WAIT)
                exchange(client, far)
                mortal_far_end.down()
                assert ending(far) == "reset"
        assert ended(tunnel) == ["carrier_lost"]
