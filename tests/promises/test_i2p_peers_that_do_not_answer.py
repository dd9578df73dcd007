"""A peer that never answers is given up after ``connect_timeout``; without an accept, the client sees a reset."""

import socket
import time

import pytest
from helpers import WAIT, ended, ending, exchange, fate_of_client, receive_all

import relay
from relay.addresses.destinations import PrivateKey

SHORT = 1.0  # seconds


def test_a_destination_that_nobody_has_is_tried_until_connect_timeout(i2p_world):
    nobody = PrivateKey.generate()
    for dest in (nobody.destination, nobody.b32):
        with i2p_world.reach(dest, connect_timeout=SHORT) as client:
            begin = time.monotonic()
            assert fate_of_client(client.address) == "reset"
            assert SHORT / 3 < time.monotonic() - begin < SHORT + WAIT
            assert ended(client)[0] in ("unreachable", "connect_timeout")


def test_a_name_that_the_router_does_not_know(i2p_world):
    with i2p_world.reach("nobody-has-this-name.i2p", connect_timeout=WAIT) as client:
        assert fate_of_client(client.address) == "reset"
        assert ended(client) == ["unreachable"]
        with pytest.raises(relay.ConnectError, match="nobody-has-this-name.i2p"):
            client.remotedest  # noqa: B018


def test_a_bridge_that_never_answers(i2p_world, over_i2p):
    rig = over_i2p(i2p_world, reach={"connect_timeout": 3 * SHORT})
    client, far = rig.connect()
    exchange(client, far)
    with i2p_world.frozen():
        begin = time.monotonic()
        assert fate_of_client(rig.tunnel.address) == "reset"
        assert SHORT < time.monotonic() - begin < 3 * SHORT + WAIT
        assert ended_but_one(rig.tunnel) == ["connect_timeout"]
    exchange(client, far)


def ended_but_one(tunnel):
    """The reasons of those that have ended, where one goes on."""
    reasons = [record.reason for record in tunnel.recent()]
    assert tunnel.stats().active == 1
    return reasons


def test_where_nobody_accepts_it_is_no_empty_answer(i2p_world):
    """i2pd says OK to every stream, and ends those that are not accepted after ten seconds; the Java router waits."""
    limit, reason = (SHORT, "connect_timeout") if i2p_world.personality == "java" else (WAIT, "unreachable")
    with i2p_world.deaf() as dest, i2p_world.reach(dest, connect_timeout=limit) as client:
        with socket.create_connection(client.address, 3 * WAIT) as caller:
            caller.sendall(b"anybody?")
            assert ending(caller) == "reset"
        assert ended(client) == [reason]


def test_an_answer_of_nothing_at_all_is_told_from_one(i2p_world, over_i2p):
    """One that ends at once, without a byte, looks like no peer; one that sends something does not."""
    rig = over_i2p(i2p_world)
    client, far = rig.connect()
    client.sendall(b"x")
    far.recv(1)
    far.close()
    assert ending(client) == "reset"
    client, far = rig.connect()
    far.sendall(b"y")
    far.close()
    assert receive_all(client) == b"y"
    client.close()
    assert ended(rig.tunnel, 2) == ["unreachable", "done"]
