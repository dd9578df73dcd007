"""Outlets of the tunnels of one process, beside the log: the access log, and the store of bans and quotas."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from ..access.ledger import LedgerEntry
from .records import ConnectionRecord


class LedgerStore(Protocol):
    """The store; see :class:`relay.access.store.Store`."""

    def entries(self, tunnel: str, limit: str, /) -> Sequence[LedgerEntry]:
        """Return the entries of a limit of a tunnel."""

    def put(self, tunnel: str, entries: Iterable[LedgerEntry], /) -> None:
        """Write entries, later."""


class Outlets:
    """The outlets of one process, which its tunnels share.

    The thread that owns the log and the store sets the fields; the relay threads read each once when they need it. So
    no lock is needed, and a change reaches each tunnel.
    """

    __slots__ = ("on_ended", "store")

    def __init__(
        self, on_ended: Callable[[str, ConnectionRecord], object] | None = None, store: LedgerStore | None = None
    ) -> None:
        self.on_ended = on_ended
        """Called in the relay threads with the name of the tunnel and the record of each connection that ends. It must
        not block or raise."""
        self.store = store
        """Keeps the bans and quotas of the tunnels that are made from then on."""
