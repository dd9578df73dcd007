"""Conformance tests for streams and for factories, including your own.

Like ``trio.testing.check_one_way_stream``, each is a list of promises, tested on a new pair each.
"""

from __future__ import annotations

import contextlib
import hashlib
import queue
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

from ..engine.tunnel import Tunnel
from ..eventloop.sockets import reset
from ..streams.adapter import as_stream
from ..streams.protocols import Listener, MakeSend
from ..streams.stream import Stream
from .leaks import check_leaks

__all__ = ["check_factory", "check_stream"]

# Every value of a byte, and a length that fits no buffer: an error at the border of a chunk moves all that follows.
_BLOCK = bytes(range(256)) * 257 + b"an odd length shows what is lost"
_MUCH = 16  # blocks: about a mebibyte
_TOO_MUCH = 64 << 20  # bytes: a stream must not buffer so much for a reader that does not read


def check_stream(
    make_pair: Callable[[], tuple[Any, Any]],
    *,
    abort: Callable[[Any], object] | None = None,
    timeout: float = 10.0,
) -> None:
    """Test every promise of a stream, each on a new pair.

    The promises: every byte arrives in order, in both directions at once; EOF arrives after the last byte and, if the
    stream has half-close, leaves the other direction open; a failure of the far side never appears as EOF; a reader
    that stops blocks the sender; ``close`` ends the far side, may be called twice and calls ``on_close`` once; nothing
    is leaked.

    :param make_pair: returns the stream to check (anything that a factory may return) and its far end (anything that a
        listener may accept). Both are closed here.
    :param abort: called with the far end as ``make_pair`` returned it, to end it by a failure: for TCP a reset, for TLS
        closing its connection without close_notify. ``None`` if the transport has no failures (a socketpair).
    :param timeout: seconds for each step.
    :raises AssertionError: with the promise that is broken.
    """
    for promise in (_carries_both_ways, _ends_after_the_last_byte, _far_end_ends_first, _holds_back, _closes_once):
        # The look for leaks is the outer one: it comes after both ends are closed.
        with check_leaks(timeout), _bridged(make_pair, timeout) as ends:
            _keep(promise, *ends)
    if abort is not None:
        with check_leaks(timeout):
            near, far = make_pair()
            abort(far)
            with contextlib.closing(far), as_stream(near) as stream:
                stream.socket.settimeout(timeout)
                _keep(_tells_a_failure, stream)


def check_factory(
    factory: MakeSend,
    server: Listener,
    *,
    half_close: bool = True,
    timeout: float = 10.0,
) -> None:
    """Test a factory in a real :class:`relay.Tunnel`, with real clients.

    The promises: every byte arrives in order, in both directions at once; half-close works both ways; concurrent
    streams do not mix; a client's reset ends the far side; closing the tunnel leaks nothing.

    :param factory: as for a tunnel. It is called many times, and closed at the end if it has ``close``.
    :param server: target of the factory: a listening socket, or any object whose ``accept()`` returns
        ``(stream, peer)``. It stays open.
    :param half_close: whether the streams have half-close; if not, only EOF of the target is tested.
    :param timeout: seconds for each step.
    :raises AssertionError: with the promise that is broken.
    """
    with check_leaks(timeout):
        with Tunnel(socket.create_server(("127.0.0.1", 0)), factory, timeout=None, name="conformance") as tunnel:
            connect = _Connect(tunnel, server, half_close, timeout)
            for promise in (_carries_both_ways, _ends_after_the_last_byte, _far_end_ends_first, _passes_a_reset_on):
                with connect() as ends:
                    _keep(promise, *ends)
            with contextlib.ExitStack() as stack:
                _do_not_mix([stack.enter_context(connect()) for _ in range(8)])


@contextlib.contextmanager
def _bridged(make_pair: Callable[[], tuple[Any, Any]], timeout: float) -> Iterator[tuple[Stream, Stream]]:
    near, far = make_pair()
    with as_stream(near) as stream, as_stream(far) as end:
        stream.socket.settimeout(timeout)
        end.socket.settimeout(timeout)
        yield stream, end


