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


def test_a_file_is_current_until_it_changes(tmp_path, caplog):
    path = tmp_path / "list"
    path.write_text("10.0.0.0/8")
    file = RuleFile(str(path))
    assert file.is_current()
    path.unlink()
    assert not file.is_current()
    file.refresh()
    assert file.is_current()  # as long as the same problem lasts, which has been logged
    path.write_text("nonsense\n")
    assert not file.is_current()
    file.refresh()
    assert file.is_current()
    path.write_text("10.0.0.0/16\n# longer")
    os.utime(path, (1, 1))
    before = file.rules
    assert not file.is_current()
    assert file.rules is before
    file.refresh()
    assert file.is_current()
    assert file.rules is not before
    assert len(caplog.records) == 2


def test_a_file_is_not_current_before_its_new_rules_are_in_force(tmp_path, monkeypatch):
    path = tmp_path / "list"
    path.write_text("10.0.0.0/8")
    file = RuleFile(str(path))
    path.write_text("10.0.0.0/16\n# longer")
    current = []

    def read(*arguments):
        current.append(file.is_current())  # as a client finds it that comes now
        return read_rules(*arguments)

    monkeypatch.setattr(rule_file, "read_rules", read)
    file.refresh()
    assert current == [False]
    assert file.is_current()
