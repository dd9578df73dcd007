"""The relay thread's half of a tunnel; what users see of it is in ``test_tunnel.py``."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import threading
import warnings
from collections.abc import Callable
from typing import Any

import pytest
from helpers import (
    BLOCK,
    WAIT,
    Certificates,
    Relayed,
    Server,
    Thread,
    black_hole,
    ended,
    ending,
    exchange,
    few_descriptors,
    receive_all,
    receive_exactly,
    send_and_end,
    wait_until,
)

import relay
from relay.engine import changes, relay_thread
from relay.engine.acceptor import own_listener
from relay.engine.options import TunnelOptions
from relay.engine.relay_thread import RelayThread
from relay.testing import FakeListener, pair


@pytest.fixture
def thread(listener: relay.Stream) -> RelayThread:
    options = TunnelOptions(name="one", timeout=None, connect_timeout=None, linger=None)
    return RelayThread(own_listener(listener), relay.tcp("127.0.0.1", 1), options)


def test_it_can_be_closed_in_its_own_thread(thread: RelayThread) -> None:
    closed = threading.Event()
    thread.loop.call(lambda: (thread.close(0.0), thread.join(), closed.set()))
    assert closed.wait(WAIT)
    thread.join(WAIT)
    assert thread.is_closed


class FailingPoller:
    """The poller of a loop, whose registration fails once."""

    def __init__(self, poller: Any, failing: int) -> None:
        self._poller = poller
        self.left = failing

    def __getattr__(self, name: str) -> Any:
        return getattr(self._poller, name)

    def register(self, descriptor: int, mask: int) -> None:
        self.left -= 1
        if not self.left:
            raise OSError(errno.ENOSPC, "No space left on device")
        self._poller.register(descriptor, mask)


@pytest.mark.parametrize("kind", ["tcp", "tls"])
@pytest.mark.parametrize("failing", [1, 2, 3, 4])
def test_a_socket_that_cannot_be_watched_ends_its_own_connection(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    echo_server: Server,
    certificates: Certificates,
    kind: str,
    failing: int,
) -> None:
    listen = f"tls://127.0.0.1:0?cert={certificates.cert}&key={certificates.key}" if kind == "tls" else "127.0.0.1:0"
    with relay.Tunnel(relay.listen(listen), echo_server.factory(), timeout=None) as inner:
        port = inner.address[1]
        target = f"tls://127.0.0.1:{port}?servername=localhost&ca={certificates.ca}" if kind == "tls" else str(port)
        with relay.Tunnel(relay.listen("127.0.0.1:0"), relay.target(target), timeout=None, name="it") as tunnel:
            with socket.create_connection(tunnel.address, WAIT) as first:
                repeated(first)
                loop = tunnel._relay.loop
                poller = FailingPoller(loop.poller, failing)
                monkeypatch.setattr(loop, "poller", poller)
                while poller.left > 0:
                    with contextlib.suppress(ConnectionError), socket.create_connection(tunnel.address, WAIT) as client:
                        repeated(client)
                wait_until(lambda: tunnel.stats().active == 1)
                reasons = {record.reason for record in tunnel.recent()}
                assert reasons & ({"overloaded"} if kind == "tcp" else {"overloaded", "factory_error", "unreachable"})
                text = "it: the system cannot watch another socket: No space left on device (client 127.0.0.1:"
                assert ("overloaded" in reasons) is any(message.startswith(text) for message in caplog.messages)
                repeated(first)


# -- its limits, its timers and its end, as its clients see them -------------------------------------------------------


def heard(end: socket.socket) -> bytes:
    """Everything up to the end of a stream, or nothing if it was reset."""
    try:
        return receive_all(end)
    except ConnectionResetError:
        return b""


def test_a_call_that_outlasts_its_client_keeps_its_place(relayed: Callable[..., Relayed]) -> None:
    """A factory that blocks is called for as many clients at a time as there may be connections."""
    calls, go = [], threading.Event()

    def factory() -> socket.socket:
        calls.append(None)
        assert go.wait(WAIT)
        return socket.create_connection(made.target.getsockname(), WAIT)

    made = relayed(factory, nconnect=2)
    leaving = [made.client() for _ in range(2)]
    wait_until(lambda: len(calls) == 2)
    for client in leaving:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.close()
    assert ended(made.tunnel, 2) == ["client_reset"] * 2
    client = made.client()
    for _ in range(2):  # turns of the relay thread
        changes.in_thread(made.tunnel, lambda thread, now: None)
    assert (made.tunnel.stats().accepted, len(calls)) == (2, 2)
    send_and_end(client, b"whole")
    go.set()
    assert sorted(heard(made.accept()) for _ in range(3)) == [b"", b"", b"whole"]


def test_keepalive_costs_a_short_connection_nothing(echo_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_thread, "LOOK", 10 * WAIT)
    client, accepted = pair(socket.AF_INET)
    fake = FakeListener()
    fake.put(accepted)
    with client, relay.Tunnel(fake, echo_server.factory()):
        repeated(client)
        repeated(client)
        assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 0


def test_what_it_moves_in_bulk_stays_in_the_kernel(relayed: Callable[..., Relayed]) -> None:
    made = relayed()
    client, far = made.connect()
    sending = Thread(send_and_end, client, BLOCK * 8)
    assert len(receive_all(far)) == 8 * len(BLOCK)
    sending.result()
    far.close()
    ended(made.tunnel)
    assert made.tunnel.recent()[0].engine == ("splice" if hasattr(os, "splice") else "copy")


def test_the_process_of_a_client_is_asked_of_its_own_socket_only(echo_server: Server) -> None:
    """The socket of a stream belongs to what brings it."""
    fake = FakeListener()
    with relay.Tunnel(fake, echo_server.factory()) as tunnel, fake.connect() as client:
        client.settimeout(WAIT)
        repeated(client)
        assert tunnel.connections()[0].identity is None


@pytest.mark.parametrize("blocks", [True, False])
def test_what_closes_a_stream_is_called_where_it_may_block(relayed: Callable[..., Relayed], blocks: bool) -> None:
    threads: list[str] = []

    def on_close() -> None:
        threads.append(threading.current_thread().name)

    def factory() -> relay.Stream:
        return relay.Stream(socket.create_connection(made.target.getsockname(), WAIT), on_close=on_close)

    made = relayed(factory, name="it")
    if not blocks:
        on_close.nonblocking = True  # type: ignore[attr-defined]
    for is_clean in (True, False):
        client, far = made.connect()
        exchange(client, far)
        if is_clean:
            far.close()
            client.close()
        else:
            made.tunnel.kill(made.tunnel.connections()[0].id)
            assert ending(far) == "reset"
        wait_until(lambda: len(threads) == (1 if is_clean else 2))  # noqa: B023
    assert [name == "it" for name in threads] == [not blocks] * 2


def test_a_file_of_a_stream_does_not_keep_it_open(relayed: Callable[..., Relayed]) -> None:
    files: list[Any] = []

    def factory() -> socket.socket:
        made_one = socket.create_connection(made.target.getsockname(), WAIT)
        files.append((made_one, made_one.makefile("rb")))
        return made_one

    made = relayed(factory)
    client, far = made.connect()
    exchange(client, far)
    far.close()
    client.close()
    [(ours, file)] = files
    with file:
        wait_until(lambda: ours.fileno() < 0)


def test_its_drain_keeps_no_warm_stream(relayed: Callable[..., Relayed]) -> None:
    made = relayed(warm=1)
    far = made.accept()
    wait_until(lambda: made.tunnel.metrics().warm.ready == 1)  # type: ignore[union-attr]
    client = made.client()
    exchange(client, far)
    spare = made.accept()
    wait_until(lambda: made.tunnel.metrics().warm.ready == 1)  # type: ignore[union-attr]
    closing = Thread(made.tunnel.close, WAIT)
    assert spare.recv(1) == b""
    exchange(client, far)
    assert made.tunnel.metrics().warm.ready == 0  # type: ignore[union-attr]
    client.close()
    far.close()
    closing.result()


def test_at_its_end_no_client_that_waits_for_a_slot_gets_one(relayed: Callable[..., Relayed]) -> None:
    calls: list[Any] = []

    def factory(destination: Any) -> socket.socket:
        calls.append(destination)
        return socket.create_connection(made.target.getsockname(), WAIT)

    made = relayed(factory)
    receive = relay.socks_listen("127.0.0.1", 0)
    with relay.Tunnel(receive, factory, nconnect=1) as tunnel, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(socket.create_connection(tunnel.address, WAIT)) for _ in range(3)]
        for client in clients:
            client.sendall(b"\5\1\0")
            assert receive_exactly(client, 2) == b"\5\0"
        far = None
        for client in clients:
            client.sendall(b"\5\1\0\1\x7f\0\0\1\0\x50")
            far = far or made.accept()
        wait_until(lambda: [one.state.text for one in tunnel._relay.all_connections] == ["open", "queued", "queued"])
        tunnel.close()
        assert {ending(client) for client in clients[1:]} == {"reset"}
        assert ending(far) == "reset"
    assert len(calls) == 1


def test_a_client_that_ends_counts_also_beside_one_that_is_half_open(echo_server: Server) -> None:
    receive = relay.socks_listen("127.0.0.1", 0)
    with relay.Tunnel(receive, echo_server.factory()) as tunnel, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(socket.create_connection(tunnel.address, WAIT)) for _ in range(2)]
        clients[1].sendall(b"\5\1\0" + b"\5\1\0\1\x7f\0\0\1\0\x50")
        assert len(receive_exactly(clients[1], 12)) == 12
        repeated(clients[1])
        clients[1].close()
        wait_until(lambda: [record.reason for record in tunnel.recent()] == ["done"])


# -- descriptors -------------------------------------------------------------------------------------------------------


def test_a_client_that_takes_the_last_descriptor_gets_a_stream_with_the_spare_one(
    relayed: Callable[..., Relayed],
) -> None:
    made = relayed()
    exchange(*made.connect())  # the spare descriptor is open since
    with socket.socket() as client:
        client.settimeout(WAIT)
        with few_descriptors(1):
            client.connect(made.tunnel.address)
            wait_until(lambda: [record.state for record in made.tunnel.connections()] == ["open"] * 2)
        exchange(client, made.accept())


def test_a_tunnel_that_finds_no_descriptor_leaves_none_open(echo_server: Server) -> None:
    relay.Tunnel(relay.listen(":0"), echo_server.factory()).close()  # what is imported late is there
    with socket.create_server(("127.0.0.1", 0)) as listening:
        factory, left = echo_server.factory(), 0
        while True:
            with few_descriptors(left):
                try:
                    tunnel = relay.Tunnel(listening, factory)
                    break
                except OSError as error:
                    assert error.errno == errno.EMFILE
                    for descriptor in [os.dup(listening.fileno()) for _ in range(left)]:
                        os.close(descriptor)
            left += 1
        with tunnel, socket.create_connection(tunnel.address, WAIT) as client:
            repeated(client)
        assert left >= 2, "one for its epoll, and one for its wake"


def left_in_a_child(known: set[int]) -> list[str]:
    """Return what a forked child has open beside these descriptors."""
    report, answer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # a fork beside threads is what is tested
        pid = os.fork()
    if not pid:
        with contextlib.suppress(BaseException):
            left = open_descriptors() - known - {report, answer}
            os.write(answer, b"".join(b"%d %s\n" % (one, os.fsencode(os.readlink(f"{FDS}/{one}"))) for one in left))
            os.write(answer, b"end")
        os._exit(0)
    os.close(answer)
    try:
        with open(report, encoding="utf-8") as lines:
            *left, end = lines.read().split("\n")
    finally:
        os.waitpid(pid, 0)
    assert end == "end"
    return left


FDS = "/proc/self/fd"


def open_descriptors() -> set[int]:
    return {int(name) for name in os.listdir(FDS) if os.path.exists(f"{FDS}/{name}")}


@pytest.mark.skipif(not os.path.isdir(FDS), reason="this machine has no list of descriptors")
@pytest.mark.parametrize("kind", ["tcp", "unix", "tls", "calling", "connecting"])
def test_a_forked_child_has_no_descriptor_of_a_tunnel(relayed: Callable[..., Relayed], kind: str) -> None:
    """Neither of its listener, of open connections and those without a stream, of warm streams, nor of its loop."""
    go = threading.Event()

    def factory() -> socket.socket:
        assert go.wait(WAIT)
        return socket.create_connection(made.target.getsockname(), WAIT)

    exchange(*relayed().connect())  # what is made once in a process is there
    with black_hole() as full:
        before = open_descriptors()
        if kind == "calling":
            made = relayed(factory)
            ends = [made.client(), made.client()]
        elif kind == "connecting":
            made = relayed(relay.tcp(*full.getsockname()))
            ends = [made.client(), made.client()]
        else:
            made = relayed(way_in=kind, warm=1)
            far = made.accept()
            wait_until(lambda: made.tunnel.metrics().warm.ready == 1)  # type: ignore[union-attr]
            ends = [made.client(), far]
            exchange(*ends)
            ends.append(made.accept())
            wait_until(lambda: made.tunnel.metrics().warm.ready == 1)  # type: ignore[union-attr]
        wait_until(lambda: made.tunnel.stats().active == (2 if kind in ("calling", "connecting") else 1))
        turned = threading.Event()
        assert made.tunnel.ping(turned.set)
        assert turned.wait(WAIT)  # a client counts before its socket to the target is known to the tunnel
        assert left_in_a_child(before | {end.fileno() for end in (made.target, *ends)}) == []
        go.set()
        if kind in ("tcp", "unix", "tls"):
            exchange(*ends[:2])  # and the parent's are whole


def repeated(client: socket.socket) -> None:
    """Check that the far end repeats what a client says."""
    client.sendall(b"ping")
    if receive_exactly(client, 4) != b"ping":
        raise ConnectionResetError
