"""Fifty clients at once over I2P, each of which gets its own bytes back."""

import socket
import threading

from helpers import BLOCK, WAIT, Thread, receive_exactly

COUNT = 50
EACH = 10_000  # bytes


def test_fifty_at_once(i2p_world, echo_server):
    served = threading.Barrier(COUNT)  # all of them are there at one time

    def call(number):
        data = BLOCK[number * EACH : (number + 1) * EACH]
        with socket.create_connection(client.address, 2 * WAIT) as caller:
            caller.sendall(data)
            answer = receive_exactly(caller, EACH)
            served.wait(3 * WAIT)
        return answer == data

    with i2p_world.serve(echo_server.address[1]) as server, i2p_world.reach(server.dest) as client:
        callers = [Thread(call, number) for number in range(COUNT)]
        assert all(caller.result(4 * WAIT) for caller in callers)
        assert (server.stats().accepted, client.stats().accepted) == (COUNT, COUNT)
