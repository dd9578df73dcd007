"""``relay.transports.i2p.conversation``: lines asked and answered on one socket, whatever comes."""

import errno
import queue
import socket
import threading
import time

import pytest
from helpers import WAIT, Thread, closed, in_child, receive_all, receive_exactly, wait_until
from sam_rig import io_thread_ends

import relay
from relay.errors import ConnectError
from relay.eventloop.background import IOThread
from relay.transports.i2p.conversation import Conversation
from relay.transports.i2p.messages import LONGEST, MessageError, naming_lookup, ping, pong

ASKED = naming_lookup("ME")
REQUEST = b"NAMING LOOKUP NAME=ME\n"
ANSWER = b"NAMING REPLY RESULT=OK NAME=ME VALUE=x\n"
GONE = "the connection to the bridge was lost (the bridge closed the connection)"


class Rig:
    """A conversation over TCP; the test is the bridge, and holds the I/O thread."""

    def __init__(self):
        self.io_thread = IOThread.acquire(self)
        with socket.create_server(("127.0.0.1", 0)) as listening:
            near = socket.create_connection(listening.getsockname())
            self.far = listening.accept()[0]
        self.far.settimeout(WAIT)
        self.far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        near.setblocking(False)
        self.stream = relay.Stream(near)
        self.conversation = Conversation(self.stream, "the bridge")
        self.told, self.heard = queue.SimpleQueue(), queue.SimpleQueue()

    def ask(self, seconds=None, request=ASKED):
        deadline = None if seconds is None else time.monotonic() + seconds
        self.conversation.ask(request, deadline, self.told.put)

    def listen(self):
        self.conversation.listen(self.heard.put, self.told.put)

    def outcome(self):
        return self.told.get(timeout=WAIT)

    def why(self):
        """The text of the error with which it ended, after the name of the bridge."""
        error = self.outcome()
        assert isinstance(error, ConnectError), error
        name, _, why = str(error).partition(": ")
        assert name == "the bridge"
        return why

    def in_io_thread(self, function):
        done = queue.SimpleQueue()
        assert self.io_thread.loop.call(lambda: done.put(function()))
        return done.get(timeout=WAIT)

    def turn(self):
        """Wait until the I/O thread has looked at all that has come."""
        for _ in range(3):
            self.in_io_thread(lambda: None)

    def ends(self):
        """Wait until the I/O thread has ended the conversation."""
        wait_until(lambda: self.stream.fileno() < 0)

    def close(self):
        self.conversation.close()
        self.far.close()
        self.turn()
        self.stream.close()
        self.io_thread.release(self)

    def abandon(self):
        self.far.close()


@pytest.fixture
def rig():
    yield from closed(Rig())


def test_an_answer_cut_anywhere_is_put_together(rig):
    for cut in range(1, len(ANSWER)):
        rig.ask()
        rig.far.sendall(ANSWER[:cut])
        rig.turn()
        assert rig.told.empty()
        rig.far.sendall(ANSWER[cut:])
        assert rig.outcome().result == "OK"


def test_what_follows_the_answer_stays_for_whoever_takes_the_stream(rig):
    taken = queue.SimpleQueue()
    rig.conversation.ask(ASKED, None, lambda answer: taken.put(rig.conversation.take()))
    rig.far.sendall(ANSWER + b"NAMING these are no\nlines any more")
    stream = taken.get(timeout=WAIT)
    rig.far.sendall(b"!")
    rig.far.shutdown(socket.SHUT_WR)
    stream.socket.settimeout(WAIT)
    assert receive_all(stream.socket) == b"NAMING these are no\nlines any more!"
    assert rig.conversation.read == len(ANSWER)


def test_a_stream_that_was_taken_is_watched_no_longer(rig):
    stream = rig.in_io_thread(rig.conversation.take)
    rig.far.sendall(b"these are not read here")
    before = time.process_time()
    threading.Event().wait(0.2)
    assert time.process_time() - before < 0.1, "nor looked at"
    assert stream.socket.recv(100) == b"these are not read here"
    rig.io_thread.loop.poller.register(stream.fileno(), 1)  # which fails for what is registered still
    assert rig.told.empty()
    rig.conversation.close()
    rig.turn()
    assert rig.stream.fileno() >= 0, "it belongs to somebody else"


