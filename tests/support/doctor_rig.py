"""``relay doctor`` inside the process: its report, and the one step that it names as broken."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from relay.cli.commands import command


@dataclass
class Diagnosis:
    """The exit status and the report."""

    status: int
    report: dict[str, Any]

    @property
    def checks(self) -> list[dict[str, Any]]:
        """The checks of the routes, without those of this machine."""
        return [check for part in self.report["sections"] if part["name"] != "machine" for check in part["checks"]]

    @property
    def steps(self) -> list[str]:
        """The names of the steps that succeeded, in their order."""
        return [check["step"] for check in self.checks if check["status"] == "ok"]

    def check(self, step: str) -> dict[str, Any]:
        """The last check of a step."""
        return next(check for check in reversed(self.checks) if check["step"] == step)

    def names(self, step: str, *words: str, status: str = "failed") -> None:
        """Assert that this step alone has this status, and that its text and its advice have these words."""
        found = [check for check in self.checks if check["status"] == status]
        assert [check["step"] for check in found] == [step], self.checks
        said = f"{found[0]['text']} → {found[0]['advice']}"
        assert found[0]["advice"], found
        for word in words:
            assert word in said, said
        assert self.status == (1 if status == "failed" else 0)


def diagnose(capsys: Any, *arguments: str) -> Diagnosis:
    """Run ``relay doctor ARGUMENTS --json`` in this process."""
    status = command("doctor").main([*map(str, arguments), "--json"], prog_name="relay doctor", standalone_mode=False)
    return Diagnosis(status or 0, json.loads(capsys.readouterr().out))
