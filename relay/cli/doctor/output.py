"""The report as text: a list with one line for each check, and its advice below."""

from __future__ import annotations

import os
import sys

from ..output import print_line
from .report import Check, Report, Section, Status

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
            f"  {_colored(_MARKS[Status.OK], _COLORS[Status.OK])} {_count(rest, 'check')}; relay doctor shows them"
        )


def print_summary(report: Report) -> None:
    """Print how many checks failed."""
    warnings = f", {_count(report.warnings, 'warning')}" if report.warnings else ""
    if report.failed:
        print_line(_colored(f"{_count(report.failed, 'check')} failed{warnings}", _COLORS[Status.FAILED]))
    else:
        print_line(f"nothing failed{warnings}" if warnings else "all is well")


def _print_check(check: Check) -> None:
    mark = _colored(_MARKS[check.status], _COLORS[check.status])
    time = "" if check.seconds is None else _duration(check.seconds)
    print_line(f"  {mark} {check.step:<{_STEP}} {time:>{_TIME}}  {check.subject}: {check.text}")
    if check.advice:
        print_line(" " * (_STEP + _TIME + 7) + f"→ {check.advice}")


def _duration(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _colored(text: str, color: str) -> str:
    """Return a text in a colour, on a terminal that shows colours."""
    if "NO_COLOR" in os.environ or os.environ.get("TERM") == "dumb" or not sys.stdout.isatty():
        return text
    return f"\x1b[{color}m{text}\x1b[0m"
