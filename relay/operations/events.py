"""Server-sent events for the status page: what has changed, at most each second.

One sample serves all pages, and nothing is computed while no page is open. A page that reads slowly skips samples: of
each stream only the last event waits. The server cuts off a page that reads nothing.

Source: the HTML standard, section 9.2, "Server-sent events".
"""

from __future__ import annotations

import asyncio
import functools
import json
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeVar

from .overview import Overview
from .tables import View

logger = logging.getLogger("relay.operations")

INTERVAL = 1.0  # seconds between two samples
SHARE = 10  # a sample that takes long is followed by a pause of so many times its duration
MOST_STREAMS = 16
RETRY = 3000  # milliseconds after which a browser connects again

Result = TypeVar("Result")
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
HEADERS = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-store"), (b"connection", b"close")]


class _Stream:
    """The events of one page.

    :param view: the part of the state that it shows.
    :param transport: of its connection.
    """

    def __init__(self, view: View, transport: asyncio.Transport) -> None:
        self.view = view
        self.has_state = False  # whether an event has been put
        self._transport = transport
        self._waiting: bytes | None = None
        self._is_over = False
        self._woken = asyncio.Event()

    def put(self, event: bytes) -> None:
        """Replace the event that waits."""
        if not self._is_over:
            self.has_state = True
            self._waiting = event
            self._woken.set()

    def end(self, reason: str = "") -> None:
        """End the stream. If the page has not read the last event, it is cut off.

        :param reason: for the page, which does not connect again then.
        """
        if self._is_over:
            return
        self._is_over = True
        self._waiting = _event(json.dumps({"reason": reason}).encode(), b"end") if reason else None
        self._woken.set()
        if self._transport.get_write_buffer_size():
            self._transport.abort()

    async def next(self) -> bytes | None:
        """Return the next event; ``None`` at the end."""
        await self._woken.wait()
        event, self._waiting = self._waiting, None
        if not self._is_over:
            self._woken.clear()
        return event


class Events:
    """The streams of all pages. Belongs to the loop of the server.

    :param overview: what they show.
    :param run: runs a function on a thread, and waits for it.
    """

    def __init__(self, overview: Overview, run: Callable[[Callable[[], Any]], Awaitable[Any]]) -> None:
        self._overview = overview
        self._run = run
        self._streams: list[_Stream] = []
        self._woken = asyncio.Event()
        self._sampler: asyncio.Task[None] | None = None
        self._is_closed = False

    async def serve(
        self, view: View, is_allowed: Callable[[], bool], receive: Receive, send: Send, transport: asyncio.Transport
    ) -> None:
        """Send the events of one page until it leaves, or the program ends.

        :param view: the part of the state that the page shows.
        :param is_allowed: whether it may still see that: a reload may change the token.
        :param receive: the next message of the client (ASGI).
        :param send: sends a message to the client (ASGI).
        :param transport: of the connection.
        """
        stream = _Stream(view, transport)
        self._admit(stream)
        leaving = asyncio.create_task(_until_gone(receive, stream))
        try:
            await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
            event: bytes | None = b"retry: %d\n\n" % RETRY
            while event is not None and is_allowed():
                # Waits for a slow page; the server cuts off one that reads nothing.
                await send({"type": "http.response.body", "body": event, "more_body": True})
                event = await stream.next()
            await send({"type": "http.response.body", "body": b""})
        finally:
            self._remove(stream)
            leaving.cancel()
            await asyncio.wait([leaving])
            if not leaving.cancelled():
                leaving.exception()  # of a body that is too long: the stream has ended for it

    def close(self) -> None:
        """End all streams, also those to come."""
        self._is_closed = True
        for stream in self._streams:
            stream.end()

    def _admit(self, stream: _Stream) -> None:
        """Add a stream; the oldest one gives way if there are too many."""
        if self._is_closed:
            stream.end()
            return
        if len(self._streams) >= MOST_STREAMS:
            oldest = self._streams.pop(0)
            oldest.end(f"more than {MOST_STREAMS} pages are open")
        self._streams.append(stream)
        self._woken.set()
        if self._sampler is None:
            self._sampler = asyncio.create_task(self._sample())

    def _remove(self, stream: _Stream) -> None:
        if stream in self._streams:
            self._streams.remove(stream)
            if not self._streams:
                self._woken.set()

    async def _sample(self) -> None:
        """Take samples while there is a stream."""
        loop = asyncio.get_running_loop()
        due = 0.0
        while self._streams:
            self._woken.clear()
            began = loop.time()
            is_due = began >= due
            streams = [stream for stream in self._streams if is_due or not stream.has_state]
            try:
                events = await self._run(functools.partial(self._compute, {stream.view for stream in streams}, is_due))
            except Exception:
                logger.exception("the status page could not read the state")
                events = {}
            if is_due:
                now = loop.time()
                due = max(began + INTERVAL, now + SHARE * (now - began))
            for stream in streams:
                if stream.view in events:
                    stream.put(events[stream.view])
            try:
                async with asyncio.timeout_at(due):
                    await self._woken.wait()
            except TimeoutError:
                pass
        self._sampler = None
        self._overview.rest()

    def _compute(self, views: set[View], is_due: bool) -> dict[View, bytes]:
        if is_due:
            self._overview.refresh()
        return {view: _event(data) for view, data in self._overview.render(views).items()}


def _event(data: bytes, name: bytes = b"") -> bytes:
    """Return an event as it is sent; JSON has no line ends."""
    return (b"event: %s\n" % name if name else b"") + b"data: %s\n\n" % data


async def _until_gone(receive: Receive, stream: _Stream) -> None:
    try:
        while (await receive())["type"] != "http.disconnect":
            pass
    finally:
        stream.end()
