"""A tunnel that accepts no client at first: one that was paused in the process that this one replaces."""

from __future__ import annotations

from typing import Any

from ..streams.upgrade_listener import UpgradeListener
from .relay_thread import RelayThread
from .tunnel import Tunnel

__all__ = ["PausedTunnel"]


class PausedTunnel(Tunnel):
    """A tunnel whose clients wait in the listen backlog until :meth:`resume`."""

    def _start(self, *arguments: Any) -> RelayThread:
        return _PausedRelayThread(*arguments)


class _PausedRelayThread(RelayThread):
    def on_start(self, now: float) -> None:
        """Accept no client yet."""
        if isinstance(self._receive, UpgradeListener):
            self._receive.deliver(None, self.workspace)  # which accepts by itself until then
        self._pause(close=False)
