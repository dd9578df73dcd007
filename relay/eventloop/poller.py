"""Readiness of descriptors: ``epoll`` where there is one, the same over ``select.poll`` elsewhere."""

from __future__ import annotations

import math
import select
import sys
from typing import Protocol

# The four have the same values for epoll and poll, on every system that has either.
IN, OUT, ERR, HUP = select.POLLIN, select.POLLOUT, select.POLLERR, select.POLLHUP

END = getattr(select, "POLLRDHUP", 0)  # the peer has ended its direction; it need not be reported
READ = IN | END

# TCP's urgent data. Other systems take it out of the stream when it arrives, where it is lost as it always was.
PRI = select.POLLPRI if sys.platform == "linux" else 0


class Poller(Protocol):
    """The interface of :class:`select.epoll`. A mask of 0 reports ERR and HUP: a reset is seen without a read."""

    def register(self, fd: int, eventmask: int, /) -> None:
        """Watch a descriptor that is not yet watched."""

    def modify(self, fd: int, eventmask: int, /) -> None:
        """Change what is waited for."""

    def unregister(self, fd: int, /) -> None:
        """Watch it no longer."""

    def poll(self, timeout: float | None = None, maxevents: int = -1, /) -> list[tuple[int, int]]:
        """Wait for events, for at most ``timeout`` seconds (−1 or ``None``: for ever)."""

    def fileno(self) -> int:
        """Return a descriptor that is readable while there are events, or −1 if there is none."""

    def close(self) -> None:
        """Let the system's resources go."""


class PollPoller:
    """:class:`select.poll` with the manners of :class:`select.epoll`: level-triggered, seconds, a limit of events."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self.register = self._poll.register
        self.modify = self._poll.modify
        self.unregister = self._poll.unregister

    def poll(self, timeout: float | None = None, maxevents: int = -1, /) -> list[tuple[int, int]]:
        """Wait for events; all that are ready are returned, so that none starves behind the limit."""
        if timeout is None or timeout < 0:
            return self._poll.poll()
        # Rounded up: a timeout rounded down to 0 would spin until the deadline has come.
        return self._poll.poll(math.ceil(timeout * 1000))

    def fileno(self) -> int:
        """Return −1: the set of descriptors is in this process."""
        return -1

    def close(self) -> None:
        """Do nothing, for the same reason."""


def make_poller() -> Poller:
    """The best poller of this system."""
    epoll = getattr(select, "epoll", None)
    return epoll() if epoll is not None else PollPoller()
