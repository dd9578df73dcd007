"""Imports of the command in a thread at its start."""

import subprocess
import sys

from helpers import WAIT


def run(code):
    """Return what a fresh interpreter prints."""
    program = f"import sys\nfrom relay.cli import startup\n{code}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=WAIT, check=True)
    return done.stdout.split()


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
