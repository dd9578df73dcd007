"""The command ``relay`` as a process, for the tests of it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from helpers import WAIT

RELAY = str(Path(sys.executable).parent / "relay")
LISTENING = re.compile(r"listening on (\S+):(\d+) → (\S+)\n")


def run(*arguments, **options):
    """A command that ends by itself."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.run([RELAY, *arguments], text=True, timeout=30, check=False, **options)


class Command:
    """A ``relay forward`` that runs, or another command."""

    def __init__(self, *arguments, command="forward", prefix=(), **options):
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": dict(os.environ), **options}
        options["env"].pop("PYTHONUNBUFFERED", None)  # what it does not flush shall not come
        self.process = subprocess.Popen([*prefix, RELAY, command, *arguments], text=True, **options)
        self.said = ""

    def address(self):
        """Where it says that it listens, on its first line."""
        line = self.process.stdout.readline()
        match = LISTENING.fullmatch(line)
        assert match, f"{line!r}, then {self.process.communicate(timeout=WAIT)}"
        return match[1], int(match[2])

    def hear(self, words):
        """Wait for a line on standard error."""
        for line in self.process.stderr:
            self.said += line
            if words in line:
                return line
        raise AssertionError(f"{words!r} is not in {self.said!r}")

    def end(self, number=signal.SIGTERM):
        """Stop it; its exit status and all of its standard error."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self):
        _, rest = self.process.communicate(timeout=WAIT)
        self.said += rest or ""
        return self.process.returncode, self.said


@contextlib.contextmanager
def commands():
    """Gives a function that starts a :class:`Command`; all of them are killed in the end."""
    with contextlib.ExitStack() as stack:

        def make(*arguments, **options):
            command = Command(*arguments, **options)
            stack.enter_context(command.process)
            stack.callback(command.process.kill)
            return command

        yield make
