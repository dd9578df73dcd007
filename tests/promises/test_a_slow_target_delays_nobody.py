"""A factory that sleeps, or a target that swallows SYNs, delays no other client."""

import contextlib
import itertools
import select
import socket
import threading

import pytest
from helpers import PROMPT, WAIT, Thread, black_hole, ended, exchange, receive_exactly, wait_until

import relay


@pytest.fixture
def sleeping(listener):
    """A tunnel whose factory sleeps for its first client, and the event that wakes it."""
    wake, calls = threading.Event(), itertools.count()

    def make():
        if next(calls) == 0:
            wake.wait(WAIT)
        return socket.create_connection(listener.getsockname())

    with relay.Tunnel(relay.listen(":0"), make) as tunnel:
        yield tunnel, wake
        wake.set()


def test_a_factory_that_sleeps(sleeping, listener, any_engine):
    tunnel, wake = sleeping
    with socket.create_connection(tunnel.address, timeout=WAIT) as first:
        wait_until(lambda: tunnel.stats().active == 1)
        for _ in range(5):
            with socket.create_connection(tunnel.address, timeout=WAIT) as client:
                far, _ = listener.accept()
                with far:
                    far.settimeout(WAIT)
                    exchange(client, far)
        wake.set()
        far, _ = listener.accept()
        with far:
            far.settimeout(WAIT)
            exchange(first, far)


def test_many_factories_that_sleep_at_once(listener):
    """Twenty sleep side by side, and each is served when it wakes."""
    wake = threading.Event()

    def make():
        wake.wait(WAIT)
        return socket.create_connection(listener.getsockname())

    with relay.Tunnel(relay.listen(":0"), make) as tunnel:
        clients = [socket.create_connection(tunnel.address, timeout=WAIT) for _ in range(20)]
        wait_until(lambda: tunnel.stats().active == 20)
        wake.set()
        fars = [listener.accept()[0] for _ in clients]
        for number, client in enumerate(clients):
            client.sendall(bytes([number]))
        for far in fars:
            far.settimeout(WAIT)
        assert sorted(far.recv(1)[0] for far in fars) == list(range(20))
        for end in (*clients, *fars):
            end.close()


def test_live_connections_do_not_notice_a_sleeping_factory(sleeping, listener):
    tunnel, _wake = sleeping
    with socket.create_connection(tunnel.address, timeout=WAIT):
        wait_until(lambda: tunnel.stats().active == 1)
        with socket.create_connection(tunnel.address, timeout=WAIT) as client:
            far, _ = listener.accept()
            with far:
                far.settimeout(WAIT)
                for _ in range(200):
                    exchange(client, far)


@pytest.mark.parametrize("marked", [True, False], ids=["non-blocking", "plain callable"])
def test_a_target_that_swallows_syns(listener, any_engine, marked):
    with black_hole() as hole:
        targets = itertools.chain([hole.getsockname()], itertools.repeat(listener.getsockname()))
        swallowed = threading.Event()

        def make():
            made = socket.socket()
            made.setblocking(False)
            made.connect_ex(next(targets))
            swallowed.set()
            return made

        factory = relay.nonblocking(make) if marked else make
        with relay.Tunnel(relay.listen(":0"), factory) as tunnel:
            with socket.create_connection(tunnel.address, timeout=WAIT):
                assert swallowed.wait(WAIT)  # the next client's is another target
                for _ in range(5):
                    with socket.create_connection(tunnel.address, timeout=WAIT) as client:
                        far, _ = listener.accept()
                        with far:
                            far.settimeout(WAIT)
                            exchange(client, far)
                closing = Thread(tunnel.close)
                closing.result(PROMPT)
            assert "closed" in ended(tunnel, 6)


def test_our_own_tcp_to_a_target_that_swallows_syns():
    """The first SYN is lost and sent again a second later; a client that comes meanwhile is served at once."""
    with black_hole() as hole, relay.Tunnel(relay.listen(":0"), relay.tcp(*hole.getsockname())) as tunnel:
        with socket.create_connection(tunnel.address, timeout=WAIT):
            wait_until(lambda: tunnel.stats().active == 1)
            hole.accept()[0].close()  # now there is room in the backlog again
            with socket.create_connection(tunnel.address, timeout=WAIT) as client:
                client.sendall(b"second")
                assert served(hole, b"second")


def served(hole, text):
    """Accept until a client sends ``text``; the first client of the tunnel says nothing."""
    with contextlib.ExitStack() as stack:
        fars = []
        while True:
            ready, _, _ = select.select([hole, *fars], [], [], WAIT)
            assert ready, f"nobody has said {text!r}"
            if hole in ready:
                fars.append(stack.enter_context(hole.accept()[0]))
            if any(far.recv(100) == text for far in ready if far is not hole):
                return True


def test_a_name_that_resolves_slowly(monkeypatch, listener):
    wake, asked, resolve = threading.Event(), threading.Event(), socket.getaddrinfo
    port = listener.getsockname()[1]

    def slow(host, *args, **options):
        if host == "slow.invalid":
            asked.set()
            wake.wait(WAIT)
        return resolve("127.0.0.1", *args, **options)

    def ask(tunnel, name):
        client = socket.create_connection(tunnel.address, timeout=WAIT)
        client.sendall(b"\5\1\0\5\1\0\3" + bytes([len(name)]) + name + port.to_bytes(2, "big"))
        return client

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    with relay.Tunnel(relay.socks_listen("127.0.0.1", 0), relay.dynamic()) as tunnel:
        with ask(tunnel, b"slow.invalid"):
            assert asked.wait(WAIT)
            with ask(tunnel, b"quick.invalid") as client:
                far, _ = listener.accept()
                with far:
                    assert len(receive_exactly(client, 12)) == 12
                    far.settimeout(WAIT)
                    exchange(client, far)
            wake.set()
