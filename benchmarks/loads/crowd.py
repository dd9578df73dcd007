"""Many connections at once: crowd.c, which holds them idle or keeps them busy while something else is measured."""

from __future__ import annotations

import json
import select
import subprocess
from typing import Any

from ..machine import MeasurementError

PATIENCE = 300.0  # seconds until all connections are there, and for the last words


class Crowd:
    """Connections of a program of their own; they are closed on leaving.

    :param program: crowd.c, compiled.
    :param kind: ``hold`` or ``drain``.
    :param port: where the relay listens.
    :param count: how many.
    :raises MeasurementError: if one of them cannot be opened.
    """

    def __init__(self, program: str, kind: str, port: int, count: int) -> None:
        self._child = subprocess.Popen(
            [program, kind, str(port), str(count)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._child.stdout is not None
        if not select.select([self._child.stdout], [], [], PATIENCE)[0] or self._child.stdout.readline() != "ready\n":
            self._child.kill()
            raise MeasurementError(f"{count} connections: {self._child.communicate()[1].strip()[-300:]}")

    def end(self) -> dict[str, float]:
        """Close the connections; return what ``drain`` has counted.

        :raises MeasurementError: if one of them has ended before.
        """
        said, errors = self._child.communicate(timeout=PATIENCE)
        if self._child.returncode:
            raise MeasurementError(errors.strip()[-300:])
        counted: dict[str, Any] = json.loads(said) if said else {}
        return counted

    def __enter__(self) -> Crowd:
        return self

    def __exit__(self, *_: object) -> None:
        if self._child.poll() is None:
            self._child.kill()
            self._child.communicate()
