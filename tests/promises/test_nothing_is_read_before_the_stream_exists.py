"""Nothing is read from a client before its outgoing stream exists; its reset meanwhile ends the attempt."""

import array
import fcntl
import select
import socket
import termios
import threading

import pytest
from helpers import BLOCK, WAIT, Thread, black_hole, closed, ended, receive_all, send_and_end, wait_until

import relay
from relay.eventloop.sockets import reset
from relay.testing import FakeListener, pair


class Waiting:
    """A factory that waits for the test, and notes how its attempt ended."""

    def __init__(self):
        self.called, self.given_up = threading.Event(), threading.Event()
        self._released, self._release = pair()
        self.near, self.far = pair()
        self.far.settimeout(WAIT)

    def __call__(self, *, cancel):
        self.called.set()
        if cancel in select.select([cancel, self._released], [], [], 10)[0]:
            assert cancel.is_set()
            self.given_up.set()
        return self.near

    def release(self):
        """Let the factory return its stream."""
        self._release.close()

    def close(self):
        self.release()
        for end in (self._released, self.near, self.far):
            end.close()


@pytest.fixture
def waiting():
    yield from closed(Waiting())


@pytest.fixture(params=[socket.AF_INET, socket.AF_UNIX], ids=["tcp", "unix"])
def arrived(request, waiting):
    """A tunnel, its one client, and the very socket that the tunnel accepted, while the factory is at work."""
    fake = FakeListener()
    client, accepted = pair(request.param)
    client.settimeout(WAIT)
    with relay.Tunnel(fake, waiting) as tunnel, client:
        fake.put(accepted)
        assert waiting.called.wait(WAIT)
        yield tunnel, client, accepted
        waiting.release()


def unread(end):
    """Return how many bytes wait in the kernel (FIONREAD)."""
    answer = array.array("i", [0])
    fcntl.ioctl(end, termios.FIONREAD, answer)
    return answer[0]


def test_the_clients_bytes_wait_in_the_kernel(waiting, arrived):
    _, client, accepted = arrived
    client.sendall(BLOCK[:20000])
    wait_until(lambda: unread(accepted) == 20000)
    threading.Event().wait(0.2)  # a relay that reads ahead would have done it by now
    assert unread(accepted) == 20000
    waiting.release()
    got = b""
    while len(got) < 20000:
        got += waiting.far.recv(20000)
    assert got == BLOCK[:20000]


def test_an_end_meanwhile_is_kept_and_passed_on(waiting, arrived):
    tunnel, client, _ = arrived
    send_and_end(client, b"request")
    assert not waiting.given_up.wait(0.2)
    waiting.release()
    assert receive_all(waiting.far) == b"request"
    send_and_end(waiting.far, b"answer")
    assert receive_all(client) == b"answer"
    assert ended(tunnel) == ["done"]


@pytest.mark.parametrize("sent", [b"", b"request"], ids=["quiet", "with bytes"])
def test_a_reset_meanwhile_ends_the_attempt(waiting, arrived, sent):
    """Of a Unix peer it is the hang-up that does."""
    tunnel, client, _ = arrived
    client.sendall(sent)
    reset(client)
    assert waiting.given_up.wait(WAIT)
    assert ended(tunnel) == ["client_reset"]
    assert receive_all(waiting.far) == b"", "a stream that comes too late is closed"


def test_a_reset_ends_an_attempt_that_the_engine_makes(any_engine):
    with black_hole() as hole, relay.Tunnel(relay.listen(":0"), relay.tcp(*hole.getsockname())) as tunnel:
        for number in range(10):
            client = socket.create_connection(tunnel.address, timeout=WAIT)
            wait_until(lambda: tunnel.stats().active == 1)
            client.sendall(b"request")
            reset(client)
            assert ended(tunnel, number + 1)[-1] == "client_reset"


def test_what_came_before_the_stream_is_the_first_that_it_carries(listener, any_engine):
    release = threading.Event()

    def make():
        release.wait(WAIT)
        return socket.create_connection(listener.getsockname())

    with relay.Tunnel(relay.listen(":0"), make) as tunnel:
        with socket.create_connection(tunnel.address, timeout=WAIT) as client:
            sending = Thread(send_and_end, client, BLOCK * 16)
            threading.Event().wait(0.1)
            assert sending.is_alive(), "16 MiB fit in no kernel buffer: somebody has read them"
            release.set()
            far, _ = listener.accept()
            with far:
                far.settimeout(WAIT)
                assert receive_all(far) == BLOCK * 16
            sending.result()
