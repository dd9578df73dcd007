"""``relay.streams.accept_queue``: streams that wait to be taken, and those that are delivered."""

import socket

import pytest
from helpers import WAIT, Thread, closed, ending, wait_until

from relay.addresses.destinations import Peer, PrivateKey
from relay.streams import accept_queue
from relay.streams.accept_queue import AcceptQueue
from relay.streams.stream import Stream

DEST = PrivateKey.generate().destination


class Counted(AcceptQueue):
    """One that counts what it calls."""

    def __init__(self):
        self.calls = []
        super().__init__(lambda: self.calls.append("full"), lambda: self.calls.append("room"))


@pytest.fixture
def there():
    yield from closed(Counted())


@pytest.fixture
def bring(there):
    """Puts a stream there; returns the far end."""
    ends = []

    def bring(port=0):
        ours, theirs = socket.socketpair()
        ends.append(theirs)
        theirs.settimeout(WAIT)
        there.put(Stream(ours), Peer(DEST, port))
        return theirs

    yield bring
    for end in ends:
        end.close()


def take(there):
    stream, peer = Thread(there.take).result()
    stream.close()
    return peer.port


def test_what_comes_first_is_taken_first(there, bring):
    for port in (1, 2, 3):
        bring(port)
    assert len(there) == 3
    assert [take(there) for _ in range(3)] == [1, 2, 3]


def test_whoever_takes_waits_for_the_next(there, bring):
    waiting = Thread(there.take)
    wait_until(lambda: there._changed._waiters)
    bring()
    waiting.result()[0].close()


def test_when_many_wait_no_more_are_to_come_until_half_of_them_are_taken(there, bring, monkeypatch):
    monkeypatch.setattr(accept_queue, "MOST", 4)
    for _ in range(3):
        bring()
    assert not there.is_full
    assert there.calls == []
    for _ in range(2):  # what was on its way is not dropped
        bring()
    assert there.is_full
    assert there.calls == ["full", "full"]
    take(there)
    take(there)
    assert there.calls == ["full", "full"]
    take(there)
    assert there.calls == ["full", "full", "room"]


def test_they_are_handed_on_those_that_wait_first(there, bring):
    seen = []

    def taker(stream, peer):
        seen.append(peer.port)
        stream.close()

    for port in (1, 2):
        bring(port)
    there.deliver(taker)
    assert "room" in there.calls
    bring(3)
    assert seen == [1, 2, 3]
    there.deliver(None)
    bring(4)
    assert (seen, len(there)) == ([1, 2, 3], 1)


def test_an_error_is_raised_once(there, bring):
    there.fail(OSError("no session"))
    with pytest.raises(OSError, match="no session"):
        there.take()
    bring()
    take(there)
    waiting = Thread(there.take)
    wait_until(lambda: there._changed._waiters)
    there.fail(OSError("again"))
    with pytest.raises(OSError, match="again"):
        waiting.result()


def test_at_the_end_all_are_woken_and_what_waits_is_ended(there, bring):
    waiting = [Thread(there.take) for _ in range(3)]
    wait_until(lambda: len(there._changed._waiters) == 3)
    there.close()
    for one in waiting:
        with pytest.raises(OSError, match="Bad file descriptor"):
            one.result()
    assert ending(bring()) == "reset", "what comes later is ended, too"
    there.deliver(print)
    assert ending(bring()) == "reset"


def test_what_waited_is_ended_with_it(there, bring):
    end = bring()
    there.close()
    assert ending(end) == "reset"


def test_a_wait_may_have_an_end(there, bring):
    assert there.take(0.01) is None
    bring(7)
    stream, peer = there.take(WAIT)
    assert peer.port == 7
    stream.close()


def test_what_waits_is_reset_and_the_queue_stays_open(there, bring):
    end = bring()
    there.reset_waiting()
    assert ending(end) == "reset"
    bring(5)
    assert take(there) == 5


def test_a_forked_child_closes_its_copies(there, bring):
    end = bring()
    ((stream, _),) = there._waiting
    there.after_fork()
    assert stream.fileno() < 0 and ending(end) == "end of file"
