"""A router dies: streams end with their reason. It returns: the same destination, and no user has to do anything."""

import contextlib
import threading
import time

import pytest
from helpers import (
    BLOCK,
    PROMPT,
    WAIT,
    Thread,
    ended,
    ending,
    exchange,
    fate_of_client,
    flood,
    receive_exactly,
    wait_until,
)
from i2p_restarts import RENEWAL, SCENARIOS, STANDBY
from i2p_world import Cable


@pytest.fixture(autouse=True)
def quick(times):
    """Short times; how long they are has its own tests."""
    times(back_off=(0.05, 0.2), back_off_with_waiters=0.1, remembered=(0.1, 1.0))
    times(accept_again=(0.02, 0.2), stream_again=(0.02, 0.2))


def down(*bridges):
    for bridge in bridges:
        bridge.kill()


def up(*bridges):
    for bridge in bridges:
        bridge.restart()


@pytest.fixture(params=["i2p_double", "java_double"])
def world(request):
    return request.getfixturevalue(request.param)


class States:
    """The states that a tunnel has reported."""

    def __init__(self):
        self.seen = []
        self._changed = threading.Condition()

    def __call__(self, state):
        with self._changed:
            self.seen.append(state)
            self._changed.notify_all()

    def wait_for(self, *states):
        """Wait until these have come, in this order, others between them or not; forgets what came before."""
        with self._changed:
            assert self._changed.wait_for(lambda: _in_order(states, self.seen), WAIT), self.seen
            self.seen.clear()


def _in_order(states, seen):
    rest = iter(seen)
    return all(state in rest for state in states)


def test_the_clients_router_dies(world, over_i2p):
    rig = over_i2p(world)
    pairs = [rig.connect() for _ in range(3)]
    for client, far in pairs:
        exchange(client, far)
    with contextlib.closing(pairs[0][0]) as bulk:
        sending = Thread(flood, bulk)
        assert receive_exactly(pairs[0][1], 1 << 20) == BLOCK
        begin = time.monotonic()
        down(world.clients)
        with pytest.raises(ConnectionError):
            sending.result()
    assert [ending(client) for client, _ in pairs[1:]] == ["reset", "reset"]
    assert time.monotonic() - begin < PROMPT
    assert ended(rig.tunnel, 3) == ["carrier_lost"] * 3


def test_the_servers_router_dies(world, over_i2p):
    rig = over_i2p(world)
    pairs = [rig.connect() for _ in range(3)]
    for client, far in pairs:
        exchange(client, far)
    begin = time.monotonic()
    down(world.servers)
    assert [ending(far) for _, far in pairs] == ["reset"] * 3
    assert time.monotonic() - begin < PROMPT
    assert ended(rig.server, 3) == ["carrier_lost"] * 3


def test_it_returns_with_the_same_destination(world, over_i2p):
    states = States()
    rig = over_i2p(world, serve={"on_state": states})
    exchange(*rig.connect())
    states.wait_for("up")
    dest, address = rig.server.dest, rig.tunnel.address
    down(world.servers, world.clients)
    states.wait_for("backing off")
    up(world.servers, world.clients)
    states.wait_for("up")
    exchange(*rig.connect())
    assert (rig.server.dest, rig.tunnel.address) == (dest, address)


def test_published_is_told_again(world, over_i2p):
    states = States()
    rig = over_i2p(world, serve={"on_state": states})
    states.wait_for("up", "published")
    assert rig.server.wait_published(WAIT)
    down(world.servers)
    states.wait_for("backing off")
    assert rig.server.state != "published"
    up(world.servers)
    states.wait_for("up", "published")


def test_who_comes_meanwhile_waits(world, over_i2p):
    rig = over_i2p(world)
    exchange(*rig.connect())
    down(world.clients)
    wait_until(lambda: rig.tunnel.state != "up")
    waiting = rig.client()
    waiting.sendall(b"I wait")
    up(world.clients)
    far = rig.accept()
    assert receive_exactly(far, 6) == b"I wait"
    exchange(waiting, far)


def test_who_waits_for_longer_than_connect_timeout_is_reset(world, over_i2p):
    rig = over_i2p(world, reach={"connect_timeout": 0.3})
    wait_until(lambda: rig.tunnel.state == "up")  # a stream may take longer than that
    down(world.clients)
    wait_until(lambda: rig.tunnel.state != "up")
    begin = time.monotonic()
    assert fate_of_client(rig.tunnel.address) == "reset"
    assert time.monotonic() - begin > 0.2
    assert ended(rig.tunnel, 1)[-1] in ("connect_timeout", "carrier_lost", "refused")


