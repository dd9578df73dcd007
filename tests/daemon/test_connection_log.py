"""The access log of a group: its tunnels, each with its hops."""

import os
import threading
from contextlib import closing
from types import SimpleNamespace

import pytest
from helpers import wait_until

from relay.addresses.parse import parse_hops, parse_listen, parse_target
from relay.daemon.connection_log import ConnectionLog, _tunnels
from relay.daemon.options import LogPlan, Options
from relay.daemon.plan import make_plan, make_proxy_plan
from relay.engine.outlets import Outlets
from relay.transports.dynamic import parse_rule


@pytest.mark.parametrize(
    ("via", "rules", "hops"),
    [
        (["ssh://me@bastion"], [], ("ssh://me@bastion",)),
        ([], ["*.corp.example=ssh://me@bastion", "*=direct"], ()),
        ([], ["*=ssh://me@bastion"], ()),
    ],
)
def test_the_hops_of_one_rule_are_not_those_of_all_clients_of_a_proxy(via, rules, hops):
    plan = make_proxy_plan(
        parse_listen(":0"), Options(), name="proxy", via=parse_hops(via), rules=[parse_rule(rule) for rule in rules]
    )
    assert hops_of(plan) == hops


@pytest.mark.parametrize(("other", "hops"), [("ssh://me@bastion", ("ssh://me@bastion",)), ("ssh://me@other", ())])
def test_several_targets_have_the_hops_that_all_of_them_have(other, hops):
    ways = [(parse_hops([hop], end), parse_target(end)) for hop, end in (("ssh://me@bastion", "a:1"), (other, "b:1"))]
    (via, end), *others = ways
    assert hops_of(make_plan(parse_listen(":0"), end, Options(), name="db", via=via, others=others)) == hops


def hops_of(plan):
    """Return the hops in the log of a tunnel."""
    tunnel = SimpleNamespace(address=("127.0.0.1", 1080), connections=list)
    member = SimpleNamespace(name=plan.name, has_opened=True, relay=tunnel, plan=plan)
    (logged,) = _tunnels(SimpleNamespace(members=[member]))
    return logged.hops


@pytest.fixture
def group():
    processes = SimpleNamespace(log_connections=lambda put: None)
    return SimpleNamespace(processes=processes, members=[], outlets=Outlets())


def refuse(thread):
    raise RuntimeError("can't start new thread")


def test_a_reload_that_moves_the_log_needs_no_thread_for_the_old_one(group, tmp_path, monkeypatch):
    """It is in the middle of its changes then, and half of them would be made."""
    with closing(ConnectionLog(group, LogPlan(str(tmp_path / "old"), 60.0))) as log:
        old = log._log
        swap = log.prepare(LogPlan(str(tmp_path / "new"), 60.0))
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", refuse)
            swap.commit()
        assert log._log is not old
        wait_until(lambda: not old._thread.is_alive())


def test_without_a_thread_a_reload_cannot_move_the_log(group, tmp_path, monkeypatch):
    with closing(ConnectionLog(group, LogPlan(str(tmp_path / "old"), 60.0))) as log:
        before = os.listdir("/proc/self/fd")
        monkeypatch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(OSError, match="new: can't start new thread"):
            log.prepare(LogPlan(str(tmp_path / "new"), 60.0))
        assert os.listdir("/proc/self/fd") == before
