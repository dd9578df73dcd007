"""``relay.targets.probe``: what a target has to answer; what a conversation leaves when it ends otherwise.

The kinds of probes and their outcomes are in ``tests/operations/test_probing.py``.
"""

import socket
import time

import pytest
from helpers import WAIT, ending, wait_until

from relay.eventloop.background import IOThread
from relay.streams.dialer import Dialer
from relay.streams.promise import Promise
from relay.streams.stream import Stream
from relay.targets.probe import answered


class Pair(Dialer):
    """A target whose far end the test has."""

    def __init__(self):
        super().__init__("t")
        self.near, self.far = socket.socketpair()
        self.far.settimeout(WAIT)

    def dial(self, deadline, done, **_):
        done(Stream(self.near))
        return lambda: None


@pytest.fixture
def pair():
    made = Pair()
    yield made
    made.far.close()
    wait_until(lambda: not IOThread.clients())


def test_a_connect_needs_no_answer(pair):
    assert answered(pair, "connect", "t") is pair
    pair.near.close()


def test_a_conversation_that_is_given_up_closes_its_stream(pair):
    answer = Promise()
    give_up = answered(pair, "http://a", "t").dial(time.monotonic() + WAIT, answer.put)
    assert pair.far.recv(4096).startswith(b"GET /a ")
    give_up()
    assert ending(pair.far) == "end of file"
    answer.refuse()


@pytest.mark.parametrize("pieces", [[b"HTTP/1.1 2", b"04\r", b"\n"], [b"HTTP/1.0 200"]])
def test_an_answer_in_pieces(pair, pieces):
    answer = Promise()
    answered(pair, "http://a", "t").dial(time.monotonic() + WAIT, answer.put)
    pair.far.recv(4096)
    for piece in pieces:
        pair.far.sendall(piece)
    pair.far.shutdown(socket.SHUT_WR)
    answer.get(time.monotonic() + WAIT, None).close()


def test_a_stream_that_cannot_be_used_is_an_error(pair):
    pair.near.shutdown(socket.SHUT_WR)
    answer = Promise()
    answered(pair, "http://a", "t").dial(time.monotonic() + WAIT, answer.put)
    with pytest.raises(OSError, match="Broken pipe"):
        answer.get(time.monotonic() + WAIT, None)
    wait_until(lambda: pair.near.fileno() == -1)  # after the turn of the loop
