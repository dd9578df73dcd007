"""The promises over real routers, once more in their own network, where a router can connect to us (FORWARD)."""

import subprocess
import sys
from pathlib import Path

import pytest
from helpers import exchange

COUNT = 40  # destinations that the tests in there need
FILES = sorted(map(str, Path(__file__).parent.glob("test_i2p_*.py")))
# What a server does; the rest is the same wherever it runs.
WANTED = "i2pd and (whole or fifty or stays or down or conformance or half_close or (limits and server) or access)"


@pytest.mark.timeout(330)
def test_inside_with_real_routers(i2p_routers, i2p_networks, tmp_path):
    options = ["-q", "-p", "no:cacheprovider", f"--basetemp={tmp_path / 'inside'}", "-k", WANTED]
    argv = [sys.executable, "-m", "pytest", *options, *FILES]
    process = i2p_networks.run(argv, env=i2p_routers.lend(COUNT), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    said = process.communicate(timeout=300)[0].decode()
    assert process.returncode == 0, said
    assert " passed" in said and "skipped" not in said, said


def test_embedded_bridges_are_met_in_the_same_way(i2p_double, over_i2p):
    exchange(*over_i2p(i2p_double).connect())
    assert ("STREAM", "FORWARD") in {command.words for command in i2p_double.servers.commands}
    assert ("STREAM", "ACCEPT") not in {command.words for command in i2p_double.servers.commands}
