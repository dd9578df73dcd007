"""``relay.transports.proxies.negotiation``: questions and answers on one socket, whatever comes, and nothing left."""

import os
import queue
import socket
import threading
import time

import pytest
from helpers import WAIT, ending, exchange, makes, receive_exactly, wait_until
from proxy_world import members, tcp_pair

import relay
from relay.errors import CarrierError, ConnectError
from relay.eventloop.background import IOThread
from relay.transports.proxies.negotiation import Negotiation, Question

LATE = "no answer in time"


def line(data):
    """An answer is a line."""
    return data.find(b"\n") + 1


def ask(*questions, heard=None, error=None):
    """A dialogue; ``heard`` takes the answers, ``error`` is what they come to."""
    for question in questions:
        answer = yield Question(question, line, LATE)
        if heard is not None:
            heard.append(answer)
    if error is not None:
        raise error


def lost(error):
    """Return what the stream's end comes to."""
    return ConnectError(f"lost: {error!r}")


class Rig:
    """A negotiation; the test is the proxy."""

    def __init__(self, kind="tcp", *questions, seconds=WAIT, prepare=None, **more):
        near, self.far = socket.socketpair() if kind == "unix" else tcp_pair()
        near.setblocking(False)
        self.far.settimeout(WAIT)
        self.over = threading.Event()
        self.stream = relay.Stream(near, on_close=self.over.set)
        if prepare is not None:
            prepare(self.stream)
        self.told = queue.SimpleQueue()
        self.heard = []
        dialogue = ask(*(questions or (b"one\n", b"two\n")), heard=self.heard, **more)
        deadline = None if seconds is None else time.monotonic() + seconds
        self.negotiation = Negotiation(self.stream, dialogue, deadline, self.told.put, lost)

    def outcome(self):
        outcome = self.told.get(timeout=WAIT)
        if isinstance(outcome, OSError):
            assert self.over.wait(WAIT)
        else:
            outcome.socket.settimeout(WAIT)
        wait_until(lambda: members() == 0)
        return outcome

    def close(self):
        self.far.close()
        self.stream.close()


@pytest.fixture
def make():
    """Makes rigs that end with the test."""
    yield from makes(Rig)


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_questions_and_answers(make, kind):
    rig = make(kind)
    for question, answer in ((b"one\n", b"1\n"), (b"two\n", b"2\n")):
        assert receive_exactly(rig.far, len(question)) == question
        rig.far.sendall(answer)
    assert rig.outcome() is rig.stream
    assert rig.heard == [b"1\n", b"2\n"]
    exchange(rig.stream.socket, rig.far)


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_an_answer_in_pieces(make, kind):
    rig = make(kind, b"one\n")
    for byte in b"an answer byte by byte\n":
        rig.far.sendall(bytes([byte]))
        wait_until(lambda: rig.heard or not pending(rig.stream.socket))  # what is no answer yet does not stay there
    rig.far.sendall(b"more")
    assert receive_exactly(rig.outcome().socket, 4) == b"more"
    assert rig.heard == [b"an answer byte by byte\n"]


