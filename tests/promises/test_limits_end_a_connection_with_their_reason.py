"""Lifetime, idle, linger and connect limits end a connection by a reset, each with its reason in the record."""

import logging
import socket
import threading
import time

import pytest
from helpers import BLOCK, WAIT, black_hole, ended, ending, exchange, expire, flood, receive_exactly, wait_until

import relay

SHORT = 0.3  # seconds of a limit that a test waits for
LONG = 1000.0  # seconds of one that comes when the test says so


def started(tunnel):
    """Return the time of the last accept, in monotonic seconds."""
    return max(connection.summary.started for connection in tunnel._relay._slots.connections)


def test_lifetime_ends_a_connection_whatever_it_does(relayed, any_engine):
    rig = relayed(timeout=LONG)
    client, far = rig.connect()
    quiet, _ = rig.connect()
    wait_until(lambda: rig.tunnel.stats().active == 2)
    for _ in range(4):
        expire(rig.tunnel, started(rig.tunnel) + LONG - 1)
        exchange(client, far)
    expire(rig.tunnel, started(rig.tunnel) + LONG)
    assert ending(client) == ending(far) == ending(quiet) == "reset"
    assert ended(rig.tunnel, 2) == ["lifetime", "lifetime"]


def test_the_first_connection_that_the_lifetime_ends_is_a_warning_that_names_it(relayed, caplog):
    rig = relayed(timeout=SHORT, name="minute")
    for _ in range(2):
        client, _ = rig.connect()
        assert ending(client) == "reset"
    ended(rig.tunnel, 2)
    (line,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert line.getMessage().startswith("minute: timeout: reset the connection of ")
    assert "after 0.3 s" in line.getMessage()
    assert "timeout=None is no limit" in line.getMessage()


def test_a_pinging_attacker_cannot_outlive_the_lifetime_though_idle_and_linger_are_put_off(relayed, any_engine):
    rig = relayed(timeout=LONG, idle_timeout=LONG / 2, linger=LONG / 2)
    client, far = rig.connect()
    far.shutdown(socket.SHUT_WR)
    assert client.recv(1) == b""
    begin = started(rig.tunnel)
    for number in range(4):
        client.sendall(bytes([number]))
        assert far.recv(10) == bytes([number])
        expire(rig.tunnel, begin + LONG / 2)
    (connection,) = rig.tunnel._relay._slots.connections
    connection.flows.upstream.last = begin + LONG - 1  # as if it had gone on so until now
    expire(rig.tunnel, begin + LONG)
    with pytest.raises(ConnectionError):
        flood(client)
    assert ended(rig.tunnel) == ["lifetime"]


def test_lifetime_ends_a_transfer_that_is_clogged(relayed, any_engine):
    rig = relayed(timeout=SHORT)
    client, far = rig.connect()
    with pytest.raises(ConnectionError):
        flood(client)
    assert ending(far) == "reset"
    assert ended(rig.tunnel) == ["lifetime"]


def test_lifetime_counts_from_the_acceptance(listener):
    """A factory that takes its time takes it from the connection's life."""
    release = threading.Event()

    def make():
        release.wait(WAIT)
        return socket.create_connection(listener.getsockname())

    with relay.Tunnel(relay.listen(":0"), make, timeout=SHORT, connect_timeout=WAIT) as tunnel:
        with socket.create_connection(tunnel.address, timeout=WAIT) as client:
            assert ending(client) == "reset"
        assert ended(tunnel) == ["lifetime"]
        release.set()


def test_the_original_has_a_lifetime_of_a_minute_unless_told_otherwise():
    import inspect

    defaults = {name: one.default for name, one in inspect.signature(relay.Tunnel).parameters.items()}
    assert (defaults["timeout"], defaults["nconnect"], defaults["connect_timeout"]) == (60.0, -1, 30.0)
    assert (defaults["idle_timeout"], defaults["linger"], defaults["name"]) == (None, 60.0, None)


def test_idle_ends_a_quiet_connection(relayed, any_engine):
    rig = relayed(idle_timeout=SHORT)
    client, far = rig.connect()
    assert ending(client) == "reset"
    assert ending(far) == "reset"
    assert ended(rig.tunnel) == ["idle"]


@pytest.mark.parametrize("who", ["client", "target"])
def test_a_byte_in_either_direction_puts_idle_off(relayed, who):
    rig = relayed(timeout=None, idle_timeout=LONG)
    client, far = rig.connect()
    exchange(client, far)
    sender, receiver = (client, far) if who == "client" else (far, client)
    for number in range(8):
        moment = time.monotonic()
        sender.sendall(bytes([number]))
        assert receiver.recv(10) == bytes([number])
        expire(rig.tunnel, moment + LONG)
        assert rig.tunnel.stats().active == 1
    for times in (2, 4):  # twice, for the first look may find that the kernel has moved something
        expire(rig.tunnel, moment + times * LONG)
    assert ending(client) == "reset"
    assert ended(rig.tunnel) == ["idle"]


def test_idle_counts_bytes_that_moved_and_not_bytes_that_wait(relayed, any_engine):
    """A sender that pushes against a reader that has stopped moves nothing."""
    rig = relayed(idle_timeout=SHORT)
    client, far = rig.connect()
    with pytest.raises(ConnectionError):
        flood(client)
    assert ending(far) == "reset"
    assert ended(rig.tunnel) == ["idle"]


@pytest.mark.parametrize("who", ["client", "target"])
def test_linger_ends_what_is_left_of_a_half_closed_connection(relayed, any_engine, who):
    rig = relayed(linger=SHORT)
    client, far = rig.connect()
    exchange(client, far)
    first = client if who == "client" else far
    first.shutdown(socket.SHUT_WR)
    assert ending(first) == "reset"
    assert ended(rig.tunnel) == ["linger"]


def test_a_byte_in_the_other_direction_puts_linger_off(relayed, any_engine):
    rig = relayed(timeout=None, linger=LONG)
    client, far = rig.connect()
    client.shutdown(socket.SHUT_WR)
    assert far.recv(1) == b""
    for number in range(8):
        moment = time.monotonic()
        far.sendall(bytes([number]))
        assert client.recv(10) == bytes([number])
        expire(rig.tunnel, moment + LONG)
    far.shutdown(socket.SHUT_WR)
    assert client.recv(1) == b""
    assert ended(rig.tunnel) == ["done"]


def test_linger_of_zero_leaves_nothing(relayed, any_engine):
    rig = relayed(linger=0)
    client, far = rig.connect()
    exchange(client, far)
    client.shutdown(socket.SHUT_WR)
    ending(far)
    ending(client)
    assert ended(rig.tunnel) == ["linger"]


def test_without_limits_a_quiet_half_closed_connection_lives(relayed, any_engine):
    rig = relayed(timeout=None, linger=None, idle_timeout=None)
    client, far = rig.connect()
    client.shutdown(socket.SHUT_WR)
    assert far.recv(1) == b""
    threading.Event().wait(SHORT)
    far.sendall(b"still here")
    assert receive_exactly(client, 10) == b"still here"


def test_connect_timeout_has_its_own_reason(any_engine):
    with (
        black_hole() as hole,
        relay.Tunnel(relay.listen(":0"), relay.tcp(*hole.getsockname()), connect_timeout=SHORT) as t,
    ):
        with socket.create_connection(t.address, timeout=WAIT) as client:
            assert ending(client) == "reset"
        assert ended(t) == ["connect_timeout"]


def test_a_limit_ends_its_own_connection_alone(relayed, any_engine):
    rig = relayed(timeout=None, linger=SHORT)
    quiet, _ = rig.connect()
    client, far = rig.connect()
    quiet.shutdown(socket.SHUT_WR)
    exchange(client, far)
    assert ending(quiet) == "reset"
    exchange(client, far)
    assert ended_alone(rig.tunnel) == ["linger"]


def ended_alone(tunnel):
    """The reasons of those that have ended beside one that lives."""
    wait_until(lambda: tunnel.stats().active == 1)
    return [record.reason for record in tunnel.recent()]


class Clock:
    """The deadlines of a rig's one connection, which come when the test says so."""

    def __init__(self, tunnel, step):
        self._tunnel = tunnel
        self._step = step
        (self.connection,) = tunnel._relay._slots.connections
        self._now = time.monotonic()

    def go_on(self):
        """So much later, a limit may have been reached."""
        self._now += self._step
        self._tunnel._relay.run_in_thread(lambda: self.connection.deadline.expire(self._now))


@pytest.mark.parametrize("limit", ["idle_timeout", "linger"])
def test_what_leaves_the_kernel_for_a_slow_target_has_moved(relayed, limit):
    """The client's bytes, and its end, have been taken: nothing moves here, and all of it moves there."""
    rig = relayed(timeout=None, **{"linger": None, limit: 1000})
    client, far = rig.connect()
    exchange(client, far)
    far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    size = 6 << 16
    client.sendall(BLOCK[:size])
    client.shutdown(socket.SHUT_WR)
    wait_until(lambda: rig.tunnel.stats().received == size + 4 and rig.tunnel.connections()[0].state == "half-closed")
    clock = Clock(rig.tunnel, 1001)
    assert clock.connection.flows.unsent()[1]
    got = b""
    for _ in range(3):
        clock.go_on()
        got += receive_exactly(far, 1 << 16)
        wait_until(lambda: clock.connection.flows.unsent() != clock.connection.deadline._queued)
        assert clock.connection.flows.unsent()[1]
    clock.go_on()
    assert not clock.connection.is_closed
    clock.go_on()
    assert ended(rig.tunnel) == [limit.removesuffix("_timeout")]
    assert got == BLOCK[: len(got)]


def test_what_leaves_the_kernel_for_a_slow_client_has_moved(relayed):
    rig = relayed(timeout=None, idle_timeout=1000)
    client, far = rig.connect()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    size = 8 << 16
    far.sendall(BLOCK[:size])
    wait_until(lambda: rig.tunnel.stats().sent == size)
    clock = Clock(rig.tunnel, 1001)
    clock.go_on()
    receive_exactly(client, 2 << 16)
    wait_until(lambda: clock.connection.flows.unsent() != clock.connection.deadline._queued)
    clock.go_on()
    assert not clock.connection.is_closed
    clock.go_on()
    assert ended(rig.tunnel) == ["idle"]
