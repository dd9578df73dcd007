"""What is deferred at the start of the command is there when it is used."""

from __future__ import annotations

import subprocess
import sys

from helpers import WAIT


def run(code):
    """What a fresh interpreter prints."""
    program = f"import sys\nfrom relay.cli import startup\n{code}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=WAIT, check=True)
    return done.stdout.split()


def test_invoke_is_not_loaded_before_it_is_used():
    said = run(
        "startup.defer_invoke()\nimport invoke\nprint('invoke.runners' in sys.modules)\n"
        "invoke.run\nprint('invoke.runners' in sys.modules)"
    )
    assert said == ["False", "True"]


def test_who_imported_it_first_sees_the_real_one():
    code = "startup.defer_invoke()\nimport invoke as early\nimport invoke.tasks\nimport invoke\n"
    assert run(f"{code}print(early.run is invoke.run)") == ["True"]


def test_without_invoke_it_is_still_missing():
    code = "startup.find_spec = lambda name: None\nstartup.defer_invoke()\nprint('invoke' in sys.modules)"
    assert run(code) == ["False"]


def test_invoke_is_left_alone_if_it_is_loaded_already():
    assert run("import invoke\nstartup.defer_invoke()\nprint(sys.modules['invoke'] is invoke)") == ["True"]


def test_the_backend_is_loaded_beside_for_a_way_over_ssh():
    code = """
import threading
from relay.addresses.parse import parse_hops
startup.preload_backend(parse_hops(["ssh://me@host"]))
for thread in threading.enumerate():
    if thread.name == "relay-imports":
        thread.join(60)
print("relay.transports.ssh.paramiko.backend" in sys.modules)
"""
    assert run(code) == ["True"]
    assert run(code.replace("ssh://me@host", "ssh://me@host?backend=openssh")) == ["False"]
