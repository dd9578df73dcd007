"""``relay.transports.chain``: dialers around dialers, and errors that tell the hop."""

import socket
import time
from typing import get_args

import pytest
from helpers import WAIT, receive_exactly, wait_until
from ssh_world import World

import relay
from relay.addresses.hops import Command, Hop, Proxy
from relay.addresses.i2p import I2PRouter, I2PTarget
from relay.addresses.i2p_parser import parse_sam
from relay.addresses.resume import ResumeServer
from relay.addresses.ssh import SSHServer
from relay.addresses.values import TCPAddress, UnixAddress
from relay.transports.chain import KINDS, chain, network, numbered
from relay.transports.i2p.dialer import I2PFactory
from relay.transports.program_dialer import Local
from relay.transports.proxies.dialer import Proxied
from relay.transports.ssh.dialer import SSHFactory

DB = TCPAddress("127.0.0.1", 5432)
SSH = SSHServer("bastion")
SOCKS = Proxy("socks5", "127.0.0.1", 1)


@pytest.fixture
def world(monkeypatch):
    return World(monkeypatch)


def test_the_table_has_every_kind_of_hop():
    assert set(KINDS) == set(get_args(Hop)) - {ResumeServer}  # which is at a target, whose dialer it takes


def test_a_network_is_dialed_from_its_last_hop():
    there = network((SSH, SOCKS))
    assert there.route == (SSH, SOCKS)
    assert there.beyond(Command("nc %h %p")).route == (SSH, SOCKS, Command("nc %h %p"))
    assert there.to(DB).route == there.route and there.to(DB).target == "127.0.0.1:5432"


def test_an_error_says_which_hop_it_belongs_to():
    route = (SSHServer("a"), SSHServer("b", "me"))
    error = relay.ConnectError("ssh://me@b: connection refused", reason="refused")
    told = numbered(error, route)
    assert str(told) == "hop 2 of 2 (ssh://me@b): connection refused"
    assert isinstance(told, relay.ConnectError) and told.reason == "refused"
    assert str(error) == "ssh://me@b: connection refused", "others are told it, too"
    assert numbered(error, route[1:]) is error
    other = relay.ConnectError("db:1: refused")
    assert numbered(other, route) is other


def test_of_hops_that_are_lost_together_the_first_is_told():
    route = (SSHServer("a"), SSHServer("b"), SSHServer("c"))
    lost = "the connection was lost: "
    error = relay.CarrierError(f"ssh://c: {lost}ssh://b: {lost}ssh://a: {lost}the server has closed the connection")
    assert str(numbered(error, route)) == f"hop 1 of 3 (ssh://a): {lost}the server has closed the connection"
    error = relay.CarrierError(f"ssh://c: {lost}ssh://elsewhere: gone")
    assert str(numbered(error, route)) == f"hop 3 of 3 (ssh://c): {lost}ssh://elsewhere: gone"


def test_what_ends_a_live_stream_tells_the_hop(world):
    with chain((SSHServer("first"), SSHServer("second")), DB) as factory, factory() as stream:
        assert stream.failure is None
    world.failure = relay.CarrierError("ssh://second: the connection was lost: reset")
    with chain((SSHServer("first"), SSHServer("second")), DB) as factory, factory() as stream:
        assert str(stream.failure()) == "hop 2 of 2 (ssh://second): the connection was lost: reset"


@pytest.mark.parametrize(
    ("hops", "place", "kind"),
    [
        ((SSH,), DB, SSHFactory),
        ((SSH,), UnixAddress("/x"), SSHFactory),
        ((SSH,), Command("cat"), SSHFactory),
        ((SSH, Command("nc %h %p")), DB, SSHFactory),
        ((), Command("cat"), Local),
        ((Command("nc %h %p"),), DB, Local),
        ((SOCKS,), DB, Proxied),
        ((SOCKS,), TCPAddress("name.i2p", 80), Proxied),
        ((), TCPAddress("name.i2p", 80), I2PFactory),
        ((SSH,), TCPAddress("name.i2p", 80), I2PFactory),
        ((I2PRouter(),), TCPAddress("name.i2p", 80), I2PFactory),
    ],
    ids=range(11),
)
def test_each_hop_leads_there_in_its_way(hops, place, kind):
    made = network(hops).to(place)
    assert type(made) is kind
    made.close()


def test_a_name_of_i2p_is_reached_over_i2p_and_never_looked_up(monkeypatch, spawner_thread):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *arguments, **more: pytest.fail(f"{arguments} was looked up"))
    for hops in ((), (SSHServer("x.i2p"),), (Proxy("http", "x.i2p", 1),)):
        with chain(hops, DB if hops else TCPAddress("x.i2p", 1)) as made, pytest.raises(relay.RelayError) as failure:
            made()
        assert "SAM bridge" in str(failure.value)


def test_a_target_takes_the_router_of_the_hop_before_it():
    router = I2PRouter(parse_sam("127.0.0.1:9"))
    for target in (I2PTarget("name.i2p"), TCPAddress("name.i2p", 80)):
        with pytest.raises(relay.ConnectError, match=r"^i2p:\?sam=127.0.0.1:9: no SAM bridge there"):
            chain((router,), target)()


@pytest.mark.parametrize("name", ["bastion", "name.i2p"])
def test_one_hop_is_not_counted(world, name):
    with chain((SSHServer("bastion"),), DB) as factory:
        world.errors = [relay.HostKeyError("ssh://bastion: the key has changed")]
        with pytest.raises(relay.HostKeyError, match="^ssh://bastion: the key has changed"):
            factory.ready()


def test_the_same_streams_and_the_state_of_the_last_one(world):
    hops = (SSHServer("first"), SSHServer("second"))
    heard = []
    with chain(hops, DB) as factory:
        assert factory.route == hops and factory.target == "127.0.0.1:5432"
        assert factory.state == "closed"
        factory.subscribe(lambda state, error: heard.append(state.value))
        with factory() as stream:
            stream.socket.sendall(b"hello")
            assert receive_exactly(world.connections[-1].far[0], 5) == b"hello"
        assert factory.state == "up" and heard[-1] == "up"
        factory.close_when_idle()
        wait_until(lambda: factory.state == "closed", WAIT)
    wait_until(lambda: all(connection.closed for connection in world.connections), WAIT)


def test_what_is_wrong_with_a_files_of_a_hop_is_told_at_once(tmp_path):
    router = I2PRouter(parse_sam(f"tls://h:1?ca={tmp_path}/missing"))
    with pytest.raises(FileNotFoundError):
        network((router,)).to(TCPAddress("name.i2p", 80))
    with pytest.raises(FileNotFoundError):
        chain((SSH,), I2PTarget("name.i2p", None, router))


def test_what_makes_no_sense_is_refused_at_once():
    with pytest.raises(relay.AddressError, match="leads to hosts and ports only"):
        chain((SOCKS,), UnixAddress("/x"))
    with pytest.raises(relay.AddressError, match="leads nowhere else"):
        network((I2PRouter(),)).to(DB)


def test_who_waits_in_vain_hears_of_the_hop_that_failed(world):
    world.errors = [relay.ConnectError("ssh://first: refused", reason="refused") for _ in range(500)]
    with chain((SSHServer("first"), SSHServer("second"), SSHServer("third")), DB) as factory:
        told = r"^hop 1 of 3 \(ssh://first\): refused \(not connected in time\)$"
        with pytest.raises(relay.ConnectError, match=told):
            factory(deadline=time.monotonic() + 0.2)
