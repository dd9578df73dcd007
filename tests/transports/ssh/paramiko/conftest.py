"""Servers for the tests of paramiko."""

import pytest
from helpers import makes
from paramiko_rig import ScriptedServer


@pytest.fixture
def scripted():
    """Makes servers that say what the test wants, ``scripted(**attributes of its transport)``."""
    yield from makes(ScriptedServer)


@pytest.fixture(params=["sshd", "embedded"])
def rig(request, openssh_server):
    """A server of either kind."""
    return request.getfixturevalue("sshd" if request.param == "sshd" else "ssh_server")
