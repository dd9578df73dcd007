"""``relay.engine.shared_acceptor``: what is counted, and how it waits; its clients are in ``test_worker_tunnel.py``."""

import os
import re
import select
import socket
from pathlib import Path

import pytest

import relay
from relay.engine import changes
from relay.engine.shared_acceptor import WorkerPlace, _Churn
from relay.engine.worker_table import WorkerTable
from relay.engine.worker_tunnel import WorkerTunnel

NUMBER = 1


class Counts:
    """The connections that have come and gone, as the test says."""

    def __init__(self, come, gone):
        self.counts = come, gone

    def come_and_gone(self, worker):
        assert worker == NUMBER
        return self.counts


@pytest.mark.parametrize(
    "steps",
    [
        [((100, 0), False)],
        [((100, 50), False), ((200, 101), True)],  # it is the half of what is new, and the half of what was
        [((100, 51), True)],
        [((100, 100), True), ((200, 100), False)],
        [((100, 0), False), ((200, 50), False), ((300, 90), True)],
        [((1, 4), True), ((101, 4), False)],  # never more than one for each that came
        [((0, 1), True)],
        [((0, 0), False)],
    ],
)
def test_most_connections_are_short_where_more_than_a_quarter_of_those_that_come_ends(steps):
    counts = Counts(1000, 500)
    churn = _Churn(counts, NUMBER)
    assert not churn.is_fast
    for (come, gone), is_fast in steps:
        counts.counts = 1000 + come, 500 + gone
        churn.look()
        assert churn.is_fast is is_fast


def test_its_place_closes_all_of_it():
    pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(3)]
    memory = WorkerTable.make(3)
    place = WorkerPlace(NUMBER, WorkerTable(memory, 3), [pairs[NUMBER][0], *(pair[1] for pair in pairs)])
    os.close(memory)
    place.close()
    assert {end.fileno() for end in (place.incoming, *place.outgoing)} == {-1}
    with pytest.raises(ValueError, match="released"):
        place.table.loads()
    for pair in pairs:
        pair[0].close()


def masks_of(descriptor):
    """Return the events for which the epolls of this process wait at a descriptor."""
    found = []
    for entry in Path("/proc/self/fdinfo").iterdir():
        if entry.exists():
            found += re.findall(rf"^tfd: +{descriptor} events: +([0-9a-f]+)", entry.read_text(), re.MULTILINE)
    return [int(mask, 16) & ~(select.EPOLLERR | select.EPOLLHUP) for mask in found]


@pytest.mark.skipif(not hasattr(select, "EPOLLEXCLUSIVE"), reason="this machine has no EPOLLEXCLUSIVE")
@pytest.mark.parametrize(("limit", "alone"), [(-1, True), (8, False)])
def test_one_worker_is_woken_unless_it_may_have_no_room(limit, alone, echo_server):
    """With a limit of connections all are woken: one at its part of it accepts none, and the others would not know."""
    pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(2)]
    memory = WorkerTable.make(2)
    place = WorkerPlace(NUMBER, WorkerTable(memory, 2), [pairs[NUMBER][0], *(pair[1] for pair in pairs)])
    os.close(memory)
    receive = relay.listen(":0")
    with pairs[0][0], WorkerTunnel(receive, echo_server.factory(), place=place, nconnect=limit) as tunnel:
        tunnel.turn()
        assert masks_of(receive.fileno()) == [select.EPOLLIN | (select.EPOLLEXCLUSIVE if alone else 0)]
        assert masks_of(place.incoming.fileno()) == [select.EPOLLIN]
        assert not place.incoming.getblocking()
        changes.update(tunnel, nconnect=8 if alone else -1, linger=None)
        assert masks_of(receive.fileno()) == [select.EPOLLIN | (0 if alone else select.EPOLLEXCLUSIVE)]
        tunnel.pause()
        assert masks_of(receive.fileno()) == masks_of(place.incoming.fileno()) == []
