"""A hop of three dies: its streams end with their reason, and all that uses it comes back in order, by itself."""

import contextlib
import logging
import re
import time

import pytest
from helpers import PROMPT, WAIT, ended, ending, exchange, receive_exactly, wait_until
from i2p_world import Double
from sshd import FarEnd, server_url

import relay
from relay.addresses.destinations import b32_of

MIDDLE = {"paramiko": "paramiko", "openssh": "openssh", "i2p": "i2p"}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Short times; how long they are has its own tests."""
    monkeypatch.setattr("relay.carriers.retry._BACKOFF", (0.05, 0.5))
    monkeypatch.setattr("relay.carriers.retry._MAX_BACKOFF_WITH_WAITERS", 0.1)
    monkeypatch.setattr("relay.transports.i2p.connector._REMEMBERED", (0.1, 1.0))
    monkeypatch.setattr("relay.transports.i2p.inbound.AGAIN", (0.02, 0.2))
    monkeypatch.setattr("relay.transports.i2p.opening._AGAIN", (0.02, 0.2))


class Router:
    """The embedded bridge as a hop that dies."""

    def __init__(self, world):
        self._bridge = world.clients
        self.url = f"i2p:?sam={self._bridge.sam}"

    def down(self):
        self._bridge.kill()

    def up(self):
        self._bridge.restart()


class AtI2P(FarEnd):
    """A server that is a destination, too, and is reached there."""

    def __init__(self, backend, rig, published):
        super().__init__("sshd", backend, rig)
        self._place = b32_of(published.dest)
        rig.known_hosts.write_text(f"{self._place} {rig.host_key_line}\n")

    @property
    def url(self):
        return server_url(self.server).replace(f"127.0.0.1:{self.rig.port}", self._place)


@pytest.fixture(params=MIDDLE)
def hops(request, make_sshd, spawner_thread):
    """Three hops, real servers but for the bridge."""
    kind = MIDDLE[request.param]
    first, last = make_sshd(), make_sshd()
    if kind != "i2p":
        yield [FarEnd("sshd", kind, one) for one in (first, make_sshd(), last)]
        return
    with contextlib.closing(Double("i2pd")) as world, world.serve(last.port) as published:
        yield [FarEnd("sshd", "paramiko", first), Router(world), AtI2P("paramiko", last, published)]


@pytest.fixture
def rig(hops, over_ssh):
    return over_ssh([hop.url for hop in hops], connect_timeout=30.0)


def name(hop):
    return hop.url.partition("?keyfile")[0].partition("?backend")[0]


def attempt(rig, hops):
    """The error of one attempt."""
    with pytest.raises(relay.RelayError) as failed:
        relay.connect("{}:{}".format(*rig.target.getsockname()), [hop.url for hop in hops], timeout=PROMPT)
    return str(failed.value)


def in_order(caplog, hops):
    """Return who has come back, in this order."""
    again = re.compile("(.*): connected")
    found = [match[1] for message in caplog.messages if (match := again.fullmatch(message))]
    return [place for place in found if place in map(name, hops)]


@pytest.mark.parametrize("lost", [0, 1, 2], ids=["first", "middle", "last"])
def test_one_dies(hops, rig, lost, caplog):
    pairs = [rig.connect() for _ in range(3)]
    for client, far in pairs:
        exchange(client, far)
    hops[lost].down()
    assert [ending(client) for client, _ in pairs] == ["reset"] * 3
    assert ended(rig.tunnel, 3) == ["carrier_lost"] * 3
    rig.wait_for_loss()
    assert attempt(rig, hops).startswith(f"hop {lost + 1} of 3 ({name(hops[lost])}): ")
    caplog.set_level(logging.INFO, "relay")
    caplog.clear()
    waiting = rig.client()
    waiting.sendall(b"I wait")
    hops[lost].up()
    far = rig.accept()
    assert receive_exactly(far, 6) == b"I wait"
    exchange(waiting, far)
    exchange(*rig.connect())
    assert in_order(caplog, hops) == [name(hop) for hop in hops[lost:]]


@pytest.mark.parametrize("lost", [0, 1, 2], ids=["first", "middle", "last"])
@pytest.mark.parametrize("hops", ["paramiko"], indirect=True)
def test_what_ends_a_stream_names_the_hop(hops, rig, lost):
    """The client of OpenSSH does not tell what has become of what it speaks over."""
    with rig.factory(deadline=time.monotonic() + WAIT) as stream:
        stream.socket.settimeout(WAIT)
        exchange(stream.socket, rig.accept())
        hops[lost].down()
        ending(stream.socket)
        assert str(stream.failure()).startswith(f"hop {lost + 1} of 3 ({name(hops[lost])}): the connection was lost: ")


def test_all_die_and_come_back_from_the_far_end(hops, rig):
    client, far = rig.connect()
    exchange(client, far)
    for hop in hops:
        hop.down()
    assert ending(client) == "reset"
    rig.wait_for_loss()
    for hop in reversed(hops):
        hop.up()
    exchange(*rig.connect())


@pytest.mark.parametrize("lost", [0, 1], ids=["first", "middle"])
def test_the_network_comes_back_later_than_the_first_attempts(hops, rig, lost, caplog):
    exchange(*rig.connect())
    hops[lost].down()
    rig.wait_for_loss()
    waiting = rig.client()
    tries = re.compile(f"{re.escape(name(hops[lost]))}: .*trying again in .*")
    wait_until(lambda: sum(tries.fullmatch(message) is not None for message in caplog.messages) >= 4, WAIT)
    hops[lost].up()
    exchange(waiting, rig.accept())
