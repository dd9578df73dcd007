"""``relay.engine.questions`` step by step: who waits for which reading of files and names, until when, and for what."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest

from relay.engine import questions
from relay.engine.questions import _DEADLINE, _MOST_USERS, _RECENT, Question, Questions, Readings
from relay.eventloop.loop import Timers

BEGIN = 1000.0  # monotonic seconds


class Clock:
    """The time of the relay thread."""

    now = BEGIN

    def monotonic(self):
        return self.now


class Rules:
    """Files of rules that note who reads them."""

    def __init__(self, error=None):
        self.error, self.read_by = error, []

    def refresh(self, name):
        self.read_by.append(name)
        if self.error is not None:
            raise self.error


class Client:
    """A connection that waits for a question."""

    pending = None

    def __init__(self, peer=("192.0.2.7", 5)):
        self.summary = SimpleNamespace(peer=peer, who=lambda: peer)

    def wait_for_answer(self, question):
        self.pending = question

    def leave(self):
        self.pending.abandon()
        self.pending = None


class Thread:
    """A relay thread whose jobs run on other threads when the test says so, and whose calls come at once."""

    name = "it"

    def __init__(self, clock):
        self.clock, self.jobs, self.loop = clock, [], SimpleNamespace(timers=Timers(), call=lambda call: call())
        self.read = []
        self.readings = Readings(self, lambda *arguments: self.read.append(arguments))

    def call_elsewhere(self, job):
        self.jobs.append(job)

    def run_job(self):
        self.jobs.pop(0)()

    def at(self, seconds):
        """Let the time come."""
        self.clock.now = BEGIN + seconds
        self.loop.timers.run(self.clock.now)

    def ask(self, rules=None, user=None):
        client = Client()
        self.readings.read(rules, user, client, self.clock.now)
        return client


@pytest.fixture
def names(monkeypatch):
    """The users whose names were looked up."""
    looked_up = []
    monkeypatch.setattr(questions, "look_up", looked_up.append)
    return looked_up


@pytest.fixture
def clock(monkeypatch):
    monkeypatch.setattr(questions, "time", found := Clock())
    return found


@pytest.fixture
def thread(names, clock):
    return Thread(clock)


def test_a_client_waits_until_its_files_and_its_name_are_read(thread, names):
    client = thread.ask(rules := Rules(), 1000)
    assert (len(thread.jobs), thread.read, rules.read_by, names) == (1, [], [], [])
    thread.at(1.0)
    thread.run_job()
    assert thread.read == [(client, BEGIN + 1.0)]
    assert (rules.read_by, names) == (["it"], [1000])
    assert client.pending is None
    thread.at(_DEADLINE + 1.0)
    assert len(thread.read) == 1, "the timer has stopped"


def test_a_name_may_be_read_without_files(thread, names):
    client = thread.ask(None, 0)
    thread.run_job()
    assert (thread.read, names) == ([(client, BEGIN)], [0])


def test_clients_that_come_during_a_reading_share_the_next_one(thread, names):
    early, rules = thread.ask(Rules(), 1), Rules()
    late = [thread.ask(Rules(), 2), thread.ask(Rules(), None), thread.ask(rules, 3)]
    assert len(thread.jobs) == 1
    thread.at(1.0)
    thread.run_job()
    assert thread.read == [(early, BEGIN + 1.0)]
    assert (names, len(thread.jobs)) == ([1], 1)
    thread.at(2.0)
    thread.run_job()
    assert thread.read[1:] == [(client, BEGIN + 2.0) for client in late]
    assert (sorted(names), rules.read_by, thread.jobs) == ([1, 2, 3], ["it"], [])


def test_one_reading_looks_up_only_so_many_names(thread, names):
    thread.ask()
    for user in range(_MOST_USERS + 1):
        thread.ask(None, user)
    thread.run_job()
    thread.run_job()
    assert sorted(names) == list(range(_MOST_USERS))
    assert len(thread.read) == _MOST_USERS + 2


def test_after_its_time_a_client_does_without(thread, caplog):
    client = thread.ask(Rules())
    thread.at(_DEADLINE - 0.1)
    assert thread.read == []
    thread.at(_DEADLINE + 0.1)
    assert thread.read == [(client, BEGIN + _DEADLINE + 0.1)]
    text = "it: the files of allow and deny, or the name of a user, were not read within 5 s; the previous rules, and "
    text += "the user's number, decide until they are"
    assert caplog.record_tuples == [("relay", logging.WARNING, text)]
    thread.run_job()
    assert len(thread.read) == 1, "once"
    other = thread.ask()
    thread.run_job()
    assert thread.read[1:] == [(other, BEGIN + _DEADLINE + 0.1)]


def test_many_clients_that_do_without_are_one_line_in_the_log(thread, caplog):
    for _ in range(3):
        thread.ask(Rules())
    thread.at(_DEADLINE + 0.1)
    assert len(thread.read) == 3
    assert len([record for record in caplog.records if record.levelno == logging.WARNING]) == 1


def test_a_reading_takes_too_long_once_nobody_waits_for_it_any_more(thread):
    assert not thread.readings.reads_too_long(BEGIN)
    thread.at(2.0)
    thread.ask(Rules())
    assert not thread.readings.reads_too_long(BEGIN + 2.0)
    assert not thread.readings.reads_too_long(BEGIN + 2.0 + _DEADLINE - 0.1)
    assert thread.readings.reads_too_long(BEGIN + 2.0 + _DEADLINE)
    thread.at(100.0)
    thread.run_job()
    assert not thread.readings.reads_too_long(BEGIN + 100.0)


def test_the_time_of_the_next_reading_is_its_own(thread):
    thread.ask(Rules())
    thread.ask(Rules())
    thread.at(4.0)
    thread.run_job()
    assert not thread.readings.reads_too_long(BEGIN + 8.0)
    assert thread.readings.reads_too_long(BEGIN + 9.0)


def test_rules_were_just_read_for_a_second_from_the_begin_of_the_reading(thread):
    rules, others = Rules(), Rules()
    assert not thread.readings.has_just_read(rules, BEGIN)
    thread.ask(rules)
    assert not thread.readings.has_just_read(rules, BEGIN)
    thread.at(0.5)
    thread.run_job()
    assert thread.readings.has_just_read(rules, BEGIN + 0.5)
    assert thread.readings.has_just_read(rules, BEGIN + _RECENT - 0.01)
    assert not thread.readings.has_just_read(rules, BEGIN + _RECENT)
    assert not thread.readings.has_just_read(others, BEGIN + 0.5)


def test_files_that_cannot_be_read_leave_the_previous_rules(thread, caplog):
    client = thread.ask(Rules(ValueError("broken")))
    thread.run_job()
    assert thread.read == [(client, BEGIN)]
    assert [record.getMessage() for record in caplog.records] == ["it: reading the rules failed"]
    assert "broken" in caplog.text
    thread.ask()
    thread.run_job()
    assert len(thread.read) == 2


def test_those_that_have_left_are_forgotten_in_front_of_those_that_wait(thread):
    thread.ask(Rules())
    first, second, third = thread.ask(), thread.ask(), thread.ask()
    second.leave()
    fourth = thread.ask()
    assert [one.connection for one in thread.readings._reading_next] == [first, second, third, fourth]
    first.leave()
    fifth = thread.ask()
    assert [one.connection for one in thread.readings._reading_next] == [third, fourth, fifth]
    thread.at(1.0)
    third.leave()
    thread.run_job()
    thread.run_job()
    assert [connection for connection, _ in thread.read[1:]] == [fourth, fifth]


def test_those_whose_time_is_over_are_forgotten_as_well(thread):
    thread.ask(Rules())
    thread.at(1.0)
    client = thread.ask()
    thread.at(_DEADLINE + 0.5)
    assert [one.connection for one in thread.readings._reading_next] == [client]
    thread.at(_DEADLINE + 1.5)
    assert not thread.readings._reading_next


def test_a_question_has_one_end():
    loop, client, late = SimpleNamespace(timers=Timers()), Client(), []
    question = Question(loop, client, lambda *arguments: late.append(arguments), BEGIN)
    client.wait_for_answer(question)
    assert question.is_awaited
    assert question.end()
    assert (client.pending, question.is_awaited) == (None, False)
    assert not question.end()
    loop.timers.run(BEGIN + 2 * _DEADLINE)
    assert late == []


def test_a_question_that_a_connection_no_longer_awaits_tells_it_nothing():
    loop, client, late = SimpleNamespace(timers=Timers()), Client(), []
    question = Question(loop, client, lambda *arguments: late.append(arguments), BEGIN)
    client.pending = other = object()
    loop.timers.run(BEGIN + 2 * _DEADLINE)
    assert (late, client.pending) == ([], other)
    assert not question.is_awaited


@pytest.mark.parametrize(("peer", "shown"), [(("192.0.2.7", 5), "192.0.2.7:5"), ("", "at a Unix socket")])
def test_admit_that_is_late_denies_the_client_by_its_name(thread, caplog, peer, shown):
    answers = []
    asked = Questions(thread, lambda *arguments: answers.append(arguments))
    client = Client(peer)
    asked.ask(lambda identity: True, client, BEGIN)
    thread.at(_DEADLINE + 0.1)
    ((connection, answer, now),) = answers
    assert (connection, answer, now) == (client, False, BEGIN + _DEADLINE + 0.1)
    assert answer is False
    text = f"it: admit has not answered within 5 s, so that the client {shown} is denied; it must be quicker"
    assert caplog.messages == [text]
    thread.run_job()
    assert len(answers) == 1
