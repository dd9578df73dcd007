"""Channels of the caller's transport as streams, and the queue in which they wait for a tunnel."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import paramiko

from ...eventloop.loop import Loop
from ...streams.accept_queue import AcceptQueue, Taker
from ...streams.adapter import as_stream
from ...streams.listener import PushingListener
from ...streams.stream import Stream
from ...transports.ssh.paramiko.messages import CLOSE
from .log import DEBUG, INFO, WARN

__all__ = ["ChannelQueue", "stream_of"]

_MOST = 1000  # channels of one tunnel at one time; more are refused


def stream_of(channel: Any, over: Callable[[], object]) -> Stream:
    """A channel as a stream.

    :param channel: one of paramiko, which only the stream uses from now on, or anything else with the socket interface.
    :param over: called when the stream is over, on a thread that may block.
    :returns: the stream; it owns the channel.
    """
    stream = as_stream(_ChannelSocket(channel) if isinstance(channel, paramiko.Channel) else channel)
    close = stream.on_close

    def on_close() -> None:
        try:
            if close is not None:
                close()
        finally:
            over()

    stream.on_close = on_close
    return stream


class _ChannelSocket:
    """A channel with the faults of its socket interface gone: it tells an end from a cut, and ends in order."""

    def __init__(self, channel: paramiko.Channel) -> None:
        self._channel = channel
        self._order = _OrderedSender(channel.transport)
        channel.transport = self._order
        # A timeout that the caller has set on the channel would end a stream on which nothing is said for that long.
        channel.settimeout(None)

    def recv(self, size: int) -> bytes:
        data: bytes = self._channel.recv(size)
        # paramiko returns no bytes for an end and for a close alike. Taken for an end, a transfer that was cut would
        # look complete.
        if not data and not self._channel.eof_received:
            raise ConnectionResetError("the channel was closed in mid-stream")
        return data

    def sendall(self, data: bytes) -> None:
        while data:
            sent = self._channel.send(data)
            if not sent:  # paramiko's own sendall would try for ever
                raise ConnectionResetError("the channel was closed")
            data = data[sent:]

    def shutdown_write(self) -> None:
        self._channel.shutdown_write()

    def close(self) -> None:
        self._channel.close()
        # A close that found the key exchange under way has left its message in the queue, and no other message will
        # follow.
        self._order.flush()


class _OrderedSender:
    """The transport as one channel sees it: nothing of the channel is sent after its close.

    paramiko decides what to send under the channel's lock and sends it after that, so an end of file or data of one
    thread can follow the close that another sends, or the transport's thread in answer to the server's. sshd ends the
    whole connection for that.

    :param transport: the transport.
    """

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self._queue: deque[Any] = deque()
        self._sending = threading.Lock()
        self._closed = False  # guarded by _sending

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def _send_user_message(self, message: Any) -> None:
        # Queued first and sent by whichever thread holds the lock: the order of the queue is the order of the channel,
        # whatever thread comes first.
        self._queue.append(message)
        self.flush()

    def flush(self) -> None:
        """Send what waits. The transport's thread never waits for it: a thread that is sending sends this as well."""
        # The transport's thread reads what the server sends. Were it to wait for a sender that waits for the window of
        # the server, or for the end of a key exchange, no message that ends that wait would be read.
        may_wait = threading.current_thread() is not self._transport
        if not may_wait and not self._transport.clear_to_send.is_set():
            return  # it is the one that exchanges the keys; close() sends the rest
        # Looked at again after each release: a thread that could not get the lock relies on its holder to send its
        # message, and that holder may have looked a moment too early.
        while self._queue:
            if not self._sending.acquire(blocking=may_wait):
                return
            try:
                while self._queue:
                    self._send(self._queue.popleft())
            finally:
                self._sending.release()

    def _send(self, message: Any) -> None:
        if not self._closed:
            self._closed = message.asbytes()[0] == CLOSE
            self._transport._send_user_message(message)


class ChannelQueue(PushingListener):
    """A listener object for :class:`relay.Tunnel`: accepts the channels that its callers pass in; safe from any thread.

    :param say: called with each message for the log, and with X2Go's bit for its level.
    """

    def __init__(self, say: Callable[[str, int], object]) -> None:
        self._say = say
        self._lock = threading.RLock()  # guards the following; reentrant, because a taker may end a stream at once
        self._queue: AcceptQueue[Any] = AcceptQueue()
        self._open = True
        self._living: set[Any] = set()  # open channels

    def has_room(self) -> bool:
        """Return true if there is room for another channel. Never blocks."""
        with self._lock:
            return self._open and len(self._living) < _MOST

    def take(self, channel: paramiko.Channel) -> None:
        """Take ownership of a channel, and close it if it cannot be relayed. Never blocks."""
        origin = channel.origin_addr
        try:
            taken = self.put(channel, origin, lambda: self._say(f"reverse tunnel closed from {origin!r}", INFO))
        except (OSError, RuntimeError) as error:  # no descriptor or thread left
            taken = False
            self._say(f"a channel from {origin!r} was refused: {error}", WARN)
        if taken:
            self._say(f"data channel from {origin!r} is up", DEBUG)
        else:
            channel.close()

    def put(self, channel: Any, peer: Any, over: Callable[[], object]) -> bool:
        """Add a channel.

        :param channel: as for :func:`stream_of`.
        :param peer: address of the client.
        :param over: called when the channel has ended, on a thread that may block.
        :returns: whether it was taken; if not, the caller still owns it.
        :raises TypeError: if it cannot be a stream.
        :raises OSError: if no descriptor is available.
        :raises RuntimeError: if no thread is available.
        """

        def left() -> None:
            with self._lock:
                self._living.discard(channel)
            over()

        with self._lock:
            if not self._open or len(self._living) >= _MOST:
                return False
            # Under the lock, so that a refuse() of another thread comes before all of this or after all of it: a
            # channel that was put into the queue after it was emptied would outlive the pause.
            stream = stream_of(channel, left)
            self._living.add(channel)
            self._queue.put(stream, peer)
        return True

    def refuse(self) -> None:
        """Refuse further channels, and reset the waiting ones."""
        with self._lock:
            self._open = False
        self._queue.reset_waiting()

    def cut(self) -> None:
        """End all channels, also those that the tunnel has finished and whose last bytes the peer does not read."""
        with self._lock:
            left = list(self._living)
        if left:  # sending may block
            threading.Thread(target=_close_all, args=(left,), name="relay rforward cut", daemon=True).start()

    def allow(self) -> None:
        """Take channels again."""
        with self._lock:
            self._open = True

    # -- for the tunnel --

    def deliver(self, taker: Taker | None, loop: Loop | None = None) -> None:
        """Pass streams on to ``taker`` from now on; ``None`` queues them."""
        with self._lock:
            self._queue.deliver(taker)

    def accept(self) -> tuple[Stream, Any]:
        """Never called: a tunnel without a limit has streams delivered."""
        raise NotImplementedError

    def close(self) -> None:
        """Refuse further channels, and reset the waiting ones."""
        self.refuse()


def _close_all(channels: list[Any]) -> None:
    for channel in channels:
        with suppress(OSError, EOFError, paramiko.SSHException):  # the connection is over
            channel.close()
