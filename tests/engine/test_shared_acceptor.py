"""``relay.engine.shared_acceptor`` step by step: which clients a worker passes on, takes, and reports as late."""

from __future__ import annotations

import errno
import json
import math
import os
import socket
import time
from array import array

import pytest
from helpers import WAIT

from relay.engine import shared_acceptor as module
from relay.engine.acceptor import own_listener
from relay.engine.shared_acceptor import SharedAcceptor, WorkerPlace
from relay.engine.worker_table import CHANCE, Passed
from relay.eventloop.loop import Timers
from relay.eventloop.poller import IN
from relay.streams.upgrade_listener import UpgradeListener

NOW = 1234.5
PEER = ("192.0.2.7", 5)
NUMBER = 1


class Loop:
    """The loop of the relay thread."""

    closing_forgets = True

    def __init__(self):
        self.timers, self.handlers, self.masks = Timers(), {}, {}

    def watch(self, descriptor, mask, handler):
        self.handlers[descriptor], self.masks[descriptor] = handler, mask

    def forget(self, descriptor):
        del self.handlers[descriptor]


class Owner:
    """The relay thread of a worker; notes its calls."""

    name, unlimited, hand, tunnel_limit = "it", True, None, -1
    spare = room = math.inf  # how often there is one

    def __init__(self):
        self.calls, self.loop, self.workspace = [], Loop(), object()
        self.on_accepted = lambda: None

    def accepted(self, client, stream, peer, now):
        self.calls.append(("accepted", stream, peer, now))
        self.blocking = client.getblocking()
        self.inheritable = os.get_inheritable(client.fileno())
        self.kind = (client.family, client.type, client.proto)
        client.close()
        self.on_accepted()

    def hand_of(self, listener):
        return self.hand

    def has_spare_fd(self):
        self.spare -= 1
        return self.spare >= 0

    def has_room(self):
        self.room -= 1
        return self.room >= 0

    def accept_failed(self, error):
        self.calls.append(("accept_failed", error.errno, error.strerror))

    def make_room(self, now):
        self.calls.append(("make_room", now))

    def set_taking(self, taking):
        self.calls.append(("set_taking", taking))

    def report_late(self, worker):
        self.calls.append(("report_late", worker))

    def named(self, name):
        return [call[1:] for call in self.calls if call[0] == name]


class Table:
    """The counts, as the test decides."""

    def __init__(self):
        self.calls, self.found, self.late = [], [], set()
        self.even = True
        self.counts = (0, 0)

    def is_even(self, worker, slack):
        self.calls.append(("is_even", worker, slack))
        return self.even

    def better(self, worker, limit, *, churning):
        self.calls.append(("better", worker, limit, churning))
        return self.found.pop(0) if self.found else None

    def come_and_gone(self, worker):
        assert worker == NUMBER
        return self.counts

    def is_late(self, *arguments):
        return arguments in self.late

    def store_sent(self, *arguments):
        self.calls.append(("sent", *arguments))

    def store_handshakes(self, *arguments):
        self.calls.append(("handshakes", *arguments))

    def store_taken(self, *arguments):
        self.calls.append(("taken", *arguments))

    def close(self):
        self.calls.append("close")

    def named(self, name):
        return [call[1:] for call in self.calls if call[0] == name]


@pytest.fixture
def owner():
    return Owner()


@pytest.fixture
def table():
    return Table()


@pytest.fixture
def pairs():
    """For each of three workers, the end at which it takes clients and the one at which others pass them."""
    made = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(3)]
    yield made
    for pair in made:
        for end in pair:
            end.close()


@pytest.fixture
def place(table, pairs):
    return WorkerPlace(NUMBER, table, pairs[NUMBER][0], [pair[1] for pair in pairs])


@pytest.fixture
def one(owner, listener, place):
    """An acceptor that listens, and to which clients come that the test makes."""
    made = SharedAcceptor(owner, own_listener(listener), place)
    made.waiting = []

    def take():
        if not made.waiting:
            raise BlockingIOError
        return made.waiting.pop(0), PEER

    made._take = take
    made.listen(True)
    del owner.calls[:]
    yield made
    for client in made.waiting:
        client.close()


@pytest.fixture
def clients():
    made = []

    def build(count=1):
        new = [socket.socket() for _ in range(count)]
        made.extend(new)
        return new

    yield build
    for client in made:
        client.close()


def sent_to(pairs, worker):
    """Return the messages that wait at a worker: their heads, the peers and the descriptors."""
    found = []
    pairs[worker][0].setblocking(False)
    while True:
        try:
            data, rights, _, _ = pairs[worker][0].recvmsg(512, socket.CMSG_SPACE(4))
        except BlockingIOError:
            return found
        for descriptor in array("i", rights[0][2]):
            os.close(descriptor)
        head = module._HEAD
        found.append((*head.unpack_from(data), json.loads(data[head.size :])))


