"""Run random schedules: ``python -m tests.torture --minutes 5 --seed 1 --relays tcp,tls``.

The seed decides each schedule. A failure prints the relay, its seed and the smallest schedule of that seed that fails.
``--relays crashes`` kills and stops processes instead; see ``crashes.py``. ``--relays network`` lets the network fail,
``--relays network-i2p`` also the one of an I2P router; see ``network.py``. These two need root. ``--relays programs``
kills the connections of real programs; see ``real_programs.py``.

``tests/support`` has to be in ``PYTHONPATH``.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import functools
import secrets
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from namespace import isolate

from relay.process import start
from relay.testing import check_leaks

from . import crashes, network
from .driver import Driver
from .faulty import FAULTY
from .real_programs import RealPrograms
from .relays import RELAYS
from .resumed import RESUMED, crash_of_router, routers
from .traffic import Traffic

_ALL = {**RELAYS, **RESUMED, **FAULTY}
_CRASHES = "crashes"
_PROGRAMS = "programs"
_RESUME = "resume"  # all of them
_NETWORKS = ("network", "network-i2p")
_NOTES = 40  # steps that are printed with a failure
_TRIES = 12  # smaller schedules that are tried after a failure
_LEAVE = 10.0  # seconds that threads, descriptors and processes may take to go


class Result:
    """The figures of many schedules."""

    def __init__(self) -> None:
        self.schedules = self.connections = self.bytes = 0
        self.faults: collections.Counter[str] = collections.Counter()

    def __str__(self) -> str:
        faults = ", ".join(f"{count} {kind}" for kind, count in self.faults.items() if count)
        text = f"{self.schedules} schedules, {self.connections} connections, {self.bytes >> 20} MiB"
        return f"{text}; {faults}" if faults else text

    def add(self, done: Driver | Traffic) -> None:
        """Add the figures of a schedule."""
        self.schedules += 1
        self.connections += done.finished
        self.bytes += done.bytes


def run(name: str, seed: int, connections: int, steps: int, result: Result, note: Callable[[str], object]) -> None:
    """Run one schedule.

    :raises AssertionError: if the relay has broken a rule, or left something behind.
    """
    with check_leaks(_LEAVE), tempfile.TemporaryDirectory() as folder, _ALL[name](Path(folder), seed) as rig:
        driver = Driver(rig, seed, connections, steps, note)
        try:
            driver.run()
        finally:
            result.faults.update(rig.faults())
    result.add(driver)


def crash(seed: int, faults: int, result: Result, counts: crashes.FaultCounts, note: Callable[[str], object]) -> None:
    """Run one round of crash faults.

    :raises AssertionError: if a rule is broken, a tunnel does not recover, or something is left behind.
    """
    with check_leaks(_LEAVE), crashes.world() as made:
        round_ = crashes.Crashes(made, seed, faults, note, counts)
        round_.run()
    result.add(round_.traffic)


def disturb(
    seed: int, events: int, result: Result, counts: network.NetworkFaults, note: Callable[[str], object], *, i2p: bool
) -> None:
    """Run one round of faults of the network. This process has been isolated.

    :raises AssertionError: if a rule is broken, a tunnel does not recover, or something is left behind.
    """
    with check_leaks(_LEAVE), network.world(i2p=i2p) as made:
        round_ = network.Faults(made, seed, events, note, counts)
        round_.run()
    result.add(round_.traffic)


def smallest(name: str, seed: int, connections: int, steps: int) -> tuple[int, int]:
    """Return the numbers of connections and steps of a smaller schedule that fails too, if one does."""
    for _ in range(_TRIES):
        for fewer in ((max(1, connections // 2), steps), (connections, steps // 2), (connections, steps * 3 // 4)):
            if fewer == (connections, steps) or not fewer[1]:
                continue
            try:
                run(name, seed, *fewer, Result(), lambda text: None)
            except Exception:  # noqa: BLE001  (any failure is one)
                connections, steps = fewer
                break
        else:
            break
    return connections, steps


def main() -> int:
    """Run schedules until the time is over; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1 << 32))
    alone = ", ".join((_CRASHES, _PROGRAMS, *_NETWORKS))
    some = f"some of {', '.join(_ALL)}, and {_RESUME} for all of those; or one of {alone}"
    parser.add_argument("--relays", default=",".join(_ALL), help=some)
    parser.add_argument("--connections", type=int, default=100)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--faults", type=int, default=10, help=f"of a round of {_CRASHES}, {_PROGRAMS} or a network")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that all programs end
    if given.relays in _NETWORKS:
        isolate()  # before there is another thread
    with start(["true"]) as process:  # the thread that makes all children lives as long as the program
        process.wait()
    if given.relays == _CRASHES:
        return run_rounds(_CRASHES, given.minutes, given.seed, given.faults, crash, crashes.FaultCounts())
    if given.relays == _PROGRAMS:
        return run_programs(given.seed, given.faults)
    if given.relays in _NETWORKS:
        round_ = functools.partial(disturb, i2p=given.relays == "network-i2p")
        return run_rounds(given.relays, given.minutes, given.seed, given.faults, round_, network.NetworkFaults())
    names = [name for word in given.relays.split(",") for name in (RESUMED if word == _RESUME else [word])]
    with routers() if "resume-i2pd" in names else contextlib.nullcontext():
        return run_schedules(names, given)


def run_schedules(names: list[str], given: argparse.Namespace) -> int:
    """Run schedules of each relay until the time is over; return the exit status."""
    results = {name: Result() for name in names}
    until = time.monotonic() + given.minutes * 60
    seed = given.seed
    while time.monotonic() < until:
        for name in names:
            notes: collections.deque[str] = collections.deque(maxlen=_NOTES)
            try:
                run(name, seed, given.connections, given.steps, results[name], notes.append)
            except Exception as error:  # noqa: BLE001  (any failure is one)
                if crash := crash_of_router(name):
                    print(f"{name}, seed {seed}: {crash}")
                    continue
                print(f"{name}, seed {seed}: {error}", *notes, sep="\n")
                connections, steps = smallest(name, seed, given.connections, given.steps)
                print(f"again: --relays {name} --seed {seed} --connections {connections} --steps {steps}")
                return 1
        seed += 1
    for name, result in results.items():
        print(f"{name}: {result}, seeds {given.seed} to {seed - 1}")
    return 0


def run_rounds(
    name: str,
    minutes: float,
    seed: int,
    faults: int,
    round_: Callable[..., None],
    counts: crashes.FaultCounts | network.NetworkFaults,
) -> int:
    """Run rounds of faults until the time is over; return the exit status."""
    result = Result()
    until = time.monotonic() + minutes * 60
    first = seed
    while time.monotonic() < until:
        notes: collections.deque[str] = collections.deque(maxlen=_NOTES)
        try:
            round_(seed, faults, result, counts, notes.append)
        except Exception as error:  # noqa: BLE001  (any failure is one)
            print(f"{name}, seed {seed}: {error}", *notes, sep="\n")
            print(f"again: --relays {name} --seed {seed} --faults {faults}")
            return 1
        seed += 1
    print(f"{name}: {result}, seeds {first} to {seed - 1}; {counts}")
    return 0


def run_programs(seed: int, kills: int) -> int:
    """Run real programs over both backends of SSH, with so many kills of each; return the exit status."""
    for backend in ("paramiko", "openssh"):
        with tempfile.TemporaryDirectory() as folder, RealPrograms(Path(folder), backend, seed, kills) as programs:
            try:
                print(f"{backend}: {programs.run()}")
            except AssertionError as error:
                print(f"{backend}, seed {seed}: {error}")
                return 1
    return 0


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
