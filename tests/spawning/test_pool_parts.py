"""``relay.spawning.pool_parts``: the parts of a tunnel in the workers."""

import errno
import itertools
import os
import socket

import pytest
from helpers import Thread
from state_table import rows_of

import relay
from relay.engine.statistics import Statistics
from relay.spawning import pool_parts, questions
from relay.spawning.pool_parts import PartEvent, PartState, SharedDescriptors, next_part_state
from relay.spawning.pool_tunnel import PoolTunnel
from relay.spawning.questions import Question
from relay.spawning.recipes import Recipe

ROWS = [(PartState(state), PartEvent(event), PartState(after)) for state, event, after in rows_of(pool_parts)]


@pytest.mark.parametrize(("state", "event", "after"), ROWS)
def test_each_row_of_the_table(state, event, after):
    assert next_part_state(state, event) is after


def test_what_is_not_in_the_table_changes_nothing():
    listed = {(state, event) for state, event, _ in ROWS}
    assert listed == set(pool_parts._NEXT)
    for state, event in itertools.product(PartState, PartEvent):
        if (state, event) not in listed:
            assert next_part_state(state, event) is state


class Process:
    """A process of a worker that answers as the test says."""

    def __init__(self):
        self.calls = []
        self.answers = {}  # by call

    def ask(self, call, key, *arguments, descriptors=()):
        self.calls.append((call, *arguments))
        question = Question()
        question.number = next(questions._numbers)
        answer = self.answers.get(call)
        question.set_result(answer() if callable(answer) else answer)
        return question


class Slot:
    """The place of a worker, with such a process."""

    problem = ""

    def __init__(self, number):
        self.number = number
        self.process = Process()

    @property
    def answering(self):
        return self.process

    def expect_answers(self):
        pass


@pytest.fixture
def slots():
    return [Slot(0), Slot(1)]


@pytest.fixture
def tunnel(slots):
    made = PoolTunnel(7, slots, Recipe("none:none", {}), relay.listen(":0"), {"name": "tested", "nconnect": -1})
    yield made
    made.finish()


def open_all(tunnel):
    tunnel.open()
    for number in range(2):
        tunnel.on_message(number, {"opened": 7, "address": ["127.0.0.1", 1]})
    tunnel.wait_until_open()


def sent(count):
    return [*Statistics("", None, None).metrics(())._replace(sent=count)]


def test_an_answer_of_a_dead_process_is_not_that_of_its_successor(tunnel, slots):
    """Its last answer is in the sums already; it would be counted twice."""
    open_all(tunnel)
    first = slots[0].process
    first.answers["metrics"] = sent(5)
    slots[1].process.answers["metrics"] = sent(0)
    assert tunnel.stats().sent == 5

    def die():
        """It answers, and is replaced before the answer is used."""
        slots[0].process = Process()
        tunnel.on_died(0, "died")
        tunnel.open_at(0)
        tunnel.on_message(0, {"opened": 7, "address": ["127.0.0.1", 1]})
        return sent(6)

    first.answers["metrics"] = die
    assert tunnel.stats().sent == 5
    slots[0].process.answers["metrics"] = sent(1)
    assert tunnel.stats().sent == 6


def test_what_has_changed_while_a_part_opens_is_in_force_then(tunnel, slots):
    tunnel.open()
    tunnel.on_message(0, {"opened": 7, "address": ["127.0.0.1", 1]})
    tunnel.pause()
    tunnel.update(nconnect=3)
    assert [call for call, *_ in slots[0].process.calls] == ["open", "pause", "update"]
    assert [call for call, *_ in slots[1].process.calls] == ["open"]
    tunnel.on_message(1, {"opened": 7, "address": ["127.0.0.1", 1]})
    assert slots[1].process.calls[1:] == [("pause", False), ("update", {"nconnect": 3})]
    slots[1].process = Process()
    tunnel.on_died(1, "died")
    tunnel.open_at(1)
    ((_, request),) = slots[1].process.calls
    assert (request["paused"], request["options"]["nconnect"], request["again"]) == (True, 3, True)
    tunnel.resume()
    tunnel.on_message(1, {"opened": 7, "address": ["127.0.0.1", 1]})
    assert slots[1].process.calls[1:] == [("resume",)]


def test_connections_of_a_part_that_has_not_reported_that_it_is_open_are_lost_with_it(tunnel):
    tunnel.open()
    tunnel._shared._table.admit(0, 1)
    assert tunnel.on_died(0, "died") == 1
    assert tunnel.loads() == [0, 0]


