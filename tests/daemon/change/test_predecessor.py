"""The process whose place this one takes, once it does not answer any more."""

import queue
import socket
import threading

import pytest
from helpers import WAIT

from relay.daemon.change import predecessor
from relay.daemon.change.predecessor import Predecessor
from relay.daemon.change.upgrade_channel import PeerEndedError, PeerLateError, UpgradeChannel, UpgradeError
from relay.daemon.signals import Signals


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (FileNotFoundError(2, "x"), ValueError, "no relay listens there; start it without --upgrade"),
        (ConnectionRefusedError(111, "x"), ValueError, "no relay listens there; start it without --upgrade"),
        (PermissionError(13, "x"), ValueError, "permission denied; start the upgrade as the user of that relay"),
        (BlockingIOError(11, "x"), UpgradeError, "no answer in time; is that relay stopped?"),
        (TimeoutError("x"), UpgradeError, "no answer in time; is that relay stopped?"),
        (OSError(20, "Not a directory"), ValueError, "Not a directory"),
    ],
)
def test_why_it_cannot_be_reached_is_named(monkeypatch, error, kind, text):
    def fail(connection, path):
        raise error

    monkeypatch.setattr(socket.socket, "connect", fail)
    with Signals() as signals, Predecessor(signals) as old:
        with pytest.raises(kind, match=f"^--upgrade: control socket /s: {text}".replace("?", "[?]")):
            old.connect("/s")


@pytest.fixture
def ready():
    """A process that has taken over, and the other one, which has heard that and has its sockets still."""
    ours, theirs = socket.socketpair()
    other = UpgradeChannel(theirs)
    with Signals() as signals, Predecessor(signals) as old:
        old._channel = UpgradeChannel(ours)
        old.take_over()
        assert other.receive("ready", WAIT)
        yield old, other, ours
    other.close()


@pytest.mark.parametrize(
    ("words", "error", "goes_on"),
    [
        ([{"released": True}], None, True),
        ([{"failed": "it goes on"}], UpgradeError, False),
        ([], PeerLateError, True),  # it was stopped: clients are left to this process, and it ends later
        (None, PeerEndedError, True),
    ],
)
def test_only_one_of_the_two_goes_on(ready, monkeypatch, words, error, goes_on):
    monkeypatch.setattr(predecessor, "_RELEASE_TIME", 0.01 if words == [] else WAIT)
    (old, other, _), outcomes = ready, queue.SimpleQueue()
    for each in words or []:
        other.send(each)
    if words is None:
        other.close()
    old.wait_for_release(outcomes.put)
    outcome = outcomes.get(timeout=WAIT)
    assert type(outcome) is (error or type(None))
    assert old.goes_on_after(outcome) is goes_on
    if words == []:
        assert other.receive("alone", WAIT)
    old.finish()


def test_without_a_thread_to_wait_the_other_process_goes_on(monkeypatch):
    """That process has not heard yet that this one was ready: it would end, and this one as well."""
    ours, theirs = socket.socketpair()
    other = UpgradeChannel(theirs)

    def refuse(thread):
        raise RuntimeError("can't start new thread")

    with Signals() as signals, Predecessor(signals) as old:
        old._channel = UpgradeChannel(ours)
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", refuse)
            with pytest.raises(UpgradeError, match="can't start new thread"):
                old.take_over()
        assert not old.has_taken_over
        old.fail("can't start new thread")
        with pytest.raises(UpgradeError, match="can't start new thread"):
            other.receive("ready", WAIT)
    other.close()


def test_it_gives_up_while_it_waits_and_its_thread_closes_the_connection(ready):
    """A descriptor that one thread closes while another one reads from it may be that of another file by then."""
    (old, other, ours), outcomes = ready, queue.SimpleQueue()
    old.wait_for_release(outcomes.put)
    old.fail("the new process is ending: SIGTERM")
    assert isinstance(outcomes.get(timeout=WAIT), PeerEndedError)
    assert ours.fileno() < 0 and not old.is_waiting
    with pytest.raises(UpgradeError, match="the new process is ending: SIGTERM"):
        other.receive("alone", WAIT)
