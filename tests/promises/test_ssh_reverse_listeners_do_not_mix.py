"""Two listeners on one SSH connection get their own streams only, and the end of one is not the other's."""

import socket
from itertools import pairwise

import paramiko
import pytest
from helpers import BLOCK, WAIT, Thread, exchange, is_gone, receive_all, send_and_end, wait_until

import relay
from relay.addresses.values import TCPAddress
from relay.testing import check_stream
from relay.transports.ssh.paramiko.forwards import Dispatcher


def far_client(listener):
    address = listener.address
    client = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
    client.settimeout(WAIT)
    client.connect(address)
    return client


def accepted(listener):
    stream, peer = Thread(listener.accept).result()
    stream.socket.settimeout(WAIT)
    return stream, peer


def meet(listener):
    """Prove that a stream goes through."""
    with far_client(listener) as client, accepted(listener)[0] as stream:
        exchange(client, stream.socket)


def test_each_gets_its_own(far_end):
    with relay.ssh_listen(far_end.url) as one, relay.ssh_listen(far_end.url) as other:
        assert one.address != other.address
        listeners = [one, other, other, one, one]
        clients = [far_client(listener) for listener in listeners]
        for number, client in enumerate(clients):
            client.sendall(b"%d" % number)
        seen = {}
        for listener in listeners:
            stream, _ = accepted(listener)
            with stream:
                seen[stream.socket.recv(1)] = listener
        for client in clients:
            client.close()
        assert seen == {b"%d" % number: listener for number, listener in enumerate(listeners)}
    assert far_end.logins == 1


def test_the_end_of_one_is_not_the_others(far_end):
    with relay.ssh_listen(far_end.url) as other:
        one = relay.ssh_listen(far_end.url)
        with far_client(one) as client, accepted(one)[0] as stream:
            gone = one.address
            one.close()
            wait_until(lambda: is_gone(gone))
            exchange(client, stream.socket)  # what was accepted goes on
        meet(other)
        with relay.ssh_listen(far_end.url) as third:
            meet(third)
            meet(other)
    assert far_end.logins == 1


def test_beside_streams_the_other_way(far_end, over_ssh):
    rig = over_ssh(far_end.url)
    pair = rig.connect()
    with relay.ssh_listen(far_end.url) as listener:
        meet(listener)
        exchange(*pair)
    exchange(*pair)
    assert far_end.logins == 1


def test_it_says_who_came(far_end):
    with relay.ssh_listen(far_end.url) as listener, far_client(listener) as client:
        stream, peer = accepted(listener)
        with stream:
            if isinstance(peer, tuple):
                assert peer[:2] == client.getsockname()
            else:
                assert isinstance(peer, str)


def test_a_port_of_ones_own_is_given_back(far_end):
    with relay.ssh_listen(far_end.url) as listener:
        port = listener.address[1]
    with relay.ssh_listen(far_end.url, "127.0.0.1", port) as listener:
        assert listener.address == ("127.0.0.1", port)
        meet(listener)


def test_a_unix_socket_on_the_server(far_end, tmp_path):
    path = tmp_path / "there"
    with relay.listen(f"{far_end.url}&listen={path}") as listener:
        assert listener.address == str(path)
        for _ in range(2):
            meet(listener)


def test_the_first_connection_is_not_lost(far_end):
    """A client that connects at the very moment at which the server has granted the port."""
    for _ in range(5):
        with relay.ssh_listen(far_end.url) as listener:
            meet(listener)


def test_an_accepted_stream_is_a_stream(far_end):
    with relay.ssh_listen(far_end.url) as listener:

        def make_pair():
            client = far_client(listener)
            return accepted(listener)[0], client

        check_stream(make_pair)


def test_bulk_both_ways(far_end):
    with relay.ssh_listen(far_end.url) as listener, far_client(listener) as client, accepted(listener)[0] as stream:
        ends = [client, stream.socket]
        sending = [Thread(send_and_end, end, BLOCK * 8) for end in ends]
        received = [Thread(receive_all, end) for end in ends]
        assert all(one.result() == BLOCK * 8 for one in received)
        for thread in sending:
            thread.result()


@pytest.mark.parametrize("count", [20])
def test_many_that_come_at_once(far_end, echo_server, count):
    with relay.Tunnel(relay.ssh_listen(far_end.url), echo_server.factory()) as tunnel:
        clients = [socket.create_connection(tunnel.address, WAIT) for _ in range(count)]
        for number, client in enumerate(clients):
            client.sendall(b"%03d" % number)
        answers = [client.recv(3) for client in clients]
        assert all(int(b) - int(a) == 1 for a, b in pairwise(answers))
        for client in clients:
            client.close()


def test_a_handler_that_was_there_before_goes_on(ssh_server):
    """On a transport of the user's own, whose handler is paramiko's, beside ours."""
    connection = socket.create_connection(ssh_server.address, WAIT)
    transport = paramiko.Transport(connection)
    theirs, ours = [], []
    try:
        transport.start_client(timeout=WAIT)
        transport.auth_publickey(ssh_server.user, paramiko.Ed25519Key(filename=ssh_server.keyfile))
        port = transport.request_port_forward("127.0.0.1", 0, lambda channel, *_: theirs.append(channel))
        dispatcher = Dispatcher(transport)
        answer = transport.global_request("tcpip-forward", ("127.0.0.1", 0))
        place = TCPAddress("127.0.0.1", answer.get_int())
        dispatcher.add(place, ours.append)
        with far_client_at(port), far_client_at(place.port), far_client_at(port):
            wait_until(lambda: len(ours) == 1 and len(theirs) == 2)
            assert ours[0].place == place
        dispatcher.remove(place)
        with far_client_at(port) as client:
            wait_until(lambda: len(theirs) == 3)
            theirs[2].sendall(b"hello")
            assert client.recv(10) == b"hello"
        dispatcher.detach()
        with far_client_at(port):
            wait_until(lambda: len(theirs) == 4)
    finally:
        for channel in theirs:
            channel.close()
        transport.close()
        transport.join(WAIT)


def far_client_at(port):
    return socket.create_connection(("127.0.0.1", port), WAIT)
