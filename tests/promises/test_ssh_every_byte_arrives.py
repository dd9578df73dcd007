"""64 MiB each way at once over SSH, compared by hash, also with new keys in the middle."""

import hashlib
import itertools

import pytest
from helpers import BLOCK, WAIT, Thread, ended, receive_all, receive_exactly, send_and_end, sha256_of
from sshd import FarEnd

import relay

MUCH = 64  # blocks of a mebibyte


def both_ways_at_once(rig, blocks=MUCH):
    client, far = rig.connect()
    data = BLOCK * blocks
    threads = [Thread(send_and_end, end, data) for end in (client, far)]
    hashes = [Thread(sha256_of, end) for end in (client, far)]
    assert {one.result(6 * WAIT) for one in hashes} == {hashlib.sha256(data).hexdigest()}
    for thread in threads:
        thread.result()
    assert ended(rig.tunnel) == ["done"]


def test_both_ways_at_once(far_end, over_ssh):
    both_ways_at_once(over_ssh(far_end.url))


@pytest.mark.parametrize("compress", ["yes", "no"])
def test_compressed_or_not(far_end, over_ssh, compress):
    both_ways_at_once(over_ssh(far_end.address(compress=compress)), 2)


def test_odd_sizes(far_end, over_ssh):
    """Sizes about those of packets (32 KiB) and windows."""
    rig = over_ssh(far_end.url)
    client, far = rig.connect()
    for size in (1, 2, 32767, 32768, 32769, 65535, 65537, 2**21 - 1, 2**21 + 1):
        data = (BLOCK * 3)[:size]
        for sender, receiver in ((client, far), (far, client)):
            sending = Thread(sender.sendall, data)
            assert receive_exactly(receiver, size) == data
            sending.result()


def test_new_keys_in_mid_transfer_lose_nothing(backend, make_sshd, over_ssh):
    """The server asks for new keys after each mebibyte."""
    server = FarEnd("sshd", backend, make_sshd("RekeyLimit 1M"))
    both_ways_at_once(over_ssh(server.url), 4)
    assert server.logins == 1


def test_new_keys_of_the_embedded_servers(backend, ssh_server, over_ssh):
    rig = over_ssh(FarEnd("embedded", backend, ssh_server).url)
    client, far = rig.connect()
    data = BLOCK * 16
    sending = [Thread(send_and_end, end, data) for end in (client, far)]
    hashes = [Thread(sha256_of, end) for end in (client, far)]
    for _ in itertools.takewhile(lambda _: any(one.is_alive() for one in hashes), range(5)):
        ssh_server.rekey()
    assert {one.result(3 * WAIT) for one in hashes} == {hashlib.sha256(data).hexdigest()}
    for thread in sending:
        thread.result()


def test_a_server_that_speaks_first(far_end, serve):
    def greet(connection):
        connection.sendall(b"220 ready\r\n")
        connection.recv(1)

    server = serve(greet)
    target = relay.target("{}:{}".format(*server.address), via=[far_end.url])
    with relay.Tunnel(relay.listen(":0"), target) as tunnel:
        for _ in range(5):
            with relay.connect("{}:{}".format(*tunnel.address)) as client:
                assert receive_exactly(client, 11) == b"220 ready\r\n"


def test_the_socket_of_connect(far_end, serve):
    """``relay.connect`` over SSH gives a plain blocking socket."""
    server = serve(lambda connection: send_and_end(connection, receive_all(connection)))
    with relay.connect("{}:{}".format(*server.address), via=[far_end.url]) as client:
        client.settimeout(WAIT)
        send_and_end(client, b"hello")
        assert receive_all(client) == b"hello"
