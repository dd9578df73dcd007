"""The ticket of a client that was let in: its place in each limit, and its shares of bytes, until its end."""

from __future__ import annotations

from collections.abc import Sequence

from .limiter import Limiter
from .meter import Meter
from .table import Entry


class Ticket:
    """The places of one client in the tables of the limits. Belongs to the relay thread.

    :param limiters: the limits.
    :param entries: the entry of the client in each, which has counted it.
    :param is_shaped: whether one of the limits is about bytes.
    """

    __slots__ = ("is_shaped", "_limiters", "_entries")

    def __init__(self, limiters: Sequence[Limiter], entries: Sequence[Entry], is_shaped: bool) -> None:
        self.is_shaped = is_shaped
        self._limiters = limiters
        self._entries = entries

    @classmethod
    def joined(cls, first: Ticket | None, second: Ticket) -> Ticket:
        """Return the ticket of a client that has the places of both; it replaces them."""
        if first is None:
            return second
        limiters, entries = (*first._limiters, *second._limiters), (*first._entries, *second._entries)
        return cls(limiters, entries, first.is_shaped or second.is_shaped)

    def leave(self) -> None:
        """Count the end of the client's connection. Must be called once."""
        for entry in self._entries:
            entry.connected -= 1
        # Only then can there be meters, so that most connections end without this look.
        if self.is_shaped:
            for entry in self._entries:
                if not entry.connected:
                    entry.drop_meters()

    @property
    def pace(self) -> float | None:
        """The bandwidth of each direction of this connection alone, bytes a second; ``None`` for no limit."""
        rates = [
            limiter.limit.terms.bandwidth
            for limiter in self._limiters
            if limiter.is_for_one and limiter.limit.terms.bandwidth is not None
        ]
        return min(rates, default=None)

    def meters(self) -> tuple[list[Meter], list[Meter]]:
        """Return the meters that it shares with others: of the bytes from the client, and to it."""
        pairs = [
            limiter.meters(entry)
            for limiter, entry in zip(self._limiters, self._entries, strict=True)
            if limiter.limit.terms.bandwidth is not None and not limiter.is_for_one
        ]
        return [up for up, _ in pairs], [down for _, down in pairs]

    def quotas(self) -> list[Quota]:
        """Return its quotas."""
        pairs = zip(self._limiters, self._entries, strict=True)
        return [Quota(limiter, entry) for limiter, entry in pairs if limiter.limit.terms.quota is not None]


class Quota:
    """The quota of a client, as its connection counts it.

    :param limiter: the limit.
    :param entry: of the client.
    """

    __slots__ = ("_limiter", "_entry")

    def __init__(self, limiter: Limiter, entry: Entry) -> None:
        self._limiter = limiter
        self._entry = entry

    @property
    def rule(self) -> str:
        """The text for records, once it is used up."""
        return f"limit {self._limiter.limit.name}"

    def left(self) -> int:
        """Return the bytes that are left."""
        return self._limiter.left(self._entry)

    def spend(self, size: int) -> None:
        """Count bytes."""
        self._limiter.spend(self._entry, size)

    def exhausted(self, now: float) -> None:
        """Ban the client if the limit demands it."""
        self._limiter.exhausted(self._entry, now)
