"""The things that all flows of a thread share: a buffer, made when it is needed, and the upgrades under way."""

from __future__ import annotations

import pytest
from helpers import closed

from relay.engine.workspace import Workspace
from relay.eventloop.background import BUFFER
from relay.eventloop.loop import Loop


@pytest.fixture
def loop():
    yield from closed(Loop())


class Upgrade:
    """Counts how often it was abandoned."""

    abandoned = 0

    def abandon(self):
        self.abandoned += 1


def test_the_buffer_is_made_once_and_only_if_it_is_needed(loop):
    workspace = Workspace(loop, None)
    assert workspace._buffer is None
    buffer = workspace.buffer
    assert len(buffer) == BUFFER
    assert not buffer.readonly
    assert workspace.buffer is buffer


def test_it_has_the_loop_and_the_pipes_of_its_thread(loop):
    pipes = object()
    workspace = Workspace(loop, pipes)
    assert (workspace.loop, workspace.pipes) == (loop, pipes)


def test_a_forked_child_abandons_the_upgrades_under_way_once(loop):
    workspace, under_way, over = Workspace(loop, None), Upgrade(), Upgrade()
    for upgrade in (under_way, over):
        workspace.hold(upgrade)
    workspace.hold(under_way)
    workspace.release(over)
    workspace.release(over)
    workspace.abandon()
    workspace.abandon()
    assert (under_way.abandoned, over.abandoned) == (1, 0)
