"""The dialer of WebSockets, where a handshake does not come to its end."""

import threading
import time

import pytest
from helpers import WAIT, wait_until

import relay

pytest.importorskip("wsproto")


@pytest.mark.parametrize("calls", [1, 2])
def test_a_handshake_that_is_given_up_leaves_nothing(serve, calls):
    """Its thread in the end, which the check after the test looks for."""
    asked, over = threading.Event(), threading.Event()

    def silent(connection):
        connection.recv(1000)
        asked.set()
        over.wait(WAIT)

    host, port = serve(silent).address
    with relay.target(f"ws://{host}:{port}/path") as dialer:
        give_up = dialer.dial(time.monotonic() + WAIT, lambda outcome: None)
        assert asked.wait(WAIT)
        for _ in range(calls):
            give_up()
        wait_until(lambda: not any(thread.name == "relay-io" for thread in threading.enumerate()))
    over.set()
