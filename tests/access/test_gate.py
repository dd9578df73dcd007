"""The gate: a policy decides about each client."""

import gc

import pytest

from relay.access.gate import Gate
from relay.access.limit import MOST_LIMITS, Action, Limit, check_limits
from relay.access.meter import Meter
from relay.access.policy import ClientPolicy, Decision, Denial
from relay.access.ticket import Ticket
from relay.eventloop.loop import Timers
from relay.streams.identity import Identity

CLIENT = Identity("tcp", "192.0.2.7", "192.0.2.7", 5)


class Rules:
    def __init__(self, *denied):
        self.denied = denied

    def decide(self, identity):
        return Decision(False, "deny it") if identity in self.denied else Decision(True)

    decide_by_address = decide


def test_a_client_that_no_rule_denies_may_connect():
    assert Gate(ClientPolicy(rules=Rules()), Timers()).enter(CLIENT, 1.0) is None
    assert Gate(ClientPolicy(), Timers()).enter(CLIENT, 1.0) is None


def test_a_denial_has_the_rule():
    assert Gate(ClientPolicy(rules=Rules(CLIENT)), Timers()).enter(CLIENT, 1.0) == Denial("deny it")


def test_a_policy_without_rules_is_empty():
    assert ClientPolicy().is_empty
    assert not ClientPolicy(rules=Rules()).is_empty


def test_another_policy_holds_from_now_on():
    gate = Gate(ClientPolicy(rules=Rules(CLIENT)), Timers())
    gate.change(ClientPolicy())
    assert gate.enter(CLIENT, 1.0) is None


def who(host, login=None):
    return Identity("tcp", host, host, 5, login=login)


def gate_of(*limits):
    return Gate(ClientPolicy(limits=check_limits(limits)), Timers(), monotonic=lambda: 100.0)


def test_the_first_limit_that_is_reached_is_the_reason_and_the_others_count_nothing():
    gate = gate_of({"name": "all", "per": "tunnel", "rate": "3/10s"}, {"name": "one", "concurrent": 1})
    first = gate.enter(who("192.0.2.1"), 100.0)
    assert isinstance(first, Ticket) and not first.is_shaped
    for _ in range(5):
        assert gate.enter(who("192.0.2.1"), 100.0) == Denial("limit one", Action.RESET, 60.0)
    second = gate.enter(who("192.0.2.2"), 100.0)
    third = gate.enter(who("192.0.2.3"), 100.0)
    assert isinstance(second, Ticket) and isinstance(third, Ticket)
    assert gate.enter(who("192.0.2.4"), 100.0) == Denial("limit all", Action.RESET, 60.0)
    first.leave()
    assert isinstance(gate.enter(who("192.0.2.1"), 200.0), Ticket)


def test_a_denial_by_the_access_list_costs_no_limit_anything():
    gate = Gate(ClientPolicy(rules=Rules(CLIENT), limits=check_limits([{"rate": "1/h"}])), Timers())
    assert gate.enter(CLIENT, 1.0) == Denial("deny it")
    gate.change(ClientPolicy(limits=check_limits([{"rate": "1/h"}])))
    assert isinstance(gate.enter(CLIENT, 1.0), Ticket)


def test_a_tarpit_lasts_until_the_ban_ends_and_a_minute_at_most():
    gate = gate_of({"name": "x", "rate": "1/10s", "ban": "90s", "action": "tarpit"})
    assert isinstance(gate.enter(CLIENT, 100.0), Ticket)
    assert gate.enter(CLIENT, 100.0) == Denial("limit x", Action.TARPIT, 60.0)
    assert gate.enter(CLIENT, 170.0) == Denial("ban x", Action.TARPIT, 20.0)


def test_a_client_of_whom_nothing_is_known_counts_as_one():
    gate = gate_of({"name": "x", "rate": "1/h"})
    assert isinstance(gate.enter(None, 100.0), Ticket)
    assert gate.enter(None, 100.0) == Denial("limit x", Action.RESET, 60.0)


