"""The tables of the status page: their order, their filter, their pages, their texts."""

import dataclasses

import pytest
from instance_double import Double

from relay.carriers.listing import CarrierStatus
from relay.daemon.status import BanStatus, Rates
from relay.engine.records import Stats
from relay.operations.tables import CONNECTION_ORDERS, ROWS, TUNNEL_ORDERS, Tables, View

HOSTILE = "<img src=x onerror=alert(1)>\u202e\n\x00" + "x" * 10_000
BASE = Double.connection("c", "a")


def connections(count):
    return [
        dataclasses.replace(BASE, id=f"c{number}", peer=f"10.0.0.{number}:1", age=float(number), received=number % 7)
        for number in range(count)
    ]


def tables(**parts):
    nothing = {"tunnels": [], "problems": {}, "connections": [], "ended": [], "carriers": [], "bans": []}
    return Tables(**{**nothing, "tunnel_rates": Rates(), "connection_rates": Rates(), **parts})


def test_a_page_of_a_table_says_how_many_rows_there_are():
    all_rows = tables(connections=connections(2 * ROWS + 3))
    for first, expected in ((0, 0), (ROWS, ROWS), (2 * ROWS, 2 * ROWS), (9999999, 2 * ROWS)):
        part = all_rows.shown(View(connections_from=first))["connections"]
        assert (part["total"], part["matching"], part["from"]) == (2 * ROWS + 3, 2 * ROWS + 3, expected)
        assert len(part["rows"]) == (ROWS if expected < 2 * ROWS else 3)
    assert tables().shown(View(connections_from=50))["connections"] == {
        "total": 0, "matching": 0, "from": 0, "rows": [],
    }  # fmt: skip


def test_the_filter_is_about_every_table_and_every_word():
    double = Double()
    carrier = CarrierStatus("ssh://me@Bastion", "ssh", "up", 1.0, 0, 1)
    ended = [dataclasses.replace(BASE, id="e", state="closed", reason="refused", target="db.internal:5432")]
    all_rows = tables(
        tunnels=double.tunnels(), connections=connections(20), ended=ended, carriers=[carrier], bans=double.banned
    )

    def matching(words):
        shown = all_rows.shown(View(filter=words))
        return [shown[name]["matching"] for name in ("tunnels", "connections", "ended", "carriers", "bans")]

    assert matching("") == [2, 20, 1, 1, 1]
    assert matching("REFUSED db.internal") == [0, 0, 1, 0, 0]
    assert matching("bastion") == [0, 0, 0, 1, 0]
    assert matching("10.0.0.7 open") == [0, 1, 0, 0, 0]
    assert matching("10.0.0.7 refused") == [0, 0, 0, 0, 0]
    assert matching("ssh://me@x") == [1, 0, 0, 0, 0], "a hop of b"
    assert matching("192.0.2.7 few") == [0, 0, 0, 0, 1]


def test_the_labels_of_a_tunnel_are_shown_and_found():
    plain, other = Double().tunnels()
    all_rows = tables(tunnels=[plain, dataclasses.replace(other, labels={"tag": "shop\u202e"})])
    assert [row["labels"] for row in all_rows.shown(View(tunnels="name"))["tunnels"]["rows"]] == [
        [], ["tag: shop\\u202e"],
    ]  # fmt: skip
    assert all_rows.shown(View(filter="shop"))["tunnels"]["matching"] == 1


@pytest.mark.parametrize("order", [sign + key for key in CONNECTION_ORDERS for sign in ("", "-")])
def test_each_order_of_connections_is_one(order):
    names = ("peer", "tunnel", "target", "state")
    rows = [
        dataclasses.replace(row, **dict.fromkeys(names, f"{number * 7 % 10}"), sent=(number * 3) % 10)
        for number, row in enumerate(connections(10))
    ]
    rates = Rates()
    rates.look({row.id: (0, 0) for row in rows}, 0.0)
    rates.look({row.id: (row.received, row.sent) for row in rows}, 1.0)
    shown = tables(connections=rows, connection_rates=rates).shown(View(connections=order))["connections"]["rows"]
    key = order.removeprefix("-")
    values = [row[key] for row in shown]
    assert values == sorted(values, reverse=order.startswith("-"))
    assert len(set(values)) > 1


