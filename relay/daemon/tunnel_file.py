"""The file of tunnels, which is read at the start and again at each reload."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ..addresses.size import parse_size
from ..config import Config, Written, read
from ..config.models import File
from ..transports.resume.figures import BUDGET
from .failures import ProblemsError, ReloadError, configuration_read, describe_error, status_of
from .member import Member
from .options import LOG_INTERVAL, EndpointPlan, LogPlan, Options
from .plan import Plan
from .plan_from_file import check_problems, plans_of
from .rule_notices import rule_warnings
from .top_keys import KeyChange, compare_keys
from .verdicts import with_files
from .worker_processes import WorkerProcesses

logger = logging.getLogger("relay.cli")


class _Read(NamedTuple):
    """The file without problems, as it was read last: what is written as then need not be checked again."""

    written: Written
    plans: Sequence[Plan]


class Reread(NamedTuple):
    """The content of a file that was read again, without problems."""

    config: Config
    plans: list[Plan]
    keys: tuple[KeyChange, ...] = ()
    """The keys at its top that have changed."""

    @property
    def file(self) -> File:
        """Its tables."""
        return self.config.file

    def warn_of_rules(self, plans: Iterable[Plan]) -> None:
        """Warn of the rules that can never match, each once: tunnels may have the lists of the defaults.

        :param plans: those of the tunnels.
        """
        warnings = (text for plan in plans for text in rule_warnings(self.config, plan.table, plan))
        for warning in dict.fromkeys(warnings):
            logger.warning("%s", warning)


class TunnelFile:
    """A ``relay.toml``, which is read again at each reload. Its paths are relative to its folder.

    :param path: of the file, absolute.
    :param shown: the options of output.
    :param name: of the file in messages, as the user gave it.
    :param given: the keys at the top of the file that options of the command line override, with their values.
    """

    def __init__(self, path: str, shown: Options, name: str, given: Mapping[str, Any] | None = None) -> None:
        self.path = path
        self.name = name
        self.processes = WorkerProcesses()
        """The workers of its tunnels; their number is that of the first reading."""
        self._shown = dataclasses.replace(shown, processes=self.processes)
        self._last: _Read | None = None
        self._given = given or {}
        self._started = self.current = File()
        """The tables of the file at the start, or after the last reload."""

    def first(self) -> list[Member]:
        """Read the file at the start, in its folder.

        :returns: its tunnels.
        :raises ProblemsError: if it has problems.
        :raises OSError: if it cannot be read.
        """
        config = read(self.path, self.name)
        self._started = self.current = config.file
        self._shown = dataclasses.replace(self._shown, workers=self._key(self._started, "workers"))
        with contextlib.chdir(config.folder):
            plans = self._plans(config)
        check_problems(config)
        Reread(config, plans).warn_of_rules(plans)
        self.processes.size = max((plan.workers for plan in plans), default=1)
        if config.file.resume_memory is not None:
            BUDGET.limit = parse_size(config.file.resume_memory)
        self._last = _Read(config.written, plans)
        return [Member(plan) for plan in plans]

    def endpoints(self, file: File) -> EndpointPlan:
        """Return where to listen for operators."""
        control, status = self._key(file, "control"), self._key(file, "status")
        return EndpointPlan(control, status, bool(file.status_public), file.status_token_file, self.path)

    def log(self, file: File) -> LogPlan:
        """Return where the access log is, and the state."""
        interval = self._key(file, "log_interval") or LOG_INTERVAL
        return LogPlan(self._key(file, "log_file"), interval, self._started.state)

    @property
    def shutdown_delay(self) -> float:
        """Seconds from a signal until the listeners close."""
        return self._key(self.current, "shutdown_delay") or 0.0

    @property
    def sandbox(self) -> str | None:
        """The mode of the sandbox: ``auto``, ``on`` or ``off``; ``None`` for the default."""
        return self._key(self._started, "sandbox")  # type: ignore[no-any-return]

    def _key(self, file: File, name: str) -> Any:
        """Return a key at the top of a file, or the option of the command line that overrides it."""
        return self._given.get(name, getattr(file, name))

    def again(self) -> Reread:
        """Read the file again; the current directory is its folder.

        :raises ReloadError: if it has problems, or cannot be read.
        """
        last = self._last
        assert last is not None, "it was read at the start"
        try:
            with configuration_read():
                config = read(self.path, self.name, last.written)
        except (OSError, ValueError) as error:
            raise ReloadError([describe_error(error)], status_of(error)) from error
        plans = self._plans(config, {plan.name: plan for plan in last.plans})
        try:
            check_problems(config)
        except ProblemsError as error:
            raise ReloadError(error.lines, error.status) from error
        self._last = _Read(config.written, plans)
        keys = compare_keys(self._started, self.current, config.file, self._given)
        return Reread(config, plans, keys)

    def _plans(self, config: Config, known: Mapping[str, Plan] | None = None) -> list[Plan]:
        return [with_files(plan) for plan in plans_of(config, self._shown, known)]