def test_a_ping_in_place_of_the_answer_is_answered(rig):
    rig.ask(WAIT)
    assert receive_exactly(rig.far, len(REQUEST)) == REQUEST
    rig.far.sendall(b"PING are you there\n")
    assert receive_exactly(rig.far, 19) == b"PONG are you there\n"
    assert rig.told.empty()
    rig.far.sendall(ANSWER)
    assert rig.outcome().result == "OK"


def test_a_hop_that_has_not_reached_the_bridge_after_all_is_told(rig):
    why = ConnectError("the bridge: connection refused, says ssh://bastion", reason="refused")
    rig.stream.failure = lambda: why
    rig.ask()
    rig.far.close()
    assert rig.outcome() is why


@pytest.mark.parametrize("begin", [Rig.ask, Rig.listen])
@pytest.mark.parametrize("piece", [1000, LONGEST, 1 << 20])
def test_a_line_without_end_is_told_and_read_no_further(rig, begin, piece):
    begin(rig)
    sending = Thread(swallow, rig.far.sendall, b"x" * piece, 3 * LONGEST)
    error = rig.outcome()
    assert isinstance(error, MessageError) and "a line of more than 8192 bytes" in str(error)
    rig.ends()
    sending.result()
    assert rig.conversation.read <= 2 * LONGEST and rig.heard.empty()


def swallow(send, data, total):
    try:
        for _ in range(-(-total // len(data))):
            send(data)
    except OSError:
        pass  # it was not read any further


def test_what_nobody_asked_for_ends_it(rig):
    rig.far.sendall(ANSWER)
    assert receive_all(rig.far) == b""
    rig.ask(WAIT)
    error = rig.outcome()
    assert isinstance(error, MessageError) and str(error) == "the bridge: the bridge sent a line without a request"


def test_asking_one_that_has_ended_is_told_also_when_the_io_thread_has_gone(rig):
    rig.far.close()
    rig.ends()
    for _ in range(2):
        rig.ask(WAIT)
        assert rig.why() == GONE
    rig.io_thread.release(rig)
    io_thread_ends()
    rig.ask(WAIT)
    assert rig.why() == GONE
    rig.io_thread = IOThread.acquire(rig)


@pytest.mark.parametrize("begin", [Rig.ask, Rig.listen])
def test_it_ends_while_it_is_asked_or_listened_to(begin):
    for turn in range(200):
        rig = Rig()
        closing = Thread(rig.far.close)
        if turn % 2:
            closing.join()
        begin(rig)
        assert rig.why().startswith("the connection to the bridge was lost")
        rig.turn()
        assert rig.told.empty()
        rig.close()


def test_a_bridge_that_does_not_read_is_told(rig):
    rig.stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    rig.listen()
    for _ in range(50):  # the kernel takes a few of them
        rig.conversation.say(pong("x" * 8000))
    assert rig.why() == "the connection to the bridge was lost (the bridge does not read its socket)"


def test_what_is_said_is_sent(rig):
    rig.conversation.say(ping("a"))
    assert receive_exactly(rig.far, 7) == b"PING a\n"
    rig.far.close()
    rig.ends()
    rig.conversation.say(ping("b"))


@pytest.mark.parametrize("listens", [False, True])
def test_a_bug_of_who_is_told_ends_it(rig, caplog, listens):
    def fail(answer):
        raise RuntimeError("a bug of the test's")

    if listens:
        rig.conversation.listen(fail, rig.told.put)
    else:
        rig.conversation.ask(ASKED, None, fail)
    rig.far.sendall(ANSWER)
    rig.ends()
    assert "a bug of the test's" in caplog.text
    if listens:
        assert "a bug in relay" in rig.why()


def test_without_an_io_thread_the_stream_is_closed(monkeypatch):
    def refuse(member):
        raise OSError(errno.EAGAIN, "can't start new thread")

    near, far = socket.socketpair()
    monkeypatch.setattr(IOThread, "acquire", refuse)
    with far, pytest.raises(BlockingIOError):
        Conversation(relay.Stream(near), "the bridge")
    assert near.fileno() < 0


def test_a_forked_child_closes_its_copy(rig):
    rig.turn()
    assert in_child(lambda: rig.stream.fileno() < 0) == 0
    rig.ask()
    rig.far.sendall(ANSWER)
    assert rig.outcome().result == "OK"


def test_a_request_that_no_line_can_say_is_a_value_error(rig):
    with pytest.raises(ValueError, match="newline"):
        rig.ask(request=naming_lookup("a\nb"))
    rig.ask()
    rig.far.sendall(ANSWER)
    assert rig.outcome().result == "OK"
