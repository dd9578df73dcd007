"""Files that are named by another user."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from relay.access.regular_file import distrust, open_regular


def test_a_regular_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")
    with open_regular(str(tmp_path / "link")) as file:
        assert file.read() == b"content"


@pytest.mark.parametrize(
    ("name", "problem"),
    [("fifo", "not a regular file"), (".", "not a regular file"), ("none", "No such file"), ("nul\0", "not a path")],
)
def test_anything_else_is_refused_at_once(tmp_path: Path, name: str, problem: str) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match=problem) as raised:
        open_regular(f"{tmp_path}/{name}")
    assert raised.value.strerror is not None


def test_a_device_is_refused() -> None:
    with pytest.raises(OSError, match="not a regular file"):
        open_regular("/dev/zero")


@pytest.mark.parametrize(
    ("mode", "owner", "problem"),
    [
        (0o644, 1000, ""),
        (0o444, 0, ""),
        (0o664, 1000, "others can write to it (mode 0664), and it decides; chmod go-w it"),
        (0o602, 0, "others can write to it (mode 0602), and it decides; chmod go-w it"),
        (0o600, 1001, "it is neither yours nor the administrator's, and it decides; make a copy of your own"),
    ],
)
def test_a_file_is_trusted_that_only_its_owner_or_root_can_write(mode: int, owner: int, problem: str) -> None:
    status = os.stat_result((0o100000 | mode, 0, 0, 1, owner, 0, 0, 0, 0, 0))
    assert distrust(status, 1000, "decides") == problem
