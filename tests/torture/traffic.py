"""Clients at several tunnels at once, in one thread, while a round injects faults."""

from __future__ import annotations

import random
import select
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from .driver import Driver, Pair, Relay
from .programs import FaultError

_PROBE = 10.0  # seconds after which a probe that has no reply is tried again
_STEP = 0.02  # seconds between two steps of the traffic
_PER_TUNNEL = 1_000_000  # numbers of connections


class Traffic:
    """The clients.

    :param entrances: the tunnels, by name.
    :param seed: decides what the clients do. Their steps depend on time, so that a round has a seed of its own.
    :param at_once: connections of a tunnel.
    :param tell: called with a line about each event, to explain a failure.
    :param log: returns what the relay has logged, for errors.
    :param deadline: seconds after a fault for each tunnel to serve a new client.
    """

    def __init__(
        self,
        entrances: Mapping[str, Relay],
        seed: int,
        at_once: int,
        tell: Callable[[str], object],
        log: Callable[[], str],
        deadline: float = 60.0,
    ) -> None:
        self._begun = time.monotonic()
        self._deadline = deadline
        self._chance = random.Random(seed)
        self._entrances = entrances
        self._names = list(entrances)
        self._tell = tell
        self._log = log
        self._next_step = 0.0
        self.drivers = {
            name: Driver(
                entrance, self._chance.getrandbits(32), _PER_TUNNEL, 0, at_once=at_once, first=number * _PER_TUNNEL
            )
            for number, (name, entrance) in enumerate(entrances.items())
        }

    def note(self, text: str) -> None:
        """Tell about an event, with the seconds since the beginning."""
        self._tell(f"{time.monotonic() - self._begun:7.2f} s: {text}")

    def run_for(self, seconds: float, *, stepping: bool = True) -> None:
        """Move bytes.

        :param seconds: how long.
        :param stepping: whether clients come, change what they do, and go.
        """
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self._turn(left, stepping=stepping)

    def _turn(self, most: float, *, stepping: bool = True) -> None:
        """Move what can be moved, and wait for a moment."""
        now = time.monotonic()
        if stepping and now >= self._next_step:
            self._next_step = now + _STEP
            self.drivers[self._chance.choice(self._names)].step()
        did = False
        for driver in self.drivers.values():
            did |= driver.move()
            driver.forget_targets()
        if not did:
            poller = select.poll()
            for driver in self.drivers.values():
                driver.watch(poller)
            poller.poll(min(most, _STEP) * 1000)

    def serve(self, names: Iterable[str], when: str) -> None:
        """Wait until each of some tunnels has served a new client.

        :param when: the text for an error.
        :raises FaultError: if the deadline passes.
        """
        begun = time.monotonic()
        missing: dict[str, tuple[Pair, float] | None] = dict.fromkeys(names)
        while missing:
            self._turn(_STEP)
            for name, probe in list(missing.items()):
                now = time.monotonic()
                if probe is not None and probe[0].is_proven:
                    del missing[name]
                    self.note(f"{name} serves, {when}")
                elif probe is None or probe[0].is_over or now > probe[1]:
                    pair = self.drivers[name].probe()
                    missing[name] = None if pair is None else (pair, now + _PROBE)
            if time.monotonic() - begun > self._deadline:
                raise FaultError(f"{', '.join(missing)} does not serve, {when}:\n{self._log()}")

    def excuse(self, names: Sequence[str]) -> None:
        """Allow resets at some tunnels: of the connections that are open, and of those that begin from now on."""
        for name in names:
            self._entrances[name].may_fail = True
            self.drivers[name].excuse()

    def excuse_new(self, names: Sequence[str]) -> None:
        """Allow resets at some tunnels of the connections that wait for relay to connect, or begin from now on."""
        for name in names:
            self._entrances[name].may_fail = True
            self.drivers[name].excuse_new()

    def demand(self, names: Sequence[str]) -> None:
        """Allow no resets at some tunnels of the connections that begin from now on."""
        for name in names:
            self._entrances[name].may_fail = False

    def finish(self) -> None:
        """Let each connection come to its end."""
        for driver in self.drivers.values():
            driver.finish()

    def close(self) -> None:
        """Reset every connection that is left. Idempotent."""
        for driver in self.drivers.values():
            driver.close()

    @property
    def finished(self) -> int:
        """The number of connections that have come to their end."""
        return sum(driver.finished for driver in self.drivers.values())

    @property
    def bytes(self) -> int:
        """The bytes that these connections have received."""
        return sum(driver.bytes for driver in self.drivers.values())
