"""Threads for answers: few at a time, and one for all who ask the same.

What clients ask of a status server must not keep the relay threads from the interpreter, nor a health check waiting.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from typing import TypeVar

from anyio import CapacityLimiter, to_thread
from starlette.responses import Response

REST = 10  # an answer that takes long is shared for so many times its duration,
LONGEST = 2.0  # and for so many seconds at most

Result = TypeVar("Result")


class Threads:
    """Threads of some answers; further ones wait for their turn. Belongs to the loop of the server.

    :param most: how many.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._limiter: CapacityLimiter | None = None  # made in the loop

    async def run(self, function: Callable[[], Result]) -> Result:
        """Call a function on a thread, and wait for it."""
        if self._limiter is None:
            self._limiter = CapacityLimiter(self._most)
        return await to_thread.run_sync(function, limiter=self._limiter)


class Shared:
    """Answers that all who ask the same get together, computed once. Belongs to the loop of the server.

    :param threads: compute them.
    :param seconds: for which an answer is shared from its begin, at least. With 0 all share it who have asked before
        its begin, so that none is older than its question.
    """

    def __init__(self, threads: Threads, seconds: float) -> None:
        self._threads = threads
        self._seconds = seconds
        self._answers: dict[str, asyncio.Task[Response]] = {}  # that others can still share

    async def get(self, question: str, compute: Callable[[], Response]) -> Response:
        """Return the answer to a question.

        :param question: the same text for the same answer.
        :param compute: computes it.
        :raises Exception: what that raises.
        """
        answer = self._answers.get(question)
        if answer is None:
            answer = asyncio.create_task(self._compute(question, compute))
            self._answers[question] = answer
        return await asyncio.shield(answer)  # one who leaves disturbs no other

    async def _compute(self, question: str, compute: Callable[[], Response]) -> Response:
        loop = asyncio.get_running_loop()
        forget = functools.partial(self._forget, question, self._answers[question])
        begun = loop.time()

        def begin() -> Response:
            nonlocal begun
            begun = loop.time()
            if not self._seconds:
                # On this thread: a client that asks while the answer is computed must not get it, for it may be older
                # than the question. The loop never replaces an entry that is there, so this removes its own.
                forget()
            return compute()

        try:
            response = await self._threads.run(begin)
        except BaseException:
            forget()
            raise
        rest = min(max(self._seconds, REST * (loop.time() - begun)), LONGEST)
        loop.call_at(begun + rest, forget)
        return response

    def _forget(self, question: str, answer: asyncio.Task[Response]) -> None:
        if self._answers.get(question) is answer:
            del self._answers[question]
