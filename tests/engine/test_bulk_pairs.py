"""Bulk transfers beside each other: a few, many, and those that have gone quiet."""

import contextlib
import select

import pytest
from flow_bench import Bench, put, take_all
from helpers import BLOCK

from relay.engine import bulk_pairs
from relay.engine.bulk_pairs import FEW, QUIET
from relay.eventloop.loop import Loop

LARGE = 32_768

pytestmark = pytest.mark.skipif(not hasattr(select, "epoll"), reason="there is no epoll")


@pytest.fixture(params=["splice", "copy", "stream"])
def connect(request):
    """Opens connections of one loop."""
    with contextlib.ExitStack() as stack:
        bench = Bench(stack)

        def connect():
            line = bench.connect(client={} if request.param == "stream" else None)
            line.up.spliceable = request.param != "copy"
            return line

        yield connect


def pass_on(line, data, times=1):
    """Let a line pass on something, so often."""
    for _ in range(times):
        assert line.client.send(data) == len(data)
        line.bench.turn()
        assert take_all(line.target) == data


def in_bulk(line):
    """Return whether the loop handles the events of both sockets with those of bulk transfers."""
    (is_bulk,) = {end.fileno() in line.bench.loop.bulk for end in (line.near, line.far)}
    return is_bulk


def test_a_few_bulk_transfers_are_handled_like_all_others_and_more_of_them_are_not(connect):
    lines = [connect() for _ in range(FEW + 3)]
    bulk = lines[0].bench.loop.bulk
    for line in lines[:FEW]:
        pass_on(line, BLOCK[:LARGE], 5)
    assert bulk == set()
    pass_on(lines[FEW], BLOCK[:LARGE], 5)
    assert [in_bulk(line) for line in lines] == [True] * (FEW + 1) + [False] * 2, "all of them have the same turns"
    pass_on(lines[0], b"small")
    pass_on(lines[-2], BLOCK[:LARGE], 5)
    assert [in_bulk(line) for line in lines] == [False] + [True] * (FEW + 1) + [False]
    for line in lines[1:FEW]:
        line.client.close()
        line.target.close()
        line.bench.rest()
    pass_on(lines[-1], BLOCK[:LARGE], 5)
    assert [in_bulk(line) for line in lines[FEW:]] == [True, True, False]
    assert len(bulk) == 2 * 2, "those that have ended leave nothing"
    for line in lines[FEW:]:
        pass_on(line, b"small")
    assert bulk == set()
    assert lines[0].bench.loop.timers.first == float("inf")
    for line in (lines[0], *lines[FEW:]):
        pass_on(line, b"still")


def test_those_that_have_gone_quiet_after_a_large_read_are_handled_with_all_others(connect):
    lines = [connect() for _ in range(FEW + 2)]
    bench = lines[0].bench
    for line in lines:
        pass_on(line, BLOCK[:LARGE], 5)
    bench.pass_by(QUIET / 2)
    assert all(in_bulk(line) for line in lines)
    for _ in range(8):  # the last one goes on
        bench.pass_by(QUIET / 4)
        pass_on(lines[-1], BLOCK[:LARGE])
    assert [in_bulk(line) for line in lines] == [False] * (FEW + 1) + [True]
    assert bench.loop.timers.first == float("inf"), "a thread without many of them is not woken"


def test_those_that_wait_for_their_turn_are_not_quiet(connect):
    lines = [connect() for _ in range(FEW + 2)]
    bench = lines[0].bench
    for line in lines:
        pass_on(line, BLOCK[:LARGE], 5)
    for line in lines:
        put(line.client, BLOCK[:LARGE])
    bench.turn(4 * QUIET)  # the loop was busy with others, and handles a few of them now
    handled = [take_all(line.target) != b"" for line in lines]
    assert sum(handled) == 4
    assert all(in_bulk(line) for line in lines)
    bench.turn(4 * QUIET)
    assert [in_bulk(line) for line in lines] == [not was for was in handled]


@pytest.mark.parametrize("why", ["not watched", "of another socket"])
def test_only_what_is_watched_is_moved(connect, monkeypatch, why):
    monkeypatch.setattr(bulk_pairs, "FEW", 0)
    line = connect()
    loop, near, far = line.bench.loop, line.near.fileno(), line.far.fileno()
    if why == "not watched":
        line.down.set_interest(-1)
    else:
        loop.handlers[far] = lambda event, now: None
    pass_on(line, BLOCK[:LARGE], 5)
    assert loop.bulk == {near}


def test_where_there_is_no_second_epoll_nothing_is_looked_for(connect, monkeypatch):
    monkeypatch.setattr(Loop, "_has_bulk_poller", lambda loop: False)
    lines = [connect() for _ in range(FEW + 2)]
    for line in lines:
        pass_on(line, BLOCK[:LARGE], 5)
    assert lines[0].bench.loop.timers.first == float("inf")
    for line in lines:
        pass_on(line, b"small")
