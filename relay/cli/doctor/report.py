"""The results of ``relay doctor``: checks, in sections, as JSON and as text."""

from __future__ import annotations

import enum
import os
import shutil
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...addresses.printable import printable
from ..output import print_line

FORMAT = 1  # of the JSON; it changes with a field's name or meaning, and not with a new field
LONGEST = 600  # characters of a text, most of which may come from a peer


class Status(enum.StrEnum):
    """The outcome of a check."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Check:
    """The outcome of one step.

    :param step: the name of the step, such as ``host key``.
    :param subject: what was tested: a hop, a target, a file.
    :param status: the outcome.
    :param text: what was found, or why it failed.
    :param advice: what to change; empty if nothing.
    :param seconds: how long it took; ``None`` if that means nothing.
    :param facts: more of what was found, for programs.
    """

    step: str
    subject: str
    status: Status
    text: str
    advice: str = ""
    seconds: float | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("subject", "text", "advice"):
            # On one line, so that no peer can print a line that looks like another check.
            line = " ".join(getattr(self, name).split())
            object.__setattr__(self, name, printable(line, LONGEST))  # a peer may have chosen a part of it

    def as_json(self) -> dict[str, Any]:
        """Return the check for :func:`json.dumps`."""
        return {
            "step": self.step,
            "subject": self.subject,
            "status": self.status.value,
            "text": self.text,
            "advice": self.advice,
            "seconds": None if self.seconds is None else round(self.seconds, 6),
            "facts": dict(self.facts),
        }


@dataclass(frozen=True, slots=True)
class Section:
    """The checks of one route, or of this machine.

    :param name: of the tunnel; ``machine`` for this machine, ``route`` for an address of the command line.
    :param title: the addresses, for people.
    :param checks: in the order of the route.
    """

    name: str
    title: str
    checks: Sequence[Check]

    @property
    def failed(self) -> int:
        """The number of checks that failed."""
        return _count(self.checks, Status.FAILED)

    def as_json(self) -> dict[str, Any]:
        """Return the section for :func:`json.dumps`."""
        checks = [check.as_json() for check in self.checks]
        return {"name": self.name, "title": self.title, "ok": not self.failed, "checks": checks}


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that was tested."""

    sections: Sequence[Section]

    @property
    def failed(self) -> int:
        """The number of checks that failed."""
        return _count(self._checks(), Status.FAILED)

    @property
    def warnings(self) -> int:
        """The number of warnings."""
        return _count(self._checks(), Status.WARNING)

    def as_json(self) -> dict[str, Any]:
        """Return the report for :func:`json.dumps`."""
        return {
            "format": FORMAT,
            "ok": not self.failed,
            "failed": self.failed,
            "warnings": self.warnings,
            "sections": [section.as_json() for section in self.sections],
        }

    def _checks(self) -> list[Check]:
        return [check for section in self.sections for check in section.checks]


def _count(checks: Iterable[Check], status: Status) -> int:
    return sum(check.status is status for check in checks)


_MARKS = {Status.OK: "✓", Status.WARNING: "!", Status.FAILED: "✗", Status.SKIPPED: "–"}
_COLORS = {Status.OK: "32", Status.WARNING: "33", Status.FAILED: "31", Status.SKIPPED: "2"}  # of ECMA-48, SGR
_STEP = 14  # characters of the longest name of a step
_TIME = 9


def print_section(section: Section, *, brief: bool = False) -> None:
    """Print the title and the checks of a section.

    :param section: the section.
    :param brief: whether checks without a problem are only counted.
    """
    print_line(_colored(section.title, "1"))
    shown = [check for check in section.checks if not (brief and check.status in (Status.OK, Status.SKIPPED))]
    for check in shown:
        _print_check(check)
    if brief:
        rest = len(section.checks) - len(shown)
        print_line(
            f"  {_colored(_MARKS[Status.OK], _COLORS[Status.OK])} {_counted(rest, 'check')}; relay doctor shows them"
        )


def print_summary(report: Report) -> None:
    """Print how many checks failed."""
    warnings = f", {_counted(report.warnings, 'warning')}" if report.warnings else ""
    if report.failed:
        print_line(_colored(f"{_counted(report.failed, 'check')} failed{warnings}", _COLORS[Status.FAILED]))
    else:
        print_line(f"nothing failed{warnings}" if warnings else "all is well")


def _print_check(check: Check) -> None:
    mark = _colored(_MARKS[check.status], _COLORS[check.status])
    time = "" if check.seconds is None else _duration(check.seconds)
    indent = " " * (_STEP + _TIME + 7)
    first, *rest = _lines(f"{check.subject}: {check.text}", len(indent))
    print_line(f"  {mark} {check.step:<{_STEP}} {time:>{_TIME}}  {first}")
    for line in (*rest, *(_lines(f"→ {check.advice}", len(indent)) if check.advice else ())):
        print_line(f"{indent}{line}")


def _lines(text: str, indent: int) -> list[str]:
    """Break a text between words where a terminal would break it anywhere."""
    if not sys.stdout.isatty():
        return [text]
    width = max(30, shutil.get_terminal_size().columns - indent)
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)


def _duration(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _colored(text: str, color: str) -> str:
    """Return a text in a colour, on a terminal that shows colours."""
    if "NO_COLOR" in os.environ or os.environ.get("TERM") == "dumb" or not sys.stdout.isatty():
        return text
    return f"\x1b[{color}m{text}\x1b[0m"