def test_a_reload_keeps_what_a_limit_has_counted_as_long_as_its_name_and_its_clients_stay():
    gate = gate_of({"name": "x", "per": "ip/24", "rate": "1/10s", "ban": "1h"}, {"name": "y", "concurrent": 1})
    ticket = gate.enter(CLIENT, 100.0)
    assert gate.enter(CLIENT, 100.0).rule == "limit x"
    gate.change(ClientPolicy(limits=check_limits([{"name": "x", "per": "ip/24", "rate": "50/s", "ban": "1h"}])))
    assert gate.enter(CLIENT, 200.0).rule == "ban x"
    gate.change(ClientPolicy(limits=check_limits([{"name": "x", "per": "ip/25", "rate": "50/s", "ban": "1h"}])))
    assert isinstance(gate.enter(CLIENT, 200.0), Ticket)
    ticket.leave()


@pytest.mark.parametrize(
    ("before", "after", "is_kept"),
    [
        ([{"rate": "1/10s", "ban": "1h"}], [{"rate": "50/s", "ban": "2h"}], True),
        ([{"rate": "1/10s", "ban": "1h"}, {"concurrent": 9}], [{"concurrent": 5}, {"rate": "50/s", "ban": "1h"}], True),
        ([{"rate": "1/10s", "ban": "1h"}], [{"rate": "50/s", "concurrent": 9, "ban": "1h"}], False),
        ([{"rate": "1/10s", "ban": "1h"}], [{"rate": "50/s", "per": "ip/24"}], False),
        ([{"rate": "1/10s", "ban": "1h"}], [{"rate": "50/s", "name": "x"}], False),
        ([{"rate": "1/10s", "ban": "1h", "name": "x"}], [{"rate": "50/s"}], False),
        ([{"rate": "1/10s", "ban": "1h"}], [{"rate": "50/s"}, {"rate": "99/h"}], False),  # which of them is it?
        ([{"rate": "1/10s", "ban": "1h"}, {"rate": "9/h"}], [{"rate": "50/s"}], False),
    ],
)
def test_a_limit_without_a_name_is_known_by_what_it_limits(before, after, is_kept):
    gate = gate_of(*before)
    ticket = gate.enter(CLIENT, 100.0)
    assert isinstance(gate.enter(CLIENT, 100.0), Denial)
    gate.change(ClientPolicy(limits=check_limits(after)))
    outcome = gate.enter(CLIENT, 200.0)
    assert isinstance(outcome, Denial) is is_kept
    assert next(bool(each.entries(200.0)) for each in gate._own() if each.limit.terms.rate) is is_kept
    ticket.leave()


def test_a_limit_with_another_name_is_stored_again():
    book = Book()
    gate = Gate(ClientPolicy(limits=check_limits([{"quota": "1kB/day"}])), Timers(), book=book)
    gate.enter(CLIENT, 100.0).leave()
    (limiter,) = gate._own()
    limiter.spend(limiter.table.all()[0], 10)
    assert [each.limit for each in limiter.snapshot(100.0, 9)] == ["ip:1kB/day"]
    gate.change(ClientPolicy(limits=check_limits([{"quota": "2kB/day"}])))
    assert [(each.limit, each.used) for each in limiter.snapshot(100.0, 9)] == [("ip:2kB/day", 10)]


def test_a_reload_changes_the_bandwidth_of_open_connections():
    gate = gate_of({"name": "x", "bandwidth": "1MB/s"})
    up, down = gate.enter(CLIENT, 100.0).meters()
    gate.change(ClientPolicy(limits=check_limits([{"name": "x", "bandwidth": "3MB/s"}])))
    assert [meter.rate for meter in (*up, *down)] == [3e6, 3e6]


class Flow:
    def granted(self, now):
        raise AssertionError


def test_clients_that_have_left_leave_no_meters_and_the_next_one_finds_the_bandwidth_as_it_was():
    gate, flow = gate_of({"name": "x", "bandwidth": "1MB/s"}), Flow()
    for number in range(20):
        ticket = gate.enter(who(f"192.0.2.{number}"), 100.0)
        (up,), (down,) = ticket.meters()
        assert (up.take(flow, 100.0), down.take(flow, 100.0)) == (62_500, 62_500)
        up.spend(flow, 1_062_500)
        assert up.take(flow, 100.0) == 0
        up.leave(flow)
        down.leave(flow)
        ticket.leave()
    del up, down, ticket
    assert not [one for one in gc.get_objects() if isinstance(one, Meter)]  # and tests run without collections
    (up,), (down,) = gate.enter(who("192.0.2.7"), 100.5).meters()
    assert (up.take(flow, 100.5), down.take(flow, 100.5)) == (0, 62_500)
    up.leave(flow)
    assert up.take(flow, 101.1) == 62_500


