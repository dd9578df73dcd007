"""The I/O thread: one thread while there is work, none when there is none."""

import os
import select
import socket
import threading
import time

import pytest
from helpers import WAIT, wait_until

from relay.eventloop.background import IOThread, Watch
from relay.eventloop.poller import HUP, IN


class Client:
    """A client that notes what it was called with."""

    def __init__(self):
        self.told = 0

    def abandon(self):
        self.told += 1


def io_threads():
    return [thread for thread in threading.enumerate() if thread.name == "relay-io"]


def test_the_clients_share_one_thread_which_ends_with_the_last():
    first, second = Client(), Client()
    io_thread = IOThread.acquire(first)
    assert IOThread.acquire(second) is io_thread
    (thread,) = io_threads()
    io_thread.release(first)
    called = threading.Event()
    assert io_thread.loop.call(called.set)
    assert called.wait(WAIT)
    io_thread.release(second)
    io_thread.release(second)
    thread.join(WAIT)
    assert not thread.is_alive()
    assert not first.told and not second.told


def test_there_is_a_new_one_after_the_last():
    for _ in range(20):
        client = Client()
        io_thread = IOThread.acquire(client)
        called = threading.Event()
        assert io_thread.loop.call(called.set)
        assert called.wait(WAIT)
        io_thread.release(client)


def test_no_thread_to_be_had_is_an_oserror(monkeypatch):
    def refuse(thread):
        raise RuntimeError("can't start new thread")

    for thread in io_threads():
        thread.join(WAIT)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(BlockingIOError, match="can't start new thread"):
        IOThread.acquire(Client())


def test_a_forked_child_has_none_and_touches_nothing():
    client = Client()
    io_thread = IOThread.acquire(client)
    near, far = socket.socketpair()
    with near, far:
        heard = threading.Event()
        io_thread.loop.call(
            lambda: io_thread.loop.watch(near.fileno(), IN, lambda event, now: (near.recv(1), heard.set()))
        )
        pid = os.fork()
        if pid == 0:
            os._exit(0 if client.told == 1 and IOThread._current is None else 1)
        wait_until(lambda: os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG))
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        far.send(b"!")
        assert heard.wait(WAIT)
        io_thread.loop.call(lambda: io_thread.loop.forget(near.fileno()))
        io_thread.release(client)
        for thread in io_threads():
            thread.join(WAIT)


@pytest.mark.parametrize("poller", ["epoll", "poll"])
def test_a_hang_up_is_reported_once_and_what_came_before_it_can_be_read(poller, request):
    if poller == "poll":
        request.getfixturevalue("poll_only")
    client = Client()
    io_thread = IOThread.acquire(client)
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
        watch = Watch(near, io_thread.loop, on_event)
        watch.set_interest(0)

    watch = None
    with near:
        io_thread.loop.call(begin)
        far.send(b"last words")
        far.close()
        assert hung.wait(WAIT)
        turned = threading.Event()
        io_thread.loop.call(turned.set)
        assert turned.wait(WAIT)
        assert len(events) == 1
        io_thread.loop.call(lambda: watch.set_interest(IN))
        assert readable.wait(WAIT)
        assert near.recv(10) == b"last words"
        io_thread.release(client)
        for thread in io_threads():
            thread.join(WAIT)
    assert select.POLLHUP == HUP


def test_an_idle_io_thread_uses_no_cpu():
    client = Client()
    io_thread = IOThread.acquire(client)
    turned = threading.Event()
    io_thread.loop.call(turned.set)
    assert turned.wait(WAIT)
    before = time.process_time()
    threading.Event().wait(0.2)
    assert time.process_time() - before < 0.05
    io_thread.release(client)
