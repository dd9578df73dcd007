"""The interfaces between a group and those who watch it: a command, and a service manager. Both are silent here."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # each has a reporter
    from ..engine.records import Stats
    from .member import Snapshot


class Reporter:
    """Reports of a group on its tunnels and on itself; a command prints them. All in the main thread."""

    def on_start(self, members: Callable[[], Sequence[Snapshot]]) -> None:
        """The group begins to open its tunnels.

        :param members: returns them, in the order of the file; from any thread.
        """

    def timeout(self) -> float | None:
        """Return the most seconds until it wants a turn of the main thread; ``None`` for none."""
        return None

    def on_turn(self) -> None:
        """The main thread has handled what there was."""

    def on_opened(self, tunnel: Snapshot) -> None:
        """A tunnel listens for the first time."""

    def on_changed(self, tunnel: Snapshot) -> None:
        """A tunnel that listened has another listener or another target."""

    def on_postponed(self, name: str, problem: str, *, is_first: bool) -> None:
        """A tunnel waits for the server at which it is to listen.

        :param name: of the tunnel.
        :param problem: why, and that relay tries again.
        :param is_first: whether it is the first attempt that has failed.
        """

    def on_failed(self, name: str, error: Exception) -> None:
        """A tunnel or one of its hops has failed, and a retry cannot help."""

    def on_none_left(self) -> None:
        """All tunnels have failed."""

    def on_all_tried(self, listening: int, count: int) -> None:
        """Each of ``count`` tunnels has opened, has failed or waits."""

    def on_upgrade_failed(self, why: str) -> None:
        """The process was to take the place of another one, which goes on."""

    def log_from(self, level: int) -> None:
        """Log from a level on; from any thread.

        :param level: of :mod:`logging`.
        """

    def on_end(self, why: str, step: str) -> None:
        """The next step of the end has begun.

        :param why: the name of the signal, or another reason.
        :param step: in words.
        """

    def on_ended(self, stats: Stats) -> None:
        """All is closed.

        :param stats: the figures of all tunnels since the start.
        """

    def stop(self) -> None:
        """Leave the terminal as it was: the tunnels are about to close."""


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
