"""The relay thread's half of a tunnel; what users see of it is in ``test_tunnel.py``."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest
from helpers import WAIT, Relayed, exchange, wait_until

import relay
from relay.engine import relay_thread
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
    limits = relay_thread.Limits(None, None, None, None)
    return RelayThread(listener, relay.tcp("127.0.0.1", 1), -1, limits, "one", None)


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
    limits = relay_thread.Limits(None, None, None, None)
    address = listener.getsockname()
    thread = Kind(listener, relay.tcp("127.0.0.1", 1), -1, limits, "one", None)
    try:
        with contextlib.suppress(ConnectionError):  # it may be reset before it is connected
            socket.create_connection(address, WAIT).close()
        wait_until(lambda: any(call[0] == "idle" for call in list(thread.calls)))
    finally:
        thread.close(5.0)
    thread.close(0.0)  # the second client gets no reply
    assert thread.calls == [("start", False), ("busy", 0), ("idle", ["refused"], 0), ("close", 5.0, False)]
    assert not thread.strays
