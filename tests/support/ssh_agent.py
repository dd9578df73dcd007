"""A real ssh-agent of a test's own."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from helpers import WAIT, wait_until

from relay.process import DEVNULL, end, start


class RealAgent:
    """An agent that runs from when it is made until the end of the ``with``."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self._process = start(["ssh-agent", "-D", "-a", self.path], stderr=DEVNULL)
        wait_until(self._answers)

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(self.path) == 0

    def __enter__(self) -> RealAgent:
        return self

    def __exit__(self, *error: object) -> None:
        end(self._process, WAIT)

    def add(self, key: Path) -> None:
        """Load a key, and the certificate that lies beside it."""
        self._run("ssh-add", "-q", str(key))

    def remove_all(self) -> None:
        """Forget every key."""
        self._run("ssh-add", "-q", "-D")

    def _run(self, *argv: str) -> None:
        environment = {**os.environ, "SSH_AUTH_SOCK": self.path}
        assert start(argv, stderr=DEVNULL, env=environment).wait(WAIT) == 0
