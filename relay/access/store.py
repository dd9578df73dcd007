"""The file that keeps bans and quotas over a restart: one SQLite database, written on a thread of its own.

The relay threads only hand entries over. Those of one key replace each other until the thread writes all of them in one
transaction, a second or two later; so a relay that is killed loses that much. The file is a help, never a condition:
if it cannot be used, one WARNING says why, and relay goes on without it.
"""

from __future__ import annotations

import itertools
import logging
import os
import stat
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..addresses.printable import printable
from .ledger import LedgerEntry
from .regular_file import distrust_directory, open_own

if TYPE_CHECKING:  # most tunnels have nothing to keep, and start faster without it
    import sqlite3

logger = logging.getLogger("relay")

_APPLICATION = 0x52656C79  # of the header of the file, for file(1): the letters "Rely"
_VERSION = 1  # of the table
_PAUSE = 2.0  # seconds in which changes are collected
_RETRY = 30.0  # seconds after a failure
_PATIENCE = 5.0  # seconds that the end waits for the last write
_MOST = 200_000  # rows, and entries that wait: those changed longest ago are forgotten
_LONGEST_PERIOD = 32 * 86400.0  # seconds; no quota has a longer period than a month
_PRUNE = 10_000  # rows written until those that are over are removed

_Key = tuple[str, str, str]  # tunnel, limit, key

_TABLE = """
CREATE TABLE IF NOT EXISTS entry (
    tunnel TEXT NOT NULL,
    name TEXT NOT NULL,
    key TEXT NOT NULL,
    banned_until REAL NOT NULL,
    used INTEGER NOT NULL,
    period REAL NOT NULL,
    changed REAL NOT NULL,
    PRIMARY KEY (tunnel, name, key)
) WITHOUT ROWID
"""


class StoreError(Exception):
    """A file that cannot be used as a store; the text says why and what to do."""


