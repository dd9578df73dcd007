"""``relay.daemon.access_log``: lines of JSON in a file, whatever the disk does."""

from __future__ import annotations

import errno
import json
import logging
import os
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from documents import PAGES
from helpers import WAIT, makes, wait_until

from relay.daemon import access_log as module
from relay.daemon.access_log import AccessLog, LoggedTunnel, entry
from relay.engine.records import ConnectionRecord
from relay.streams.identity import Identity

RECORD = ConnectionRecord(
    ("203.0.113.5", 51234), "db:5432", 1.2345, 5, 7, "splice", "closed", "done",
    "018f0000-0000-7000-8000-000000000001", 1e9, 0.0123456, 0.5, "client", None,
    (("1:ssh", 0.01), ("2:target", 0.0023456)), "ssh://me@inner", 2,
    identity=Identity("tls", "alice", "203.0.113.5", 51234), server_name="db.internal",
)  # fmt: skip
WEB = LoggedTunnel("web", "127.0.0.1:80", ("ssh://me@bastion", "ssh://me@inner"), list)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "access.log"


@pytest.fixture
def opened(path: Path) -> Iterator[Callable[..., AccessLog]]:
    yield from makes(lambda interval=None, tunnels=(lambda: [WEB]): AccessLog(str(path), interval, tunnels))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_has_the_facts_about_a_connection() -> None:
    fields = entry(WEB, RECORD)
    assert fields == {
        "ts": "2001-09-09T01:46:41.234+00:00",
        "id": "018f0000-0000-7000-8000-000000000001",
        "tunnel": "web",
        "peer": "203.0.113.5:51234",
        "identity": {"kind": "tls", "name": "alice"},
        "local": "127.0.0.1:80",
        "target": "db:5432",
        "hops": ("ssh://me@bastion", "ssh://me@inner"),
        "connect_ms": 12.346,
        "hop_ms": {"1:ssh": 10.0, "2:target": 2.346},
        "first_byte_ms": 500.0,
        "seconds": 1.234,
        "in": 5,
        "out": 7,
        "engine": "splice",
        "state": "closed",
        "reason": "done",
        "by": "client",
        "rule": None,
        "attempt": 2,
        "carrier": "ssh://me@inner",
        "warm": False,
        "server_name": "db.internal",
        "unique_id": None,
        "resumes": 0,
        "tag": None,
    }
    rows = [line.split("|")[1].strip(" `") for line in PAGES["logs"].splitlines() if line.startswith("| `")]
    first = rows.index("ts")
    assert rows[first : first + len(fields)] == list(fields)


def test_what_is_not_known_is_null() -> None:
    fields = entry(WEB, ConnectionRecord(None, None, 0.0, 0, 0, "copy", "connecting"))
    assert [fields[name] for name in ("target", "connect_ms", "first_byte_ms", "reason", "by", "carrier")] == [None] * 6
    assert fields["peer"] == "" and fields["identity"] is None


def test_an_identity_that_another_party_says_is_marked() -> None:
    identity = Identity("ssh", "ssh://me@vps", "192.0.2.9", 1, server="ssh://me@vps", is_verified=False)
    expected = {"kind": "ssh", "name": "ssh://me@vps", "verified": False}
    assert entry(WEB, RECORD._replace(identity=identity))["identity"] == expected


def test_each_connection_is_a_line_in_a_file_of_its_owner(opened: Callable[..., AccessLog], path: Path) -> None:
    log = opened()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for number in range(1000):
        log.put("web", RECORD._replace(received=number))
    log.put("another", RECORD)
    log.close()
    found = lines(path)
    assert [line["in"] for line in found[:-1]] == list(range(1000))
    assert (found[0]["local"], found[-1]["tunnel"], found[-1]["local"]) == ("127.0.0.1:80", "another", "")


