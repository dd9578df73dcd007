"""Listeners at an embedded bridge, their clients, and the reported states."""

from __future__ import annotations

import queue
import time
from typing import Any

from helpers import WAIT, Thread

from relay.addresses.destinations import Peer
from relay.addresses.i2p import I2PListen, I2PRouter
from relay.addresses.i2p_parser import parse_sam
from relay.api.i2p import i2p
from relay.streams.stream import Stream
from relay.testing import SAMBridge
from relay.transports.chain import network
from relay.transports.i2p.dialer import I2PFactory
from relay.transports.i2p.listener import I2PListener


def make_prompt(times: Any) -> None:
    """Remove the pauses that only real routers need."""
    times(back_off=(0.01, 0.05), session_rest=0.0, accept_again=(0.01, 0.05), probe_head_start=0.01)
    times(check_again=0.02, check_rarely=0.1, remembered=(0.0, 0.0))  # an embedded bridge forgets at once by default


class States:
    """The reported states, in order."""

    def __init__(self) -> None:
        self._told: queue.SimpleQueue[tuple[str, Exception | None]] = queue.SimpleQueue()

    def __call__(self, state: str, error: Exception | None) -> None:
        self._told.put((state, error))

    def wait_for(self, wanted: str) -> tuple[list[str], Exception | None]:
        """Wait for this one; returns those before it, and the error that came with it."""
        seen = []
        while True:
            state, error = self._told.get(timeout=WAIT)
            if state == wanted:
                return seen, error
            seen.append(state)


class Listening:
    """Makes listeners."""

    def __init__(self, bridge: SAMBridge) -> None:
        self._bridge = bridge
        self._made: list[I2PListener] = []

    def __call__(
        self,
        *,
        start: bool = True,
        sam: str | None = None,
        states: States | None = None,
        accept: str | None = None,
        allow: Any = None,
        deny: Any = (),
        **router: Any,
    ) -> I2PListener:
        """One that is started, unless the caller wants to start it."""
        place = I2PListen(I2PRouter(sam=parse_sam(sam or self._bridge.sam), **router), accept, allow, deny)
        made = I2PListener(place, network(), "here")
        self._made.append(made)
        if states is not None:
            made.subscribe(states)
        if start:
            made.start(WAIT)
        return made

    def close(self) -> None:
        """End all of them."""
        for one in self._made:
            one.close()
            one.join(WAIT)


class Clients:
    """Others who connect."""

    def __init__(self, bridge: SAMBridge) -> None:
        self._bridge = bridge
        self._factories: list[I2PFactory] = []

    def factory(self, there: I2PListener, **options: Any) -> I2PFactory:
        """For streams to a listener."""
        self._factories.append(i2p(there.dest, sam=self._bridge.sam, **options))
        return self._factories[-1]

    def connect(self, to: I2PListener | I2PFactory, text: bytes = b"") -> Stream:
        """A stream that says this."""
        factory = to if isinstance(to, I2PFactory) else self.factory(to)
        stream = factory(deadline=time.monotonic() + WAIT)
        stream.socket.settimeout(WAIT)
        if text:
            stream.socket.sendall(text)
        return stream

    @property
    def dest(self) -> str:
        """The destination that the last ones have come from."""
        return self._factories[-1].dest

    def close(self) -> None:
        """End them."""
        for one in self._factories:
            one.close()


def accept(there: I2PListener) -> tuple[Stream, Peer]:
    """The next stream and who it comes from."""
    stream, peer = Thread(there.accept).result()
    stream.socket.settimeout(WAIT)
    return stream, peer
