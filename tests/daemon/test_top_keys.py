"""``relay.daemon.top_keys``: what a reload does with the keys at the top of the file."""

from __future__ import annotations

import pytest

from relay.config.models import File
from relay.daemon.top_keys import TABLES, TUNED, UPGRADED, KeyEffect, compare_keys


class Later(File):
    """A file with a key that no reload changes."""

    mode: str | None = None


def changes(before, new, given=(), started=None):
    current = Later.model_validate(before)
    start = current if started is None else Later.model_validate(started)
    return [(each.key, each.effect) for each in compare_keys(start, current, Later.model_validate(new), given)]


def test_the_same_keys_have_not_changed():
    assert changes({"status": "1"}, {"status": "1", "defaults": {"nconnect": 3}}) == []


def test_a_key_changes_unless_an_option_overrides_it():
    assert changes({"status": "1"}, {"status": "2"}) == [("status", KeyEffect.TUNED)]
    assert changes({"status": "1"}, {"status": "2"}, {"status"}) == [("status", KeyEffect.OVERRIDDEN)]
    assert changes({"mode": "a"}, {"mode": "b"}, {"mode"}) == [("mode", KeyEffect.OVERRIDDEN)]


def test_an_upgrade_is_enough_for_some_until_they_are_as_at_the_start():
    assert changes({"workers": 1}, {"workers": 2}) == [("workers", KeyEffect.UPGRADE)]
    assert changes({"state": "b"}, {"state": "b"}, started={"state": "a"}) == [("state", KeyEffect.UPGRADE)]
    assert changes({"state": "b"}, {"state": "a"}, started={"state": "a"}) == []


def test_others_need_a_restart_until_they_are_as_at_the_start():
    assert changes({"mode": "a"}, {"mode": "b"}) == [("mode", KeyEffect.RESTART)]
    assert changes({"mode": "b"}, {"mode": "b"}, started={"mode": "a"}) == [("mode", KeyEffect.RESTART)]
    assert changes({"mode": "b"}, {"mode": "a"}, started={"mode": "a"}) == []


def test_they_are_in_the_order_of_the_reference():
    new = {"mode": "b", "status": "1", "log_file": "x"}
    assert [key for key, _ in changes({}, new)] == ["log_file", "status", "mode"]


@pytest.mark.parametrize(
    ("effect", "words"),
    [
        (KeyEffect.TUNED, "key log_file: tuned"),
        (KeyEffect.UPGRADE, "key log_file: a reload does not change it; relay ctl upgrade does"),
        (KeyEffect.RESTART, "key log_file: a reload does not change it; restart relay"),
        (KeyEffect.OVERRIDDEN, "key log_file: --log-file of the command line counts; restart relay without it"),
    ],
)
def test_what_the_user_has_to_do_is_told(effect, words):
    from relay.daemon.top_keys import KeyChange

    assert str(KeyChange.of("log_file", effect)) == words


def test_every_key_is_known():
    assert set(File.model_fields) >= TUNED | UPGRADED | TABLES
