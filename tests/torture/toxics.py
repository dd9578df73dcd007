"""TCP proxies between two programs that disturb their streams, in the manner of toxiproxy.

A toxic acts on the streams of a proxy while it is there, old ones and new ones. Toxics that delay bytes, or cut them
into pieces, change nothing but the time; the others end streams. The proxies run in a thread of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import fcntl
import random
import socket
import struct
import termios
import threading
from collections.abc import Callable
from typing import Self

_SIZE = 65_536
_QUEUE = 64  # pieces on their way in one direction; a program that sends more waits
BACKLOG = 8  # small, so that a proxy that does not accept fills it
_MOST_PIECES = 200  # of one read; what is left comes as a whole
_RESET = struct.pack("ii", 1, 0)  # of SO_LINGER: closing sends a reset


@dataclasses.dataclass(frozen=True)
class Toxic:
    """An action on streams.

    :param kind: its name.
    :param latency: seconds that bytes take.
    :param jitter: seconds that some bytes take more; all stay in order.
    :param rate: bytes a second and direction at most; 0 for any.
    :param pieces: size of the pieces that bytes are cut into, on average; 0 for none.
    :param silence: seconds without any byte, after which a stream is cut; 0 for none.
    :param most: bytes of a direction after which a stream is cut; 0 for any number.
    :param is_reset: whether a cut is a reset. Else it is an end, which a protocol without ends of its own cannot tell
        from the peer's.
    """

    kind: str
    latency: float = 0.0
    jitter: float = 0.0
    rate: int = 0
    pieces: int = 0
    silence: float = 0.0
    most: int = 0
    is_reset: bool = True

    @property
    def cuts(self) -> bool:
        """True if it ends streams."""
        return bool(self.silence or self.most)


_NONE = Toxic("none")


class _Stream:
    """A connection through a proxy."""

    def __init__(self, proxy: Proxy, client: socket.socket, server: socket.socket) -> None:
        self._proxy = proxy
        self._client = client
        self._server = server
        self._task = asyncio.current_task()
        self._left = 0  # bytes until a toxic cuts it
        self._is_reset = True
        self._timer: asyncio.TimerHandle | None = None

    async def run(self) -> None:
        """Connect, and copy both directions until both have ended, or the stream is cut or reset."""
        try:
            await self._copy_both()
        except* OSError:
            self._reset()

    async def _copy_both(self) -> None:
        try:
            await asyncio.get_running_loop().sock_connect(self._server, self._proxy.target)
            async with asyncio.TaskGroup() as group:
                for source, sink in ((self._client, self._server), (self._server, self._client)):
                    queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_QUEUE)
                    group.create_task(self._read(source, queue))
                    group.create_task(self._write(sink, queue))
            await self._wait_for_peers()
        except asyncio.CancelledError:
            if self._is_reset:
                self._reset()

    async def _wait_for_peers(self) -> None:
        """Wait until both peers have acknowledged all bytes and the end.

        While a link is down, the kernel gives up a connection that is closed, and its peer never learns its end.
        """
        for sock in (self._client, self._server):
            while struct.unpack("i", fcntl.ioctl(sock, termios.TIOCOUTQ, b"    "))[0]:  # noqa: ASYNC110  (no event reports it)
                await asyncio.sleep(0.05)

    def _reset(self) -> None:
        for sock in (self._client, self._server):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)

    def meet(self, toxic: Toxic) -> None:
        """Let a toxic act from now on, and no other one."""
        self._is_reset = toxic.is_reset
        self._left = toxic.most
        if self._timer is not None:
            self._timer.cancel()
        if toxic.silence:
            self._timer = asyncio.get_running_loop().call_later(toxic.silence, self._cut)

    def _cut(self) -> None:
        assert self._task is not None
        self._task.cancel()

    async def _read(self, source: socket.socket, queue: asyncio.Queue[tuple[float, bytes]]) -> None:
        loop = asyncio.get_running_loop()
        data = b"first"
        while data:
            data = await loop.sock_recv(source, _SIZE)
            toxic = self._proxy.toxic
            await queue.put((loop.time() + toxic.latency + self._proxy.chance.uniform(0.0, toxic.jitter), data))

    async def _write(self, sink: socket.socket, queue: asyncio.Queue[tuple[float, bytes]]) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due, data = await queue.get()
            await asyncio.sleep(due - loop.time())
            await self._proxy.speaks.wait()
            if not data:
                sink.shutdown(socket.SHUT_WR)
                return
            for piece in self._cut_up(data):
                if (rate := self._proxy.toxic.rate) > 0:
                    await asyncio.sleep(len(piece) / rate)
                await loop.sock_sendall(sink, piece)
                if self._left:
                    self._left -= min(self._left, len(piece))
                    if not self._left:
                        self._cut()

    def _cut_up(self, data: bytes) -> list[bytes]:
        toxic = self._proxy.toxic
        size = min(toxic.most or len(data), len(data))
        if not toxic.pieces:
            return [data[at : at + size] for at in range(0, len(data), size)]
        made = []
        while data and len(made) < _MOST_PIECES:
            size = self._proxy.chance.randint(1, 2 * toxic.pieces)
            made.append(data[:size])
            data = data[size:]
        return [*made, data] if data else made


class Proxy:
    """A listening socket, the address it leads to, and the toxic between them.

    Its methods belong to the thread of :class:`Proxies`.

    :param listener: bound, in any network.
    :param make_socket: makes the sockets that connect to the target.
    :param target: its address.
    """

    def __init__(
        self, listener: socket.socket, make_socket: Callable[[], socket.socket], target: tuple[str, int]
    ) -> None:
        self.address: tuple[str, int] = listener.getsockname()
        self.target = target
        self.toxic = _NONE
        self.chance = random.Random(0)
        self.speaks = asyncio.Event()  # clear while all is silent
        self.speaks.set()
        self.streams: set[_Stream] = set()
        self._accepts = asyncio.Event()
        self._accepts.set()
        self._listener = listener
        self._make_socket = make_socket
        self._tasks: set[asyncio.Task[None]] = set()
        self._hit = 0
        listener.listen(BACKLOG)
        listener.setblocking(False)

    async def serve(self) -> None:
        """Accept and relay streams until it is cancelled."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                await self._accepts.wait()
                client, _ = await loop.sock_accept(self._listener)
                task = loop.create_task(self._relay(client))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            self._listener.close()

    async def _relay(self, client: socket.socket) -> None:
        with client, self._make_socket() as server:
            for sock in (client, server):
                sock.setblocking(False)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            stream = _Stream(self, client, server)
            self.streams.add(stream)
            if self.toxic is not _NONE:
                self._hit += 1
                stream.meet(self.toxic)
            try:
                await stream.run()
            finally:
                self.streams.discard(stream)

    async def begin(self, toxic: Toxic) -> None:
        """Let a toxic act."""
        self.toxic = toxic
        self._hit = len(self.streams)
        if toxic.silence:
            self.speaks.clear()
        for stream in self.streams:
            stream.meet(toxic)

    async def end(self) -> int:
        """End the toxic, or let it accept again; return the number of streams that the toxic has acted upon."""
        self.toxic = _NONE
        for stream in self.streams:
            stream.meet(_NONE)
        self.speaks.set()
        self._accepts.set()
        hit, self._hit = self._hit, 0
        return hit

    async def stop_accepting(self) -> None:
        """Accept no more: its backlog fills."""
        self._accepts.clear()


