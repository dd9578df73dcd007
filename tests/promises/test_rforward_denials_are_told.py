"""A reverse forward that the server denies is asked for once more; then the session's hook is called, or it raises."""

import contextlib
import socket

import pytest
from helpers import WAIT, echo, exchange, is_gone, wait_until
from rforward_rig import LOOPBACK, World, reserved, still_usable, worlds

import relay
from relay.compat.rforward import RevFwTunnel


class Session:
    """A session of X2Go, with its hook."""

    def __init__(self):
        self.denied = []

    def HOOK_rforward_request_denied(self, server_port=0):  # noqa: N802
        self.denied.append(server_port)


@pytest.fixture(params=["ssh_server", "sshd"])
def world(request, openssh_server):
    yield from worlds(request)


def not_started(world, port, **options):
    return RevFwTunnel(port, LOOPBACK, 9, world.transport, **options)


def test_a_port_that_is_in_use(world):
    with socket.create_server((LOOPBACK, 0)) as taken:
        port = taken.getsockname()[1]
        tunnel = not_started(world, port)
        with pytest.raises(
            relay.ForwardError, match=f"^{LOOPBACK}:{port}: the SSH server does not listen there; check that the port"
        ):
            tunnel.start()
        assert not tunnel.is_alive()
        tunnel.stop_thread()
    still_usable(world.transport, world.serve(echo))


def test_the_hook_and_another_try_by_resume(world):
    session = Session()
    listening = world.listener()
    with reserved() as taken:
        taken.listen()
        port = taken.getsockname()[1]
        tunnel = world.tunnel(listening, port, session_instance=session)
        assert session.denied == [port]
        tunnel.resume()
        assert session.denied == [port, port]
    tunnel.resume()
    assert session.denied == [port, port]
    exchange(world.client(tunnel), world.accept(listening))
    tunnel.stop_thread()
    assert is_gone((LOOPBACK, port))


def test_a_session_without_a_hook(world):
    with socket.create_server((LOOPBACK, 0)) as taken, pytest.raises(relay.ForwardError):
        not_started(world, taken.getsockname()[1], session_instance=object()).start()


def test_resume_tells_too_and_stays_paused(world):
    tunnel = world.tunnel(world.serve(echo))
    tunnel.pause()
    address = (LOOPBACK, tunnel.server_port)
    with socket.create_server(address):
        with pytest.raises(relay.ForwardError, match="check that the port is free"):
            tunnel.resume()
        assert "paused" in repr(tunnel)
    tunnel.resume()
    with world.client(tunnel) as client:
        client.sendall(b"echo")
        assert client.recv(4) == b"echo"


@pytest.mark.parametrize("line", ["AllowTcpForwarding no", "AllowTcpForwarding local", "PermitListen 127.0.0.1:1"])
def test_the_servers_policy(make_sshd, line):
    with contextlib.closing(World(make_sshd(line))) as world:
        session = Session()
        for port in (0, 40000):
            with pytest.raises(relay.ForwardError, match="AllowTcpForwarding, PermitListen"):
                not_started(world, port).start()
            tunnel = not_started(world, port, session_instance=session)
            tunnel.start()
            tunnel.stop_thread()
            assert not tunnel.is_alive()
        assert session.denied == [0, 40000]
        assert world.transport.is_active()


def test_a_forward_that_a_dead_session_left_is_taken_over(world):
    """Which is what the second request is for: the server still listens there for this very connection."""
    port = world.transport.request_port_forward(LOOPBACK, 0)
    listening = world.listener()
    tunnel = world.tunnel(listening, port)
    exchange(world.client(tunnel), world.accept(listening))


def test_the_servers_choice_is_kept(world):
    tunnel = world.tunnel(world.serve(echo))
    port = tunnel.server_port
    assert port > 0
    for _ in range(2):
        tunnel.pause()
        tunnel.resume()
        assert tunnel.server_port == port
    with world.client(port) as client:
        client.sendall(b"echo")
        assert client.recv(4) == b"echo"
    other = world.tunnel(world.serve(echo))
    assert other.server_port != port
    tunnel.stop_thread()
    wait_until(lambda: is_gone((LOOPBACK, port)))
    with socket.create_connection((LOOPBACK, other.server_port), WAIT) as client:
        client.sendall(b"echo")
        assert client.recv(4) == b"echo"
