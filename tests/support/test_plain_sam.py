"""A plain SAM client and server tell whether two routers reach each other."""

from __future__ import annotations

import socket
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import plain_sam
import pytest
from plain_sam import blaming, check_reachable
from scenarios import PartedError

from relay.testing import SAMBridge


def router(bridge, name):
    return SimpleNamespace(connect=partial(socket.create_connection, bridge.address), folder=Path(name))


def test_routers_that_reach_each_other():
    with SAMBridge() as bridge:
        check_reachable(router(bridge, "one"), router(bridge, "other"))


def test_routers_that_do_not():
    with SAMBridge() as one, SAMBridge() as other:
        with pytest.raises(PartedError, match="one and other bring no stream of plain SAM: .*CANT_REACH_PEER"):
            check_reachable(router(one, "one"), router(other, "other"))


@pytest.mark.parametrize("failure", [AssertionError("not served"), TimeoutError("no answer")])
def test_a_failure_is_that_of_routers_only_if_they_fail_plain_programs_too(failure):
    with SAMBridge() as one, SAMBridge() as other:
        with pytest.raises(type(failure), match=str(failure)), blaming(router(one, "one"), router(one, "same")):
            raise failure
        with pytest.raises(PartedError), blaming(router(one, "one"), router(other, "other")):
            raise failure


def test_a_bridge_that_does_not_answer_is_the_routers_fault(monkeypatch):
    monkeypatch.setattr(plain_sam, "WAIT_FOR_ROUTERS", 0.01)
    with SAMBridge() as one, socket.create_server(("127.0.0.1", 0)) as silent:
        hung = SimpleNamespace(address=silent.getsockname())
        with pytest.raises(PartedError, match="one and hung bring no stream of plain SAM: a bridge does not answer"):
            check_reachable(router(one, "one"), router(hung, "hung"))


def test_a_router_that_does_not_run_is_not_to_blame():
    with SAMBridge() as one, SAMBridge() as other:
        pass
    with pytest.raises(ConnectionRefusedError):
        check_reachable(router(one, "one"), router(other, "other"))
