"""Programs that were written for sshtunnel run with one import changed, and lose what sshtunnel does wrong."""

import contextlib
import os
import resource
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from helpers import WAIT, Thread, ending, exchange, makes, receive_all, receive_exactly, send_and_end
from sshd import LOOPBACK, make_key

import relay
from relay.compat.sshtunnel import BaseSSHTunnelForwarderError, SSHTunnelForwarder

# A program as it would be found. It sends a request, half-closes, and prints the answer.
PROGRAM = """
import socket
import sys

from sshtunnel import SSHTunnelForwarder

host, port, user, key, config, target = sys.argv[1:]
with SSHTunnelForwarder(
    (host, int(port)),
    ssh_username=user,
    ssh_pkey=key,
    ssh_config_file=config,
    allow_agent=False,
    host_pkey_directories=[],
    remote_bind_address=("127.0.0.1", int(target)),
) as server:
    with socket.create_connection(("127.0.0.1", server.local_bind_port), 30) as client:
        client.sendall(b"request")
        client.shutdown(socket.SHUT_WR)
        answer = b""
        while piece := client.recv(100):
            answer += piece
    print(answer.decode())
"""
IMPORT = "from sshtunnel import"
MANY = 1100  # connections
PER_CONNECTION = 5  # descriptors of this process: both ends of both sides, and one of the SSH connection


def answer_at_the_end(connection):
    """Answer once the request is complete."""
    connection.sendall(b"answer to " + receive_all(connection))


def printed(text, folder, server, target):
    """The output of a program whose user knows the server's host key."""
    config = folder / "config"
    config.write_text(f"UserKnownHostsFile {server.known_hosts}\n")
    environment = {"HOME": str(folder), "PATH": os.environ["PATH"], "PYTHONPATH": str(Path(relay.__file__).parents[1])}
    words = [sys.executable, "-c", text, LOOPBACK, server.port, server.user, server.keyfile, config, target]
    words = list(map(str, words))
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=2 * WAIT)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_program_for_the_original(sshd, serve, tmp_path):
    assert PROGRAM.count(IMPORT) == 1
    changed = PROGRAM.replace(IMPORT, "from relay.compat.sshtunnel import")
    assert printed(changed, tmp_path, sshd, serve(answer_at_the_end).address[1]) == "answer to request"


def test_the_same_on_the_original(sshd, serve, tmp_path):
    """It ends both directions at the half-close, so that the answer is lost."""
    assert printed(PROGRAM, tmp_path, sshd, serve(lambda one: answer_at_the_end(one)).address[1]) == ""


@pytest.fixture
def forwarder(tmp_path, spawner_thread):
    """Makes forwarders to a server and stops them; what ``known_hosts`` has is the user's."""

    def make(server, target, known_hosts=None, **options):
        (tmp_path / "known_hosts").write_text(server.known_hosts.read_text() if known_hosts is None else known_hosts)
        config = tmp_path / "config"
        config.write_text(f"UserKnownHostsFile {tmp_path}/known_hosts\n")
        options.setdefault("ssh_pkey", str(server.keyfile))
        return SSHTunnelForwarder(
            (LOOPBACK, server.port),
            ssh_config_file=str(config),
            ssh_username=server.user,
            allow_agent=False,
            host_pkey_directories=[],
            remote_bind_address=target,
            **options,
        )

    yield from makes(make, lambda made: made.stop(force=True))


def test_half_closes_in_both_directions(sshd, forwarder, listener):
    server = forwarder(sshd, listener.getsockname())
    server.start()
    for first in (0, 1):
        with socket.create_connection(server.local_bind_address, WAIT) as client, listener.accept()[0] as far:
            far.settimeout(WAIT)
            ends = (client, far) if first == 0 else (far, client)
            send_and_end(ends[0], b"x" * (1 << 20))
            assert receive_all(ends[1]) == b"x" * (1 << 20)
            send_and_end(ends[1], b"y" * (1 << 20))
            assert receive_all(ends[0]) == b"y" * (1 << 20)


def test_it_reconnects(make_sshd, forwarder, listener):
    """The session is killed: its connections end, the port stays, and the next client has a new session."""
    sshd = make_sshd()
    server = forwarder(sshd, listener.getsockname())
    server.start()
    address = server.local_bind_address
    with socket.create_connection(address, WAIT) as client, listener.accept()[0] as far:
        far.settimeout(WAIT)
        exchange(client, far)
        sshd.kill_sessions()
        assert ending(client) == "reset"
    with socket.create_connection(address, WAIT) as client, listener.accept()[0] as far:
        far.settimeout(WAIT)
        exchange(client, far)
        assert server.is_active and server.is_alive
        assert server.local_bind_address == address
    assert sshd.logins == 2


def test_many_connections_and_no_more_threads(make_sshd, forwarder, listener):
    """1,100 connections at once, with descriptors beyond 1,024, which select() does not take."""
    needed = PER_CONNECTION * MANY + 200
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        pytest.skip(f"this machine has a hard limit of {hard} descriptors, and {needed} are needed (ulimit -Hn)")
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))  # the server inherits it
    server = forwarder(make_sshd(), listener.getsockname())
    server.start()

    def accept_all():
        return [listener.accept()[0] for _ in range(MANY)]

    with contextlib.ExitStack() as stack:
        accepting = Thread(accept_all)
        clients = [stack.enter_context(socket.create_connection(server.local_bind_address, WAIT))]
        clients[0].sendall(b"0000")
        threads = threading.active_count()
        for number in range(1, MANY):
            clients.append(stack.enter_context(socket.create_connection(server.local_bind_address, WAIT)))
            clients[-1].sendall(b"%04d" % number)
        fars = [stack.enter_context(far) for far in accepting.result(3 * WAIT)]
        assert threading.active_count() <= threads
        assert max(client.fileno() for client in clients) > 1024
        for far in fars:
            far.settimeout(WAIT)
            far.sendall(receive_exactly(far, 4))
        assert [int(receive_exactly(client, 4)) for client in clients] == list(range(MANY))


def test_a_changed_host_key_is_refused(sshd, forwarder, listener, tmp_path):
    """Also with a password, which the wrong server then does not get."""
    known_hosts = f"[{LOOPBACK}]:{sshd.port} {make_key(tmp_path / 'other')}\n"
    server = forwarder(sshd, listener.getsockname(), known_hosts, ssh_password="secret")
    with pytest.raises(BaseSSHTunnelForwarderError, match="host key has changed"):
        server.start()
    assert not server.is_alive and not server.is_active
    sshd.wait_for("[preauth]")
    assert "user" not in sshd.log()  # it has seen no login, and so no user


def test_an_unknown_host_key_is_refused_with_the_remedy(sshd, forwarder, listener, tmp_path):
    target = listener.getsockname()
    with pytest.raises(BaseSSHTunnelForwarderError, match=r"is not known .* ssh_host_key"):
        forwarder(sshd, target, known_hosts="").start()
    with forwarder(sshd, target, known_hosts="", ssh_host_key=sshd.host_key_line) as server:
        assert server.is_active
    with pytest.raises(BaseSSHTunnelForwarderError, match="is pinned|no host key algorithm"):
        forwarder(sshd, target, ssh_host_key=make_key(tmp_path / "other")).start()
