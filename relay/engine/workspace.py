"""The objects that all flows of one relay thread share."""

from __future__ import annotations

from ..eventloop.loop import Loop
from ..eventloop.pipes import PipePool

__all__ = ["Workspace"]


class Workspace:
    """The loop and the pipes that all flows of one thread share.

    :param loop: the thread's loop.
    :param pipes: its pipes, or ``None`` where there is no ``splice``.
    """

    __slots__ = ("loop", "pipes")

    def __init__(self, loop: Loop, pipes: PipePool | None) -> None:
        self.loop = loop
        self.pipes = pipes
