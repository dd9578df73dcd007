"""The samples of the status page."""

import dataclasses
import json

import jsonschema
import pytest
from instance_double import PROBED

from relay.daemon.failures import NotFoundError
from relay.engine.records import Stats
from relay.operations.openapi import document
from relay.operations.overview import ENDED, SPAN, TUNNELS_AT_ONCE, Overview
from relay.operations.tables import ROWS, View
from relay.targets.group import TargetState


class Clock:
    now = 1e9

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def look(double, clock):
    overview = Overview(double, clock)

    def look(passed=1.0, view=View()):  # noqa: B008 - it is a constant
        clock.now += passed
        overview.refresh()
        return json.loads(overview.render([view])[view])

    look.overview = overview
    return look


def figures(double, name="a", **changes):
    double.change(name, figures=double.all[name].figures._replace(**changes))


def test_it_fits_its_description(look, double):
    double.change("b", probe=PROBED)
    look()
    schema = {"$ref": "#/components/schemas/Overview", "components": document()["components"]}
    jsonschema.validate(look(), schema, cls=jsonschema.Draft202012Validator)


def test_sums_and_reasons(look, double):
    double.change("b", figures=Stats(7, 2, 100, 200, {"idle": 5, "refused": 1}))
    totals = look()["totals"]
    assert totals == {
        "accepted": 10, "active": 3, "received": 110, "sent": 220, "tunnels": 2, "listening": 2, "problems": 0,
        "failed": {"idle": 5, "refused": 3},
    }  # fmt: skip
    assert [*totals["failed"]] == ["idle", "refused"], "the most frequent first"


def test_rates_come_with_the_second_sample(look, double):
    first = look()
    assert first["history"] == []
    assert first["tunnels"]["rows"][0]["received_rate"] is None
    figures(double, received=210, sent=20, accepted=7, active=2)
    double.open["c1"] = dataclasses.replace(double.open["c1"], received=11)
    second = look(2.0)
    assert second["history"] == [[1e9 + 3.0, 100.0, 0.0, 2, 2.0]]
    row = second["tunnels"]["rows"][0]
    assert (row["name"], row["received_rate"], row["sent_rate"]) == ("a", 100.0, 0.0)
    rates = {row["id"]: row["received_rate"] for row in second["connections"]["rows"]}
    assert rates == {"c1": 5.0, "c2": 0.0}


def test_a_clock_that_is_set_back_is_no_error(look):
    look()
    assert look(-100.0)["history"] == []
    assert len(look()["history"]) == 1


def test_the_graphs_are_bounded_and_last_until_the_next_page(look):
    for _ in range(int(SPAN) + 20):
        shown = look()
    assert len(shown["history"]) == SPAN + 1
    look.overview.rest()
    again = look(30.0)
    assert len(again["history"]) == SPAN + 1 - 30
    assert again["tunnels"]["rows"][0]["received_rate"] is None, "an hour without a page would be no rate of now"


def targets(*states):
    problems = {"down": "refused", "probing": "refused"}
    return tuple(
        TargetState(f"t{number}:1", state, 1.0, number, None, 0, problems.get(state, ""))
        for number, state in enumerate(states)
    )


@pytest.mark.parametrize(
    ("change", "is_ready", "problems"),
    [
        ({}, True, 0),
        ({"b": {"state": "failed", "problem": "why"}}, True, 1),
        ({"a": {"state": "paused"}}, False, 1),
        ({"a": {"probe": dataclasses.replace(PROBED, finished=1e9, problem="refused")}}, False, 1),
        ({"a": {"hops": "backing off", "problem": "ssh://a: refused"}, "b": {"hops": "connecting"}}, True, 2),
        ({"a": {"hops": "published"}}, True, 0),
        ({"a": {"targets": targets("up", "up", "disabled")}}, True, 0),
        ({"a": {"targets": targets("up", "down")}, "b": {"targets": targets("probing", "up")}}, True, 2),
        ({"a": {"targets": targets("down", "disabled")}}, False, 1),
    ],
)
def test_it_is_ready_as_readyz_is(look, double, change, is_ready, problems):
    for name, fields in change.items():
        double.change(name, **fields)
    shown = look()
    assert (shown["instance"]["ready"], shown["totals"]["problems"]) == (is_ready, problems)
    assert sum(bool(row["problem"]) for row in shown["tunnels"]["rows"]) == problems


