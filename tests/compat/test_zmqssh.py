"""``relay.compat.zmqssh``: its names, what it takes, and what comes of what it does not."""

import getpass
import inspect
import os
import socket
import subprocess
import sys
import threading
import time

import paramiko
import pytest
import zmq.ssh.tunnel
from helpers import WAIT, Thread, is_gone, receive_all, receive_exactly, send_and_end, wait_until
from sshd import embedded
from zmq_world import User, named, program, sockets

import relay
from relay.addresses.hops import hop_of
from relay.addresses.parse import parse_hop
from relay.addresses.ssh import SSHServer, full_address
from relay.addresses.values import TCPAddress
from relay.compat import _zmq_tunnel as zmqtunnel
from relay.compat import zmqssh
from relay.process import PIPE, start

SHARED = [
    "open_tunnel", "openssh_tunnel", "paramiko_tunnel", "select_random_ports", "ssh_tunnel", "try_passwordless_ssh",
    "tunnel_connection", "_paramiko_tunnel", "_split_server", "_stop_tunnel", "_try_passwordless_openssh",
    "_try_passwordless_paramiko",
]  # fmt: skip


@pytest.fixture
def user(tmp_path, monkeypatch):
    return User(tmp_path / "home", monkeypatch)


@pytest.fixture
def known(ssh_server, user, spawner_thread):
    """A server that lets its user in, as people name it."""
    user.knows(embedded(ssh_server))
    user.configure(f"  IdentityFile {ssh_server.keyfile}")
    return named(embedded(ssh_server))


@pytest.mark.parametrize("name", SHARED)
def test_the_parameters_are_those_of_the_original(name):
    ours, original = (inspect.signature(getattr(module, name)).parameters for module in (zmqssh, zmq.ssh.tunnel))
    shared = [(one.name, one.kind) for one in ours.values() if one.kind is not one.KEYWORD_ONLY]
    assert shared == [(one.name, one.kind) for one in original.values()]
    for given in original.values():
        assert given.default in (ours[given.name].default, given.empty)
    assert {one.name for one in ours.values()} - set(original) <= {"via"}


def test_the_exception_is_paramikos():
    assert zmqssh.SSHException is paramiko.SSHException is zmq.ssh.tunnel.SSHException
    names = {}
    exec("from relay.compat.zmqssh import *", names)
    assert set(zmqssh.__all__) <= set(names) and names["SSHException"] is paramiko.SSHException
    with pytest.raises(AttributeError, match="nonsense"):
        _ = zmqssh.nonsense


def test_the_import_loads_neither_paramiko_nor_zmq():
    code = "import sys, relay.compat.zmqssh as ssh; print({'paramiko', 'zmq', 'multiprocessing'} & {*sys.modules})"
    path = os.path.dirname(os.path.dirname(relay.__file__))
    run = [sys.executable, "-c", f"import sys; sys.path.insert(0, {path!r}); {code}"]
    assert subprocess.run(run, capture_output=True, text=True, check=True).stdout == "set()\n"


def test_random_ports_are_free_and_different():
    ports = zmqssh.select_random_ports(50)
    assert len(set(ports)) == 50
    with socket.socket() as probe:
        probe.bind(("", ports[0]))
    assert zmqssh.select_random_ports(0) == []


@pytest.mark.parametrize(
    "addr",
    [
        "127.0.0.1:1",
        "ipc:///tmp/x",
        "tcp://127.0.0.1",
        "tcp://127.0.0.1:0",
        "tcp://h:*",
        "tcp://*:1",
        "tcp://::1:1",
        "",
        1,
    ],
)
def test_addresses_that_cannot_be_tunnelled(addr):
    with sockets() as make:
        for call in (
            lambda: zmqssh.tunnel_connection(make(zmq.REQ), addr, "server"),
            lambda: zmqssh.open_tunnel(addr, "server"),
        ):
            with pytest.raises(ValueError, match="^addr: "):
                call()


@pytest.mark.parametrize(
    ("arguments", "options", "kind"),
    [
        ((-1, 1, "h"), {}, ValueError),
        ((65536, 1, "h"), {}, ValueError),
        ((0, 0, "h"), {}, ValueError),
        ((0, 1, "h", "-x"), {}, ValueError),
        ((0, 1, "h"), {"timeout": 0}, ValueError),
        ((0, 1, "h"), {"timeout": "60"}, TypeError),
        ((0, 1, "h"), {"password": b"x"}, TypeError),
        ((0, 1, "h"), {"password": lambda: "x"}, TypeError),
        ((0, 1, "h"), {"keyfile": 1}, TypeError),
        ((0, 1, "h"), {"via": "ssh://x"}, TypeError),
        ((0, 1, "h"), {"via": ["x"]}, ValueError),
        ((0, 1, 1), {}, TypeError),
        ((0, 1, "h"), {"paramiko": True}, TypeError),
    ],
)
def test_arguments_that_cannot_be(arguments, options, kind):
    for call in (zmqssh.openssh_tunnel, zmqssh.paramiko_tunnel):
        with pytest.raises(kind):
            call(*arguments, **options)


@pytest.mark.parametrize(
    ("server", "found"),
    {
        "host": (getpass.getuser(), "host", 22),
        "me@host": ("me", "host", 22),
        "me@host:2222": ("me", "host", 2222),
        "[::1]:22": (getpass.getuser(), "::1", 22),
        "ssh://me@host:1": ("me", "host", 1),
    }.items(),
)
def test_the_parts_of_a_server(server, found):
    assert zmqssh._split_server(server) == found