@pytest.mark.parametrize("order", [sign + key for key in TUNNEL_ORDERS for sign in ("", "-")])
def test_each_order_of_tunnels_is_one(order):
    double = Double()
    tunnels = [
        dataclasses.replace(
            double.all["a"],
            name=f"t{number * 7 % 10}",
            state=("listening", "paused")[number % 2],
            problem="no route" if number == 5 else "",
            figures=Stats(*((number * factor) % 10 for factor in (3, 7, 9, 1)), {"idle": number}) if number else None,
        )
        for number in range(10)
    ]
    rates = Rates()
    moved = {one.name: (one.figures.received, one.figures.sent) for one in tunnels if one.figures}
    rates.look(dict.fromkeys(moved, (0, 0)), 0.0)
    rates.look(moved, 1.0)
    rows = tables(tunnels=tunnels, tunnel_rates=rates).shown(View(tunnels=order))["tunnels"]["rows"]
    key = order.removeprefix("-")
    values = [row[key] or 0 if key != "problem" else not row["problem"] for row in rows]
    assert values == sorted(values, reverse=order.startswith("-"))
    assert len(set(values)) > 1


def test_tunnels_with_a_problem_come_first_and_the_others_stay_in_the_order_of_the_file():
    double = Double()
    many = [dataclasses.replace(double.all["a"], name=name) for name in "zyxw"]
    shown = tables(tunnels=many, problems={"x": "paused"}).shown(View())["tunnels"]["rows"]
    assert [(row["name"], row["problem"]) for row in shown] == [("x", "paused"), ("z", ""), ("y", ""), ("w", "")]


def test_carriers_that_are_not_up_come_first():
    states = ("up", "backing off", "up", "failed")
    all_carriers = [CarrierStatus(f"ssh://{number}", "ssh", state, 1.0, 0, 0) for number, state in enumerate(states)]
    shown = tables(carriers=all_carriers).shown(View())["carriers"]["rows"]
    assert [row["name"] for row in shown] == ["ssh://1", "ssh://3", "ssh://0", "ssh://2"]


def test_hostile_texts_are_short_and_printable():
    tunnel = dataclasses.replace(
        Double().all["b"], name=HOSTILE, listen=HOSTILE, target=HOSTILE, via=(HOSTILE,), problem=HOSTILE
    )
    connection = dataclasses.replace(BASE, peer=HOSTILE, target=HOSTILE, tunnel=HOSTILE, reason=HOSTILE)
    carrier = CarrierStatus(HOSTILE, "ssh", "failed", 1.0, 0, 0, error=HOSTILE)
    ban = BanStatus(tunnel=HOSTILE, limit="few", key=HOSTILE, until=2e9)
    shown = tables(
        tunnels=[tunnel], connections=[connection], ended=[connection], carriers=[carrier], bans=[ban]
    ).shown(View())  # fmt: skip
    texts = []

    def collect(value):
        if isinstance(value, str):
            texts.append(value)
        for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            collect(each)

    collect(shown)
    assert all(text.isprintable() and len(text) < 600 for text in texts)
    assert sum(text.startswith(r"<img src=x onerror=alert(1)>\u202e\n\x00xxx") for text in texts) == 16


def test_rates_are_those_since_the_last_look():
    rates = Rates()
    rates.look({"a": (100, 10)}, 0.0)
    assert rates.of("a") == (None, None)
    rates.look({"a": (300, 10), "b": (5, 5)}, 2.0)
    assert (rates.of("a"), rates.of("b")) == ((100.0, 0.0), (None, None))
    rates.look({"a": (0, 0)}, 1.0)
    assert rates.of("a") == (0.0, 0.0), "a counter that begins anew is no negative rate"


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ({"filter": "x" * 201}, "filter"),
        ({"tunnels": "nope"}, "tunnels: expected one of problem, name"),
        ({"connections": "--age"}, "connections: expected one of"),
        ({"connections_from": "-1"}, "connections_from"),
        ({"connections_from": "²"}, "connections_from"),
        ({"tunnels_from": "12345678"}, "tunnels_from"),
    ],
)
def test_a_wrong_query_is_an_error(query, words):
    with pytest.raises(ValueError, match=words):
        View.parse(query)


def test_a_query_becomes_a_view():
    assert View.parse({}) == View()
    query = {
        "filter": "a b",
        "tunnels": "-name",
        "tunnels_from": "50",
        "connections": "sent",
        "connections_from": "100",
    }
    assert View.parse(query) == View("a b", "-name", 50, "sent", 100)
