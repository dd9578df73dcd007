"""One listener of ssh, played by the test: who is connected when."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from relay.addresses.values import TCPAddress
from relay.errors import CarrierError, ConnectError
from relay.streams.stream import Stream
from relay.transports.ssh.openssh.local_forward import LocalForward
from relay.transports.ssh.openssh.opening import Opening

PLACE = TCPAddress("db.internal", 5432)


class Owner:
    """Notes the calls."""

    server = "ssh://me@bastion"

    def __init__(self) -> None:
        self.told: list[Any] = []

    def answered(self, opening: Opening) -> None:
        pass

    def over(self, opening: Opening) -> None:
        self.told.append(opening)

    def soon(self, call: Any, /) -> None:
        call()

    def unsaid(self, opening: Opening) -> ConnectError | CarrierError | None:
        return CarrierError("unsaid")

    def opening(self) -> Opening:
        return Opening(self, "db", self.told.append)


@pytest.fixture
def listening(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "1"))
        listener.listen(0)  # of a Unix socket: one may wait
        yield listener


@pytest.fixture
def forward(listening: socket.socket) -> LocalForward:
    made = LocalForward(PLACE, listening.getsockname())
    made.is_ready = True
    return made


def test_nothing_is_connected_before_it_is_ready(forward: LocalForward) -> None:
    forward.is_ready = False
    opening = Owner().opening()
    assert forward.connect(opening) is None
    assert list(forward.waiting) == [opening]
    assert forward.is_busy
    assert not forward.wants_help


def test_who_comes_later_waits_behind_those_who_wait(forward: LocalForward, listening: socket.socket) -> None:
    owner = Owner()
    first, second, third, fourth = (owner.opening() for _ in range(4))
    made = forward.connect(first)
    assert made is not None
    assert forward.connect(second) is None  # the backlog is full
    assert forward.wants_help
    listening.accept()[0].close()
    assert forward.connect(third) is None
    assert forward.next_waiting() is second
    late = forward.connect_blocking()
    assert isinstance(late, socket.socket)
    listening.accept()[0].close()
    assert forward.next_waiting() is third
    assert forward.connect(fourth) is None  # another thread is at it
    assert list(forward.expected) == [first, second, third]
    forward.not_connected(third, OSError(111, "refused"))
    assert forward.next_waiting() is fourth
    assert forward.next_waiting() is None
    assert not forward.is_connecting
    assert list(forward.expected) == [first, second, fourth]
    made.close()
    late.close()


def test_a_listener_that_is_gone_is_a_lost_carrier(forward: LocalForward, listening: socket.socket) -> None:
    listening.close()
    owner = Owner()
    opening = owner.opening()
    assert forward.connect(opening) is None
    assert isinstance(owner.told[0], CarrierError)
    assert owner.told[1:] == [opening]
    assert not forward.is_busy
    assert isinstance(forward.connect_blocking(), OSError)


def test_answers_that_come_before_the_socket_are_kept(forward: LocalForward) -> None:
    """The thread that catches up is slower than ssh."""
    for patient in (False, True):
        owner = Owner()
        opening = Opening(owner, "db", owner.told.append, patient=patient)
        opening.opened()
        assert owner.told == []
        ours, theirs = socket.socketpair()
        with ours, theirs:
            done = opening.connected(ours)
            assert done is not None
            done(opening.stream(ours))
        assert len(owner.told) == 1
        assert isinstance(owner.told[0], Stream)


@pytest.mark.parametrize("end", ["refused", "give_up", "expire"])
def test_sockets_that_come_too_late_are_closed(end: str) -> None:
    owner = Owner()
    opening = owner.opening()
    getattr(opening, end)(*(("connect failed",) if end == "refused" else ()))
    ours, theirs = socket.socketpair()
    with theirs:
        assert opening.connected(ours) is None
        assert ours.fileno() == -1
    assert [type(one).__name__ for one in owner.told] == ([] if end == "give_up" else ["ConnectError"])
