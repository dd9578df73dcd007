"""What a carrier has while it is up, what makes it, and the states of a carrier: what SSH and SAM share with it."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Protocol, TypeVar

from ..errors import CarrierError
from ..streams.happy_eyeballs import Cancel

__all__ = ["AnyLink", "Connector", "Link", "Lost", "State", "Watcher"]


class State(enum.Enum):
    """What a carrier is doing."""

    CONNECTING = "connecting"
    UP = "up"
    BACKING_OFF = "backing off"
    FAILED = "failed"
    CLOSED = "closed"


class Link(Protocol):
    """What a carrier has while it is up; every method may be called from any thread."""

    def when_idle(self, call: Callable[[], object]) -> None:
        """Have ``call`` called once, in any thread, as soon as no stream is open; at once if none is."""

    def check(self) -> None:
        """Ask the other side for a sign of life, and say so if it has given none for too long. Never blocks."""

    def close(self) -> None:
        """End it and everything on it, within a second. Idempotent."""

    def abandon(self) -> None:
        """In a forked child: close the descriptors and nothing else."""


AnyLink = TypeVar("AnyLink", bound=Link)
Link_co = TypeVar("Link_co", bound="Link", covariant=True)
Lost = Callable[[CarrierError], object]
Watcher = Callable[[State, "Exception | None"], object]


class Connector(Protocol[Link_co]):
    """Makes the link of a carrier, in a thread of its own."""

    def connect(self, deadline: float, cancel: Cancel, lost: Lost) -> Link_co:
        """Connect, until ``deadline`` or until it is cancelled.

        :param lost: called once, in any thread, when the link that was returned is lost.
        :raises ConnectError: and :class:`CarrierError`, if another attempt may succeed; any other exception is final.
        """

    def alternative(self, error: Exception) -> str:
        """Connect in another way from now on, if there is one that may succeed where this one has failed.

        :param error: why no further attempt is to be made otherwise.
        :returns: the other way, for the log; empty if there is none.
        """

    def close(self) -> None:
        """There will be no further attempt."""