def pass_to(pairs, client, peer=PEER, worker=NUMBER, source=2, serial=7):
    """Pass a client to a worker as another one does; without a client it has been lost on the way."""
    rights = [] if client is None else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [client.fileno()]))]
    pairs[worker][1].sendmsg([module._HEAD.pack(source, serial), json.dumps(peer).encode()], rights)


# -- where it listens ----------------------------------------------------------------------------------------------


def test_its_place_closes_all_of_it(place, pairs, table):
    place.close()
    assert table.calls == ["close"]
    assert {pairs[NUMBER][0].fileno(), *(pair[1].fileno() for pair in pairs)} == {-1}


def test_it_waits_for_clients_at_both_places(owner, listener, pairs, one):
    incoming = pairs[NUMBER][0]
    assert not incoming.getblocking()
    assert not listener.getblocking()
    assert owner.loop.handlers == {listener.fileno(): one._ready, incoming.fileno(): one._received}
    assert owner.loop.masks[incoming.fileno()] == IN
    assert one.is_taking
    one.listen(False)
    assert owner.loop.handlers == {}
    assert owner.calls == [("set_taking", False)]
    assert not one.is_taking
    one.listen(True)
    assert owner.calls == [("set_taking", False), ("set_taking", True)]


@pytest.mark.parametrize(
    ("limit", "forgets", "alone"), [(-1, True, True), (0, True, False), (8, True, False), (-1, False, False)]
)
def test_one_worker_is_woken_where_that_is_possible(owner, listener, place, limit, forgets, alone):
    owner.tunnel_limit = limit
    owner.loop.closing_forgets = forgets
    SharedAcceptor(owner, own_listener(listener), place).listen(True)
    assert owner.loop.masks[listener.fileno()] == (IN | module.select.EPOLLEXCLUSIVE if alone else IN)


def test_it_takes_no_client_of_others_where_its_socket_was_closed(owner, listener, place):
    one = SharedAcceptor(owner, own_listener(listener), place)
    listener.close()
    one.listen(True)
    assert (owner.loop.handlers, owner.calls, one.is_taking) == ({}, [], False)
    one.listen(False)
    assert owner.calls == []


def test_it_begins_to_take_only_once(owner, one):
    one._try_again(NOW)
    assert owner.calls == []


# -- clients that it accepts ---------------------------------------------------------------------------------------


def test_it_accepts_at_its_listener(owner, listener, place):
    one = SharedAcceptor(owner, own_listener(listener), place)
    with socket.create_connection(listener.getsockname(), WAIT) as near:
        client, peer = one._accept()
        assert peer == near.getsockname()
        client.close()


def test_a_client_stays_while_the_workers_are_even(table, one, clients):
    one.waiting += clients()
    client, peer = one._accept()
    assert peer == PEER
    assert client.fileno() >= 0
    assert table.calls == [("is_even", NUMBER, 0)]
    with pytest.raises(BlockingIOError):
        one._accept()


def test_a_client_goes_to_a_worker_that_has_fewer(owner, table, pairs, one, clients):
    table.even = False
    table.found = [Passed(2, 5), Passed(0, 6), None]
    owner.tunnel_limit = 77
    made = clients(3)
    one.waiting += made
    client, _ = one._accept()
    assert client is made[2]
    assert [each.fileno() for each in made[:2]] == [-1, -1]
    assert sent_to(pairs, 2) == [(NUMBER, 5, list(PEER))]
    assert sent_to(pairs, 0) == [(NUMBER, 6, list(PEER))]
    assert table.named("sent") == [(NUMBER, 2, 5), (NUMBER, 0, 6)]
    assert table.named("better") == [(NUMBER, 77, False)] * 3


def test_it_passes_on_only_so_many_in_one_turn(table, pairs, one, clients):
    table.even = False
    table.found = [Passed(2, serial) for serial in range(20)]
    made = clients(17)
    one.waiting += made
    client, _ = one._accept()
    assert client is made[16]
    assert len(sent_to(pairs, 2)) == 16


def test_it_keeps_none_if_all_went_to_others(table, one, clients):
    table.even = False
    table.found = [Passed(2, 1)]
    one.waiting += clients()
    with pytest.raises(BlockingIOError):
        one._accept()


def test_a_client_stays_if_too_many_wait_for_the_other_worker(table, pairs, one, clients):
    table.even = False
    serial = 0
    while True:
        serial += 1
        table.found = [Passed(2, serial)]
        (client,) = clients()
        one.waiting += [client]
        try:
            kept, _ = one._accept()
            break
        except BlockingIOError:
            continue
    assert kept is client
    assert client.fileno() >= 0
    assert table.named("sent")[-2:] == [(NUMBER, 2, serial), (NUMBER, 2, serial - 1)]
    assert len(sent_to(pairs, 2)) == serial - 1


