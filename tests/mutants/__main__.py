"""Change the code in small ways, and see whether the tests notice: ``python -m tests.mutants access/proxy_header``.

Mutmut makes the mutants of one module after another, in a copy of ``relay/`` and ``tests/``, and runs the tests that
reach the changed function. Each mutant must make a test fail, of the module's own test files or of the promises that
``promises.toml`` names for it, or be listed in ``equivalent.toml`` with the reason why no test can notice it. The exit
status is 1 for a survivor that is not listed. The results stay in ``build/mutants/``; with ``--again`` only those that
survived the last time are run, and ``--sample 37`` runs those whose number ends in 3 or 7.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
KEPT = ROOT / "build" / "mutants"


def _modules() -> dict[str, list[str]]:
    """Return the modules below relay/, each with the files below tests/ whose tests must notice every change in it."""
    named = tomllib.loads((HERE / "modules.toml").read_text())
    found = {}
    for module in sorted([*named["alone"], *named["beside"]]):
        folder, _, name = module.rpartition("/")
        own = f"{folder}/test_{name}.py"
        found[module] = [own] * (HERE.parent / own).exists() + named["beside"].get(module, [])
    return found


MODULES = _modules()

# Tests that take seconds, which is too long for each of a thousand mutants, and one that sees the mutants themselves.
_LEFT_OUT = [
    "engine/test_tunnel.py::test_it_has_no_members_but_those_for_users",  # a mutant is another one
    "engine/test_tunnel.py::test_nor_has_an_instance",
    "addresses/test_parse.py::test_whatever_the_text_it_is_an_address_or_an_address_error",
    *(
        f"access/test_meter.py::test_within_five_per_cent_over_ten_seconds_and_fair[{count}-{rate}]"
        for count in (1, 2, 7, 100)
        for rate in (1e8, 1e9)
    ),
    *(
        f"transports/i2p/test_messages.py::test_{name}"
        for name in (
            "every_message_comes_back",
            "whatever_comes_there_is_no_error_but_ours",
            "whatever_is_to_be_said_is_said_or_refused",
            "what_was_understood_once_is_understood_again",
        )
    ),
]

# Errors and log records are texts for people: the tests look for their words, not for each letter.
_TEXTS = [
    r"raise [\w.]+\($",
    r"raise [\w.]+\(f?\"",
    r"\b_?log\.\w+\(",
    r"self\.fail\(",
    r"^ +\w+ = f?\"[^\"]* [^\"]*\"$",
]
_SETTINGS = """
[mutmut]
source_paths = {source}
also_copy =
    relay
do_not_mutate_patterns =
    {texts}
pytest_add_cli_args =
    -p
    no:cacheprovider
    --hypothesis-profile=mutants
    {left_out}
pytest_add_cli_args_test_selection =
    {tests}