def test_meters_stay_while_a_client_of_the_key_is_connected():
    gate = gate_of({"name": "x", "bandwidth": "1MB/s"})
    first, second = gate.enter(CLIENT, 100.0), gate.enter(CLIENT, 100.0)
    meters = first.meters()
    first.leave()
    assert second.meters() == meters


def test_what_a_ticket_has():
    gate = gate_of(
        {"name": "a", "bandwidth": "1MB/s"},
        {"name": "b", "per": "connection", "bandwidth": "3MB/s"},
        {"name": "c", "per": "connection", "bandwidth": "2MB/s"},
        {"name": "d", "quota": "100B/day", "ban": "1m"},
    )
    ticket, other = gate.enter(CLIENT, 100.0), gate.enter(who("192.0.2.8"), 100.0)
    assert ticket.is_shaped and ticket.pace == 2e6
    assert [len(meters) for meters in ticket.meters()] == [1, 1] and ticket.meters() != other.meters()
    (quota,) = ticket.quotas()
    quota.spend(60)
    assert (quota.left(), quota.rule, other.quotas()[0].left()) == (40, "limit d", 100)
    quota.exhausted(100.0)
    assert gate.enter(CLIENT, 101.0).rule == "ban d"


def guess(gate, times, *, host="192.0.2.7", is_exposed=True):
    return [gate.login_failed(who(host), now, is_exposed) is not None for now in times]


def test_wrong_passwords_at_an_exposed_listener_ban_for_a_minute_by_default():
    gate = gate_of()
    assert gate.is_idle
    assert guess(gate, [100.0, 101.0, 102.0, 103.0, 104.0]) == [False] * 4 + [True]
    assert not gate.is_idle
    assert gate.bar(CLIENT, 105.0) == Denial("ban login", Action.RESET, 59.0) == gate.enter(CLIENT, 105.0)
    assert gate.bar(who("192.0.2.9"), 105.0) is None and gate.enter(who("192.0.2.9"), 105.0) is None
    assert gate.bar(CLIENT, 164.1) is None and gate.enter(CLIENT, 164.1) is None


def test_nothing_is_counted_at_a_listener_on_the_loopback_unless_a_limit_demands_it():
    gate = gate_of()
    assert guess(gate, [100.0] * 9, is_exposed=False) == [False] * 9 and gate.is_idle
    gate = gate_of({"name": "login", "rate": "2/1h", "ban": "1d", "action": "close"})
    assert guess(gate, [100.0, 2000.0], is_exposed=False) == [False, True]
    assert gate.bar(CLIENT, 80000.0) == Denial("ban login", Action.CLOSE, 60.0)
    gate.change(ClientPolicy())
    assert gate.bar(CLIENT, 80000.0) is not None, "the ban outlives the limit that was in the file"


class Book:
    """A book that has kept some entries."""

    def __init__(self, kept=()):
        self._kept = kept

    def entries(self, limit):
        return [entry for entry in self._kept if entry.limit == limit]

    def changed(self):
        pass


def test_another_process_has_the_bans_that_were_kept_also_those_of_guessing():
    policy = ClientPolicy(limits=check_limits([{"name": "x", "rate": "1/h", "ban": "1h"}]))
    gate = Gate(policy, Timers(), monotonic=lambda: 100.0, book=Book())
    gate.enter(CLIENT, 100.0)
    gate.enter(CLIENT, 100.0)
    guess(gate, [100.0] * 5)
    stored = [gate.snapshot(1) for _ in range(2)]
    assert [[entry.limit for entry in part] for part in stored] == [["x"], ["login"]]
    assert not gate.has_changed and gate.snapshot(1) == []
    stored = [entry for part in stored for entry in part]
    other = Gate(policy, Timers(), monotonic=lambda: 100.0, book=Book(stored))
    assert other.enter(CLIENT, 101.0).rule == "ban login"
    for limiter, rule in zip(other.limiters()[::-1], ("ban x", None), strict=True):
        assert limiter.clear("192.0.2.7")
        assert getattr(other.enter(CLIENT, 101.0), "rule", None) == rule


