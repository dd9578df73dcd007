"""A forked child does not disturb its parent's tunnels."""

import os
import socket
import warnings

import pytest
from helpers import WAIT, exchange, in_child, wait_until

import relay

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")


def test_a_child_that_exits(relayed, any_engine):
    rig = relayed()
    client, far = rig.connect()
    exchange(client, far)
    assert in_child(lambda: None) == 0
    exchange(client, far)
    exchange(*rig.connect())


def test_a_child_that_closes_the_tunnel(relayed, any_engine):
    rig = relayed()
    client, far = rig.connect()
    assert in_child(rig.tunnel.close) == 0
    exchange(client, far)
    exchange(*rig.connect())


def test_a_child_leaves_the_warm_streams_open(relayed, any_engine):
    rig = relayed(warm=1)
    far = rig.accept()
    wait_until(lambda: (warm := rig.tunnel.metrics().warm) is not None and warm.ready == 1)
    assert in_child(rig.tunnel.close) == 0
    exchange(rig.client(), far)
    assert rig.tunnel.stats().warm_hits == 1


def test_a_child_sees_every_tunnel_closed_and_can_make_its_own(relayed, any_engine):
    rig = relayed()
    rig.connect()

    def work():
        assert rig.tunnel.stats().active == 0
        assert rig.tunnel.connections() == []
        rig.tunnel.join(WAIT)
        near, far = socket.socketpair()
        with relay.Tunnel(relay.listen(":0"), lambda: near) as own:
            client = socket.create_connection(own.address, timeout=WAIT)
            far.settimeout(WAIT)
            exchange(client, far)

    assert in_child(work) == 0
    exchange(*rig.connect())


def test_a_child_that_lives_on_does_not_hold_a_connection_open(relayed):
    """The parent's end of a connection reaches its peers though a child has copies of the descriptors."""
    rig = relayed()
    client, far = rig.connect()
    gate_in, gate_out = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        try:
            for end in (client, far):
                end.close()
            os.close(gate_out)
            os.read(gate_in, 1)
        finally:
            os._exit(0)
    try:
        exchange(client, far)
        client.shutdown(socket.SHUT_WR)
        assert far.recv(1) == b""
        far.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""
    finally:
        os.close(gate_out)
        os.close(gate_in)
        os.waitpid(pid, 0)


def test_a_unix_path_survives_the_child(relayed):
    rig = relayed(way_in="unix")
    assert in_child(rig.tunnel.close) == 0
    exchange(*rig.connect())
