"""The objects that all flows of one relay thread share."""

from __future__ import annotations

from ..eventloop.background import BUFFER, Client
from ..eventloop.loop import Loop
from ..eventloop.pipes import PipePool

__all__ = ["Workspace"]


class Workspace:
    """The loop, the pipes and the buffer that all flows of one thread share.

    :param loop: the thread's loop.
    :param pipes: its pipes, or ``None`` where there is no ``splice``.
    """

    __slots__ = ("loop", "pipes", "throttled", "_buffer", "_clients")

    def __init__(self, loop: Loop, pipes: PipePool | None) -> None:
        self.loop = loop
        self.pipes = pipes
        self.throttled = 0.0
        """Seconds for which flows waited for bandwidth."""
        self._buffer: memoryview | None = None  # most tunnels need none
        self._clients: set[Client] = set()

    @property
    def buffer(self) -> memoryview:
        """The memory for the handler being run; see :class:`relay.eventloop.background.Home`."""
        if self._buffer is None:
            self._buffer = memoryview(bytearray(BUFFER))
        return self._buffer

    def hold(self, client: Client) -> None:
        """Take an upgrade that runs in this thread."""
        self._clients.add(client)

    def release(self, client: Client) -> None:
        """Forget an upgrade. Idempotent."""
        self._clients.discard(client)

    def abandon(self) -> None:
        """In a forked child: only close the descriptors of the upgrades under way."""
        for client in self._clients:
            client.abandon()
        self._clients.clear()
