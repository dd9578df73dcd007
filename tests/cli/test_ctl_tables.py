"""``relay.cli.ctl_tables``: the lines and tables of ``relay ctl``, from values."""

import time

import pytest

from relay.cli import ctl_tables
from relay.cli.ctl_tables import (
    print_bans,
    print_carriers,
    print_connections,
    print_quotas,
    print_tunnels,
    status_lines,
    verdict_lines,
)

INSTANCE = {
    "version": "1",
    "pid": 7,
    "config": "/etc/relay.toml",
    "draining": False,
    "started": 0.0,
    "log_level": "info",
}
FIGURES = {"active": 1, "accepted": 12, "received": 1500, "sent": 0, "failed": {"refused": 2, "idle": 1}}
TUNNEL = {
    "name": "db", "state": "listening", "hops": "up", "listen": ":1", "target": "t:2", "via": [], "problem": "",
    "probe": None, "figures": FIGURES,
}  # fmt: skip
CONNECTION = {
    "id": "c1", "tunnel": "db", "peer": "10.0.0.1:2", "target": "t:2", "state": "open", "reason": None, "age": 3.0,
    "received": 1500, "sent": 0,
}  # fmt: skip
CARRIER = {
    "name": "ssh://me@x", "kind": "ssh", "state": "up", "since": 0.0, "streams": 2, "losses": 1, "rtt": 0.0123,
    "error": "",
}  # fmt: skip


@pytest.fixture
def printed(capsys):
    """Return the lines that were printed, each as its words."""
    return lambda: [line.split() for line in capsys.readouterr().out.splitlines()]


def test_the_lines_of_a_process(monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 65.0)
    waiting = {**TUNNEL, "name": "web", "state": "waiting", "problem": "no route\x1b[2J"}
    first, second, third, problem = status_lines(INSTANCE, [TUNNEL, waiting])
    assert first == "relay 1, process 7, /etc/relay.toml"
    assert second.endswith(", log level info")
    assert third == "1 of 2 tunnels listen"
    assert problem.startswith("web: no route")
    assert "\x1b" not in problem


def test_the_level_of_the_log_tells_what_there_is_besides():
    _, second, *_ = status_lines({**INSTANCE, "log_level": "warning"}, [])
    assert second.endswith(", log level warning, and info of the start, reloads and the end")


def test_streams_that_lost_their_connection_are_counted():
    figures = {"attempts": 5, "resumes": 4, "losses": 1, "refused": 0, "held": 70_000}
    *_, line = status_lines({**INSTANCE, "resumes": figures}, [])
    assert line == "streams that lost their connection: 4 resumed, 1 lost, 70.0 kB held"
    assert len([*status_lines({**INSTANCE, "resumes": dict.fromkeys(figures, 0)}, [])]) == 3


def test_a_process_that_drains_without_a_file():
    assert next(status_lines({**INSTANCE, "config": "", "draining": True}, [])) == (
        "relay 1, process 7, a command line, draining"
    )


@pytest.mark.parametrize(
    ("fields", "state"),
    [({"hops": "backing off"}, "backing off"), ({"state": "paused", "hops": "backing off"}, "paused")],
)
def test_the_state_of_a_tunnel_whose_carrier_is_not_up(printed, fields, state):
    print_tunnels([{**TUNNEL, **fields, "figures": None}])
    assert printed()[1] == f"db {state} :1 → t:2".split()


def test_the_problems_are_below_the_table(printed):
    print_tunnels([{**TUNNEL, "problem": "one", "probe": {"problem": "two"}}])
    assert printed()[2:] == [["db:", "one"], ["db:", "two"]]


@pytest.mark.parametrize(
    ("ended", "fields", "title", "cell"),
    [(False, {}, "state", "open"), (True, {"state": "closed", "reason": "idle"}, "reason", "idle")],
)
def test_a_connection_is_a_row(printed, ended, fields, title, cell):
    print_connections([{**CONNECTION, **fields}], ended=ended)
    head, row = printed()
    assert head == ["id", "tunnel", "client", "target", title, "age", "received", "sent"]
    assert row == ["c1", "db", "10.0.0.1:2", "t:2", cell, "3.0", "s", "1.5", "kB", "0", "B"]


