"""The process whose place this one takes, once it does not answer any more."""

from __future__ import annotations

import queue
import socket

import pytest
from helpers import WAIT

from relay.cli import predecessor
from relay.cli.predecessor import Predecessor
from relay.cli.signals import Signals
from relay.operations.upgrade_channel import PeerEndedError, PeerLateError, UpgradeChannel, UpgradeError


@pytest.mark.parametrize(
    ("words", "error", "goes_on"),
    [
        ([{"released": True}], None, True),
        ([{"failed": "it goes on"}], UpgradeError, False),
        ([], PeerLateError, True),  # it was stopped: clients are left to this process, and it ends later
        (None, PeerEndedError, True),
    ],
)
def test_only_one_of_the_two_goes_on(monkeypatch, words, error, goes_on):
    monkeypatch.setattr(predecessor, "_RELEASE_TIME", 0.01 if words == [] else WAIT)
    ours, theirs = socket.socketpair()
    other, outcomes = UpgradeChannel(theirs), queue.SimpleQueue()
    with Signals() as signals, Predecessor(signals) as old:
        old._channel = UpgradeChannel(ours)
        old.take_over()
        assert other.receive("ready", WAIT)
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
    other.close()
