"""Names for asyncio programs: :func:`connect` and :class:`Tunnel`. Everything else works there unchanged."""

from __future__ import annotations

import asyncio
import functools
import socket
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self, Unpack

from .addresses.signatures import shows_options
from .api.urls import target
from .engine import tunnel
from .engine.keywords import TunnelKeywords
from .engine.options import TunnelOptions
from .engine.records import ConnectionRecord, Metrics, Stats
from .errors import ConnectError
from .streams.checks import check_time
from .streams.dialer import Dialer
from .streams.promise import LATE, Promise
from .streams.protocols import Listener, MakeSend
from .streams.stream import Stream

__all__ = ["Tunnel", "connect"]


async def connect(
    url: str | int,
    via: Sequence[str] = (),
    timeout: float | None = 30.0,  # noqa: ASYNC109  (as relay.connect has it)
) -> socket.socket:
    """Connect to any address, with what must be between hidden, while the loop does something else.

    Cancelling it gives the attempt up, and nothing is left of it. (A name that the system's resolver looks up is an
    exception: nothing stops that, and its thread ends with the answer.)

    :param url: as in :func:`relay.target`.
    :param via: as in :func:`relay.target`.
    :param timeout: seconds for all of it; ``None`` for as long as the system tries. Over I2P a session may have to be
        made first, which takes up to a minute: give it 90.
    :returns: a connected, non-blocking socket, for ``asyncio.open_connection(sock=…)`` and ``loop.sock_recv``; closing
        it releases what lies under it. Reading from it raises ConnectionResetError where relay knows that the
        transfer was cut, as with :func:`relay.connect`.
    :raises OSError: as :func:`relay.connect` does, with the same classes and texts.
    :raises ValueError: if ``timeout`` is not positive; :class:`relay.AddressError` for an address.
    :raises TypeError: if ``timeout`` is not a number.
    """
    seconds = check_time("timeout", timeout)
    # The moment is fixed before the thread below starts: reading files counts as a part of the caller's time.
    deadline = None if seconds is None else time.monotonic() + seconds
    factory = await asyncio.to_thread(target, url, via)  # which may read files
    try:
        # The factory lives for this one stream: it closes itself when that ends, or at once where there is none.
        stream = await _stream(factory, deadline)
    finally:
        factory.close_when_idle()
    return stream.socket


async def _stream(factory: Dialer, deadline: float | None) -> Stream:
    loop = asyncio.get_running_loop()
    there: asyncio.Future[None] = loop.create_future()
    answer: Promise[Stream] = Promise()

    def done(outcome: Stream | OSError) -> None:
        """In any thread."""
        # A loop that is closed runs no callback, so no task will ever take the stream: without the refusal it would
        # stay open for the life of the process.
        if answer.put(outcome) and not _call(loop, there.set_result, None):
            answer.refuse()

    # Self-contained, because the program gets a plain socket: nothing of relay's stays with it to close what lies
    # below.
    give_up = factory.dial(deadline, done, self_contained=True, wait_for_reconnect=False)
    try:
        # A dial reports its own failure at the deadline, with a text that says which step it was. The task waits a
        # moment longer than that, so that its own timeout, which knows nothing, does not come first.
        await asyncio.wait([there], timeout=None if deadline is None else deadline + LATE - time.monotonic())
    except BaseException:  # also where the loop is closed, and this task is thrown away
        answer.refuse()
        raise
    finally:
        give_up()
    # The stream may have come between the end of the wait and here; take() decides, and what comes after it is closed.
    outcome = answer.take()
    if outcome is None:
        raise ConnectError(f"{factory.target}: no answer in time", reason="connect_timeout")
    return outcome


def _call(loop: asyncio.AbstractEventLoop, function: Callable[..., object], *arguments: object) -> bool:
    """Schedule a call in the loop, from any thread.

    :returns: ``False`` if the loop is closed.
    """
    try:
        loop.call_soon_threadsafe(function, *arguments)
    except RuntimeError:
        return False
    return True


