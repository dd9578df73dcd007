"""The way out through a program of this machine: its standard input and output is the stream."""

from __future__ import annotations

from ..hops import Command
from ..program import Programs

__all__ = ["Local"]


class Local(Programs):
    """Streams to a command that runs here, a new process for each; see :func:`relay.program.run`.

    :param command: what to run; of a hop, what :meth:`relay.hops.Command.to` returns.
    """

    def __init__(self, command: Command) -> None:
        super().__init__(command.words, str(command))
