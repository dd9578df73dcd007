"""The shared conformance test, over both backends and both servers."""

import socket

from helpers import WAIT, Thread

import relay
from relay.testing import check_factory, check_stream


def test_a_factory(far_end, listener):
    check_factory(relay.target("{}:{}".format(*listener.getsockname()), via=[far_end.url]), listener)


def test_a_factory_of_unix_sockets(far_end, tmp_path):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "there"))
        listener.listen(128)
        check_factory(relay.target(f"unix://{tmp_path}/there", via=[far_end.url]), listener)


def test_a_stream(far_end, listener):
    with relay.ssh(far_end.url, *listener.getsockname()) as factory:
        factory.ready()
        check_stream(lambda: (factory(), listener.accept()[0]))


def test_a_socket_of_connect(far_end, listener):
    target = "{}:{}".format(*listener.getsockname())
    with relay.ssh(far_end.url, *listener.getsockname()) as held:
        held.ready()
        check_stream(lambda: (relay.connect(target, via=[far_end.url]), listener.accept()[0]))
    assert far_end.logins == 1


def test_a_server_with_its_own_key_exchange(make_sshd, backend, listener):
    """The servers of the other tests offer none that takes long; this one offers what sshd does by itself."""
    server = make_sshd("KexAlgorithms -none")
    with relay.ssh(f"{server.url}&backend={backend}", *listener.getsockname()) as factory:
        factory.ready()
        check_stream(lambda: (factory(), listener.accept()[0]))


def test_a_listener(far_end):
    """A factory that leads to a port of the server, where our own listener accepts."""
    with relay.ssh_listen(far_end.url) as remote:
        check_factory(relay.tcp(*remote.address), remote)


def test_through_and_back(far_end):
    """Out through the server to a port of the server that leads back to us."""
    with relay.ssh_listen(far_end.url) as remote:
        target = relay.target("{}:{}".format(*remote.address), via=[far_end.url])
        with relay.Tunnel(relay.listen(":0"), target) as tunnel:
            accepting = Thread(remote.accept)
            with socket.create_connection(tunnel.address, WAIT) as client:
                stream, _ = accepting.result()
                with stream:
                    stream.socket.settimeout(WAIT)
                    client.sendall(b"round")
                    assert stream.socket.recv(10) == b"round"
    assert far_end.logins == 1
