"""``relay.transports.i2p.conversation``: lines asked and answered on one socket, whatever comes."""

from __future__ import annotations

import errno
import os
import queue
import socket
import threading
import time

import pytest
from helpers import WAIT, Thread, receive_all, receive_exactly, wait_until

import relay
from relay.errors import ConnectError
from relay.eventloop.background import IOThread
from relay.eventloop.sockets import reset
from relay.transports.i2p.conversation import Conversation, read_line
from relay.transports.i2p.messages import LONGEST, Message, MessageError, naming_lookup, ping, pong

ASKED = naming_lookup("ME")
ANSWER = b"NAMING REPLY RESULT=OK NAME=ME VALUE=x\n"


class Rig:
    """A conversation over TCP; the test is the bridge."""

    def __init__(self):
        with socket.create_server(("127.0.0.1", 0)) as listening:
            near = socket.create_connection(listening.getsockname())
            self.far = listening.accept()[0]
        self.far.settimeout(WAIT)
        self.far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        near.setblocking(False)
        self.stream = relay.Stream(near)
        self.conversation = Conversation(self.stream, "the bridge")
        self.told = queue.SimpleQueue()

    def ask(self, seconds=None, request=ASKED):
        deadline = None if seconds is None else time.monotonic() + seconds
        self.conversation.ask(request, deadline, self.told.put)

    def outcome(self):
        return self.told.get(timeout=WAIT)

    def turn(self):
        """Wait until the I/O thread has looked at all that has come."""
        for _ in range(3):
            looked = threading.Event()
            if self.conversation._io_thread.loop.call(looked.set):
                assert looked.wait(WAIT)

    def in_io_thread(self, function):
        done = queue.SimpleQueue()
        assert self.conversation._io_thread.loop.call(lambda: done.put(function()))
        return done.get(timeout=WAIT)

    def close(self):
        self.conversation.close()
        self.far.close()
        wait_until(lambda: self.conversation._is_over)
        if self.stream.fileno() >= 0:
            wait_until(lambda: IOThread._current is None or self.stream.fileno() < 0)
            self.stream.close()


@pytest.fixture
def rig():
    made = Rig()
    yield made
    made.close()


def is_lost(error, why):
    return isinstance(error, ConnectError) and str(error) == f"the bridge: {why}"


GONE = "the connection to the bridge was lost (the bridge closed the connection)"


def test_what_is_asked_is_answered(rig):
    for _ in range(3):
        rig.ask(WAIT)
        assert receive_exactly(rig.far, 22) == b"NAMING LOOKUP NAME=ME\n"
        rig.far.sendall(ANSWER)
        answer = rig.outcome()
        assert isinstance(answer, Message) and answer.options["VALUE"] == "x"


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
    member = object()
    io_thread = IOThread.acquire(member)
    stream = rig.in_io_thread(rig.conversation.take)
    try:
        rig.far.sendall(b"these are not read here")
        before = time.process_time()
        threading.Event().wait(0.2)
        assert time.process_time() - before < 0.1, "nor looked at"
        assert stream.socket.recv(100) == b"these are not read here"
        io_thread.loop.poller.register(stream.fileno(), 1)  # which fails for what is registered still
    finally:
        io_thread.release(member)
    assert rig.told.empty()


def test_nothing_is_left_of_one_that_was_taken(rig):
    rig.in_io_thread(rig.conversation.take)
    wait_until(lambda: IOThread._current is None)
    rig.conversation.close()
    assert rig.stream.fileno() >= 0, "it belongs to somebody else"


def test_several_answers_in_one_segment_come_one_by_one(rig):
    heard = queue.SimpleQueue()

    def first(answer):
        rig.conversation.listen(heard.put, heard.put)
        rig.told.put(answer)

    rig.conversation.ask(ASKED, None, first)
    rig.far.sendall(ANSWER + b"PING 1\nPING 2\nPI")
    assert rig.outcome().result == "OK"
    assert [heard.get(timeout=WAIT) for _ in range(2)] == [b"PING 1\n", b"PING 2\n"]
    rig.far.sendall(b"NG 3\n")
    assert heard.get(timeout=WAIT) == b"PING 3\n"


def test_a_ping_in_place_of_the_answer_is_answered(rig):
    rig.ask(WAIT)
    assert receive_exactly(rig.far, 22)
    rig.far.sendall(b"PING are you there\n")
    assert receive_exactly(rig.far, 19) == b"PONG are you there\n"
    assert rig.told.empty()
    rig.far.sendall(ANSWER)
    assert rig.outcome().result == "OK"


def test_silence_is_told_at_the_deadline(rig):
    rig.ask(0.05)
    error = rig.outcome()
    assert is_lost(error, "no answer in time") and error.reason == "connect_timeout"
    assert receive_all(rig.far) == b"NAMING LOOKUP NAME=ME\n"


def test_half_a_line_is_silence(rig):
    rig.ask(0.05)
    rig.far.sendall(ANSWER[:-1])
    assert is_lost(rig.outcome(), "no answer in time")


