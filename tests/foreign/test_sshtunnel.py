"""sshtunnel's own tests, from its source release, pass with ``relay.compat.sshtunnel``.

They are unchanged: ``sshtunnel_tests.py`` gives them relay's module where they import sshtunnel. A test that fails must
fail alone as well: they choose their ports at random. ``docs/sshtunnel.md`` lists those of private functions.
"""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import pytest
from documents import PAGES, ROOT

HERE = Path(__file__).parent
ARCHIVE = ROOT / ".sources" / "sshtunnel-0.5.1.tar.gz"  # where tests/source-releases puts it
MODULE = "tests.test_forwarder"
AT_ONCE = 4  # processes: the tests wait most of the time
LIMIT = 120.0  # seconds for one of them
ALL = 51  # tests


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """The folder of the source release."""
    if not ARCHIVE.exists():
        pytest.skip("there is no source release of sshtunnel (`make test` downloads it)")
    folder = tmp_path_factory.mktemp("sshtunnel")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder / "sshtunnel-0.5.1"


def run(source, *groups):
    """Run groups of tests side by side, each in a process; return what became of each test."""
    results = {}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        processes = []
        for number, names in enumerate(groups):
            output = stack.enter_context((folder / f"said-{number}").open("w"))
            words = [sys.executable, str(HERE / "sshtunnel_tests.py"), str(folder / f"lines-{number}"), str(source)]
            process = subprocess.Popen(
                [*words, *names], cwd=folder, env={"HOME": str(folder), "LANG": "C.UTF-8"},
                stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            )  # fmt: skip
            processes.append(stack.enter_context(process))
            stack.callback(process.kill)
        for number, process in enumerate(processes):
            process.wait(LIMIT)
            for line in (folder / f"lines-{number}").read_text().splitlines():
                name, *result = json.loads(line)
                results[name] = result
    return results


def names_in(source):
    """The names of all tests."""
    text = (source / "tests" / "test_forwarder.py").read_text()
    found, owner = [], ""
    for kind, name in re.findall(r"^ *(class|def) (\w+)", text, re.MULTILINE):
        if kind == "class":
            owner = name
        elif name.startswith("test_"):
            found.append(f"{MODULE}.{owner}.{name}")
    return found


def test_they_pass(source):
    names = names_in(source)
    assert len(names) == ALL
    private = set(re.findall(r"^\| `(test_\w+)` \|", PAGES["sshtunnel"], re.MULTILINE))
    results = run(source, *(names[first::AT_ONCE] for first in range(AT_ONCE)))
    assert set(results) == set(names)
    failed = {name: result for name, result in results.items() if result != ["passed"]}
    unexpected = [name for name in failed if name.rpartition(".")[2] not in private]
    if unexpected:
        failed |= run(source, unexpected)
        failed = {name: result for name, result in failed.items() if result != ["passed"]}
    assert {name.rpartition(".")[2] for name in failed} == private, "\n".join(map(str, failed.values()))
    assert all("has no attribute" in why or "not have the attribute" in why for _, why in failed.values())
