"""Each step of a flow out of a session alone: what it waits for, and when it reads on."""

from __future__ import annotations

import errno
import socket
from types import SimpleNamespace

import pytest
from flow_parts import GONE, FlowOwner, LoopRecord, Sock

from relay.engine.flow import Flow
from relay.engine.session_flow import NOTHING, SessionFlow
from relay.eventloop.poller import ERR, IN, OUT, READ


class Session(Sock):
    """A session that has nothing but what the test says."""

    has_input = must_flush = needs_input = is_stalled = False

    def recv(self, size, flags=0):
        assert len(self.asked) < 10, "it is read without end"
        return super().recv(size, flags)


class Pair(FlowOwner):
    """The flow out of a session, the flow back, their owner, and what happened to it."""

    def __init__(self, kind=SessionFlow):
        super().__init__()
        self.loop = LoopRecord()
        self.client, self.session = Sock(5), Session(6)
        work = SimpleNamespace(loop=self.loop, pipes=None)
        self.up = Flow(self, work, self.client, self.session)
        self.down = kind(self, work, self.session, self.client)
        self.up.reverse, self.down.reverse = self.down, self.up

    @property
    def mask(self):
        """The events of the session's transport that are waited for."""
        return self.loop.masks[6]


@pytest.fixture
def pair():
    return Pair()


# -- events -----------------------------------------------------------------------------------------------------------


def test_a_flow_that_does_not_read_for_another_reason_does_not_begin_when_the_transport_takes_more(pair):
    pair.down.set_interest(OUT)
    pair.down.on_event(OUT, 3.0)
    assert pair.mask == 0


def test_a_session_is_read_again_once_it_has_sent_what_stalled_it_and_not_each_time_afterwards(pair):
    pair.down.set_interest(OUT)
    pair.down.stalled = True
    pair.down.on_event(OUT, 3.0)
    assert pair.mask == READ
    pair.down.set_interest(OUT)
    pair.down.on_event(OUT, 4.0)
    assert pair.mask == 0


def test_a_session_that_is_still_stalled_is_not_read(pair):
    pair.session.is_stalled = pair.session.must_flush = True
    pair.down.set_interest(OUT)
    pair.down.stalled = True
    pair.down.on_event(OUT, 3.0)
    assert (pair.mask, pair.down.stalled) == (OUT, True)


@pytest.mark.parametrize("reason", ["the client does not take what was read", "the session has ended"])
def test_a_session_that_is_not_stalled_any_more_may_have_another_reason_not_to_be_read(pair, reason):
    pair.down.set_interest(OUT)
    pair.down.stalled = True
    if reason == "the session has ended":
        pair.down.ended = 2.0
    else:
        pair.down.pending = memoryview(b"read before")
    pair.down.on_event(OUT, 3.0)
    assert pair.mask == 0


def test_what_waited_for_the_transport_is_sent_at_the_time_of_the_event(pair):
    pair.up.pending = memoryview(b"waited")
    pair.down.set_interest(READ | OUT)
    pair.down.on_event(OUT, 3.0)
    assert (pair.session.sent, pair.up.last, pair.mask) == ([b"waited"], 3.0, READ)


def test_an_error_of_the_transport_is_told_with_its_time(pair):
    pair.session.options[socket.SOL_SOCKET, socket.SO_ERROR] = errno.ECONNRESET
    pair.down.set_interest(0)
    pair.down.on_event(ERR, 3.0)
    assert pair.calls == [("failed", pair.session, 3.0)]


# -- what no event announces ------------------------------------------------------------------------------------------


class Parked(SessionFlow):
    """A flow that may not read on."""

    is_parked = True


def test_a_flow_that_may_not_read_on_still_sends_what_waits_in_the_session():
    pair = Pair(Parked)
    pair.session.has_input = pair.session.must_flush = True
    pair.session.gives = [b"one", b"two"]
    pair.down.set_interest(READ)
    pair.down.go_on(3.0)
    assert (pair.client.sent, pair.up.pending, pair.mask) == ([b"one"], NOTHING, READ | OUT)


def test_a_transport_is_waited_for_again_once_the_session_needs_no_input_and_nothing_else_is(pair):
    pair.session.needs_input = True
    pair.down.set_interest(OUT)
    assert pair.mask == 0
    pair.session.needs_input = False
    pair.down.go_on(3.0)
    assert pair.mask == OUT
    pair.down.set_interest(READ)
    pair.down.go_on(4.0)
    assert pair.mask == READ


def test_a_transport_that_was_not_waited_for_is_not_waited_for_when_the_session_needs_no_input_any_more(pair):
    pair.session.needs_input = True
    pair.down.set_interest(READ)
    pair.session.needs_input = False
    pair.down.go_on(3.0)
    assert pair.mask == READ


@pytest.mark.parametrize("mask", [0, READ, READ | OUT])
def test_what_stalls_a_session_is_sent_before_anything_is_read(pair, mask):
    pair.session.is_stalled = pair.session.must_flush = True
    pair.down.set_interest(mask)
    pair.down.go_on(3.0)
    assert (pair.mask, pair.down.stalled, pair.up.pending) == (OUT, True, NOTHING)


def test_a_stalled_session_whose_transport_has_hung_up_is_watched_again(pair):
    pair.session.is_stalled = pair.session.must_flush = True
    pair.up.pending = memoryview(b"waits")
    pair.down.set_interest(READ | OUT)
    pair.down.set_interest(-1)
    pair.down.go_on(3.0)
    assert pair.mask == OUT


def test_a_transport_that_has_hung_up_is_not_watched_again_because_something_waits_in_the_session(pair):
    pair.session.must_flush = True
    pair.up.pending = memoryview(b"waits")
    pair.down.set_interest(READ | OUT)
    pair.down.set_interest(-1)
    pair.down.go_on(3.0)
    assert pair.loop.masks == {}


def test_what_the_client_takes_later_is_counted_at_that_time(pair):
    pair.down.pending = memoryview(b"waited")
    pair.down.drain(3.0)
    assert (pair.client.sent, pair.down.last) == ([b"waited"], 3.0)


# -- dropping ---------------------------------------------------------------------------------------------------------


def test_a_session_that_cannot_send_while_bytes_are_dropped_ends_the_connection(pair):
    pair.session.must_flush = True
    pair.session.takes = [GONE]
    pair.down.discard(OUT, 3.0)
    assert pair.calls == [("done", 3.0)]


@pytest.mark.parametrize("before", [[], [b"dropped"]])
def test_an_end_after_dropped_bytes_ends_the_connection(pair, before):
    pair.session.has_input = True
    pair.session.gives = [*before, b""]
    pair.down.discard(IN, 3.0)
    assert pair.calls == [("done", 3.0)]
