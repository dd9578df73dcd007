"""An idle tunnel with 200 idle connections uses no CPU: its thread is not even woken."""

import sys
import threading
from pathlib import Path

import pytest
from helpers import WAIT, exchange, wait_until

IDLE = 200


def switches(threads):
    """Return how often each thread has waited or been put aside, from the kernel."""
    counts = {}
    for thread in threads:
        text = Path(f"/proc/self/task/{thread.native_id}/status").read_text()
        counts[thread.name] = sum(int(line.split()[1]) for line in text.splitlines() if "ctxt_switches" in line)
    return counts


def is_asleep_for(seconds, threads):
    """Return whether no thread runs in that time."""
    threading.Event().wait(0.2)
    begin = switches(threads)
    threading.Event().wait(seconds)
    return switches(threads) == begin


@pytest.mark.skipif(sys.platform != "linux", reason="reads the kernel's counts of context switches from /proc")
def test_200_idle_connections(relayed, any_engine):
    before = set(threading.enumerate())
    rig = relayed(timeout=3600, idle_timeout=600)  # limits that are far away cost nothing either
    pairs = [rig.connect() for _ in range(IDLE)]
    for client, far in pairs:
        exchange(client, far)
    for _ in range(20):  # and what has gone leaves nothing that wakes it
        client, far = rig.connect()
        exchange(client, far)
        client.close()
        far.close()
    wait_until(lambda: rig.tunnel.stats().active == IDLE)
    threads = [thread for thread in threading.enumerate() if thread not in before]
    assert threads, "the tunnel has a thread"
    wait_until(lambda: is_asleep_for(1.0, threads), 2 * WAIT)  # a busy machine may put off the last turn of the loop
    exchange(*pairs[0])
