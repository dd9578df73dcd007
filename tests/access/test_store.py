"""``relay.access.store``: bans and quotas over a restart, in a file that may be missing, damaged or in use."""

import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time

import pytest
from helpers import WAIT, wait_until

from relay.access import store as module
from relay.access.ledger import LedgerEntry
from relay.access.store import Store, StoreError, open_store

BAN = LedgerEntry("many", "192.0.2.7", 2e9, 0, 0.0)
QUOTA = LedgerEntry("much", "tls:alice", 0.0, 12345, 1.9e9)
NOW = 1.9e9 + 60


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "relay.state")


def opened(path, now=NOW, pause=0.0):
    return Store(path, wall=lambda: now, pause=pause)


def entries(store, tunnel="web"):
    return [entry for limit in (BAN.limit, QUOTA.limit) for entry in store.entries(tunnel, limit)]


def rows(path):
    """Return what another program reads in the file once it is closed."""
    with sqlite3.connect(path) as database:
        found = database.execute("SELECT tunnel, name, key FROM entry ORDER BY 1, 2, 3").fetchall()
    database.close()
    return found


def kept(path, *entries, now=NOW):
    store = opened(path, now)
    store.put("web", entries)
    store.close()


# -- what is kept -----------------------------------------------------------------------------------------------------


def test_a_ban_and_a_quota_are_there_after_a_restart(path):
    kept(path, BAN, QUOTA)
    store = opened(path)
    assert sorted(entries(store)) == [BAN, QUOTA]
    assert entries(store, "another") == []
    store.close()


def test_names_may_be_anything(path):
    odd = LedgerEntry("'; DROP TABLE entry; --", "tls:\0\N{SNOWMAN}", 2e9, 1, 1.9e9)
    kept(path, odd)
    store = opened(path)
    assert store.entries("web", odd.limit) == [odd]
    store.close()


def test_the_last_entry_of_a_key_counts(path):
    kept(path, BAN, BAN._replace(banned_until=3e9))
    store = opened(path)
    store.put("web", [QUOTA])
    assert sorted(entries(store)) == [BAN._replace(banned_until=3e9), QUOTA]
    store.close()


def test_a_ban_that_was_cleared_is_removed(path):
    kept(path, BAN, QUOTA)
    kept(path, BAN._replace(banned_until=0.0))
    assert rows(path) == [("web", "much", "tls:alice")]


def test_a_cleared_ban_is_not_restored_by_the_same_process(path):
    store = opened(path)
    store.put("web", [BAN])
    store.put("web", [BAN._replace(banned_until=0.0)])
    assert entries(store) == []
    store.close()


def test_what_is_over_is_removed(path):
    kept(path, BAN, QUOTA)
    opened(path, now=2e9 + 33 * 86400).close()
    assert rows(path) == []


def test_a_clock_that_jumps_back_removes_nothing(path):
    kept(path, BAN, QUOTA)
    kept(path, now=0.0)
    assert len(rows(path)) == 2


def test_the_file_is_bounded(path, monkeypatch):
    monkeypatch.setattr(module, "_MOST", 10)
    for number in range(3):
        kept(path, *(BAN._replace(key=f"{number}.{each}") for each in range(8)), now=NOW + number)
    store = opened(path)
    assert len(entries(store)) <= 10
    assert {entry.key for entry in entries(store)} >= {f"2.{each}" for each in range(8)}
    store.close()


def test_a_limit_with_many_entries_keeps_out_no_other(path, monkeypatch):
    monkeypatch.setattr(module, "_MOST", 4)
    store = opened(path, pause=WAIT)
    store.put("web", [BAN._replace(key=str(number)) for number in range(9)])
    store.put("web", [QUOTA, QUOTA._replace(key="tls:bob"), BAN._replace(key="9")])
    assert [entry.key for entry in entries(store)] == ["7", "8", "9", "tls:bob"]
    store.close()


def test_the_oldest_go_in_steps(path, monkeypatch):
    monkeypatch.setattr(module, "_MOST", 600)  # steps of three
    store = opened(path, pause=WAIT)
    for first in range(0, 1000, 10):
        store.put("web", [BAN._replace(key=str(first + number)) for number in range(10)])
        assert len(store._waiting) <= 600
    for found in (entries(store), list(store._waiting.values())):
        assert 597 <= len(found) <= 600
        assert [int(entry.key) for entry in found] == list(range(1000 - len(found), 1000))
    store.close()


def test_what_waits_is_bounded(path, monkeypatch):
    monkeypatch.setattr(module, "_MOST", 10)
    store = opened(path, pause=WAIT)
    store.put("web", [BAN._replace(key=str(number)) for number in range(100)])
    assert len(store._waiting) == len(entries(store)) == 10
    store.close()
    assert [key for _, _, key in rows(path)] == [str(number) for number in range(90, 100)]


def test_rows_that_are_over_are_removed_meanwhile(path, monkeypatch):
    monkeypatch.setattr(module, "_PRUNE", 2)
    times = [NOW]
    store = Store(path, wall=lambda: times[0], pause=0.0)
    store.put("web", [BAN])
    wait_until(lambda: store._written == 1)
    times[0] = 2e9 + 33 * 86400
    store.put("web", [BAN._replace(key="b", banned_until=4e9)])
    store.close()
    assert rows(path) == [("web", "many", "b")]


# -- when -------------------------------------------------------------------------------------------------------------


