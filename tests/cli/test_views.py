"""Tunnels in the live table: rates, what has ended, and what stands first."""

import pytest

from relay.cli.live import lay_out
from relay.cli.output import size, summary
from relay.cli.views import FleetView, TimedRates, TunnelView, Watched, age, shown_state
from relay.daemon.status import hop_state, total
from relay.engine.records import ConnectionRecord, Stats
from relay.streams.dialer import Dialer
from relay.streams.listener import TunnelListener
from relay.targets.group import TargetGroup


def record(port, *, age=3.0, received=0, sent=0, state="open", reason=None, target="db:5432", peer=None):
    return ConnectionRecord(peer or ("10.0.0.1", port), target, age, received, sent, "copy", state, reason, f"c{port}")


class Fake:
    """A tunnel of which the test says all."""

    name = "fake"

    def __init__(self, live=(), ended=()):
        self.live, self.ended = list(live), list(ended)

    def stats(self):
        all_records = self.live + self.ended
        return Stats(
            len(all_records),
            len(self.live),
            sum(one.received for one in all_records),
            sum(one.sent for one in all_records),
            {"refused": 1} if any(one.reason == "refused" for one in self.ended) else {},
        )

    def connections(self):
        return self.live

    def recent(self):
        return self.ended[-100:]


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (1234, "1.2 kB"), (99_949, "99.9 kB"), (99_999, "100 kB"),
     (999_499, "999 kB"), (999_999, "1.0 MB"), (5e9, "5.0 GB"), (7e12, "7.0 TB"), (7e15, "7000 TB"), (0.4, "0 B")],
)  # fmt: skip
def test_bytes_have_one_wording(count, text):
    assert size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.9, "9.9 s"), (59, "59 s"), (601, "10 min"), (7300, "2 h"), (3 * 86400, "3 d")],
)
def test_ages_are_short(seconds, text):
    assert age(seconds) == text


def test_a_summary_and_a_sum():
    one, two = Stats(1, 1, 5, 7, {}), Stats(2, 0, 1500, 0, {"refused": 1, "idle": 1})
    assert summary(one) == "1 connection, 5 B received, 7 B sent, 0 failed"
    assert total([one, two]) == Stats(3, 1, 1505, 7, {"refused": 1, "idle": 1})
    assert summary(two) == "2 connections, 1.5 kB received, 0 B sent, 2 failed (1 idle, 1 refused)"


def test_a_rate_is_of_the_time_between_two_looks():
    clock = Clock()
    rates = TimedRates(clock)
    clock.now += 1
    rates.sample({"a": (1000, 0)})
    assert rates.texts("a") == ("", "")
    clock.now += 2
    rates.sample({"a": (5000, 60), "b": (9, 9)})
    assert rates.texts("a") == ("2.0 kB", "30 B") and rates.texts("b") == ("", "")
    clock.now += 0.1  # too short a time: the last rate stands
    rates.sample({"a": (9999, 60)})
    assert rates.texts("a") == ("2.0 kB", "30 B")
    clock.now += 0.9
    rates.sample({"b": (9, 9)})
    assert rates.texts("a") == ("", "") and rates.texts("b") == ("0 B", "0 B")


def test_a_tunnel_with_its_connections_their_rates_and_what_has_ended():
    clock = Clock()
    tunnel = Fake([record(1, received=100), record(2)], [record(3, state="closed", reason="refused")])
    view = TunnelView(tunnel, "listening on 127.0.0.1:80 → db:5432", clock=clock)
    clock.now += 1
    view()
    tunnel.live = [record(2, age=4.0, sent=3000), record(4, age=0.5)]
    tunnel.ended.append(record(1, age=3.5, received=200, state="closed", reason="done"))
    clock.now += 1
    lines = [line.text for line in lay_out(view(), 100, 30)]
    assert lines == [
        "listening on 127.0.0.1:80 → db:5432",
        "client      state    age  received    sent  received/s  sent/s",
        "10.0.0.1:2  open   4.0 s       0 B  3.0 kB         0 B  3.0 kB",
        "10.0.0.1:4  open   0.5 s       0 B     0 B",
        "last ended",
        "done after 3.5 s: 10.0.0.1:1 → db:5432, 200 B received, 0 B sent",
        "refused after 3.0 s: 10.0.0.1:3 → db:5432, 0 B received, 0 B sent",
        "2 open of 4 connections, 200 B received, 3.0 kB sent, 1 failed (1 refused); now 100 B/s received,",
        "3.0 kB/s sent",
    ]