class Store:
    """The bans and quotas of all tunnels of a process. Every method may be called from any thread.

    :param path: of the file; it is created with mode 0600.
    :param wall: returns the time, in seconds since the epoch.
    :param pause: seconds in which changes are collected before they are written.
    :raises StoreError: if the file cannot be used: it is not one of relay, it is damaged, another relay uses it, or the
        system does not allow it or has no thread left.
    """

    def __init__(self, path: str, *, wall: Callable[[], float] = time.time, pause: float = _PAUSE) -> None:
        self._path = path
        self._wall = wall
        self._pause = pause
        self._changed = threading.Condition()
        self._waiting: dict[_Key, LedgerEntry] = {}  # those changed longest ago first
        self._unwritten: dict[_Key, LedgerEntry] = {}  # the same, of the thread, after a failure
        self._is_closing = False
        self._has_failed = False
        self._written = 0  # rows since the last removal of those that are over
        self._database = _open(path)
        try:
            self._prune()
            self._stored = self._read()
        except Exception as error:
            self._database.close()
            raise StoreError(_explained(error)) from error
        self._thread = threading.Thread(target=self._run, name="relay-state", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:  # the system has no thread left
            self._database.close()
            raise StoreError(str(error)) from error

    def entries(self, tunnel: str, limit: str) -> Sequence[LedgerEntry]:
        """Return the entries of a limit: those of the file when it was opened, and those that came later.

        :param tunnel: the name of its tunnel.
        :param limit: its name.
        """
        with self._changed:
            stored = self._stored.get(tunnel)
            return stored.of(limit) if stored is not None else []

    def put(self, tunnel: str, entries: Iterable[LedgerEntry]) -> None:
        """Write entries, later. Never blocks for long. After :meth:`close` they are dropped.

        :param tunnel: the name of their tunnel.
        :param entries: those that have changed; one without a ban and without bytes is removed from the file.
        """
        with self._changed:
            if self._is_closing:
                return
            stored = self._stored.get(tunnel)
            if stored is None:
                stored = self._stored[tunnel] = _Stored()
            waiting = self._waiting
            was_idle = not waiting
            for entry in entries:
                key = tunnel, entry.limit, entry.key
                # Out and in again, for the order: those changed longest ago come first.
                waiting.pop(key, None)
                waiting[key] = entry
                stored.put(entry)
            _trim(waiting)
            # Only the first one wakes the thread, which then collects for a while.
            if was_idle and waiting:
                self._changed.notify_all()

    def close(self) -> None:
        """Write what waits, and close the file; not for ever, if the disk is slow. Idempotent."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        self._thread.join(_PATIENCE)

    # -- the thread ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while self._wait_for_entries():
                self._write()
            self._write()
        finally:
            self._database.close()

    def _wait_for_entries(self) -> bool:
        """Wait until there is something to write, and a little longer; return false at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._unwritten or self._is_closing)
            pause = _RETRY if self._has_failed else self._pause
            self._changed.wait_for(lambda: self._is_closing, pause)
            return not self._is_closing

    def _write(self) -> None:
        with self._changed:
            # Swapped and not copied: relay threads wait for this lock.
            taken, self._waiting = self._waiting, {}
        entries = self._unwritten  # merged without the lock, which relay threads need
        for key, entry in taken.items():
            entries.pop(key, None)
            entries[key] = entry
        _trim(entries)
        if not entries:
            return
        try:
            self._replace(entries)
            self._unwritten = {}
            self._written += len(entries)
            if self._written >= _PRUNE:
                self._prune()
        except Exception as error:  # noqa: BLE001  (whatever it is, relay goes on without the file)
            self._fail(error)
        else:
            if self._has_failed:
                logger.warning("state file %s: written again", self._path)
            self._has_failed = False

    def _fail(self, error: Exception) -> None:
        if not self._has_failed:
            text = "state file %s: cannot write: %s; relay goes on, and tries again"
            logger.warning(text, self._path, printable(str(error), 200))
        self._has_failed = True

    def _replace(self, entries: Mapping[_Key, LedgerEntry]) -> None:
        over, kept, now = [], [], self._wall()
        for (tunnel, name, key), entry in entries.items():
            if entry.banned_until or entry.used:
                kept.append((tunnel, name, key, entry.banned_until, entry.used, entry.period, now))
            else:
                over.append((tunnel, name, key))
        # One transaction: a process that is killed in between leaves the entries of before, and no half.
        self._database.execute("BEGIN IMMEDIATE")
        try:
            self._database.executemany("DELETE FROM entry WHERE tunnel = ? AND name = ? AND key = ?", over)
            self._database.executemany("INSERT OR REPLACE INTO entry VALUES (?, ?, ?, ?, ?, ?, ?)", kept)
            self._database.execute("COMMIT")
        except BaseException:
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
            raise

    def _prune(self) -> None:
        """Remove the rows that mean nothing any more, and the oldest of too many."""
        self._written = 0
        now = self._wall()
        self._database.execute("DELETE FROM entry WHERE banned_until < ? AND period < ?", (now, now - _LONGEST_PERIOD))
        self._database.execute(
            "DELETE FROM entry WHERE (tunnel, name, key) IN "
            "(SELECT tunnel, name, key FROM entry ORDER BY changed DESC LIMIT -1 OFFSET ?)",
            (_MOST,),
        )

    def _read(self) -> dict[str, _Stored]:
        found: dict[str, _Stored] = {}
        rows = self._database.execute(
            "SELECT tunnel, name, key, banned_until, used, period FROM entry ORDER BY changed LIMIT ?", (_MOST,)
        )
        for tunnel, name, key, banned_until, used, period in rows:
            entry = LedgerEntry(str(name), str(key), float(banned_until), int(used), float(period))
            found.setdefault(str(tunnel), _Stored()).put(entry)
        return found


class _Stored:
    """The entries of one tunnel that mean something: at most :data:`_MOST` of them."""

    __slots__ = ("_limits", "_count")

    def __init__(self) -> None:
        self._limits: dict[str, dict[str, LedgerEntry]] = {}  # by key; those changed longest ago first
        self._count = 0

    def of(self, limit: str) -> list[LedgerEntry]:
        """Return the entries of a limit, those changed longest ago first."""
        return list(self._limits.get(limit, {}).values())

    def put(self, entry: LedgerEntry) -> None:
        """Take an entry. If there are too many, forget the oldest of its limit."""
        kept = self._limits.get(entry.limit)
        if kept is None:
            kept = self._limits[entry.limit] = {}
        if kept.pop(entry.key, None) is not None:
            self._count -= 1
        if entry.banned_until or entry.used:
            kept[entry.key] = entry
            self._count += 1
            if self._count > _MOST:
                self._count -= _forget_some(kept if len(kept) > 1 else max(self._limits.values(), key=len))
        if not kept:
            del self._limits[entry.limit]