def test_changes_are_collected_and_written_off_the_callers_thread(path):
    store = opened(path, pause=WAIT)
    threads = set()
    store._database.set_progress_handler(lambda: threads.add(threading.current_thread().name), 1)
    for number in range(1000):
        store.put("web", [QUOTA._replace(used=number + 1)])
    assert not threads and len(store._waiting) == 1
    store.close()
    assert threads == {"relay-state"}
    store = opened(path)
    assert entries(store) == [QUOTA._replace(used=1000)]
    store.close()


def test_a_relay_that_is_killed_has_lost_little(path):
    program = (
        "import sys, time; from relay.access.store import Store; from relay.access.ledger import LedgerEntry\n"
        "store = Store(sys.argv[1], pause=0.0)\n"
        "store.put('web', [LedgerEntry('many', 'a', time.time() + 999, 0, 0.0)])\n"
        "while store._waiting or not store._written: time.sleep(0.001)\n"
        "store.put('web', [LedgerEntry('many', 'b', time.time() + 999, 0, 0.0)] * 99)\n"
        "print('written', flush=True); time.sleep(99)"
    )
    with subprocess.Popen([sys.executable, "-c", program, path], stdout=subprocess.PIPE) as child:
        assert child.stdout.readline() == b"written\n"
        child.send_signal(signal.SIGKILL)
    store = Store(path)
    assert "a" in {entry.key for entry in entries(store)}
    store.close()


def test_close_is_idempotent_and_later_entries_are_dropped(path):
    store = opened(path)
    store.close()
    store.put("web", [BAN])
    store.close()
    assert rows(path) == []


# -- the file ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [None, 0o644])
def test_only_its_user_may_read_the_file(path, mode):
    if mode is not None:
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, mode))
        os.chmod(path, mode)
    before = os.umask(0)
    try:
        opened(path).close()
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600


def test_two_relays_do_not_share_a_file(path, caplog):
    first = opened(path)
    assert open_store(path) is None
    advice = "give each one a file of its own; relay goes on without it, and its bans and quotas end with it"
    assert [record.getMessage() for record in caplog.records] == [f"state file {path}: another relay uses it; {advice}"]
    first.close()
    second = open_store(path)
    assert second is not None
    second.close()


def write(path, data):
    with open(path, "wb") as file:
        file.write(data)


def foreign(path):
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE other (a)")
    database.close()


def later(path):
    opened(path).close()
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 2")
    database.close()


def torn(path):
    kept(path, BAN)
    with open(path, "r+b") as file:
        file.seek(100)
        file.write(b"\xff" * 5000)


def odd(path):
    kept(path, BAN)
    with sqlite3.connect(path) as database:
        database.execute("UPDATE entry SET banned_until = 'never'")
    database.close()


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (
            lambda path: write(path, b"a letter\n" * 999),
            "it is damaged, or no database; remove it or name another file",
        ),
        (torn, "it is damaged, or no database; remove it or name another file"),
        (foreign, "it is a database of another program; name another file"),
        (later, r"it is of another version of relay \(format 2\); name another file"),
        (odd, "could not convert string to float"),
        (os.mkdir, "Is a directory; check the path and its permissions"),
        (os.mkfifo, "it is not a regular file; name another one"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(path, spoil, text):
    spoil(path)
    with pytest.raises(StoreError, match=text):
        opened(path)


def test_a_folder_that_is_missing(tmp_path, caplog):
    assert open_store(str(tmp_path / "none" / "state")) is None
    assert len(caplog.records) == 1 and "No such file or directory" in caplog.text


def test_without_a_thread_it_is_a_warning_and_another_relay_can_use_the_file(path, monkeypatch, caplog):
    """A process that has just taken over opens the file: it ended with an error, and there was no relay any more."""

    def refuse(thread):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        assert open_store(path) is None
    assert f"state file {path}: can't start new thread; relay goes on without it" in caplog.text
    opened(path).close()


def test_a_disk_that_fails_is_a_warning_and_a_later_write(path, caplog, monkeypatch):
    monkeypatch.setattr(module, "_RETRY", 0.0)
    store = opened(path)
    whole, failures = store._replace, iter([sqlite3.OperationalError("disk I/O error")] * 2)

    def replace(entries):
        if (error := next(failures, None)) is not None:
            raise error
        whole(entries)

    store._replace = replace
    store.put("web", [BAN])
    wait_until(lambda: not store._waiting and store._written)  # without further entries
    store.close()
    assert not store._unwritten
    assert [record.getMessage() for record in caplog.records] == [
        f"state file {path}: cannot write: disk I/O error; relay goes on, and tries again",
        f"state file {path}: written again",
    ]
    assert rows(path) == [("web", "many", "192.0.2.7")]


def test_a_later_entry_replaces_one_that_was_not_written(path):
    store = opened(path, pause=WAIT)
    key = ("web", BAN.limit, BAN.key)
    store._unwritten[key] = BAN
    store._unwritten["web", "many", "other"] = BAN._replace(key="other")
    store.put("web", [BAN._replace(banned_until=3e9)])
    store.close()
    store = opened(path)
    assert sorted(entries(store)) == [BAN._replace(banned_until=3e9), BAN._replace(key="other")]
    store.close()


def test_a_slow_disk_does_not_hold_the_end(path, monkeypatch):
    monkeypatch.setattr(module, "_PATIENCE", 0.01)
    store = opened(path, pause=WAIT)
    held = threading.Event()
    store._replace = lambda entries: held.wait(WAIT)
    store.put("web", [BAN])
    begun = time.monotonic()
    store.close()
    assert time.monotonic() - begun < WAIT
    held.set()
    store._thread.join(WAIT)
