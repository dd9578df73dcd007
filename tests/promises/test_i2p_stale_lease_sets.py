"""The three traps of lease sets that are out of date: each is noticed by streams, and comes right by itself."""

import os

import pytest
from helpers import WAIT, ended, ending, exchange, receive_exactly, wait_until

import relay

SOON = WAIT
LONG = 1000.0  # seconds; the router forgets when the test says so, and not while a busy machine makes the next session


@pytest.fixture(autouse=True)
def quick(times):
    """Short times; how long they are has its own tests."""
    times(back_off=(0.02, 0.1), back_off_with_waiters=0.05, remembered=(0.05, 2.0), replace_again=(0.5, 1.0))
    times(silent=0.3, check_again=0.05, check_after=(0.2, 0.4), probe_head_start=0.01, probe_reach=2.0)
    times(probe_answer=0.4)


def is_served(rig):
    """Return whether a client gets through and back."""
    rig.target.settimeout(0.3)
    client = rig.client()
    client.settimeout(0.5)
    word = os.urandom(8)
    try:
        client.sendall(word)
        while True:  # the stream of an earlier attempt may come only now
            with rig.accept() as far:
                far.settimeout(1)
                if is_answered(client, far, word):
                    return True
    except OSError:
        return False
    finally:
        client.close()


def is_answered(client, far, word):
    """Return whether a stream is this client's, and brings the answer back."""
    try:
        if receive_exactly(far, len(word)) != word:
            return False
    except OSError:
        return False
    far.sendall(b"y")
    return client.recv(1) == b"y"


@pytest.fixture
def world(i2p_double):
    """Routers with their memory."""
    for bridge in (i2p_double.servers, i2p_double.clients):
        bridge.settings.silence = 60.0
    return i2p_double


def test_the_same_keys_again_too_soon(world, over_i2p):
    """Trap 1: such a session comes at once, works for a moment, and is dead for good, although its socket lives."""
    rig = over_i2p(world)
    exchange(*rig.connect())
    dest = rig.server.dest
    world.servers.settings.remember = LONG
    world.servers.settings.zombie_life = 0.1
    world.servers.cut()
    wait_until(lambda: rig.server.state in ("backing off", "connecting"))
    wait_until(lambda: len(own_sessions(world)) > 1)
    world.servers.settings.remember = 0.0
    wait_until(lambda: sound(world, rig), SOON)
    wait_until(lambda: is_served(rig), SOON)
    assert rig.server.dest == dest


def own_sessions(world):
    """Return the commands that created a session of the server's keys."""
    return [one for one in world.servers.commands if one.options.get("DESTINATION") == "***"]


def sound(world, rig):
    """Return whether the second session of the keys was given up, and the one after that has proved itself."""
    return len(own_sessions(world)) > 2 and rig.server.state == "published"


def test_a_program_that_is_started_again_too_soon(world, over_i2p, tmp_path):
    """Trap 1 from the first session on: the last one was another program's."""
    world.servers.settings.remember = LONG
    world.servers.settings.zombie_life = 0.3
    keys = tmp_path / "keys.dat"
    world.serve(9, keys=keys).close()
    rig = over_i2p(world, serve={"keys": keys})
    assert len(own_sessions(world)) > 1
    world.servers.settings.remember = 0.0
    wait_until(lambda: sound(world, rig), SOON)
    wait_until(lambda: is_served(rig), SOON)


def test_a_client_that_has_gone_deaf(world, over_i2p):
    """Trap 2: a client that knew the server before its router restarted gets OK and no bytes."""
    rig = over_i2p(world)
    exchange(*rig.connect())
    before = rig.tunnel.dest
    world.clients.settings.stale = 600.0
    world.servers.kill()
    wait_until(lambda: rig.server.state == "backing off")
    world.servers.restart()
    wait_until(lambda: rig.server.state in ("up", "published"))
    client, _ = rig.client(), rig.target.settimeout(0.2)
    client.sendall(b"anybody?")
    with pytest.raises(TimeoutError):
        rig.accept()
    wait_until(lambda: rig.tunnel.dest != before, SOON)  # one client that waits is enough
    wait_until(lambda: is_served(rig), SOON)
    assert "carrier_lost" not in rig.tunnel.stats().failed


def test_clients_that_do_not_wait_for_long(world, over_i2p, times):
    """Trap 2 is noticed by all of them together."""
    times(silent=1.0)
    rig = over_i2p(world, linger=0)
    exchange(*rig.connect())
    world.clients.settings.stale = 600.0
    world.servers.kill()
    wait_until(lambda: rig.server.state == "backing off")
    world.servers.restart()
    wait_until(lambda: rig.server.state in ("up", "published"))
    wait_until(lambda: is_served(rig), SOON)  # none of them waits for half a second


def test_a_deaf_session_ends_with_its_last_stream(world, over_i2p, echo_server):
    """Streams that still work go on, such as a stream to another destination."""
    rig = over_i2p(world, linger=0.1)
    client, far = rig.connect()
    exchange(client, far)
    client.close()
    deaf = rig.tunnel.dest
    with (
        world.serve(echo_server.address[1], samaddr=world.client) as other,
        world.reach(other.dest, linger=0.1) as second,
    ):
        assert second.dest == deaf, "they do not share a session"
        with relay.connect("{}:{}".format(*second.address)) as self_contained:
            self_contained.settimeout(WAIT)
            echoed(self_contained)
            world.clients.settings.stale = 600.0
            world.servers.kill()
            wait_until(lambda: rig.server.state == "backing off")
            world.servers.restart()
            wait_until(lambda: is_served(rig), SOON)
            assert rig.tunnel.dest == second.dest != deaf
            echoed(self_contained)
            assert deaf in {session.destination for session in world.clients.sessions}
        wait_until(lambda: deaf not in {session.destination for session in world.clients.sessions}, SOON)


def echoed(end):
    end.sendall(b"still there?")
    assert receive_exactly(end, 12) == b"still there?"


def test_a_clients_address_that_nobody_answers(world, over_i2p):
    """Trap 3: after its router restarts, the same address is not answered; so it takes another one."""
    rig = over_i2p(world)
    client, far = rig.connect()
    exchange(client, far)
    before = rig.tunnel.dest
    world.servers.settings.stale = 600.0
    world.clients.kill()
    assert ending(client) == "reset"
    assert ended(rig.tunnel) == ["carrier_lost"]
    world.clients.restart()
    wait_until(lambda: rig.tunnel.state == "up")
    assert rig.tunnel.dest != before
    wait_until(lambda: is_served(rig), SOON)
