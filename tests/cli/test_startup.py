"""What is put off at the start of the command is there when it is used."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest
from helpers import WAIT


def run(code):
    """What a fresh interpreter prints."""
    program = f"import sys\nfrom relay.cli import startup\nstartup.quicken()\n{code}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=WAIT, check=True)
    return done.stdout.split()


@pytest.mark.parametrize(
    "statement",
    [
        "import importlib.metadata; found = importlib.metadata.version",
        "import importlib.metadata as metadata; found = metadata.version",
        "from importlib import metadata; found = metadata.version",
        "from importlib.metadata import version as found",
    ],
)
def test_a_module_that_is_put_off_can_be_imported_in_every_way(statement):
    said = run(f"{statement}\nprint(found('relay-toolkit'), 'importlib.metadata._adapters' in sys.modules)")
    assert said[1:] == ["True"]


def test_it_is_not_loaded_before_it_is_used():
    said = run(
        "import invoke\nprint('invoke.runners' in sys.modules)\ninvoke.run\nprint('invoke.runners' in sys.modules)"
    )
    assert said == ["False", "True"]


def test_who_imported_it_first_sees_the_real_one():
    assert run("import invoke as early\nimport invoke.tasks\nimport invoke\nprint(early.run is invoke.run)") == ["True"]


def test_what_is_not_installed_is_still_missing():
    code = "startup._put_off('no_such_module')\nprint('no_such_module' in sys.modules)"
    assert run(code) == ["False"]


def test_what_is_loaded_already_is_left_alone():
    assert run("import json\nstartup._put_off('json')\nprint(sys.modules['json'] is json)") == ["True"]


def test_the_backend_is_loaded_beside_for_a_way_over_ssh():
    code = """
import threading
from relay.addresses.parse import parse_hops
startup.begin(parse_hops(["ssh://me@host"]))
for thread in threading.enumerate():
    if thread.name == "relay-imports":
        thread.join(60)
print("relay.transports.ssh.paramiko.backend" in sys.modules)
"""
    assert run(code) == ["True"]
    assert run(code.replace("ssh://me@host", "ssh://me@host?backend=openssh")) == ["False"]


def test_garbage_is_looked_for_as_ever_when_the_start_is_over():
    said = run("import gc\nprint(gc.get_threshold()[0])\nstartup.is_over()\nprint(*gc.get_threshold())")
    assert int(said[0]) > 1000
    assert tuple(map(int, said[1:])) == gc.get_threshold()
