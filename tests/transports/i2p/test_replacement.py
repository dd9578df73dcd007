"""``relay.transports.i2p.replacement``: a session that may be unresponsive is replaced, less often each time."""

from __future__ import annotations

import dataclasses

from sam_rig import DEST

from relay.transports.i2p import replacement
from relay.transports.i2p.replacement import ReplacementPolicy


class Replaced:
    """Counts what is replaced."""

    def __init__(self, monkeypatch):
        self.count = 0
        self.now = 1000.0
        self.policy = ReplacementPolicy()
        self.policy.renew = self._replace
        clock = dataclasses.make_dataclass("Clock", ["monotonic"])(lambda: self.now)
        monkeypatch.setattr(replacement, "time", clock)

    def _replace(self, session, dest):
        self.count += 1

    def silent(self, dest=DEST, after=0.0):
        self.now += after
        before = self.count
        self.policy.on_silence(None, dest)
        return self.count > before


def test_replacing_gets_rarer_while_it_does_not_help(monkeypatch):
    replaced = Replaced(monkeypatch)
    assert replaced.silent()
    assert not replaced.silent(after=29)
    assert replaced.silent(after=2)
    assert not replaced.silent(after=59)
    assert replaced.silent(after=2)
    for _ in range(20):
        replaced.silent(after=900)
    assert not replaced.silent(after=899)
    assert replaced.silent(after=2)


def test_an_answer_makes_it_as_prompt_as_at_first(monkeypatch):
    replaced = Replaced(monkeypatch)
    assert replaced.silent()
    replaced.policy.on_reply(DEST)
    assert replaced.silent()


def test_each_destination_counts_for_itself_and_not_without_bound(monkeypatch):
    replaced = Replaced(monkeypatch)
    assert all(replaced.silent(f"{number}") for number in range(3000))
    assert len(replaced.policy._next) < 1500
