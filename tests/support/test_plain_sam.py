"""A plain SAM client and server tell whether two routers reach each other."""

import contextlib
import socket
import threading
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import plain_sam
import pytest
from helpers import WAIT
from plain_sam import PlainSAM, blaming, check_reachable, wait_until_reached
from scenarios import PartedError

from relay.testing import SAMBridge


@pytest.fixture(autouse=True)
def no_rest(monkeypatch):
    """The embedded bridge needs none."""
    monkeypatch.setattr(plain_sam, "REST", 0.0)


def router(bridge, name):
    return SimpleNamespace(connect=partial(socket.create_connection, bridge.address), folder=Path(name))


def test_routers_that_reach_each_other():
    with SAMBridge() as bridge:
        check_reachable(router(bridge, "one"), router(bridge, "other"))


def test_routers_that_do_not():
    with SAMBridge() as one, SAMBridge() as other:
        with pytest.raises(PartedError, match="one and other bring no stream of plain SAM: .*CANT_REACH_PEER"):
            check_reachable(router(one, "one"), router(other, "other"))


def test_a_router_that_finds_a_destination_and_one_that_does_not():
    with SAMBridge() as one, SAMBridge() as other:
        far = PlainSAM(router(one, "one"), "far")
        threading.Thread(target=far.serve, daemon=True).start()
        with contextlib.closing(far):
            wait_until_reached(far.dest, router(one, "same"), WAIT)
            with pytest.raises(PartedError, match="other does not find a destination for 0 s: .*CANT_REACH_PEER"):
                wait_until_reached(far.dest, router(other, "other"), 0.0)


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
        with pytest.raises(PartedError, match="hung: its bridge makes no session"):
            wait_until_reached("any", router(hung, "hung"), WAIT)


def test_a_router_that_does_not_run_is_not_to_blame():
    with SAMBridge() as one, SAMBridge() as other:
        pass
    with pytest.raises(ConnectionRefusedError):
        check_reachable(router(one, "one"), router(other, "other"))
