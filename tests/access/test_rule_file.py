"""``relay.access.rule_file``: lines of a file, and when it is read again."""

import logging
import os

import pytest

from relay.access import rule_file
from relay.access.rule_file import RuleFile, read_rules


def texts(*lines):
    return [(number, rule.text) for number, rule in read_rules("list", [line.encode() for line in lines])]


def test_a_hash_begins_a_comment_unless_it_is_in_a_value():
    assert texts(
        "# all", "", "10.0.0.0/8 # ours", "login:a#b", "login:c # d#e", "\tuser:f\t#", "10.0.0.1#", "#cn:g"
    ) == [(3, "cidr:10.0.0.0/8"), (4, "login:a#b"), (5, "login:c"), (6, "user:f"), (7, "cidr:10.0.0.1/32")]


def test_a_file_names_no_further_file():
    with pytest.raises(ValueError, match="list, line 1: file: is no kind of rule"):
        texts("file:other")


def test_a_byte_order_mark_is_skipped_at_the_beginning_alone():
    assert texts("\ufeff# ours", "10.0.0.0/8") == [(2, "cidr:10.0.0.0/8")]
    assert texts("\ufeff10.0.0.0/8") == [(1, "cidr:10.0.0.0/8")]
    with pytest.raises(ValueError, match="list, line 2: that is no rule"):
        texts("10.0.0.0/8", "\ufeff10.0.0.0/8")


def test_an_error_names_the_line():
    with pytest.raises(ValueError, match="list, line 2: cidr:10.0.0.1/8: it has host bits set; write 10.0.0.0/8"):
        texts("10.0.0.0/8", "10.0.0.1/8")


def test_a_file_is_read_again_only_when_it_has_changed(tmp_path, caplog, monkeypatch):
    caplog.set_level(logging.INFO, "relay")
    path = tmp_path / "list"
    path.write_text("10.0.0.0/8")
    file = RuleFile(str(path))
    readings = []
    monkeypatch.setattr(rule_file, "read_rules", lambda *given: (readings.append(path), read_rules(*given))[1])
    before = file.rules
    file.refresh("web")
    path.unlink()
    file.refresh("web")
    file.refresh("web")  # the same problem, which has been logged
    assert not readings
    path.write_text("nonsense\n")
    file.refresh("web")
    file.refresh("web")
    assert len(readings) == 1
    assert file.rules is before
    path.write_text("10.0.0.0/16 # ours\nlogin:a\n")
    os.utime(path, (1, 1))
    file.refresh("web")
    file.refresh("web")
    assert len(readings) == 2
    assert file.rules is not before
    path.write_text("cn:a")
    file.refresh("web")
    assert caplog.messages[2:] == [f"web: {path}: read again, {count}" for count in ("2 rules", "1 rule")]


@pytest.mark.parametrize("change", ["time", "size", "file"])
def test_any_difference_is_a_change(tmp_path, change):
    path, new = tmp_path / "list", tmp_path / "new"
    path.write_text("user:a\n")
    os.utime(path, ns=(5, 5))
    file = RuleFile(str(path))
    new.write_text("user:b\n" + "\n" * (change == "size"))
    if change == "file":
        os.replace(new, path)
    else:
        path.write_text(new.read_text())
    os.utime(path, ns=(5, 5) if change != "time" else (5, 6))
    before = file.rules
    file.refresh("web")
    assert file.rules is not before


@pytest.mark.parametrize("is_folder", [False, True])
def test_a_file_that_cannot_be_read_counts_as_it_was_and_that_is_said_once_each_time(tmp_path, caplog, is_folder):
    path, away = tmp_path / "list", tmp_path / "away"
    path.write_text("user:a\n")
    file = RuleFile(str(path))
    before = file.rules
    for _ in range(2):
        caplog.clear()
        path.rename(away)
        if is_folder:
            path.mkdir()
        file.refresh("web")
        file.refresh("web")
        problem = "not a regular file" if is_folder else "No such file or directory"
        assert caplog.messages == [f"web: {path}: {problem}; the previous list stays in force"]
        if is_folder:
            path.rmdir()
        away.rename(path)
        file.refresh("web")
    assert file.rules is before


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
            file.refresh("web")  # as another tunnel with the same list does meanwhile
            assert file.rules is not before
        return read_rules(*arguments)

    monkeypatch.setattr(rule_file, "read_rules", read)
    file.refresh("web")
    assert seen == [before] * 2


@pytest.mark.parametrize("mode", [0o666, 0o620])
def test_a_file_that_others_can_write_is_refused(tmp_path, mode):
    path = tmp_path / "list"
    path.write_text("10.0.0.0/8")
    path.chmod(mode)
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        RuleFile(str(path))
    problem = f"others can write to it (mode {mode:04o}), and it decides who may connect; chmod go-w it"
    assert str(raised.value) == f"{path}: {problem}"


def test_one_that_others_can_write_from_now_on_counts_as_it_was(tmp_path, caplog):
    path = tmp_path / "list"
    path.write_text("10.0.0.0/8")
    file = RuleFile(str(path))
    before = file.rules
    path.chmod(0o666)
    file.refresh("web")
    path.write_text("10.0.0.0/16\n# longer")
    file.refresh("web")
    assert file.rules is before
    (message,) = caplog.messages
    assert message.startswith(f"web: {path}: others can write to it (mode 0666)")
    assert message.endswith("; the previous list stays in force")
    path.chmod(0o644)
    file.refresh("web")
    assert file.rules is not before