def test_clients_without_an_address_keep_their_rates_when_one_ends():
    clock = Clock()
    live = [record(number, peer="dest", age=float(number + 1), received=number) for number in (9, 5, 1)]
    tunnel = Fake(live)
    view = TunnelView(tunnel, "", clock=clock)
    clock.now += 1
    view()
    clock.now += 1
    tunnel.live = [one._replace(age=one.age + 1, received=one.received + 10) for one in live[1:]]
    assert [row[-2] for row in view().rows] == ["10 B", "10 B"]


def test_targets_are_shown_where_they_differ():
    view = TunnelView(Fake([record(1), record(2, target="web:80")]), "")
    content = view()
    assert [column.title for column in content.columns][:3] == ["client", "state", "target"]
    assert [row[2] for row in content.rows] == ["db:5432", "web:80"]


def test_hops_that_are_not_up_are_told():
    class Down(Dialer):
        state, last_error = "backing off", "ssh://bastion: connection refused"

    class Listener(TunnelListener):
        state = "connecting"

    assert hop_state(TunnelListener(), Dialer("db")) == ("up", "")
    assert hop_state(Listener(), Dialer("db")) == ("connecting", "")
    view = TunnelView(Fake(), "", lambda: hop_state(TunnelListener(), Down("db")))
    assert view().errors == ["hops: backing off: ssh://bastion: connection refused"]


def test_targets_of_which_none_is_up_are_a_problem():
    class Group(TargetGroup):
        state, last_error = "up", "a: refused; b is disabled"

    group = Group([Dialer("a"), Dialer("b")])
    assert hop_state(TunnelListener(), group) == ("up", "a: refused; b is disabled")
    Group.last_error = None
    assert hop_state(TunnelListener(), group) == ("up", "")


def test_a_worker_that_does_not_answer_is_named():
    tunnel = Fake()
    tunnel.problem = "worker 1 (process 7) does not answer"
    assert TunnelView(tunnel, "")().errors == [tunnel.problem]
    shown = Watched("one", "listening", "here → there", tunnel.problem, tunnel, listens=True)
    assert FleetView(lambda: [shown])().errors == [f"one: {tunnel.problem}"]


def test_while_it_closes_the_table_says_so():
    view = TunnelView(Fake(), "listening")
    view.closing = "closing; 1 open, 30 s to finish; again to end at once"
    assert view().head == ["listening", "closing; 1 open, 30 s to finish; again to end at once"]
    fleet = FleetView(list)
    fleet.closing = "closing"
    assert fleet().head == ["closing"]


def test_of_many_tunnels_those_with_problems_and_the_busiest_stand_first():
    members = [
        Watched("quiet", "listening", "a → b", "", Fake(), listens=True),
        Watched("busy", "listening", "c → d", "", Fake([record(1)], [record(2, reason="done")]), listens=True),
        Watched("bad", "failed", "", "127.0.0.1:80: Address already in use; another program listens there"),
    ]
    content = FleetView(lambda: members)()
    assert [row[0] for row in content.rows] == ["bad", "busy", "quiet"]
    assert content.head == ["2 of 3 tunnels listen"]
    assert content.errors == ["bad: 127.0.0.1:80: Address already in use; another program listens there"]
    assert content.ended == ["busy: done after 3.0 s: 10.0.0.1:2 → db:5432, 0 B received, 0 B sent"]
    assert content.rows[1][3:8] == ["1", "2", "0 B", "0 B", "0"]
    lines = [line.text for line in lay_out(content, 80, 22)]
    assert lines[1].split()[:3] == ["tunnel", "state", "from"]
    assert lines[3].startswith("busy    listening  c → d")


def test_the_address_that_most_listeners_have_takes_no_room():
    titles = ["127.0.0.1:8080 → db:80 via ssh://me@bastion", "127.0.0.1:8081 → 127.0.0.1:80", "10.0.0.1:80 → db:80"]
    content = FleetView(lambda: [Watched(str(n), "listening", title) for n, title in enumerate(titles)])()
    shown = [":8080 → db:80 via ssh://me@bastion", ":8081 → 127.0.0.1:80", "10.0.0.1:80 → db:80"]
    assert [row[2] for row in content.rows] == shown


def test_what_has_ended_is_told_once():
    tunnel = Fake(ended=[record(number, age=number, reason="done") for number in range(3)])
    view = TunnelView(tunnel, "")
    assert len(view().ended) == 3
    assert len(view().ended) == 3
    tunnel.ended += [record(number, age=number, reason="idle") for number in range(20)]
    assert [line.split()[0] for line in view().ended] == ["idle"] * 8


@pytest.mark.parametrize(
    ("state", "hops", "word"),
    [
        ("listening", "up", "listening"),
        ("listening", "published", "listening"),
        ("listening", "backing off", "backing off"),
        ("paused", "backing off", "paused"),
        ("opening", "up", "opening"),
    ],
)
def test_one_word_for_the_state_of_a_tunnel(state, hops, word):
    assert shown_state(state, hops) == word