def test_a_deadline_ends_with_its_answer(rig):
    rig.ask(0.05)
    rig.far.sendall(ANSWER)
    assert rig.outcome().result == "OK"
    threading.Event().wait(0.1)
    rig.turn()
    assert rig.told.empty() and rig.conversation.alive


def test_the_end_is_told(rig):
    rig.ask(WAIT)
    assert receive_exactly(rig.far, 22)
    rig.far.close()
    assert is_lost(rig.outcome(), GONE)
    wait_until(lambda: rig.stream.fileno() < 0 and IOThread._current is None)


def test_the_end_in_the_middle_of_a_line_is_told(rig):
    rig.ask(WAIT)
    assert receive_exactly(rig.far, 22)
    rig.far.sendall(ANSWER[:-1])
    rig.far.close()
    assert is_lost(rig.outcome(), GONE)


def test_a_hop_that_has_not_reached_the_bridge_after_all_is_told(rig):
    why = ConnectError("the bridge: connection refused, says ssh://bastion", reason="refused")
    rig.stream.failure = lambda: why
    rig.ask()
    rig.far.close()
    assert rig.outcome() is why


def test_a_reset_is_told(rig):
    rig.ask(WAIT)
    rig.turn()
    reset(rig.far)
    assert is_lost(rig.outcome(), "the connection to the bridge was lost (Connection reset by peer)")


@pytest.mark.parametrize(
    "garbage",
    [b"\n", b"\x00\xff\xfe\n", b"HTTP/1.1 400 Bad Request\r\n", b'NAMING REPLY VALUE="\n', b"NAMING REPLY =x\n"],
)
def test_garbage_is_told_and_ends_it(rig, garbage):
    rig.ask(WAIT)
    rig.far.sendall(garbage)
    error = rig.outcome()
    assert isinstance(error, MessageError) and str(error).startswith("the bridge: ")
    assert rig.told.empty()
    wait_until(lambda: rig.stream.fileno() < 0)


@pytest.mark.parametrize("piece", [1000, LONGEST, 1 << 20])
def test_a_line_without_end_is_told_and_read_no_further(rig, piece):
    rig.ask(WAIT)
    sending = Thread(swallow, rig.far.sendall, b"x" * piece, 3 * LONGEST)
    error = rig.outcome()
    assert isinstance(error, MessageError) and "a line of more than 8192 bytes" in str(error)
    wait_until(lambda: rig.stream.fileno() < 0)
    sending.result()
    assert rig.conversation.read <= 2 * LONGEST


