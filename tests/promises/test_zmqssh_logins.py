"""Names, keys and passwords: each does what it is there for, unknown hosts are never trusted, secrets stay secret."""

import os
import pty
import shutil
import socket
from pathlib import Path

import paramiko
import pytest
import zmq
from helpers import WAIT, refusing
from ssh_keys import line, make
from sshd import embedded
from zmq_world import User, bound, named, program, req_rep, sockets

from relay.compat import zmqssh
from relay.process import PIPE, start

WORD = "a secret%&+ word"


@pytest.fixture
def user(tmp_path, monkeypatch):
    return User(tmp_path / "home", monkeypatch)


@pytest.fixture
def known(far_end, user):
    """A user who knows the server."""
    user.knows(far_end.server)
    return user


@pytest.fixture
def protected(make_ssh_server, user):
    """A server that wants a password, and the user who knows it."""
    server = make_ssh_server(users={"ann": WORD}, methods=["password"])
    user.knows(embedded(server))
    return server


@pytest.fixture
def talk(backend):
    """Proves that a ØMQ socket can be connected, and returns the tunnel, which is over by then."""

    def talk(server, *arguments, host="127.0.0.1", **options):
        with sockets() as make:

            def connect(client, address):
                nonlocal tunnel
                is_paramiko = backend == "paramiko"
                tunnel = zmqssh.tunnel_connection(client, address, server, *arguments, paramiko=is_paramiko, **options)

            tunnel = None
            try:
                req_rep(make, connect)
            finally:
                if tunnel is not None:
                    tunnel.terminate()

    return talk


def test_a_host_that_is_not_known(far_end, user, talk):
    server, keyfile = named(far_end.server), far_end.server.keyfile
    with pytest.raises(zmqssh.SSHException, match="host key .*is not known"):
        talk(server, keyfile)
    with pytest.raises(zmqssh.SSHException, match="host key .*is not known"):
        zmqssh.try_passwordless_ssh(server, keyfile, far_end.backend == "paramiko")
    assert user.known_hosts.read_text() == ""


def test_a_host_that_is_another_one(far_end, user, talk):
    host = Path(far_end.server.known_hosts).read_text().split()[0]
    user.known_hosts.write_text(line(host) + "\n")
    with pytest.raises(zmqssh.SSHException, match="host key"):
        talk(named(far_end.server), far_end.server.keyfile)
    assert user.known_hosts.read_text().count("\n") == 1


def test_a_keyfile_with_spaces(far_end, known, talk):
    folder = known.folder / "my 'own' keys %h"
    folder.mkdir()
    keyfile = folder / "my key"
    shutil.copy(far_end.server.keyfile, keyfile)
    keyfile.chmod(0o600)
    talk(named(far_end.server), str(keyfile))
    talk(named(far_end.server), keyfile)


def test_a_keyfile_goes_before_the_keys_of_the_configuration(far_end, known, talk):
    """The original added it to them: here it is no use, and they are."""
    other = make(known.folder / "other")
    known.configure(f"  IdentityFile {far_end.server.keyfile}")
    talk(named(far_end.server), str(other))


def test_an_alias(far_end, known, talk):
    server = far_end.server
    known.configure(
        "Host the-far-end",
        f"  HostName {server.host}",
        f"  Port {server.port}",
        f"  User {server.user}",
        f"  IdentityFile {server.keyfile}",
    )
    talk("the-far-end")
    assert zmqssh.try_passwordless_ssh("the-far-end", None, far_end.backend == "paramiko")


@pytest.mark.parametrize(
    "server", ["-oProxyCommand=touch x", "-l", "me@-x", "-x@host", "", "a b", "h;x", "::1", "h:ssh"]
)
def test_names_that_are_none(user, server, tmp_path):
    with sockets() as make:
        client = make(zmq.REQ)
        for attempt in (
            lambda: zmqssh.tunnel_connection(client, "tcp://127.0.0.1:1", server),
            lambda: zmqssh.open_tunnel("tcp://127.0.0.1:1", server),
            lambda: zmqssh.ssh_tunnel(0, 1, server),
            lambda: zmqssh.paramiko_tunnel(0, 1, server),
            lambda: zmqssh.try_passwordless_ssh(server),
            lambda: zmqssh._split_server(server),
        ):
            with pytest.raises(ValueError, match="server"):
                attempt()
    assert not Path("x").exists()


def test_ipv6(backend, make_ssh_server, user):
    try:
        server = make_ssh_server(host="::1")
    except OSError:
        pytest.skip("there is no IPv6 here")
    user.knows(embedded(server))
    name = f"{server.user}@[::1]:{server.address[1]}"
    with sockets() as make:
        far, client = make(zmq.REP), make(zmq.REQ)
        far.ipv6 = True
        far.bind("tcp://[::1]:*")
        address = far.last_endpoint.decode()
        assert address.startswith("tcp://[::1]:")
        is_paramiko = backend == "paramiko"
        url, tunnel = zmqssh.open_tunnel(address, name, server.keyfile, paramiko=is_paramiko)
        with tunnel:
            client.connect(url)
            client.send(b"hello")
            assert far.recv() == b"hello"
            tunnel.terminate()
        with zmqssh.tunnel_connection(make(zmq.REQ), address, name, server.keyfile, paramiko=is_paramiko) as tunnel:
            tunnel.terminate()


def test_over_any_chain(far_end, make_ssh_server, known, talk):
    with make_ssh_server(permit=[f"127.0.0.1:{far_end.server.port}"]) as before:
        talk(named(far_end.server), far_end.server.keyfile, via=[before.url])
        assert before.opened == 1
        assert zmqssh.try_passwordless_ssh(
            named(far_end.server), far_end.server.keyfile, far_end.backend == "paramiko", via=[before.url]
        )


