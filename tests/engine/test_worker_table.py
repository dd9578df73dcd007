"""``relay.engine.worker_table``: the counts that the workers of a tunnel share."""

import itertools
import os

import pytest

from relay.engine.worker_table import AWAY, CHANCE, WorkerTable, quota


@pytest.fixture
def table():
    """Of four workers, all of which take clients."""
    descriptor = WorkerTable.make(4)
    made = WorkerTable(descriptor, 4)
    os.close(descriptor)
    for worker in range(4):
        made.store_load(worker, 0)
    yield made
    made.close()


def load(table, *loads):
    for worker, connections in enumerate(loads):
        table.store_load(worker, connections)


@pytest.mark.parametrize(("limit", "workers"), [*itertools.product([0, 1, 2, 3, 7, 100, 101], [1, 2, 3, 8])])
def test_the_quotas_add_up_to_the_limit_and_are_even(limit, workers):
    quotas = [quota(limit, workers, number) for number in range(workers)]
    assert sum(quotas) == limit
    assert max(quotas) - min(quotas) <= 1


def test_no_limit_is_no_quota():
    assert [quota(-1, 2, number) for number in range(2)] == [-1, -1]


def test_processes_see_the_same():
    descriptor = WorkerTable.make(2)
    one, other = WorkerTable(descriptor, 2), WorkerTable(descriptor, 2)
    os.close(descriptor)
    one.admit(1, 3)
    assert (other.loads(), other.accepted()) == ([0, 3], [0, 1])
    for table in (one, other):
        table.close()


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="this machine does not name its descriptors")
def test_the_shared_memory_is_no_file_where_the_kernel_has_such_memory():
    descriptor = WorkerTable.make(4)
    name = os.readlink(f"/proc/self/fd/{descriptor}")
    os.close(descriptor)
    assert name.startswith("/memfd:relay-workers ")


def test_elsewhere_it_is_a_file_without_a_name(monkeypatch):
    monkeypatch.delattr(os, "memfd_create", raising=False)
    descriptor = WorkerTable.make(2)
    table = WorkerTable(descriptor, 2)
    assert os.fstat(descriptor).st_nlink == 0
    os.close(descriptor)
    table.admit(1, 3)
    assert (table.loads(), table.accepted()) == ([0, 3], [0, 1])
    table.close()


def test_the_shared_memory_has_a_cell_for_each_count():
    descriptor = WorkerTable.make(4)
    assert os.fstat(descriptor).st_size == 8 * (4 + 4 + 4 * 4 + 4 * 4)
    os.close(descriptor)


def test_every_worker_is_away_at_first():
    descriptor = WorkerTable.make(3)
    table = WorkerTable(descriptor, 3)
    os.close(descriptor)
    table.store_load(0, 50)
    assert table.better(0, -1) is None
    table.close()


@pytest.mark.parametrize(
    ("loads", "better"),
    [
        ((0, 0, 0, 0), None),
        ((1, 1, 1, 1), None),
        ((1, 0, 1, 1), 1),  # few connections are balanced exactly
        ((7, 6, 7, 7), 1),
        ((8, 7, 8, 8), None),  # and many to an eighth
        ((80, 70, 80, 80), None),
        ((80, 69, 80, 80), 1),
        ((80, AWAY, 60, 50), 3),  # a worker that is away gets none
        ((80, AWAY, AWAY, AWAY), None),
        ((50, 90, 90, 90), None),
    ],
)
def test_the_least_loaded_worker_gets_the_client(table, loads, better):
    load(table, *loads)
    found = table.better(0, -1)
    assert (found.worker if found is not None else None) == better


@pytest.mark.parametrize(
    ("mine", "others", "is_passed"),
    [
        (16, 0, False),
        (32, 0, False),
        (33, 11, True),
        (33, 12, False),
        (80, 35, True),
        (80, 36, False),
        (150, 90, False),
    ],
)
def test_short_connections_are_not_passed_for_a_difference_by_chance(table, mine, others, is_passed):
    load(table, mine, others, others, others)
    assert (table.better(0, -1, churning=True) is not None) == is_passed


