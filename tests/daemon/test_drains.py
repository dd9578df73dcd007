"""``relay.daemon.drains``: who is called back and when, and that their number needs no threads."""

import math
import threading

import pytest
from helpers import WAIT, wait_until

import relay
from relay.daemon import drains as module
from relay.daemon.drains import Drains


class PoolTunnel:
    """A tunnel in workers; it closes when the test says so."""

    def __init__(self, closes=False):
        self.calls, self.over = [], []
        self.state = "open"
        self.begun, self.goes_on = threading.Event(), threading.Event()
        self.goes_on.set()
        self._closes = closes

    def on_over(self, callback):
        self.over.append(callback)

    def start_close(self, seconds, spread):
        self.begun.set()
        assert self.goes_on.wait(WAIT)
        self.calls.append((seconds, spread))
        if self._closes:
            self.end()

    def give_up_closing(self):
        self.calls.append("given up")
        self.end()

    def end(self):
        self.state = "closed"
        for callback in self.over:
            callback()


def draining():
    return [thread for thread in threading.enumerate() if thread.name == "relay-drain"]


@pytest.fixture
def drains():
    yield Drains()
    wait_until(lambda: not draining())


def test_a_tunnel_of_this_process_calls_back_and_needs_no_thread(drains, listener, echo_server):
    over = threading.Event()
    tunnel = relay.Tunnel(listener, relay.tcp(*echo_server.address))
    drains.begin(tunnel, math.inf, over.set)
    assert not draining()
    assert over.wait(WAIT)
    assert tunnel.close() is None


def test_tunnels_in_workers_share_one_thread_which_ends(drains):
    tunnels, over = [PoolTunnel() for _ in range(50)], []
    tunnels[0].goes_on.clear()
    for tunnel in tunnels:
        drains.begin(tunnel, math.inf, lambda tunnel=tunnel: over.append(tunnel))
    assert len(draining()) == 1
    tunnels[0].goes_on.set()
    wait_until(lambda: all(tunnel.calls == [(None, 0.0)] for tunnel in tunnels))
    assert over == []
    for tunnel in tunnels:
        tunnel.end()
    wait_until(lambda: not draining())
    assert over == tunnels
    drains.begin(again := PoolTunnel(closes=True), 5.0, lambda: over.append(again), 2.0)
    wait_until(lambda: over[-1] is again)
    assert again.calls == [(5.0, 2.0)]


def test_a_second_call_is_one_end(drains):
    tunnel, over = PoolTunnel(), []
    for seconds in (100.0, 50.0):
        drains.begin(tunnel, seconds, lambda: over.append(True))
    wait_until(lambda: tunnel.calls == [(100.0, 0.0), (50.0, 0.0)])
    tunnel.end()
    assert over == [True]


def test_a_tunnel_that_has_ended_before_calls_back(drains):
    tunnel, over = PoolTunnel(), threading.Event()
    tunnel.end()
    drains.begin(tunnel, 1.0, over.set)
    assert over.wait(WAIT)


def test_a_tunnel_whose_workers_do_not_close_it_is_given_up(drains, monkeypatch):
    monkeypatch.setattr(module, "_PATIENCE", 0.0)
    tunnel, over = PoolTunnel(), threading.Event()
    drains.begin(tunnel, 0.01, over.set)
    assert over.wait(WAIT)
    assert tunnel.calls == [(0.01, 0.0), "given up"]


def test_without_a_thread_the_caller_asks_the_workers(drains, monkeypatch):
    def refuse(thread):
        raise RuntimeError("can't start new thread")

    tunnel, over = PoolTunnel(closes=True), []
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        drains.begin(tunnel, 1.0, lambda: over.append(True))
    assert (tunnel.calls, over) == ([(1.0, 0.0)], [True])
