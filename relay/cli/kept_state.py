"""The file of ``state``: the bans and quotas of all tunnels outlive the process there."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

__all__ = ["state_kept"]


@contextlib.contextmanager
def state_kept(path: str | None) -> Iterator[None]:
    """Keep bans and quotas in a file while tunnels are opened and run.

    :param path: of the file, seen from the current directory; ``None`` or ``none`` for no file.
    """
    if path in (None, "none"):
        yield
        return
    from ..access.store import open_store
    from ..engine.ledger_keeper import set_store

    store = open_store(os.path.abspath(os.path.expanduser(str(path))))
    set_store(store)
    try:
        yield
    finally:
        set_store(None)
        if store is not None:
            store.close()
