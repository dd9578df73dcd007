"""Clients at the gate of a tunnel, without sockets: ``python -m benchmarks.loads.limits`` prints what one costs.

The figures are CPU time, so that other programs on the machine change them little.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median

from relay.access.gate import Gate
from relay.access.limit import check_limits
from relay.access.policy import ClientPolicy
from relay.access.table import MOST_KEYS, KeyTable
from relay.access.ticket import Ticket
from relay.eventloop.loop import Timers
from relay.streams.identity import Identity

from ..machine import MeasurementError

PATIENCE = 120.0  # seconds
BATCH = 1000  # clients that are timed together
COLLECTIONS = 9


def cost_of_tables() -> dict[str, float]:
    """Return the CPU seconds of each figure, measured in a process of its own."""
    argv = [sys.executable, "-m", "benchmarks.loads.limits"]
    done = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=PATIENCE)
    if done.returncode:
        raise MeasurementError(f"{' '.join(argv)}: {done.stderr[-500:]}")
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def _client(number: int) -> Identity:
    host = f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"
    return Identity("tcp", host, host, 1024)


class _Clients:
    """Clients that come a second after each other, and leave at once."""

    def __init__(self) -> None:
        limits = check_limits([{"rate": "20/10s"}])
        self._gate = Gate(ClientPolicy(limits=limits), Timers())
        self._now = 0.0

    def come(self, clients: Sequence[Identity]) -> float:
        """Return the CPU seconds of one, at the median of batches."""
        times = []
        for first in range(0, len(clients), BATCH):
            batch = clients[first : first + BATCH]
            times.append(_seconds(partial(self._pass, batch)) / len(batch))
        return median(times)

    def _pass(self, clients: Sequence[Identity]) -> None:
        now, enter = self._now, self._gate.enter
        for client in clients:
            now += 1.0
            ticket = enter(client, now)
            assert isinstance(ticket, Ticket)
            ticket.leave()
        self._now = now


def _cost_of_keys(table: KeyTable, keys: Sequence[str]) -> float:
    """Return the CPU seconds in which the table gives one entry, at the median of batches."""

    def get(batch: Sequence[str]) -> None:
        for key in batch:
            table.get(key)

    batches = [keys[first : first + BATCH] for first in range(0, len(keys), BATCH)]
    return median(_seconds(partial(get, batch)) / len(batch) for batch in batches)


def _seconds(call: Callable[[], object]) -> float:
    begin = time.thread_time()
    call()
    return time.thread_time() - begin


def _main() -> None:
    clients = [_client(number) for number in range(MOST_KEYS)]
    mixed = [clients[number * 7919 % MOST_KEYS] for number in range(MOST_KEYS // 2)]
    gc.disable()
    gate = _Clients()
    figures = {"one": gate.come(clients[:1] * MOST_KEYS)}
    gc.collect()
    gc.freeze()  # what was there before the keys
    figures["new"] = gate.come(clients)
    figures["known"] = gate.come(mixed)
    gc.collect()
    figures["collection"] = median(_seconds(gc.collect) for _ in range(COLLECTIONS))
    table, keys = KeyTable(), [str(client.host) for client in clients]
    figures["table_new"] = _cost_of_keys(table, keys)
    figures["table_known"] = _cost_of_keys(table, [str(client.host) for client in mixed])
    print(json.dumps(figures))


if __name__ == "__main__":
    _main()
