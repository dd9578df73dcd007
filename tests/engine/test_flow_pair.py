"""``relay.engine.flow_pair``: streams that are not confirmed, and ends whose cause is known later."""

from __future__ import annotations

import contextlib
import socket
import threading
import time

import pytest
from helpers import BLOCK, WAIT, Thread, ended, ending, exchange, receive_all, receive_exactly, send_and_end, wait_until

import relay
from relay.eventloop.sockets import reset
from relay.testing import FakeListener, pair

LONG = 1000.0  # seconds, which pass when the test says so
LOST = relay.CarrierError("i2p: gone")


class World:
    """A tunnel whose outgoing streams are set as a transport sets them; the test holds the far ends."""

    def __init__(self, stack, *, half_close=False, answered=False, settle=0.0, failure=lambda: None, **options):
        self.stack = stack
        self.set = (half_close, answered, settle, failure)
        self.streams = []
        self.far = []
        self.listener = FakeListener()
        self.tunnel = stack.enter_context(
            relay.Tunnel(self.listener, self.make, name="t", timeout=None, linger=None, **options)
        )

    def make(self):
        half_close, answered, settle, failure = self.set
        near, far = pair(socket.AF_INET)
        stream = relay.Stream(near, half_close=half_close, target="the target", failure=failure)
        stream.answered, stream.settle = answered, settle
        self.streams.append(stream)
        far.settimeout(WAIT)
        self.far.append(self.stack.enter_context(far))
        return stream

    def client(self):
        """A new client."""
        client = self.stack.enter_context(self.listener.connect(socket.AF_INET))
        client.settimeout(WAIT)
        return client

    def connect(self):
        """A new client, and the far end of its stream."""
        count = len(self.far)
        client = self.client()
        wait_until(lambda: len(self.far) > count)
        return client, self.far[-1]


@pytest.fixture
def world():
    with contextlib.ExitStack() as stack:
        yield lambda **options: World(stack, **options)


# -- streams on which no target may answer ----------------------------------------------------------------------------


@pytest.mark.parametrize("end", [socket.socket.close, reset])
@pytest.mark.parametrize("request_", [b"", b"request"])
def test_an_end_before_any_answer_is_nobody_there(world, any_engine, caplog, end, request_):
    one = world()
    client, far = one.connect()
    client.sendall(request_)
    assert receive_exactly(far, len(request_)) == request_
    end(far)
    assert ending(client) == "reset"
    assert ended(one.tunnel) == ["unreachable"]
    # A reset may come while the stream is still being opened.
    told = ("closed before sending any data; check that the service is running", "Connection reset by peer")
    assert any(f"t: the target: {text} (client fake client)" in caplog.text for text in told)
    assert one.tunnel.stats().failed == {"unreachable": 1}


def test_an_end_after_an_answer_is_the_end(world, any_engine):
    one = world()
    client, far = one.connect()
    far.sendall(b"x")
    far.close()
    assert receive_all(client) == b"x"
    client.close()
    assert ended(one.tunnel) == ["done"]


def test_a_reset_after_an_answer_is_a_reset(world):
    one = world()
    client, far = one.connect()
    exchange(client, far)
    reset(far)
    assert ending(client) == "reset"
    assert ended(one.tunnel) == ["target_reset"]


def test_who_ends_first_may_get_an_empty_answer(world):
    one = world()
    client, far = one.connect()
    send_and_end(client, b"request")
    assert receive_exactly(far, 7) == b"request"
    wait_until(lambda: one.tunnel.connections()[0].state == "half-closed")
    far.close()
    assert receive_all(client) == b""
    assert ended(one.tunnel) == ["done"]


def test_an_empty_answer_of_others_is_one(world):
    one = world(answered=True)
    client, far = one.connect()
    far.close()
    assert receive_all(client) == b""
    client.close()
    assert ended(one.tunnel) == ["done"]