class _Connect:
    """Makes clients of a tunnel, each with the stream that the server accepted for it."""

    def __init__(self, tunnel: Tunnel, server: Any, half_close: bool, timeout: float) -> None:
        self.tunnel = tunnel
        self.server = server
        self.half_close = half_close
        self.timeout = timeout

    @contextlib.contextmanager
    def __call__(self) -> Iterator[tuple[Stream, Stream]]:
        with contextlib.ExitStack() as stack:
            try:
                client = socket.create_connection(self.tunnel.address, self.timeout)
                stream = stack.enter_context(Stream(client, half_close=self.half_close))
                far = stack.enter_context(as_stream(self._accept()))
            except (ConnectionError, TimeoutError, queue.Empty):
                ended = [record.reason for record in self.tunnel.recent()]
                text = f"no stream reached the server in {self.timeout} s; ended so far: {ended}"
                raise AssertionError(text) from None
            far.socket.settimeout(self.timeout)
            yield stream, far

    def _accept(self) -> Any:
        """Return the next stream that the server accepts."""
        return self._accept_from_socket() if isinstance(self.server, socket.socket) else self._accept_from_object()

    def _accept_from_socket(self) -> socket.socket:
        # The listening socket is the caller's, who gets it back as it was.
        before = self.server.gettimeout()
        self.server.settimeout(self.timeout)
        try:
            accepted: socket.socket = self.server.accept()[0]
            return accepted
        finally:
            self.server.settimeout(before)

    def _accept_from_object(self) -> Any:
        """Accept on a thread, because such an ``accept`` has no timeout."""
        answer: queue.SimpleQueue[Any] = queue.SimpleQueue()
        # Daemon: an accept that never returns must not hold the whole test run.
        threading.Thread(target=lambda: answer.put(self.server.accept()[0]), name="accept", daemon=True).start()
        return answer.get(timeout=self.timeout)


# The promises. ``stream`` is the checked end (of a tunnel: its client), ``far`` the other one.


def _keep(promise: Callable[..., None], *ends: Stream) -> None:
    try:
        promise(*ends)
    except OSError as error:
        raise AssertionError(f"{promise.__doc__} But: {error!r}") from error


def _carries_both_ways(stream: Stream, far: Stream) -> None:
    """Every byte arrives in order, both ways at once."""
    # Readers first, and a thread for each of the four flows: with one flow after the other, full buffers on both sides
    # would block a stream that keeps every promise.
    received = [_receive_on_thread(end, _MUCH * len(_BLOCK)) for end in (stream, far)]
    for end in (stream, far):
        threading.Thread(target=_send, args=(end, _MUCH), name="sender", daemon=True).start()
    expected = hashlib.sha256(_BLOCK * _MUCH).hexdigest()
    assert [one.get() for one in received] == [expected, expected], "every byte arrives in order, both ways at once"


def _ends_after_the_last_byte(stream: Stream, far: Stream) -> None:
    """A stream that ends first still gets its reply, where there is half-close."""
    if not stream.half_close:
        return
    stream.socket.sendall(_BLOCK)
    stream.socket.shutdown(socket.SHUT_WR)
    assert _receive(far) == _BLOCK, "an end of file arrives after the last byte"
    far.socket.sendall(_BLOCK)
    far.close()
    assert _receive(stream) == _BLOCK, "half-close leaves the other direction open: the reply comes after the end"


def _far_end_ends_first(stream: Stream, far: Stream) -> None:
    """The end of the far side arrives after its last byte, and what is on the way to it still gets there."""
    far.socket.sendall(_BLOCK)
    if stream.half_close:
        far.socket.shutdown(socket.SHUT_WR)
    else:
        far.close()
    assert _receive(stream) == _BLOCK, "the far side's end of file arrives after its last byte"
    # Asked after the last byte was read: before that, the stream cannot know how the far side will end.
    assert _failure(stream) is None, f"a clean end is not a failure: {_failure(stream)!r}"
    if stream.half_close:
        stream.socket.sendall(_BLOCK)
        stream.socket.shutdown(socket.SHUT_WR)
        assert _receive(far) == _BLOCK, "half-close leaves the other direction open: the rest of the upload arrives"