def test_a_server_that_is_not_there(backend, user):
    with refusing() as (host, port):
        for call in (
            lambda: zmqssh.open_tunnel("tcp://127.0.0.1:1", f"me@{host}:{port}", paramiko=backend == "paramiko"),
            lambda: zmqssh.try_passwordless_ssh(f"me@{host}:{port}", None, backend == "paramiko"),
        ):
            with pytest.raises(zmqssh.SSHException, match="refused"):
                call()


# Passwords.


def test_with_and_without_a_password(protected, backend, talk):
    name = named(embedded(protected))
    is_paramiko = backend == "paramiko"
    assert zmqssh.try_passwordless_ssh(name, None, is_paramiko) is False
    talk(name, None, WORD)
    with pytest.raises(paramiko.AuthenticationException, match="login as ann was rejected") as caught:
        talk(name, None, "another one")
    assert "another one" not in str(caught.value)
    with pytest.raises(zmqssh.SSHException, match="there is no terminal to ask for one at: give password="):
        talk(name)


def test_a_password_opens_the_key_file_too(far_end, known, talk):
    locked = known.folder / "locked"
    shutil.copy(far_end.server.keyfile, locked)
    locked.chmod(0o600)
    run = start(["ssh-keygen", "-q", "-p", "-P", "", "-N", WORD, "-f", str(locked)])
    assert run.wait(WAIT) == 0
    assert zmqssh.try_passwordless_ssh(named(far_end.server), locked, far_end.backend == "paramiko") is False
    talk(named(far_end.server), str(locked), WORD)


def test_a_password_of_a_hop_is_not_asked_for(protected, far_end, known, backend):
    hop = f"ssh://ann@127.0.0.1:{protected.address[1]}"
    with pytest.raises(zmqssh.SSHException, match=r"hop 1 of 2 \(ssh://ann@") as caught:
        zmqssh.try_passwordless_ssh(named(far_end.server), None, backend == "paramiko", via=[hop])
    assert "terminal" not in str(caught.value)
    with pytest.raises(zmqssh.SSHException, match=r"hop 1 of 2 \(ssh://ann@") as caught:
        zmqssh.open_tunnel("tcp://127.0.0.1:1", named(far_end.server), paramiko=backend == "paramiko", via=[hop])
    assert "terminal" not in str(caught.value)


def test_a_password_is_seen_by_nobody(protected, backend):
    name = named(embedded(protected))
    with socket.create_server(("127.0.0.1", 0)) as target:
        address = "tcp://{}:{}".format(*target.getsockname())
        url, tunnel = zmqssh.open_tunnel(address, name, password=WORD, paramiko=backend == "paramiko")
        with tunnel, socket.create_connection(tunnel.address, timeout=WAIT):
            files = [Path(f"/proc/{pid}/{what}") for pid in family(tunnel.pid) for what in ("cmdline", "environ")]
            assert all(WORD.encode() not in file.read_bytes() for file in files)
            assert WORD not in f"{tunnel!r}{tunnel.name}{url}"
            tunnel.terminate()


def family(pid):
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(one for child in children for one in family(int(child)))]


ASKING = """
import zmq
from relay.compat import zmqssh as ssh
context = zmq.Context()
sock = context.socket(zmq.REQ)
try:
    with ssh.tunnel_connection(sock, sys.argv[1], sys.argv[2], paramiko=sys.argv[3] == "paramiko"):
        sock.send(b"hello")
        sock.recv()
        sock.close()
except ssh.SSHException as error:
    print("SSHException:", error)
"""


@pytest.mark.parametrize(("typed", "outcome"), [(WORD, "in"), ("wrong", "was rejected"), ("", "none was typed")])
def test_a_password_is_asked_for_once_at_a_terminal(protected, backend, typed, outcome):
    with sockets() as make:
        server = make(zmq.REP)
        argv = [*program(ASKING), bound(server), named(embedded(protected)), backend]
        pid, terminal = pty.fork()
        if pid == 0:
            os.execv(argv[0], argv)
        with os.fdopen(terminal, "rb+", buffering=0) as end:
            said = read_until(end, b"password: ")
            assert said.endswith(b"ann@127.0.0.1:%d's password: " % protected.address[1])
            end.write(typed.encode() + b"\n")
            if outcome == "in":
                assert server.recv() == b"hello"
                server.send(b"welcome")
            rest = read_until(end, None)
        assert os.waitpid(pid, 0)[1] == 0
    assert WORD.encode() not in rest and rest.count(b"password:") == 0
    assert (b"SSHException" in rest) == (outcome != "in") and (outcome == "in" or outcome.encode() in rest)


def read_until(end, words):
    seen = b""
    while words is None or words not in seen:
        try:
            data = end.read(1 << 12)
        except OSError:  # the other end of a terminal is closed
            data = b""
        if not data:
            assert words is None, seen
            return seen
        seen += data
    return seen


def test_nothing_is_asked_for_in_the_background(protected, backend):
    """A program without a terminal gets an error at once."""
    argv = [*program(ASKING), "tcp://127.0.0.1:1", named(embedded(protected)), backend]
    with start(argv, stdout=PIPE) as process:
        said = process.stdout.read()
    assert b"SSHException: ssh://ann@" in said and b"there is no terminal to ask for one at: give password=" in said


def test_the_server_may_be_an_address_with_parameters(far_end, user, talk):
    """Which needs nothing of the user's configuration."""
    talk(far_end.url)