@pytest.mark.parametrize("peer", ["", b"\0abstract"])
def test_a_peer_without_an_address_has_none_there(peer, pairs, one, clients):
    (client,) = clients()
    assert one._pass_on((client, peer), Passed(2, 5))
    assert sent_to(pairs, 2) == [(NUMBER, 5, "")]


def count(one, table, come, gone):
    """Let it look after so many connections have come and gone."""
    table.counts = (come, gone)
    for _ in range(64):
        one._take = lambda: (None, PEER)
        one._accept()


def test_while_most_connections_are_short_a_few_more_are_no_reason(table, one):
    count(one, table, 100, 0)
    assert {slack for _, slack in table.named("is_even")} == {0}
    table.calls.clear()
    count(one, table, 200, 100)
    assert [slack for _, slack in table.named("is_even")] == [0] * 63 + [CHANCE]
    table.even = False
    one._accept()
    assert table.named("better") == [(NUMBER, -1, True)]
    table.even = True
    count(one, table, 300, 100)
    count(one, table, 400, 100)
    assert one._slack == 0


@pytest.mark.parametrize(
    ("steps", "share"),
    [
        ([(100, 50)], 0.25),
        ([(100, 51)], 0.255),
        ([(100, 0), (200, 50)], 0.25),
        ([(100, 50), (200, 50)], 0.125),
        ([(1, 4)], 0.5),
        ([(0, 1)], 0.5),
        ([(0, 0)], 0.0),
    ],
)
def test_the_share_that_ends(table, one, steps, share):
    for table.counts in steps:
        one._churn.look()
    assert one._churn._gone_share == pytest.approx(share)
    assert one._churn.is_fast is (share > 0.25)


def test_the_share_begins_with_the_counts_of_before(owner, listener, table, place):
    table.counts = (1000, 1000)
    one = SharedAcceptor(owner, own_listener(listener), place)
    assert (one._churn.is_fast, one._churn._gone_share, one._slack, one._until_look) == (False, 0.0, 0, 64)
    table.counts = (1100, 1000)
    one._churn.look()
    assert one._churn._gone_share == 0.0


# -- clients that it takes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("peer", "found"), [(PEER, PEER), ("", ""), (["::1", 5, 0, 0], ("::1", 5, 0, 0))])
def test_a_client_of_another_worker_is_as_any_other(owner, listener, table, pairs, one, clients, peer, found):
    (client,) = clients()
    pass_to(pairs, client, peer)
    one._received(IN, NOW)
    assert owner.calls == [("accepted", None, found, NOW)]
    assert (owner.blocking, owner.inheritable) == (False, False)
    assert owner.kind == (listener.family, listener.type, listener.proto)
    assert table.named("taken") == [(NUMBER, 2, 7)]


def test_it_may_first_send_a_request(owner, listener, place, pairs, clients):
    taken = []
    owner.hand = lambda *arguments: taken.append(arguments)
    one = SharedAcceptor(owner, own_listener(listener), place)
    one.listen(True)
    pass_to(pairs, *clients())
    one._received(IN, NOW)
    ((client, peer, now),) = taken
    client.close()
    assert (peer, now) == (PEER, NOW)
    assert owner.named("accepted") == []


def test_it_takes_only_so_many_in_one_turn(owner, pairs, one, clients):
    for client in clients(17):
        pass_to(pairs, client)
    one._received(IN, NOW)
    assert len(owner.named("accepted")) == 16
    one._received(IN, NOW)
    assert len(owner.named("accepted")) == 17


def test_it_takes_none_once_there_is_no_room(owner, pairs, one, clients):
    for client in clients(3):
        pass_to(pairs, client)
    owner.on_accepted = lambda: one.listen(False)
    one._received(IN, NOW)
    assert len(owner.named("accepted")) == 1


def test_without_a_spare_descriptor_it_makes_room(owner, pairs, one, clients):
    for client in clients(2):
        pass_to(pairs, client)
    owner.spare = 1
    one._received(IN, NOW)
    assert [name for name, *_ in owner.calls] == ["accepted", "make_room", "set_taking"]
    assert owner.named("make_room") == [(NOW,)]
    assert one._retry.due == NOW + 0.05


def test_a_client_whose_descriptor_was_lost_is_an_error(owner, table, pairs, one, clients):
    pass_to(pairs, None)
    pass_to(pairs, *clients())
    one._received(IN, NOW)
    number = errno.EMFILE
    assert owner.calls[:2] == [("accept_failed", number, os.strerror(number)), ("make_room", NOW)]
    assert owner.named("accepted") == []
    assert table.named("taken") == [(NUMBER, 2, 7)]


