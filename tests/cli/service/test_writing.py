"""The file of the unit, which relay overwrites only if it has written it."""

import os
import stat

import pytest

from relay.cli.service import writing


def test_it_is_written_whole_and_readable_for_all(tmp_path):
    path = str(tmp_path / "systemd" / "user" / "relay.service")
    writing.write(path, writing.marked("one\n", is_users=False), force=False)
    writing.write(path, writing.marked("two\n", is_users=True), force=False)
    with open(path) as file:
        assert file.read().splitlines()[1:] == ["two"]
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o644
    assert os.listdir(os.path.dirname(path)) == ["relay.service"]


@pytest.mark.parametrize("kind", ["foreign", "empty", "changed", "link"])
def test_a_unit_that_relay_has_not_written_stays(tmp_path, kind):
    path, ours = tmp_path / "relay.service", writing.marked("text\n", is_users=False)
    if kind == "link":
        (tmp_path / "real").write_text(ours)
        path.symlink_to("real")
    else:
        path.write_text({"foreign": "[Unit]\n", "empty": "", "changed": ours + "more\n"}[kind])
    before = path.read_text()
    with pytest.raises(ValueError, match="relay has not written this unit, or it was changed; --force overwrites it"):
        writing.write(str(path), ours, force=False)
    assert path.read_text() == before
    writing.write(str(path), ours, force=True)
    assert path.read_text() == ours and not path.is_symlink()


def test_a_failure_leaves_no_file_behind(tmp_path):
    (tmp_path / "relay.service").mkdir()
    with pytest.raises(OSError, match="Is a directory"):
        writing.write(str(tmp_path / "relay.service"), "text", force=True)
    assert os.listdir(tmp_path) == ["relay.service"]


def test_each_manager_has_its_path(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    assert writing.path_of(is_users=False) == "/etc/systemd/system/relay.service"
    assert writing.path_of(is_users=True) == "/home/me/.config/systemd/user/relay.service"
    monkeypatch.setenv("XDG_CONFIG_HOME", "/c")
    assert writing.path_of(is_users=True) == "/c/systemd/user/relay.service"
