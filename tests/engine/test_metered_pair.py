"""The flows of a client with a bandwidth or a quota: which of them are metered, by what, and what the kernel limits."""

from __future__ import annotations

import errno
import socket
import struct
from types import SimpleNamespace

import pytest
from flow_parts import FlowOwner, LoopRecord, Sock

from relay.access.meter import Meter
from relay.engine import metered_pair as module
from relay.engine.flow import WATCHED, Flow
from relay.engine.metered_flow import MeteredFlow, MeteredSessionFlow
from relay.engine.metered_pair import MeteredPair
from relay.engine.session_flow import SessionFlow
from relay.eventloop.loop import Timers
from relay.eventloop.poller import IN, PRI
from relay.streams.session_socket import SessionSocket

SLOW, FAST = 1000.0, 3_000_000.0  # bytes a second; the kernel limits the latter


class End(Sock):
    """A socket that records its options."""

    getpeername = getsockname = None

    def __init__(self, descriptor, family=socket.AF_INET):
        super().__init__(descriptor, family)
        self.set = []
        self.refuses = False

    def setsockopt(self, level, option, value):
        if self.refuses:
            raise OSError(errno.ENOPROTOOPT, "Protocol not available")
        self.set.append((level, option, value))


class Session(SessionSocket):
    """A session whose bytes are those of the socket below it."""

    has_input = must_flush = needs_input = is_stalled = False

    def __init__(self, transport):
        super().__init__(transport)
        self.recv, self.send = transport.recv, transport.send


class SharedMeter:
    """A meter that grants so many bytes each time."""

    def __init__(self, size):
        self.size = size
        self.spent = []

    def take(self, flow, now):
        return self.size

    def spend(self, flow, size):
        self.spent.append(size)


class Quota:
    """A quota of so many bytes."""

    rule = "limit much"

    def __init__(self, size):
        self.size = size
        self.exhaustions = []

    def left(self):
        return self.size

    def spend(self, size):
        self.size -= size

    def exhausted(self, now):
        self.exhaustions.append(now)


class Connected(FlowOwner):
    """An open connection whose client has these limits, and what happened to it."""

    def __init__(self, pace=None, *, up=(), down=(), quotas=(), client=None, target=None):
        super().__init__()
        self.near, self.far = client or End(5), target or End(6)
        self.ticket = SimpleNamespace(pace=pace, meters=lambda: (list(up), list(down)), quotas=lambda: list(quotas))
        self.summary = SimpleNamespace(rule=None)
        self.loop = LoopRecord()
        self.loop.timers = self.timers = Timers()
        work = SimpleNamespace(loop=self.loop, pipes=None, throttled=0.0)
        self.flows = MeteredPair(self, work, self.near, self.far)
        self.up, self.down = self.flows.upstream, self.flows.downstream
        self.up.set_interest(WATCHED)
        self.down.set_interest(WATCHED)

    @property
    def kinds(self):
        return type(self.up), type(self.down)


@pytest.fixture(autouse=True)
def linux(monkeypatch):
    """A system whose kernel limits what it sends."""
    system = SimpleNamespace(platform="linux")
    monkeypatch.setattr(module, "sys", system)
    return system


def turn(rate):
    """The bytes that a new meter of this rate grants at once."""
    return Meter(rate, Timers()).take(object(), 1.0)


# -- the flows --------------------------------------------------------------------------------------------------------


def test_the_flows_are_those_of_the_connection_and_know_each_other():
    one = Connected(SLOW)
    assert (one.flows.connection, one.flows.is_closed) == (one, False)
    assert (one.up.owner, one.up.source, one.up.sink, one.up.reverse) == (one.flows, one.near, one.far, one.down)
    assert (one.down.owner, one.down.source, one.down.sink, one.down.reverse) == (one.flows, one.far, one.near, one.up)
    assert one.up.spliceable is one.down.spliceable is None


@pytest.mark.parametrize(
    ("limits", "kinds"),
    [
        ({}, (Flow, Flow)),
        ({"pace": SLOW}, (MeteredFlow, MeteredFlow)),
        ({"pace": FAST}, (Flow, Flow)),
        ({"quotas": [Quota(1)]}, (MeteredFlow, MeteredFlow)),
        ({"up": [SharedMeter(1)]}, (MeteredFlow, Flow)),
        ({"down": [SharedMeter(1)]}, (Flow, MeteredFlow)),
        ({"pace": FAST, "down": [SharedMeter(1)]}, (Flow, MeteredFlow)),
    ],
)
def test_a_flow_is_metered_only_if_relay_has_something_to_count_in_its_direction(limits, kinds):
    assert Connected(**limits).kinds == kinds