def test_often(world, over_i2p):
    rig = over_i2p(world)
    dest = rig.server.dest
    for _ in range(3):
        client, far = rig.connect()
        exchange(client, far)
        down(world.servers, world.clients)
        assert ending(client) == ending(far) == "reset"
        wait_until(lambda: rig.server.state != "up" != rig.tunnel.state)
        up(world.servers, world.clients)
        wait_until(lambda: rig.server.state in ("up", "published"))
    exchange(*rig.connect())
    assert rig.server.dest == dest


@pytest.mark.parametrize("side", ["servers", "clients"])
def test_the_control_socket_is_cut(world, over_i2p, side):
    """Only the session goes with it: the router lives."""
    rig = over_i2p(world)
    client, far = rig.connect()
    exchange(client, far)
    dest = rig.server.dest
    getattr(world, side).cut()
    assert ending(far if side == "servers" else client) == "reset"
    assert ended(rig.server if side == "servers" else rig.tunnel) == ["carrier_lost"]
    wait_until(lambda: len(getattr(world, side).sessions) > 0)
    rig.tunnel.close()  # the one that knew the last session may not notice
    with world.reach(dest) as again:
        rig.tunnel = again
        exchange(*rig.connect())
    assert rig.server.dest == dest


@pytest.mark.parametrize("side", ["serve", "reach"])
def test_the_control_socket_of_a_real_router_is_cut(i2p_routers, over_i2p, side):
    """Streams end at once, although their own sockets are whole."""
    with Cable(i2p_routers.server if side == "serve" else i2p_routers.client) as cable:
        rig = over_i2p(i2p_routers, **{side: {"samaddr": cable.sam}})
        client, far = rig.connect()
        exchange(client, far)
        cable.cut_control()
        assert ending(far if side == "serve" else client) == "reset"
        assert ended(rig.server if side == "serve" else rig.tunnel) == ["carrier_lost"]
        rig.close()


def test_a_router_that_refuses_for_a_while(world, over_i2p):
    rig = over_i2p(world)
    dest = rig.server.dest
    down(world.servers)
    world.servers.refuse_sessions(3, "I2P_ERROR")
    up(world.servers)
    wait_until(lambda: rig.server.state in ("up", "published"))
    assert rig.server.dest == dest


def test_a_duplicate_id_is_another_id_at_once(world, times):
    times(back_off=(3 * PROMPT, 3 * PROMPT), back_off_with_waiters=3 * PROMPT)
    world.servers.refuse_sessions(1, "DUPLICATED_ID")
    begin = time.monotonic()
    with world.serve(9):
        assert time.monotonic() - begin < PROMPT
    ids = {command.options["ID"] for command in world.servers.commands if command.words == ("SESSION", "CREATE")}
    assert len(ids) >= 2


def test_a_duplicate_destination_after_a_loss_is_waited_out(world, over_i2p):
    rig = over_i2p(world)
    dest = rig.server.dest
    world.servers.refuse_sessions(3, "DUPLICATED_DEST")
    world.servers.cut()
    wait_until(lambda: rig.server.state in ("up", "published") and world.servers.sessions)
    assert rig.server.dest == dest


def test_leases_that_are_still_spreading(world, over_i2p):
    """A new destination cannot be reached at first: relay tries again, and no client notices."""
    rig = over_i2p(world)
    world.clients.fail_connects(3)
    client = rig.client()
    client.sendall(b"patience")
    far = rig.accept()
    assert receive_exactly(far, 8) == b"patience"
    assert rig.tunnel.stats().failed == {}


def test_accepts_that_fail_after_all(world, over_i2p):
    """OK, and then an error instead of a destination: the next one is asked for."""
    rig = over_i2p(world, serve={"accept": "accept"})
    world.servers.late_error(3)
    for _ in range(5):
        exchange(*rig.connect())


@pytest.mark.timeout(1300)
@pytest.mark.parametrize("scenario", [one for one in SCENARIOS if one not in STANDBY + RENEWAL])
def test_over_real_routers(i2p_restarts, scenario, record_property):
    seconds, problem = i2p_restarts[scenario]
    if problem:
        pytest.fail(problem, pytrace=False)
    record_property("measured", f"I2P, {scenario.replace('_', ' ')}: served again after {seconds:.1f} s")
