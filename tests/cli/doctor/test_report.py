"""The report: its counts, its JSON, its text, and texts of peers in it."""

import json
import re
from pathlib import Path

import pytest

from relay.cli.doctor.report import LONGEST, Check, Report, Section, Status, print_section, print_summary

PAGE = Path(__file__).parents[3] / "docs" / "doctor.md"


def report():
    checks = [
        Check("resolve", "db:5432", Status.OK, "10.0.0.7", seconds=0.00312345678, facts={"ipv4": ["10.0.0.7"]}),
        Check("connect", "db:5432", Status.FAILED, "connection refused", "check that the service is running"),
    ]
    other = Section("machine", "this machine", [Check("clock", "", Status.WARNING, "late"), *checks[:1]])
    return Report([Section("db", "5432 → db:5432", checks), other])


def test_counts():
    made = report()
    assert (made.failed, made.warnings) == (1, 1)
    assert [part.failed for part in made.sections] == [1, 0]


def test_json_has_the_documented_fields():
    made = json.loads(json.dumps(report().as_json()))
    assert (made["format"], made["ok"], made["failed"], made["warnings"]) == (1, False, 1, 1)
    assert [part["ok"] for part in made["sections"]] == [False, True]
    first = made["sections"][0]["checks"][0]
    assert (first["status"], first["seconds"], first["facts"]) == ("ok", 0.003123, {"ipv4": ["10.0.0.7"]})
    documented = set(re.findall(r"`\.?(?:\w+\[\]\.)?(\w+)`", PAGE.read_text().partition("## JSON")[2]))
    assert {*made, *made["sections"][0], *first} <= documented


def test_texts_of_peers_are_one_short_printable_line():
    made = Check("ssh version", "a\nb", Status.OK, "SSH-2.0-\x1b[31mred\r\n" + "x" * 2000, "\u202eesrever")
    assert made.subject == "a b"
    assert made.text.startswith(r"SSH-2.0-\x1b[31mred x")
    assert len(made.text) < LONGEST + 10
    assert made.advice == r"\u202eesrever"


CHECKS = [
    Check("resolve", "db:1", Status.OK, "10.0.0.7", seconds=0.0123),
    Check("connect", "db:1", Status.FAILED, "refused", "start it", seconds=1.26),
    Check("clock", "here", Status.WARNING, "late", "set it"),
    Check("listen", ":80", Status.SKIPPED, "not tested"),
]


def section(*statuses):
    return Section("db", "db: 80 → db:1", [check for check in CHECKS if not statuses or check.status in statuses])


@pytest.fixture
def printed(capsys):
    return lambda: capsys.readouterr().out.splitlines()


def test_a_section_has_a_line_for_each_check_and_its_advice_below(printed):
    print_section(section())
    title, *lines = printed()
    assert title == "db: 80 → db:1"
    assert [line.split() for line in lines] == [
        ["✓", "resolve", "12.3", "ms", "db:1:", "10.0.0.7"],
        ["✗", "connect", "1.3", "s", "db:1:", "refused"],
        ["→", "start", "it"],
        ["!", "clock", "here:", "late"],
        ["→", "set", "it"],
        ["–", "listen", ":80:", "not", "tested"],
    ]
    assert lines[0].index("db:1") == lines[1].index("db:1") == lines[2].index("→")


def test_a_brief_one_counts_what_is_well(printed):
    print_section(section(), brief=True)
    lines = printed()
    assert [line.split()[0] for line in lines[1:]] == ["✗", "→", "!", "→", "✓"]
    assert lines[-1].endswith("2 checks; relay doctor shows them")


@pytest.mark.parametrize(
    ("statuses", "line"),
    [
        ([Status.OK], "all is well"),
        ([Status.OK, Status.WARNING], "nothing failed, 1 warning"),
        ([Status.FAILED], "1 check failed"),
        ([Status.FAILED, Status.WARNING], "1 check failed, 1 warning"),
    ],
)
def test_the_summary(printed, statuses, line):
    print_summary(Report([section(*statuses)]))
    assert printed() == [line]


@pytest.mark.parametrize(
    ("variables", "is_colored"), [({"TERM": "xterm"}, True), ({"TERM": "dumb"}, False), ({"NO_COLOR": ""}, False)]
)
def test_colors_are_for_terminals_that_show_them(printed, monkeypatch, variables, is_colored):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    print_summary(Report([section(Status.FAILED)]))
    assert (printed() == ["\x1b[31m1 check failed\x1b[0m"]) is is_colored