# -- before a handshake ----------------------------------------------------------------------------------------------


def shaken(host="192.0.2.7"):
    return Identity("tls", "alice", host, 5)


def test_rules_decide_before_the_handshake_unless_their_files_have_to_be_read():
    gate = Gate(ClientPolicy(rules=Rules(CLIENT)), Timers())
    assert gate.screen(CLIENT, 1.0) == Denial("deny it")
    assert gate.screen(CLIENT, 1.0, are_rules_read=False) is None


def test_a_rate_of_addresses_counts_each_client_once_and_before_its_handshake():
    gate = gate_of({"name": "x", "rate": "2/10s"}, {"name": "y", "per": "identity", "rate": "9/s"})
    assert [gate.screen(CLIENT, 100.0) for _ in range(2)] == [None, None]
    assert gate.screen(CLIENT, 100.0) == Denial("limit x", Action.RESET, 60.0)
    assert [type(gate.enter(shaken(), 101.0, True)) for _ in range(2)] == [Ticket, Ticket]
    assert gate.screen(CLIENT, 105.0) is None  # as if there were no handshakes
    assert gate.screen(CLIENT, 105.0) is not None


def test_a_client_that_one_limit_rejects_before_its_handshake_does_not_count_for_the_others():
    gate = gate_of({"name": "x", "per": "ip/24", "rate": "2/h"}, {"name": "y", "rate": "1/h"})
    assert [gate.screen(CLIENT, 100.0) is None for _ in range(3)] == [True, False, False]
    assert gate.screen(who("192.0.2.8"), 100.0) is None
    assert gate.screen(who("192.0.2.9"), 100.0) == Denial("limit x", Action.RESET, 60.0)


def test_connections_at_one_time_count_from_the_end_of_the_handshake():
    gate = gate_of({"name": "x", "concurrent": 1})
    assert [gate.screen(CLIENT, 100.0), gate.screen(CLIENT, 100.0)] == [None, None]
    ticket = gate.enter(shaken(), 100.0, True)
    assert gate.enter(shaken(), 100.0, True) == gate.screen(CLIENT, 100.0) == Denial("limit x", Action.RESET, 60.0)
    ticket.leave()
    assert isinstance(gate.enter(shaken(), 100.0, True), Ticket)


def test_a_handshake_counts_for_the_rate_of_its_address_whatever_becomes_of_the_client():
    gate = gate_of({"name": "x", "rate": "1/h", "ban": "2h"}, {"name": "y", "per": "identity", "rate": "1/h"})
    assert gate.screen(CLIENT, 100.0) is None
    gate.enter(shaken(), 100.0, True)
    assert gate.enter(shaken(), 100.0, True).rule == "limit y"
    assert gate.screen(CLIENT, 101.0).rule == "limit x"
    assert gate.enter(shaken(), 102.0, True).rule == gate.screen(CLIENT, 3750.0).rule == "ban x"


def test_a_quota_that_is_used_up_spares_the_handshake():
    gate = gate_of({"name": "x", "quota": "100B/day"})
    assert gate.screen(CLIENT, 100.0) is None
    gate.enter(shaken(), 100.0, True).quotas()[0].spend(100)
    assert gate.screen(CLIENT, 100.0).rule == gate.enter(shaken(), 100.0, True).rule == "limit x"


# -- limits of single clients ----------------------------------------------------------------------------------------


PLAN = Limit(name="plan", per="identity", concurrent=1)


def test_limits_of_single_clients_follow_those_of_all_and_equal_ones_count_together():
    gate = gate_of({"name": "all", "per": "tunnel", "concurrent": 3})
    own = gate.enter(CLIENT, 100.0)
    first = gate.enter_within([PLAN], CLIENT, 100.0, own)
    assert isinstance(first, Ticket)
    second = gate.enter(CLIENT, 100.0)
    equal = Limit(name="plan", per="identity", concurrent=1)
    assert gate.enter_within([equal], CLIENT, 100.0, second) == Denial("limit plan", Action.RESET, 60.0)
    other = gate.enter_within([equal], who("192.0.2.9"), 100.0, None)
    assert isinstance(other, Ticket) and not other.is_shaped
    first.leave()  # both places
    assert isinstance(gate.enter_within([PLAN], CLIENT, 100.0, second), Ticket)
    assert isinstance(gate.enter(CLIENT, 100.0), Ticket)
    assert isinstance(gate.enter(CLIENT, 100.0), Ticket)
    assert gate.enter(CLIENT, 100.0) == Denial("limit all", Action.RESET, 60.0)


