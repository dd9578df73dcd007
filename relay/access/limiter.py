"""One limit at work: it counts clients by their keys, bans them, and says which of them it rejects.

A rate is kept by the generic cell rate algorithm (ITU-T I.371), with one number for each key, the theoretical arrival
time: a rate of 20 in 10 s lets 20 in at once, and then one each half second. So ten seconds after a quiet time let 20
in at once and 20 more. Nothing is sampled or rounded.
"""

from __future__ import annotations

import functools
import itertools
import math
import socket
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol

from ..eventloop.loop import Timers
from ..streams.identity import Identity, plain_host
from .calendar import Calendar
from .ledger import Book, LedgerEntry
from .limit import Limit, Scope
from .meter import Meter
from .table import MOST_KEYS, Entry, KeyTable

ALL = "*"
"""The key of all clients of a tunnel."""

OnQuota = Callable[[Limit, str, bool], object]
"""Called with a limit, a key, and whether its quota is used up; else most of it is."""

_ROUNDING = 1e-6  # seconds
_ENDED = 1000  # bans that have ended, which are taken from the list at one time
_MOST_OF_IT = 0.8  # of a quota


class Client(Protocol):
    """A client's identity, as a limit sees it."""

    @property
    def kind(self) -> str:
        """``tcp`` if only its address is known."""

    @property
    def host(self) -> str | None:
        """Its IP address, without a zone; ``None`` if it has none."""


class Rejection(NamedTuple):
    """The reason why a limit rejects a client."""

    limit: Limit
    is_ban: bool
    seconds: float
    """How long the ban still lasts; 0 for none."""

    @property
    def rule(self) -> str:
        """The text for records, the log and the metrics."""
        return f"{'ban' if self.is_ban else 'limit'} {self.limit.name}"


def key_of(scope: Scope, client: Client) -> str:
    """Return the key under which a client counts; ``str`` of a client is its identity."""
    kind, ipv4, ipv6 = scope
    if kind == "tunnel":
        return ALL
    host = client.host
    if host is None:
        return str(client)
    if kind == "identity":
        # Else a client could choose another address of its network for each connection.
        is_ipv6 = client.kind == "tcp" and ":" in host
        return f"tcp:{_network(socket.AF_INET6, host, ipv6)}" if is_ipv6 else str(client)
    if ":" not in host:
        return host if ipv4 == 32 else _network(socket.AF_INET, host, ipv4)
    return _network(socket.AF_INET6, host, ipv6)


@functools.lru_cache(maxsize=8192)
def _network(family: int, host: str, bits: int) -> str:
    try:
        packed = socket.inet_pton(family, host)
    except (OSError, ValueError):  # the latter for a NUL and what is not Unicode
        return host  # some party has only claimed that it is an address
    size = len(packed)
    unused = size * 8 - bits
    network = (int.from_bytes(packed) >> unused << unused).to_bytes(size)
    return f"{socket.inet_ntop(family, network)}/{bits}"


