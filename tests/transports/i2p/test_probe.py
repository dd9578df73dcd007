"""``relay.transports.i2p.probe``: which streams are those of probes; see also :mod:`test_reachability`."""

import socket

import pytest

from relay.addresses.destinations import Peer, PrivateKey
from relay.addresses.i2p import I2PRouter
from relay.streams.stream import Stream
from relay.transports.i2p import probe
from relay.transports.i2p.probe import OwnStreams, ProbeKeys, hiding


def new_dest():
    return PrivateKey.generate().destination


def reply(own, dest):
    """Let a stream from ``dest`` come; return the name that is sent on it, or ``None`` if it is a client's."""
    ours, theirs = socket.socketpair()
    with theirs, Stream(ours) as stream:
        is_own = own.reply_to(stream, Peer(dest))
        theirs.setblocking(False)
        return theirs.recv(100).split()[1].decode() if is_own else None


def test_a_late_stream_of_an_earlier_probe_session_is_answered_within_a_bound():
    own = OwnStreams()
    dests = [new_dest() for _ in range(probe.PEERS)]
    for dest in dests:
        own.add(dest)
    assert [reply(own, dest) for dest in dests] == [own.name] * probe.PEERS
    own.add(new_dest())
    assert reply(own, dests[0]) is None


def test_the_same_destination_counts_once():
    own = OwnStreams()
    first = new_dest()
    own.add(first)
    second = new_dest()
    for _ in range(probe.PEERS):
        own.add(second)
    assert reply(own, first) == own.name


def test_a_stream_that_has_ended_already_is_still_one_of_a_probe():
    own = OwnStreams()
    dest = new_dest()
    own.add(dest)
    ours, theirs = socket.socketpair()
    theirs.close()
    with Stream(ours) as stream:
        assert own.reply_to(stream, Peer(dest))


def test_the_reply_cannot_be_guessed():
    assert len(OwnStreams().name) > 30
    assert OwnStreams().name != OwnStreams().name


def test_relays_with_the_same_key_know_each_others_probe_sessions_and_nobody_else_does():
    key, ours, theirs, others = PrivateKey.generate(), ProbeKeys(), ProbeKeys(), ProbeKeys()
    for keys, shared in ((ours, key), (theirs, PrivateKey(key.data)), (others, PrivateKey.generate())):
        keys.share(shared)
    dest = ours.choose().key.destination
    assert key.destination == ours.destination != dest
    own = OwnStreams(theirs)
    assert reply(own, dest) == own.name
    assert reply(OwnStreams(others), dest) is None
    assert reply(OwnStreams(), dest) is None
    assert reply(own, ours.choose_standby().key.destination) == own.name


def test_relays_that_serve_and_those_that_stand_by_have_other_keys():
    keys = ProbeKeys()
    keys.share(PrivateKey.generate())
    serving, standby = ({choose().key.destination for _ in range(100)} for choose in (keys.choose, keys.choose_standby))
    assert serving | standby == keys.peers
    assert not serving & standby


def test_two_relays_that_stand_by_choose_their_keys_in_another_order():
    """Two with the same probe destinations would get no replies."""
    key, ours, theirs = PrivateKey.generate(), ProbeKeys(), ProbeKeys()
    orders = []
    for keys in (ours, theirs):
        keys.share(PrivateKey(key.data))
        orders.append([keys.choose_standby().key.destination for _ in range(64)])
    assert sorted(orders[0]) == sorted(orders[1])
    assert orders[0] != orders[1]
    first = orders[0].index(orders[1][0])
    assert orders[0][first:] + orders[0][:first] != orders[1], "not even from another start"


@pytest.mark.parametrize(
    ("clock", "ahead"), [(1000, 0.0), (1009, 0.0), (1010, 0.0), (1030, 20.0), (960, -34.0), (994, 0.0)]
)
def test_the_difference_of_clocks_is_the_smallest_that_fits(clock, ahead):
    """The reply was made while the stream was open, 15 s at most, and tells whole seconds."""
    assert probe._ahead(clock, 1010.0) == ahead


def test_options_that_hide_a_destination():
    assert hiding(I2PRouter()) == ""
    assert hiding(I2PRouter(options=(("i2cp.dontPublishLeaseSet", "TRUE"),))) == "i2cp.dontPublishLeaseSet=TRUE"


def test_without_a_shared_key_each_probe_session_has_a_new_one():
    assert ProbeKeys().choose() is None
