"""A tunnel in a child process of its own, as the program sees it."""

from __future__ import annotations

import concurrent.futures
import logging
import socket
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import RelayError
from .parent import NOT_STARTED
from .pool_parts import Asked
from .pool_tunnel import PoolTunnel
from .questions import NoAnswerError
from .recipes import Recipe
from .worker_slot import WorkerSlot

logger = logging.getLogger("relay")

_ANSWER = 10.0  # seconds for an answer of the child
_FAREWELL = 5.0  # seconds for the last message of a child that has ended
_START = 60.0  # seconds for a child to listen: a name to listen at may have to be looked up
_START_AT_I2P = 600.0  # the same where a router builds tunnels first


class ChildTunnel(PoolTunnel):
    """A tunnel in a child process, made by :func:`spawn`: the members of :class:`~relay.Tunnel`, and :attr:`pid`.

    Every member may be called from any thread. Those that ask the child raise :class:`RelayError` if it has died or
    does not answer within ten seconds. In a forked child of the program it is closed, and the tunnel stays with the
    program.

    It is the only tunnel of a pool with one worker that is not replaced. So its death is an error, and a child that
    does not answer for a while is not killed. The child itself listens, and removes the file of a Unix socket if the
    program is killed. It ends on a signal.

    The parameters are those of :class:`~relay.spawning.pool_parts.TunnelParts`, with the place of the only worker. The
    arguments of the recipe have ``listen``.
    """

    _late = "the child process did not listen within {1:.0f} s"

    def __init__(
        self,
        key: int,
        slots: Sequence[WorkerSlot],
        recipe: Recipe,
        receive: socket.socket | None,
        options: Mapping[str, Any],
    ) -> None:
        (self._slot,) = slots
        self._pid = self._slot.status().pid or 0  # 0 if it has died since it was up
        self._lost = ""  # why there are no answers
        # The process ID distinguishes a tunnel without a name.
        super().__init__(
            key, slots, recipe, receive, {**options, "name": options["name"] or f"relay child {self._pid}"}
        )
        at_i2p = str(recipe.arguments["listen"]).lower().startswith("i2p")
        self._start_timeout = (_START_AT_I2P if at_i2p else _START) + recipe.ready

    @property
    def pid(self) -> int:
        """The process id of the child."""
        return self._pid

    def join(self, timeout: float | None = None) -> None:
        """Wait until the child has ended, for whatever reason.

        :param timeout: seconds to wait; ``None`` for ever.
        """
        self._slot.join(timeout)

    def on_died(self, number: int, fate: str) -> int:
        """Take the death of the child, which has not reported that the tunnel is closed."""
        with self._changed:
            if self._was_open:
                self._lost = f"the child process {self._pid} {fate}, and its connections are lost; spawn it again"
            else:
                self._error = self._error or RelayError(NOT_STARTED.format(fate))
        lost = super().on_died(number, fate)
        self.finish()
        if self._lost:
            logger.error("%s: %s", self.name, self._lost)
        return lost

    def abandon(self) -> None:
        """Leave the tunnel to the program, in a forked child."""
        self._lost = "it stays with the process that spawned it"
        super().abandon()

    def _answered(self, asked: Sequence[Asked]) -> list[Asked]:
        """Wait for the answer.

        :raises RelayError: if there is none, although the tunnel is not closed.
        """
        concurrent.futures.wait([each.question for each in asked], _ANSWER)
        done = [each for each in asked if each.question.done()]
        answered = [each for each in done if not isinstance(each.question.exception(), NoAnswerError)]
        if not answered:
            if len(done) == len(asked) and not self._slot.is_own_thread():
                self._is_closed_within(_FAREWELL)  # what it said last comes over another socket
            if self._lost:
                raise RelayError(f"{self.name}: {self._lost}")
            if self._phase != "closed":
                raise RelayError(f"{self.name}: the child process {self._pid} did not answer within {_ANSWER:.0f} s")
        return answered

    def __repr__(self) -> str:
        state = "lost" if self._lost else "open" if self._phase == "paused" else self._phase
        return f"<{type(self).__name__} {self.name!r} at {self._address}, process {self._pid}, {state}>"
