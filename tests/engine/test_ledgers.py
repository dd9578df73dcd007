"""``relay.engine.ledgers``: the bans and quotas of a tunnel, which its thread is asked for a few at a time."""

import math
from types import SimpleNamespace

import pytest

from relay.access.ledger import LedgerEntry
from relay.access.limit import check_limits
from relay.access.limiter import Limiter
from relay.engine import changes
from relay.engine.ledgers import KeptEntry, bans_of, clear, entries_of
from relay.eventloop.loop import Timers

MAY = 1_777_593_600.0  # 2026-05-01, 00:00 UTC
WALL = MAY + 86400.0
NOW = 1000.0
A, B = "192.0.2.1", "192.0.2.2"


class Listed(Limiter):
    """A limit at work, with the number of entries that each turn has asked for."""

    def __init__(self, name, **keys):
        super().__init__(check_limits([{"name": name, **keys}])[0], Timers(), wall=lambda: WALL)
        self.parts = []

    def entries(self, now, among=None):
        self.parts.append(len(among))
        return super().entries(now, among)

    def connect(self, key, now=NOW):
        self.admit(key, now)
        return self

    def use(self, key, size):
        entry = self.table.get(key)
        self.left(entry)  # in this period
        self.spend(entry, size)
        return self


def banning(name="few", seconds=600, count=0):
    """A limit that bans a client for so long if it comes twice in an hour, as so many clients have done."""
    limiter = Listed(name, rate="1/1h", ban=f"{seconds}s")
    for number in range(count):
        limiter.connect(str(number)).connect(str(number))
    return limiter


def counting(name="much", **keys):
    return Listed(name, **{"quota": "1MB/month", **keys})


class Tunnel:
    """A tunnel with these limits, whose thread turns only when it is asked."""

    def __init__(self, *limiters, turns=math.inf):
        self.gate = self if limiters else None
        self.entrance = SimpleNamespace(gate=self.gate)
        self.limiters = lambda: limiters
        self.clock, self.step = NOW, 0.0
        self.turns, self.turned = turns, 0  # before it is closing
        self._relay = self

    @property
    def has_bans(self):
        return any(limiter.has_bans for limiter in self.limiters())

    @property
    def is_closing(self):
        return self.turned > self.turns

    def run_in_thread(self, job):
        self.turned += 1
        job()
        self.clock += self.step


@pytest.fixture
def tunnel_of(monkeypatch):
    """Makes a tunnel whose clock is the one of the tunnel's thread."""

    def made(*limiters, **keys):
        tunnel = Tunnel(*limiters, **keys)
        monkeypatch.setattr(changes, "time", SimpleNamespace(monotonic=lambda: tunnel.clock))
        return tunnel

    return made


# -- all that there is ------------------------------------------------------------------------------------------------


def test_the_bans_and_the_used_bytes_of_all_limits_are_returned(tunnel_of):
    few = banning().connect(A).connect(A).connect(B)  # the second one has come only once
    much = counting(per="tunnel").use("*", 10)
    assert list(entries_of(tunnel_of(few, much))) == [
        KeptEntry(LedgerEntry("few", A, WALL + 600.0, 0, 0.0), None),
        KeptEntry(LedgerEntry("much", "*", 0.0, 10, MAY), 1_000_000),
    ]


@pytest.mark.parametrize(("count", "parts"), [(450, [200, 200, 50]), (200, [200]), (201, [200, 1]), (0, [])])
def test_a_large_table_is_returned_in_parts_of_two_hundred_each_in_a_turn_of_its_own(tunnel_of, count, parts):
    limiter = counting()
    for number in range(count):
        limiter.use(str(number), number + 1)
    tunnel = tunnel_of(limiter)
    found = list(entries_of(tunnel))
    assert sorted(one.entry.used for one in found) == list(range(1, count + 1))
    assert (limiter.parts, tunnel.turned) == (parts, 2 + len(parts))


@pytest.mark.parametrize(("turns", "count"), [(0, 0), (1, 0), (2, 0), (3, 200), (4, 250)])
def test_once_the_tunnel_is_closing_no_more_entries_come(tunnel_of, turns, count):
    limiter = counting()
    for number in range(250):
        limiter.use(str(number), 1)
    assert len(list(entries_of(tunnel_of(limiter, turns=turns)))) == count


def test_a_tunnel_without_limits_has_no_entries(tunnel_of):
    assert list(entries_of(tunnel_of())) == []


# -- bans -------------------------------------------------------------------------------------------------------------


def test_a_tunnel_without_bans_is_not_disturbed(tunnel_of):
    for tunnel in (tunnel_of(), tunnel_of(banning().connect(A))):
        assert bans_of(tunnel, 10) == []
        assert tunnel.turned == 0