def test_the_last_worker_may_close_it_while_another_thread_reads_its_loads(tunnel, slots):
    """The main thread reads them at the first signal, when a tunnel may just have drained: relay ended with that."""
    open_all(tunnel)
    table = tunnel._shared._table

    def finish():
        if tunnel._changed.acquire(blocking=False):
            tunnel._changed.release()
            tunnel.finish()

    class Read:
        def loads(self):
            Thread(finish).result()
            return table.loads()

        def __getattr__(self, name):
            return getattr(table, name)

    tunnel._shared._table = Read()
    assert tunnel.loads() == [0, 0]
    tunnel.finish()
    assert tunnel.loads() == []


def test_the_others_look_for_clients_after_a_death(tunnel, slots):
    """The kernel wakes one worker for a client, and that one may be dead."""
    open_all(tunnel)
    tunnel.on_died(0, "died")
    assert slots[1].process.calls[-1] == ("take_backlog",)


def test_a_part_for_which_no_descriptor_is_left_has_failed(tunnel, monkeypatch, caplog):
    open_all(tunnel)
    tunnel.on_died(1, "died")

    def exhausted(descriptor):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "dup", exhausted)
    tunnel.open_at(1)
    assert [part.value for part in tunnel._parts] == ["open", "failed"]
    assert caplog.messages == ["tested: worker 2 cannot open it: [Errno 24] Too many open files"]


def test_a_worker_that_may_not_be_open_is_not_waited_for_while_it_is_replaced(tunnel, slots):
    slots[1].process = None
    tunnel.open()
    tunnel.on_message(0, {"opened": 7, "address": ["127.0.0.1", 1]})
    tunnel.wait_until_open()
    assert [part.value for part in tunnel._parts] == ["open", "absent"]


def test_the_end_of_the_pool_ends_the_wait(tunnel):
    tunnel.open()
    tunnel.finish()
    with pytest.raises(relay.RelayError, match="tested: the workers were ended before they listened"):
        tunnel.wait_until_open()


def test_a_late_client_is_a_reason_to_ask(tunnel, slots):
    open_all(tunnel)
    tunnel.on_message(0, {"late": 7, "worker": 1})
    assert slots[1].process.calls[-1] == ("turn",)
    slots[1].process = None
    tunnel.on_message(0, {"late": 7, "worker": 1})


def test_all_workers_pause_before_one_closes_if_connections_may_finish(tunnel, slots):
    """So that none passes a client to one that has closed."""
    open_all(tunnel)
    tunnel.start_close(3.0, 2.0)
    tunnel.start_close(0.0)
    for slot in slots:
        assert slot.process.calls[1:] == [("pause", False), ("close", 3.0, 2.0), ("close", 0.0, 0.0)]


def test_each_worker_gets_its_own_end_and_those_to_all():
    with relay.listen(":0") as listening:
        shared = SharedDescriptors(listening, 3)
        lists = [shared.of_worker(index) for index in range(3)]
        assert {tuple(found[2:]) for found in lists} == {tuple(lists[0][2:])}
        assert len({found[1] for found in lists}) == 3
        assert all(len(found) == 6 for found in lists)
        for number, found in enumerate(lists):
            with socket.socket(fileno=os.dup(found[2 + number])) as to_it, socket.socket(fileno=os.dup(found[1])) as it:
                to_it.send(b"client")
                assert it.recv(10) == b"client"
        shared.close()
        assert listening.fileno() == -1
        shared.close()


def test_a_single_worker_passes_no_client_on():
    with relay.listen(":0") as listening:
        shared = SharedDescriptors(listening, 1)
        assert shared.of_worker(0)[1:] == [listening.fileno()]
        shared.close()


def test_a_listener_that_is_released_stays_open():
    with relay.listen(":0") as listening:
        shared = SharedDescriptors(listening, 1)
        assert not os.get_blocking(listening.fileno())
        shared.release_listener()
        shared.close()
        assert listening.fileno() != -1
        assert os.get_blocking(listening.fileno())


def test_the_counts_stay_after_the_end():
    shared = SharedDescriptors(None, 2)
    shared._table.admit(0, 1)
    shared._table.admit(1, 1)
    assert (shared.loads(), shared.accepted(), shared.bury(0)) == ([1, 1], 2, 1)
    shared.close()
    assert (shared.loads(), shared.accepted(), shared.bury(1)) == ([], 2, 0)


def test_without_descriptors_nothing_is_left_open(monkeypatch):
    made = []

    def exhausted(*_):
        if len(made) == 2:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        made.append((socket.socket(), socket.socket()))
        return made[-1]

    monkeypatch.setattr(socket, "socketpair", exhausted)
    with pytest.raises(OSError, match="Too many open files"):
        SharedDescriptors(None, 3)
    assert [sock.fileno() for pair in made for sock in pair] == [-1] * 4
