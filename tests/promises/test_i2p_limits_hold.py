"""``nconnect``, ``timeout`` and the other limits hold on I2P as they do on TCP, at either end."""

import itertools
import queue
import socket
import time

import pytest
from helpers import WAIT, Thread, ended, ending, exchange, receive_exactly

SHORT = 1.0  # seconds; routers on a busy machine carry a byte in less


@pytest.fixture(params=["server", "client"])
def limited(request, i2p_world, over_i2p):
    """Makes tunnels one of which has limits; returns it, and a function that makes connections through both."""

    def make(**limits):
        rig = over_i2p(i2p_world, **{"serve" if request.param == "server" else "reach": limits})
        return (rig.server if request.param == "server" else rig.tunnel), rig

    return make


def test_nconnect_lets_so_many_in_and_the_others_wait(limited):
    tunnel, rig = limited(nconnect=2)
    live = [rig.connect() for _ in range(2)]
    waiting = [rig.client() for _ in range(2)]
    for number, client in enumerate(waiting):
        client.sendall(bytes([number]))
    rig.target.settimeout(0.3)
    with pytest.raises(TimeoutError):
        rig.target.accept()
    assert (tunnel.stats().active, tunnel.stats().accepted) == (2, 2)
    rig.target.settimeout(WAIT)
    seen = set()
    for _ in waiting:
        client, far = live.pop(0)
        exchange(client, far)
        far.sendall(b"bye")
        far.close()
        assert receive_exactly(client, 3) == b"bye"
        client.close()
        far = rig.accept()
        number = far.recv(10)[0]
        seen.add(number)
        live.append((waiting[number], far))
        assert tunnel.stats().active <= 2
    assert seen == {0, 1}


def test_nconnect_under_churn(i2p_world, echo_server):
    """Every caller is served, also one that had to wait."""
    work = queue.SimpleQueue()
    for number in range(60):
        work.put(b"caller %d" % number)
    most = []

    def call():
        served = 0
        while True:
            try:
                text = work.get_nowait()
            except queue.Empty:
                return served
            with socket.create_connection(client.address, 3 * WAIT) as caller:
                caller.sendall(text)
                assert receive_exactly(caller, len(text)) == text
                most.append((server.stats().active, client.stats().active))
            served += 1

    options = {"nconnect": 4, "linger": 0}
    with (
        i2p_world.serve(echo_server.address[1], **options) as server,
        i2p_world.reach(server.dest, **options) as client,
    ):
        callers = [Thread(call) for _ in range(12)]
        assert sum(caller.result(5 * WAIT) for caller in callers) == 60
        assert max(itertools.chain.from_iterable(most)) <= 4


def test_timeout_ends_a_connection_whatever_it_does(limited):
    tunnel, rig = limited(timeout=SHORT)
    client, far = rig.connect()
    begin = time.monotonic()
    with pytest.raises((ConnectionError, AssertionError)):
        while time.monotonic() - begin < WAIT:
            exchange(client, far)
    assert ended(tunnel) == ["lifetime"]


def test_idle_timeout(limited):
    tunnel, rig = limited(idle_timeout=SHORT)
    client, far = rig.connect()
    exchange(client, far)
    ending(far)
    ending(client)
    assert ended(tunnel) == ["idle"]


def test_first_byte_timeout(limited):
    """The router has said that the stream is there; no answer comes."""
    tunnel, rig = limited(first_byte_timeout=SHORT)
    client, far = rig.connect()
    client.sendall(b"anybody?")
    ending(far)
    ending(client)
    assert ended(tunnel) == ["unreachable"]


def test_pause_and_resume(limited):
    tunnel, rig = limited()
    live = rig.connect()
    exchange(*live)
    tunnel.pause()
    client = rig.client()
    client.sendall(b"I wait")
    rig.target.settimeout(0.3)
    with pytest.raises(TimeoutError):
        rig.target.accept()
    exchange(*live)
    tunnel.resume()
    rig.target.settimeout(WAIT)
    far = rig.accept()
    assert receive_exactly(far, 6) == b"I wait"
    exchange(client, far)
