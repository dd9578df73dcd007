"""Runs tests of Python's own, perhaps through a SOCKS proxy: ``runner.py OUTPUT PROXIES LEFT_OUT NAME…``.

Each line of the output is a list: the name of a test, and what became of it, which is ``began``, ``passed``,
``skipped``, or ``failed`` with the text of its failure. The last line has the number of connects through the proxy.

The proxies are a JSON object: family → host, port. What is left out is a list of patterns of names.
"""

from __future__ import annotations

import fnmatch
import json
import sys
import unittest
from pathlib import Path
from typing import IO, Any

import shim
from test import support


class Lines(unittest.TestResult):
    """Writes a line for each test as soon as there is news of it."""

    def __init__(self, output: IO[str]) -> None:
        super().__init__()
        self._output = output
        self._last = ""  # what became of the current test

    def _say(self, test: Any, *words: str) -> None:
        self._output.write(json.dumps([test.id(), *words]) + "\n")
        self._output.flush()

    def startTest(self, test: Any) -> None:
        super().startTest(test)
        self._last = "passed"
        self._say(test, "began")

    def stopTest(self, test: Any) -> None:
        super().stopTest(test)
        if self._last == "passed":
            self._say(test, "passed")

    def addError(self, test: Any, err: Any) -> None:
        self._failed(test, err)

    def addFailure(self, test: Any, err: Any) -> None:
        self._failed(test, err)

    def addSubTest(self, test: Any, subtest: Any, err: Any) -> None:
        if err is not None:
            self._failed(test, err)

    def addSkip(self, test: Any, reason: str) -> None:
        self._last = "skipped"
        self._say(test, "skipped", reason)

    def _failed(self, test: Any, err: Any) -> None:
        self._last = "failed"
        self._say(test, "failed", self._exc_info_to_string(err, test))  # type: ignore[attr-defined]


def main() -> None:
    """Run the tests that the command line names."""
    output, proxies, left_out, *names = sys.argv[1:]
    # Neither the Internet, nor what takes minutes; the tests of socketserver mean the loopback when they say network.
    support.use_resources = ["network"] if names == ["test.test_socketserver"] else []
    support.verbose = False
    families = {int(family): tuple(address) for family, address in json.loads(proxies).items()}
    if families:
        shim.install(families)
    patterns = json.loads(left_out)
    suite = unittest.TestLoader().loadTestsFromNames(names)
    with Path(output).open("w") as lines:
        _without(suite, patterns).run(Lines(lines))
        lines.write(json.dumps([len(shim.reached)]) + "\n")


def _without(suite: unittest.TestSuite, patterns: list[str]) -> unittest.TestSuite:
    """Return a suite without the tests whose names match a pattern, with the same classes and modules in it."""
    kept: list[Any] = []
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            kept.append(_without(test, patterns))
        elif not any(fnmatch.fnmatchcase(test.id(), pattern) for pattern in patterns):
            kept.append(test)
    return unittest.TestSuite(kept)


if __name__ == "__main__":
    main()
