"""2,000 connections at once, and descriptors beyond 1,024."""

import contextlib
import functools
import resource
import selectors
import socket

import pytest
from helpers import WAIT, Thread, wait_until

import relay

MANY = 2000
NEEDED = 4 * MANY + 200  # descriptors: this process holds both ends of both sides


@pytest.fixture
def many_descriptors():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < NEEDED:
        pytest.skip(f"needs {NEEDED} descriptors; the hard limit is {hard} (ulimit -Hn)")
    if soft < NEEDED:
        resource.setrlimit(resource.RLIMIT_NOFILE, (NEEDED, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def echo_for(listener, count):
    """Serve ``count`` connections on one thread: a byte comes back as the next one."""
    with selectors.DefaultSelector() as selector, contextlib.ExitStack() as stack:
        for _ in range(count):
            selector.register(stack.enter_context(listener.accept()[0]), selectors.EVENT_READ)
        while selector.get_map():
            for key, _ in selector.select(10):
                data = key.fileobj.recv(100)
                if data:
                    key.fileobj.sendall(bytes(byte + 1 & 255 for byte in data))
                else:
                    selector.unregister(key.fileobj)
    return count


def test_two_thousand_at_once(listener, any_engine, many_descriptors):
    server = Thread(echo_for, listener, MANY)
    with (
        relay.Tunnel(relay.listen(":0"), relay.tcp(*listener.getsockname()), timeout=None, idle_timeout=WAIT) as tunnel,
        contextlib.ExitStack() as stack,
    ):
        connect = functools.partial(socket.create_connection, tunnel.address, timeout=WAIT)
        clients = [stack.enter_context(connect()) for _ in range(MANY)]
        assert max(client.fileno() for client in clients) > 1024
        wait_until(lambda: tunnel.stats().active == MANY)
        for turn in range(3):
            for number, client in enumerate(clients):
                client.sendall(bytes([(number + turn) & 255]))
            answers = [client.recv(100)[0] for client in clients]
            assert answers == [(number + turn + 1) & 255 for number in range(MANY)]
        assert len(tunnel.connections()) == MANY
        for client in clients:
            client.close()
        assert server.result(20) == MANY
        wait_until(lambda: tunnel.stats().active == 0, 20)
        assert (tunnel.stats().accepted, tunnel.stats().failed) == (MANY, {})
