"""``relay.access.rule_file``: lines of a file; ``tests/transports/i2p/test_access.py`` has its changes."""

from __future__ import annotations

import os

import pytest

from relay.access import rule_file
from relay.access.rule_file import RuleFile, read_rules


def texts(*lines):
    return [(number, rule.text) for number, rule in read_rules("list", [line.encode() for line in lines])]


def test_a_hash_begins_a_comment_unless_it_is_in_a_value():
    assert texts(
        "# all", "", "10.0.0.0/8 # ours", "login:a#b", "login:c # d#e", "\tuser:f\t#", "10.0.0.1#", "#cn:g"
    ) == [
        (3, "cidr:10.0.0.0/8"),
        (4, "login:a#b"),
        (5, "login:c"),
        (6, "user:f"),
        (7, "cidr:10.0.0.1/32"),
    ]


def test_a_file_names_no_further_file():
    with pytest.raises(ValueError, match="list, line 1: file: is no kind of rule"):
        texts("file:other")


def test_an_error_names_the_line():
    with pytest.raises(ValueError, match="list, line 2: cidr:10.0.0.1/8: it has host bits set; write 10.0.0.0/8"):
        texts("10.0.0.0/8", "10.0.0.1/8")


def test_a_file_is_read_again_only_when_it_has_changed(tmp_path, caplog, monkeypatch):
    path = tmp_path / "list"
    path.write_text("10.0.0.0/8")
    file = RuleFile(str(path))
    readings = []
    monkeypatch.setattr(rule_file, "read_rules", lambda *given: (readings.append(path), read_rules(*given))[1])
    before = file.rules
    file.refresh()
    path.unlink()
    file.refresh()
    file.refresh()  # the same problem, which has been logged
    assert not readings
    path.write_text("nonsense\n")
    file.refresh()
    file.refresh()
    assert len(readings) == 1
    assert file.rules is before
    path.write_text("10.0.0.0/16\n# longer")
    os.utime(path, (1, 1))
    file.refresh()
    file.refresh()
    assert len(readings) == 2
    assert file.rules is not before
    assert len(caplog.records) == 2


def test_a_file_is_read_again_by_those_who_ask_before_its_new_rules_are_in_force(tmp_path, monkeypatch):
    path = tmp_path / "list"
    path.write_text("10.0.0.0/8")
    file = RuleFile(str(path))
    before = file.rules
    path.write_text("10.0.0.0/16\n# longer")
    seen = []

    def read(*arguments):
        seen.append(file.rules)
        if len(seen) == 1:
            file.refresh()  # as another tunnel with the same list does meanwhile
            assert file.rules is not before
        return read_rules(*arguments)

    monkeypatch.setattr(rule_file, "read_rules", read)
    file.refresh()
    assert seen == [before] * 2
