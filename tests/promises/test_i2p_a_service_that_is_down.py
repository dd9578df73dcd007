"""The local service is down: a client from outside sees its stream end at once, and the tunnel lives."""

import socket
import time

from helpers import WAIT, ended, exchange, fate_of_client, receive_exactly, send_and_end

AT_ONCE = 9.0  # seconds; a stream that is not accepted ends after ten


def test_clients_are_reset_at_once_and_served_when_it_is_back(i2p_world, over_i2p):
    rig = over_i2p(i2p_world)
    place = rig.target.getsockname()
    rig.target.close()
    for count in (1, 2, 3):
        begin = time.monotonic()
        assert fate_of_client(rig.tunnel.address, b"anybody?") == "reset"
        assert time.monotonic() - begin < AT_ONCE
        assert ended(rig.tunnel, count)[-1] == "unreachable"
        assert ended(rig.server, count)[-1] == "refused"
    with socket.create_server(place) as again:
        again.settimeout(WAIT)
        client = rig.client()
        with again.accept()[0] as far:
            far.settimeout(WAIT)
            exchange(client, far)


def test_one_that_goes_in_mid_stream_ends_its_streams_alone(i2p_world, over_i2p):
    rig = over_i2p(i2p_world)
    (client, far), (other, other_far) = rig.connect(), rig.connect()
    exchange(client, far)
    exchange(other, other_far)
    send_and_end(far, b"last words")
    far.close()
    assert receive_exactly(client, 10) == b"last words"
    assert client.recv(1) == b""
    exchange(other, other_far)
