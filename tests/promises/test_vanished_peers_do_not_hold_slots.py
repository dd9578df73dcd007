"""TCP keep-alive (60 s, then three probes 10 s apart) is on at both sides, so that a vanished peer is noticed."""

import contextlib
import itertools
import socket
import sys
import threading
from pathlib import Path

import pytest
from helpers import WAIT, exchange, wait_until

import relay
from relay.testing import FakeListener, pair

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's names and tables of TCP")

KEEP_ALIVE = "02"  # the timer that runs, in the column `tr` of /proc/net/tcp (proc_net_tcp.rst)


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    """Connections that do not last are spared the system calls; here a second is long enough to last."""
    monkeypatch.setattr("relay.engine.relay_thread.LOOK", 1.0)


def settings(end):
    names = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
    return end.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE), *(
        end.getsockopt(socket.IPPROTO_TCP, name) for name in names
    )


def timer_of(near, far):
    """The timer of the socket that is at ``near`` and whose peer is at ``far``."""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        ports = tuple(int(field.split(":")[1], 16) for field in fields[1:3])
        if ports == (near[1], far[1]):
            return fields[5].split(":")[0]
    raise AssertionError(f"no socket from {near} to {far}")


def test_over_our_own_sockets(relayed, any_engine):
    rig = relayed()
    client, far = rig.connect()
    exchange(client, far)
    wait_until(lambda: timer_of(client.getpeername(), client.getsockname()) == KEEP_ALIVE)
    wait_until(lambda: timer_of(far.getpeername(), far.getsockname()) == KEEP_ALIVE)


@pytest.mark.parametrize("wrap", [lambda made: made, relay.Stream], ids=["socket", "stream"])
def test_over_a_users_sockets(wrap):
    client, accepted = pair(socket.AF_INET)
    near, far = pair(socket.AF_INET)
    fake = FakeListener()
    fake.put(wrap(accepted))
    with client, far, relay.Tunnel(fake, lambda: wrap(near)):
        exchange(client, far)
        wait_until(lambda: settings(accepted) == settings(near) == (1, 60, 10, 3))


def test_when_the_outgoing_stream_takes_its_time():
    """One that is still connecting when those beside it are looked at gets it, too."""
    first, second = pair(socket.AF_INET), pair(socket.AF_INET)
    targets = pair(socket.AF_INET), pair(socket.AF_INET)
    gates = [threading.Event(), threading.Event()]
    calls = itertools.count()

    def make():
        number = next(calls)
        gates[number].wait(WAIT)
        return targets[number][0]

    fake = FakeListener()
    with contextlib.ExitStack() as stack:
        for _, far in targets:
            stack.enter_context(far)
        for client in (first[0], second[0]):
            stack.enter_context(client)
        stack.enter_context(relay.Tunnel(fake, make))
        gates[0].set()
        fake.put(first[1])
        threading.Event().wait(0.8)
        fake.put(second[1])
        wait_until(lambda: settings(first[1])[0])
        gates[1].set()
        exchange(second[0], targets[1][1])
        wait_until(lambda: settings(second[1])[0] and settings(targets[1][0])[0])
