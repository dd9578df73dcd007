"""``relay.engine.loops``: a tunnel that leads back to itself is ended by relay, and other tunnels are not."""

import contextlib
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import WAIT, ending, receive_exactly, wait_until
from sshd import server_url

import relay

LOOP = "its target leads back to the tunnel"


@pytest.fixture
def tunnel():
    with contextlib.ExitStack() as stack:

        def make(receive, target, **options):
            make_send = relay.tcp("localhost", target)  # a name: nothing shows beforehand where it leads
            return stack.enter_context(relay.Tunnel(receive, make_send, timeout=None, linger=None, **options))

        yield make


def listening(backlog=512):
    return socket.create_server(("127.0.0.1", 0), backlog=backlog)


def ends(address):
    """Connect to a loop; return how that ends."""
    with socket.create_connection(address, WAIT) as client:
        with contextlib.suppress(ConnectionResetError):  # it has ended already
            client.sendall(b"hello")
        return ending(client)


@pytest.mark.parametrize("nconnect", [-1, 50])
def test_a_loop_ends_and_uses_no_more_than_a_few_descriptors(nconnect, tunnel, caplog):
    receive = listening()
    one = tunnel(receive, receive.getsockname()[1], nconnect=nconnect)
    assert ends(one.address) == "reset"
    wait_until(lambda: one.stats().active == 0)
    assert one.metrics().accepted <= 300
    (line,) = [message for message in caplog.messages if LOOP in message]
    assert line.endswith("; name another target")
    assert set(one.metrics().ended) >= {"overloaded"}


def test_a_loop_through_two_tunnels_ends(tunnel, caplog):
    receives = listening(), listening()
    ports = [receive.getsockname()[1] for receive in receives]
    one, other = tunnel(receives[0], ports[1]), tunnel(receives[1], ports[0])
    assert ends(one.address) == "reset"
    wait_until(lambda: one.stats().active == other.stats().active == 0)
    assert one.metrics().accepted + other.metrics().accepted <= 1500
    assert LOOP in caplog.text


def test_tunnels_one_after_the_other_are_no_loop(tunnel, serve, caplog):
    """Each client of the second one comes from this process."""
    server = serve(lambda connection: connection.sendall(connection.recv(9)))
    receives = listening(), listening()
    tunnel(receives[1], server.address[1])
    one = tunnel(receives[0], receives[1].getsockname()[1])
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(socket.create_connection(one.address, WAIT)) for _ in range(260)]
        wait_until(lambda: one.stats().active == 260)
        for client in clients:
            client.sendall(b"hello")
        assert {receive_exactly(client, 5) for client in clients} == {b"hello"}
    assert LOOP not in caplog.text


CHILD = """
import resource, socket, sys, relay
receive = socket.create_server(("127.0.0.1", 0), backlog=512)
resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
port = receive.getsockname()[1]
match sys.argv[1:]:
    case ["unix", path]:
        make_send = relay.unix(path)
    case ["ssh", url]:
        make_send = relay.ssh(url, "127.0.0.1", port)
    case _:
        make_send = relay.tcp("127.0.0.1", port)
with relay.Tunnel(receive, make_send, timeout=None, linger=None) as tunnel:
    print(port, flush=True)
    for line in sys.stdin:
        print(tunnel.metrics().accepted, tunnel.stats().active, flush=True)
"""


@pytest.fixture
def few_descriptors(tmp_path):
    """A process whose tunnel leads to itself, perhaps through something else: it, its address, and whether it logs."""

    @contextlib.contextmanager
    def make(*arguments):
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        command = [sys.executable, "-c", CHILD, *map(str, arguments)]
        log = tmp_path / "log"
        with (
            log.open("w") as errors,
            subprocess.Popen(
                command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
            ) as process,
        ):
            try:
                address = ("127.0.0.1", int(process.stdout.readline()))
                yield process, address, lambda: wait_until(lambda: LOOP in log.read_text())
            finally:
                process.kill()

    return make


def figures(process):
    """Return the numbers of all connections and of the open ones."""
    process.stdin.write("\n")
    process.stdin.flush()
    return tuple(map(int, process.stdout.readline().split()))


def test_a_loop_ends_where_there_are_fewer_descriptors(few_descriptors):
    with few_descriptors() as (process, address, wait_for_log):
        assert ends(address) == "reset"
        wait_for_log()
        wait_until(lambda: figures(process)[1] == 0)


def test_a_loop_through_another_program_ends_and_does_not_begin_anew(few_descriptors, tmp_path):
    path = tmp_path / "other"
    with few_descriptors("unix", path) as (process, (host, port), wait_for_log):
        command = ["socat", f"UNIX-LISTEN:{path},fork,backlog=512", f"TCP4:{host}:{port}"]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as other:
            try:
                with socket.socket(socket.AF_UNIX) as client:
                    client.settimeout(WAIT)
                    wait_until(lambda: client.connect_ex(str(path)) == 0)
                    client.sendall(b"hello")
                    wait_for_log()
                    wait_until(lambda: figures(process)[1] == 0)
                # On a busy machine it begins anew a few times before relay sees it.
                assert 16 < figures(process)[0] < 1000
            finally:
                other.kill()


def test_a_loop_through_a_server_ends_and_does_not_begin_anew(few_descriptors, sshd, backend):
    with few_descriptors("ssh", server_url(sshd.server, backend=backend)) as (process, address, _):
        with socket.create_connection(address, WAIT) as client:
            client.sendall(b"hello")
            ending(client)  # a stream that finds no descriptor is reset, which may end the loop, too
        wait_until(lambda: figures(process)[1] == 0)
        # On a busy machine it begins anew a few times before relay sees it.
        assert 16 < figures(process)[0] < 1000