def test_a_client_without_an_address_and_a_target_that_is_not_known(printed):
    print_connections([{**CONNECTION, "peer": "", "target": None}])
    assert printed()[1][:6] == ["c1", "db", "a", "local", "client", "open"]


def test_a_carrier_is_a_row_and_its_error_a_line(printed, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 3.0)
    print_carriers([CARRIER, {**CARRIER, "state": "backing off", "rtt": None, "error": "no route"}])
    head, up, down, error = printed()
    assert head == ["carrier", "kind", "state", "age", "streams", "losses", "rtt"]
    assert up == ["ssh://me@x", "ssh", "up", "3.0", "s", "2", "1", "12.3", "ms"]
    assert down == ["ssh://me@x", "ssh", "backing", "off", "3.0", "s", "2", "1"]
    assert error == ["ssh://me@x:", "no", "route"]


def test_the_router_of_a_session_is_named_if_there_are_several(printed):
    print_carriers([{**CARRIER, "router": "b:7656", "worker": 2}, CARRIER])
    head, first, other = printed()
    assert head[6:] == ["rtt", "router", "worker"]
    assert first[-2:] == ["b:7656", "2"]
    assert other[-1] == "ms"


def test_the_worker_of_a_carrier_is_named(printed, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 3.0)
    print_carriers([{**CARRIER, "worker": None}, {**CARRIER, "worker": 2}])
    head, own, of_worker = printed()
    assert head[-2:] == ["rtt", "worker"]
    assert own[-1] == "ms"
    assert of_worker[-2:] == ["ms", "2"]


def test_which_of_several_carriers_it_is(printed):
    print_carriers([{**CARRIER, "number": 1, "error": "no route"}, {**CARRIER, "number": None}])
    _, numbered, single, error = printed()
    assert numbered[:2] == ["ssh://me@x", "(1)"] and single[:2] == ["ssh://me@x", "ssh"]
    assert error == ["ssh://me@x", "(1):", "no", "route"]


def test_what_a_reload_changes():
    verdicts = [
        {"name": "a", "verdict": "same", "detail": ""},
        {"name": "b", "verdict": "tuned", "detail": "nconnect"},
        {"name": "c", "verdict": "gone", "detail": ""},
    ]
    keys = [
        {"key": "status", "remedy": "", "effect": "moved"},
        {"key": "sandbox", "remedy": "restart relay", "effect": ""},
    ]
    assert [*verdict_lines(verdicts, keys)] == [
        "key status: moved",
        "key sandbox: restart relay",
        "b: tuned (nconnect)",
        "c: gone",
    ]
    assert [*verdict_lines(verdicts[:1])] == ["nothing has changed"]


def test_a_narrow_terminal_has_the_route_below_its_row(monkeypatch, capsys):
    from rich.console import Console

    monkeypatch.setattr(ctl_tables, "_console", lambda: Console(force_terminal=True, width=60, highlight=False))
    print_tunnels([{**TUNNEL, "target": "a.host.with.a.long.name.example:5432"}])
    head, row, below = capsys.readouterr().out.splitlines()
    assert "from → to" not in head
    assert "example" not in row
    assert below.strip() == ":1 → a.host.with.a.long.name.example:5432"


def test_a_client_has_its_identity_and_its_rule(capsys):
    shown = {"identity": {"kind": "tls", "name": "alice"}, "reason": "denied", "rule": "deny cn:alice"}
    local = {"peer": "", "identity": {"kind": "unix", "name": "www-data"}}
    print_connections([{**CONNECTION, **shown}, {**CONNECTION, **local}], ended=True)
    text = capsys.readouterr().out
    assert "10.0.0.1:2 (tls:alice)" in text and "denied (deny cn:alice)" in text and " unix:www-data " in text


def test_bans_and_quotas(capsys):
    ban = {"key": "192.0.2.0/24", "tunnel": "web", "limit": "few", "until": time.time() + 630}
    print_bans([ban, {**ban, "key": "a\nb", "until": 0.0}])
    text = capsys.readouterr().out
    assert "192.0.2.0/24  web     few     " in text and "10 min" in text and "a\\nb" in text
    print_quotas([{"key": "*", "tunnel": "web", "limit": "much", "used": 8_000_000, "quota": 10_000_000, "since": 0.0}])
    assert capsys.readouterr().out.split()[-7:] == ["web", "much", "8.0", "MB", "10.0", "MB", "80", "%"][-7:]
