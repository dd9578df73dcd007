"""The successor that a process starts itself, where the system has no thread left for it."""

import threading

import pytest

from relay import process
from relay.daemon.change import successor
from relay.daemon.change.successor import Program, Successor
from relay.daemon.change.upgrade_channel import UpgradeError


def refuse(*_):
    raise RuntimeError("can't start new thread")


def start(caplog):
    with pytest.raises(UpgradeError, match="can't start new thread"):
        Successor(Program(("sleep", "60"), "/"), {})
    assert caplog.messages == ["upgrade: can't start new thread; nothing has changed"]


def test_without_a_thread_that_starts_it_the_upgrade_fails(monkeypatch, caplog):
    monkeypatch.setattr(successor, "start_successor", refuse)
    start(caplog)


def test_without_a_thread_that_waits_for_it_it_is_ended(spawner_thread, monkeypatch, caplog):
    """It would take over although the operator got an error."""
    begun = []

    def start_successor(*arguments):
        begun.append(process.start_successor(*arguments))
        return begun[-1]

    monkeypatch.setattr(successor, "start_successor", start_successor)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    start(caplog)
    assert [one.returncode is None for one in begun] == [False]