class Proxies:
    """The thread of some proxies. A context manager."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._tasks: list[asyncio.Task[None]] = []
        self._thread = threading.Thread(target=self._run, name="proxies")
        self._thread.start()

    def _run(self) -> None:
        with contextlib.closing(self._loop):
            self._loop.run_forever()

    def add(self, listener: socket.socket, make_socket: Callable[[], socket.socket], target: tuple[str, int]) -> Proxy:
        """Start a proxy, and return it. The listener is its own from now on."""

        async def start() -> Proxy:
            made = Proxy(listener, make_socket, target)
            self._tasks.append(self._loop.create_task(made.serve()))
            return made

        return asyncio.run_coroutine_threadsafe(start(), self._loop).result()

    def begin(self, proxy: Proxy, toxic: Toxic) -> None:
        """Let a toxic act on a proxy's streams."""
        asyncio.run_coroutine_threadsafe(proxy.begin(toxic), self._loop).result()

    def stop_accepting(self, proxy: Proxy) -> None:
        """Let a proxy's backlog fill. An accept that is under way may take one more client."""
        asyncio.run_coroutine_threadsafe(proxy.stop_accepting(), self._loop).result()

    def end(self, proxy: Proxy) -> int:
        """End what disturbs a proxy; return the number of streams that a toxic has acted upon."""
        return asyncio.run_coroutine_threadsafe(proxy.end(), self._loop).result()

    def close(self) -> None:
        """Reset all streams, and end the thread. Idempotent."""
        if self._loop.is_closed():
            return

        async def stop() -> None:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
