"""``relay.spawning.ephemeral``: a tunnel that ends by itself, and lets every client finish."""

import contextlib
import os
import select
import socket
import threading
import time

import pytest
from helpers import BLOCK, PROMPT, WAIT, Thread, ending, flood, receive_all, receive_exactly, wait_until

import relay
from relay.engine.shared_acceptor import WorkerPlace
from relay.engine.worker_table import WorkerTable
from relay.spawning import ephemeral
from relay.spawning.child_tunnel import ChildTunnel
from relay.spawning.ephemeral import EphemeralTunnel
from relay.spawning.pool import open_child
from relay.spawning.recipes import Recipe

SOON = 0.3  # seconds that a test waits for
LONG = 1000.0  # seconds that pass when the test says so


@pytest.fixture
def listening(listener):
    """A target that the test plays."""
    return listener


@pytest.fixture
def make(listening):
    with contextlib.ExitStack() as stack:

        def make(**options):
            factory = relay.tcp(*listening.getsockname())
            options.setdefault("timeout", None)
            return stack.enter_context(ephemeral_tunnel(relay.listen(":0"), factory, **options))

        yield make


def ephemeral_tunnel(receive, factory, **options):
    """Make one in this process, which is its only worker then."""
    memory = WorkerTable.make(1)
    place = WorkerPlace(0, WorkerTable(memory, 1))
    os.close(memory)
    try:
        return EphemeralTunnel(receive, factory, place=place, **options)
    except BaseException:
        place.close()
        raise


def client_of(tunnel):
    made = socket.create_connection(tunnel.address, timeout=WAIT)
    made.settimeout(WAIT)
    return made


def accepted(listening):
    made, _ = listening.accept()
    made.settimeout(WAIT)
    return made


def test_it_ends_when_nobody_comes(make):
    begin = time.monotonic()
    tunnel = make(unused=SOON)
    tunnel.join(WAIT)
    assert tunnel.expired and time.monotonic() - begin >= SOON
    with pytest.raises(ConnectionRefusedError):
        client_of(tunnel)


def test_it_ends_when_the_last_one_has_gone(make, listening):
    tunnel = make(unused=LONG)
    with client_of(tunnel), accepted(listening):
        with client_of(tunnel), accepted(listening):
            pass
        wait_until(lambda: tunnel.stats().active == 1)
        at(tunnel, time.monotonic() + 2 * LONG)
        assert not tunnel.expired
        begin = time.monotonic()
    wait_until(lambda: tunnel.stats().active == 0)
    at(tunnel, begin + LONG)
    assert not tunnel.expired
    at(tunnel, time.monotonic() + LONG + 1)
    tunnel.join(WAIT)
    assert tunnel.expired


def test_whoever_comes_in_time_starts_it_anew(make, listening):
    tunnel = make(unused=LONG)
    for _ in range(4):
        moment = time.monotonic()
        client_of(tunnel).close()
        accepted(listening).close()
        wait_until(lambda: tunnel.stats().active == 0)
        at(tunnel, moment + LONG)
        assert not tunnel.expired
    at(tunnel, time.monotonic() + LONG + 1)
    tunnel.join(WAIT)
    assert tunnel.expired


def at(tunnel, moment):
    """Make the tunnel do now what it does up to a moment, in monotonic seconds."""
    tunnel._relay.run_in_thread(lambda: tunnel._relay.loop.timers.run(moment))


def test_without_a_time_it_stays(make):
    tunnel = make()
    assert not tunnel.wait_for_client(SOON)
    assert not tunnel.expired
    tunnel.close()
    assert not tunnel.expired


def test_it_tells_that_somebody_has_come(make):
    tunnel = make()
    waiting = Thread(tunnel.wait_for_client, WAIT)
    with client_of(tunnel):
        assert waiting.result() is True


@pytest.mark.parametrize("unused", [0, -1, float("nan"), "60"])
def test_times_that_are_none(listening, unused):
    with relay.listen(":0") as receive:
        with pytest.raises((ValueError, TypeError), match="timeout"):
            ephemeral_tunnel(receive, relay.tcp("127.0.0.1", 1), unused=unused)


def test_a_client_that_stays_is_quiet_for_a_moment_and_ends(make, listening):
    tunnel = make()
    with client_of(tunnel) as client, accepted(listening) as far:
        client.sendall(b"last words")
        begin = time.monotonic()
        tunnel.close(2 * WAIT)
        assert ephemeral._QUIET <= time.monotonic() - begin < WAIT
        assert receive_exactly(far, 10) == b"last words"
        assert ending(client) == "reset"
    assert [record.reason for record in tunnel.recent()] == ["closed"]


def test_what_comes_from_the_target_keeps_nobody(make, listening):
    """A publisher has no end; its subscriber is closed with the tunnel."""
    tunnel = make()
    with client_of(tunnel) as client, accepted(listening) as far:
        over = threading.Event()

        def publish():
            with contextlib.suppress(OSError):
                while not over.is_set():
                    far.sendall(BLOCK[:1000])

        reading, publishing = Thread(ending, client), Thread(publish)
        begin = time.monotonic()
        tunnel.close(2 * WAIT)
        assert time.monotonic() - begin < WAIT
        over.set()
        assert reading.result() == "reset"
        publishing.result()


