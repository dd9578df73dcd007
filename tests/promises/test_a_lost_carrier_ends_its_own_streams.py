"""With several carriers for a hop, the loss of one ends its own streams alone, and no new stream waits or fails."""

import os
import signal
import time

import pytest
from helpers import ending, exchange, wait_until
from sshd import FarEnd

from relay.carriers.listing import carriers

STREAMS = 4


@pytest.fixture
def slow_to_return(monkeypatch):
    """A lost carrier does not come back during the test: who waits for it would fail."""
    monkeypatch.setattr("relay.carriers.retry._BACKOFF", (600.0, 600.0))
    monkeypatch.setattr("relay.carriers.retry._MAX_BACKOFF_WITH_WAITERS", 600.0)


def states(name):
    return [one.state for one in carriers() if one.name == name]


def opened(rig, count=STREAMS):
    pairs = [rig.connect() for _ in range(count)]
    for client, far in pairs:
        exchange(client, far)
    return pairs


def losing_one(rig, name, lose, record_property, what):
    """Lose one of two carriers with streams on both."""
    wait_until(lambda: states(name) == ["up", "up"])
    pairs = opened(rig)
    streams = {one.number: one.streams for one in carriers() if one.name == name}
    assert streams == {1: STREAMS // 2, 2: STREAMS // 2}
    begin = time.monotonic()
    lose()
    wait_until(lambda: sorted(states(name)) == ["backing off", "up"])
    opened(rig)
    seconds = time.monotonic() - begin
    record_property("measured", f"{what}, one of two carriers lost: new streams after {seconds:.2f} s")
    lost = [one.number for one in carriers() if one.name == name and one.losses]
    # Streams go to the first carrier if both have as many, so every other one is on it.
    gone = [pair for place, pair in enumerate(pairs) if place % 2 == lost[0] - 1]
    assert [ending(client) for client, _ in gone] == ["reset"] * len(gone)
    for client, far in pairs:
        if (client, far) not in gone:
            exchange(client, far)
    wait_until(lambda: len(rig.tunnel.recent()) == len(gone))
    assert {record.reason for record in rig.tunnel.recent()} == {"carrier_lost"}


def test_one_ssh_connection_is_killed(backend, make_sshd, over_ssh, slow_to_return, record_property):
    server = make_sshd()
    far_end = FarEnd("sshd", backend, server)
    rig = over_ssh(far_end.address(carriers=2))
    rig.factory.ready()
    wait_until(lambda: server.logins == 2)

    def kill_one():
        os.kill(server.sessions()[-1], signal.SIGKILL)

    losing_one(rig, str(far_end.server), kill_one, record_property, f"SSH by {backend}")
    assert server.logins == 2


def test_one_i2p_session_is_lost(i2p_double, over_i2p, slow_to_return, record_property):
    rig = over_i2p(i2p_double, reach={"carriers": 2})
    name = next(one.name for one in carriers() if one.number == 2)

    def end_one():
        client = next(iter(rig.tunnel._sender._holder.current.carriers))
        client.link.control_socket.shutdown(2)

    losing_one(rig, name, end_one, record_property, "I2P")
