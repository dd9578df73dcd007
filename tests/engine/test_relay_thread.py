"""The relay thread's half of a tunnel; what users see of it is in ``test_tunnel.py``."""

from __future__ import annotations

import contextlib
import errno
import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest
from helpers import WAIT, Certificates, Relayed, Server, exchange, receive_exactly, wait_until

import relay
from relay.engine import relay_thread
from relay.engine.acceptor import own_listener
from relay.engine.options import TunnelOptions
from relay.engine.relay_thread import RelayThread


def test_short_connections_are_spared_the_cost_of_keep_alive(
    relayed: Callable[..., Relayed], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[int] = []
    monkeypatch.setattr(relay_thread, "_KEEPALIVE_AFTER", 0.2)
    monkeypatch.setattr("relay.engine.connection.keep_alive", lambda sock: kept.append(sock.fileno()))
    made = relayed()
    self_contained = made.connect()
    exchange(*self_contained)
    wait_until(lambda: len(kept) == 2)
    again = made.connect()
    exchange(*again)
    wait_until(lambda: len(kept) == 4)
    assert len(set(kept)) == 4


@pytest.fixture
def thread(listener: relay.Stream) -> RelayThread:
    options = TunnelOptions(name="one", timeout=None, connect_timeout=None, linger=None)
    return RelayThread(own_listener(listener), relay.tcp("127.0.0.1", 1), options)


def test_its_state_and_who_waits_for_its_end(thread: RelayThread) -> None:
    over = threading.Event()
    thread.end_callbacks.add(over.set)
    assert (thread.state, thread.count, thread.is_closed) == ("open", 0, False)
    thread.pause(False)
    assert thread.state == "paused"
    thread.resume()
    assert thread.state == "open"
    thread.start_close(0.0)
    assert over.wait(WAIT)
    thread.join(WAIT)
    assert (thread.state, thread.is_closing, thread.is_closed) == ("closed", True, True)


def test_it_can_be_closed_in_its_own_thread(thread: RelayThread) -> None:
    closed = threading.Event()
    thread.loop.call(lambda: (thread.close(0.0), thread.join(), closed.set()))
    assert closed.wait(WAIT)
    thread.join(WAIT)
    assert thread.is_closed


class Kind(RelayThread):
    """A kind of relay thread: it notes its hooks, and whether they are called in the relay thread."""

    def __init__(self, *arguments: Any) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.strays: list[str] = []
        super().__init__(*arguments)

    def _note(self, name: str, *more: Any) -> None:
        self.calls.append((name, *more))
        if not self.is_on_relay_thread():
            self.strays.append(name)

    def on_start(self, now: float) -> None:
        self._note("start", self.listening)

    def on_busy(self) -> None:
        self._note("busy", self.count)

    def on_idle(self, now: float) -> None:
        self._note("idle", [record.reason for record in self.recent()], self.count)

    def on_close(self, drain: float | None, now: float) -> None:
        self._note("close", drain, self.is_closing)


def test_a_kind_of_relay_thread_is_called_at_each_step_in_the_relay_thread(listener: relay.Stream) -> None:
    address = listener.getsockname()
    thread = Kind(own_listener(listener), relay.tcp("127.0.0.1", 1), TunnelOptions(name="one"))
    try:
        with contextlib.suppress(ConnectionError):  # it may be reset before it is connected
            socket.create_connection(address, WAIT).close()
        wait_until(lambda: any(call[0] == "idle" for call in list(thread.calls)))
    finally:
        thread.close(5.0)
    thread.close(0.0)  # the second client gets no reply
    assert thread.calls == [("start", False), ("busy", 0), ("idle", ["refused"], 0), ("close", 5.0, False)]
    assert not thread.strays


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
    monkeypatch: pytest.MonkeyPatch, echo_server: Server, certificates: Certificates, kind: str, failing: int
) -> None:
    listen = f"tls://127.0.0.1:0?cert={certificates.cert}&key={certificates.key}" if kind == "tls" else "127.0.0.1:0"
    with relay.Tunnel(relay.listen(listen), echo_server.factory(), timeout=None) as inner:
        port = inner.address[1]
        target = f"tls://127.0.0.1:{port}?servername=localhost&ca={certificates.ca}" if kind == "tls" else str(port)
        with relay.Tunnel(relay.listen("127.0.0.1:0"), relay.target(target), timeout=None) as tunnel:
            with socket.create_connection(tunnel.address, WAIT) as first:
                repeated(first)
                loop = tunnel._relay.loop
                poller = FailingPoller(loop.poller, failing)
                monkeypatch.setattr(loop, "poller", poller)
                while poller.left > 0:
                    with contextlib.suppress(ConnectionError), socket.create_connection(tunnel.address, WAIT) as client:
                        repeated(client)
                wait_until(lambda: tunnel.stats().active == 1)
                assert {record.reason for record in tunnel.recent()} & {"overloaded", "factory_error", "unreachable"}
                repeated(first)


def repeated(client: socket.socket) -> None:
    """Check that the far end repeats what a client says."""
    client.sendall(b"ping")
    if receive_exactly(client, 4) != b"ping":
        raise ConnectionResetError
