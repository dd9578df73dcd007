"""The connection of two processes, one of which takes the place of the other."""

from __future__ import annotations

import os
import resource
import socket

import pytest
from helpers import WAIT

from relay.operations.upgrade_channel import PeerLateError, UpgradeChannel, UpgradeError


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
