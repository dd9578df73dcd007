"""``relay ctl``, in this process, against the app of a double: what it prints, and its exit statuses."""

import dataclasses
import json
import tempfile
from pathlib import Path

import pytest
from click.shell_completion import ShellComplete
from instance_double import Double, served

from relay.cli import app as cli
from relay.daemon import runtime
from relay.daemon.change.upgrade_channel import UpgradeError
from relay.daemon.failures import ConflictError, ReloadError
from relay.engine.records import Stats, WarmFigures
from relay.targets.group import TargetState


@pytest.fixture
def folder(monkeypatch):
    with tempfile.TemporaryDirectory(prefix="ctl-") as path:
        monkeypatch.setattr(runtime, "runtime_directories", lambda: [path])
        yield Path(path)


@pytest.fixture
def running(double, folder):
    with served(double, folder) as app:
        yield app


@pytest.fixture
def ctl(monkeypatch, capsys):
    """Runs ``relay ctl WORDS…``; returns its status, its output and its errors."""

    def run(*words):
        monkeypatch.setattr("sys.argv", ["relay", "ctl", *words])
        status = cli.run()
        return status, *capsys.readouterr()

    return run


def test_status_says_what_runs(ctl, running, double):
    double.change("b", problem="no route\x1b[31m")
    status, out, err = ctl("status")
    assert (status, err) == (0, "")
    assert "relay 1, process 4711, /etc/relay.toml\n" in out
    assert "2 of 2 tunnels listen\n" in out
    assert "b: no route\\x1b[31m\n" in out
    double.change("b", state="paused")
    facts = json.loads(ctl("status", "--json")[1])
    assert (facts["pid"], facts["tunnels"]) == (4711, {"total": 2, "listening": 1})


def test_list_and_connections_show_warm_streams(ctl, running, double):
    assert "warm" not in ctl("list")[1]
    assert "warm" not in ctl("connections")[1]
    double.change("b", figures=Stats(9, 0, 0, 0, {}, warm_hits=5, warm_misses=3), warm=WarmFigures(1, 5, 3, 2, 4))
    double.open["c1"] = dataclasses.replace(double.open["c1"], warm=True)
    rows = [line.split() for line in ctl("list")[1].splitlines()]
    assert (rows[0][-1], rows[1][-1], rows[2][-3:]) == ("warm", "2", ["1", "ready,", "5/8"])
    assert json.loads(ctl("list", "--json")[1])["tunnels"][1]["warm"] == {
        "ready": 1, "hits": 5, "misses": 3, "ended": 2, "expired": 4,
    }  # fmt: skip
    head, first, second, line = ctl("connections")[1].splitlines()
    assert (head.split()[-1], first.split()[-1], second.split()[-1]) == ("warm", "yes", "B")
    assert line == "b: 1 warm stream ready, 5 of 8 clients got one"
    assert "warm stream" not in ctl("connections", "a")[1]
    assert "warm stream" not in ctl("connections", "--recent")[1]
    answer = json.loads(ctl("connections", "--json")[1])
    assert [each["warm"] for each in answer["connections"]] == [True, False]


def test_connections_show_how_often_a_stream_has_been_resumed(ctl, running, double):
    double.open["c1"] = dataclasses.replace(double.open["c1"], resumes=3)
    head, first, *_ = ctl("connections")[1].splitlines()
    assert (head.split()[-1], first.split()[-2:]) == ("resumed", ["3", "×"])
    assert [each["resumes"] for each in json.loads(ctl("connections", "--json")[1])["connections"]] == [3, 0]


def test_connections_are_those_of_all_tunnels_or_of_one(ctl, running, double):
    double.open["c1"] = dataclasses.replace(double.open["c1"], target="evil[bold]\n\x1b]0;x\x07")
    out = ctl("connections")[1]
    assert "c1" in out
    assert "c2" in out
    assert "evil[bold]\\n\\x1b" in out, "what a peer says is neither markup nor a command of the terminal"
    assert "c2" not in ctl("connections", "a")[1]
    recent = ctl("connections", "--recent")[1]
    assert "done" in recent
    assert "reason" in recent.splitlines()[0]
    assert json.loads(ctl("connections", "--json", "b")[1])["connections"][0]["id"] == "c2"


