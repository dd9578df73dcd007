"""The report: its counts, its JSON, and texts of peers in it."""

from __future__ import annotations

import json
import re
from pathlib import Path

from relay.cli.doctor.report import LONGEST, Check, Report, Section, Status

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
