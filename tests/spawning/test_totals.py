"""``relay.spawning.totals``: sums over workers, also over those that have died."""

from relay.engine.records import ConnectionRecord
from relay.engine.statistics import RECENT, Statistics
from relay.eventloop.histogram import Histogram
from relay.spawning.totals import Totals, add_metrics, last_of

NONE = Statistics("", None, None).metrics(())


def metrics(received, *, done=0, active=0, ages=(), hops=None):
    counts = (*ages, *(0 for _ in NONE.ages.counts))[: len(NONE.ages.counts)]
    return NONE._replace(
        accepted=done + active,
        states={**NONE.states, "open": active},
        ended={**NONE.ended, "done": done},
        received=received,
        ages=Histogram(counts, float(sum(counts))),
        hop_times={**NONE.hop_times, **(hops or {})},
    )


def record(number, started, age):
    return ConnectionRecord(None, None, age, 0, 0, "copy", "closed", "done", str(number), started)


def test_all_of_it_is_added_up():
    times = Histogram((1, 2, 0, 0, 0, 0, 0, 0, 0, 0), 1.5)
    both = add_metrics(
        [metrics(5, done=1, ages=(1, 2), hops={"1:ssh": times}), metrics(7, done=2, active=3, ages=(4,))]
    )
    assert (both.received, both.ended["done"], both.states["open"], both.accepted) == (12, 3, 3, 6)
    assert (both.ages.counts[:3], both.ages.total) == ((5, 2, 0), 7.0)
    assert both.hop_times["1:ssh"] == times
    assert set(both.ended) == set(NONE.ended), "the words without a count stay"


def test_a_worker_that_has_died_stays_in_the_sums():
    totals = Totals(2)
    totals.answered(0, metrics(5, done=1, active=2))
    totals.answered(1, metrics(7))
    totals.ended(0, lost=2)
    now = totals.metrics(3)
    assert (now.received, now.accepted, now.states["open"]) == (12, 3, 0)
    assert (now.ended["done"], now.ended["worker_lost"]) == (1, 2)
    totals.answered(0, metrics(100))  # its successor
    totals.answered(0, metrics(101))
    totals.ended(0)
    assert totals.metrics(4).received == 113
    assert totals.metrics(4).stats().failed == {"worker_lost": 2}


def test_one_that_was_never_asked_adds_only_what_is_lost():
    totals = Totals(1)
    totals.ended(0, lost=3)
    assert totals.metrics(9) == NONE._replace(accepted=9, ended={**NONE.ended, "worker_lost": 3})


def test_the_last_connections_come_in_the_order_of_their_ends():
    totals = Totals(2)
    totals.answered_recent(0, [record(1, 10.0, 5.0), record(2, 11.0, 6.0)])
    totals.answered_recent(1, [record(3, 1.0, 15.0)])
    assert [one.id for one in totals.recent()] == ["1", "3", "2"]
    totals.ended(0)
    totals.answered_recent(0, [record(4, 0.0, 15.5)])
    assert [one.id for one in totals.recent()] == ["1", "4", "3", "2"]


def test_only_the_last_are_kept():
    many = [record(number, float(number), 0.0) for number in range(RECENT + 50)]
    assert last_of([many[::2], many[1::2]]) == many[-RECENT:]


def test_an_answer_that_is_older_than_the_last_one_changes_nothing():
    """Several threads ask at a time, and use the answers in any order."""
    totals = Totals(1)
    totals.answered(0, metrics(5), 2)
    totals.answered(0, metrics(4), 1)
    assert totals.metrics(0).received == 5
    totals.ended(0)
    totals.answered(0, metrics(1), 3)
    assert totals.metrics(0).received == 6
