"""``receive`` may be a listening TCP or Unix socket, or any object with ``accept()`` and ``close()``."""

import errno
import socket
import threading

import pytest
from helpers import BLOCK, WAIT, Thread, ended, ending, exchange, makes, receive_all, send_and_end, wait_until

import relay
from relay.eventloop.sockets import reset
from relay.testing import FakeListener, pair


@pytest.fixture
def tunnel_from(listener):
    """A tunnel from ``receive`` to the test's listener."""
    yield from makes(lambda receive, **limits: relay.Tunnel(receive, relay.tcp(*listener.getsockname()), **limits))


def whole(client, listener):
    """One request and its answer, with half-close both ways."""
    far, _ = listener.accept()
    with client, far:
        for end in (client, far):
            end.settimeout(WAIT)
        sending = Thread(send_and_end, client, BLOCK)
        assert receive_all(far) == BLOCK
        sending.result()
        sending = Thread(send_and_end, far, BLOCK[::-1])
        assert receive_all(client) == BLOCK[::-1]
        sending.result()


@pytest.mark.parametrize("blocking", [True, False], ids=["blocking", "non-blocking"])
def test_a_tcp_socket(tunnel_from, listener, any_engine, blocking):
    receive = socket.create_server(("127.0.0.1", 0))
    receive.setblocking(blocking)
    tunnel = tunnel_from(receive)
    assert tunnel.address == receive.getsockname()
    client = socket.create_connection(tunnel.address)
    own = client.getsockname()
    whole(client, listener)
    assert ended(tunnel) == ["done"]
    assert tunnel.recent()[-1].peer == own


def test_a_tcp_socket_of_ipv6(tunnel_from, listener):
    try:
        receive = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("no IPv6 loopback here")
    whole(socket.create_connection(tunnel_from(receive).address[:2]), listener)


def test_a_unix_socket(tunnel_from, listener, any_engine, tmp_path):
    receive = socket.socket(socket.AF_UNIX)
    receive.bind(str(tmp_path / "listen"))
    receive.listen()
    tunnel = tunnel_from(receive)
    assert tunnel.address == str(tmp_path / "listen")
    client = socket.socket(socket.AF_UNIX)
    client.connect(tunnel.address)
    whole(client, listener)


def test_an_object(tunnel_from, listener, any_engine):
    fake = FakeListener()
    tunnel = tunnel_from(fake)
    assert tunnel.address == fake.address
    for _ in range(3):
        whole(fake.connect(socket.AF_INET), listener)
    assert ended(tunnel, 3) == ["done"] * 3
    assert tunnel.recent()[-1].peer == "fake client"


def test_an_object_without_an_address(tunnel_from, listener):
    class Minimal:
        def __init__(self):
            self._fake = FakeListener()
            self.accept, self.close = self._fake.accept, self._fake.close

    minimal = Minimal()
    tunnel = tunnel_from(minimal)
    assert tunnel.address is None
    whole(minimal._fake.connect(), listener)


def test_an_object_that_accepts_streams_and_objects(tunnel_from, listener):
    class Bare:
        def __init__(self, end):
            self._end = end
            self.recv, self.sendall, self.shutdown = end.recv, end.sendall, end.shutdown

        def close(self):
            try:
                self._end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            self._end.close()

    fake = FakeListener()
    tunnel = tunnel_from(fake)
    closed = threading.Event()
    for wrap in (Bare, relay.Stream, lambda end: relay.Stream(end, on_close=closed.set)):
        client, end = pair()
        fake.put(wrap(end))
        whole(client, listener)
    assert closed.wait(WAIT)
    assert ended(tunnel, 3) == ["done"] * 3


def test_an_object_that_fails_now_and_then(tunnel_from, listener):
    fake = FakeListener()
    tunnel = tunnel_from(fake)
    for error in (OSError(errno.EMFILE, "no descriptors"), ConnectionAbortedError(), ValueError("a bug")):
        fake.fail(error)
        whole(fake.connect(), listener)
    assert ended(tunnel, 3) == ["done"] * 3


def test_an_object_that_accepts_nonsense(tunnel_from, listener):
    fake = FakeListener()
    tunnel_from(fake)
    fake.put("nonsense")
    whole(fake.connect(), listener)


def test_pause_and_resume(tunnel_from, listener, any_engine):
    tunnel = tunnel_from(relay.listen(":0"))
    live = socket.create_connection(tunnel.address, timeout=WAIT)
    far, _ = listener.accept()
    tunnel.pause()
    try:
        waiting = socket.create_connection(tunnel.address, timeout=0.3)
    except OSError:
        waiting = None  # refusing is as good as letting wait
    exchange(live, far)
    assert tunnel.stats().accepted == 1
    tunnel.resume()
    if waiting is not None:
        waiting.close()
    live.close()
    far.close()
    if waiting is not None:
        listener.accept()[0].close()  # the one that waited, and is gone
    whole(socket.create_connection(tunnel.address, timeout=WAIT), listener)


def test_pause_that_closes_resets_the_live_ones(tunnel_from, listener):
    tunnel = tunnel_from(relay.listen(":0"))
    live = socket.create_connection(tunnel.address, timeout=WAIT)
    far, _ = listener.accept()
    with live, far:
        exchange(live, far)
        tunnel.pause(close=True)
        assert (ending(live), ending(far)) == ("reset", "reset")
    assert ended(tunnel) == ["closed"]
    tunnel.resume()
    whole(socket.create_connection(tunnel.address, timeout=WAIT), listener)


def test_who_is_accepted_by_an_object_under_pause_waits_for_its_end(tunnel_from, listener):
    """Its ``accept`` was under way when the pause began."""

    class Told(FakeListener):
        def __init__(self):
            super().__init__()
            self.entered = threading.Event()

        def accept(self):
            self.entered.set()
            return super().accept()

    fake = Told()
    tunnel = tunnel_from(fake)
    assert fake.entered.wait(WAIT)
    tunnel.pause()
    client = fake.connect(socket.AF_INET)
    tunnel.pause()  # which follows what the tunnel has got until now
    assert tunnel.stats().accepted == 0
    tunnel.resume()
    whole(client, listener)
    whole(fake.connect(), listener)


def test_a_client_that_is_gone_before_it_is_accepted(tunnel_from, listener, any_engine):
    receive = socket.create_server(("127.0.0.1", 0))
    for _ in range(5):
        reset(socket.create_connection(receive.getsockname()))
    tunnel = tunnel_from(receive)
    client = socket.create_connection(receive.getsockname())
    client.sendall(b"here")
    while True:
        far, _ = listener.accept()
        with far:
            far.settimeout(WAIT)
            try:
                if far.recv(10) == b"here":
                    break
            except ConnectionError:
                pass
    client.close()
    wait_until(lambda: tunnel.stats().active == 0)
