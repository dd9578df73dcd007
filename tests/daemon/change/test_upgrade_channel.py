"""The connection of two processes, one of which takes the place of the other."""

import os
import resource
import socket
import threading

import pytest
from helpers import WAIT

from relay.daemon.change import upgrade_channel
from relay.daemon.change.upgrade_channel import PeerLateError, UpgradeChannel, UpgradeError


@pytest.fixture
def pair():
    one, other = (UpgradeChannel(each, takes_sockets=True) for each in socket.socketpair())
    yield one, other
    one.close()
    other.close()


def test_what_is_late_cannot_be_sent_any_more(pair):
    one, other = pair
    with pytest.raises(PeerLateError):
        one.receive_decision("ready", 0.01)
    with pytest.raises(UpgradeError):
        other.send({"ready": True})


def test_a_listener_that_was_closed_is_not_sent(pair):
    one, _ = pair
    closed = socket.create_server(("127.0.0.1", 0))
    closed.close()
    with pytest.raises(UpgradeError, match="^a listener was closed before it was handed over; try again$"):
        one.send({"socket": {}}, closed)


def test_what_comes_at_the_last_moment_counts(pair, monkeypatch):
    """The process was stopped while it waited, and for longer than it would have waited."""
    one, other = pair
    read = one._piece

    def late(_):
        monkeypatch.setattr(one, "_piece", read)
        other.send({"ready": True})
        raise PeerLateError("late")

    monkeypatch.setattr(one, "_piece", late)
    assert one.receive_decision("ready", WAIT)


def test_giving_up_does_not_wait_for_a_process_that_reads_nothing(pair, monkeypatch):
    one, _ = pair
    monkeypatch.setattr(upgrade_channel, "_SEND_TIME", 0.01)
    with pytest.raises(UpgradeError):
        while True:
            one.send({"ledger": "x" * 1000})
    monkeypatch.setattr(upgrade_channel, "_SEND_TIME", 10 * WAIT)
    giving_up = threading.Thread(target=one.give_up, args=("it is ending",), daemon=True)
    giving_up.start()
    giving_up.join(WAIT)
    assert not giving_up.is_alive()


def test_giving_up_is_heard_unless_the_other_one_goes_on_alone(pair):
    one, other = pair
    with pytest.raises(PeerLateError):
        other.receive_decision("released", 0.01)
    other.send({"alone": True})
    assert not one.give_up("it is ending")
    assert one.has_received("alone")
    assert not one.has_received("alone")


def test_the_other_process_hears_why(pair):
    one, other = pair
    assert one.give_up("it is ending")
    with pytest.raises(UpgradeError, match="it is ending"):
        other.receive("released", WAIT)
    one.close()
    assert one.give_up("it has ended")


def test_the_other_process_hears_each_problem(pair):
    one, other = pair
    one.fail("a: \x1b[2J\n\nb: no")
    with pytest.raises(UpgradeError, match=r"^a: \\x1b\[2J; b: no$") as caught:
        other.receive("ready", WAIT)
    assert caught.value.lines == (r"a: \x1b[2J", "b: no")


def test_without_a_descriptor_it_says_so(pair):
    one, other = pair
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        other.send({"socket": {}}, listening)
        free = os.dup(listening.fileno())
        os.close(free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
        try:
            with pytest.raises(UpgradeError, match=r"no descriptor is left for a socket; raise the limit"):
                one.receive("socket", WAIT)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