def test_a_client_that_one_of_its_own_limits_rejects_counts_for_none_of_them():
    gate = gate_of()
    wide = Limit(name="wide", per="tunnel", rate="2/h")
    assert isinstance(gate.enter_within([wide, PLAN], CLIENT, 100.0, None), Ticket)
    for _ in range(3):
        assert gate.enter_within([wide, PLAN], CLIENT, 100.0, None) == Denial("limit plan", Action.RESET, 60.0)
    assert isinstance(gate.enter_within([wide, PLAN], who("192.0.2.9"), 100.0, None), Ticket)


def test_the_bytes_of_a_limit_of_one_client_are_counted_with_those_of_all():
    gate = gate_of({"name": "all", "bandwidth": "1MB/s"})
    limits = [Limit(bandwidth="2MB/s", quota="1GB/day"), Limit(per="connection", bandwidth=5000)]
    ticket = gate.enter_within(limits, CLIENT, 100.0, gate.enter(CLIENT, 100.0))
    assert ticket.is_shaped and ticket.pace == 5000
    assert [[meter.rate for meter in meters] for meters in ticket.meters()] == [[1e6, 2e6]] * 2
    assert [quota.rule for quota in ticket.quotas()] == [f"limit {limits[0].name}"]
    ticket.quotas()[0].spend(7)
    found = [entry for limiter in gate.limiters() for entry in limiter.entries(100.0)]
    assert [(entry.limit, entry.used) for entry in found] == [(limits[0].name, 7)]


def test_the_limits_used_last_and_those_of_open_connections_are_known():
    gate = gate_of()
    held = gate.enter_within([PLAN], CLIENT, 100.0, None)
    limits = [Limit(name=f"other-{number}", rate="1/h") for number in range(MOST_LIMITS)]
    for limit in limits:
        assert isinstance(gate.enter_within([limit], CLIENT, 100.0, None), Ticket)
    assert isinstance(gate.enter_within([PLAN], CLIENT, 100.0, None), Denial)
    assert isinstance(gate.enter_within([limits[-1]], CLIENT, 100.0, None), Denial)
    assert isinstance(gate.enter_within([limits[0]], CLIENT, 100.0, None), Ticket)  # it was forgotten
    held.leave()


def test_another_policy_has_no_counts_of_the_limits_of_single_clients():
    gate = gate_of()
    assert isinstance(gate.enter_within([PLAN], CLIENT, 100.0, None), Ticket)
    gate.change(ClientPolicy(limits=(PLAN,)))
    assert isinstance(gate.enter(CLIENT, 100.0), Ticket)
    assert isinstance(gate.enter_within([PLAN], CLIENT, 100.0, None), Denial)


def test_the_keys_of_an_address_are_remembered_until_the_limits_change():
    gate = gate_of({"name": "x", "rate": "1/h"}, {"name": "y", "per": "identity", "concurrent": 2})
    hosts = [f"192.0.{number >> 8}.{number & 255}" for number in range(5000)]
    for _ in range(2):
        assert [isinstance(gate.enter(who(host), 100.0), Ticket) for host in hosts].count(True) in (5000, 0)
        assert len(gate._keys) <= 4096
    assert isinstance(gate.enter(who("192.0.0.1", login="a")._replace(kind="socks"), 1e6), Ticket)
    named = gate_of({"name": "y", "per": "identity", "concurrent": 1})
    assert [isinstance(named.enter(CLIENT._replace(name=name), 1.0), Ticket) for name in "aab"] == [True, False, True]
    gate.change(ClientPolicy(limits=check_limits([{"name": "x", "per": "ip/16", "rate": "1/h"}])))
    assert isinstance(gate.enter(who(hosts[-1]), 1e6), Ticket)
    assert gate.enter(who(hosts[-2]), 1e6).rule == "limit x"
