"""``relay.streams.pair_end``: relay's end of a socketpair whose other end a holder has."""

import socket

import pytest
from helpers import WAIT, ending

from relay.eventloop.loop import Loop
from relay.eventloop.poller import HUP, IN
from relay.streams.pair_end import LINGER, PairEnd


class Owner:
    """An owner of an end, which notes the calls."""

    def __init__(self):
        self.loop = Loop()
        self.events = []
        self.moved = 0
        self.expired = []
        self.end = PairEnd(
            self.loop, lambda event, now: self.events.append(event), lambda: self.moved, self.expired.append
        )
        self.holder = self.end.hand_over()
        self.holder.settimeout(WAIT)


@pytest.fixture
def owner():
    made = Owner()
    yield made
    made.end.abandon()
    made.holder.close()
    made.loop.close()


def test_what_the_holder_sends_is_an_event(owner):
    owner.end.watch.set_interest(IN)
    owner.holder.sendall(b"x")
    owner.loop.turn()
    assert owner.events == [IN] and owner.end.socket.recv(2) == b"x" and owner.end.watch.mask == IN


def test_a_hang_up_is_reported_also_when_nothing_else_is(owner):
    owner.end.watch.set_interest(0)
    owner.holder.close()
    owner.loop.turn()
    assert owner.events[0] & HUP


def test_it_expires_when_nothing_has_moved_since_the_last_look(owner):
    owner.end.expect_progress(0.0)
    owner.end.expect_progress(LINGER)  # which changes nothing
    owner.loop.timers.run(LINGER + 1)
    assert not owner.expired, "the first look has nothing to compare with"
    owner.moved = 5
    owner.loop.timers.run(2 * LINGER + 2)
    assert not owner.expired
    owner.loop.timers.run(3 * LINGER + 3)
    assert len(owner.expired) == 1


@pytest.mark.parametrize(("reset", "how"), [(False, "end of file"), (True, "reset")])
def test_the_holder_sees_how_it_ended(owner, reset, how):
    owner.holder.sendall(b"unread" if reset else b"")
    owner.end.end(reset=reset)
    owner.loop._close_garbage()
    assert ending(owner.holder) == how


def test_an_end_of_file_is_passed_on(owner):
    owner.end.socket.shutdown(socket.SHUT_WR)
    assert owner.holder.recv(1) == b""
    owner.holder.sendall(b"late")
    assert owner.end.socket.recv(4) == b"late"


def test_a_forked_child_closes_both_ends():
    loop = Loop()
    end = PairEnd(loop, print, int, print)
    end.abandon()
    assert end.socket.fileno() < 0
    assert isinstance(end.hand_over(), socket.socket)
    loop.close()
