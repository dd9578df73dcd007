"""The bans and quotas of all tunnels: the file of ``state`` keeps them over a restart, an upgrade hands them over."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from ..engine.outlets import Outlets

if TYPE_CHECKING:  # most commands keep nothing
    from ..access.ledger import LedgerEntry
    from ..access.store import Store

_PART = 1000  # entries for which the store holds its lock

Entries = Mapping[str, "Sequence[LedgerEntry]"]  # by the name of their tunnel


class KeptState:
    """The store of a process. One process at a time has the file, so an upgrade releases it for the next one.

    :param outlets: of the tunnels whose state it keeps.
    :param path: of the file, seen from the current directory; ``None`` or ``none`` for no file.
    :param handed: what the process before this one has handed over.
    """

    def __init__(self, outlets: Outlets, path: str | None, handed: Entries | None = None) -> None:
        self._path = None if path in (None, "none") else os.path.abspath(os.path.expanduser(str(path)))
        # Known entries change as in a file, so that a tunnel that is opened again has no ban that was lifted since.
        self._handed = {name: {(one.limit, one.key): one for one in found} for name, found in (handed or {}).items()}
        self._store: Store | None = None
        self._lent: Store | None = None  # closed, with what it had
        self.take(handed or {})
        self._outlets = outlets
        outlets.store = self if self._path is not None or self._handed else None

    def entries(self, tunnel: str, limit: str) -> Sequence[LedgerEntry]:
        """Return the entries of a limit of a tunnel."""
        if (store := self._store or self._lent) is not None:
            return store.entries(tunnel, limit)
        return [entry for entry in [*self._handed.get(tunnel, {}).values()] if entry.limit == limit]

    def put(self, tunnel: str, entries: Iterable[LedgerEntry]) -> None:
        """Write entries, later. While there is no file, they are dropped, except those that were handed over."""
        if (store := self._store) is not None:
            return store.put(tunnel, entries)
        handed = self._handed.get(tunnel, {})
        for entry in entries:
            if (key := (entry.limit, entry.key)) in handed:
                handed[key] = entry

    def vacate(self, entries: Entries | None = None) -> None:
        """Write the last entries, and close the file; what it had is known until :meth:`take`.

        :param entries: of all tunnels.
        """
        store, self._store = self._store, None
        if store is not None:
            _put(store, entries or {})
            store.close()
            self._lent = store

    def take(self, entries: Entries) -> None:
        """Open the file, if there is to be one, and write entries.

        :param entries: of all tunnels.
        """
        self._lent = None
        if self._path is not None and self._store is None:
            from ..access.store import open_store

            self._store = open_store(self._path)
            if self._store is not None:
                _put(self._store, entries)

    def close(self) -> None:
        """Write what waits, and close the file. Idempotent."""
        self._outlets.store = None
        self.vacate()


def _put(store: Store, entries: Entries) -> None:
    for tunnel, found in entries.items():
        for start in range(0, len(found), _PART):
            store.put(tunnel, found[start : start + _PART])


@contextlib.contextmanager
def state_kept(outlets: Outlets, path: str | None, handed: Entries | None = None) -> Iterator[KeptState]:
    """Keep bans and quotas while tunnels are opened and run; the parameters are those of :class:`KeptState`."""
    with contextlib.closing(KeptState(outlets, path, handed)) as state:
        yield state