def test_the_bans_that_last_longest_come_first_whichever_limit_they_are_of(tunnel_of):
    short = banning("short", 60).connect(A).connect(A)
    long = banning("long", 600).connect(A).connect(A).connect(B, NOW + 5.0).connect(B, NOW + 5.0)
    expected = [
        LedgerEntry("long", B, WALL + 605.0, 0, 0.0),
        LedgerEntry("long", A, WALL + 600.0, 0, 0.0),
        LedgerEntry("short", A, WALL + 60.0, 0, 0.0),
    ]
    assert bans_of(tunnel_of(short, long), 10) == bans_of(tunnel_of(short, long), 3) == expected
    assert bans_of(tunnel_of(short, long), 2) == expected[:2]


def test_many_bans_are_returned_in_parts_of_two_hundred(tunnel_of):
    limiter = banning(count=450)
    tunnel = tunnel_of(limiter)
    assert {one.key for one in bans_of(tunnel, 1000)} == {str(number) for number in range(450)}
    assert (limiter.parts, tunnel.turned) == ([200, 200, 50], 5)


def test_no_more_bans_are_looked_at_than_are_wanted(tunnel_of):
    limiter = banning(count=450)
    assert [one.key for one in bans_of(tunnel_of(limiter), 3)] == ["449", "448", "447"]
    assert limiter.parts == [3]


def test_a_ban_that_ends_between_two_turns_is_not_returned_for_the_bytes_of_its_client(tunnel_of):
    limiter = Listed("both", rate="1/1h", ban="10s", quota="1MB/month").connect(A).connect(A).use(A, 10)
    tunnel = tunnel_of(limiter)
    tunnel.step = 6.0
    assert bans_of(tunnel, 10) == []
    assert limiter.parts == [1]


def test_a_ban_that_has_ended_before_is_not_looked_at(tunnel_of):
    limiter = banning(seconds=10).connect(A).connect(A)
    tunnel = tunnel_of(limiter)
    tunnel.clock = NOW + 11.0
    assert bans_of(tunnel, 10) == []
    assert limiter.parts == []


@pytest.mark.parametrize(("turns", "count"), [(0, 0), (1, 0), (2, 0), (3, 200), (4, 250)])
def test_once_the_tunnel_is_closing_no_more_bans_come(tunnel_of, turns, count):
    assert len(bans_of(tunnel_of(banning(count=250), turns=turns), 1000)) == count


# -- to clear them ----------------------------------------------------------------------------------------------------


def test_a_ban_is_cleared_for_one_client_only(tunnel_of):
    limiter = banning().connect(A).connect(A).connect(B).connect(B)
    tunnel = tunnel_of(limiter)
    assert (clear(tunnel, "quotas", A), clear(tunnel, "bans", "192.0.2.3")) == (0, 0)
    assert (clear(tunnel, "bans", A), clear(tunnel, "bans", A)) == (1, 0)
    assert [one.key for one in bans_of(tunnel, 10)] == [B]


def test_a_ban_is_cleared_in_all_limits_that_have_it(tunnel_of):
    one, two = banning("one").connect(A).connect(A), banning("two").connect(A).connect(A)
    tunnel = tunnel_of(one, counting().use(A, 10), two)
    assert clear(tunnel, "bans", A) == 2
    assert [kept.entry.limit for kept in entries_of(tunnel)] == ["much"]


def test_a_client_that_a_rate_rejects_without_a_ban_is_let_in(tunnel_of):
    limiter = Listed("few", rate="1/1h").connect(A)
    tunnel = tunnel_of(limiter)
    assert limiter.is_too_fast(limiter.find(A), NOW)
    assert (clear(tunnel, "quotas", A), clear(tunnel, "bans", A)) == (0, 1)
    assert not limiter.is_too_fast(limiter.find(A), NOW)


def test_a_client_that_its_rate_does_not_reject_any_more_is_left_alone(tunnel_of):
    limiter = Listed("few", rate="1/1h").connect(A)
    tunnel = tunnel_of(limiter)
    tunnel.clock = NOW + 3601.0
    assert clear(tunnel, "bans", A) == 0


def test_a_ban_that_is_over_is_not_cleared(tunnel_of):
    limiter = Listed("both", quota="1kB/month", ban="10s").use(A, 1000)
    limiter.exhausted(limiter.table.get(A), NOW)
    tunnel = tunnel_of(limiter)
    tunnel.clock = NOW + 11.0
    assert clear(tunnel, "bans", A) == 0
    tunnel.clock = NOW + 9.0
    assert clear(tunnel, "bans", A) == 1


def test_what_was_used_of_a_quota_is_cleared(tunnel_of):
    limiter = counting().use(A, 10).use(B, 20)
    tunnel = tunnel_of(limiter)
    assert (clear(tunnel, "bans", A), clear(tunnel, "quotas", A)) == (0, 1)
    assert [(kept.entry.key, kept.entry.used) for kept in entries_of(tunnel)] == [(B, 20)]


def test_nothing_is_cleared_without_limits_or_once_the_tunnel_is_closing(tunnel_of):
    limiter = banning().connect(A).connect(A)
    assert clear(tunnel_of(), "bans", A) == clear(tunnel_of(limiter, turns=0), "bans", A) == 0
    assert limiter.ban(SimpleNamespace(kind="tcp", host=A), NOW) is not None