def test_a_row_has_the_state_of_each_of_several_targets(look, double):
    double.change("a", targets=targets("up", "down", "disabled"))
    a, b = look()["tunnels"]["rows"]
    assert [(one["target"], one["state"], one["active"], one["problem"]) for one in a["targets"]] == [
        ("t1:1", "down", 1, "refused"), ("t2:1", "disabled", 2, ""), ("t0:1", "up", 0, ""),
    ]  # fmt: skip
    assert (a["problem"], a["more_targets"], b["targets"], b["problem"]) == ("not reached: t1:1", 0, [], "")
    double.change("a", targets=targets(*["up"] * 40, "down"))
    (row,) = look(view=View(filter="t40 down"))["tunnels"]["rows"]
    assert (row["targets"][0]["target"], len(row["targets"]), row["more_targets"]) == ("t40:1", 10, 31)


def test_while_it_ends_it_is_not_ready(look, double):
    double.stop()
    shown = look()["instance"]
    assert (shown["ready"], shown["draining"]) == (False, True)


def test_the_log_is_newest_first(look, double):
    double.lines = [double.lines[0]._replace(message=str(number)) for number in range(ROWS + 10)]
    shown = look()["log"]
    assert [line["message"] for line in shown] == [str(number) for number in range(ROWS + 9, 9, -1)]


def ended(double, name, numbers, tunnel="a"):
    return [
        dataclasses.replace(double.connection(f"{name}{n}", tunnel), state="closed", reason="done", started=1e9 + n)
        for n in numbers
    ]


def test_ended_connections_of_all_tunnels_are_newest_first_and_bounded(look, double):
    double.ended = ended(double, "a", range(0, 200, 2)) + ended(double, "b", range(1, 200, 2), "b")
    figures(double, accepted=100, active=0)
    double.change("b", figures=Stats(100, 0, 0, 0, {}))
    shown = look()["ended"]
    assert (shown["total"], shown["matching"]) == (ENDED, ENDED)
    assert [row["ended"] for row in shown["rows"]] == [1e9 + n + 1.5 for n in range(199, 199 - ROWS, -1)]
    assert {row["tunnel"] for row in shown["rows"]} == {"a", "b"}


def test_they_are_read_only_where_one_has_ended_and_of_some_tunnels_at_once(look, double):
    asked = []
    recent = double.recent

    def counting(tunnel):
        asked.append(tunnel)
        if tunnel == "t1":
            raise NotFoundError("t1: it is gone")
        return recent(tunnel)

    double.recent = counting
    base = double.all["a"]
    count = TUNNELS_AT_ONCE + 10
    double.all = {
        name: dataclasses.replace(base, name=name) for name in (f"t{number}" for number in range(count))
    }  # fmt: skip
    look()
    assert len(asked) == TUNNELS_AT_ONCE
    look()
    assert sorted(asked) == sorted(double.all)
    look()
    assert len(asked) == count
    figures(double, "t7", accepted=4)
    look()
    assert asked[count:] == ["t7"]


def test_a_tunnel_that_comes_back_after_a_reload_is_another_one(look, double):
    """Its counters begin anew, and may be as they were."""
    first = double.all["a"]
    double.ended = ended(double, "old", [1])
    assert look()["ended"]["total"] == 1
    del double.all["a"]
    look()
    double.all["a"] = first
    double.ended = ended(double, "new", [2])
    assert look()["ended"]["total"] == 2


def test_each_view_has_its_own_part_of_one_sample(look, double):
    views = [View(), View(filter="c-nothing"), View(connections="-peer")]
    look()
    shown = {view: json.loads(data) for view, data in look.overview.render(views).items()}
    assert [shown[view]["connections"]["matching"] for view in views] == [2, 0, 2]
    assert len({shown[view]["time"] for view in views}) == 1
