"""With several routers, a session that is lost at one is created at the next one, at once, and stays there."""

import contextlib
import logging
import socket
import time

import pytest
from group_rig import running
from helpers import WAIT, ending, refusing, wait_until

import relay
from relay.carriers.listing import carriers
from relay.testing import SAMBridge


@pytest.fixture
def routers():
    with SAMBridge() as one, SAMBridge(network=one) as other:
        yield one, other


@pytest.fixture(autouse=True)
def quick(monkeypatch, times, tmp_path):
    """A back-off would outlast the test, and a session counts as stable at once."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    times(back_off=(600.0, 600.0), back_off_with_waiters=600.0, stable_after=0.0, remembered=(0.3, 0.3), hello=1.0)


def name_of(*routers):
    return f"i2p:?{'&'.join(f'sam={router.sam}' for router in routers)}"


def moves(caplog):
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    return [line for line in lines if "the session is at the router" in line]


def destinations(router):
    return [session.destination for session in router.sessions]


def connected(tunnel):
    return socket.create_connection(tunnel.address, WAIT)


def exchange(tunnel):
    """Exchange bytes with an echo server over a new stream."""
    with connected(tunnel) as client:
        client.sendall(b"ping")
        assert client.recv(4) == b"ping"


@pytest.mark.parametrize("lose", [SAMBridge.kill, SAMBridge.cut], ids=["killed", "session ended"])
def test_an_exposed_destination(routers, lose, caplog, echo_server, record_property):
    one, other = routers
    port = echo_server.address[1]
    with (
        SAMBridge(network=one) as third,
        relay.TunnelServer("site", port, [one.sam, other.sam]) as server,
        relay.TunnelClient("", 0, server.dest, third.sam) as client,
    ):
        dest = server.dest
        assert (dest in destinations(one), dest in destinations(other)) == (True, False)
        for lost, now in ((one, other), (other, one)):
            begin = time.monotonic()
            lose(lost)
            wait_until(lambda now=now: dest in destinations(now))
            exchange(client)
            seconds = time.monotonic() - begin
            record_property("measured", f"one of two routers lost: a stream by the other one after {seconds:.2f} s")
            lost.restart()
            assert dest not in destinations(lost), "it does not go back"
        assert server.dest == dest
    begin = f"{name_of(one, other)}: the session is at the router"
    assert [line.partition(";")[0] for line in moves(caplog)] == [f"{begin} {other.sam}", f"{begin} {one.sam}"]


def test_the_self_check_is_at_the_router_of_the_session(routers, echo_server):
    """Another one, which may have no tunnels, would show that a sound session is not reachable."""
    one, other = routers
    one.refuse_sessions(1, "I2P_ERROR")
    with relay.TunnelServer("", echo_server.address[1], [one.sam, other.sam]) as server:
        assert server.wait_published(WAIT)
        assert (len(one.sessions), len(other.sessions)) == (0, 2)


def test_a_reload_that_adds_a_router_while_a_client_is_served(routers, tmp_path, echo_server):
    """The new session has the same keys, so it can begin only when the old one has ended with its streams."""
    one, other = routers

    def text(*sam):
        target = "{}:{}".format(*echo_server.address)
        return f'[tunnels.site]\nlisten = "i2p:"\nsession = "x"\nsam = {[*sam]}\ntarget = "{target}"\ndrain = 0.2\n'

    def is_open():
        return group.now("site").state.value == "listening"

    with running(tmp_path / "relay.toml", text(one.sam)) as group:
        wait_until(is_open)
        address = group.tunnel("site").address
        with contextlib.closing(relay.target(f"i2p://{address}?sam={other.sam}")) as target:
            with target(deadline=time.monotonic() + WAIT) as stream:
                stream.socket.sendall(b"ping")
                assert group.rewrite(text(other.sam, one.sam)) == {"site": "moved"}
            wait_until(is_open)
            assert group.tunnel("site").address == address
            with target(deadline=time.monotonic() + WAIT) as stream:
                stream.socket.settimeout(WAIT)
                stream.socket.sendall(b"ping")
                assert stream.socket.recv(4) == b"ping"


def test_the_session_of_a_client(routers, caplog, echo_server):
    one, other = routers
    with (
        SAMBridge(network=one) as third,
        relay.TunnelServer("site", echo_server.address[1], third.sam) as server,
        relay.TunnelClient("", 0, server.dest, [one.sam, other.sam]) as client,
    ):
        with connected(client) as stream:
            stream.sendall(b"ping")
            assert stream.recv(4) == b"ping"
            one.kill()
            assert ending(stream) == "reset"
        exchange(client)
        one.restart()
        exchange(client)
        assert (len(one.sessions), len(other.sessions)) == (0, 1)
        of_client = [carrier for carrier in carriers() if carrier.name.count("sam=") == 2]
        assert [(carrier.name, carrier.router) for carrier in of_client] == [(name_of(one, other), other.sam)]
        other.cut()
        wait_until(lambda: len(one.sessions) == 1)
        exchange(client)
    assert len(moves(caplog)) == 2


def refused(one):
    one.kill()


def hung(one):
    one.hold_answers("HELLO")


def refuses(one):
    one.refuse_sessions(1, "I2P_ERROR")


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        (refused, "no SAM bridge there (connection refused)"),
        (hung, "no answer in time"),
        (refuses, "the router refuses the session (I2P_ERROR: injected fault)"),
    ],
)
def test_a_router_without_a_session_at_the_start(routers, fault, why, caplog):
    one, other = routers
    fault(one)
    with contextlib.closing(relay.i2p("a.i2p", sam=[one.sam, other.sam])) as target:
        target.ready(WAIT)
        assert (len(one.sessions), len(other.sessions)) == (0, 1)
    assert moves(caplog) == [f"{name_of(one, other)}: the session is at the router {other.sam}; {one.sam}: {why}"]


def test_no_router_at_all():
    with refusing() as one, refusing() as other:
        bridges = [f"{host}:{port}" for host, port in (one, other)]
        with (
            contextlib.closing(relay.i2p("a.i2p", sam=bridges)) as target,
            pytest.raises(relay.ConnectError) as failure,
        ):
            target.ready(WAIT)
    why = "no SAM bridge there (connection refused)"
    name = f"i2p:?sam={bridges[0]}&sam={bridges[1]}"
    begin = f"{name}: no router creates the session: {bridges[0]}: {why}; {bridges[1]}: {why}; check that a router"
    assert str(failure.value).startswith(begin)
    assert failure.value.reason == "refused"


def test_each_of_several_sessions_begins_with_another_router(routers):
    one, other = routers
    with contextlib.closing(relay.i2p("a.i2p", sam=[one.sam, other.sam], carriers=2)) as target:
        target.ready(WAIT)
        wait_until(lambda: (len(one.sessions), len(other.sessions)) == (1, 1))
