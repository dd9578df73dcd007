"""Acknowledging at once what arrives on a connection that another process reads: by events, and never by looking."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
from helpers import closed

from relay.eventloop.loop import Loop
from relay.transports.ssh.openssh import quickack
from relay.transports.ssh.openssh.quickack import QuickAck


class Rig:
    """A TCP connection whose near end is watched, on a loop that the test turns."""

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.far = socket.create_connection(listener.getsockname())
            self.near, _ = listener.accept()
        self.loop = Loop()
        self.quick_ack = QuickAck(self.loop)
        self.times: list[float] = []  # of acknowledgements

    def begin(self) -> None:
        """Watch the connection, and record the acknowledgements instead of sending them."""
        self.quick_ack.begin(self.near, -1)
        self.quick_ack._acknowledge = lambda connection: self.times.append(time.monotonic())  # type: ignore[method-assign]
        self.turn_until(1)  # the event that arming causes
        assert self.is_waiting

    def turn_until(self, count: int) -> None:
        """Turn the loop until there were so many acknowledgements."""
        while len(self.times) < count:
            self.loop.turn()

    @property
    def is_waiting(self) -> bool:
        """Return whether nothing is due: the next turn would wait for ever."""
        return self.loop.timers.first == float("inf") and not self.loop.poller.poll(0)

    def close(self) -> None:
        self.quick_ack.close()
        self.loop._close_garbage()
        self.loop.close()
        self.near.close()
        self.far.close()


@pytest.fixture
def rig() -> Iterator[Rig]:
    yield from closed(Rig())


def test_data_are_acknowledged_when_they_arrive_and_once_more_after_a_rest(rig: Rig) -> None:
    rig.begin()
    rig.far.sendall(b"x")
    rig.turn_until(2)
    assert not rig.is_waiting  # but resting
    rig.turn_until(3)
    assert rig.times[2] - rig.times[1] >= quickack._REST * 0.9
    assert rig.is_waiting  # although the data are not read


def test_a_busy_connection_causes_one_event_in_a_rest(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quickack, "_REST", 1000.0)
    rig.begin()
    rig.far.sendall(b"x")
    rig.turn_until(2)
    rig.far.sendall(b"y")
    assert not rig.loop.poller.poll(0.05)


def test_the_end_of_the_connection_ends_the_watch(rig: Rig) -> None:
    rig.begin()
    rig.near.shutdown(socket.SHUT_WR)
    rig.far.close()
    while rig.quick_ack._socket is not None:
        rig.loop.turn()
    assert rig.is_waiting


def test_the_option_is_set_on_the_connection(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """tcp(7): reading the option tells whether the kernel acknowledges at once."""
    rig.quick_ack.begin(rig.near, -1)
    rig.loop.turn()  # the event that arming causes
    rig.near.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)
    rig.far.sendall(b"x")
    while not rig.near.getsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK):
        rig.loop.turn()


def test_only_tcp_is_watched(rig: Rig) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        rig.quick_ack.begin(ours, -1)
        assert rig.quick_ack._socket is None
        assert rig.is_waiting


def test_without_epoll_nothing_is_watched(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quickack, "_EDGE", 0)
    rig.quick_ack.begin(rig.near, -1)
    assert rig.quick_ack._socket is None


PROGRAM = "import os, socket, sys; os.dup2(int(sys.argv[1]), 5); print(flush=True); sys.stdin.read()"


@pytest.mark.parametrize("has_connection", [True, False])
def test_the_connection_of_a_child_is_found(rig: Rig, has_connection: bool) -> None:
    pair: Any = (rig.near, rig.far) if has_connection else socket.socketpair()
    with pair[0], pair[1]:
        number = pair[0].fileno()
        words = [sys.executable, "-c", PROGRAM, str(number)]
        with subprocess.Popen(words, pass_fds=[number], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            child.stdout.readline()
            process = os.pidfd_open(child.pid)
            try:
                rig.quick_ack.begin(None, process)
            finally:
                os.close(process)
            found = rig.quick_ack._socket
            assert (found is not None) == has_connection
            if found is not None:
                assert found.getpeername() == rig.far.getsockname()
            child.communicate()
