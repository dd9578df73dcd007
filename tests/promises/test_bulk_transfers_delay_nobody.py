"""A request and its answer pass before each of many bulk transfers has had its turn, and these have equal turns."""

import select
import socket
import threading
from collections import Counter, deque

import pytest
from helpers import WAIT

import relay
from relay.testing import FakeListener

MANY = 40
KNOWN = 8  # steps after which relay has seen that a transfer is bulk
ENOUGH = 20 * MANY  # steps of all of them

pytestmark = pytest.mark.skipif(not hasattr(select, "epoll"), reason="poll(2) has no part of what is ready")


class Noting(socket.socket):
    """A socket of relay's that notes what is sent to it."""

    note = staticmethod(lambda: None)

    def send(self, data, flags=0):
        note = self.note  # the test may set another one as soon as it has the bytes
        sent = super().send(data, flags)
        note()
        return sent


class Swallowing(socket.socket):
    """A client that takes everything at once."""

    def send(self, data, flags=0):
        return len(data)


class Endless(socket.socket):
    """A target that always has bytes: one that stays in the kernel's buffer says so."""

    def recv(self, size, flags=0):
        self.note()
        return bytes(size)

    def recv_into(self, buffer, *_):
        self.note()
        return len(buffer)


def ends(kind):
    """Return a socket of relay's, and its other end."""
    near, far = socket.socketpair()
    far.settimeout(WAIT)
    return kind(fileno=near.detach()), far


class Steps:
    """The steps of relay, in their order, since all transfers are bulk to it. Before the first of these it is held."""

    def __init__(self):
        self.before, self.known, self.taken = Counter(), 0, []
        self.is_held, self.go_on, self.is_enough = (threading.Event() for _ in range(3))

    def add(self, what):
        self.before[what] += 1
        self.known += self.before[what] == KNOWN
        if self.known < MANY:
            return
        if not self.is_held.is_set():
            self.is_held.set()
            self.go_on.wait(WAIT)
        self.taken.append(what)
        if len(self.taken) == ENOUGH:
            self.is_enough.set()


def test_a_request_passes_before_every_bulk_transfer_has_had_its_turn():
    steps, listener, targets = Steps(), FakeListener(), deque()
    near, client = ends(Noting)
    far, target = ends(Noting)
    others = []
    with client, target, relay.Tunnel(listener, targets.popleft) as tunnel:
        targets.append(far)
        listener.put(near)
        client.sendall(b"hello")
        assert target.recv(5) == b"hello"

        def answer():
            steps.add("request")
            target.send(target.recv(100))  # at once, so that all steps between are relay's

        far.note, near.note = answer, lambda: steps.add("answer")
        for number in range(MANY):
            (source, its_end), (sink, reader) = ends(Endless), ends(Swallowing)
            others += its_end, reader
            source.note = lambda number=number: steps.add(number)
            targets.append(source)
            listener.put(sink)
            its_end.send(b"x")
        assert steps.is_held.wait(WAIT)
        client.send(b"ping")
        steps.go_on.set()
        assert client.recv(4) == b"ping"
        assert steps.is_enough.wait(WAIT)
        assert tunnel.stats().active == MANY + 1
    for end in others:
        end.close()
    asked, answered = steps.taken.index("request"), steps.taken.index("answer")
    assert asked < MANY / 2, "the request waited"
    assert answered - asked < MANY / 2, "the answer waited"
    turns = Counter(steps.taken[answered + 1 : ENOUGH])
    assert len(turns) == MANY
    assert max(turns.values()) - min(turns.values()) <= 1, "not all of them have the same"
