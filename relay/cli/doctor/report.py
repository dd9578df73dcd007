"""The results of ``relay doctor``: checks, in sections, and their JSON form."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...addresses.printable import printable

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
