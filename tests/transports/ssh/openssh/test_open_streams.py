"""``relay.transports.ssh.openssh.open_streams``: which streams are open, and who waits for their ends."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from relay.transports.ssh.openssh.open_streams import OpenStreams
from relay.transports.ssh.openssh.opening import Opening


class Rig:
    """Streams of one ssh, and what was called."""

    def __init__(self) -> None:
        self.called: list[str] = []
        self.open = OpenStreams(lambda call: call())
        self.sockets: list[socket.socket] = []

    def stream(self, *, alone: bool = False, has_owner: bool = True) -> tuple[Opening, socket.socket, socket.socket]:
        """An open stream: with its socket, and ssh's end."""
        owner: Any = SimpleNamespace(server="ssh://server")
        opening = Opening(owner, "there:1", alone=alone)
        ours, theirs = socket.socketpair()
        self.sockets += [ours, theirs]
        if has_owner:
            opening.stream(ours)
        self.open.add(opening)
        return opening, ours, theirs

    def wait(self) -> None:
        """Wait as the exit does."""
        self.open.when_sent(lambda: self.called.append("sent"))


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig()
    yield made
    for one in made.sockets:
        one.close()


def test_idle_is_when_the_last_one_has_ended(rig: Rig) -> None:
    first, second = rig.stream()[0], rig.stream()[0]
    rig.open.when_idle(lambda: rig.called.append("idle"))
    rig.open.remove(first)
    rig.open.remove(first)
    assert not rig.called and len(rig.open) == 1
    rig.open.remove(second)
    assert rig.called == ["idle"]


def test_the_end_of_ssh_is_idle_and_sends_no_more(rig: Rig) -> None:
    rig.stream()[1].close()
    rig.open.when_idle(lambda: rig.called.append("idle"))
    rig.wait()
    rig.open.clear()
    assert rig.called == ["sent", "idle"] and not len(rig.open)


def test_a_stream_that_its_owner_has_closed_is_waited_for(rig: Rig) -> None:
    closed, ours, _ = rig.stream()
    rig.stream()  # stays open
    rig.stream(has_owner=False)
    ours.close()
    rig.wait()
    assert not rig.called
    rig.open.remove(closed)
    assert rig.called == ["sent"]


def test_a_socket_without_another_owner_counts_as_closed(rig: Rig) -> None:
    opening, ours, theirs = rig.stream(alone=True)
    ours.sendall(b"last words")
    rig.wait()
    assert not rig.called
    assert theirs.recv(100) == b"last words" and theirs.recv(100) == b""
    rig.open.remove(opening)
    assert rig.called == ["sent"]


def test_with_open_streams_only_nothing_is_waited_for(rig: Rig) -> None:
    rig.stream()
    rig.wait()
    assert rig.called == ["sent"]
