"""A ``relay up`` that is upgraded again and again, and clients of it that count what goes wrong."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time

from command_rig import buffered, run
from helpers import WAIT, wait_until
from warm_relay import RELAY

_NEXT_STEP = 0.1  # seconds after which a relay that has not ended is sent another signal

# Connects as fast as it is served, and prints how often it was and what failed, once its standard input ends.
_CLIENT = """
import json, select, socket, sys, time
port, pause, served, failures, longest = int(sys.argv[1]), float(sys.argv[2]), 0, [], 0.0
print("ready", flush=True)
while not select.select([0], [], [], pause)[0] and len(failures) < 100:
    began = time.monotonic()
    try:
        with socket.create_connection(("127.0.0.1", port), 30) as client:
            if not client.recv(1):
                raise OSError("EOF")
    except OSError as error:
        failures.append(repr(error))
    else:
        served += 1
        longest = max(longest, time.monotonic() - began)
print(json.dumps([served, failures, longest]))
"""


class Clients:
    """Programs whose clients connect to a port, one after the other, until :meth:`end`.

    :param pause: seconds between two clients.
    """

    def __init__(self, port, programs=2, pause=0.0):
        argv = [sys.executable, "-I", "-S", "-c", _CLIENT, str(port), str(pause)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._programs = [subprocess.Popen(argv, **pipes) for _ in range(programs)]
        for program in self._programs:
            assert program.stdout.readline() == "ready\n"

    def end(self):
        """Stop them; how many were served, what failed, and the longest time of one in seconds."""
        served, failures, longest = 0, [], 0.0
        for program in self._programs:
            found = json.loads(program.communicate(timeout=WAIT)[0])
            served, failures, longest = served + found[0], failures + found[1], max(longest, found[2])
        return served, failures, longest


class Upgraded:
    """The installed ``relay up``, which its successors replace.

    :param folder: of its file, its log and its control socket.
    :param text: the tunnels.
    :param environment: of the process.
    """

    def __init__(self, folder, text, program=RELAY, **environment):
        self.file = folder / "relay.toml"
        self.control = str(folder / "c.sock")
        self.log = folder / "log"
        self.write(text)
        self.argv = [str(program), "up", str(self.file), "--control", self.control]
        self._environment = {**buffered(), **environment}
        self.first = self.begin()
        self.pids = [self.first.pid]
        self.times: list[float] = []  # seconds of each upgrade
        count = text.count("[tunnels.")
        try:
            wait_until(lambda: self.first.poll() is not None or f"{count} of {count} tunnels listen" in self.said())
            assert self.first.poll() is None, self.said()
        except BaseException:
            self.close()
            raise

    def begin(self, *words):
        """Start the command line, with further words."""
        with open(self.log, "ab") as log:
            pipes = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
            return subprocess.Popen([*self.argv, *words], env=self._environment, **pipes)

    def write(self, text):
        """Write the file."""
        self.file.write_text(text)
        self.file.chmod(0o600)

    def said(self):
        """Everything that all processes have printed and logged."""
        return self.log.read_text()

    def ctl(self, *words):
        """Run a relay ctl about it."""
        return run("ctl", *words, "--control", self.control)

    def facts(self):
        """Return the facts of ``relay ctl status``."""
        return json.loads(self.ctl("status", "--json").stdout)

    def listed(self, kind):
        """Return the rows of a list of relay ctl."""
        return json.loads(self.ctl(kind, "--json").stdout)[kind]

    def port(self, name):
        """The port at which a tunnel listens."""
        tunnels = json.loads(self.ctl("list", "--json").stdout)["tunnels"]
        return int(next(one["listen"] for one in tunnels if one["name"] == name).rpartition(":")[2])

    def upgrade(self):
        """Upgrade it by relay ctl; return the ID of the new process."""
        begin = time.monotonic()
        done = self.ctl("upgrade", "--json")
        self.times.append(time.monotonic() - begin)
        assert done.returncode == 0, done.stderr + self.said()
        self.pids.append(json.loads(done.stdout)["pid"])
        assert self.facts()["pid"] == self.pids[-1]
        return self.pids[-1]

    def close(self):
        """End the processes that are left."""
        for pid in self.pids[::-1]:
            with contextlib.suppress(ProcessLookupError):
                file = os.pidfd_open(pid)
                try:
                    end(file)
                finally:
                    os.close(file)
        self.first.wait(WAIT)


def end(file):
    """End a relay at once: each SIGTERM begins the next step of its end. The kernel may make one of several."""
    deadline = time.monotonic() + WAIT
    is_over = False
    while not is_over:
        assert time.monotonic() < deadline, "it did not end"
        signal.pidfd_send_signal(file, signal.SIGTERM)
        is_over = has_ended(file, _NEXT_STEP)


def has_ended(file, seconds):
    """Wait for the end of a process, which may be no child of this one; return whether it has ended."""
    return bool(select.select([file], [], [], seconds)[0])


@contextlib.contextmanager
def ends(pid):
    """Check that a process ends at the end of the block, and not before."""
    file = os.pidfd_open(pid)
    try:
        yield
        assert has_ended(file, WAIT), "it did not end"
    finally:
        os.close(file)
