"""The streams of one ssh that are open or being opened, and the callbacks that wait for their ends."""

from __future__ import annotations

from collections.abc import Callable

from .opening import Opening


class OpenStreams:
    """The streams of one ssh. Every method is called with the lock of its master held.

    :param soon: calls a function on the loop's thread, without the lock.
    """

    def __init__(self, soon: Callable[[Callable[[], object]], object]) -> None:
        self._soon = soon
        self._open: set[Opening] = set()
        self._on_idle: Callable[[], object] | None = None
        self._on_sent: Callable[[], object] | None = None

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._open)

    def add(self, opening: Opening) -> None:
        """Count a stream."""
        self._open.add(opening)

    def remove(self, opening: Opening) -> None:
        """Stop counting a stream, which has ended. Idempotent."""
        if opening not in self._open:
            return
        self._open.remove(opening)
        self._look_sent()
        if not self._open:
            self._call_idle()

    def clear(self) -> None:
        """Stop counting all streams: ssh has ended."""
        self._open.clear()
        self._look_sent()
        self._call_idle()

    def when_idle(self, call: Callable[[], object] | None) -> None:
        """Call ``call`` once there is none; it replaces an earlier one."""
        self._on_idle = call

    def when_sent(self, call: Callable[[], object]) -> None:
        """Call ``call`` once ssh has released every stream that its owner has closed; at exit."""
        self._on_sent = call
        self._look_sent()

    def _call_idle(self) -> None:
        call, self._on_idle = self._on_idle, None
        if call is not None:
            # Not here: the lock is held, and the callback closes the connection, which takes it.
            self._soon(call)

    def _look_sent(self) -> None:
        call = self._on_sent
        if call is None:
            return
        leaving = [one for one in self._open if one.leave()]
        if not leaving:
            self._on_sent = None
            self._soon(call)
