"""Three relays behind HAProxy, both set up as docs/fleet.md shows: no client notices that they are replaced.

HAProxy checks more often than there, and the shutdown delay has no end: a second signal ends it as soon as HAProxy has
noticed. So nothing depends on the speed of the machine.
"""

import contextlib
import functools
import subprocess

import pytest
from command_rig import commands
from fleet_rig import HAPROXY, NAMES, Command, Fleet, lose_one, replace_all, shown
from group_rig import letter
from helpers import WAIT

pytestmark = pytest.mark.skipif(not HAPROXY, reason="haproxy is not installed")


@pytest.fixture
def fleet(serve, tmp_path):
    with commands() as make, contextlib.ExitStack() as stack:
        targets = [serve(letter(which)).address for which in NAMES.values()]
        yield Fleet(stack, tmp_path, functools.partial(Command, make), targets)


def test_haproxy_has_nothing_to_say_about_the_example(tmp_path):
    (tmp_path / "haproxy.cfg").write_text(shown("frontend"))
    done = subprocess.run(
        [HAPROXY, "-c", "-f", tmp_path / "haproxy.cfg"], capture_output=True, text=True, timeout=WAIT, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "Configuration file is valid\n")


def test_the_relays_of_a_fleet_are_replaced_and_no_client_is_lost(fleet):
    replace_all(fleet)


def test_a_relay_of_a_fleet_that_dies_ends_its_own_connections_only(fleet):
    """HAProxy's checks are off, so that it sends clients to the dead one; they get another one."""
    lose_one(fleet)
