"""A reverse tunnel that is paused ends its connections at once, whatever they wait for, and comes back."""

import contextlib
import select
import socket
import time

import pytest
from helpers import PROMPT, WAIT, Thread, echo, ending, exchange, is_gone, receive_all, receive_exactly, send_and_end
from rforward_rig import LOOPBACK, World, greet, still_usable, worlds


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """A thread that waits for an answer of the server waits for longer than is prompt."""
    monkeypatch.setattr("relay.compat._rforward.tunnel._ANSWER", WAIT)
    monkeypatch.setattr("relay.compat._rforward.tunnel._PATIENCE", 4 * WAIT)


@pytest.fixture(params=["ssh_server", "sshd"])
def world(request, openssh_server):
    yield from worlds(request)


def connected(world, tunnel, listening):
    """A client on the server's side, and the end that the tunnel leads to."""
    return world.client(tunnel), world.accept(listening)


def stalled(end):
    """Flood an end whose peer does not read, until nothing more can be sent."""
    end.setblocking(False)
    while select.select([], [end], [], 0.3)[1]:
        end.send(bytes(1 << 16))
    end.settimeout(WAIT)


def test_live_connections_end_and_new_ones_come_after_resume(world):
    listening = world.listener()
    tunnel = world.tunnel(listening)
    client, far = connected(world, tunnel, listening)
    exchange(client, far)
    port = tunnel.server_port
    began = time.monotonic()
    tunnel.pause()
    assert ending(far) == "reset"  # a transfer that was cut does not look complete
    assert ending(client) in ("end of file", "reset")  # SSH can say no more
    assert time.monotonic() - began < PROMPT
    assert is_gone((LOOPBACK, port))
    tunnel.pause()
    tunnel.resume()
    tunnel.resume()
    assert tunnel.server_port == port
    exchange(*connected(world, tunnel, listening))


@pytest.mark.parametrize("who", ["client", "far", "both"])
def test_nobody_who_does_not_read_delays_it(world, who):
    listening = world.listener()
    tunnel = world.tunnel(listening)
    client, far = connected(world, tunnel, listening)
    for name, end in (("client", far), ("far", client)):  # the one that does not read, and the one that sends to it
        if who in (name, "both"):
            stalled(end)
    began = time.monotonic()
    tunnel.pause()
    assert time.monotonic() - began < PROMPT
    assert ending(far) == "reset"
    tunnel.resume()
    exchange(*connected(world, tunnel, listening))


def test_another_tunnels_connections_go_on(world):
    listening, other_listening = world.listener(), world.listener()
    tunnel, other = world.tunnel(listening), world.tunnel(other_listening)
    pair = connected(world, other, other_listening)
    stalled(connected(world, tunnel, listening)[1])
    tunnel.pause()
    exchange(*pair)
    tunnel.stop_thread()
    exchange(*pair)


def test_a_server_that_has_stopped_does_not_delay_it(make_sshd):
    """Nothing can be said to it any more; what leads to this side ends all the same."""
    server = make_sshd()
    with contextlib.closing(World(server)) as world:
        listening = world.listener()
        tunnel = world.tunnel(listening)
        pairs = [connected(world, tunnel, listening) for _ in range(3)]
        server.freeze()
        for _, far in pairs:
            stalled(far)
        pausing = Thread(tunnel.pause)
        assert [ending(far) for _, far in pairs] == ["reset"] * 3
        assert pausing.is_alive()  # it waits for the server's answer
        server.thaw()
        pausing.result()
        tunnel.resume()
        exchange(*connected(world, tunnel, listening))


def test_those_who_connect_while_it_pauses_are_not_served_later(world):
    tunnel = world.tunnel(world.serve(greet(b"1")))

    def fate():
        try:
            with socket.create_connection((LOOPBACK, tunnel.server_port), WAIT) as client:
                return client.recv(1)
        except ConnectionError:
            return b""

    for _ in range(10):
        callers = [Thread(fate) for _ in range(5)]
        tunnel.pause()
        assert {caller.result() for caller in callers} <= {b"", b"1"}
        tunnel.resume()
        assert fate() == b"1"


def test_stopping_is_as_quick_and_idempotent_and_leaves_the_transport(world):
    listening = world.listener()
    tunnel = world.tunnel(listening)
    _, far = connected(world, tunnel, listening)
    stalled(far)
    began = time.monotonic()
    tunnel.stop_thread()
    assert time.monotonic() - began < PROMPT
    assert not tunnel.is_alive()
    assert ending(far) == "reset"
    assert is_gone((LOOPBACK, tunnel.server_port))
    tunnel.stop_thread()
    tunnel.pause()
    tunnel.resume()
    tunnel.notify()
    still_usable(world.transport, world.serve(echo))


def test_each_direction_ends_for_itself(world):
    listening = world.listener()
    tunnel = world.tunnel(listening)
    client, far = connected(world, tunnel, listening)
    send_and_end(client, b"request")
    assert receive_all(far) == b"request"
    send_and_end(far, b"reply")
    assert receive_all(client) == b"reply"
    client, far = connected(world, tunnel, listening)
    send_and_end(far, b"greeting")
    assert receive_all(client) == b"greeting"
    client.sendall(b"more")
    assert receive_exactly(far, 4) == b"more"
    client.close()
    assert receive_all(far) == b""
