"""A greeting whose other end answers before it has heard everything."""

import queue
import socket
import time

import pytest
from helpers import WAIT, receive_exactly

from relay.streams.stream import Stream
from relay.transports.resume.greeting import Greeting
from relay.transports.resume.wire import NEW, REFUSED, Answer, read_answer

HELLO = bytes(range(256)) * 4096  # more than the socket takes at once
ACCEPTED = Answer(NEW, b"t" * 16, window=1000, kept=30)


@pytest.fixture
def said():
    """The outcomes of the greeting: an answer or an error, and what came behind it."""
    return queue.SimpleQueue()


@pytest.fixture
def other(said):
    """The other end of a carrier on which the greeting has begun."""
    near, far = socket.socketpair()
    near.setblocking(False)
    far.settimeout(WAIT)
    with near, far:
        Greeting(Stream(near), HELLO, read_answer, time.monotonic() + WAIT, lambda *outcome: said.put(outcome))
        assert far.recv(1000) == HELLO[:1000]
        yield far


def test_an_early_answer_counts_once_everything_is_said(other, said):
    other.sendall(ACCEPTED.encode() + b"behind it")
    assert receive_exactly(other, len(HELLO) - 1000) == HELLO[1000:]
    answer, rest = said.get(timeout=WAIT)
    assert (answer, rest) == (ACCEPTED, b"behind it")


def test_a_refusal_counts_though_the_other_end_hears_no_more(other, said):
    other.sendall(Answer(REFUSED, word="limit").encode())
    other.close()
    answer, _ = said.get(timeout=WAIT)
    assert (answer.kind, answer.word) == (REFUSED, "limit")


def test_it_takes_no_more_than_the_answer_of_an_end_that_does_not_listen(other, said):
    """Else it would hold whatever such an end sends."""
    other.setblocking(False)
    sent = 0
    with pytest.raises(BlockingIOError):
        while sent < 16 << 20:
            sent += other.send(bytes(65536))
    assert said.empty()
    other.close()
    assert isinstance(said.get(timeout=WAIT)[0], OSError)