class Limiter:
    """A limit with the table of its clients, whose entries are plain data. Belongs to one thread.

    A ban lasts by the monotonic clock, and the wall clock has a part in it only while the process does not run. A quota
    goes by the wall clock: when this jumps back, what was used still counts.

    :param limit: the limit.
    :param timers: of the thread's loop, for the bandwidth.
    :param most: keys of the table.
    :param wall: the wall clock, seconds since the epoch.
    :param book: keeps bans and quotas over a restart; ``None`` for nothing.
    :param on_quota: called when most of a quota is used, and when it is used up, once in each period.
    """

    __slots__ = (
        "limit", "table", "is_for_one", "is_by_address", "_timers", "_wall", "_calendar", "_changed", "_step", "_slack",
        "_most", "_book", "_has_quota", "_marks", "_on_quota", "__weakref__",
    )  # fmt: skip

    def __init__(
        self,
        limit: Limit,
        timers: Timers,
        most: int = MOST_KEYS,
        wall: Callable[[], float] = time.time,
        book: Book | None = None,
        on_quota: OnQuota | None = None,
    ) -> None:
        self.limit = limit
        self.table = KeyTable(most)
        self._timers = timers
        self._wall = wall
        self._calendar = Calendar(limit.terms.period)
        self._changed: set[str] = set()
        self._book = book
        self._on_quota = on_quota
        self._set_terms()

    def _set_terms(self) -> None:
        """Keep ready what each decision needs."""
        limit = self.limit
        self.is_for_one = limit.terms.scope.kind == "connection"
        self.is_by_address = limit.terms.scope.kind == "ip"
        rate, concurrent = limit.terms.rate, limit.terms.concurrent
        self._step = rate.seconds / rate.most if rate is not None else 0.0  # seconds that one client takes
        self._slack = rate.seconds - self._step + _ROUNDING if rate is not None else math.inf
        self._most = concurrent if concurrent is not None else math.inf
        quota = limit.terms.quota if limit.terms.quota is not None else math.inf
        self._has_quota = limit.terms.quota is not None
        self._marks = (quota * _MOST_OF_IT, quota, math.inf)

    def change(self, limit: Limit, now: float) -> bool:
        """Use other values from now on, and keep what was counted.

        :param now: monotonic seconds.
        :returns: whether that was possible: the clients must count together as before, in the same period.
        """
        before, terms = self.limit.terms, limit.terms
        if (before.scope, before.period) != (terms.scope, terms.period):
            return False
        if limit.name != self.limit.name:  # all is stored again, by the new one
            for entry in self.table.all():
                if entry.used or entry.banned_until:
                    self._note(entry)
        self.limit, step = limit, self._step
        self._set_terms()
        if before.rate is not None and before.rate != terms.rate:
            self._change_rate(step, now)
        if before.bandwidth != terms.bandwidth and terms.bandwidth is not None:
            for meter in (meter for entry in self.table.all() for meter in entry.meters or ()):
                meter.change(terms.bandwidth)
        if before.quota != terms.quota:
            for entry in self.table.all():
                if entry.marks:  # of 100,000 keys few have any
                    entry.marks = min(entry.marks, self._marks_of(entry))
        return True

    def _change_rate(self, step: float, now: float) -> None:
        """Count as many clients as before in the time of another rate.

        :param step: the seconds that one client has taken.
        """
        rate = self.limit.terms.rate
        longest = rate.seconds if rate is not None else 0.0
        for entry in self.table.all():
            if entry.arrival > now:
                entry.arrival = now + min((entry.arrival - now) / step * self._step, longest)

    def ban(self, client: Client, now: float) -> Rejection | None:
        """Return the ban of a client, if there is one."""
        entry = self.table.find(key_of(self.limit.terms.scope, client))
        if entry is None or entry.banned_until <= now:
            return None
        return Rejection(self.limit, True, entry.banned_until - now)

    def key(self, client: Client) -> str:
        """Return the key of a client in this limit; empty if it counts alone."""
        return "" if self.is_for_one else key_of(self.limit.terms.scope, client)

    def admit(self, key: str, now: float) -> Entry | Rejection:
        """Count a client by its key, or return why it is rejected, which bans the key if that follows.

        :returns: its entry; at the end of its connection ``entry.connected`` is one less.
        """
        entries = self.table.entries
        entry = entries.get(key)
        if entry is None:
            entry = Entry(key) if self.is_for_one else self.table.add(key)
        else:
            # Also for a client that is then rejected: a key under attack must not be the first that the table forgets.
            entries.move_to_end(key)
        if (
            entry.banned_until
            or entry.arrival - now > self._slack
            or entry.connected >= self._most
            or (self._has_quota and not self.left(entry))
        ):
            rejection = self._reject(entry, now)
            # A ban that was over is lifted by this look, and the client counts.
            if rejection is not None:
                return rejection
        entry.connected += 1
        step = self._step
        if step:
            if entry.arrival < now:
                # A quiet time is not saved up beyond the slack: the bucket is full at most.
                entry.arrival = now
            entry.arrival += step
        return entry

    def withdraw(self, entry: Entry) -> None:
        """Forget a client that was counted, because another limit has rejected it."""
        entry.connected -= 1
        entry.arrival -= self._step

    def admit_screened(self, key: str, now: float) -> Entry | Rejection:
        """Decide about a client that was counted for the rate before, and withdrawn from the others."""
        entry = self.table.get(key)
        if now < entry.banned_until:
            return Rejection(self.limit, True, entry.banned_until - now)
        if self.limit.terms.quota is not None and not self.left(entry):
            return self._exceeded(entry, now)
        if entry.connected >= self._most:
            return Rejection(self.limit, False, 0.0)
        entry.connected += 1
        return entry

    def _reject(self, entry: Entry, now: float) -> Rejection | None:
        if now < entry.banned_until:
            return Rejection(self.limit, True, entry.banned_until - now)
        if entry.banned_until:
            entry.banned_until = 0.0
            self.table.unban(entry)
        if entry.arrival - now > self._slack or (self.limit.terms.quota is not None and not self.left(entry)):
            return self._exceeded(entry, now)
        return Rejection(self.limit, False, 0.0) if entry.connected >= self._most else None

    def fail(self, client: Client, now: float) -> bool:
        """Count a wrong password; return whether the client is banned by it."""
        entry, rate = self.table.get(key_of(self.limit.terms.scope, client)), self.limit.terms.rate
        if rate is None or not entry.fail(rate, now):
            return False
        self._exceeded(entry, now)
        return True

    def left(self, entry: Entry) -> int:
        """Return the bytes that are left of the quota."""
        quota, begin = self.limit.terms.quota, self._calendar.begin(self._wall())
        assert quota is not None
        if begin < entry.period:  # the clock has jumped back, perhaps not for long
            entry.period, entry.later = begin, max(entry.period, entry.later)
        elif begin > entry.period:
            if begin != entry.later:
                entry.used = entry.marks = 0
            entry.period = begin
        return max(0, quota - entry.used)

    def spend(self, entry: Entry, size: int) -> None:
        """Count bytes of the quota."""
        entry.used += size
        if entry.used >= self._marks[entry.marks]:
            entry.marks = self._marks_of(entry)
            if self._on_quota is not None:
                self._on_quota(self.limit, entry.key, entry.used >= self._marks[1])
        self._note(entry)

    def _marks_of(self, entry: Entry) -> int:
        """Return how many marks of the quota a key has reached."""
        return sum(entry.used >= mark for mark in self._marks)

    def exhausted(self, entry: Entry, now: float) -> None:
        """Ban the clients of a key, if that is demanded, because one has used up the quota."""
        self._exceeded(entry, now)

    def meters(self, entry: Entry) -> tuple[Meter, Meter]:
        """Return the meters that the clients of a key share: of the bytes from them, and to them."""
        bandwidth = self.limit.terms.bandwidth
        assert bandwidth is not None
        if entry.meters is None:
            levels = entry.levels
            up, down = (levels[:2], levels[2:]) if levels is not None else (None, None)
            entry.meters = Meter(bandwidth, self._timers, up), Meter(bandwidth, self._timers, down)
        return entry.meters

    def _exceeded(self, entry: Entry, now: float) -> Rejection:
        ban = self.limit.terms.ban
        # A ban that lasts is not renewed by further clients, which it rejects anyway.
        if ban and entry.banned_until <= now:
            entry.banned_until = now + ban
            if not self.is_for_one:
                self.table.ban(entry)
            self._note(entry)
        return Rejection(self.limit, False, ban)

    @property
    def has_bans(self) -> bool:
        """True if a client is banned, or was when :meth:`banned` was called last. Safe from any thread."""
        return bool(self.table.banned)

    def count_bans(self, now: float) -> int:
        """Return the number of bans that have not ended. Safe from any thread."""
        # list() of a dict's values is one step for the interpreter; the relay thread may ban another one meanwhile.
        return sum(one.banned_until > now for one in list(self.table.banned.values()))

    def banned(self, most: int, now: float) -> list[Entry]:
        """Return what is banned, at most the last ones; the cost does not grow with the number of all keys."""
        banned = self.table.banned
        oldest = itertools.islice(banned.values(), _ENDED)
        # A list first, as each one changes the dict.
        for entry in [entry for entry in oldest if entry.banned_until <= now]:
            self.table.unban(entry)
        last = itertools.islice(reversed(banned.values()), most)
        return [entry for entry in last if entry.banned_until > now]

    # -- what is stored -----------------------------------------------------------------------------------------------

    def _note(self, entry: Entry) -> None:
        """Remember that an entry has changed."""
        if self._book is None:
            return
        # Once for each snapshot, which takes all that changes until then.
        if not self._changed:
            self._book.changed()
        self._changed.add(entry.key)

    @property
    def has_changed(self) -> bool:
        """True if :meth:`snapshot` has something to return."""
        return bool(self._changed)

    def snapshot(self, now: float, most: int) -> list[LedgerEntry]:
        """Return entries that have changed since they were returned last, at most so many."""
        changed, find = self._changed, self.table.find
        found = (find(changed.pop()) for _ in range(min(most, len(changed))))
        return self._stored([entry for entry in found if entry is not None], now)

    def entries(self, now: float, among: Iterable[Entry] | None = None) -> list[LedgerEntry]:
        """Return the entries with a ban or with bytes of the current period.

        :param now: monotonic seconds.
        :param among: entries of the table; ``None`` for all.
        """
        stored = self._stored(self.table.all() if among is None else among, now)
        return [entry for entry in stored if entry.banned_until or entry.used]

    def restore(self, entries: Iterable[LedgerEntry], now: float) -> None:
        """Take stored entries. A ban lasts as long as the limit now says at most, whatever the clock did."""
        terms, wall = self.limit.terms, self._wall()
        for stored in entries:
            if stored.limit != self.limit.name:
                continue
            banned = min(stored.banned_until - wall, terms.ban)
            is_current = terms.quota is not None and stored.used > 0 and stored.period >= self._calendar.begin(wall)
            if banned > 0 or is_current:
                entry = self.table.get(stored.key)
                if banned > 0:
                    entry.banned_until = now + banned
                    self.table.ban(entry)
                if is_current:
                    entry.used, entry.period = stored.used, stored.period
                    entry.marks = self._marks_of(entry)  # what was reached before was reported before

    def find(self, key: str) -> Entry | None:
        """Return the entry of a key, or of the key under which an address counts, if there is one."""
        entry = self.table.find(key)
        if entry is None and self.limit.terms.scope.kind in ("ip", "identity"):
            entry = self.table.find(self.key(Identity("tcp", key, plain_host(key))))
        return entry

    def is_too_fast(self, entry: Entry, now: float) -> bool:
        """Return whether the rate rejects the next client of a key."""
        return entry.arrival - now > self._slack

    def clear(self, key: str) -> bool:
        """Forget what was counted of a key but its open connections; return whether there was anything.

        :param key: as for :meth:`find`.
        """
        entry = self.find(key)
        if entry is None or not (entry.banned_until or entry.used or entry.arrival or entry.failures):
            return False
        entry.banned_until, entry.used, entry.marks, entry.arrival, entry.failures = 0.0, 0, 0, 0.0, None
        self.table.unban(entry)
        self._note(entry)
        return True

    def _stored(self, entries: Iterable[Entry], now: float) -> list[LedgerEntry]:
        name, wall, has_quota = self.limit.name, self._wall(), self.limit.terms.quota is not None
        begin = self._calendar.begin(wall)
        stored = []
        for entry in entries:
            if has_quota and entry.period != begin:
                self.left(entry)  # a period that is over counts no longer
            banned = wall + entry.banned_until - now if entry.banned_until > now else 0.0
            stored.append(LedgerEntry(name, entry.key, banned, entry.used, entry.period if has_quota else 0.0))
        return stored
