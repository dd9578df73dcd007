"""A bounded table of the clients that a limit counts, each by its key.

The key used longest ago is forgotten first. Banned keys have room of their own, so that a client with many addresses
cannot end its ban by using them.
"""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict

from .limit import Rate
from .meter import Meter

MOST_KEYS = 100_000
"""The most keys of a table, and the most that are banned."""

_TRIES = 8  # keys of connected clients that are passed over, before the table grows by one


class Entry:
    """The clients of one key, as a limit counts them: plain data. Times are monotonic seconds."""

    __slots__ = (
        "key", "arrival", "connected", "banned_until", "used", "marks", "period", "later", "meters", "levels",
        "failures",
    )  # fmt: skip

    def __init__(self, key: str) -> None:
        self.key = key
        self.arrival = 0.0  # the theoretical arrival time of the next client; see relay.access.limiter
        self.connected = 0
        self.banned_until = 0.0
        self.used = 0  # bytes in the period
        self.marks = 0  # of the quota, which were reached in the period; see relay.access.limiter
        self.period = -math.inf  # when that began, seconds since the epoch
        self.later = -math.inf  # the latest one before the clock has jumped back: its bytes are counted already
        self.meters: tuple[Meter, Meter] | None = None  # from and to the clients, while one is connected
        self.levels: tuple[float, float, float, float] | None = None  # of the meters before them
        self.failures: list[float] | None = None  # when the last logins have failed

    def drop_meters(self) -> None:
        """Keep only the levels of the meters, which no client uses any more: they are 1.3 kB, in eleven objects."""
        if self.meters is not None:
            up, down = self.meters
            self.meters, self.levels = None, (*up.level, *down.level)

    def fail(self, rate: Rate, now: float) -> bool:
        """Count a failed login; return whether that makes as many within the time as the rate has."""
        kept = [time for time in self.failures or () if time > now - rate.seconds]
        kept.append(now)
        if len(kept) < rate.most:
            self.failures = kept
            return False
        # The ban follows; after it the client has all its attempts again.
        self.failures = None
        return True


class KeyTable:
    """The entries of one limit. Belongs to one thread.

    :param most: keys that it holds, and as many that are banned; those with a connected client are kept beyond that.
    """

    __slots__ = ("most", "entries", "banned")

    def __init__(self, most: int = MOST_KEYS) -> None:
        self.most = most
        self.entries: OrderedDict[str, Entry] = OrderedDict()
        """The one used longest ago first, without those that are banned."""
        self.banned: dict[str, Entry] = {}
        """The oldest ban first; some may be over."""

    def get(self, key: str) -> Entry:
        """Return the entry of a key, which is made if there is none."""
        entries = self.entries
        entry = entries.get(key)
        if entry is not None:
            entries.move_to_end(key)
            return entry
        return self.add(key)

    def add(self, key: str) -> Entry:
        """Return the entry of a key that is not in :attr:`entries`: of one that is banned, or a new one."""
        entry = self.banned.get(key)
        if entry is None:
            entry = Entry(key)
            self._insert(entry)
        return entry

    def _insert(self, entry: Entry) -> None:
        if len(self.entries) >= self.most:
            self._forget_one()
        self.entries[entry.key] = entry

    def ban(self, entry: Entry) -> None:
        """Keep a key among the banned ones. When there are too many, the oldest bans are forgotten."""
        banned = self.banned
        self.entries.pop(entry.key, None)
        banned.pop(entry.key, None)
        banned[entry.key] = entry
        if len(banned) > self.most:
            # Several at once: to find the first one takes the longer the more have gone from there.
            for old in list(itertools.islice(banned.values(), max(1, self.most // 100))):
                del banned[old.key]
                # Its connections hold the entry, and count it down at their end: another one for the key would be wrong
                # by them.
                if old.connected:
                    self._insert(old)

    def unban(self, entry: Entry) -> None:
        """Keep a key among the others again. Idempotent."""
        if self.banned.pop(entry.key, None) is not None:
            self._insert(entry)

    def find(self, key: str) -> Entry | None:
        """Return the entry of a key if there is one; this is no use of it."""
        return self.entries.get(key) or self.banned.get(key)

    def forget(self, key: str) -> None:
        """Forget a key, unless it is banned or one of its clients is connected. Idempotent."""
        entry = self.entries.get(key)
        if entry is not None and not entry.connected:
            del self.entries[key]

    def _forget_one(self) -> None:
        entries = self.entries
        for _ in range(_TRIES):
            key, entry = entries.popitem(last=False)
            if not entry.connected:
                return
            entries[key] = entry  # a key in use, so it is not old

    def __len__(self) -> int:
        return len(self.entries) + len(self.banned)

    def all(self) -> list[Entry]:
        """Return all entries, in no order: 100,000 in 2 ms, while the order of their use would take 100."""
        return [*dict.values(self.entries), *self.banned.values()]
