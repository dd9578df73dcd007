"""Every sample runs, and says what it is for."""

import ast
import os
import re
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from helpers import WAIT, receive_all

ROOT = Path(__file__).parents[1]
FILE = ROOT / "samples" / "12_relay.toml"
LIBRARY = ROOT / "samples" / "13_a_library"
SAMPLES = sorted((ROOT / "samples").glob("[0-9]*.py"))


def run(*arguments):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        capture_output=True,
        text=True,
        timeout=WAIT,
        env=environment,
        cwd=ROOT,
    )


def test_there_are_samples():
    numbers = sorted(path.name[:2] for path in (*SAMPLES, FILE, LIBRARY))
    assert numbers == [f"{number + 1:02}" for number in range(len(numbers))]
    assert len(SAMPLES) >= 2


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_it_runs_as_a_program(path):
    done = run(str(path))
    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert "Traceback" not in done.stderr
    assert "Warning" not in done.stderr


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_it_says_what_it_is_for_and_is_in_the_list(path):
    assert ast.get_docstring(ast.parse(path.read_text()))
    assert path.name in (ROOT / "samples" / "README.md").read_text()


def test_the_first_relay_takes_ten_lines():
    tree = ast.parse((ROOT / "samples" / "01_first_relay.py").read_text())
    imports = (ast.Import, ast.ImportFrom)
    statements = [node for node in tree.body[1:] if not isinstance(node, imports)]
    lines = {node.lineno for statement in statements for node in ast.walk(statement) if hasattr(node, "lineno")}
    assert 3 <= len(lines) <= 10


def test_the_unit_test_of_a_factory_is_a_test_for_pytest_too():
    sample = ROOT / "samples" / "02_test_your_factory.py"
    done = run("-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "python_files=*.py", str(sample))
    assert done.returncode == 0, done.stdout
    assert "passed" in done.stdout


def test_a_library_takes_relay_as_an_extra():
    assert LIBRARY.name in (ROOT / "samples" / "README.md").read_text()
    done = run(
        "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(LIBRARY), "-c", os.devnull, str(LIBRARY)
    )
    assert done.returncode == 0 and "4 passed" in done.stdout, done.stdout + done.stderr
    project = tomllib.loads((LIBRARY / "pyproject.toml").read_text())["project"]
    assert (project["dependencies"], project["optional-dependencies"]["ssh"]) == ([], ["relay-toolkit"])


def test_the_file_of_tunnels_is_opened(spawner_thread):
    assert FILE.name in (ROOT / "samples" / "README.md").read_text()
    program = [str(Path(sys.executable).with_name("relay"))]
    checked = subprocess.run([*program, "check", str(FILE)], capture_output=True, text=True, timeout=WAIT)
    assert (checked.returncode, checked.stderr) == (0, "")
    with subprocess.Popen([*program, "up", str(FILE)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as up:
        try:
            lines = [up.stdout.readline().decode() for _ in range(3)]
            port = next(int(re.search(r":(\d+) ", line)[1]) for line in lines if line.startswith("clock: "))
            with socket.create_connection(("127.0.0.1", port), timeout=WAIT) as clock:
                assert re.search(rb"\d\d:\d\d:\d\d", receive_all(clock))
        finally:
            up.terminate()
        assert up.wait(WAIT) == 0
