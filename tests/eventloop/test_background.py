"""The pump: one thread while there is work, none when there is none."""

from __future__ import annotations

import os
import select
import socket
import threading
import time

import pytest
from helpers import WAIT, wait_until

from relay.eventloop.background import Pump, Watch
from relay.eventloop.poller import HUP, IN


class Member:
    """Remembers what it was told."""

    def __init__(self):
        self.told = 0

    def abandon(self):
        self.told += 1


def pumps():
    return [thread for thread in threading.enumerate() if thread.name == "relay pump"]


def test_the_members_share_one_thread_which_ends_with_the_last():
    first, second = Member(), Member()
    pump = Pump.hold(first)
    assert Pump.hold(second) is pump
    (thread,) = pumps()
    pump.let_go(first)
    called = threading.Event()
    assert pump.loop.call(called.set)
    assert called.wait(WAIT)
    pump.let_go(second)
    pump.let_go(second)
    thread.join(WAIT)
    assert not thread.is_alive()
    assert not first.told and not second.told


def test_there_is_a_new_one_after_the_last():
    for _ in range(20):
        member = Member()
        pump = Pump.hold(member)
        called = threading.Event()
        assert pump.loop.call(called.set)
        assert called.wait(WAIT)
        pump.let_go(member)


def test_no_thread_to_be_had_is_an_oserror(monkeypatch):
    def refuse(thread):
        raise RuntimeError("can't start new thread")

    for thread in pumps():
        thread.join(WAIT)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(BlockingIOError, match="can't start new thread"):
        Pump.hold(Member())


def test_a_forked_child_has_none_and_touches_nothing():
    member = Member()
    pump = Pump.hold(member)
    near, far = socket.socketpair()
    with near, far:
        heard = threading.Event()
        pump.loop.call(lambda: pump.loop.watch(near.fileno(), IN, lambda event, now: (near.recv(1), heard.set())))
        pid = os.fork()
        if pid == 0:
            os._exit(0 if member.told == 1 and Pump._current is None else 1)
        wait_until(lambda: os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG))
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        far.send(b"!")
        assert heard.wait(WAIT)
        pump.loop.call(lambda: pump.loop.forget(near.fileno()))
        pump.let_go(member)
        for thread in pumps():
            thread.join(WAIT)


@pytest.mark.parametrize("poller", ["epoll", "poll"])
def test_a_hang_up_is_reported_once_and_what_came_before_it_can_be_read(poller, request):
    if poller == "poll":
        request.getfixturevalue("poll_only")
    member = Member()
    pump = Pump.hold(member)
    near, far = socket.socketpair()
    events = []
    hung, readable = threading.Event(), threading.Event()

    def on_event(event, now):
        events.append(event)
        if event & HUP:
            watch.hung = True
        if watch.mask & IN:
            watch.set_interest(0)
            readable.set()
        else:
            watch.set_interest(0)
            hung.set()

    def begin():
        nonlocal watch
        watch = Watch(near, pump.loop, on_event)
        watch.set_interest(0)

    watch = None
    with near:
        pump.loop.call(begin)
        far.send(b"last words")
        far.close()
        assert hung.wait(WAIT)
        turned = threading.Event()
        pump.loop.call(turned.set)
        assert turned.wait(WAIT)
        assert len(events) == 1
        pump.loop.call(lambda: watch.set_interest(IN))
        assert readable.wait(WAIT)
        assert near.recv(10) == b"last words"
        pump.let_go(member)
        for thread in pumps():
            thread.join(WAIT)
    assert select.POLLHUP == HUP


def test_an_idle_pump_uses_no_cpu():
    member = Member()
    pump = Pump.hold(member)
    turned = threading.Event()
    pump.loop.call(turned.set)
    assert turned.wait(WAIT)
    before = time.process_time()
    threading.Event().wait(0.2)
    assert time.process_time() - before < 0.05
    pump.let_go(member)
