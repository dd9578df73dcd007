"""``relay.engine.questions``: ``admit`` of a tunnel, and readings of files and names: answers, errors and times."""

import contextlib
import errno
import gc
import logging
import socket
import threading
import weakref
from types import SimpleNamespace

import pytest
from helpers import WAIT, wait_until

import relay
from relay.engine import questions
from relay.engine.questions import Questions, Readings
from relay.eventloop.loop import Timers
from relay.eventloop.sockets import reset


@pytest.fixture
def world():
    """Make a tunnel to a server that is never served, and clients of it."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))

        def make(admit, **options):
            receive = socket.create_server(("127.0.0.1", 0))
            target = relay.target(f"127.0.0.1:{server.getsockname()[1]}")
            return stack.enter_context(relay.Tunnel(receive, target, admit=admit, name="it", **options))

        def connect(tunnel):
            client = stack.enter_context(socket.socket())
            client.settimeout(WAIT)
            with contextlib.suppress(ConnectionResetError):  # it may be before the connect is over
                client.connect(tunnel.address)
            return client

        make.connect = connect
        yield make


def is_reset(client):
    """Return whether a client was reset, perhaps before its connect was over: then it has no peer."""
    try:
        client.recv(1)
        client.getpeername()
    except OSError as error:
        return error.errno in (errno.ECONNRESET, errno.ENOTCONN)
    return False


def denied(tunnel):
    wait_until(lambda: tunnel.stats().active == 0)
    return [(record.reason, record.rule) for record in tunnel.recent()]


def test_the_answer_decides(world):
    seen = []

    def admit(identity):
        seen.append(identity)
        return len(seen) == 1

    tunnel = world(admit)
    client = world.connect(tunnel)
    wait_until(lambda: [record.state for record in tunnel.connections()] == ["open"])
    assert is_reset(world.connect(tunnel))
    host, port = client.getsockname()
    assert seen[0] == relay.Identity("tcp", host, host, port)
    client.close()
    wait_until(lambda: len(tunnel.recent()) == 1 and tunnel.metrics().denied.get("admit") == 1)


LOGIN = relay.Limit(name="login", rate="5/m", ban="1m")


@pytest.mark.parametrize(
    "answer",
    [None, 1, "yes", [], [None], LOGIN, [relay.Limit(concurrent=1)] * 2, ValueError("a\nb"), SystemExit()],
    ids=repr,
)
def test_anything_but_true_means_no(world, answer, caplog):
    def admit(identity):
        if isinstance(answer, BaseException):
            raise answer
        return answer

    tunnel = world(admit)
    assert is_reset(world.connect(tunnel))
    assert denied(tunnel) == [("denied", "admit")]
    (error,) = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert error.isprintable()
    assert "admit" in error


@pytest.mark.parametrize("wrap", [tuple, list, lambda limits: limits[0]])
def test_limits_let_a_client_in_until_they_are_reached(world, wrap):
    plan = relay.Limit(name="plan", per="tunnel", concurrent=1)
    tunnel = world(lambda identity: wrap([plan]))
    client = world.connect(tunnel)
    wait_until(lambda: [record.state for record in tunnel.connections()] == ["open"])
    assert is_reset(world.connect(tunnel))
    wait_until(lambda: [(record.reason, record.rule) for record in tunnel.recent()] == [("denied", "limit plan")])
    reset(client)
    wait_until(lambda: not tunnel.connections())
    world.connect(tunnel)
    wait_until(lambda: [record.state for record in tunnel.connections()] == ["open"])


def test_a_client_in_the_tarpit_of_such_a_limit_takes_no_place_of_another_one(world):
    plan = relay.Limit(name="plan", per="tunnel", rate="1/h", action="tarpit")
    tunnel = world(lambda identity: plan, limit=[{"name": "all", "per": "tunnel", "concurrent": 1}])
    first = world.connect(tunnel)
    wait_until(lambda: [record.state for record in tunnel.connections()] == ["open"])
    reset(first)
    wait_until(lambda: not tunnel.connections())
    for count in (1, 2):
        world.connect(tunnel)
        wait_until(lambda: [record.rule for record in tunnel.connections()] == ["limit plan"] * count)  # noqa: B023


def test_a_quota_that_was_returned_ends_the_connection_that_uses_it_up(world):
    tunnel = world(lambda identity: relay.Limit(name="little", quota="10B/day"))
    client = world.connect(tunnel)
    client.sendall(bytes(100))
    wait_until(lambda: [(record.reason, record.rule) for record in tunnel.recent()] == [("quota", "limit little")])


def test_a_client_that_leaves_before_the_answer_costs_nothing(world):
    answer = threading.Event()
    tunnel = world(lambda identity: answer.wait(WAIT))
    client = world.connect(tunnel)
    wait_until(lambda: [record.state for record in tunnel.connections()] == ["connecting"])
    reset(client)
    wait_until(lambda: [record.reason for record in tunnel.recent()] == ["client_reset"])
    answer.set()


def test_clients_that_are_asked_about_hold_no_slot(world):
    answers = {}

    def admit(identity):
        return answers.setdefault(identity.port, threading.Event()).wait(WAIT)

    tunnel = world(admit, nconnect=1)
    clients = [world.connect(tunnel) for _ in range(3)]
    wait_until(lambda: len(answers) == 3)
    for client in clients[:2]:
        answers[client.getsockname()[1]].set()
    wait_until(lambda: sorted(record.state for record in tunnel.connections()) == ["connecting", "connecting", "open"])
    for client in clients[:2]:
        reset(client)
    answers[clients[2].getsockname()[1]].set()
    wait_until(lambda: [record.state for record in tunnel.connections()] == ["open"])


@pytest.mark.parametrize("admit", [True, "yes"])
def test_admit_is_a_callable(admit):
    with socket.create_server(("127.0.0.1", 0)) as receive:
        with pytest.raises(TypeError, match="admit: expected a callable that is no coroutine function, got"):
            relay.Tunnel(receive, lambda: None, admit=admit)

        async def ask(identity):
            return True

        with pytest.raises(TypeError, match="admit: expected a callable that is no coroutine"):
            relay.Tunnel(receive, lambda: None, admit=ask)


@pytest.mark.parametrize("lists", [{"allow": ["nonsense"]}, {"deny": "10.0.0.1/8"}, {"allow": "/none"}])
def test_a_wrong_list_is_an_error_at_the_call(lists):
    with socket.create_server(("127.0.0.1", 0)) as receive:
        with pytest.raises(ValueError, match="^(allow|deny): "):
            relay.Tunnel(receive, lambda: None, **lists)


# -- step by step, at times of the test -------------------------------------------------------------------------------

BEGIN = 1000.0  # monotonic seconds
MOST_CALLS, MOST_USERS = 256, 1024


class Rules:
    """Files of rules that note who reads them."""

    def __init__(self, error=None):
        self.error, self.read_by = error, []

    def refresh(self, name):
        self.read_by.append(name)
        if self.error is not None:
            raise self.error


class Client:
    """A connection that waits for an answer."""

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

    def __init__(self):
        self.now, self.jobs = BEGIN, []
        self.loop = SimpleNamespace(timers=Timers(), call=lambda call: call())
        self.read, self.answers = [], []
        self.readings = Readings(self, lambda *arguments: self.read.append(arguments))
        self.questions = Questions(self, lambda *arguments: self.answers.append(arguments))

    def monotonic(self):
        return self.now

    def call_elsewhere(self, job):
        self.jobs.append(job)

    def run_job(self):
        self.jobs.pop(0)()

    def at(self, seconds):
        """Let the time come."""
        self.now = BEGIN + seconds
        self.loop.timers.run(self.now)

    def ask(self, rules=None, user=None):
        client = Client()
        self.readings.read(rules, user, client, self.now)
        return client

    def admit(self, peer=("192.0.2.7", 5)):
        client = Client(peer)
        self.questions.ask(lambda identity: True, client, self.now)
        return client


@pytest.fixture
def names(monkeypatch):
    """The users whose names were looked up."""
    looked_up = []
    monkeypatch.setattr(questions, "look_up", looked_up.append)
    return looked_up


@pytest.fixture
def thread(names, monkeypatch):
    monkeypatch.setattr(questions, "time", found := Thread())
    return found


@pytest.mark.parametrize(("rules", "user"), [(Rules(), 1000), (None, 0), (Rules(ValueError("broken")), None)])
def test_a_client_waits_until_its_files_and_its_name_are_read(thread, names, caplog, rules, user):
    client = thread.ask(rules, user)
    assert (len(thread.jobs), thread.read, names) == (1, [], [])
    thread.at(1.0)
    thread.run_job()
    assert (thread.read, client.pending) == ([(client, BEGIN + 1.0)], None)
    assert names == ([] if user is None else [user])
    thread.at(6.0)
    assert len(thread.read) == 1, "the timer has stopped"
    if rules is not None and rules.error is not None:
        assert [record.getMessage() for record in caplog.records] == ["it: reading the rules failed"]
        assert "broken" in caplog.text
    thread.ask(rules := Rules())
    thread.run_job()
    assert (len(thread.read), rules.read_by) == (2, ["it"])


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
    for user in range(MOST_USERS + 1):
        thread.ask(None, user)
    thread.run_job()
    thread.run_job()
    assert sorted(names) == list(range(MOST_USERS))
    assert len(thread.read) == MOST_USERS + 2


def test_after_its_time_a_client_does_without_and_many_are_one_line_in_the_log(thread, caplog):
    clients = [thread.ask(Rules()) for _ in range(3)]
    thread.at(4.9)
    assert thread.read == []
    thread.at(5.1)
    assert sorted(map(id, clients)) == sorted(id(client) for client, _ in thread.read)
    assert {now for _, now in thread.read} == {BEGIN + 5.1}
    text = "it: the files of allow and deny, or the name of a user, were not read within 5 s; the previous rules, and "
    text += "the user's number, decide until they are"
    assert caplog.record_tuples == [("relay", logging.WARNING, text)]
    thread.run_job()
    assert len(thread.read) == 3, "once"
    other = thread.ask()
    thread.run_job()
    assert thread.read[3:] == [(other, BEGIN + 5.1)]


def test_a_reading_takes_too_long_once_nobody_waits_for_it_any_more(thread):
    too_long = thread.readings.reads_too_long
    assert not too_long(BEGIN)
    thread.at(2.0)
    thread.ask(Rules())
    assert [too_long(BEGIN + seconds) for seconds in (2.0, 6.9, 7.0)] == [False, False, True]
    thread.ask(Rules())  # the time of the next reading is its own
    thread.at(4.0)
    thread.run_job()
    assert [too_long(BEGIN + seconds) for seconds in (8.0, 9.0)] == [False, True]
    thread.at(100.0)
    thread.run_job()
    assert not too_long(BEGIN + 100.0)


def test_rules_were_just_read_for_a_second_from_the_begin_of_the_reading(thread):
    rules, just_read = Rules(), thread.readings.has_just_read
    assert not just_read(rules, BEGIN)
    thread.ask(rules)
    assert not just_read(rules, BEGIN)
    thread.at(0.5)
    thread.run_job()
    assert [just_read(rules, BEGIN + seconds) for seconds in (0.5, 0.99, 1.0)] == [True, True, False]
    assert not just_read(Rules(), BEGIN + 0.5)


def is_kept(refs):
    gc.collect()
    return [ref() is not None for ref in refs]


@pytest.mark.parametrize("kind", ["readings", "questions"])
def test_those_that_have_left_are_forgotten_in_front_of_those_that_wait(thread, kind):
    """Else they would be kept for as long as a file or all calls hang."""
    ask = thread.ask if kind == "readings" else thread.admit
    kept = [ask() for _ in range(1 if kind == "readings" else MOST_CALLS)]
    assert len(thread.jobs) == len(kept)
    first, second, third = clients = [ask() for _ in range(3)]
    refs = [weakref.ref(client) for client in clients]
    second.leave()
    kept.append(ask())
    del second, clients
    assert is_kept(refs) == [True, True, True], "in front of it is one that waits"
    first.leave()
    kept.append(ask())
    del first
    assert is_kept(refs) == [False, False, True]
    third.leave()
    done = thread.read if kind == "readings" else thread.answers
    while thread.jobs:
        thread.run_job()
    assert [client for client, *_ in done] == kept
    assert all(answer is True for _, answer, _ in thread.answers)


def test_those_whose_time_is_over_are_forgotten_as_well(thread):
    thread.ask(Rules())
    thread.at(1.0)
    ref = weakref.ref(thread.ask())
    thread.at(5.5)
    assert is_kept([ref]) == [True]
    thread.at(6.5)
    thread.read.clear()
    assert is_kept([ref]) == [False]


@pytest.mark.parametrize("event", ["another question", "left"])
def test_a_question_that_a_connection_no_longer_awaits_tells_it_nothing(thread, event):
    client = thread.ask()
    client.pending = other = object() if event == "another question" else None
    thread.at(10.0)
    thread.run_job()
    assert (thread.read, client.pending) == ([], other)


@pytest.mark.parametrize(("peer", "shown"), [(("192.0.2.7", 5), "192.0.2.7:5"), ("", "at a Unix socket")])
def test_admit_that_is_late_denies_the_client_by_its_name(thread, caplog, peer, shown):
    client = thread.admit(peer)
    thread.at(5.1)
    ((connection, answer, now),) = thread.answers
    assert (connection, answer, now) == (client, False, BEGIN + 5.1)
    assert answer is False
    text = f"it: admit has not answered within 5 s, so that the client {shown} is denied; it must be quicker"
    assert caplog.messages == [text]
    thread.run_job()
    assert len(thread.answers) == 1
