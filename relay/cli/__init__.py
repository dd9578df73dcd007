"""The command ``relay``: the only place that prints, exits or configures logging."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> int:
    """Run the command with the program's arguments.

    :returns: the exit status: 0 done, 1 a failure at run time, 2 a wrong command line.
    """
    from ..transports.ssh.deferred import defer_invoke

    defer_invoke()
    try:
        from .app import run

        return run()
    except ModuleNotFoundError:
        from ..extras import missing

        problem = missing("cli")
        if problem is None:
            raise
        print(f"relay: {problem}", file=sys.stderr)
        return 2
