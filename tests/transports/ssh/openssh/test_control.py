"""The control socket's protocol, against a master that the test plays itself."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import WAIT, closed, receive_exactly, wait_until

from relay.addresses.values import TCPAddress, UnixAddress
from relay.errors import CarrierError
from relay.eventloop.loop import Loop
from relay.transports.ssh.openssh.control import Control, ControlError, close_forward, open_forward

HELLO = struct.pack(">III", 8, 1, 4)


class Rig:
    """A control connection in a loop of its own, and its other end."""

    def __init__(self, path: str) -> None:
        self.broken: list[Any] = []
        self.loop = Loop()
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            listener.listen()
            self.control = Control(self.loop, path, self.broken.append)
            self.end = listener.accept()[0]
        self.end.settimeout(WAIT)
        self.thread = threading.Thread(target=self.loop.run)
        self.thread.start()
        assert receive_exactly(self.end, 12) == HELLO

    def request(self, message: tuple[int, bytes]) -> tuple[bytes, list[Any]]:
        replies: list[Any] = []
        self.loop.call(lambda: self.control.request(message, replies.append))
        length = receive_exactly(self.end, 4)
        return receive_exactly(self.end, *struct.unpack(">I", length)), replies

    def answer(self, *words: int, text: bytes = b"") -> None:
        body = struct.pack(f">{len(words)}I", *words) + text
        self.end.sendall(struct.pack(">I", len(body)) + body)

    def close(self) -> None:
        self.loop.call(lambda: (self.control.close(), self.loop.stop()))
        self.thread.join(WAIT)
        self.loop.close()
        self.end.close()


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    yield from closed(Rig(str(tmp_path / "control")))


OPEN = open_forward(UnixAddress("/r/1"), TCPAddress("db", 5432), remote=False)


def test_a_request_is_written_as_the_protocol_says(rig: Rig) -> None:
    rig.end.sendall(HELLO)
    body, _ = rig.request(OPEN)
    wanted = struct.pack(">IIII", 0x10000006, 1, 1, 4) + b"/r/1" + struct.pack(">I", 0xFFFFFFFE)
    assert body == wanted + struct.pack(">I", 2) + b"db" + struct.pack(">I", 5432)
    body, _ = rig.request(close_forward(TCPAddress("", 0), UnixAddress("/r"), remote=True))
    wanted = struct.pack(">IIIII", 0x10000007, 2, 2, 0, 0)
    assert body == wanted + struct.pack(">I", 2) + b"/r" + struct.pack(">I", 0xFFFFFFFE)


def test_answers_reach_who_asked(rig: Rig) -> None:
    rig.end.sendall(HELLO)
    replies = [rig.request(OPEN)[1] for _ in range(4)]
    rig.answer(0x80000001, 2)
    rig.answer(0x80000007, 1, 4711)
    rig.answer(0x80000003, 3, 3, text=b"no!")
    rig.answer(0x80000002, 4, 3, text=b"not")
    wait_until(lambda: all(replies))
    assert replies[:2] == [[4711], [0]]
    assert [str(reply[0]) for reply in replies[2:]] == ["no!", "not"]
    assert isinstance(replies[2][0], ControlError)


def test_answers_may_come_in_pieces(rig: Rig) -> None:
    _, replies = rig.request(OPEN)
    for byte in HELLO + struct.pack(">III", 8, 0x80000001, 1):
        rig.end.sendall(bytes((byte,)))
    wait_until(lambda: replies)
    assert replies == [0]


GARBAGE = {
    "the end": b"",
    "another version": struct.pack(">III", 8, 1, 5),
    "no hello": struct.pack(">III", 8, 0x80000001, 1),
    "a length of 0": HELLO + struct.pack(">I", 0),
    "a length of 4 GiB": HELLO + struct.pack(">I", 0xFFFFFFFF),
    "an answer to nobody": HELLO + struct.pack(">III", 8, 0x80000001, 77),
    "a failure cut short": HELLO + struct.pack(">III", 8, 0x80000003, 1),
    "a port cut short": HELLO + struct.pack(">III", 8, 0x80000007, 1),
}


@pytest.mark.parametrize("words", GARBAGE.values(), ids=GARBAGE)
def test_garbage_breaks_it(rig: Rig, words: bytes) -> None:
    _, replies = rig.request(OPEN)
    rig.end.sendall(words)
    rig.end.shutdown(socket.SHUT_WR)
    wait_until(lambda: rig.broken)
    assert len(replies) == len(rig.broken) == 1
    assert isinstance(replies[0], (CarrierError, ControlError))
    assert isinstance(rig.broken[0], CarrierError)
    late: list[Any] = []
    rig.loop.call(lambda: rig.control.request(OPEN, late.append))
    wait_until(lambda: late)
    assert isinstance(late[0], CarrierError)


def test_an_unknown_answer_is_an_error(rig: Rig) -> None:
    _, replies = rig.request(OPEN)
    rig.end.sendall(HELLO)
    rig.answer(0x8000ABCD, 1)
    wait_until(lambda: replies)
    assert isinstance(replies[0], ControlError)
    assert rig.broken == []


def test_nobody_there(tmp_path: Path) -> None:
    loop = Loop()
    with pytest.raises(OSError, match="No such file"):
        Control(loop, str(tmp_path / "none"), print)
    loop.close()
