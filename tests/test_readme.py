"""What the README shows is true."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import relay
from relay.address import parse_listen, parse_target

ROOT = Path(relay.__file__).parent.parent
README = (ROOT / "README.md").read_text()
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
PROGRAMS = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
COMMANDS = re.findall(r"^\$ (relay forward .*?)(?: +#.*)?$", README, re.MULTILINE)


@pytest.mark.parametrize("program", PROGRAMS, ids=range(len(PROGRAMS)))
def test_the_programs_run(program):
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("listening on ('127.0.0.1', ")


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_are_understood(command):
    _, _, listen, target, *options = shlex.split(command)
    parse_listen(listen)
    parse_target(target)
    done = subprocess.run(
        # The first word after the options is one too many: everything before it was understood.
        [str(Path(sys.executable).parent / "relay"), "forward", listen, target, *options, "surplus"],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert "unexpected extra argument(s) (surplus)" in done.stderr


def test_it_shows_programs_and_commands():
    assert len(PROGRAMS) >= 2
    assert len(COMMANDS) >= 5


def test_every_public_name_is_in_it_and_every_name_in_it_is_public():
    named = set(re.findall(r"`relay\.([A-Za-z]+)", README)) - {"testing"}
    assert named <= set(relay.__all__)
    functions = {name for name in relay.__all__ if not name.endswith("Error")}
    assert functions <= named


def test_its_only_make_commands_are_demo_and_test():
    assert set(re.findall(r"\bmake ([a-z]+)\b", README)) == {"demo", "test"}


@pytest.mark.parametrize("text", [README, CONTRIBUTING], ids=["README", "CONTRIBUTING"])
def test_every_make_command_and_every_file_exists(text):
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"\bmake ([a-z]+)\b", text):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for name in re.findall(r"`((?:relay|tests|samples|benchmarks)/[\w./-]*)`", text):
        assert (ROOT / name).exists(), name
    for name in re.findall(r"\]\((\w+\.md)\)", text):
        assert (ROOT / name).exists(), name
