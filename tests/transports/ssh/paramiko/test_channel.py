"""The states of a channel: every row of the tables in ``relay.transports.ssh.paramiko.states``."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from helpers import closed

from relay.errors import ConnectError
from relay.eventloop.loop import Loop
from relay.transports.ssh.paramiko import channel as one_channel
from relay.transports.ssh.paramiko.channel import Channel
from relay.transports.ssh.paramiko.flow_control import WINDOW
from relay.transports.ssh.paramiko.messages import ADJUST, CLOSE, DATA, END
from relay.transports.ssh.paramiko.packets import PIECE, SLOTS
from relay.transports.ssh.paramiko.states import Receiving, Sending

NUMBER, REMOTE = 3, 7
PIECES = 40  # of data from the server: more than a socketpair holds, and less than the window


class Rig:
    """A channel between the owner of its stream and a server, which is the test."""

    def __init__(self) -> None:
        self.sent: list[int] = []  # the kinds of the messages to the server, without window adjustments
        self.freed: list[int] = []
        self.over = 0  # how often the channel was counted as over
        self.loop = Loop()
        buffer = memoryview(bytearray(PIECE * SLOTS))
        places = [buffer[start : start + PIECE] for start in range(0, PIECE * SLOTS, PIECE)]
        packetizer = SimpleNamespace(places=places, send_data=lambda remote, size: self.sent.append(DATA))
        self.mux: Any = SimpleNamespace(
            name="ssh://me@server", loop=self.loop, packetizer=packetizer, touched=[], held={}, live=set(), growth=0,
            round_trip=0.0,
            send=self._send, free=self.freed.append, one_less=self._one_less, is_held=lambda: False,
            holds_back=lambda: False,
        )  # fmt: skip
        self.channel = Channel(self.mux, NUMBER, REMOTE, WINDOW, PIECE, "db:1")
        self.stream = self.channel.hand_over()

    def _send(self, payload: bytes) -> None:
        kind, remote = struct.unpack_from(">BI", payload)
        assert remote == REMOTE
        if kind != ADJUST:
            self.sent.append(kind)

    def _one_less(self) -> None:
        self.over += 1

    @property
    def is_attached(self) -> bool:
        return self.channel in self.mux.live

    @property
    def left(self) -> int:
        return self.channel._window.left

    def turn(self) -> None:
        """Handle the events that are there."""
        self.loop.call(lambda: None)
        self.loop.turn()

    def close(self) -> None:
        self.channel.cut = True
        self.channel._detach()
        self.stream.close()
        self.loop._close_garbage()
        self.loop.close()


@pytest.fixture
def rig() -> Iterator[Rig]:
    yield from closed(Rig())


# Events.


def data(rig: Rig) -> None:
    rig.channel.receive(memoryview(b"x" * PIECE))
    rig.channel.deliver()


def eof(rig: Rig) -> None:
    rig.channel.end()


def close(rig: Rig) -> None:
    rig.channel.close()


def owner_sends(rig: Rig) -> None:
    rig.stream.socket.sendall(b"y")
    rig.turn()


def owner_ends(rig: Rig) -> None:
    rig.stream.socket.shutdown(1)
    rig.turn()


def owner_reads(rig: Rig) -> None:
    """The owner of the stream reads everything that is there, and the backlog follows."""
    while rig.channel._backlog:
        assert rig.stream.socket.recv(1 << 20)
        rig.turn()


def owner_hangs_up(rig: Rig) -> None:
    rig.stream.close()
    rig.turn()


def owner_resets(rig: Rig) -> None:
    rig.stream.reset()
    rig.turn()


def linger(rig: Rig) -> None:
    """The linger timer expires, twice: nothing was moved meanwhile."""
    for _ in range(2):
        rig.channel._expired(0.0)


# States: each function leads a fresh channel there.


def opened(rig: Rig) -> None:
    pass


def behind(rig: Rig) -> None:
    """OPEN, with a backlog."""
    for _ in range(PIECES):
        data(rig)
    assert rig.channel._backlog


def closed_window(rig: Rig) -> None:
    """OPEN, and the server accepts nothing more: the owner's EOF cannot be read."""
    rig.channel._credit = 0
    rig.channel.settle()


def discarding(rig: Rig) -> None:
    closed_window(rig)
    owner_hangs_up(rig)


def eof_pending(rig: Rig) -> None:
    behind(rig)
    eof(rig)


def eof_pending_and_closed_window(rig: Rig) -> None:
    eof_pending(rig)
    closed_window(rig)


def failing(rig: Rig) -> None:
    """EOF_PENDING, of a stream whose failure is known, as of a command."""
    eof_pending(rig)
    rig.channel.error = ConnectError("status 1")


def ended(rig: Rig) -> None:
    eof(rig)


def eof_sent(rig: Rig) -> None:
    owner_ends(rig)


def close_sent(rig: Rig) -> None:
    owner_ends(rig)
    eof(rig)


# The tables: how to get to the state, the event, the state after it, the messages to the server, whether the owner is
# still attached to the channel.

