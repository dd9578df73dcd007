"""One limit at work, on clocks of its own: keys, rates, bans, quotas, and what a store keeps of them."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

from relay.access.ledger import LedgerEntry
from relay.access.limit import Limit, Scope, check_limits
from relay.access.limiter import Limiter, Rejection, key_of
from relay.eventloop.loop import Timers
from relay.streams.identity import Identity

MAY = 1_777_593_600.0  # 2026-05-01, 00:00 UTC
DAY = 86400.0


class Client(NamedTuple):
    host: str | None
    kind: str = "tcp"

    def __str__(self) -> str:
        return f"{self.kind}:somebody"


class World:
    """A limit, and its book, which has kept nothing."""

    def __init__(self, **keys: object) -> None:
        self.wall = MAY + DAY
        self.reports: list[tuple[str, bool]] = []
        self.changes = 0
        limit = check_limits([{"name": "x", **keys}])[0]
        self.limiter = Limiter(limit, Timers(), wall=lambda: self.wall, book=self, on_quota=self.report)

    def report(self, limit: Limit, *rest: Any) -> None:
        assert limit is self.limiter.limit
        self.reports.append(rest)

    def entries(self, limit: str) -> list[LedgerEntry]:
        return []

    def changed(self) -> None:
        self.changes += 1

    def connect(self, host: str, now: float) -> str:
        """Let a client in and keep it; or return the rule that rejects it."""
        found = self.limiter.admit(self.limiter.key(Client(host)), now)
        return found.rule if isinstance(found, Rejection) else ""

    def end(self, host: str) -> None:
        self.limiter.table.get(host).connected -= 1

    def use(self, host: str, size: int) -> None:
        self.limiter.spend(self.limiter.table.get(host), size)


@pytest.mark.parametrize(
    ("scope", "host", "key"),
    [
        (Scope("ip"), "192.0.2.77", "192.0.2.77"),
        (Scope("ip", 24), "192.0.2.77", "192.0.2.0/24"),
        (Scope("ip", 25), "192.0.2.177", "192.0.2.128/25"),
        (Scope("ip", 1), "192.0.2.77", "128.0.0.0/1"),
        (Scope("ip"), "2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        (Scope("ip", 24, 48), "2001:db8:1:2:3:4:5:6", "2001:db8:1::/48"),
        (Scope("ip", 32, 128), "2001:db8::1", "2001:db8::1/128"),
        (Scope("ip", 24), "claimed by a server", "claimed by a server"),
        (Scope("ip", 24), "with\0in", "with\0in"),
        (Scope("ip"), ":\ud800", ":\ud800"),
        (Scope("ip"), None, "tcp:somebody"),
        (Scope("identity"), "192.0.2.77", "tcp:somebody"),
        (Scope("identity"), "2001:db8:1:2:3:4:5:6", "tcp:2001:db8:1:2::/64"),
        (Scope("identity"), None, "tcp:somebody"),
        (Scope("tunnel"), "192.0.2.77", "*"),
    ],
)
def test_keys(scope: Scope, host: str | None, key: str) -> None:
    assert key_of(scope, Client(host)) == key


def test_a_client_that_has_another_name_counts_by_that() -> None:
    assert key_of(Scope("identity"), Client("2001:db8::1", "tls")) == "tls:somebody"


@pytest.mark.parametrize("start", [0.0, 1e3, 1e8])
def test_a_rate_lets_its_number_in_at_once_and_then_one_at_each_part_of_the_time(start: float) -> None:
    world = World(rate="20/10s")
    rules = [world.connect("192.0.2.1", start + after) for after in [0.0] * 22 + [0.49, 0.5, 0.5, 1.0] + [11.0] * 21]
    assert [not rule for rule in rules] == [True] * 20 + [False] * 3 + [True, False, True] + [True] * 20 + [False]


def test_a_rate_holds_over_a_long_time() -> None:
    world = World(rate="20/10s")
    admitted = sum(not world.connect("192.0.2.1", 1000.0 + number / 10) for number in range(10_000))
    assert admitted == pytest.approx(2000 + 20, abs=1)


def test_a_rate_rejects_and_a_ban_follows_until_its_end() -> None:
    world = World(rate="2/10s", ban="10m")
    assert [world.connect("192.0.2.1", 100.0) for _ in range(4)] == ["", "", "limit x", "ban x"]
    assert world.connect("192.0.2.2", 100.0) == ""
    assert world.connect("192.0.2.1", 699.9) == "ban x"
    assert world.connect("192.0.2.1", 700.1) == ""


def test_attempts_during_a_ban_do_not_prolong_it_and_clocks_that_jump_do_not_end_it() -> None:
    world = World(rate="1/10s", ban="1m")
    assert [world.connect("192.0.2.1", 100.0) for _ in range(2)] == ["", "limit x"]
    for wall in (MAY - 40 * DAY, MAY + 400 * DAY):
        world.wall = wall
        assert world.connect("192.0.2.1", 159.0) == "ban x"
    assert world.connect("192.0.2.1", 161.0) == ""


def test_concurrent_clients_count_until_they_leave() -> None:
    world = World(concurrent=2)
    assert [world.connect("192.0.2.1", 0.0) for _ in range(3)] == ["", "", "limit x"]
    world.end("192.0.2.1")
    assert [world.connect("192.0.2.1", 0.0) for _ in range(2)] == ["", "limit x"]


def test_a_quota_ends_with_its_period_and_a_clock_that_jumps_back_gives_nothing() -> None:
    world = World(quota="1000B/day")
    assert world.connect("192.0.2.1", 0.0) == ""
    world.use("192.0.2.1", 999)
    assert world.connect("192.0.2.1", 0.0) == ""
    world.use("192.0.2.1", 1)
    assert world.connect("192.0.2.1", 0.0) == "limit x"
    world.wall -= 3 * DAY
    assert world.connect("192.0.2.1", 0.0) == "limit x"
    world.wall += DAY
    assert world.connect("192.0.2.1", 0.0) == "", "a day has passed by the clock that jumped back"


@pytest.mark.parametrize("is_restarted", [False, True])
def test_a_clock_that_jumps_back_and_is_set_right_gives_nothing(is_restarted) -> None:
    """A machine without a clock of its own starts in 1970."""
    world = World(quota="1000B/day")
    assert world.connect("192.0.2.1", 0.0) == ""
    world.use("192.0.2.1", 600)
    stored, right = world.limiter.snapshot(0.0, 9), world.wall
    if is_restarted:
        world = World(quota="1000B/day")
        world.wall = 5 * DAY
        world.limiter.restore(stored, 0.0)
    else:
        world.wall = right - 5 * DAY
    assert world.connect("192.0.2.1", 0.0) == ""
    world.use("192.0.2.1", 400)
    assert world.connect("192.0.2.1", 0.0) == "limit x"
    world.wall = right
    assert world.connect("192.0.2.1", 0.0) == "limit x"
    world.wall += DAY
    assert world.connect("192.0.2.1", 0.0) == ""


def test_the_marks_of_a_quota_are_reported_once_for_each_key_and_period() -> None:
    world = World(quota="1000B/day")
    for host, sizes in (("192.0.2.1", (799, 1, 100, 100)), ("192.0.2.2", (700, 300)), ("192.0.2.3", (799,))):
        world.connect(host, 0.0)
        for size in sizes:
            world.use(host, size)
    expected = [("192.0.2.1", False), ("192.0.2.1", True), ("192.0.2.2", True)]
    assert world.reports == expected
    successor = World(quota="1000B/day")
    successor.limiter.restore(world.limiter.snapshot(0.0, 9), 0.0)
    for host in ("192.0.2.1", "192.0.2.2", "192.0.2.3"):
        successor.use(host, 1)
    assert successor.reports == [("192.0.2.3", False)], "the others were reported before the restart"
    successor.wall += DAY
    successor.connect("192.0.2.1", 0.0)
    successor.use("192.0.2.1", 900)
    assert successor.limiter.change(check_limits([{"name": "x", "quota": "2000B/day"}])[0], 0.0)
    successor.use("192.0.2.1", 600)
    successor.use("192.0.2.1", 100)
    successor.use("192.0.2.1", 400)
    assert successor.reports[1:] == [("192.0.2.1", False), ("192.0.2.1", False), ("192.0.2.1", True)]


def test_a_quota_bans() -> None:
    world = World(quota="10B/hour", ban="1d")
    world.connect("192.0.2.1", 0.0)
    world.use("192.0.2.1", 10)
    assert world.connect("192.0.2.1", 1.0) == "limit x"
    world.wall += 7200
    assert world.connect("192.0.2.1", 7201.0) == "ban x"
    assert world.connect("192.0.2.1", 90000.0) == ""


def test_the_last_bans_are_listed_at_once_among_many_keys() -> None:
    world = World(rate="1/1h", ban="1m")
    limiter = world.limiter

    def banned(most: int, now: float) -> list[str]:
        return [entry.key for entry in limiter.banned(most, now)]

    hosts = [f"192.0.2.{number}" for number in range(5)]
    for second, host in enumerate(hosts):
        assert [world.connect(host, float(second)) for _ in range(2)] == ["", "limit x"]
    assert (banned(9, 5.0), banned(2, 5.0)) == (hosts[::-1], hosts[:2:-1])
    (last,) = limiter.banned(1, 5.0)
    assert limiter.entries(5.0, [last])[0].banned_until == world.wall + 59.0
    assert banned(9, 61.5) == hosts[:1:-1]
    limiter.clear(hosts[3])
    world.connect(hosts[2], 70.0)  # once more
    assert banned(9, 63.0) == [hosts[2], hosts[4]] and limiter.has_bans
    assert banned(9, 1000.0) == [] and not limiter.has_bans
    successor = World(rate="1/1h", ban="1m").limiter
    successor.restore([LedgerEntry("x", "192.0.2.9", world.wall + 30.0, 0, 0.0)], 0.0)
    assert [entry.key for entry in successor.banned(9, 1.0)] == ["192.0.2.9"]


def test_no_number_of_other_clients_ends_a_ban() -> None:
    limiter = Limiter(check_limits([{"rate": "1/1h", "ban": "1d"}])[0], Timers(), most=10)
    for _ in range(2):
        limiter.admit("192.0.2.1", 0.0)
    for number in range(1000):
        entry = limiter.admit(f"198.51.100.{number}", 1.0)
        assert not isinstance(entry, Rejection)
        entry.connected -= 1
    assert limiter.admit("192.0.2.1", 2.0) == Rejection(limiter.limit, True, DAY - 2.0)
    assert [entry.key for entry in limiter.banned(9, 2.0)] == ["192.0.2.1"]
    assert len(limiter.table) == 10 + 1


def test_no_more_are_banned_than_the_table_has_keys_and_the_oldest_bans_are_forgotten() -> None:
    limiter = Limiter(check_limits([{"rate": "1/1h", "ban": "1d"}])[0], Timers(), most=10)
    for number in range(50):
        for _ in range(2):
            limiter.admit(f"192.0.2.{number}", float(number))
        assert len(limiter.banned(99, float(number))) == min(number + 1, 10)
    assert [entry.key for entry in limiter.banned(99, 60.0)] == [f"192.0.2.{number}" for number in range(49, 39, -1)]


def test_a_client_that_is_connected_when_its_ban_is_forgotten_still_counts() -> None:
    limiter = Limiter(check_limits([{"rate": "2/1h", "concurrent": 1, "ban": "1d"}])[0], Timers(), most=1)
    entry = limiter.admit("192.0.2.1", 0.0)
    assert not isinstance(entry, Rejection)
    limiter.exhausted(entry, 0.0)
    other = limiter.admit("192.0.2.2", 0.0)
    assert not isinstance(other, Rejection)
    limiter.exhausted(other, 0.0)
    assert [one.key for one in limiter.banned(9, 0.0)] == ["192.0.2.2"]
    assert limiter.admit("192.0.2.1", DAY) == Rejection(limiter.limit, False, 0.0)


def test_a_ban_that_is_over_is_no_ban_and_its_client_is_one_of_the_table() -> None:
    limiter = Limiter(check_limits([{"rate": "1/1h", "ban": "1d"}])[0], Timers(), most=10)
    for _ in range(2):
        limiter.admit("192.0.2.1", 0.0)
    assert not isinstance(limiter.admit("192.0.2.1", DAY), Rejection)
    assert (limiter.has_bans, len(limiter.table)) == (False, 1)


def test_a_long_list_of_bans_is_cut_and_gone_through_in_parts() -> None:
    limiter = Limiter(check_limits([{"rate": "1/1h", "ban": "1d"}])[0], Timers(), most=2000)
    for number in range(2001):
        for _ in range(2):
            limiter.admit(str(number), 0.0)
    assert len(limiter.banned(9999, 1.0)) == 2001 - 20
    assert limiter.banned(9999, DAY) == [] and limiter.has_bans, "a thousand at one time"
    assert limiter.banned(9999, DAY) == [] and not limiter.has_bans


def test_why_and_for_how_long_a_client_is_rejected() -> None:
    world = World(rate="1/10s", concurrent=1, ban="10m")
    limiter, client = world.limiter, Client("192.0.2.1")
    entry = limiter.admit("192.0.2.1", 100.0)
    assert not isinstance(entry, Rejection) and limiter.ban(client, 100.0) is None
    assert limiter.admit("192.0.2.1", 115.0) == Rejection(limiter.limit, False, 0.0)
    entry.connected = 0
    assert not isinstance(limiter.admit("192.0.2.1", 115.0), Rejection)
    assert limiter.admit("192.0.2.1", 116.0) == Rejection(limiter.limit, False, 600.0)
    assert limiter.ban(client, 117.0) == limiter.admit("192.0.2.1", 117.0) == Rejection(limiter.limit, True, 599.0)
    assert limiter.entries(715.9) != [] and limiter.entries(716.0) == [], "no ban that ends now is stored"
    assert limiter.ban(client, 716.0) is None and limiter.ban(Client("192.0.2.2"), 117.0) is None
    assert limiter.banned(9, 716.0) == [] and not limiter.has_bans
    without = World(rate="1/10s")
    assert [without.connect("192.0.2.1", 0.0) for _ in range(2)] == ["", "limit x"]
    assert not without.limiter.has_bans and without.changes == 0


def test_what_is_reached_exactly_is_not_exceeded() -> None:
    world = World(rate="3/10s")
    entry = world.limiter.table.get("192.0.2.1")
    entry.arrival, entry.banned_until = world.limiter._slack, -1.0
    assert not world.limiter.is_too_fast(entry, 0.0)
    assert [world.connect("192.0.2.1", 0.0) for _ in range(2)] == ["", "limit x"]


def test_a_client_that_another_limit_rejects_is_counted_no_longer() -> None:
    limiter = World(rate="9/9s", concurrent=9).limiter
    entries = [limiter.admit("192.0.2.1", 100.0) for _ in range(3)]
    (entry,) = {id(entry): entry for entry in entries}.values()
    assert not isinstance(entry, Rejection)
    limiter.withdraw(entry)
    assert (entry.connected, entry.arrival) == (2, 102.0)
    alone = World(concurrent=9).limiter.admit("192.0.2.1", 100.0)
    assert not isinstance(alone, Rejection) and alone.arrival == 0.0


def test_a_client_that_was_counted_before_its_handshake() -> None:
    limiter = World(concurrent=2, quota="10B/day", ban="10m").limiter
    entry = limiter.admit_screened("192.0.2.1", 0.0)
    assert not isinstance(entry, Rejection) and limiter.admit_screened("192.0.2.1", 0.0) is entry
    assert entry.connected == 2
    assert limiter.admit_screened("192.0.2.1", 0.0) == Rejection(limiter.limit, False, 0.0)
    entry.connected = 0
    limiter.spend(entry, 10)
    assert limiter.admit_screened("192.0.2.1", 1.0) == Rejection(limiter.limit, False, 600.0)
    assert limiter.admit_screened("192.0.2.1", 2.0) == Rejection(limiter.limit, True, 599.0)
    entry.used = 0
    assert limiter.admit_screened("192.0.2.1", 601.0) is entry


def test_a_limit_of_each_connection_has_no_keys() -> None:
    limiter = World(per="connection", bandwidth="1MB/s").limiter
    entry = limiter.admit(limiter.key(Client("192.0.2.1")), 0.0)
    assert not isinstance(entry, Rejection) and (entry.key, len(limiter.table)) == ("", 0)


def test_other_values_are_taken_only_if_the_same_clients_count_together_in_the_same_period() -> None:
    world = World(quota="1GB/day", bandwidth="1MB/s")
    meters = world.limiter.meters(world.limiter.table.get("192.0.2.1"))
    for keys in ({"quota": "1GB/week"}, {"quota": "1GB/day", "per": "tunnel"}):
        assert not world.limiter.change(check_limits([{"name": "x", **keys}])[0], 0.0)
    assert world.limiter.change(check_limits([{"name": "x", "quota": "1GB/day"}])[0], 0.0)
    assert [meter.rate for meter in meters] == [1e6, 1e6]


def test_wrong_passwords_ban() -> None:
    world = World(rate="5/1m", ban="1m", name="login")
    limiter, client = world.limiter, Client("192.0.2.1")
    assert [limiter.fail(client, now) for now in (0.0, 1.0, 2.0, 3.0, 4.0)] == [False] * 4 + [True]
    assert world.connect("192.0.2.1", 5.0) == "ban login" and world.connect("192.0.2.2", 5.0) == ""
    assert world.connect("192.0.2.1", 65.0) == ""
    for _ in range(4):
        assert not limiter.fail(client, 70.0)
    assert limiter.clear("192.0.2.1") and not limiter.fail(client, 70.0)


def test_both_directions_have_meters_that_the_clients_of_a_key_share() -> None:
    world = World(bandwidth="1MB/s")
    first, again, other = (world.limiter.table.get(host) for host in ("192.0.2.1", "192.0.2.1", "192.0.2.2"))
    up, down = world.limiter.meters(first)
    assert up is not down and world.limiter.meters(again) == (up, down) != world.limiter.meters(other)
    for meter in (up, down):
        assert meter.rate == 1e6
        meter.spend(meter, 1_000_000)
        assert meter.take(meter, 0.0) == 0  # and the thread's timers wake it up


def test_whether_the_next_client_comes_too_fast_is_known_without_it() -> None:
    world = World(rate="2/10s")
    for now in (100.0, 100.0):
        assert world.connect("192.0.2.1", now) == ""
    entry = world.limiter.table.get("192.0.2.1")
    assert [world.limiter.is_too_fast(entry, now) for now in (100.0, 104.9, 105.0)] == [True, True, False]
    assert world.connect("192.0.2.1", 105.0) == ""


def test_a_store_gets_what_has_changed_and_another_process_goes_on_with_it() -> None:
    world = World(rate="1/s", quota="1000B/month", ban="10m")
    assert world.limiter.snapshot(100.0, 9) == []
    world.connect("192.0.2.1", 100.0)
    world.use("192.0.2.1", 400)
    world.connect("192.0.2.2", 100.0)
    assert world.connect("192.0.2.2", 100.0) == "limit x"
    stored = sorted(world.limiter.snapshot(100.0, 9), key=lambda entry: entry.key)
    assert stored == [
        LedgerEntry("x", "192.0.2.1", 0.0, 400, MAY),
        LedgerEntry("x", "192.0.2.2", MAY + DAY + 600, 0, MAY),
    ]
    assert (
        world.limiter.snapshot(101.0, 9) == []
        and sorted(world.limiter.entries(100.0), key=lambda one: one.key) == stored
    )

    successor = World(rate="1/s", quota="1000B/month", ban="10m")
    successor.wall += 300
    successor.limiter.restore(stored, 5.0)
    assert successor.connect("192.0.2.2", 304.0) == "ban x" and successor.connect("192.0.2.2", 306.0) == ""
    assert successor.limiter.left(successor.limiter.table.get("192.0.2.1")) == 600


def test_a_store_gets_a_few_at_a_time_and_each_once() -> None:
    world = World(rate="1/h", ban="1h")
    for number in range(5):
        assert [world.connect(f"192.0.2.{number}", 0.0) for _ in range(2)] == ["", "limit x"]
    assert world.changes == 1
    parts = []
    while world.limiter.has_changed:
        parts.append([entry.key for entry in world.limiter.snapshot(1.0, 2)])
    assert [len(part) for part in parts] == [2, 2, 1]
    assert sorted(key for part in parts for key in part) == [f"192.0.2.{number}" for number in range(5)]


def test_without_a_store_no_change_is_remembered() -> None:
    limiter = Limiter(check_limits([{"rate": "1/h", "ban": "1h"}])[0], Timers())
    found = [limiter.admit(Client(f"192.0.2.{number}"), 0.0) for number in range(5) for _ in range(2)]
    assert [isinstance(one, Rejection) for one in found] == [False, True] * 5
    assert not limiter.has_changed


def test_stored_entries_that_do_not_fit_are_ignored_and_no_ban_outlasts_the_limit() -> None:
    world = World(rate="1/s", quota="1000B/month", ban="10m")
    wall = world.wall
    entries = [
        LedgerEntry("other", "192.0.2.1", wall + 60, 500, MAY),
        LedgerEntry("x", "192.0.2.2", wall - 1, 0, 0.0),
        LedgerEntry("x", "192.0.2.3", 0.0, 500, MAY - 30 * DAY),
        LedgerEntry("x", "192.0.2.4", wall + 40 * DAY, 0, 0.0),
        LedgerEntry("x", "192.0.2.5", wall, 0, MAY),
        LedgerEntry("x", "192.0.2.6", wall, 1, MAY),
        LedgerEntry("x", "192.0.2.7", wall + 0.5, 0, 0.0),
    ]
    world.limiter.restore(entries, 0.0)
    kept = [(entry.key[-1], entry.banned_until, entry.used) for entry in world.limiter.table.all()]
    assert sorted(kept) == [("4", 600.0, 0), ("6", 0.0, 1), ("7", 0.5, 0)]
    assert [entry.key[-1] for entry in world.limiter.banned(9, 0.0)] == ["7", "4"]
    alone = World(quota="1000B/month", ban="10m").limiter
    alone.restore(entries[5:6], 0.0)
    assert len(alone.table) == 1 and not alone.has_bans
    assert [world.connect(f"192.0.2.{number}", 1.0) for number in (1, 2, 3, 4)] == ["", "", "", "ban x"]
    assert world.connect("192.0.2.4", 601.0) == ""


@pytest.mark.parametrize(
    ("before", "after", "admitted", "seconds"),
    [
        ("2/1d", "100/1s", 98, 0.0),
        ("2/1d", "100/1d", 98, 864.0),
        ("3/1m", "2/1m", 0, 30.0),
        ("100/1s", "2/1h", 0, 1800.0),
        ("2/1d", None, 200, 0.0),
    ],
)
def test_another_rate_counts_the_clients_that_came_before(
    before: str, after: str | None, admitted: int, seconds: float
) -> None:
    world = World(rate=before)
    while not world.connect("192.0.2.1", 1000.0):
        pass
    (limit,) = check_limits([{"name": "x", "rate": after, "concurrent": 1000}])
    assert world.limiter.change(limit, 1000.0)
    assert [not world.connect("192.0.2.1", 1000.0) for _ in range(200)].count(True) == admitted
    assert world.connect("192.0.2.1", 1000.0 + seconds - 1.0) == "limit x" or seconds == 0.0
    assert world.connect("192.0.2.1", 1000.0 + seconds + 0.1) == ""


@pytest.mark.parametrize(
    ("per", "host", "address"),
    [
        ("ip", "2001:db8::1", "2001:DB8:0:0::9"),
        ("ip/24", "192.0.2.1", "192.0.2.9"),
        ("ip", "192.0.2.1", "::ffff:192.0.2.1"),
        ("identity", "2001:db8::1", "2001:db8::9"),
    ],
)
def test_a_key_is_found_by_an_address_in_it(per: str, host: str, address: str) -> None:
    world = World(rate="1/10s", per=per)
    world.connect(host, 0.0)
    assert world.limiter.find("2001:db9::1") is world.limiter.find("192.0.3.1") is None
    entry = world.limiter.find(address)
    assert entry is not None and world.limiter.find(entry.key) is entry
    assert world.limiter.clear(address) and world.connect(host, 0.0) == ""


def test_an_identity_is_found_by_its_address() -> None:
    limiter = World(rate="1/10s", per="identity").limiter
    entry = limiter.admit(limiter.key(Identity("tcp", "192.0.2.1", "192.0.2.1", 5)), 0.0)
    assert limiter.find("192.0.2.1") is entry


def test_no_address_stands_for_all_clients_of_a_tunnel() -> None:
    world = World(rate="1/10s", per="tunnel")
    world.connect("192.0.2.1", 0.0)
    assert world.limiter.find("192.0.2.1") is None


def test_operators_clear_a_key() -> None:
    world = World(rate="1/10s", ban="10m")
    for host in ("192.0.2.1", "192.0.2.2", "192.0.2.3"):
        world.connect(host, 0.0)
        world.connect(host, 0.0)
    world.limiter.snapshot(0.0, 9)
    assert not world.limiter.clear("192.0.2.9")
    assert world.limiter.clear("192.0.2.1")
    assert world.limiter.snapshot(1.0, 9) == [LedgerEntry("x", "192.0.2.1", 0.0, 0, 0.0)]
    assert world.connect("192.0.2.1", 1.0) == "" and world.connect("192.0.2.2", 1.0) == "ban x"
    assert world.limiter.clear("192.0.2.1"), "it has come again"
    assert [entry.key for entry in world.limiter.entries(1.0)] == ["192.0.2.2", "192.0.2.3"]
    world.limiter.restore([LedgerEntry("x", "192.0.2.8", world.wall + 60.0, 0, 0.0)], 1.0)
    assert world.limiter.clear("192.0.2.8")
    alone = World(rate="1/10s", ban="10m")
    assert [alone.connect("192.0.2.1", 0.0) for _ in range(2)] == ["", "limit x"] and alone.limiter.has_bans
    assert alone.limiter.clear("192.0.2.1") and not alone.limiter.has_bans


def test_what_was_used_of_a_quota_is_cleared_by_operators_and_by_the_end_of_its_period() -> None:
    world = World(quota="1000B/day")
    for size in (799, 1):
        world.connect("192.0.2.1", 0.0)
        world.use("192.0.2.1", size)
        assert world.limiter.clear("192.0.2.1")
        world.use("192.0.2.1", 800)
    assert world.reports == [("192.0.2.1", False)] * 2
    assert [entry.used for entry in world.limiter.entries(0.0)] == [800]
    world.wall += DAY
    assert world.limiter.entries(0.0) == []