def test_it_appends_and_keeps_the_mode_of_a_file_that_is_there(opened: Callable[..., AccessLog], path: Path) -> None:
    path.write_text("{}\n")
    path.chmod(0o640)
    log = opened()
    log.put("web", RECORD)
    log.close()
    assert [line.get("tunnel") for line in lines(path)] == [None, "web"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


@pytest.mark.parametrize("hostile", ['"}\n{"a": 1', "\N{RIGHT-TO-LEFT OVERRIDE}", "\x1b[31m", "\udc80"])
def test_text_of_the_network_stays_one_field_of_one_line(
    opened: Callable[..., AccessLog], path: Path, hostile: str
) -> None:
    log = opened()
    log.put("web", RECORD._replace(target=hostile))
    log.close()
    assert path.read_bytes().isascii()
    (line,) = lines(path)
    assert line["target"] == hostile


def test_it_writes_to_a_new_file_after_a_rename(opened: Callable[..., AccessLog], path: Path) -> None:
    log = opened()
    log.put("web", RECORD)
    wait_until(lambda: path.read_text())
    old = path.rename(path.with_suffix(".1"))
    log.put("web", RECORD)
    log.reopen()
    log.put("web", RECORD)
    log.close()
    assert (len(lines(old)), len(lines(path))) == (2, 1)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_file_that_cannot_be_opened_again_leaves_the_old_one(opened: Callable[..., AccessLog], path: Path) -> None:
    log = opened()
    old = path.rename(path.with_suffix(".1"))
    path.mkdir()
    with pytest.raises(IsADirectoryError):
        log.reopen()
    log.put("web", RECORD)
    log.close()
    assert len(lines(old)) == 1


def test_a_named_pipe_needs_a_reader_and_is_not_waited_for(opened: Callable[..., AccessLog], path: Path) -> None:
    """The main thread opens the file, and would not even hear a signal."""
    os.mkfifo(path)
    with pytest.raises(OSError, match=os.strerror(errno.ENXIO)):
        AccessLog(str(path), None, list)
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as reader:
        log = opened()
        log.put("web", RECORD)
        log.close()
        assert json.loads(reader.read())["id"] == RECORD.id


def test_a_path_that_cannot_be_opened_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        AccessLog(str(tmp_path / "none" / "access.log"), None, list)


class Disk:
    """The system's ``write`` with a disk that takes so many bytes more."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.tried = threading.Event()

    def __call__(self, descriptor: int, data: memoryview) -> int:
        size = min(len(data), self.room)
        self.room -= size
        self.tried.set()
        if not size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return _write(descriptor, data[:size])


_write = os.write


@pytest.mark.parametrize("room", [0, 10])
def test_a_full_disk_is_a_line_in_the_log_and_its_end_another(
    opened: Callable[..., AccessLog],
    path: Path,
    room: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    disk = Disk(room)
    monkeypatch.setattr(module.os, "write", disk)
    log = opened()
    for _ in range(3):
        disk.tried.clear()
        log.put("web", RECORD)
        assert disk.tried.wait(WAIT)
    wait_until(log._waiting.empty)
    disk.room = 1 << 20
    log.put("web", RECORD)
    log.close()
    (failure, again) = [record.getMessage() for record in caplog.records]
    assert failure.startswith(f"access log {path}: cannot write: No space left on device; relay continues")
    assert again.endswith("written again; 3 lines were lost")
    rows = path.read_text().splitlines()
    assert len(rows) == (2 if room else 1)  # the torn line has an end before the next one
    assert json.loads(rows[-1])["tunnel"] == "web"


def test_a_slow_disk_delays_no_relay_thread_and_the_lines_it_costs_are_counted(
    opened: Callable[..., AccessLog], path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "_LIMIT", 10)
    began, go = threading.Event(), threading.Event()

    def write(descriptor: int, data: memoryview) -> int:
        began.set()
        assert go.wait(WAIT)
        return _write(descriptor, data)

    monkeypatch.setattr(module.os, "write", write)
    log = opened()
    log.put("web", RECORD)
    assert began.wait(WAIT)
    for _ in range(30):
        log.put("web", RECORD)
    go.set()
    log.close()
    assert len(lines(path)) == 11
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [
        (logging.WARNING, f"access log {path}: 20 lines dropped: the disk did not take them in time")
    ]


def test_the_end_does_not_wait_for_ever(opened: Callable[..., AccessLog], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PATIENCE", 0.01)
    go = threading.Event()
    monkeypatch.setattr(module.os, "write", lambda descriptor, data: go.wait(WAIT) and _write(descriptor, data))
    log = opened()
    log.put("web", RECORD)
    log.close()
    go.set()
    log._thread.join(WAIT)


def test_a_connection_that_lasts_has_a_line_each_interval(opened: Callable[..., AccessLog], path: Path) -> None:
    young = RECORD._replace(state="open", reason=None, age=0.0)
    old = RECORD._replace(state="open", reason=None, age=60.0, id="old")
    tunnels = [WEB._replace(connections=lambda: [young, old])]
    log = opened(0.01, lambda: tunnels)
    wait_until(lambda: path.read_text().count("\n") >= 3)
    log.close()
    found = lines(path)
    assert {(line["id"], line["state"], line["reason"]) for line in found} == {("old", "open", None)}


def test_the_lines_of_an_interval_come_also_while_connections_end(opened: Callable[..., AccessLog], path: Path) -> None:
    old = RECORD._replace(state="open", reason=None, age=60.0, id="old")
    log = opened(0.01, lambda: [WEB._replace(connections=lambda: [old])])

    def written() -> bool:
        log.put("web", RECORD)
        return path.read_text().count('"old"') >= 2

    wait_until(written)