RECEIVING = [
    (opened, Receiving.OPEN, data, Receiving.OPEN, [], True),
    (behind, Receiving.OPEN, data, Receiving.OPEN, [], True),
    (closed_window, Receiving.OPEN, owner_hangs_up, Receiving.DISCARDING, [], True),
    (opened, Receiving.OPEN, eof, Receiving.ENDED, [], True),
    (behind, Receiving.OPEN, eof, Receiving.EOF_PENDING, [], True),
    (behind, Receiving.OPEN, close, Receiving.EOF_PENDING, [CLOSE], True),
    (opened, Receiving.OPEN, close, Receiving.ENDED, [CLOSE], False),
    (discarding, Receiving.DISCARDING, data, Receiving.DISCARDING, [], True),
    (discarding, Receiving.DISCARDING, eof, Receiving.ENDED, [], True),
    (discarding, Receiving.DISCARDING, close, Receiving.ENDED, [CLOSE], False),
    (eof_pending, Receiving.EOF_PENDING, owner_reads, Receiving.ENDED, [], True),
    (failing, Receiving.EOF_PENDING, owner_reads, Receiving.ENDED, [CLOSE], False),
    (eof_pending_and_closed_window, Receiving.EOF_PENDING, owner_hangs_up, Receiving.ENDED, [], True),
    (eof_pending, Receiving.EOF_PENDING, data, Receiving.EOF_PENDING, [], True),
    (eof_pending, Receiving.EOF_PENDING, eof, Receiving.EOF_PENDING, [], True),
    (eof_pending, Receiving.EOF_PENDING, close, Receiving.EOF_PENDING, [CLOSE], True),
    (ended, Receiving.ENDED, data, Receiving.ENDED, [], True),
    (ended, Receiving.ENDED, eof, Receiving.ENDED, [], True),
    (ended, Receiving.ENDED, close, Receiving.ENDED, [CLOSE], False),
    (opened, Receiving.OPEN, owner_resets, Receiving.ENDED, [CLOSE], False),
    (discarding, Receiving.DISCARDING, linger, Receiving.ENDED, [CLOSE], False),
    (behind, Receiving.OPEN, owner_resets, Receiving.ENDED, [CLOSE], False),
    (eof_pending, Receiving.EOF_PENDING, owner_resets, Receiving.ENDED, [CLOSE], False),
]

SENDING = [
    (opened, Sending.OPEN, owner_sends, Sending.OPEN, [DATA], []),
    (opened, Sending.OPEN, owner_ends, Sending.EOF_SENT, [END], []),
    (opened, Sending.OPEN, owner_resets, Sending.CLOSE_SENT, [CLOSE], []),
    (opened, Sending.OPEN, close, Sending.CLOSED, [CLOSE], [NUMBER]),
    (eof_sent, Sending.EOF_SENT, eof, Sending.CLOSE_SENT, [CLOSE], []),
    (eof_sent, Sending.EOF_SENT, owner_resets, Sending.CLOSE_SENT, [CLOSE], []),
    (eof_sent, Sending.EOF_SENT, close, Sending.CLOSED, [CLOSE], [NUMBER]),
    (close_sent, Sending.CLOSE_SENT, close, Sending.CLOSED, [], [NUMBER]),
    (opened, Sending.OPEN, owner_hangs_up, Sending.CLOSE_SENT, [END, CLOSE], []),
]

Step = Callable[[Rig], None]


def named(rows: list[Any]) -> list[Any]:
    return [pytest.param(*row, id=f"{row[0].__name__}-{row[2].__name__}") for row in rows]


@pytest.mark.parametrize(("lead", "state", "event", "after", "sent", "attached"), named(RECEIVING))
def test_a_row_of_the_receiving_table(
    rig: Rig, lead: Step, state: Receiving, event: Step, after: Receiving, sent: list[int], attached: bool
) -> None:
    lead(rig)
    assert rig.channel._receiving is state
    rig.sent.clear()
    event(rig)
    assert rig.channel._receiving is after
    assert rig.sent == sent
    assert rig.is_attached is attached
    if after is not Receiving.OPEN and after is not Receiving.EOF_PENDING:
        assert not rig.channel._backlog


@pytest.mark.parametrize(("lead", "state", "event", "after", "sent", "freed"), named(SENDING))
def test_a_row_of_the_sending_table(
    rig: Rig, lead: Step, state: Sending, event: Step, after: Sending, sent: list[int], freed: list[int]
) -> None:
    lead(rig)
    assert rig.channel._sending is state
    rig.sent.clear()
    event(rig)
    assert rig.channel._sending is after
    assert rig.sent == sent
    assert rig.freed == freed


def test_data_without_an_owner_are_dropped_and_given_back(rig: Rig) -> None:
    discarding(rig)
    for _ in range(4 * WINDOW // PIECE):  # more than the window allows at once
        data(rig)
    assert rig.channel.error is None and not rig.channel._backlog
    assert rig.left > WINDOW // 2


@pytest.mark.parametrize("lead", [opened, eof_sent, close_sent, discarding, eof_pending, ended])
def test_a_channel_is_over_once(rig: Rig, lead: Step, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(one_channel, "LINGER", 1000.0)
    lead(rig)
    assert not rig.over
    owner_resets(rig)
    close(rig)
    linger(rig)
    assert rig.over == 1


def test_after_close_no_request_is_answered(rig: Rig) -> None:
    close_sent(rig)
    rig.sent.clear()
    rig.channel.requested(b"any", True, memoryview(b""))
    assert not rig.sent