def pending(sock):
    """Return whether there is something to be read."""
    try:
        return bool(sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
    except BlockingIOError:
        return False


def test_an_answer_longer_than_one_look(make):
    rig = make("tcp", b"one\n")
    answer = os.urandom(10_000).replace(b"\n", b"") + b"\n"
    rig.far.sendall(answer + b"rest")
    assert receive_exactly(rig.outcome().socket, 4) == b"rest"
    assert rig.heard == [answer]


def test_answers_that_are_there_already(make):
    rig = make()
    rig.far.sendall(b"1\n2\n3\n")
    assert receive_exactly(rig.outcome().socket, 2) == b"3\n"
    assert rig.heard == [b"1\n", b"2\n"]


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_a_question_that_fits_into_no_buffer(make, kind):
    question = b"x" * (8 << 20) + b"\n"
    rig = make(kind, question)
    assert receive_exactly(rig.far, len(question)) == question
    rig.far.sendall(b"yes\n")
    assert rig.outcome() is rig.stream


def test_a_question_that_is_given_up_while_it_is_sent(make):
    rig = make("tcp", b"x" * (8 << 20))
    receive_exactly(rig.far, 10)
    rig.negotiation.give_up()
    assert rig.over.wait(WAIT)
    assert ending(rig.far) == "reset"


def test_no_question_at_all():
    near, far = tcp_pair()
    near.setblocking(False)
    told = queue.SimpleQueue()
    with far, relay.Stream(near) as stream:
        Negotiation(stream, ask(), None, told.put, lost)
        assert told.get(timeout=WAIT) is stream
        exchange_blocking(stream, far)
    wait_until(lambda: members() == 0)


@pytest.mark.parametrize("step", [0, 1])
def test_no_answer_in_time(make, step):
    rig = make(seconds=0.2)
    rig.far.sendall(b"1\n" * step + b"never ends")
    error = rig.outcome()
    assert isinstance(error, ConnectError) and error.reason == "connect_timeout" and str(error) == LATE
    assert ending(rig.far) == "reset"


def exchange_blocking(stream, far):
    stream.socket.settimeout(WAIT)
    far.settimeout(WAIT)
    exchange(stream.socket, far)


def test_a_deadline_that_is_over_already(make):
    assert make(seconds=-1.0).outcome().reason == "connect_timeout"


def test_a_question_that_nobody_reads_in_time(make):
    rig = make("tcp", b"x" * (8 << 20), seconds=0.2)
    assert rig.outcome().reason == "connect_timeout"


@pytest.mark.parametrize("settle", [0.0, 0.05])
def test_why_the_stream_has_ended(make, settle):
    """Some know it only a moment after the end of file."""
    ended = time.monotonic

    def prepare(stream):
        stream.settle = settle
        stream.failure = lambda: CarrierError("the carrier") if ended() >= begun + settle else None

    begun = time.monotonic()
    rig = make("unix", prepare=prepare)
    begun = time.monotonic()
    rig.far.shutdown(socket.SHUT_WR)
    assert str(rig.outcome()) == "lost: CarrierError('the carrier')"


def test_giving_up_while_it_settles(make):
    asked = threading.Event()

    def prepare(stream):
        stream.settle = WAIT
        stream.failure = asked.set

    rig = make("unix", prepare=prepare)
    rig.far.shutdown(socket.SHUT_WR)
    wait_until(lambda: not IOThread._current.loop.handlers.get(rig.stream.fileno()))
    rig.negotiation.give_up()
    assert rig.over.wait(WAIT)
    wait_until(lambda: members() == 0)
    assert not asked.is_set() and rig.told.empty()


def test_giving_up_when_it_is_done(make):
    rig = make("tcp", b"one\n")
    rig.far.sendall(b"1\n")
    stream = rig.outcome()
    rig.negotiation.give_up()
    assert receive_exactly(rig.far, 4) == b"one\n"
    exchange(stream.socket, rig.far)


def test_it_begins_at_once_in_the_io_thread():
    """Most kinds of targets are tested there."""
    near, far = socket.socketpair()
    near.setblocking(False)
    said, told, holder = queue.SimpleQueue(), queue.SimpleQueue(), type("Holder", (), {"abandon": lambda self: None})()
    io_thread = IOThread.acquire(holder)

    def begin():
        Negotiation(stream, ask(b"one\n"), None, told.put, lost)
        said.put(pending(far))

    with far, relay.Stream(near) as stream:
        io_thread.loop.call(begin)
        assert said.get(timeout=WAIT)
        far.sendall(b"1\n")
        assert told.get(timeout=WAIT) is stream
    io_thread.release(holder)


def test_a_bug_ends_one_negotiation(make, caplog):
    rig = make("tcp", b"one\n", prepare=lambda stream: setattr(stream, "socket", Broken(stream.socket)))
    receive_exactly(rig.far, 4)
    rig.far.sendall(b"1\n")
    assert "a bug in relay" in str(rig.told.get(timeout=WAIT))
    assert rig.over.wait(WAIT)
    wait_until(lambda: members() == 0)
    assert "a handler failed" in caplog.text


class Broken:
    """A socket that cannot be read."""

    def __init__(self, sock):
        self._socket = sock

    def __getattr__(self, name):
        if name == "recv":
            raise ZeroDivisionError
        return getattr(self._socket, name)


def test_in_a_forked_child_the_descriptor_is_closed(make):
    rig = make()
    assert receive_exactly(rig.far, 4) == b"one\n"
    rig.negotiation.abandon()
    assert rig.stream.fileno() == -1 and not rig.over.is_set()
    rig.negotiation.give_up()
    assert rig.over.wait(WAIT)
