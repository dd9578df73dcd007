"""Files that are named by another user."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from relay.access.regular_file import distrust, distrust_directory, open_own, open_regular

OTHER = 4242  # the ID of a user who is neither root nor the one who runs the tests


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


@pytest.fixture
def of_another(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], Path]:
    """``of_another(path)``: give a file, or a link, to another user; where only root may, this user becomes one."""

    def give(path: Path) -> Path:
        if os.geteuid() == 0:
            os.chown(path, OTHER, -1, follow_symlinks=False)
        else:
            monkeypatch.setattr(os, "geteuid", lambda: OTHER)
        return path

    return give


def opened_own(path: Path | str, **options: bool) -> None:
    """Open a file to write, and write a line."""
    descriptor = open_own(str(path), os.O_WRONLY | os.O_APPEND, **options)
    os.write(descriptor, b"a line\n")
    os.close(descriptor)


def test_a_file_to_write_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    for _ in range(2):
        opened_own(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "a line\n" * 2
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o600


@pytest.mark.parametrize("target", ["there", "folder/../there", "not-yet", "{}/there", "second"])
def test_the_links_of_its_user_are_followed(tmp_path: Path, target: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "there").touch()
    (tmp_path / "second").symlink_to("folder/third")
    (tmp_path / "folder" / "third").symlink_to("../there")
    (tmp_path / "link").symlink_to(target.format(tmp_path))
    opened_own(tmp_path / "link")
    assert (tmp_path / "link").read_text() == "a line\n"


def test_links_that_lead_nowhere_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("link")
    with pytest.raises(OSError, match="symbolic links"):
        open_own(str(tmp_path / "link"), os.O_WRONLY)


@pytest.mark.parametrize("target", ["there", "not-yet", "/dev/stdout"])
def test_a_link_of_another_user_is_not_followed(
    tmp_path: Path, of_another: Callable[[Path], Path], target: str
) -> None:
    (tmp_path / "there").touch()
    (tmp_path / "first").symlink_to("second")
    (tmp_path / "second").symlink_to(target)
    of_another(tmp_path / "second")
    for name in ("first", "second"):
        for options in ({}, {"of_any_user": True}):
            with pytest.raises(PermissionError, match="a link of another user .* lies there"):
                open_own(str(tmp_path / name), os.O_WRONLY, **options)
    assert not (tmp_path / "not-yet").exists()
    assert (tmp_path / "there").read_text() == ""


@pytest.mark.parametrize("make", [Path.touch, os.mkfifo])
def test_a_file_of_another_user_is_not_written(
    tmp_path: Path, of_another: Callable[[Path], Path], make: Callable[[Path], None]
) -> None:
    make(tmp_path / "file")
    reader = os.open(tmp_path / "file", os.O_RDONLY | os.O_NONBLOCK)
    of_another(tmp_path / "file")
    with pytest.raises(PermissionError, match="it belongs to another user"):
        open_own(str(tmp_path / "file"), os.O_WRONLY)
    opened_own(tmp_path / "file", of_any_user=True)
    os.close(reader)


def test_devices_and_descriptors_are_written(tmp_path: Path, of_another: Callable[[Path], Path]) -> None:
    """A program that was given a file of any user, or a pipe, may name it."""
    opened_own("/dev/null")
    reader, writer = os.pipe()
    opened_own(f"/proc/self/fd/{writer}")
    opened_own(f"/dev/fd/{writer}")
    assert os.read(reader, 100) == b"a line\n" * 2
    os.close(reader)
    os.close(writer)
    (tmp_path / "file").touch(0o666)
    with open(tmp_path / "file", "ab") as file:
        if os.geteuid() == 0:  # else it could not be opened again
            of_another(tmp_path / "file")
        opened_own(f"/proc/self/fd/{file.fileno()}")
    assert (tmp_path / "file").read_text() == "a line\n"


@pytest.mark.parametrize(
    ("mode", "owner", "problem"),
    [
        (0o755, 1000, ""),
        (0o755, 0, ""),
        (0o1777, 0, ""),
        (0o775, 0, "others can write to DIR (mode 0775); chmod go-w it, or choose another path"),
        (0o757, 1000, "others can write to DIR (mode 0757); chmod go-w it, or choose another path"),
        (0o755, 1001, "DIR belongs to another user (1001); choose a directory of yours or root's"),
        (0o1777, 1001, "DIR belongs to another user (1001); choose a directory of yours or root's"),
    ],
)
def test_a_directory_is_trusted_in_which_no_other_user_can_replace_a_file(
    monkeypatch: pytest.MonkeyPatch, mode: int, owner: int, problem: str
) -> None:
    status = os.stat_result((0o040000 | mode, 0, 0, 1, owner, 0, 0, 0, 0, 0))
    monkeypatch.setattr(os, "stat", lambda path: status)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert distrust_directory("DIR") == problem


def test_a_directory_that_is_not_there_is_trusted(tmp_path: Path) -> None:
    assert distrust_directory(f"{tmp_path}/none") == ""
