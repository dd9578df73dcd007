"""Two reverse tunnels on one transport, and what the caller has there beside them: each gets its own connections."""

import contextlib
import hashlib
import queue
import socket
import threading

import paramiko
import pytest
from helpers import (
    BLOCK,
    WAIT,
    Thread,
    echo,
    is_gone,
    receive_all,
    receive_exactly,
    send_and_end,
    sha256_of,
    wait_until,
)
from rforward_rig import LOOPBACK, World, echo_channels, greet, still_usable, worlds

BULK = 20  # megabytes


@pytest.fixture(params=["ssh_server", "sshd"])
def world(request, openssh_server):
    yield from worlds(request)


def first_letter(port, text=b"hello"):
    """Return the server that answers at a port; it sends back what it gets."""
    with socket.create_connection((LOOPBACK, port), WAIT) as client:
        letter = receive_exactly(client, 1)
        client.sendall(text)
        assert receive_exactly(client, len(text)) == text
        return letter


def test_bulk_both_ways_through_both_at_once(world):
    listeners = [world.listener(), world.listener()]
    tunnels = [world.tunnel(listener) for listener in listeners]
    ends = []
    for tunnel, listener in zip(tunnels, listeners, strict=True):
        ends += [world.client(tunnel), world.accept(listener)]
    data = [b"%d" % number + BLOCK * BULK for number in range(4)]  # each direction has its own
    sending = [Thread(send_and_end, end, each) for end, each in zip(ends, data, strict=True)]
    hashes = [Thread(sha256_of, end) for end in ends]
    wanted = [hashlib.sha256(data[number]).hexdigest() for number in (1, 0, 3, 2)]
    assert [one.result(120) for one in hashes] == wanted
    for one in sending:
        one.result()


def test_a_burst_at_both_and_at_the_callers_own_forward(world):
    count = 40
    port, came = world.channels()
    one, other = world.tunnel(world.serve(greet(b"1"))), world.tunnel(world.serve(greet(b"2")))
    theirs = Thread(echo_channels, came, b"3", count)
    asked = [(one.server_port, b"1"), (other.server_port, b"2"), (port, b"3")] * count
    callers = [(Thread(first_letter, port), letter) for port, letter in asked]
    assert [caller.result(60) for caller, _ in callers] == [letter for _, letter in callers]
    theirs.result()
    assert came.empty()
    assert world.transport.accept(0.0) is None


def test_each_goes_on_whatever_becomes_of_the_others(world):
    port, came = world.channels()
    one, other = world.tunnel(world.serve(greet(b"1"))), world.tunnel(world.serve(greet(b"2")))

    def everybody_else_works():
        assert first_letter(other.server_port) == b"2"
        theirs = Thread(echo_channels, came, b"3", 1)
        assert first_letter(port) == b"3"
        theirs.result()

    everybody_else_works()
    one.pause()
    everybody_else_works()
    assert is_gone((LOOPBACK, one.server_port))
    one.resume()
    assert first_letter(one.server_port) == b"1"
    everybody_else_works()
    one.cancel_port_forward(LOOPBACK, one.server_port)
    assert is_gone((LOOPBACK, one.server_port))
    everybody_else_works()
    one.stop_thread()
    everybody_else_works()
    world.transport.cancel_port_forward(LOOPBACK, port)
    assert first_letter(other.server_port) == b"2"
    other.stop_thread()
    still_usable(world.transport, world.serve(echo))


def test_paramikos_own_queue_goes_on_with_a_forward_made_before_or_after(world):
    before = world.transport.request_port_forward(LOOPBACK, 0)
    tunnel = world.tunnel(world.serve(greet(b"1")))
    after = world.transport.request_port_forward(LOOPBACK, 0)
    for port in (before, after, before):
        with socket.create_connection((LOOPBACK, port), WAIT) as client:
            assert first_letter(tunnel.server_port) == b"1"
            with world.transport.accept(WAIT) as channel:
                assert channel.origin_addr == client.getsockname()
    tunnel.stop_thread()
    with socket.create_connection((LOOPBACK, after), WAIT), world.transport.accept(WAIT):
        pass