def swallow(send, data, total):
    try:
        for _ in range(-(-total // len(data))):
            send(data)
    except OSError:
        pass  # it was not read any further


def test_the_longest_line_is_read(rig):
    line = b"NAMING REPLY RESULT=OK VALUE="
    line += b"x" * (LONGEST - len(line) - 1) + b"\n"
    rig.ask(WAIT)
    rig.far.sendall(line[:5000])
    rig.turn()
    rig.far.sendall(line[5000:])
    assert len(rig.outcome().options["VALUE"]) > 8000


def test_what_nobody_asked_for_ends_it(rig):
    rig.far.sendall(ANSWER)
    assert receive_all(rig.far) == b""
    rig.ask(WAIT)
    error = rig.outcome()
    assert isinstance(error, MessageError) and str(error) == "the bridge: the bridge sent a line without a request"


def test_asking_one_that_has_ended_is_told(rig):
    rig.far.close()
    wait_until(lambda: rig.conversation._is_over)
    for _ in range(2):
        rig.ask(WAIT)
        assert is_lost(rig.outcome(), GONE)


def test_asking_one_that_has_ended_is_told_also_when_the_io_thread_has_gone(rig):
    rig.far.close()
    wait_until(lambda: IOThread._current is None and not rig.conversation._io_thread.thread.is_alive())
    rig.ask(WAIT)
    assert is_lost(rig.outcome(), GONE)


def test_asking_races_with_the_end():
    for turn in range(200):
        rig = Rig()
        closing = Thread(rig.far.close)
        if turn % 2:
            closing.join()
        rig.ask()
        assert is_lost_somehow(rig.outcome())
        rig.turn()
        assert rig.told.empty()
        rig.close()


def is_lost_somehow(error):
    return isinstance(error, ConnectError) and str(error).startswith(
        "the bridge: the connection to the bridge was lost"
    )


def test_a_bridge_that_does_not_read_is_told(rig):
    rig.stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    rig.conversation.listen(rig.told.put, rig.told.put)
    for _ in range(50):  # the kernel takes a few of them
        rig.conversation.say(pong("x" * 8000))
    assert is_lost(rig.outcome(), "the connection to the bridge was lost (the bridge does not read its socket)")


def test_lines_are_heard_and_the_end_once(rig):
    heard, ended = queue.SimpleQueue(), queue.SimpleQueue()
    rig.conversation.listen(heard.put, ended.put)
    rig.far.sendall(b"one\ntwo\n")
    assert heard.get(timeout=WAIT) == b"one\n" and heard.get(timeout=WAIT) == b"two\n"
    rig.far.close()
    assert is_lost(ended.get(timeout=WAIT), GONE)
    rig.turn()
    assert ended.empty()


def test_listening_to_one_that_has_ended_is_told(rig):
    ended = queue.SimpleQueue()
    rig.far.close()
    wait_until(lambda: rig.conversation._is_over)
    rig.conversation.listen(ended.put, ended.put)
    assert is_lost(ended.get(timeout=WAIT), GONE)


def test_listening_races_with_the_end():
    for turn in range(200):
        rig = Rig()
        ended = queue.SimpleQueue()
        closing = Thread(rig.far.close)
        if turn % 2:
            closing.join()
        rig.conversation.listen(ended.put, ended.put)
        assert is_lost(ended.get(timeout=WAIT), GONE)
        rig.turn()
        assert ended.empty()
        rig.close()


def test_an_endless_line_ends_listening(rig):
    heard, ended = queue.SimpleQueue(), queue.SimpleQueue()
    rig.conversation.listen(heard.put, ended.put)
    swallow(rig.far.sendall, b"x" * LONGEST, 3 * LONGEST)
    assert isinstance(ended.get(timeout=WAIT), MessageError)
    assert heard.empty()


def test_what_is_said_is_sent(rig):
    rig.conversation.say(ping("a"))
    assert receive_exactly(rig.far, 7) == b"PING a\n"
    rig.far.close()
    wait_until(lambda: rig.conversation._is_over)
    rig.conversation.say(ping("b"))


def test_who_closes_it_is_told_nothing(rig):
    ended = queue.SimpleQueue()
    rig.conversation.listen(ended.put, ended.put)
    rig.ask(WAIT)
    rig.conversation.close()
    rig.conversation.close()
    assert receive_all(rig.far) == b"NAMING LOOKUP NAME=ME\n"
    wait_until(lambda: IOThread._current is None and rig.stream.fileno() < 0)
    assert rig.told.empty() and ended.empty()
    assert not rig.conversation.alive


def test_closing_races_with_an_answer():
    for _ in range(100):
        rig = Rig()
        rig.ask()
        answering = Thread(swallow, rig.far.sendall, ANSWER, 1)
        rig.conversation.close()
        answering.result()
        rig.close()
        assert rig.told.qsize() <= 1
        assert rig.stream.fileno() < 0


def test_it_sees_whether_the_other_side_is_there(rig):
    assert rig.conversation.alive
    stop, go = threading.Event(), threading.Event()
    rig.conversation._io_thread.loop.call(lambda: (stop.set(), go.wait(WAIT)))
    assert stop.wait(WAIT)
    rig.far.close()
    wait_until(lambda: not rig.conversation.alive)
    assert not rig.conversation._is_over, "the I/O thread has not seen it yet"
    go.set()


def test_a_bug_of_who_is_told_ends_it(rig, caplog):
    def fail(answer):
        raise RuntimeError("a bug")

    rig.conversation.ask(ASKED, None, fail)
    rig.far.sendall(ANSWER)
    assert receive_all(rig.far).endswith(b"NAME=ME\n")
    wait_until(lambda: IOThread._current is None)
    assert "a bug" in caplog.text


def test_a_bug_of_who_listens_is_told_as_the_end(rig, caplog):
    def fail(line):
        raise RuntimeError("a bug")

    ended = queue.SimpleQueue()
    rig.conversation.listen(fail, ended.put)
    rig.far.sendall(b"line\n")
    assert "a bug in relay" in str(ended.get(timeout=WAIT))


def test_without_a_io_thread_the_stream_is_closed(monkeypatch):
    def refuse(member):
        raise OSError(errno.EAGAIN, "can't start new thread")

    near, far = socket.socketpair()
    monkeypatch.setattr(IOThread, "acquire", refuse)
    with far, pytest.raises(BlockingIOError):
        Conversation(relay.Stream(near), "the bridge")
    assert near.fileno() < 0


def test_it_speaks_over_any_socket():
    near, far = socket.socketpair()
    near.setblocking(False)
    told = queue.SimpleQueue()
    with far:
        conversation = Conversation(relay.Stream(near), "the bridge")
        conversation.ask(ASKED, None, told.put)
        far.sendall(ANSWER)
        assert told.get(timeout=WAIT).result == "OK"
        conversation.close()
        wait_until(lambda: near.fileno() < 0)


def test_a_forked_child_closes_its_copy(rig):
    rig.turn()
    child = os.fork()
    if child == 0:
        os._exit(0 if rig.stream.fileno() < 0 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    rig.ask()
    rig.far.sendall(ANSWER)
    assert rig.outcome().result == "OK"


def test_a_request_that_no_line_can_say_is_a_value_error(rig):
    with pytest.raises(ValueError, match="newline"):
        rig.ask(request=naming_lookup("a\nb"))
    rig.ask()
    rig.far.sendall(ANSWER)
    assert rig.outcome().result == "OK"


def test_a_line_is_read_and_no_more():
    near, far = socket.socketpair()
    with near, far:
        far.sendall(b"one\ntwo\nthr")
        assert read_line(near) == (b"one\n", True)
        assert read_line(near) == (b"two\n", True)
        assert read_line(near) == (b"thr", False)
        far.close()
        assert read_line(near) == (b"", False)