def test_short_connections_are_shared_75_to_25_at_most(table):
    for total in (*range(50, 400, 7), *range(400, 5001, 211)):
        kept = []
        for mine in range(total // 2, total + 1):
            load(table, mine, total - mine, AWAY, AWAY)
            if table.is_even(0, CHANCE) or table.better(0, -1, churning=True) is None:
                kept.append(mine)
        assert 0.6 < max(kept) / total <= 0.75, total
        assert kept == [*range(total // 2, max(kept) + 1)], "with more than that, each is passed"


def test_what_has_come_and_gone(table):
    for connections in (1, 2, 3):
        table.admit(1, connections)
    table.store_load(1, AWAY + 1)
    assert table.come_and_gone(1) == (3, 2)


def test_a_worker_that_takes_no_client_passes_those_that_it_has_on(table):
    load(table, AWAY + 5, 1, 2, 3)
    assert table.better(0, -1) == (1, 1)


def test_the_clients_on_their_way_to_a_worker_count_as_its_own(table):
    load(table, 10, 4, 4, 4)
    got = []
    for _ in range(16):
        found = table.better(0, -1)
        if found is None:
            break
        table.store_sent(0, *found)
        got.append(found.worker)
    assert [got.count(worker) for worker in range(4)] == [0, 5, 5, 5]
    table.store_taken(1, 0, 5)  # the numbers of those that have come; they are not in its load, so it gets as many
    assert table.better(0, -1) == (1, 6)


def test_the_clients_that_shake_hands_count_as_connections(table):
    for worker, handshakes in enumerate((9, 6, 7, 3)):
        table.store_handshakes(worker, handshakes)
    assert table.better(0, -1) == (3, 1)
    table.store_handshakes(3, 9)
    load(table, 0, 5, 0, 0)
    assert table.better(0, -1) == (2, 1)
    assert table.loads() == [0, 5, 0, 0], "and still are none"
    assert table.bury(0) == 0
    for worker in (1, 2, 3):
        table.store_handshakes(worker, 0)
    load(table, 5, 5, 5, 5)
    assert table.better(0, -1) is None, "those of a dead worker have ended"


def test_a_number_that_was_never_sent_is_corrected_by_the_next(table):
    load(table, 10, 0, 10, 10)
    assert table.better(0, -1) == (1, 1)
    table.store_sent(0, 1, 1)  # and then the worker is killed; its successor goes on
    assert table.better(0, -1) == (1, 2)
    table.store_sent(0, 1, 2)
    table.store_taken(1, 0, 2)
    assert table.better(0, -1) == (1, 3)
    load(table, 1, 0, 1, 1)
    assert table.better(0, -1) == (1, 3), "nothing is on its way"


def test_nobody_gets_more_than_its_quota(table):
    load(table, 9, 4, 9, 9)
    assert table.better(0, 4 * 68) is None, "its quota is 68; 64 places stay free for clients of its own"
    assert table.better(0, 4 * 69) == (1, 1)


def test_a_worker_whose_quota_is_no_client_gets_none(table):
    load(table, 10, 10, 10, 0)
    assert table.better(0, 3) is None, "the limit is of the first three"
    assert table.better(0, -1) == (3, 1)


@pytest.mark.parametrize(("worker", "to"), [*itertools.permutations(range(4), 2)])
def test_the_clients_of_each_pair_of_workers_are_counted_alone(table, worker, to):
    for source, target in itertools.permutations(range(4), 2):
        count = 10 * source + 100 * target + 1
        table.store_sent(source, target, count)
        table.store_taken(target, source, count)
    load(table, *(0 if number == to else 9 for number in range(4)))
    count = 10 * worker + 100 * to + 1
    assert table.better(worker, -1) == (to, count + 1)
    assert not table.is_late(worker, to, count)
    assert table.is_late(worker, to, count + 1)


@pytest.mark.parametrize("connections", [0, 3])
def test_a_client_for_a_worker_that_takes_none_is_not_late(table, connections):
    assert table.is_late(0, 2, 1)
    table.store_load(2, AWAY + connections)
    assert not table.is_late(0, 2, 1)


@pytest.mark.parametrize(
    ("mine", "slack", "is_even"),
    [(4, 0, True), (5, 0, False), (5, 1, False), (5, 2, True), (7, 4, False), (9, 9, True), (3, 0, True)],
)
def test_a_worker_is_even_with_the_least_loaded_one(table, mine, slack, is_even):
    load(table, 9, mine, 4, AWAY)
    assert table.is_even(1, slack) == is_even


def test_a_dead_worker_is_buried(table):
    table.admit(2, 1)
    table.admit(2, 2)
    assert table.bury(2) == 2
    assert (table.loads(), table.accepted()) == ([0, 0, 0, 0], [0, 0, 2, 0])
    load(table, 80, 80, AWAY, 80)
    assert table.better(0, -1) is None