timeout_multiplier = 3.0
timeout_constant = 5.0
use_git_change_detection = false
"""
_WAIT = "10"  # seconds that a test waits for what a mutant may never do
_KILLED = {1, 3}  # exit statuses of pytest: a test has failed, or pytest itself
_TIMED_OUT = {24, 36, 152, 255, -24, -9}  # what mutmut records of a mutant that it has ended


@dataclass(frozen=True)
class Mutant:
    """One change: a function, lines of it, and what stands there instead."""

    function: str
    was: str
    becomes: str


@dataclass
class Outcome:
    """The mutants of a module, counted by their ends."""

    made: int = 0
    killed: int = 0
    timed_out: int = 0
    equivalent: int = 0
    survived: list[Mutant] = field(default_factory=list)


def run(module: str, children: int, again: bool, sample: str = "") -> Outcome:
    """Run the tests of a module against its mutants.

    :param module: a key of ``MODULES``.
    :param children: how many mutants are tested at once.
    :param again: run those that survived the last time, unless the module has changed since.
    :param sample: run those whose number ends in one of these digits; all of them if it is empty.
    :raises RuntimeError: if mutmut fails, which it does if the tests fail without any mutant.
    """
    source = Path("relay", f"{module}.py")
    kept = KEPT / f"{source.with_suffix('.json')}"
    code = (ROOT / source).read_text()
    before = json.loads(kept.read_text()) if again and kept.exists() else {}
    results: dict[str, int] = before["results"] if before.get("code") == code else {}
    names = [name for name, status in results.items() if status not in _KILLED | _TIMED_OUT]
    if sample and not names:
        names = [f"*__mutmut_*[{sample}]"]
    with tempfile.TemporaryDirectory(prefix="relay-mutants-") as folder:
        copy = Path(folder)
        for name in ("relay", "tests"):
            shutil.copytree(ROOT / name, copy / name)
        shutil.copy2(ROOT / "pyproject.toml", copy)
        tests = "\n    ".join(f"tests/{test}" for test in MODULES[module] + _promises(module))
        left_out = "\n    ".join(f"--deselect=tests/{test}" for test in _LEFT_OUT)
        settings = _SETTINGS.format(source=source, texts="\n    ".join(_TEXTS), tests=tests, left_out=left_out)
        (copy / "setup.cfg").write_text((ROOT / "setup.cfg").read_text() + settings)
        if names or not results:
            argv = [str(Path(sys.executable).with_name("mutmut")), "run", "--max-children", str(children), *names]
            environ = os.environ | {"RELAY_TESTS_WAIT": _WAIT}
            ended = subprocess.run(
                argv, cwd=copy, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
            )
            if ended.returncode:
                raise RuntimeError(f"{module}: mutmut failed:\n{ended.stdout.decode(errors='replace')[-8000:]}")
            found = json.loads((copy / "mutants" / f"{source}.meta").read_text())["exit_code_by_key"]
            results |= {name: status for name, status in found.items() if status is not None}
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_text(json.dumps({"code": code, "results": results}))
        with contextlib.chdir(copy):
            return _outcome(module, source, results)


def _promises(module: str) -> list[str]:
    """Return the tests of promises that protect a module beside its own."""
    named = tomllib.loads((HERE / "promises.toml").read_text())["promise"]
    return [promise["file"] for promise in named if module in promise["modules"]]


def _outcome(module: str, source: Path, results: dict[str, int]) -> Outcome:
    """Count the results; the folder of the process is the one in which mutmut has made the mutants."""
    listed = _equivalent()
    outcome = Outcome(made=len(results))
    for name, status in results.items():
        if status in _KILLED:
            outcome.killed += 1
        elif status in _TIMED_OUT:
            outcome.timed_out += 1
        elif (mutant := _mutant(module, name, source)) in listed or _says_the_same(mutant):
            outcome.equivalent += 1
        else:
            outcome.survived.append(mutant)
    return outcome


def _mutant(module: str, name: str, source: Path) -> Mutant:
    from mutmut.mutation.diff_apply import get_diff_for_mutant

    lines = [line for line in get_diff_for_mutant(name, path=source).splitlines() if line[:3] not in ("---", "+++")]
    was, becomes = ("\n".join(line[1:].strip() for line in lines if line[0] == sign) for sign in "-+")
    # Such as relay.access.proxy_header.xǁHeaderReaderǁfeed__mutmut_3 and relay.access.proxy_header.x__end__mutmut_1.
    function = name.rpartition(".")[2].rpartition("__mutmut_")[0]
    function = function[1:].strip("ǁ").replace("ǁ", ".") if function.startswith("xǁ") else function[2:]
    return Mutant(f"{module}:{function}", was, becomes)


def _says_the_same(mutant: Mutant) -> bool:
    """Return whether the change is the case of a codec's name, a number in another form, or ``None`` for ``False``."""
    was, becomes = (re.sub(r"\bFalse\b", "None", text).replace("e+", "e") for text in (mutant.was, mutant.becomes))
    return was == becomes or any(
        was.replace(f'"{name}"', f'"{name.upper()}"') == becomes for name in ("ascii", "latin-1", "utf-8")
    )


def _equivalent() -> set[Mutant]:
    entries = tomllib.loads((HERE / "equivalent.toml").read_text()).get("mutant", [])
    return {Mutant(entry["function"], entry["was"], becomes) for entry in entries for becomes in entry["becomes"]}


def main() -> int:
    """Run what the command line names; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--children", type=int, default=os.cpu_count() or 1, help="mutants that are tested at once")
    parser.add_argument("--again", action="store_true", help="run only those that survived the last time")
    parser.add_argument("--sample", default="", metavar="DIGITS", help="run those whose number ends in one of these")
    parser.add_argument("modules", nargs="*", metavar="module", help=f"some of {', '.join(MODULES)}")
    given = parser.parse_args()
    if unknown := set(given.modules) - set(MODULES):
        parser.error(f"unknown module {min(unknown)}; known are {', '.join(MODULES)}")
    survived = 0
    for module in given.modules or MODULES:
        begun = time.monotonic()
        outcome = run(module, given.children, given.again, given.sample)
        noticed = outcome.killed + outcome.timed_out
        counted = outcome.made - outcome.equivalent
        for mutant in outcome.survived:
            print(f"\nsurvived in {mutant.function}\n- {mutant.was}\n+ {mutant.becomes}")
        print(
            f"{module}: {outcome.made} mutants, {outcome.killed} killed, {outcome.timed_out} timed out, "
            f"{outcome.equivalent} equivalent, {len(outcome.survived)} survived "
            f"({noticed / counted:.1%} noticed); {(time.monotonic() - begun) / 60:.1f} minutes",
            flush=True,
        )
        survived += len(outcome.survived)
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())
