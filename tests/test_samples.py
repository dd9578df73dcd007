"""Every sample runs, and says what it is for."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SAMPLES = sorted((ROOT / "samples").glob("[0-9]*.py"))


def run(*arguments):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        capture_output=True,
        text=True,
        timeout=50,
        env=environment,
        cwd=ROOT,
    )


def test_there_are_samples():
    assert [path.name[:2] for path in SAMPLES] == [f"{number + 1:02}" for number in range(len(SAMPLES))]
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