# -- its end -------------------------------------------------------------------------------------------------------


def test_before_its_end_it_takes_all_that_others_have_passed(owner, listener, pairs, one, clients):
    for client in clients(20):
        pass_to(pairs, client)
    before = time.monotonic()
    one.close()
    taken = owner.named("accepted")
    assert len(taken) == 20
    assert before <= taken[0][2] <= time.monotonic()
    assert listener.fileno() == -1
    assert one.listening is False
    assert owner.calls[0] == ("set_taking", False), "so that nobody passes one any more"
    assert owner.loop.handlers == {}


@pytest.mark.parametrize("what", ["room", "spare"])
def test_as_far_as_there_is_room(owner, pairs, one, clients, what):
    for client in clients(5):
        pass_to(pairs, client)
    setattr(owner, what, 3)
    one.close()
    assert len(owner.named("accepted")) == 3


def test_until_a_descriptor_is_lost(owner, pairs, one, clients):
    pass_to(pairs, None)
    pass_to(pairs, *clients())
    one.close()
    assert owner.named("accepted") == []


def test_the_backlog_has_two_places(owner, listener, pairs, one, clients):
    pass_to(pairs, *clients())
    with socket.create_connection(listener.getsockname(), WAIT):
        one.waiting += clients()
        owner.on_accepted = listener_is_empty(one, listener)
        one.take_backlog(NOW)
    assert owner.named("accepted") == [(None, PEER, NOW)] * 2


def listener_is_empty(one, listener):
    """Return what takes the client that connected, so that the socket is not readable any more."""

    def empty():
        if one.listening and not one.waiting:
            try:
                listener.accept()[0].close()
            except BlockingIOError:
                pass

    return empty


def test_not_that_of_others_once_it_takes_none(owner, pairs, one, clients):
    one.listen(False)
    pass_to(pairs, *clients())
    one.take_backlog(NOW)
    assert owner.named("accepted") == []


# -- clients that another worker does not take ---------------------------------------------------------------------


@pytest.fixture
def passed(one):
    """The note of the clients that were passed; the test lets its timer run."""
    return one._passed


def look(owner):
    """Let the time pass until it looks; return that time."""
    now = owner.loop.timers.first
    owner.loop.timers.run(now)
    return now


def test_a_worker_that_does_not_take_a_client_is_reported(owner, table, passed):
    before = time.monotonic()
    passed.add(Passed(2, 5))
    assert before + 2.0 <= passed._timer.due <= time.monotonic() + 2.0
    table.late = {(NUMBER, 2, 5)}
    now = look(owner)
    assert owner.calls == [("report_late", 2)]
    assert passed._timer.due == now + 2.0, "and it is looked at again"
    look(owner)
    assert owner.calls == [("report_late", 2)] * 2
    table.late = set()
    look(owner)
    assert len(owner.calls) == 2
    assert passed._timer.due == math.inf


def test_those_that_come_meanwhile_have_their_own_time(owner, table, passed):
    passed.add(Passed(2, 5))
    due = passed._timer.due
    passed.add(Passed(2, 6))
    passed.add(Passed(0, 1))
    assert passed._timer.due == due
    table.late = {(NUMBER, 2, 5), (NUMBER, 2, 6), (NUMBER, 0, 1)}
    look(owner)
    assert owner.calls == [("report_late", 2)]
    look(owner)
    assert owner.calls == [("report_late", 2), ("report_late", 2), ("report_late", 0)]
    assert passed._due == {2: 6, 0: 1}


def test_nobody_looks_after_the_end(one, passed):
    passed.add(Passed(2, 5))
    one.close()
    assert passed._timer.due == math.inf


def test_what_was_passed_is_noted(one, passed, clients):
    assert one._pass_on((*clients(), PEER), Passed(2, 5))
    assert passed._due == {2: 5}
    assert passed._last == {}


def test_a_listener_whose_clients_shake_hands(owner, listener, table, place):
    class Upgrading(UpgradeListener):
        listening = listener

        def deliver(self, *arguments):
            """Bring no stream."""

    receive = Upgrading()
    one = SharedAcceptor(owner, own_listener(receive), place)
    assert one._made == (int(listener.family), int(listener.type), listener.proto)
    receive.on_handshakes(3)
    assert table.calls == [("handshakes", NUMBER, 3)]
    one._take = lambda: ("a client", PEER)
    assert one._accept() == ("a client", PEER)
    assert table.named("better") == [(NUMBER, -1, False)], "its load alone says nothing"
