"""The rights of files, as ``relay doctor`` reports them."""

import os

import pytest

from relay.addresses.i2p import I2PRouter
from relay.addresses.values import TCPAddress
from relay.cli.doctor.files import configuration, mode_checks, permissions
from relay.cli.doctor.report import Status


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "a file"
    path.touch(0o600)
    return path


@pytest.mark.parametrize(
    ("mode", "forbidden", "status", "advice"),
    [
        (0o600, 0o077, Status.OK, ""),
        (0o640, 0o077, Status.WARNING, "chmod 600"),
        (0o644, 0o022, Status.OK, ""),
        (0o664, 0o022, Status.WARNING, "chmod go-w"),
    ],
)
def test_modes(file, mode, forbidden, status, advice):
    file.chmod(mode)
    (check,) = mode_checks("key file", str(file), forbidden)
    assert (check.status, check.subject) == (status, str(file))
    assert check.advice.startswith(advice)


def test_a_file_of_another_user(file, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    os_stat = os.stat(file)
    monkeypatch.setattr(os, "stat", lambda _: os.stat_result((os_stat.st_mode, 0, 0, 0, 4321, 0, 0, 0, 0, 0)))
    (check,) = mode_checks("key file", str(file), 0o077)
    assert (check.status, "4321" in check.text) == (Status.WARNING, True)


def test_a_file_that_is_missing(tmp_path):
    assert mode_checks("key file", str(tmp_path / "missing"), 0o077) == []


def test_keys_of_a_router(file):
    file.chmod(0o644)
    (check,) = permissions([I2PRouter(keys=str(file)), TCPAddress("db", 5432)])
    assert (check.step, check.status) == ("key file", Status.WARNING)


def test_nothing_is_wrong():
    assert configuration("", (), (), TCPAddress("db.internal", 5432), "db.internal:5432") == []
