"""The order of connection attempts after RFC 8305 ("happy eyeballs"): no I/O, and no clock.

:class:`relay.streams.connect.ConnectRace` drives it.
"""

from __future__ import annotations

from collections.abc import Iterable

from ..eventloop.sockets import Endpoint

ATTEMPT_DELAY = 0.25  # seconds before the next address is tried beside the last one; RFC 8305, section 5


def interleave(endpoints: Iterable[Endpoint]) -> list[Endpoint]:
    """Order addresses so that families alternate, the first one's family first (RFC 8305, section 4)."""
    families: dict[int, list[Endpoint]] = {}
    # A resolver may return an address twice; the second attempt there would be in vain.
    for endpoint in dict.fromkeys(endpoints):
        families.setdefault(endpoint.family, []).append(endpoint)
    queues = list(families.values())
    longest = max(map(len, queues), default=0)
    return [queue[place] for place in range(longest) for queue in queues if place < len(queue)]


class HappyEyeballs:
    """The order and the times of the attempts to reach one target.

    Its driver asks :meth:`next` for an address, reports each failed attempt to :meth:`failed`, and asks again when an
    attempt fails or at the time in :attr:`again`.

    :param endpoints: the addresses, in the resolver's order.
    """

    __slots__ = ("_waiting", "_running", "again", "error")

    def __init__(self, endpoints: Iterable[Endpoint]) -> None:
        # Reversed, as it is taken from the end.
        self._waiting = interleave(endpoints)[::-1]
        self._running = 0
        self.again: float | None = None
        self.error: OSError | None = None

    def next(self, now: float) -> Endpoint | None:
        """Return the address to try now, or ``None`` if it is not yet time or none is left."""
        if not self._waiting or (self.again is not None and now < self.again):
            return None
        endpoint = self._waiting.pop()
        self._running += 1
        self.again = now + ATTEMPT_DELAY if self._waiting else None
        return endpoint

    def failed(self, error: OSError) -> None:
        """Note that one attempt failed: the next may begin at once.

        The first error is kept, for it belongs to the address that the resolver prefers.
        """
        self._running -= 1
        self.again = None
        if self.error is None:
            self.error = error

    @property
    def lost(self) -> bool:
        """If ``True``, no attempt runs and no address is left."""
        return not self._running and not self._waiting
