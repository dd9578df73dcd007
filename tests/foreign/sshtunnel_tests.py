"""Runs tests of sshtunnel's own with relay's module: ``sshtunnel_tests.py OUTPUT FOLDER NAME…``.

The folder is that of sshtunnel's source release. Its tests are unchanged: their ``import sshtunnel`` finds relay's. The
output is that of ``runner.py``. With ``--original`` as the first word they run with sshtunnel itself.
"""

from __future__ import annotations

import sys
import unittest
import unittest.mock
from pathlib import Path
from typing import Any

import runner

MODULE = "tests.test_forwarder"


def main() -> None:
    """Run the tests that the command line names, or all."""
    words: list[Any] = sys.argv[1:]
    if is_original := words[0] == "--original":
        del words[0]
    output, folder, *names = words
    sys.modules["mock"] = unittest.mock  # which it is since Python 3.3
    if not is_original:
        from relay.compat import sshtunnel

        sshtunnel.HOST_KEYS = "off"  # the one difference: the tests' server has a key that nothing knows
        sys.modules["sshtunnel"] = sshtunnel
    sys.path.insert(0, folder)
    with Path(output).open("w") as lines:
        unittest.TestLoader().loadTestsFromNames(names or [MODULE]).run(runner.Lines(lines))


if __name__ == "__main__":
    main()
