"""CPython's own network tests pass with each connect to the loopback through ``relay socks``.

A test that fails among the others must fail alone as well, and pass alone without relay, to be a failure here: what it
is about is often a time. ``differences.toml`` has the tests whose failure lies in relaying, or in the shim, with the
reason; one of them that passes is named at the end. ``make check-foreign`` runs all modules, ``make test`` those that
find most.
"""

from __future__ import annotations

import contextlib
import fnmatch
import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from command_rig import commands

HERE = Path(__file__).parent
GROUPS = {
    "web": ["docxmlrpc", "httplib", "httpservers", "socketserver", "telnetlib", "urllib2_localnet", "xmlrpc"],
    "sockets": ["epoll", "os.TestSendfile"]
    + [f"socket.{name}" for name in ("BasicTCPTest", "NonBlockingTCPTests", "NetworkConnectionBehaviourTest")],
    "tls": ["asyncio.test_ssl", "ssl"],
}
REST = ["asynchat", "asyncore", "ftplib", "imaplib", "logging", "nntplib", "poplib", "pydoc", "robotparser", "smtplib"]
REST += ["socket", "wsgiref"]
ASYNCIO = ["base_events", "buffered_proto", "events", "sendfile", "server", "sock_lowlevel", "sslproto", "streams"]
REST += [f"asyncio.test_{name}" for name in (*ASYNCIO, "unix_events")]
if os.environ.get("FOREIGN") == "all":
    GROUPS |= {name: [name] for name in REST}
AT_ONCE = 4  # modules that run side by side
LIMIT = 600.0  # seconds for one of them

FILE = tomllib.loads((HERE / "differences.toml").read_text())


class Outcome(NamedTuple):
    """The results of a run: what became of each test and why, how often the proxy was used, and why it broke off."""

    results: dict[str, list[str]]
    connects: int
    problem: str

    def failed(self) -> dict[str, str]:
        """Return the tests that have failed or have not ended, and why."""
        return {
            name: result[-1] if result[0] == "failed" else self.problem
            for name, result in self.results.items()
            if result[0] in ("failed", "began")
        }


class Run:
    """A process that runs tests, through the proxies of each family if there are any."""

    def __init__(self, names: list[str], proxies: dict[int, Any], folder: Path) -> None:
        folder.mkdir()
        self._lines, self._said = folder / "lines", folder / "said"
        self._until = time.monotonic() + LIMIT
        command = [sys.executable, str(HERE / "runner.py"), str(self._lines), json.dumps(proxies)]
        command += [json.dumps(patterns("left_out")), *names]
        with self._said.open("wb") as said:
            self._process = subprocess.Popen(
                command, cwd=folder, stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True
            )

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)  # with what its tests have left behind
        self._process.wait()

    def outcome(self) -> Outcome:
        """Wait for its end."""
        problem = ""
        try:
            status = self._process.wait(max(0.0, self._until - time.monotonic()))
        except subprocess.TimeoutExpired:
            problem = f"it ran for {LIMIT:g} s"
        else:
            if status:
                problem = f"status {status}: {self._said.read_text(errors='replace')[-2000:]}"
        lines = [json.loads(line) for line in self._lines.read_text().splitlines()] if self._lines.exists() else []
        connects = lines.pop()[0] if lines and len(lines[-1]) == 1 else 0
        return Outcome({name: result for name, *result in lines}, connects, problem)


def patterns(kind: str) -> list[str]:
    return [pattern for entry in FILE[kind] for pattern in entry["tests"]]


def is_listed(name: str) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns("difference"))


def name_alone(name: str) -> str:
    """Return what runs one test, or the class or module whose fixture it is."""
    fixture = re.fullmatch(r"\w+ \((.+)\)", name)
    return fixture[1] if fixture else name


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.fixture
def proxies(tmp_path):
    with commands() as start, (tmp_path / "log").open("w") as log:
        running = {int(socket.AF_INET): start(":0", command="socks", stderr=log)}
        if has_ipv6():
            running[int(socket.AF_INET6)] = start("[::1]:0", command="socks", stderr=log)
        addresses = {family: command.address() for family, command in running.items()}
        yield {family: (host.strip("[]"), port) for family, (host, port) in addresses.items()}
        for command in running.values():
            assert command.end()[0] == 0
    assert "bug in relay" not in (tmp_path / "log").read_text()


@pytest.mark.timeout(3 * LIMIT)
@pytest.mark.parametrize("group", GROUPS)
def test_they_pass_through_a_proxy(group, proxies, tmp_path, record_property):
    if importlib.util.find_spec("test") is None or importlib.util.find_spec("test.test_socket") is None:
        minor = sys.version_info.minor
        pytest.skip(f"the Python of {sys.prefix} has no tests of its own (Debian: libpython3.{minor}-testsuite)")
    modules = [f"test.test_{name}" for name in GROUPS[group]]
    modules = [name for name in modules if importlib.util.find_spec(".".join(name.split(".")[:2])) is not None]
    outcomes = {}
    while modules:
        some, modules = modules[:AT_ONCE], modules[AT_ONCE:]
        with contextlib.ExitStack() as stack:
            runs = {name: stack.enter_context(Run([name], proxies, tmp_path / name)) for name in some}
            outcomes |= {name: run.outcome() for name, run in runs.items()}

    failures, passed = [], []
    for module, outcome in outcomes.items():
        failed = outcome.failed()
        new = [name for name in failed if not is_listed(name)]
        if outcome.problem:  # the tests that come next were not run
            failures.append(f"{module}: {outcome.problem}; it was at {list(outcome.results)[-1:]}")
        elif not outcome.connects:
            failures.append(f"{module}: nothing went through relay")
        for name in new if not outcome.problem else []:
            with Run([name_alone(name)], proxies, tmp_path / f"{name} again") as again:
                still = again.outcome().failed()
            if still:
                with Run([name_alone(name)], {}, tmp_path / f"{name} without") as without:
                    if without.outcome().failed():
                        continue
                failures += [f"{one}: {why}" for one, why in still.items()]
        passed += [name for name, result in outcome.results.items() if result == ["passed"] and is_listed(name)]
    for name in passed:
        record_property("measured", f"{name} passes, though it is in tests/foreign/differences.toml")
    assert not failures, "\n\n".join(failures)
