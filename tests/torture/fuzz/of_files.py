"""Targets: ``relay.toml``."""

from __future__ import annotations

import os
import tomllib
from unittest import mock

from relay import config
from relay.daemon.options import Options
from relay.daemon.plan_from_file import plans_of

from .checks import FOLDER, FindingError, equal, file_of, one_line


def relay_toml(data: bytes) -> None:
    """``relay.toml``: problems on one line each; the settings that ``relay check`` writes are read as the same."""
    settled = _settled(data)
    if settled is None or "***" in settled:
        return
    again = _settled(settled.encode())
    if again is None:
        raise FindingError(f"what relay check writes has problems: {settled}")
    equal(tomllib.loads(again), tomllib.loads(settled), "the settings in what relay check writes")


def _settled(data: bytes) -> str | None:
    """Return the settings of a file as relay check writes them; ``None`` if there are problems."""
    with mock.patch.dict(os.environ, HOME=FOLDER.name, XDG_DATA_HOME=FOLDER.name):
        read = config.read(file_of(data), "relay.toml")
        plans = plans_of(read, Options())
    problems = list(read.problems.in_order())
    last = data.count(b"\n") + data.count(b"\r") + 1
    for problem in problems:
        one_line(problem.text)
        if not 0 <= problem.line <= last:
            raise FindingError(f"line {problem.line} of {last}: {problem.text}")
    if problems:
        return None
    limits = [(plan.table, {name: getattr(plan.options, name) for name in config.LIMITS}) for plan in plans]
    return config.as_toml(read.file, read.hops, limits)
