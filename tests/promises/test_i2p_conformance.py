"""The shared conformance test over I2P, whose streams have no half-close. All that is not tested runs elsewhere."""

from __future__ import annotations

import sys

import pytest
from command_rig import commands
from i2p_world import SHORT, World

import relay
from relay.process import PIPE, start
from relay.testing import check_factory


@pytest.fixture
def embedded(request, spawner_thread):
    """``relay.testing.SAMBridge`` as a program."""
    argv = [sys.executable, "-m", "relay.testing.sambridge", "--personality", request.param]
    with start(argv, stdin=PIPE, stdout=PIPE) as process:
        sam = process.stdout.readline().decode().split()[-1]
        yield World(sam, sam)
        process.stdin.close()  # which ends it


@pytest.fixture(params=["double", "java-double", "i2pd"])
def far(request, listener):
    """Publishes ``listener`` by the command; the address, and the parameters to reach it."""
    if request.param == "i2pd":
        world = request.getfixturevalue("i2p_routers")
    else:
        world = request.getfixturevalue("embedded")
    with commands() as run:
        place = "i2p:?" + query(sam=world.server, keys=world.server_keys(), **SHORT, **world.options)
        command = run("{}:{}".format(*listener.getsockname()), "--on", place, command="expose")
        said = command.process.stdout.readline()
        yield said, {"sam": world.client, "keys": world.client_keys(), **SHORT}


def query(**parameters):
    return "&".join(f"{name}={value}" for name, value in parameters.items() if value is not None)


def test_a_factory(far, listener):
    print(far)