def _holds_back(stream: Stream, far: Stream) -> None:
    """A reader that stops is felt by the sender, and loses nothing."""
    sent = _fill(stream)
    assert sent < _TOO_MUCH, "a reader that stops is felt by the sender"
    whole = _BLOCK * (sent // len(_BLOCK) + 1)
    expected = hashlib.sha256(whole[:sent]).hexdigest()
    assert _receive_on_thread(far, sent).get() == expected, "what was held back arrives when the reader reads again"


def _closes_once(stream: Stream, far: Stream) -> None:
    """``close`` ends the far side, may be called twice, and calls ``on_close`` once."""
    calls = []
    on_close = stream.on_close

    def counted() -> None:
        calls.append(on_close)
        if on_close is not None:
            on_close()

    stream.on_close = counted
    stream.close()
    stream.close()
    assert stream.fileno() == -1, "close closes the descriptor"
    assert len(calls) == 1, "on_close is called once, however often the stream is closed"
    _expect_end(far)


def _passes_a_reset_on(stream: Stream, far: Stream) -> None:
    """A client that resets ends the far side."""
    reset(stream.socket)
    _expect_end(far)


def _tells_a_failure(stream: Stream) -> None:
    """A failure of the far side is never a clean end."""
    try:
        _receive(stream)
    # Either is allowed: an error while reading, or an end of file with a failure behind it.
    except ConnectionError:
        return
    assert _failure(stream) is not None, "a failure is never a clean end"


def _do_not_mix(pairs: list[tuple[Stream, Stream]]) -> None:
    for number, (stream, _) in enumerate(pairs):
        stream.socket.sendall(bytes([number]))
    # Two bytes are asked for, and one must come: a second one would be that of another stream.
    received = [far.socket.recv(2) for _, far in pairs]
    assert received == [bytes([number]) for number in range(len(pairs))], "streams made side by side do not mix"


# Steps.


def _send(end: Stream, blocks: int) -> None:
    with contextlib.suppress(OSError):  # the receiver reports what is missing
        for _ in range(blocks):
            end.socket.sendall(_BLOCK)


def _fill(stream: Stream) -> int:
    """Send until the stream blocks; return the number of bytes."""
    sent, timeout = 0, stream.socket.gettimeout()
    # So long without room means that the reader holds back; a stream with several buffers in a row fills one after the
    # other.
    stream.socket.settimeout(0.2)
    with contextlib.suppress(TimeoutError):
        while sent < _TOO_MUCH:
            # Continues where the last send stopped, so that what arrives is the block repeated, however the sends were
            # cut.
            sent += stream.socket.send(_BLOCK[sent % len(_BLOCK) :])
    stream.socket.settimeout(timeout)
    return sent


def _receive_on_thread(end: Stream, size: int) -> queue.SimpleQueue[str]:
    """Return a queue for the SHA-256 of the next ``size`` bytes, or for a description of the failure."""
    answer: queue.SimpleQueue[str] = queue.SimpleQueue()

    def receive() -> None:
        seen, left = hashlib.sha256(), size
        try:
            while left and (data := end.socket.recv(min(left, 65536))):
                seen.update(data)
                left -= len(data)
        except OSError as error:
            answer.put(f"{left} bytes missing: {error!r}")
        else:
            answer.put(f"{left} bytes missing" if left else seen.hexdigest())

    threading.Thread(target=receive, name="receiver", daemon=True).start()
    return answer


def _receive(end: Stream) -> bytes:
    """Return all bytes up to EOF."""
    return b"".join(iter(lambda: end.socket.recv(65536), b""))


def _failure(stream: Stream) -> BaseException | None:
    return stream.failure() if stream.failure is not None else None


def _expect_end(end: Stream) -> None:
    with contextlib.suppress(ConnectionError):
        _receive(end)