def test_the_transport_learns_what_has_come(world, any_engine):
    one = world()
    client, far = one.connect()
    wait_until(lambda: one.streams and one.streams[0].received is not None)
    stream = one.streams[0]
    assert stream.received() == 0
    client.sendall(b"up only")
    assert receive_exactly(far, 7) == b"up only"
    assert stream.received() == 0 and not stream.answered
    sending = Thread(far.sendall, BLOCK)
    assert receive_exactly(client, len(BLOCK)) == BLOCK
    sending.result()
    assert stream.received() == len(BLOCK)
    client.close()
    far.close()
    ended(one.tunnel)
    assert stream.received() == len(BLOCK) and stream.answered


def test_one_that_has_not_answered_is_said_not_to_have(world):
    one = world()
    client, _ = one.connect()
    reset(client)
    assert ended(one.tunnel) == ["client_reset"]
    assert not one.streams[0].answered and one.streams[0].received() == 0


# -- ends that settle -------------------------------------------------------------------------------------------------


class Fate:
    """A failure that shows when the test says so."""

    def __init__(self):
        self.error = None
        self.asked = threading.Event()

    def __call__(self):
        self.asked.set()
        return self.error


def settling(tunnel):
    """Return whether an end waits for its reason."""
    streams = [stream for one in tunnel._relay._slots.connections for stream in (one.client_stream, one.target_stream)]
    return any(stream is not None and stream.settle < 0 for stream in streams)


def pass_time(tunnel):
    """Make the tunnel do now what it does after a long time."""
    tunnel._relay.run_in_thread(lambda: tunnel._relay.loop.timers.run(time.monotonic() + 2 * LONG))


def settle(tunnel):
    """Let an end that waits for its reason settle, as soon as it has been seen."""
    wait_until(lambda: settling(tunnel))
    pass_time(tunnel)


@pytest.mark.parametrize("end", [socket.socket.close, reset])
@pytest.mark.parametrize("answered", [True, False])
def test_an_end_that_is_seen_before_its_reason_waits_for_it(world, any_engine, end, answered):
    fate = Fate()
    one = world(settle=LONG, failure=fate, answered=answered)
    client, far = one.connect()
    exchange(client, far)
    end(far)
    client.settimeout(0.05)
    with pytest.raises(TimeoutError):
        client.recv(1)
    client.settimeout(WAIT)
    assert not fate.asked.is_set()
    fate.error = LOST
    settle(one.tunnel)
    assert ending(client) == "reset"
    assert ended(one.tunnel) == ["carrier_lost"]


@pytest.mark.parametrize(
    ("end", "fate", "reason"), [(socket.socket.close, "end of file", "done"), (reset, "reset", "target_reset")]
)
def test_an_end_that_has_settled_is_what_it_was(world, any_engine, end, fate, reason):
    one = world(settle=0.02)
    client, far = one.connect()
    exchange(client, far)
    end(far)
    assert ending(client) == fate
    client.close()
    assert ended(one.tunnel) == [reason]


@pytest.mark.parametrize("end", [socket.socket.close, reset])
def test_an_end_before_any_answer_settles_as_well(world, end):
    def is_open():
        return [record.state for record in one.tunnel.connections()] == ["open"]

    one = world(settle=0.02)
    client, far = one.connect()
    wait_until(is_open)
    end(far)
    assert ending(client) == "reset"
    assert ended(one.tunnel) == ["unreachable"]
    one = world(settle=0.02, failure=lambda: LOST)
    client, far = one.connect()
    wait_until(is_open)
    end(far)
    assert ending(client) == "reset"
    assert ended(one.tunnel) == ["carrier_lost"]


def test_all_that_came_before_the_end_is_there_at_once(world, any_engine):
    one = world(settle=LONG)
    client, far = one.connect()
    sending = Thread(send_and_end, far, BLOCK)
    assert receive_exactly(client, len(BLOCK)) == BLOCK
    sending.result()


