"""The command ``relay`` below valgrind, where a thread takes 50 times as long, and pidfd_open(2) is not known.

Started as ``python counted_relay.py WORDS…``.
"""

from __future__ import annotations

import os
import sys

from relay.cli import main

LONG = 1000.0  # seconds until a thread that computes must let the others: how often would be chance
OPEN = """
import os, socket, sys
with socket.socket(fileno=int(sys.argv[2])) as answer:
    socket.send_fds(answer, [b"?"], [os.pidfd_open(int(sys.argv[1]))])
"""


def pidfd_open(pid: int, flags: int = 0) -> int:
    """As of ``os``, by a child, which valgrind does not run; the OpenSSH backend needs one for each ``ssh``."""
    import socket  # here, so that the start of relay costs no more than without this
    import subprocess

    here, there = socket.socketpair()
    with here, there:
        words = [sys.executable, "-c", OPEN, str(pid), str(there.fileno())]
        subprocess.run(words, pass_fds=[there.fileno()], check=True)
        return int(socket.recv_fds(here, 1, 1)[1][0])


if __name__ == "__main__":
    sys.setswitchinterval(LONG)
    os.pidfd_open = pidfd_open
    sys.exit(main())
