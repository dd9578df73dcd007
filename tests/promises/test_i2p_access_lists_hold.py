"""Clients over I2P are known, and those that are not allowed are rejected, as records, log and counts say."""

import logging
import os

import pytest
from helpers import WAIT, Thread, ended, exchange, fate_of_client, makes, receive_all, wait_until

import relay
from relay.addresses.destinations import PrivateKey
from relay.transports.i2p import key_file as keyfiles


@pytest.fixture(autouse=True)
def at_once(times):
    """No test waits until a router has forgotten the last session of a key."""
    times(remembered=(0.0, 0.0))


@pytest.fixture
def keys(i2p_world, tmp_path):
    """The files of two clients' keys, and their addresses."""
    made = {}
    for name in ("friend", "stranger"):
        file = i2p_world.client_keys()
        if file is None:
            file = tmp_path / f"{name}.dat"
            keyfiles.write(file, PrivateKey.generate())
        made[name] = file
    return made


def address_of(file):
    return keyfiles.read(file).b32


class Rig:
    """A server before an echo server with access lists, and clients with keys."""

    def __init__(self, world, keys, port, **lists):
        self.server = world.serve(port, **lists)
        self.clients = {name: world.reach(self.server.dest, keys=file) for name, file in keys.items()}

    def is_served(self, who):
        """Return whether a client gets an answer. A denied one is reset, but i2pd may lose the end of a stream."""
        with relay.connect("{}:{}".format(*self.clients[who].address)) as caller:
            caller.settimeout(20)
            try:
                caller.sendall(b"hello")
                return caller.recv(5) == b"hello"
            except (ConnectionError, TimeoutError):
                return False

    def close(self):
        for tunnel in (*self.clients.values(), self.server):
            tunnel.close()


@pytest.fixture
def rig(i2p_world, keys, echo_server):
    yield from makes(lambda **lists: Rig(i2p_world, keys, echo_server.address[1], **lists))


def test_allow_lets_in_those_alone(rig, keys, caplog):
    one = rig(allow=[address_of(keys["friend"])])
    assert one.is_served("friend")
    assert not one.is_served("stranger")
    assert one.is_served("friend")
    server = one.server
    wait_until(lambda: server.stats().failed)
    assert server.stats().failed == {"denied": 1}
    (denied,) = [record for record in server.recent() if record.reason == "denied"]
    assert denied.peer == keyfiles.read(keys["stranger"]).destination
    assert (denied.received, denied.sent) == (0, 0)
    assert any(address_of(keys["stranger"]) in text for text in caplog.messages)


def test_deny_keeps_those_away_also_from_among_the_allowed(rig, keys):
    both = [address_of(file) for file in keys.values()]
    one = rig(allow=both, deny=keyfiles.read(keys["stranger"]).destination)
    assert one.is_served("friend")
    assert not one.is_served("stranger")


def test_a_list_of_nobody_lets_nobody_in(rig):
    one = rig(allow=())
    assert not one.is_served("friend")


def test_a_file_is_read_again_when_it_has_changed(rig, keys, tmp_path):
    """For those who come from then on."""
    friends = tmp_path / "friends.txt"
    friends.write_text(f"# nobody but\n{address_of(keys['friend'])}\n")
    one = rig(allow=friends)
    assert not one.is_served("stranger")
    friends.write_text("".join(f"{address_of(file)}\n" for file in keys.values()))
    os.utime(friends, ns=(1, 1))
    assert one.is_served("stranger")
    friends.write_text("# nobody\n")
    os.utime(friends, ns=(2, 2))
    assert not one.is_served("friend")


def test_who_connects_is_in_the_record_and_in_the_log(i2p_world, over_i2p, caplog):
    with caplog.at_level(logging.INFO, "relay"):
        rig = over_i2p(i2p_world, linger=0.5)  # i2pd may lose an end that comes with a byte
        client, far = rig.connect()
        exchange(client, far)
        assert rig.server.connections()[0].peer == rig.tunnel.dest
        client.close()
        receive_all(far)
        ended(rig.server)
        wait_until(lambda: rig.tunnel.b32 in caplog.text)
    assert rig.server.recent()[0].peer == rig.tunnel.dest
    assert rig.tunnel.dest not in caplog.text, "five hundred characters tell nobody anything"


def test_who_connects_is_told_to_the_factory_and_to_who_accepts(i2p_world, echo_server):
    peers = []

    def make(peer):
        peers.append(peer)
        return relay.connect("{}:{}".format(*echo_server.address))

    options = {"sam": i2p_world.server, "keys": i2p_world.server_keys(), "in_depth": 0, "out_depth": 0}
    listener = relay.i2p_listen(**options, **i2p_world.options)
    with i2p_world.reach(listener.dest, linger=0) as client:
        accepting = Thread(listener.accept)
        begin = relay.connect("{}:{}".format(*client.address))
        with begin, accepting.result()[0] as stream:
            stream.socket.settimeout(WAIT)
            begin.settimeout(WAIT)
            exchange(begin, stream.socket)
            assert accepting.result()[1] == client.dest
        with relay.Tunnel(listener, make):
            with relay.connect("{}:{}".format(*client.address)) as caller:
                caller.settimeout(WAIT)
                caller.sendall(b"x")
                assert caller.recv(1) == b"x"
    assert peers == [client.dest]
    assert peers[0].b32 == client.b32


def test_a_wrong_entry_is_an_error_at_the_call(i2p_double):
    for wrong in ("no-such-file.txt", "example.i2p", "x" * 51 + ".b32.i2p", "A" * 515):
        with pytest.raises(ValueError, match="allow|deny"):
            i2p_double.serve(9, allow=[wrong])


def test_those_who_are_denied_do_not_reach_the_service(i2p_world, over_i2p):
    rig = over_i2p(i2p_world, serve={"allow": ()})
    assert fate_of_client(rig.tunnel.address, b"let me in") == "reset"
    rig.target.settimeout(0.2)
    with pytest.raises(TimeoutError):
        rig.target.accept()
    assert ended(rig.server) == ["denied"]
    assert ended(rig.tunnel) == ["unreachable"]
