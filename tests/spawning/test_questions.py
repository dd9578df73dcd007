"""``relay.spawning.questions``: questions to a child that answers late, wrongly, or not at all."""

import contextlib
import os
import socket

import pytest
from helpers import WAIT, Thread, wait_until

import relay
from relay.spawning import questions
from relay.spawning.questions import NoAnswerError, Questions
from relay.spawning.wire import Channel, DescriptorChannel


class Child:
    """The other end of the socketpair, which answers when the test says so."""

    def __init__(self, sock):
        self._channel = DescriptorChannel(sock)

    def hear(self):
        message = self._channel.receive()
        return message, self._channel.take(message["descriptors"])

    def answer(self, message, **answer):
        self._channel.send({"number": message["number"], **answer})


@pytest.fixture
def pair():
    with contextlib.ExitStack() as stack:
        yield tuple(stack.enter_context(sock) for sock in socket.socketpair())


@pytest.fixture
def child(pair):
    return Child(pair[1])


@pytest.fixture
def answered():
    return []


@pytest.fixture
def asked(pair, answered):
    made = Questions(pair[0], Channel(pair[0]), "asking", lambda: answered.append(None))
    yield made
    with contextlib.suppress(OSError):
        pair[0].shutdown(socket.SHUT_RDWR)
    made.join()


def test_questions_are_sent_side_by_side_and_answered_in_any_order(asked, child, answered):
    first, second = asked.ask("one", [1], 20), asked.ask("two", [], 20)
    assert first.number < second.number
    heard = [child.hear()[0] for _ in range(2)]
    assert [(one["call"], one["arguments"], one["level"]) for one in heard] == [("one", [1], 20), ("two", [], 20)]
    assert asked.oldest() is not None
    child.answer(heard[1], value=2)
    assert second.result(WAIT) == 2
    assert not first.done()
    child.answer(heard[0], error={"class": "ValueError", "arguments": ["no"], "attributes": {}})
    with pytest.raises(ValueError, match="no"):
        first.result(WAIT)
    wait_until(lambda: len(answered) == 2)
    assert asked.oldest() is None


def test_what_nothing_waits_for_any_more_is_still_open_until_it_is_answered(asked, child, answered):
    question = asked.ask("late", [], 0)
    asked.give_up()
    with pytest.raises(NoAnswerError, match="does not answer"):
        question.result(0)
    assert asked.oldest() is not None
    child.answer(child.hear()[0], value=1)
    wait_until(lambda: answered)
    assert asked.oldest() is None
    following = asked.ask("next", [], 0)
    child.answer(child.hear()[0], value="this one")
    assert following.result(WAIT) == "this one"


def test_the_end_of_the_child_is_an_answer(asked, child, pair):
    question = asked.ask("never", [], 0)
    pair[1].close()
    asked.join()
    assert isinstance(question.exception(0), NoAnswerError)
    with pytest.raises(NoAnswerError, match="ended"):
        asked.ask("more", [], 0).result(0)
    assert asked.oldest() is None


def test_a_child_that_takes_no_message_is_not_asked_any_more(asked, monkeypatch):
    monkeypatch.setattr(questions, "_ROOM", 0.01)
    first = asked.ask("first", [], 0)
    with pytest.raises(TimeoutError):
        while True:
            asked.ask("more", ["x" * 10_000], 0)
    assert isinstance(first.exception(0), NoAnswerError)
    assert isinstance(asked.ask("after a cut", [], 0).exception(0), NoAnswerError)


def test_a_socket_that_is_closed_while_a_message_waits_for_room_is_an_ended_child(asked, pair, monkeypatch):
    class Full:
        def sendmsg(self, *_):
            pair[0].close()  # as another thread does that ends a stuck child
            raise BlockingIOError

        def fileno(self):
            return pair[0].fileno()

    with monkeypatch.context() as patched:
        patched.setattr(asked, "_socket", Full())
        pair[1].close()  # ends the thread that reads
        asked.join()
        patched.setattr(asked, "_is_over", False)
        question = asked.ask("one", [], 0)
    assert isinstance(question.exception(0), NoAnswerError)


def test_a_long_message_waits_for_room(asked, child):
    question = asked.ask("short", [], 0)

    def read():
        child.hear()
        return child.hear()[0]["arguments"][0]

    reading = Thread(read)
    long = asked.ask("long", ["x" * 2_000_000], 0)
    assert len(reading.result()) == 2_000_000
    assert not question.done() and not long.done()


def test_each_message_has_its_own_descriptors(asked, child, tmp_path):
    """Also if the child reads several at once, because it was stopped."""
    made = []
    for name in ("a", "bb"):
        (tmp_path / name).write_text(name)
        files = [os.open(tmp_path / name, os.O_RDONLY) for _ in name]
        asked.ask("plain", [], 0)
        asked.ask("open", [name], 0, files)
        for descriptor in files:
            os.close(descriptor)
    for _ in range(4):
        message, descriptors = child.hear()
        for descriptor in descriptors:
            made.append(os.read(descriptor, 9).decode())
            os.close(descriptor)
        if message["call"] == "open":
            assert made == [message["arguments"][0]] * len(message["arguments"][0])
            made.clear()


def test_descriptors_that_were_cut_are_an_error_of_their_own_message_only(asked, child, pair, monkeypatch):
    """The system of the child had no room for all of them."""
    whole = socket.recv_fds

    def cut(sock, size, count, flags):
        data, found, _, address = whole(sock, size, count, flags)
        for descriptor in found[1:]:
            os.close(descriptor)
        return data, found[:1], socket.MSG_CTRUNC if found else 0, address

    asked.ask("open", [], 0, [pair[0].fileno()] * 3)
    asked.ask("open", [], 0, [pair[0].fileno()])
    monkeypatch.setattr(socket, "recv_fds", cut)
    with pytest.raises(OSError, match="Too many open files"):
        child.hear()
    _, (descriptor,) = child.hear()
    os.close(descriptor)


def test_an_error_of_relay_keeps_its_class(asked, child):
    question = asked.ask("connect", [], 0)
    child.answer(child.hear()[0], error={"class": "ConnectError", "arguments": ["far"], "attributes": {}})
    assert isinstance(question.exception(WAIT), relay.ConnectError)
