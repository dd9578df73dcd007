"""The one who supervises a group of tunnels from outside: by default there is none, and nothing is told."""

from __future__ import annotations

import socket
from collections.abc import Sequence

__all__ = ["Supervisor"]


class Supervisor:
    """Told about what happens to a group. This one does nothing; :mod:`relay.cli.systemd_supervisor` has another."""

    def timeout(self) -> float | None:
        """Return the most seconds until it wants a turn of the main thread; ``None`` for none."""
        return None

    def sockets_of(self, name: str) -> Sequence[socket.socket]:
        """Return listening sockets that a tunnel may take over when it opens; they stay with their owner."""
        return ()

    def on_turn(self) -> None:
        """The main thread has handled what there was."""

    def on_reload(self) -> None:
        """A reload begins; on any thread, one at a time."""

    def on_reloaded(self, *, was_successful: bool) -> None:
        """The reload has ended, on the same thread."""