def test_the_callers_handler_may_come_later(world):
    tunnel = world.tunnel(world.serve(greet(b"1")))
    port, came = world.channels()
    theirs = Thread(echo_channels, came, b"3", 1)
    assert first_letter(port) == b"3"
    theirs.result()
    assert first_letter(tunnel.server_port) == b"1"
    world.transport.cancel_port_forward(LOOPBACK, port)  # which takes paramiko's one handler away
    assert first_letter(tunnel.server_port) == b"1"


def test_the_callers_requests_and_ours_do_not_get_each_others_answers(world):
    """With paramiko, every waiting thread gets an answer; denied ones and granted ones take turns here."""
    over = threading.Event()
    wrong = queue.SimpleQueue()

    def ask():
        while not over.is_set():
            if world.transport.global_request("no-such-thing@example.com", wait=True) is not None:
                wrong.put("it was granted")

    tunnel = world.tunnel(world.serve(greet(b"1")))
    asking = [Thread(ask) for _ in range(3)]
    try:
        for _ in range(20):
            tunnel.pause()
            assert is_gone((LOOPBACK, tunnel.server_port))
            tunnel.resume()
            assert first_letter(tunnel.server_port) == b"1"
    finally:
        over.set()
    for one in asking:
        one.result()
    assert wrong.empty()


def test_clients_that_hang_up_in_mid_stream_do_not_cost_the_connection(sshd):
    """Against this, an sshd ends all of it when something of a channel comes after its close."""

    def flood(connection):
        while True:
            connection.sendall(BLOCK)

    with contextlib.closing(World(sshd)) as world:
        tunnel = world.tunnel(world.serve(flood))
        steady = world.tunnel(world.serve(greet(b"1")))

        def hang_up_early():
            for _ in range(25):
                with socket.create_connection((LOOPBACK, tunnel.server_port), WAIT) as client:
                    receive_exactly(client, 200_000)

        callers = [Thread(hang_up_early) for _ in range(4)]
        for caller in callers:
            caller.result(60)
        assert first_letter(steady.server_port) == b"1"
        assert world.transport.is_active()


def test_new_keys_in_the_middle_of_it_all(make_sshd):
    """While a server exchanges keys all the time, clients hang up, bytes are counted, and a tunnel comes and goes."""

    def flood(connection):
        while True:
            connection.sendall(BLOCK)

    def hang_up_early():
        while not over.is_set():
            with socket.create_connection((LOOPBACK, flooding.server_port), WAIT) as client:
                receive_exactly(client, 300_000)

    def carry():
        with socket.create_connection((LOOPBACK, echoing.server_port), WAIT) as client:
            sending = Thread(send_and_end, client, BLOCK * 8)
            assert receive_all(client) == BLOCK * 8
            sending.result()

    def come_and_go():
        while not over.is_set():
            going.pause()
            going.resume()

    over = threading.Event()
    with contextlib.closing(World(make_sshd("RekeyLimit 2M"))) as world:
        flooding, echoing, going = (world.tunnel(world.serve(handler)) for handler in (flood, echo, echo))
        others = [Thread(hang_up_early), Thread(hang_up_early), Thread(come_and_go)]
        carriers = [Thread(carry) for _ in range(2)]
        try:
            for one in carriers:
                one.result(60)
        finally:
            over.set()
        for one in others:
            one.result()
        assert world.transport.is_active()


def test_a_second_tunnel_at_the_same_port_takes_nothing_from_the_first(world):
    tunnel = world.tunnel(world.serve(greet(b"1")))
    with pytest.raises(OSError, match="another tunnel"):
        world.tunnel(world.serve(greet(b"2")), tunnel.server_port)
    assert first_letter(tunnel.server_port) == b"1"


def test_a_handler_set_by_hand_is_asked_for_what_is_not_ours(world):
    came = queue.SimpleQueue()
    port = world.transport.request_port_forward(LOOPBACK, 0)
    tunnel = world.tunnel(world.serve(greet(b"1")))
    world.transport._tcp_handler = lambda channel, origin, server: came.put((channel, server))
    with socket.create_connection((LOOPBACK, port), WAIT):
        assert first_letter(tunnel.server_port) == b"1"
        channel, server = came.get(timeout=WAIT)
        assert server == (LOOPBACK, port) and isinstance(channel, paramiko.Channel)
        channel.close()
    wait_until(came.empty)