def held_in_the_kernel(make, listening, size):
    """A tunnel, its client and a target that does not read: the tunnel has passed everything on to the kernel."""
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    tunnel = make()
    client = client_of(tunnel)
    far = accepted(listening)
    client.sendall(BLOCK[:size])
    wait_until(lambda: tunnel.stats().received == size)
    (connection,) = tunnel._relay._slots.connections
    assert (
        connection.flows.upstream.pending is None
        and connection.flows.upstream.pipe is None
        and connection.flows.unsent()[1]
    )
    return tunnel, client, far


def looks(tunnel):
    """A wait for the tunnel's next two looks at what is quiet, of which one is whole; or for its end."""
    looked = []
    look = tunnel._relay._end_quiet_ones
    tunnel._relay._quiet._call = lambda now: (look(now), looked.append(now))

    def wait():
        before = len(looked)
        wait_until(lambda: len(looked) >= before + 2 or not tunnel._relay._slots.connections)

    return wait


def test_what_waits_in_the_kernel_for_a_slow_target_arrives(make, listening, monkeypatch):
    """The target reads 64 KiB when the test says so; between, the tunnel looks twice, and nothing is cut."""
    monkeypatch.setattr(ephemeral, "_QUIET", 0.02)
    size = 5 << 16
    tunnel, client, far = held_in_the_kernel(make, listening, size)
    with client, far:
        wait_for_looks = looks(tunnel)
        closing = Thread(tunnel.close, WAIT)
        wait_for_looks()
        assert tunnel.connections(), "it lasts as long as the kernel has bytes that the target's system has not taken"
        got = b""
        while len(got) < size:
            wait_for_looks()
            got += receive_exactly(far, 1 << 16)
        assert got == BLOCK[:size]
        assert far.recv(1) == b"", "an end of file, and no reset"
        closing.result()
        assert ending(client) == "reset"


def test_a_target_sees_an_end_of_file_though_it_has_sent_what_nobody_takes(make, listening, monkeypatch):
    """A close with something unread would be a reset."""
    monkeypatch.setattr(ephemeral, "_QUIET", 0.02)
    tunnel = make()
    with client_of(tunnel) as client, accepted(listening) as far:
        client.sendall(b"last words")
        far.settimeout(0.2)
        with contextlib.suppress(TimeoutError):
            flood(far)
        far.settimeout(WAIT)
        tunnel.close(WAIT)
        assert receive_exactly(far, 11) == b"last words"


def test_what_a_client_has_said_waits_for_a_slow_target(make, listening, monkeypatch):
    """It is open and says nothing more, for the target does not take what it has said."""
    monkeypatch.setattr(ephemeral, "_QUIET", 0.05)
    tunnel = make()
    with client_of(tunnel) as client, accepted(listening) as far:
        wait_until(lambda: tunnel._relay._slots.connections)
        (connection,) = tunnel._relay._slots.connections
        sent = 0
        # until all buffers on the way are full, so that some of it waits in the tunnel
        while select.select([], [client], [], 0.3)[1] or (
            connection.flows.upstream.pending is None and connection.flows.upstream.pipe is None
        ):
            sent += client.send(BLOCK[: 1 << 16])
        closing = Thread(tunnel.close, WAIT)
        closing.join(0.5)
        assert closing.is_alive()
        assert len(receive_exactly(far, sent)) == sent
        closing.result()


def test_what_a_client_has_ended_arrives(make, listening):
    tunnel = make()
    with client_of(tunnel) as client, accepted(listening) as far:
        reading = Thread(receive_all, far)
        for _ in range(32):
            client.sendall(BLOCK)
        client.close()
        closing = Thread(tunnel.close, WAIT)
        assert reading.result() == BLOCK * 32
        far.close()
        closing.result()
    assert [record.reason for record in tunnel.recent()] == ["done"]


def test_without_time_it_ends_at_once(make, listening, monkeypatch):
    monkeypatch.setattr(ephemeral, "_QUIET", WAIT)
    tunnel = make()
    with client_of(tunnel) as client, accepted(listening):
        begin = time.monotonic()
        tunnel.close()
        assert time.monotonic() - begin < PROMPT
        assert ending(client) == "reset"


def test_a_child_that_ends_unused_is_closed_and_not_lost(caplog):
    arguments = {"listen": None, "target": "127.0.0.1:1", "via": []}
    recipe = Recipe("relay.spawning.recipes:by_address", arguments)
    with open_child(ChildTunnel, recipe, None, {"name": "unused", "unused": SOON}) as tunnel:
        tunnel.join(WAIT)
        assert (tunnel.state, tunnel.stats().accepted, caplog.messages) == ("closed", 0, [])
        assert not os.path.exists(os.path.dirname(tunnel.address))
