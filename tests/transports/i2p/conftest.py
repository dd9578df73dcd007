"""Bridges and sessions for the tests of I2P: scripted ones, and embedded ones with listeners and clients."""

import pytest
from helpers import closed
from listener_rig import Clients, Listening
from sam_rig import Opened, ScriptedBridge

from relay.testing import SAMBridge


@pytest.fixture
def scripted():
    yield from closed(ScriptedBridge())


@pytest.fixture
def opened(scripted):
    """A session at the scripted bridge."""
    yield from closed(Opened(scripted))


@pytest.fixture
def bridge(request):
    """An embedded one, of the personality that the test names."""
    yield from closed(SAMBridge(personality=getattr(request, "param", "i2pd")))


@pytest.fixture
def listen(bridge):
    yield from closed(Listening(bridge))


@pytest.fixture
def clients(bridge):
    yield from closed(Clients(bridge))
