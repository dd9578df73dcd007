"""The tutorial works: its commands run one after the other in one shell, and print what the page shows."""

import contextlib
import os
import queue
import re
import shlex
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from documents import PAGES
from helpers import WAIT, closed, reserved_port

PRACTICE, REAL = PAGES["tutorial"].split("## A real bastion")
PROGRAM = re.search(r"^```python\n(import signal.*?)^```", PRACTICE, re.DOTALL | re.MULTILINE)[1]
TRANSCRIPT = "".join(re.findall(r"^```console\n(.*?)^```", PRACTICE, re.DOTALL | re.MULTILINE))
STEPS = re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", TRANSCRIPT, re.MULTILINE)


class Shell:
    """A shell with job control, whose output is read line by line."""

    def __init__(self, folder):
        environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        self._process = subprocess.Popen(
            ["/bin/bash", "-m"],
            cwd=folder,
            env={**environment, "PYTHONUNBUFFERED": "1", "HOME": str(folder)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._lines = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        for line in self._process.stdout:
            self._lines.put(line.rstrip("\n"))

    def run(self, command, shown):
        """Run a command, wait for its end unless it runs in the background, and for the lines that the page shows."""
        end = f"end of {command!r}"
        background = command.endswith("&")
        self._process.stdin.write(f"{command}\n" if background else f"{command}\necho {shlex.quote(end)}\n")
        self._process.stdin.flush()
        missing, ended, seen = list(shown), background, []
        while missing or not ended:  # other jobs print as well, before and after the end
            try:
                seen.append(self._lines.get(timeout=WAIT))
            except queue.Empty:
                raise AssertionError(f"$ {command}: still missing: {missing}; printed: {seen}") from None
            if seen[-1] == end:
                ended = True
            elif found := next((line for line in missing if re.fullmatch(line, seen[-1])), None):
                missing.remove(found)

    def close(self):
        """End every job and the shell."""
        self._process.stdin.write("kill $(jobs -p); wait\nexit\n")
        self._process.stdin.close()
        try:
            self._process.wait(WAIT)
        finally:
            self._reader.join(WAIT)
            self._process.stdout.close()


@pytest.fixture
def shell(tmp_path):
    yield from closed(Shell(tmp_path))


def pattern(line):
    """A shown line as a regular expression: … stands for anything, and so does the time."""
    text = re.escape(line).replace("…", ".*")
    return re.sub(r"^\d\d:\d\d:\d\d", r"\\d\\d:\\d\\d:\\d\\d", text)


def test_the_steps_are_found():
    assert len(STEPS) >= 15
    assert sum(command.endswith("&") for command, _ in STEPS) >= 7


@pytest.fixture
def ports():
    """Each port that the page shows, and the one that takes its place."""
    shown = sorted({*re.findall(r"\b(8\d{3}|1080)\b", TRANSCRIPT)})
    with contextlib.ExitStack() as stack:
        yield {one: str(stack.enter_context(reserved_port())) for one in shown}


def test_every_step_works(shell, ports, tmp_path):
    (tmp_path / "server.py").write_text(PROGRAM)

    def here(text):
        return re.sub(r"\b(8\d{3}|1080)\b", lambda found: ports[found[0]], text)

    for command, shown in STEPS:
        shell.run(here(command), [pattern(here(line)) for line in shown.splitlines()])


def test_the_last_section_shows_the_command_for_a_real_bastion():
    assert re.findall(r"^\$ relay forward \S+ \S+ --via ssh://me@bastion$", REAL, re.MULTILINE)