@shows_options(TunnelOptions, brief=TunnelOptions)
class Tunnel:
    """A :class:`relay.Tunnel` that a program waits for without blocking its loop; ``async with`` closes it.

    The tunnel relays on its own thread, like a :class:`relay.Tunnel`.

    :param receive: this and the rest are as for :class:`relay.Tunnel`, and so are the errors.
    :param make_send: as for :class:`relay.Tunnel`. It is called in a thread, so a coroutine function is an error.
    :param timeout: as for :class:`relay.Tunnel`: **after 60 s each connection is reset** unless this is ``None``.
    :param options: {options}
    :param admit: as for :class:`relay.Tunnel`: called in a thread, so a coroutine function is an error.
    :param on_end: as for :class:`relay.Tunnel`. It is called on a thread of the tunnel, not in the loop. To handle
        records in the loop, pass ``lambda record: loop.call_soon_threadsafe(handle, record)``.
    """

    def __init__(
        self,
        receive: Listener,
        make_send: MakeSend,
        nconnect: int = -1,
        timeout: float | None = 60.0,
        **options: Unpack[TunnelKeywords],
    ) -> None:
        self._tunnel = _Tunnel(receive, make_send, nconnect, timeout, **options)

    @property
    def name(self) -> str:
        """In the log, in ``repr`` and of the thread."""
        return self._tunnel.name

    @property
    def address(self) -> Any:
        """The address of the listener; see :attr:`relay.Tunnel.address`."""
        return self._tunnel.address

    def connections(self) -> list[ConnectionRecord]:
        """The open connections, oldest first."""
        return self._tunnel.connections()

    def recent(self) -> list[ConnectionRecord]:
        """The last 100 connections that ended, oldest first, each with its reason."""
        return self._tunnel.recent()

    def stats(self) -> Stats:
        """Figures since the tunnel was made."""
        return self._tunnel.stats()

    def metrics(self) -> Metrics:
        """All counters since the tunnel was made; see :meth:`relay.Tunnel.metrics`."""
        return self._tunnel.metrics()

    def kill(self, connection_id: str) -> bool:
        """Reset one open connection; see :meth:`relay.Tunnel.kill`."""
        return self._tunnel.kill(connection_id)

    def pause(self, close: bool = False) -> None:
        """Accept no client until :meth:`resume`; see :meth:`relay.Tunnel.pause`."""
        self._tunnel.pause(close)

    def resume(self) -> None:
        """Accept clients again. In force when it returns."""
        self._tunnel.resume()

    async def close(self, drain: float = 0.0) -> None:
        """Stop listening at once, end every connection, and wait until all is done. Idempotent.

        A cancelled call has started to close it all the same.

        :param drain: seconds that connections may take to finish first; those that are left are reset.
        :raises TypeError: if ``drain`` is not a number.
        :raises ValueError: if it is negative.
        """
        self._tunnel.begin_to_close(drain)
        await self.join()

    async def join(self, timeout: float | None = None) -> None:  # noqa: ASYNC109  (as relay.Tunnel has it)
        """Wait until the tunnel has ended.

        :param timeout: seconds to wait at most; ``None`` for ever.
        """
        if await self._tunnel.ended(timeout):
            # The thread has announced its end and returns now, so this blocks the loop for no time worth measuring.
            # Without it a program that counts its threads after close() would still find one.
            self._tunnel.join()  # its thread does nothing any more

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return repr(self._tunnel)


class _Tunnel(tunnel.Tunnel):
    """A tunnel that can be closed without waiting, and whose end a loop can wait for."""

    def begin_to_close(self, drain: float) -> None:
        # Only begun here: close() of the base class waits for the thread, which would stop every task of the loop.
        self._relay.start_close(check_time("drain", drain, zero=True))

    async def ended(self, timeout: float | None) -> bool:  # noqa: ASYNC109  (it is that of join)
        """Wait until the tunnel has ended.

        :returns: ``False`` if it has not ended in time.
        """
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        resolve = functools.partial(_call, loop, done.set_result, None)
        self._relay.end_callbacks.add(resolve)
        try:
            if not self._relay.is_closed:  # looked at after the line above, and set before that one is read
                await asyncio.wait([done], timeout=timeout)
        finally:
            # A program that calls join with a timeout again and again must not leave one callback behind for each call.
            self._relay.end_callbacks.discard(resolve)
        return self._relay.is_closed
