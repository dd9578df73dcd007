"""Destinations of the embedded SAM bridge, from the session that creates one to its end."""

from __future__ import annotations

import math
import time
from collections import deque
from typing import TYPE_CHECKING

from ...addresses.destinations import PrivateKey
from ...eventloop.loop import Timer
from .stream import End, Offer
from .values import Settings
from .wire import Hub

if TYPE_CHECKING:
    from .conversation import Conversation
    from .router import Router

PENDING = 128  # unaccepted streams; i2pd's limit
KNOWN = 1000  # lease sets of other destinations that are remembered


class Acceptors:
    """The receivers that wait for the streams of a destination, and the streams that wait for a receiver."""

    def __init__(self) -> None:
        self.pending: dict[Offer, None] = {}
        self._armed: Conversation | None = None
        self._waiting: deque[Conversation] = deque()

    @property
    def accepting(self) -> bool:
        """``True`` if the next stream is accepted at once."""
        return self._armed is not None

    @property
    def forwarding(self) -> bool:
        """``True`` if FORWARD passes all streams to one program."""
        return self._armed is not None and self._armed.self_contained

    def offer(self, offer: Offer) -> None:
        """Handle a new stream."""
        acceptor = self._armed
        if acceptor is not None:
            if not acceptor.self_contained:
                self._armed = None
            self._give(acceptor, offer)
            self._arm_next()
        elif len(self.pending) < PENDING:
            self.pending[offer] = None
            offer.wait(time.monotonic())
        else:
            offer.refuse()

    def accept(self, acceptor: Conversation) -> None:
        """Add a receiver."""
        if self._armed is None:
            # In front: after a dismissal others may still wait, and the next ACCEPT is the one that i2pd serves first.
            self._waiting.appendleft(acceptor)
            self._arm_next()
        else:
            self._waiting.append(acceptor)

    def dismiss(self, acceptor: Conversation) -> None:
        """Remove a receiver. As with i2pd, no other one takes its place until the next ACCEPT."""
        if acceptor is self._armed:
            self._armed = None
        elif acceptor in self._waiting:
            self._waiting.remove(acceptor)

    def stop(self) -> None:
        """Drop the streams that wait, and accept none until the next ACCEPT or FORWARD."""
        self._armed = None
        self._waiting.clear()
        for offer in list(self.pending):
            offer.drop()

    def _arm_next(self) -> None:
        while self._armed is None and self._waiting:
            acceptor = self._waiting.popleft()
            # A single ACCEPT that gets a stream at once is used up by that, and leaves its place to the next one.
            if acceptor.self_contained or not self.pending:
                self._armed = acceptor
            while self.pending:
                offer = next(iter(self.pending))
                del self.pending[offer]
                self._give(acceptor, offer)
                if not acceptor.self_contained:
                    break

    def _give(self, acceptor: Conversation, offer: Offer) -> None:
        # The CONNECT of the other side is answered before bytes can flow: they would come ahead of its status line.
        offer.accept()
        acceptor.take(offer)


class Destination:
    """One life of a destination at one router. The next session with the same keys begins another.

    :param router: its router.
    :param key: its private key.
    :param born: monotonic seconds when it is ready.
    """

    def __init__(self, router: Router, key: PrivateKey, born: float) -> None:
        self.router = router
        self.key = key
        self.base64 = key.destination
        self.b32 = key.b32
        self.born = born
        self.published = born + self.settings.publish_time
        self.died = math.inf
        self.sessions: set[object] = set()
        self.ends: set[End] = set()
        self.acceptors = Acceptors()
        self._known: dict[str, Destination] = {}
        self._doom = Timer(self.hub.loop.timers, lambda now: self.die())

    @property
    def hub(self) -> Hub:
        """The thread and the buffers of the network."""
        return self.router.hub

    @property
    def settings(self) -> Settings:
        """The personality and the times of its router."""
        return self.router.settings

    @property
    def alive(self) -> bool:
        """``True`` until its end."""
        return self.died == math.inf

    # -- lease sets --

    def meet(self, other: Destination) -> None:
        """Remember the lease set of another destination."""
        # A dict keeps the place of a key that is set again; taken out first, the oldest one is always at the front.
        self._known.pop(other.b32, None)
        self._known[other.b32] = other
        if len(self._known) > KNOWN:
            del self._known[next(iter(self._known))]

    def knows(self, b32: str) -> bool:
        """Return whether it has met a destination, in its current life or an earlier one."""
        return b32 in self._known

    def mistaken(self, b32: str, current: Destination | None) -> Destination | None:
        """Return the earlier life of a destination whose lease set this one still uses; ``None`` if it does not.

        :param b32: address of the destination.
        :param current: its current life, if it has one.
        """
        old = self._known.get(b32)
        if old is None or old is current or old.alive:
            return None
        since = old.died if current is None else max(current.born, old.died)
        return old if time.monotonic() < since + self.settings.stale else None

    # -- its end --

    def doom(self, seconds: float) -> None:
        """End it after ``seconds``, even if it has sessions then."""
        now = time.monotonic()
        self._doom.start(now + seconds, now)

    def stop(self) -> None:
        """End its streams, and accept none until the next ACCEPT or FORWARD."""
        self.acceptors.stop()
        # A copy: each end takes itself out.
        for end in list(self.ends):
            self.router.end_stream(end)

    def die(self) -> None:
        """End it. Its sessions do not notice. Idempotent."""
        if self.alive:
            self.died = time.monotonic()
            self._doom.stop()
            self.stop()
            self.router.bury(self)

    def leave(self, session: object) -> None:
        """Remove a session that has ended; the destination ends with the last one."""
        self.sessions.discard(session)
        self.stop()
        if not self.sessions:
            self.die()
            self._known.clear()  # else each life would keep the earlier ones in memory
