"""Private directories are removed, whatever becomes of their process; that it is killed is in ``tests/promises``."""

import contextlib
import os
import stat
import tempfile
from pathlib import Path

import psutil
import pytest

from relay.daemon.private_folder import private_folder


@pytest.fixture(autouse=True)
def place(monkeypatch):
    with tempfile.TemporaryDirectory(prefix="r-", dir="/tmp") as made:
        monkeypatch.setenv("TMPDIR", made)
        yield Path(made)


def fill(path):
    (Path(path) / "below").mkdir()
    (Path(path) / "below" / "file").touch()


def is_keeper(process):
    """Return whether a child is that of the directory; one of another test may have ended without a wait."""
    with contextlib.suppress(psutil.Error):
        return "os.walk(path" in " ".join(process.cmdline())
    return False


def test_it_is_removed_with_all_that_is_in_it(place):
    with private_folder() as path:
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o700
        fill(path)
    assert list(place.iterdir()) == []


def test_one_that_would_be_too_long_for_sockets_is_elsewhere(place, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(place / ("x" * 20)))
    with private_folder() as path:
        assert os.path.dirname(path) == "/tmp"


def test_it_is_removed_after_an_error(place):
    with pytest.raises(KeyError), private_folder() as path:
        fill(path)
        raise KeyError
    assert list(place.iterdir()) == []


def test_it_is_removed_if_its_keeper_is_killed(place):
    with private_folder() as path:
        fill(path)
        (keeper,) = filter(is_keeper, psutil.Process().children())
        keeper.kill()
        keeper.wait()
    assert list(place.iterdir()) == []
