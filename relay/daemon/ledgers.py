"""The bans and quotas of a running relay, as operators see and clear them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

__all__ = ["MOST_ROWS", "BanStatus", "Ledgers", "QuotaStatus"]

MOST_ROWS = 10_000
"""The rows of an answer at most: the bans that last longest, and the quotas of which most was used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BanStatus:
    """One ban.

    :param tunnel: the name of the tunnel.
    :param limit: the name of the limit that bans.
    :param key: the clients that count together: an address, a network, an identity, or ``*`` for all of the tunnel.
    :param until: its end, in seconds since 1970.
    """

    tunnel: str
    limit: str
    key: str
    until: float


@dataclass(frozen=True, slots=True, kw_only=True)
class QuotaStatus:
    """The use of one quota in the current period.

    :param tunnel: the name of the tunnel.
    :param limit: the name of the limit.
    :param key: as for :class:`BanStatus`.
    :param used: bytes.
    :param quota: the bytes that are allowed.
    :param since: when the period began, in seconds since 1970.
    """

    tunnel: str
    limit: str
    key: str
    used: int
    quota: int
    since: float


class Ledgers(Protocol):
    """The bans and quotas of the tunnels. Every method may be called from any thread."""

    def bans(self, tunnel: str | None = None, most: int = MOST_ROWS) -> Sequence[BanStatus]:
        """Return the bans of a tunnel, or of all; at most so many, those that last longest.

        :raises NotFoundError: if there is no such tunnel.
        """

    def quotas(self, tunnel: str | None = None) -> Sequence[QuotaStatus]:
        """Return what was used of the quotas of a tunnel, or of all; at most :data:`MOST_ROWS`.

        :raises NotFoundError: if there is no such tunnel.
        """

    def clear(self, kind: str, key: str, tunnel: str | None = None) -> int:
        """Forget bans or quotas. A limit that has both forgets both.

        :param kind: ``bans``, also for a client that a rate rejects, or ``quotas``.
        :param key: the clients that count together, or the address of one of them.
        :param tunnel: its name; ``None`` for all.
        :returns: how many were forgotten.
        :raises NotFoundError: if there is none.
        """
