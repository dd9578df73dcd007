"""Parts of relay that are installed only when asked for: without them the rest works, and says what to install."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import relay
from relay.extras import EXTRAS, missing

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
HIDE = "import sys\nsys.modules.update(dict.fromkeys({!r}))\n"  # then they are not found
COMMAND = "import relay.cli\nsys.argv[0] = 'relay'\nsys.exit(relay.cli.main())"


def without(*extras: str, code: str, arguments: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run code in a Python that lacks the packages of some extras."""
    hidden = [name for extra in extras for name in EXTRAS[extra]]
    words = [sys.executable, "-c", HIDE.format(hidden) + code, *arguments]
    return subprocess.run(words, capture_output=True, text=True, timeout=60)


def test_they_are_those_of_the_distribution():
    extras = {name: PROJECT["optional-dependencies"][name] for name in EXTRAS}
    names = {
        extra: tuple(re.match(r"[\w-]+", one)[0].replace("-", "_") for one in each) for extra, each in extras.items()
    }
    assert names == EXTRAS
    assert PROJECT["optional-dependencies"]["all"] == [f"relay-toolkit[{','.join(EXTRAS)}]"]


def test_nothing_is_missing_here():
    assert [missing(extra) for extra in EXTRAS] == [None] * len(EXTRAS)


@pytest.mark.parametrize("module", ["aio", "types", "testing", "compat.zmqssh", "compat.rforward", "compat.sshtunnel"])
def test_the_library_needs_none_of_them(module):
    code = f"import relay, relay.{module}\nprint(*(getattr(relay, name).__name__ for name in relay.__all__))"
    done = without(*EXTRAS, code=code)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.split()) == len(relay.__all__)


def test_the_command_needs_its_own():
    done = without("cli", code=COMMAND, arguments=("forward", ":0", "127.0.0.1:9"))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == ("relay: the Python package click is not installed; run: pip install 'relay-toolkit[cli]'\n")


@pytest.mark.parametrize(
    ("option", "what"), [("--status=127.0.0.1:0", "the status server"), ("--control={}/control", "the control socket")]
)
def test_what_is_asked_for_needs_its_own(option, what, tmp_path):
    given = ("forward", option.format(tmp_path), ":0", "127.0.0.1:9")
    done = without("status", code=COMMAND, arguments=given)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith(
        f"{what} needs more: the Python package prometheus-client is not installed; "
        "run: pip install 'relay-toolkit[status]'"
    )


@pytest.mark.parametrize(
    "arguments", [(":0", "ws://h/"), ("ws://:0/", "127.0.0.1:9"), (":0", "db:1", "--via", "wss://h/")]
)
def test_websockets_need_their_own(arguments):
    done = without("websocket", code=COMMAND, arguments=("forward", *arguments))
    assert done.returncode == 2
    text = "the Python package wsproto is not installed; run: pip install 'relay-toolkit[websocket]'"
    assert [line.endswith(text) for line in done.stderr.splitlines()] == [True], done.stderr


def test_the_command_runs_without_what_was_not_asked_for():
    done = without("status", "sandbox", code=COMMAND, arguments=("demo",))
    assert done.returncode == 0, done.stderr
