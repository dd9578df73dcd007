"""Over tunnels with a hop, relay reaches each destination as soon as a plain SAM program reaches it."""

import contextlib
import secrets
import socket
import threading
import time
from functools import partial
from types import SimpleNamespace

import i2pd
from helpers import WAIT, Thread, receive_exactly
from i2p_world import address_of
from plain_sam import PlainSAM

SERVERS = 4
ONE_HOP = {"in_depth": 1, "out_depth": 1}  # of sessions of their own, not of those that the router has ready
TEXT = b"anybody?"


def answers(stream):
    with stream:
        stream.settimeout(WAIT)
        stream.sendall(TEXT)
        return receive_exactly(stream, len(TEXT)) == TEXT


def reached(near, dest):
    """Return whether a plain program gets an answer of a destination."""
    try:
        return answers(near.connect(dest))
    except OSError:
        return False


def test_over_a_hop_of_real_routers(i2p_hops, echo_server, tmp_path):
    """Of those that i2pd does not publish within a minute, nothing is said."""
    router = SimpleNamespace(connect=partial(socket.create_connection, address_of(i2p_hops.client)))

    def serve(keys):
        return i2p_hops.serve(echo_server.address[1], keys=keys, **ONE_HOP)

    def reach(address):
        return i2p_hops.reach(address, keys=None, **ONE_HOP)

    with contextlib.ExitStack() as stack:
        files = [tmp_path / f"{number}.dat" for number in range(SERVERS)]
        making = [(Thread(reach, i2pd.make_keys(file)), Thread(serve, file)) for file in files]
        plain = Thread(PlainSAM, router, f"plain-{secrets.token_hex(4)}")
        left = [tuple(stack.enter_context(one.result(3 * WAIT)) for one in pair) for pair in making]
        near = stack.enter_context(contextlib.closing(plain.result(3 * WAIT)))
        until = time.monotonic() + WAIT
        while left and time.monotonic() < until:
            for client, server in list(left):
                if reached(near, server.dest):
                    left.remove((client, server))
                    assert answers(socket.create_connection(client.address, WAIT)), "a plain program gets an answer"
            threading.Event().wait(0.5)  # nothing tells when a lease set has spread
        assert len(left) < SERVERS, "a plain program reaches no destination"