def open_store(path: str) -> Store | None:
    """Open a store; ``None`` if that is not possible, which one WARNING explains.

    :param path: of the file; it is created if there is none.
    """
    try:
        return Store(path)
    except StoreError as error:
        text = "state file %s: %s; relay goes on without it, and its bans and quotas end with it"
        logger.warning(text, path, printable(str(error), 300))
        return None


def _trim(entries: dict[Any, LedgerEntry]) -> None:
    """Forget what has changed longest ago, if there is too much."""
    while len(entries) > _MOST:
        _forget_some(entries)


def _forget_some(entries: dict[Any, LedgerEntry]) -> int:
    """Forget some of those changed longest ago, and return how many; of the last two at most one.

    To find the first one takes the longer the more have gone from there: for each single one, up to a millisecond.
    """
    oldest = list(itertools.islice(entries, min(max(1, _MOST // 200), (len(entries) + 1) // 2)))
    for key in oldest:
        del entries[key]
    return len(oldest)


def _open(path: str) -> sqlite3.Connection:
    """Open the file, create it if there is none, and keep every other program out of it."""
    import sqlite3

    try:
        _create(path)
        # The thread that opens it is not the one that writes. Statements outside a transaction take effect at once.
        database = sqlite3.connect(path, timeout=0.0, isolation_level=None, check_same_thread=False)
    except (OSError, sqlite3.Error) as error:
        raise StoreError(_explained(error)) from error
    try:
        application = database.execute("PRAGMA application_id").fetchone()[0]
        version = database.execute("PRAGMA user_version").fetchone()[0]
        is_empty = not database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if not is_empty and application != _APPLICATION:
            raise StoreError("it is a database of another program; name another file")
        if not is_empty and version != _VERSION:
            raise StoreError(f"it is of another version of relay (format {version}); name another file")
        # Two relays that share the file would each overwrite what the other one has counted.
        database.execute("PRAGMA locking_mode = EXCLUSIVE")
        # A power failure may cost the last seconds; waiting for the disk each time is not worth those.
        database.execute("PRAGMA synchronous = NORMAL")
        database.execute("BEGIN IMMEDIATE")
        database.execute(_TABLE)
        database.execute(f"PRAGMA application_id = {_APPLICATION}")
        database.execute(f"PRAGMA user_version = {_VERSION}")
        database.execute("COMMIT")
    except StoreError:
        database.close()
        raise
    except Exception as error:
        database.close()
        raise StoreError(_explained(error)) from error
    return database


def _create(path: str) -> None:
    """Create the file for its user alone, if there is none. A named pipe or a device is no file to write to.

    One that is there gets its mode only if it is this user's, and empty or a database of relay: the path may be wrong.
    """
    for place in (os.path.abspath(path), os.path.realpath(path)):
        if problem := distrust_directory(os.path.dirname(place)):  # SQLite opens the file by its name
            raise StoreError(problem)
    descriptor = open_own(path, os.O_RDWR)
    try:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode):
            raise StoreError("it is not a regular file; name another one")
        if facts.st_mode & 0o077 and facts.st_uid == os.geteuid() and _is_of_relay(os.pread(descriptor, 100, 0)):
            os.fchmod(descriptor, 0o600)  # it has the names of clients
    finally:
        os.close(descriptor)


def _is_of_relay(header: bytes) -> bool:
    """Return whether a database, of which this is the beginning, is one of relay. An empty one may become one."""
    return not header or (header.startswith(b"SQLite format 3\0") and header[68:72] == _APPLICATION.to_bytes(4, "big"))


def _explained(error: Exception) -> str:
    """Return why a file cannot be used, and what to do."""
    if isinstance(error, OSError):
        return f"{error.strerror or error}; check the path and its permissions"
    name = getattr(error, "sqlite_errorname", "")
    if name in ("SQLITE_BUSY", "SQLITE_LOCKED"):
        return "another relay uses it; give each one a file of its own"
    if name in ("SQLITE_NOTADB", "SQLITE_CORRUPT"):
        return "it is damaged, or no database; remove it or name another file"
    return f"{error}; check the path and its permissions"