def test_a_client_that_says_more_while_an_end_settles_does_not_change_it(world, any_engine):
    one = world(settle=LONG)
    client, far = one.connect()
    exchange(client, far)
    far.close()
    wait_until(lambda: settling(one.tunnel))
    for _ in range(20):
        client.sendall(b"nobody reads this")
    settle(one.tunnel)
    assert ending(client) == "end of file"
    client.close()
    assert ended(one.tunnel) == ["done"]


def test_a_client_that_ends_while_an_end_settles(world, any_engine):
    one = world(settle=0.1)
    client, far = one.connect()
    exchange(client, far)
    far.shutdown(socket.SHUT_WR)
    client.shutdown(socket.SHUT_WR)
    assert receive_all(client) == b""
    assert ended(one.tunnel) == ["done"]


def test_a_client_that_resets_while_an_end_settles(world):
    one = world(settle=LONG)
    client, far = one.connect()
    exchange(client, far)
    far.close()
    wait_until(lambda: settling(one.tunnel))
    reset(client)
    assert ended(one.tunnel) == ["client_reset"]
    pass_time(one.tunnel)


def test_a_tunnel_that_closes_while_an_end_settles(world):
    one = world(settle=LONG)
    client, far = one.connect()
    exchange(client, far)
    far.close()
    wait_until(lambda: settling(one.tunnel))
    Thread(one.tunnel.close).result()
    assert ending(client) == "reset"


@pytest.mark.parametrize("end", [socket.socket.close, reset])
def test_waiting_for_an_end_to_settle_costs_nothing(world, any_engine, end):
    one = world(settle=LONG)
    client, far = one.connect()
    exchange(client, far)
    end(far)
    for _ in range(5):
        client.sendall(b"nobody reads this")
        threading.Event().wait(0.005)
    wait_until(lambda: settling(one.tunnel))
    before = time.process_time()
    threading.Event().wait(0.2)
    assert time.process_time() - before < 0.1
    settle(one.tunnel)
    assert ending(client) == ("reset" if end is reset else "end of file")


def test_nothing_is_read_for_a_target_that_has_failed_while_that_settles(world, any_engine):
    one = world(settle=LONG)
    client, far = one.connect()
    exchange(client, far)
    reset(far)
    client.setblocking(False)
    sent, until = 0, time.monotonic() + 0.2
    while time.monotonic() < until:
        with contextlib.suppress(BlockingIOError):
            sent += client.send(BLOCK)
    assert sent < 32 << 20, "more than that is in no buffer"
    client.settimeout(WAIT)
    settle(one.tunnel)
    assert ending(client) == "reset"


def accepted(one, failure, settle):
    """A client behind a stream that has no half-close, and the far end of its way."""
    near, client = pair(socket.AF_INET)
    client.settimeout(WAIT)
    stream = relay.Stream(near, half_close=False, failure=failure)
    stream.settle = settle
    one.listener.put(stream, "a peer")
    wait_until(lambda: one.far)
    return one.stack.enter_context(client), one.far[0]


def test_the_end_of_a_client_settles_as_well(world, any_engine):
    fate = Fate()
    one = world(answered=True, half_close=True)
    client, far = accepted(one, fate, LONG)
    exchange(client, far)
    client.close()
    wait_until(lambda: settling(one.tunnel))
    fate.error = LOST
    settle(one.tunnel)
    assert ending(far) == "reset"
    assert ended(one.tunnel) == ["carrier_lost"]


def test_the_end_of_a_client_that_has_settled_is_its_end(world, any_engine):
    one = world(answered=True, half_close=True)
    client, far = accepted(one, lambda: None, 0.02)
    exchange(client, far)
    client.close()
    assert receive_all(far) == b""
    far.close()
    assert ended(one.tunnel) == ["done"]


def test_both_ends_settle_by_themselves(world, any_engine):
    one = world(answered=True, settle=0.05)
    client, far = accepted(one, lambda: None, 0.1)
    exchange(client, far)
    client.close()
    far.close()
    assert ended(one.tunnel) == ["done"]
