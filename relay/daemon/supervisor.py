"""The interface between a group of tunnels and a service manager, with an implementation for none."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence


class Supervisor:
    """Events of a group, for a service manager. This one does nothing."""

    is_managed = False
    """Whether there is a service manager."""

    def environment(self) -> Mapping[str, str]:
        """Return the variables with which another process finds the service manager."""
        return {}

    def on_handed_over(self, process: int) -> None:
        """Another process has taken the place of this one; on a thread of its own. Nothing follows.

        :param process: its ID.
        """

    def timeout(self) -> float | None:
        """Return the most seconds until it wants a turn of the main thread; ``None`` for none."""
        return None

    def sockets_of(self, name: str) -> Sequence[socket.socket]:
        """Return listening sockets that a tunnel may take over when it opens; they stay with their owner."""
        return ()

    def on_vacated(self, name: str) -> None:
        """A tunnel has closed its listener for another one; on the thread of the reload."""

    def on_turn(self) -> None:
        """The main thread has handled what there was."""

    def on_reload(self) -> None:
        """A reload begins; on any thread, one at a time."""

    def on_reloaded(self, *, was_successful: bool) -> None:
        """The reload has ended, on the same thread."""
