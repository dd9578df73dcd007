"""The gate of a tunnel: decides about each client, before relay connects to the target for it."""

from __future__ import annotations

import functools
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence

from ..eventloop.loop import Timers
from ..streams.identity import Identity
from .ledger import Book, LedgerEntry
from .limit import LOGIN, MOST_LIMITS, Limit
from .limiter import Limiter, OnQuota, Rejection
from .policy import ClientPolicy, Denial
from .table import Entry
from .ticket import Ticket

_NOBODY = Identity("unknown", "")
_MOST_KNOWN = 4096  # addresses whose keys are remembered
_TARPIT = 60.0  # seconds that a client is kept at most


@functools.cache  # made when the first client guesses, and not at the import
def _guesses() -> Limit:
    """Return the limit of exposed listeners whose policy has none of this name."""
    return Limit(name=LOGIN, per="ip", rate="5/1m", ban="1m")


class Gate:
    """Decides about the clients of one tunnel. Belongs to the relay thread.

    It is the :class:`~relay.access.ledger.Ledger` of the tunnel.

    :param policy: what the tunnel demands.
    :param timers: of the thread's loop.
    :param monotonic: returns the time in monotonic seconds, for the ledger.
    :param book: keeps the ledger over a restart; ``None`` for nothing.
    :param on_quota: called when most of the quota of a key is used, and when it is used up, once in each period.
    """

    def __init__(
        self,
        policy: ClientPolicy,
        timers: Timers,
        monotonic: Callable[[], float] = time.monotonic,
        book: Book | None = None,
        on_quota: OnQuota | None = None,
    ) -> None:
        self._timers = timers
        self._monotonic = monotonic
        self._book = book
        self._on_quota = on_quota
        self._counting: tuple[Limiter, ...] = ()
        self._keys: dict[tuple[object, ...], Sequence[str]] = {}  # by name and address
        self._guesses: Limiter | None = None
        # Limits of single clients, which the program has named. Those of open connections are known as long as these
        # hold them, and so are the ones used last, the oldest first.
        self._named: weakref.WeakValueDictionary[Limit, Limiter] = weakref.WeakValueDictionary()
        self._used_last: OrderedDict[Limit, Limiter] = OrderedDict()
        self.change(policy)
        # Bans of guessed passwords that outlived a restart must hold before the first new guess makes the limit.
        if self._guesses is None and book is not None and book.entries(LOGIN):
            self._guesses = self._limiter(_guesses(), None)

    def change(self, policy: ClientPolicy) -> None:
        """Decide by another policy from now on; a limit whose name and clients stay keeps what it has counted.

        So does one whose default name is another one only because its values are, if no second one is like it.
        """
        self._policy = policy
        before = {limiter.limit.name: limiter for limiter in self._own()}
        names = {limit.name for limit in policy.limits}
        left = [limiter for name, limiter in before.items() if name not in names]
        for limit in policy.limits:
            if limit.name not in before:
                like = [limiter for limiter in left if limit.is_like(limiter.limit)]
                # Only a pair that is clear on both sides: else a limit would go on with the counts of another one.
                if len(like) == 1 and sum(limit.is_like(other) for other in policy.limits) == 1:
                    before[limit.name] = like[0]
        found = {limit.name: self._limiter(limit, before.get(limit.name)) for limit in policy.limits}
        self._guesses = found.pop(LOGIN, None)
        if self._guesses is None and LOGIN in before:
            self._guesses = self._limiter(_guesses(), before[LOGIN])
        self._counting = tuple(found.values())
        # They are of the limits before.
        self._keys = {}
        self._is_shaping = _is_shaping(policy.limits)

    def _limiter(self, limit: Limit, before: Limiter | None) -> Limiter:
        if before is not None and before.change(limit, self._monotonic()):
            return before
        made = Limiter(limit, self._timers, book=self._book, on_quota=self._on_quota)
        if self._book is not None:
            made.restore(self._book.entries(limit.name), self._monotonic())
        return made

    @property
    def is_idle(self) -> bool:
        """True if it has nothing to decide and nothing to remember."""
        return self._policy.is_empty and self._guesses is None

    def screen(self, identity: Identity, now: float, are_rules_read: bool = True) -> Denial | None:
        """Decide about a client before its handshake, by its address alone, and count it for rates per address.

        So a client that its address bars costs no handshake. One that passes is for :meth:`enter` after its handshake.

        :param identity: who it is, as its address says.
        :param now: monotonic seconds.
        :param are_rules_read: whether the rules decide now; else they do after the handshake only.
        :returns: why it is rejected; ``None`` if it may shake hands.
        """
        if (denial := self.bar(identity, now, are_rules_read)) is not None:
            return denial
        counted: list[tuple[Limiter, Entry]] = []
        for limiter in self._counting:
            if limiter.is_by_address:
                found = limiter.admit(limiter.key(identity), now)
                if isinstance(found, Rejection):
                    for other, entry in counted:
                        # A client that one limit rejects counts in none: the next one must not be rejected because of
                        # it.
                        other.withdraw(entry)
                    return _denial(found)
                counted.append((limiter, found))
        for _, entry in counted:
            entry.connected -= 1  # it connects after its handshake, if it does
        return None

    def enter(self, identity: Identity | None, now: float, is_screened: bool = False) -> Denial | Ticket | None:
        """Decide about a client.

        :param identity: who it is; ``None`` if nothing is known.
        :param now: monotonic seconds.
        :param is_screened: whether :meth:`screen` has counted it for rates per address.
        :returns: why it is rejected. If it may connect: what it holds until its end, or ``None``.
        """
        rules = self._policy.rules
        if rules is not None:
            # The rules first: a client that they deny is in no count, and its address in no table.
            decision = rules.decide(identity)
            if not decision.is_allowed:
                return Denial(decision.rule)
        client = identity or _NOBODY
        if self._guesses is not None and (rejection := self._guesses.ban(client, now)) is not None:
            return _denial(rejection)
        if not self._counting:
            return None
        return _count(self._counting, self._keys_of(client), now, self._is_shaping, is_screened=is_screened)

    def _keys_of(self, client: Identity) -> Sequence[str]:
        """Return the key of a client in each limit. Those of a client that is only an address are remembered."""
        if client.kind != "tcp":
            return [limiter.key(client) for limiter in self._counting]
        who = client[1:3]
        keys = self._keys.get(who)
        if keys is None:
            if len(self._keys) >= _MOST_KNOWN:
                self._keys.clear()
            keys = self._keys[who] = [limiter.key(client) for limiter in self._counting]
        return keys

    def enter_within(
        self, limits: Sequence[Limit], identity: Identity | None, now: float, ticket: Ticket | None
    ) -> Denial | Ticket:
        """Decide about a client by further limits. Equal ones count together.

        :param limits: the limits.
        :param identity: who it is; ``None`` if nothing is known.
        :param now: monotonic seconds.
        :param ticket: what the client already holds.
        :returns: why it is rejected; then it still holds that ticket. Else the ticket that replaces it.
        """
        limiters = [self._named_limiter(limit) for limit in limits]
        client = identity or _NOBODY
        counted = _count(limiters, [limiter.key(client) for limiter in limiters], now, _is_shaping(limits))
        return Ticket.joined(ticket, counted) if isinstance(counted, Ticket) else counted

    def _named_limiter(self, limit: Limit) -> Limiter:
        limiter = self._named.get(limit)
        if limiter is None:
            limiter = self._named[limit] = self._limiter(limit, None)
        # Held beyond the last client with it, or a client that connects again and again would begin with a full rate
        # each time.
        self._used_last[limit] = limiter
        self._used_last.move_to_end(limit)
        if len(self._used_last) > MOST_LIMITS:
            self._used_last.popitem(last=False)
        return limiter

    def bar(self, identity: Identity | None, now: float, are_rules_read: bool = True) -> Denial | None:
        """Return why a client is rejected before anything is known of it but its address; it is not counted.

        :param identity: who it is, as its address says; ``None`` if nothing is known.
        :param now: monotonic seconds.
        :param are_rules_read: whether the rules decide now; else only a ban does.
        """
        rules = self._policy.rules
        if rules is not None and are_rules_read and identity is not None:
            decision = rules.decide_by_address(identity)
            if not decision.is_allowed:
                return Denial(decision.rule)
        client = identity or _NOBODY
        for limiter in self._own():
            if limiter.is_by_address and (rejection := limiter.ban(client, now)) is not None:
                return _denial(rejection)
        return None

    def login_failed(self, identity: Identity | None, now: float, is_exposed: bool) -> Limit | None:
        """Count a wrong password; return the limit that bans the client for it, if one does.

        :param identity: who has sent it.
        :param now: monotonic seconds.
        :param is_exposed: whether other machines can reach the listener, so that there is a limit by default.
        """
        if self._guesses is None:
            if not is_exposed:
                return None
            self._guesses = self._limiter(_guesses(), None)
        return self._guesses.limit if self._guesses.fail(identity or _NOBODY, now) else None

    # -- the ledger ---------------------------------------------------------------------------------------------------

    @property
    def has_changed(self) -> bool:
        """True if :meth:`snapshot` has something to return."""
        return any(limiter.has_changed for limiter in self._all())

    def snapshot(self, most: int) -> list[LedgerEntry]:
        """Return about so many of the entries that have changed since they were returned last.

        A ban that was cleared has 0 as its end.
        """
        now, found = self._monotonic(), list[LedgerEntry]()
        for limiter in self._all():
            found += limiter.snapshot(now, most - len(found))
            if len(found) >= most:
                break
        return found

    @property
    def has_bans(self) -> bool:
        """True if a client may be banned. Safe from any thread."""
        return bool(self._named) or any(limiter.has_bans for limiter in self._own())

    def count_bans(self) -> dict[str, int]:
        """Return the number of clients that each limit bans now, by its name. Safe from any thread."""
        now, counts = self._monotonic(), dict[str, int]()
        # References first: another thread may drop a limiter while this one walks through the dict.
        named = [reference() for reference in self._named.valuerefs()]
        for limiter in (*self._own(), *(one for one in named if one is not None)):
            if limiter.limit.terms.ban or limiter.has_bans:
                name = limiter.limit.name
                counts[name] = counts.get(name, 0) + limiter.count_bans(now)
        return counts

    def limiters(self) -> tuple[Limiter, ...]:
        """Return its limits at work."""
        return self._all()

    def _own(self) -> tuple[Limiter, ...]:
        return self._counting if self._guesses is None else (*self._counting, self._guesses)

    def _all(self) -> tuple[Limiter, ...]:
        return (*self._own(), *self._named.values())


def _is_shaping(limits: Iterable[Limit]) -> bool:
    """Return whether one of the limits is about bytes."""
    return any(limit.terms.bandwidth or limit.terms.quota for limit in limits)


def _count(
    limiters: Sequence[Limiter], keys: Sequence[str], now: float, is_shaped: bool, *, is_screened: bool = False
) -> Denial | Ticket:
    """Count a client by each limit, or by none of them if one rejects it.

    :param keys: of the client, one for each limit.
    """
    counted: list[Entry] = []
    for limiter, key in zip(limiters, keys, strict=True):
        found = limiter.admit_screened(key, now) if is_screened and limiter.is_by_address else limiter.admit(key, now)
        if isinstance(found, Rejection):
            for other, entry in zip(limiters, counted, strict=False):
                if is_screened and other.is_by_address:
                    entry.connected -= 1  # the handshake still counts for the rate
                else:
                    other.withdraw(entry)
            return _denial(found)
        counted.append(found)
    return Ticket(limiters, counted, is_shaped)


def _denial(rejection: Rejection) -> Denial:
    seconds = min(rejection.seconds or _TARPIT, _TARPIT)
    return Denial(rejection.rule, rejection.limit.terms.action, seconds)
