"""Test a factory of your own with a socketpair: no network, no server, no waiting.

Run it as it is, or with pytest.
"""

import socket
import threading
from collections.abc import Callable

import relay
from relay.testing import FakeListener, check_factory, check_leaks


class Greeting:
    """The factory to be tested: says who comes before a byte of the client is sent."""

    def __init__(self, connect: Callable[[], socket.socket]) -> None:
        self._connect = connect

    def __call__(self, *, peer: object) -> socket.socket:
        stream = self._connect()
        stream.sendall(f"from {peer}\n".encode())
        return stream


def test_the_target_learns_who_comes() -> None:
    near, far = socket.socketpair()
    with check_leaks(), far:
        listener = FakeListener()
        tunnel = relay.Tunnel(listener, Greeting(lambda: near), timeout=None)
        with tunnel, listener.connect(peer="alice") as client:
            client.sendall(b"hello")
            client.shutdown(socket.SHUT_WR)
            with far.makefile("rb") as lines:
                assert lines.read() == b"from alice\nhello"
            far.sendall(b"goodbye")
            far.shutdown(socket.SHUT_WR)
            assert client.recv(100) == b"goodbye"


def test_what_it_connects_to_keeps_every_promise() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        check_factory(lambda: socket.create_connection(server.getsockname()), server)


if __name__ == "__main__":
    for test in (test_the_target_learns_who_comes, test_what_it_connects_to_keeps_every_promise):
        test()
        print(test.__name__, "passed")
    assert threading.active_count() == 1
