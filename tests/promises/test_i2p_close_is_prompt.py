"""``close()`` is prompt, whatever the I2P session is doing, and leaves nothing."""

import contextlib
import signal
import socket
import time

import pytest
from command_rig import commands
from helpers import PROMPT, WAIT, Thread, ended, ending, exchange, flood, refusing, wait_until
from i2p_world import SHORT

import relay

LONG = 3 * PROMPT  # seconds that a session takes to be made


@contextlib.contextmanager
def prompt():
    begin = time.monotonic()
    yield
    assert time.monotonic() - begin < PROMPT


def test_with_live_streams(i2p_world, over_i2p):
    rig = over_i2p(i2p_world)
    pairs = [rig.connect() for _ in range(10)]
    for client, far in pairs:
        exchange(client, far)
    for tunnel in (rig.tunnel, rig.server):
        with prompt():
            tunnel.close()
    for client, far in pairs:
        assert ending(client) == "reset"
        ending(far)
    assert ended(rig.tunnel, 10) == ["closed"] * 10


def test_of_the_server_first(i2p_world, over_i2p):
    rig = over_i2p(i2p_world)
    client, far = rig.connect()
    exchange(client, far)
    with prompt():
        rig.server.close()
    assert ending(far) == "reset"
    assert ended(rig.server) == ["closed"]
    with prompt():
        rig.tunnel.close()


def test_with_bulk_under_way_and_stalled_readers(i2p_world, over_i2p):
    rig = over_i2p(i2p_world)
    pairs = [rig.connect() for _ in range(4)]
    sending = [Thread(flood, client, 16) for client, _ in pairs]
    reading = [Thread(ending, far) for _, far in pairs[::2]]
    wait_until(lambda: all(one.received for one in rig.tunnel.connections()))
    for tunnel in (rig.tunnel, rig.server):
        with prompt():
            tunnel.close()
    for thread in sending:
        with contextlib.suppress(ConnectionError):  # a router takes much that is never read
            thread.result()
    for thread in reading:
        thread.result()


def test_with_a_frozen_router(i2p_world, over_i2p):
    rig = over_i2p(i2p_world)
    client, far = rig.connect()
    exchange(client, far)
    with i2p_world.frozen():
        rig.client().sendall(b"x")
        wait_until(lambda: rig.tunnel.stats().active == 2)
        with prompt():
            rig.tunnel.close()
        assert ending(client) == "reset"


@pytest.fixture
def slow(i2p_double):
    """Embedded bridges at which a session takes its time."""
    for bridge in (i2p_double.servers, i2p_double.clients):
        bridge.settings.build_time = LONG
    return i2p_double


def creating(bridge):
    """Return whether a session is being made there."""
    return any(command.words == ("SESSION", "CREATE") for command in bridge.commands) and not bridge.sessions


def test_while_the_first_session_is_made(slow):
    factory = relay.i2p("x.i2p", sam=slow.client, **SHORT)
    tunnel = relay.Tunnel(relay.listen(":0"), factory, connect_timeout=None)
    with socket.create_connection(tunnel.address, WAIT) as client:
        wait_until(lambda: creating(slow.clients))
        with prompt():
            tunnel.close()
        assert ending(client) == "reset"


def test_while_a_real_router_builds_tunnels(i2p_routers):
    """20 seconds."""
    factory = relay.i2p("x.i2p", sam=i2p_routers.client, **SHORT)
    with relay.Tunnel(relay.listen(":0"), factory, connect_timeout=None) as tunnel:
        with socket.create_connection(tunnel.address, WAIT) as client:
            client.settimeout(0.5)
            with pytest.raises(TimeoutError):  # it waits
                client.recv(1)
            with prompt():
                tunnel.close()


def test_while_a_session_is_made_again(slow, over_i2p):
    slow.servers.settings.build_time = slow.clients.settings.build_time = 0
    rig = over_i2p(slow)
    exchange(*rig.connect())
    for bridge in (slow.servers, slow.clients):
        bridge.settings.build_time = LONG
        bridge.kill()
        bridge.restart()
        bridge.commands.clear()
        wait_until(lambda bridge=bridge: creating(bridge))
    for tunnel in (rig.server, rig.tunnel):
        with prompt():
            tunnel.close()


def test_of_a_factory_that_somebody_waits_for(slow):
    factory = relay.i2p("x.i2p", sam=slow.client, **SHORT)
    calling = Thread(factory.__call__)
    wait_until(lambda: creating(slow.clients))
    with prompt():
        factory.close()
    with pytest.raises(relay.CarrierError):
        calling.result()


def test_while_it_backs_off():
    with refusing() as (host, port):
        factory = relay.i2p("x.i2p", sam=f"{host}:{port}")
        tunnel = relay.Tunnel(relay.listen(":0"), factory)
        with socket.create_connection(tunnel.address, WAIT) as client:
            wait_until(lambda: factory.state == "backing off")
            with prompt():
                tunnel.close()
            assert ending(client) == "reset"


def test_when_it_has_failed(serve):
    server = serve(lambda connection: connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n"))
    factory = relay.i2p("x.i2p", sam="{}:{}".format(*server.address))
    tunnel = relay.Tunnel(relay.listen(":0"), factory)
    with pytest.raises(relay.SAMError):
        factory.ready()
    assert factory.state == "failed"
    with prompt():
        tunnel.close()


def test_before_anything_was_opened(i2p_double):
    tunnel = relay.Tunnel(relay.listen(":0"), relay.i2p("x.i2p", sam=i2p_double.client))
    with prompt():
        tunnel.close()
    assert not i2p_double.clients.commands


def test_of_a_listener(i2p_world):
    listener = relay.i2p_listen(sam=i2p_world.server, keys=i2p_world.server_keys(), **SHORT, **i2p_world.options)
    accepting = Thread(listener.accept)
    with prompt():
        listener.close()
    with pytest.raises(OSError, match="Bad file"):
        accepting.result()


def test_of_a_listener_whose_router_is_gone(i2p_double):
    listener = relay.i2p_listen(sam=i2p_double.server)
    i2p_double.servers.kill()
    wait_until(lambda: listener.state == "backing off")
    with prompt():
        listener.close()


def test_the_sessions_are_gone_from_the_bridge(i2p_double, over_i2p):
    rig = over_i2p(i2p_double)
    exchange(*rig.connect())
    rig.tunnel.close()
    rig.server.close()
    for bridge in (i2p_double.servers, i2p_double.clients):
        wait_until(lambda bridge=bridge: not bridge.sessions and not bridge.connections)


def test_of_the_command_while_a_session_is_made(slow):
    address = f"i2p:?sam={slow.server}"
    with commands() as start:
        command = start("127.0.0.1:9", "--on", address, "--transient", command="expose")
        wait_until(lambda: creating(slow.servers))
        begin = time.monotonic()
        status, said = command.end(signal.SIGTERM)
        assert time.monotonic() - begin < PROMPT
    assert "Traceback" not in said
    assert status in (0, 1), said
