"""A tunnel of a running relay has no thread before its first client; who uses it cannot tell."""

from __future__ import annotations

import os
import socket
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from helpers import WAIT, Server, in_child, receive_exactly

import relay
from relay.engine import changes, ledgers
from relay.engine.managed_tunnel import ManagedTunnel

NAME = "hardly used"


@pytest.fixture
def opened() -> Iterator[ExitStack]:
    """Closes what it gets."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def tunnel(opened: ExitStack, echo_server: Server) -> ManagedTunnel:
    """A tunnel that is paused, as the daemon opens it."""
    made = ManagedTunnel(relay.listen(":0"), relay.tcp(*echo_server.address), paused=True, name=NAME)
    return opened.enter_context(made)


@pytest.fixture
def connect(opened: ExitStack, tunnel: ManagedTunnel) -> Callable[[], socket.socket]:
    """Connects clients."""
    return lambda: opened.enter_context(socket.create_connection(tunnel.address, WAIT))


def echoes(client: socket.socket) -> bool:
    client.sendall(b"hello")
    return receive_exactly(client, 5) == b"hello"


def has_thread() -> bool:
    return any(one.name == NAME for one in threading.enumerate())


def test_the_first_client_makes_the_thread(tunnel: ManagedTunnel, connect: Callable[[], socket.socket]) -> None:
    tunnel.resume()
    assert not has_thread()
    assert (tunnel.stats().accepted, tunnel.connections(), tunnel.recent()) == (0, [], [])
    assert not tunnel.kill("0123456789abcdef")
    assert repr(tunnel).endswith("0 connections, open>")
    clients = [connect() for _ in range(3)]
    assert all(map(echoes, clients))
    assert has_thread()
    assert tunnel.stats().accepted == len(tunnel.connections()) == 3
    tunnel.close()
    assert not has_thread()


@pytest.mark.skipif(sys.platform != "linux", reason="counts the descriptors in /proc")
def test_each_takes_one_descriptor(opened: ExitStack) -> None:
    def more() -> int:
        before = len(os.listdir("/proc/self/fd"))
        made = ManagedTunnel(relay.listen(":0"), relay.tcp("127.0.0.1", 9), paused=True)
        opened.enter_context(made).resume()
        return len(os.listdir("/proc/self/fd")) - before

    assert [more() for _ in range(4)][1:] == [1, 1, 1]  # what waits for all of them came with the first one


def test_a_paused_one_leaves_its_clients_in_the_backlog(
    tunnel: ManagedTunnel, connect: Callable[[], socket.socket]
) -> None:
    tunnel.resume()
    tunnel.pause()
    client = connect()
    client.sendall(b"hello")
    assert repr(tunnel).endswith("paused>")
    turned = threading.Event()
    assert tunnel.ping(turned.set)
    assert turned.wait(WAIT)
    assert tunnel.stats().accepted == 0 and not has_thread()
    tunnel.resume()
    assert receive_exactly(client, 5) == b"hello"
    tunnel.pause()  # with a thread now
    connect().sendall(b"later")
    assert tunnel.stats().accepted == 1


def test_the_first_client_may_send_urgent_data_at_once(opened: ExitStack) -> None:
    """Its socket inherits the options of the listening one when it connects, which is before there is a thread."""
    target = opened.enter_context(socket.create_server(("127.0.0.1", 0)))
    target.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
    target.settimeout(WAIT)
    tunnel = ManagedTunnel(relay.listen(":0"), relay.tcp(*target.getsockname()), paused=True)
    opened.enter_context(tunnel)
    client = opened.enter_context(socket.create_connection(tunnel.address, WAIT))
    for byte in b"a", b"b":
        client.send(byte, socket.MSG_OOB)
    tunnel.resume()
    far = opened.enter_context(target.accept()[0])
    far.settimeout(WAIT)
    assert receive_exactly(far, 2) == b"ab"


def test_a_change_is_in_force_for_the_first_client(
    opened: ExitStack, tunnel: ManagedTunnel, connect: Callable[[], socket.socket], serve: Callable[..., Server]
) -> None:
    changes.reroute(tunnel, relay.tcp(*serve(lambda client: client.sendall(b"another")).address), None)
    client = connect()
    assert tunnel.stats().accepted == 0, "it was paused and stays so"
    tunnel.resume()
    assert receive_exactly(client, 7) == b"another"


def test_who_asks_about_bans_and_quotas_does_not_wake_it(tunnel: ManagedTunnel) -> None:
    assert ([*ledgers.entries_of(tunnel)], ledgers.bans_of(tunnel, 9), ledgers.clear(tunnel, "bans", "::1")) == (
        [],
        [],
        0,
    )
    assert not has_thread()


@pytest.mark.parametrize("end", ["close", "drain"])
@pytest.mark.parametrize("resumed", [True, False])
def test_its_end_closes_listener_and_factory(echo_server: Server, resumed: bool, end: str) -> None:
    factory, ended = relay.tcp(*echo_server.address), threading.Event()
    with ManagedTunnel(relay.listen(":0"), factory, paused=True, name=NAME) as tunnel:
        if resumed:
            tunnel.resume()
        tunnel.close() if end == "close" else changes.start_close(tunnel, 60.0, ended.set)
        if end == "drain":
            assert ended.wait(WAIT)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(tunnel.address, WAIT).close()
        assert repr(tunnel).endswith("closed>")
        again = threading.Event()
        changes.start_close(tunnel, 0.0, again.set)
        assert again.wait(WAIT)
        for late in (tunnel.pause, tunnel.resume, tunnel.join, tunnel.close):
            late()
        assert not tunnel.ping(again.set) and not has_thread()
        other = relay.tcp("127.0.0.1", 9)
        changes.reroute(tunnel, other, None)  # it closes the factory that it does not take


def test_without_a_thread_the_first_client_waits(
    tunnel: ManagedTunnel,
    connect: Callable[[], socket.socket],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    start, failed = threading.Thread.start, threading.Semaphore(0)

    def none_left(thread: threading.Thread) -> None:
        if thread.name == NAME:
            failed.release()
            raise RuntimeError("can't start new thread")
        start(thread)

    tunnel.resume()
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", none_left)
        client = connect()
        for _ in range(2):  # it tries again
            assert failed.acquire(timeout=WAIT)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            changes.keep_warm(tunnel, 0)
    assert echoes(client)
    assert caplog.messages.count(f"{NAME}: cannot accept for now: can't start new thread") == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_disturbs_none(tunnel: ManagedTunnel, connect: Callable[[], socket.socket]) -> None:
    tunnel.resume()

    def work() -> None:
        assert repr(tunnel).endswith("closed>")
        tunnel.close()

    assert in_child(work) == 0
    assert echoes(connect())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_holds_no_listening_socket(tunnel: ManagedTunnel) -> None:
    (gate, go_on), (forked, has_forked) = os.pipe(), os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if not pid:
        os.close(go_on)
        os.write(has_forked, b"!")
        os.read(gate, 1)  # until the end of the test
        os._exit(0)
    try:
        os.read(forked, 1)
        tunnel.close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(tunnel.address, WAIT).close()
    finally:
        for end in (gate, go_on, forked, has_forked):
            os.close(end)
        os.waitpid(pid, 0)


def test_an_exchange_over_each_of_many(opened: ExitStack, echo_server: Server) -> None:
    """All of them share the thread that waits for their first clients."""
    made = [
        opened.enter_context(ManagedTunnel(relay.listen(":0"), relay.tcp(*echo_server.address), paused=True))
        for _ in range(50)
    ]
    before = threading.active_count()
    for one in made:
        one.resume()
    assert threading.active_count() == before
    for one in made:
        assert echoes(opened.enter_context(socket.create_connection(one.address, WAIT)))