@pytest.mark.parametrize("client", [False, True])
@pytest.mark.parametrize("target", [False, True])
@pytest.mark.parametrize(
    ("pace", "plain", "of_session"), [(None, Flow, SessionFlow), (SLOW, MeteredFlow, MeteredSessionFlow)]
)
def test_a_flow_out_of_a_session_knows_that_and_beside_a_session_nothing_is_spliced(
    client, target, pace, plain, of_session
):
    one = Connected(pace, client=Session(End(5)) if client else None, target=Session(End(6)) if target else None)
    assert one.kinds == (of_session if client else plain, of_session if target else plain)
    assert one.up.owner is one.down.owner is one.flows
    assert one.up.spliceable is one.down.spliceable is (False if client or target else None)


# -- what they count --------------------------------------------------------------------------------------------------


def test_each_direction_has_the_shared_meters_of_its_own():
    up, down = SharedMeter(100), SharedMeter(200)
    one = Connected(up=[up], down=[down])
    one.near.gives, one.far.gives = [b"from the client"], [b"from it"]
    one.up.handler(IN, 1.0)
    one.down.handler(IN, 1.0)
    assert (one.near.asked, one.far.asked) == ([100], [200])
    assert (up.spent, down.spent) == ([15], [7])
    assert (one.far.sent, one.near.sent) == ([b"from the client"], [b"from it"])


def test_each_direction_has_the_whole_bandwidth_of_a_connection():
    one = Connected(SLOW)
    one.near.gives, one.far.gives = [bytes(turn(SLOW))], [bytes(turn(SLOW))]
    one.up.handler(IN, 1.0)
    one.down.handler(IN, 1.0)
    assert one.near.asked == one.far.asked == [turn(SLOW)]
    assert one.near.set == one.far.set == []


def test_a_flow_that_has_used_up_its_bandwidth_is_called_when_there_is_more():
    one = Connected(SLOW)
    one.near.gives = [bytes(500), b"later"]
    one.up.handler(IN, 1.0)
    one.up.handler(IN, 1.0)
    assert (len(one.near.asked), one.loop.masks[5]) == (1, PRI)
    one.timers.run(3.0)
    assert (one.far.sent, one.loop.masks[5]) == ([bytes(500), b"later"], WATCHED)


@pytest.mark.parametrize("shared", [10, 10_000])
def test_the_bandwidth_of_a_connection_is_beside_the_one_that_it_shares(shared):
    one = Connected(SLOW, up=[SharedMeter(shared)])
    one.up.handler(IN, 1.0)
    assert one.near.asked == [min(shared, turn(SLOW))]


def test_a_quota_counts_both_directions_and_ends_the_connection_when_it_is_used_up():
    quota, other = Quota(10), Quota(1000)
    one = Connected(quotas=[other, quota])
    one.near.gives, one.far.gives = [b"1234"], [b"123456"]
    one.up.handler(IN, 1.0)
    one.down.handler(IN, 2.0)
    assert (quota.size, other.size, one.calls, one.summary.rule) == (0, 990, [], None)
    one.near.gives = [b"more"]
    one.up.handler(IN, 3.0)
    assert one.calls == [("quota", 3.0)]
    assert (one.summary.rule, quota.exhaustions, other.exhaustions) == ("limit much", [3.0], [])
    assert one.far.sent == [b"1234"]


# -- what the kernel limits -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
@pytest.mark.parametrize("rate", [2_000_000.0, 5_000_000.7])
def test_the_kernel_limits_what_it_sends_to_each_end_over_tcp(family, rate):
    one = Connected(rate, client=End(5, family), target=End(6, family))
    option = (socket.SOL_SOCKET, 47, struct.pack("@L", int(rate)))
    assert (one.near.set, one.far.set) == ([option], [option])
    assert one.kinds == (Flow, Flow)


def test_a_bandwidth_that_the_kernel_would_not_keep_is_metered():
    one = Connected(1_999_999.0)
    assert (one.kinds, one.near.set, one.far.set) == ((MeteredFlow, MeteredFlow), [], [])


def test_another_system_does_not_limit_what_it_sends(linux):
    linux.platform = "darwin"
    one = Connected(FAST)
    assert (one.kinds, one.near.set, one.far.set) == ((MeteredFlow, MeteredFlow), [], [])


def test_what_goes_to_a_unix_socket_is_metered():
    one = Connected(FAST, target=End(6, socket.AF_UNIX))
    assert (one.kinds, len(one.near.set), one.far.set) == ((MeteredFlow, Flow), 1, [])


def test_what_goes_into_a_session_is_metered_because_its_transport_has_more_bytes():
    transport = End(5)
    one = Connected(FAST, client=Session(transport))
    assert (one.kinds, transport.set, len(one.far.set)) == ((SessionFlow, MeteredFlow), [], 1)


def test_a_kernel_that_refuses_the_limit_leaves_it_to_a_meter():
    target = End(6)
    target.refuses = True
    one = Connected(FAST, target=target)
    assert (one.kinds, len(one.near.set)) == ((MeteredFlow, Flow), 1)
