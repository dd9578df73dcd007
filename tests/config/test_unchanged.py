"""A file that is read again: a tunnel that is written as before keeps its entry; the rest is as of a new file."""

from __future__ import annotations

import itertools

import pytest
from config_rig import SECRETS, WHOLE, T

from relay import config

OTHER = '[tunnels.u]\nlisten = ":8081"\ntarget = "localhost:2"\n'
FILES = {
    "whole": WHOLE,
    "another default": WHOLE.replace("linger = 0", "linger = 1"),
    "another hop": WHOLE.replace("ssh://me@inner", "ssh://me@outer"),
    "a hop less": WHOLE.replace('proxy = "socks5://127.0.0.1:9050"', ""),
    "another bridge": WHOLE.replace("127.0.0.1:7657", "127.0.0.1:7658"),
    "one changed": WHOLE.replace("5432\ntarget", "5433\ntarget"),
    "one more": WHOLE + OTHER,
    "one": T,
    "one with a limit": T + "nconnect = 1\n",
    "of another type": T + "nconnect = 1.0\n",
    "true": T + "nconnect = true\n",
    "two": T + OTHER,
    "in another order": OTHER + T,
    "at one address": T.replace(":0", ":8081") + OTHER,
    "at one address, the other way round": OTHER + T.replace(":0", ":8081"),
    "no table": "tunnels = 5\n",
    "a tunnel that is no table": T + "[tunnels]\nu = 5\n",
    "empty": "",
    "no TOML": "[tunnels",
    "a secret": SECRETS[0][0],
}


@pytest.fixture
def path(tmp_path):
    made = tmp_path / "relay.toml"
    made.touch(0o600)
    return made


def result(found):
    """The parts that a reader of the file sees."""
    problems = [found.problems.format(problem) for problem in found.problems.in_order()]
    return problems, found.entries, found.hops, found.folder, list(found.file.tunnels)


@pytest.mark.parametrize("mode", [0o600, 0o644], ids=["private", "readable"])
def test_each_file_after_each_other_one_is_read_as_if_it_were_new(path, mode):
    for one, other in itertools.product(FILES.values(), repeat=2):
        path.chmod(0o600)
        path.write_text(one)
        before = config.read(str(path))
        if not before.problems.in_order():
            path.write_text(other)
            path.chmod(mode)
            assert result(config.read(str(path), before=before.written)) == result(config.read(str(path)))


def test_a_tunnel_that_is_written_as_before_keeps_its_entry(path):
    path.write_text(T + OTHER)
    before = config.read(str(path))
    path.write_text("# a comment\n" + OTHER.replace(":2", ":3") + T)
    now = {entry.name: entry for entry in config.read(str(path), before=before.written).entries}
    was = {entry.name: entry for entry in before.entries}
    assert now["t"] is was["t"]
    assert now["u"] is not was["u"]


def test_a_secret_is_found_once_others_can_read_the_file(path):
    path.write_text(SECRETS[4][0])
    before = config.read(str(path))
    assert before.problems.in_order() == []
    path.chmod(0o644)
    (problem,) = config.read(str(path), before=before.written).problems.in_order()
    assert "a password is written there" in problem.text
