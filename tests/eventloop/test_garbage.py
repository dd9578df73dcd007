"""``relay.eventloop.garbage``: what garbage collections do not look at."""

import gc

import pytest

from relay.eventloop import garbage


@pytest.fixture
def calls(monkeypatch):
    """The calls of ``gc.freeze()``, as in a process that has just started."""
    made = []
    monkeypatch.setattr(gc, "freeze", lambda: made.append(None))
    garbage.keep_all.cache_clear()
    yield made
    garbage.keep_all.cache_clear()


def test_what_is_there_is_kept_once(calls):
    garbage.keep_all()
    garbage.keep_all()
    assert len(calls) == 1
