"""The shared conformance test over I2P, whose streams have no half-close. All that is not tested runs elsewhere."""

import contextlib
import re
import sys

import pytest
from command_rig import commands
from i2p_world import SHORT, World

import relay
from relay.process import PIPE, start
from relay.testing import check_factory

ADDRESS = re.compile(r"[a-z2-7]{52}\.b32\.i2p")


@contextlib.contextmanager
def embedded(personality):
    """``relay.testing.SAMBridge`` as a program."""
    argv = [sys.executable, "-m", "relay.testing.sambridge", "--personality", personality]
    with start(argv, stdin=PIPE, stdout=PIPE) as process:
        sam = process.stdout.readline().decode().split()[-1]
        yield World(sam, sam)
        process.stdin.close()  # which ends it


@pytest.fixture(params=["double", "java-double", "i2pd"])
def far(request, spawner_thread, listener):
    """The command publishes ``listener``; the address, and the parameters to reach it."""
    with contextlib.ExitStack() as stack:
        if request.param == "i2pd":
            world = request.getfixturevalue("i2p_routers")
        else:
            world = stack.enter_context(embedded("java" if request.param == "java-double" else "i2pd"))
        keys = world.server_keys()
        place = query({"sam": world.server, "keys": keys, **SHORT, **world.options})
        arguments = ["{}:{}".format(*listener.getsockname()), "--on", f"i2p:?{place}"]
        run = stack.enter_context(commands())
        command = run(*arguments, *([] if keys else ["--transient"]), command="expose")
        said = command.process.stdout.readline()
        yield ADDRESS.search(said)[0], {"sam": world.client, "keys": world.client_keys(), **SHORT}


def query(parameters):
    return "&".join(f"{name}={value}" for name, value in parameters.items() if value is not None)


def test_a_factory(far, listener):
    address, options = far
    check_factory(relay.i2p(address, **options), listener, half_close=False, timeout=20)


def test_an_address(far, listener):
    address, options = far
    check_factory(relay.target(f"i2p://{address}?{query(options)}"), listener, half_close=False, timeout=20)