def test_a_terminal_that_is_too_narrow_shows_every_address_and_id_whole_below_its_row(
    ctl, running, double, monkeypatch
):
    id_ = "01a1ff23-7543-7597-8af7-03b91f42c7e6"
    double.open["c1"] = dataclasses.replace(double.open["c1"], id=id_, peer="127.0.0.1:58016", target="db:5432")
    for name, value in {"FORCE_COLOR": "1", "NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "60"}.items():
        monkeypatch.setenv(name, value)
    head, row, addresses, last, *_ = ctl("connections", "a")[1].splitlines()
    assert head.split() == ["tunnel", "state", "age", "received", "sent"]
    assert row.split()[:2] == ["a", "open"]
    assert (addresses, last) == ("  127.0.0.1:58016 → db:5432", f"  {id_}")
    rows = ctl("list")[1].splitlines()
    assert "  127.0.0.1:1 → t:2" in rows
    assert "  :3 → anywhere via ssh://me@x" in rows


def test_carriers_are_shown_with_their_errors(ctl, running):
    out = ctl("carriers")[1]
    assert "backing off" in out
    assert "ssh://me@x: no route" in out


def test_actions_print_nothing_and_act(ctl, running, double):
    for words, state in ((("pause", "a"), "paused"), (("resume", "a"), "listening"), (("drain", "a"), "draining")):
        assert ctl(*words) == (0, "", "")
        assert double.all["a"].state == state
    assert ctl("kill", "c1") == (0, "", "")
    assert "c1" not in double.open
    assert ctl("log-level", "debug") == (0, "", "")
    assert double.facts.log_level == "debug"
    assert ctl("stop") == (0, "", "")
    assert double.facts.draining


def test_actions_print_json_if_asked(ctl, running, double):
    double.change("a", targets=(TargetState("t:2", "up", 1.0, 0, None, 0, ""),))
    targets = (("disable", "a", "t:2"), ("enable", "a", "t:2"))
    states = [("pause", "a"), ("resume", "a"), ("drain", "a")]
    for words, state in zip([*targets, *states], ["listening"] * 2 + ["paused", "listening", "draining"], strict=True):
        status, out, err = ctl(words[0], "--json", *words[1:])
        assert (status, err) == (0, "")
        answer = json.loads(out)
        assert (answer["name"], answer["state"]) == ("a", state)
    assert json.loads(ctl("kill", "c1", "--json")[1]) == {"id": "c1"}
    assert "c1" not in double.open
    assert json.loads(ctl("stop", "--json")[1]) == {"pid": 4711}
    assert double.facts.draining
    status, out, err = ctl("pause", "nothing", "--json")
    assert (status, out, err.startswith("relay: ")) == (2, "", True)


def test_probes_are_silent_and_say_what_is_wrong(ctl, running, double):
    assert ctl("live") == ctl("ready") == (0, "", "")
    double.change("a", required=True, state="failed", problem="in use")
    assert ctl("ready") == (1, "", "relay: a: failed: in use\n")
    assert ctl("stop") == (0, "", "")
    assert ctl("ready")[0] == 1
    assert ctl("live") == (0, "", "")


def test_upgrade_prints_the_process_that_has_taken_over(ctl, running, double):
    assert ctl("upgrade") == (0, "process 4712 (relay 2) has replaced process 4711\n", "")
    assert json.loads(ctl("upgrade", "--json")[1]) == {"pid": 4712, "version": "2"}
    double.rejection = "two: 127.0.0.1:1: in use"
    assert ctl("upgrade") == (1, "", "relay: two: 127.0.0.1:1: in use\n")


def test_reload_prints_what_changes(ctl, running, double):
    assert ctl("reload") == (0, "a: tuned (nconnect)\n", "")
    assert json.loads(ctl("reload", "--dry-run", "--json")[1])["dry_run"] is True
    double.rejection = "relay.toml:3: nonsense"
    assert ctl("reload") == (1, "", "relay: relay.toml:3: nonsense\n")
    double.rejection = "relay.toml:3: nonsense; relay.toml:5: more of it"
    assert ctl("reload") == (1, "", "relay: relay.toml:3: nonsense\nrelay: relay.toml:5: more of it\n")


@pytest.mark.parametrize(
    ("words", "status", "line"),
    [
        (("pause", "nope"), 2, "relay: nope: there is no such tunnel\n"),
        (("connections", "nope"), 2, "relay: nope: there is no such tunnel\n"),
        (("kill", "nope"), 2, "relay: nope: there is no open connection with this id\n"),
        (("reopen",), 1, "relay: /var/log/relay: No space left on device\n"),
        (("disable", "a", "x:1"), 1, "relay: a: it has one target\n"),
    ],
)
def test_an_error_is_one_line_with_its_status(ctl, running, words, status, line):
    assert ctl(*words) == (status, "", line)


@pytest.mark.parametrize(
    "error", [ConflictError("not now"), UpgradeError("not now"), ReloadError(["not now"], 1), ReloadError(["not now"])]
)
@pytest.mark.parametrize("words", ["reload", "upgrade"])
def test_what_the_relay_does_not_do_now_has_one_status(ctl, running, double, monkeypatch, error, words):
    def refuse(**options):
        raise error

    monkeypatch.setattr(double, words, refuse)
    assert ctl(words) == (1, "", "relay: not now\n")


def test_without_a_relay_it_says_what_to_do(ctl, folder):
    status, out, err = ctl("status")
    assert (status, out) == (2, "")
    assert err == (
        "relay: no relay with a control socket is running; start relay up, or name a socket with --control\n"
    )
    status, _, err = ctl("status", "--control", str(folder / "none.sock"))
    assert (status, err) == (2, f"relay: control socket {folder}/none.sock: no relay listens there; start relay up\n")


def test_with_several_it_names_them(ctl, running, double, folder):
    (folder / "other").mkdir()
    other = Double()
    with served(other, folder / "other") as second:
        Path(second.control.path).rename(folder / "d.sock")
        status, _, err = ctl("status")
        assert status == 2
        assert f"2 relays are running; choose one: --control {folder}/c.sock (/etc/relay.toml)" in err
        assert f"--control {folder}/d.sock" in err
        assert ctl("--control", running.control.path, "status", "--control", "none")[0] == 2
        assert ctl("--control", str(folder / "d.sock"), "status")[0] == 0
        assert ctl("stop", "--control", str(folder / "d.sock"))[0] == 0
        assert other.facts.draining
        assert not double.facts.draining


def test_names_of_running_tunnels_are_completed(running):
    complete = ShellComplete(cli.app, {}, "relay", "_RELAY_COMPLETE")
    for words in (["ctl", "pause"], ["ctl", "connections"], ["ctl", "drain", "--control", running.control.path]):
        assert [item.value for item in complete.get_completions(words, "")] == ["a", "b"]
    assert [item.value for item in complete.get_completions(["ctl", "pause"], "b")] == ["b"]
    elsewhere = ["ctl", "--control", f"{running.control.path}.none", "pause"]
    assert complete.get_completions(elsewhere, "") == []


def test_without_a_relay_nothing_is_completed(folder):
    complete = ShellComplete(cli.app, {}, "relay", "_RELAY_COMPLETE")
    assert complete.get_completions(["ctl", "pause"], "") == []
