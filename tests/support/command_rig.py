"""The command ``relay`` as a process, for the tests of it."""

import codecs
import contextlib
import os
import pty
import re
import select
import signal
import subprocess
import termios
import threading
import time

from helpers import WAIT
from warm_relay import RELAY, popen

LISTENING = re.compile(r"listening on (\S+):(\d+) → (\S+)( via .+)?( by .+)?\n")


def run(*arguments, input=None, **options):  # noqa: A002 - as subprocess.run() has it
    """A command that ends by itself."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": buffered(), **options}
    if input is not None:
        options["stdin"] = subprocess.PIPE
    with popen(list(arguments), text=True, **options) as process:
        try:
            output, errors = process.communicate(input, timeout=WAIT)
        finally:
            process.kill()
    return subprocess.CompletedProcess([RELAY, *arguments], process.returncode, output, errors)


def buffered(environment=os.environ):
    """The environment of a program of which nothing comes that it does not flush."""
    return {name: value for name, value in environment.items() if name != "PYTHONUNBUFFERED"}


def tunnel(name, target, *more, listen=":0"):
    """The table of a tunnel in a file, with more lines."""
    return "\n".join([f"[tunnels.{name}]", f'listen = "{listen}"', f'target = "{target}"', *more, ""])


def squeezed(text):
    """A text without white space: a help text is wrapped as it fits."""
    return "".join(text.split())


class Command:
    """A ``relay forward`` that runs, or another command."""

    def __init__(self, *arguments, command="forward", prefix=(), **options):
        environment = buffered(options.pop("env", os.environ))
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment, **options}
        if prefix:
            self.process = subprocess.Popen([*prefix, RELAY, command, *arguments], **options)
        else:
            self.process = popen([command, *arguments], **options)
        self.said = ""

    def address(self):
        """The address from its first line."""
        line = self.process.stdout.readline()
        match = LISTENING.fullmatch(line)
        assert match, f"{line!r}, then {self.process.communicate(timeout=WAIT)}"
        return match[1], int(match[2])

    def hear(self, words):
        """Wait for a line on standard error. A command that does not write it in time is killed."""
        deadline = threading.Timer(WAIT, self.process.kill)
        deadline.start()
        try:
            for line in self.process.stderr:
                self.said += line
                if words in line:
                    return line
        finally:
            deadline.cancel()
            deadline.join()
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


class Terminal:
    """A terminal of 100 columns, and what was written to it."""

    def __init__(self, stack):
        self.ours, self.its = pty.openpty()
        for descriptor in (self.ours, self.its):
            stack.callback(os.close, descriptor)
        termios.tcsetwinsize(self.its, (40, 100))
        self.seen = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")()

    def wait_for(self, *words):
        """Read until all of the words were seen."""
        deadline = time.monotonic() + WAIT
        while not all(word in self.seen for word in words):
            ready, _, _ = select.select([self.ours], [], [], max(0, deadline - time.monotonic()))
            assert ready, f"no {words} in {self.seen!r}"
            self.seen += self._decoder.decode(os.read(self.ours, 1 << 16))