def test_a_server_as_an_address_is_the_same_server():
    """With every parameter, and with whatever a secret may hold."""
    odd = "a b%&?#+=/é\\'\""
    one = SSHServer(
        "::1", "me", 22, backend="openssh", keyfile=odd, identities_only=False, passphrase=odd, password=odd,
        keepalive=None, compress=False,
    )  # fmt: skip
    assert parse_hop(full_address(one)) == one
    assert odd not in str(one)


@pytest.mark.parametrize("call", ["openssh_tunnel", "paramiko_tunnel", "ssh_tunnel"])
def test_a_port_leads_there(known, echo_server, call):
    port = echo_server.address[1]
    with getattr(zmqssh, call)(0, port, known) as tunnel:
        with socket.create_connection(tunnel.address, timeout=WAIT) as client:
            client.sendall(b"hello")
            assert receive_exactly(client, 5) == b"hello"
        taken = tunnel.address[1]
        with pytest.raises(OSError, match="in use"):
            getattr(zmqssh, call)(taken, port, known)
        zmqssh._stop_tunnel(tunnel)
    assert is_gone(("127.0.0.1", taken))
    with getattr(zmqssh, call)(taken, port, known, "localhost") as tunnel:
        assert tunnel.address == ("127.0.0.1", taken)
        tunnel.terminate()


def test_whether_a_password_is_needed(known):
    for call in (zmqssh._try_passwordless_openssh, zmqssh._try_passwordless_paramiko):
        assert call(known, None) is True
        assert call(known.replace("relay@", "nobody@"), None) is False


def test_the_client_where_it_is_installed(known, user, monkeypatch):
    assert zmqtunnel.backend_of(None) == "openssh"
    monkeypatch.setenv("PATH", "/nowhere")
    assert (zmqtunnel.backend_of(None), zmqtunnel.backend_of(True)) == ("paramiko", "paramiko")
    with pytest.raises(zmqssh.SSHException, match="openssh needs the OpenSSH client"):
        zmqssh.openssh_tunnel(0, 1, f"{known}")


def test_a_keyfile_that_is_not_there(known, tmp_path):
    for call in (zmqssh.openssh_tunnel, zmqssh.paramiko_tunnel):
        with pytest.raises(ValueError, match="no such file"):
            call(0, 1, known, keyfile=str(tmp_path / "none"))


def test_a_socket_that_cannot_be_connected(known, user, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with sockets() as make:
        client = make(zmq.REQ)
        client.close()
        with pytest.raises(zmq.ZMQError):
            zmqssh.tunnel_connection(client, "tcp://127.0.0.1:1", known)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("relay")] == []


class Late:
    """A socket that takes its time to connect, as ØMQ's thread may, and that is closed with a last word."""

    def connect(self, url):
        self.thread = threading.Timer(0.3, self.say, [url.removeprefix("ipc://")])
        self.thread.start()

    def say(self, path):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)
            send_and_end(client, b"last words")
            receive_all(client)


def test_whoever_connects_late_is_waited_for(known, listener):
    """ØMQ connects in a thread of its own, which a tunnel that is closed at once must not be faster than."""
    late = Late()
    closing = Thread(zmqssh.tunnel_connection(late, f"tcp://127.0.0.1:{listener.getsockname()[1]}", known).close)
    with listener.accept()[0] as far:
        assert receive_all(far) == b"last words"
    late.thread.join()
    closing.result()


def test_whoever_never_connects_is_not_waited_for_long(known):
    class Never:
        def connect(self, url):
            assert url.startswith("ipc:///")

    begin = time.monotonic()
    with zmqssh.tunnel_connection(Never(), "tcp://127.0.0.1:1", known):
        pass
    assert time.monotonic() - begin >= 1


OWN_PROCESS = """
import multiprocessing
from relay.compat.zmqssh import _paramiko_tunnel
process = multiprocessing.Process(target=_paramiko_tunnel, args=(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]))
process.daemon = True
process.start()
sys.stdin.read()
process.terminate()
process.join()
"""


def test_in_a_process_of_the_callers_own(known, echo_server):
    """Return what the original had ``multiprocessing`` run."""
    (port,) = zmqssh.select_random_ports(1)
    arguments = [str(port), str(echo_server.address[1]), known]
    with start([*program(OWN_PROCESS), *arguments], stdin=PIPE) as process:
        wait_until(lambda: is_there(port))
        with socket.create_connection(("127.0.0.1", port), timeout=WAIT) as client:
            client.sendall(b"hello")
            assert receive_exactly(client, 5) == b"hello"
        process.stdin.close()
        assert process.wait(WAIT) == 0
    assert is_gone(("127.0.0.1", port))


def is_there(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize(
    ("password", "known", "asks"), [(None, None, True), (False, None, False), ("", None, False), ("x", "x", False)]
)
def test_who_may_be_asked_for_a_password(password, known, asks):
    """``False`` is what programs give that have found out that none is needed."""
    way = zmqtunnel.ServerRoute.made("me@far", "paramiko", None, password, [])
    assert (way.server.password, way.server.passphrase, way.asks) == (known, known, asks)


def test_whose_a_refusal_is():
    way = zmqtunnel.ServerRoute.made("me@far", "paramiko", None, None, ["ssh://near"])
    assert hop_of("ssh://me@far: no", way.hops) == 2
    assert way.is_refused(relay.AuthenticationError("hop 2 of 2 (ssh://me@far): not let in"))
    assert not way.is_refused(relay.AuthenticationError("hop 1 of 2 (ssh://near): not let in"))


def test_what_the_child_is_told_over_i2p():
    """Everything takes longer there."""
    way = zmqtunnel.ServerRoute.made("me@far", "paramiko", None, None, ["i2p:"])
    place = TCPAddress("127.0.0.1", 1)
    assert (way.recipe(None, place).ready, way.options(place)["connect_timeout"]) == (120.0, 90.0)
