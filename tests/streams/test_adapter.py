"""Objects with the socket interface as kernel sockets; that bytes and ends pass is in the promises."""

from __future__ import annotations

import queue
import socket
import threading
from typing import Any

import pytest
from helpers import WAIT, receive_all, wait_until

from relay.streams.adapter import as_stream
from relay.streams.stream import Stream
from relay.testing import check_stream


class Double:
    """As little as a stream may have: ``recv``, ``send`` that takes only a part, ``close``."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.closed = 0

    def recv(self, size: int) -> bytes:
        return self.socket.recv(size)

    def send(self, data: Any) -> int:
        return self.socket.send(data[:1000])

    def close(self) -> None:
        self.closed += 1
        try:
            self.socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self.socket.close()


class HalfClosing(Double):
    """One that can end its output, in paramiko's words."""

    def shutdown_write(self) -> None:
        self.socket.shutdown(socket.SHUT_WR)


def test_a_socket_is_taken_as_it_is() -> None:
    ours, theirs = socket.socketpair()
    with theirs, as_stream(ours) as stream:
        assert stream.socket is ours
        assert not stream.socket.getblocking()
        assert stream.half_close


@pytest.mark.parametrize("nonsense", [None, 17, "text", object(), b""])
def test_nonsense_is_named(nonsense: Any) -> None:
    with pytest.raises(TypeError, match=type(nonsense).__name__):
        as_stream(nonsense)


def test_a_coroutine_is_nonsense_and_leaves_no_warning() -> None:
    async def connect() -> None: ...

    with pytest.raises(TypeError, match="coroutine"):
        as_stream(connect())


def test_a_closed_or_datagram_socket_is_refused() -> None:
    closed = socket.socket()
    closed.close()
    with pytest.raises(ValueError, match="socket is closed"):
        as_stream(closed)
    with socket.socket(type=socket.SOCK_DGRAM) as datagram, pytest.raises(ValueError, match="SOCK_DGRAM"):
        as_stream(datagram)


@pytest.mark.parametrize("kind", [Double, HalfClosing])
def test_a_bridged_object_keeps_the_contract(kind: type[Double]) -> None:
    def make_pair() -> tuple[Any, socket.socket]:
        ours, theirs = socket.socketpair()
        return kind(ours), theirs

    check_stream(make_pair)


def test_an_object_without_shutdown_has_no_half_close() -> None:
    ours, theirs = socket.socketpair()
    double = Double(ours)
    with theirs:
        stream = as_stream(double)
        assert not stream.half_close
        stream.close()
        assert receive_all(theirs) == b""
        wait_until(lambda: double.closed)
    assert double.closed == 1


def test_what_the_object_raises_is_the_failure_of_the_stream() -> None:
    class Failing:
        def __init__(self) -> None:
            self.go = threading.Event()

        def recv(self, size: int) -> bytes:
            self.go.wait(WAIT)
            raise RuntimeError("the carrier broke")

        def sendall(self, data: bytes) -> None: ...

        def close(self) -> None:
            self.go.set()

    failing = Failing()
    stream = as_stream(failing)
    assert stream.failure is not None
    assert stream.failure() is None
    failing.go.set()
    stream.socket.setblocking(True)
    stream.socket.settimeout(WAIT)
    assert stream.socket.recv(1) == b""
    assert str(stream.failure()) == "the carrier broke"
    stream.close()


def test_end_and_close_of_an_object_never_overlap() -> None:
    calls: queue.SimpleQueue[str] = queue.SimpleQueue()

    class Watched(HalfClosing):
        def shutdown_write(self) -> None:
            calls.put("end begins")
            super().shutdown_write()
            calls.put("end is over")

        def close(self) -> None:
            calls.put("close")
            super().close()

    ours, theirs = socket.socketpair()
    with theirs:
        stream = as_stream(Watched(ours))
        stream.socket.shutdown(socket.SHUT_WR)
        assert receive_all(theirs) == b""
        stream.close()
        assert [calls.get(timeout=WAIT) for _ in range(3)] == ["end begins", "end is over", "close"]


def test_a_stream_passes_through() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        stream = Stream(ours, target="there")
        assert as_stream(stream) is stream
        stream.close()


class Clogged:
    """An object whose far end does not read: ``sendall`` hangs until it is closed."""

    def __init__(self) -> None:
        self.closed = threading.Event()

    def recv(self, size: int) -> bytes:
        self.closed.wait(WAIT)
        return b""

    def sendall(self, data: bytes) -> None:
        self.closed.wait(WAIT)
        raise BrokenPipeError

    def close(self) -> None:
        self.closed.set()


def test_a_clogged_object_is_closed_when_it_is_given_up() -> None:
    clogged = Clogged()
    stream = as_stream(clogged)
    stream.socket.send(b"x")
    stream.reset()
    assert clogged.closed.is_set()


def test_a_clogged_object_is_closed_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relay.streams.adapter.PATIENCE", 0.05)
    clogged = Clogged()
    stream = as_stream(clogged)
    stream.socket.send(b"x")
    stream.close()
    assert clogged.closed.is_set()


def test_the_default_timeout_of_sockets_does_not_matter() -> None:
    ours, theirs = socket.socketpair()
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(0.05)
    try:
        stream = as_stream(HalfClosing(ours))
    finally:
        socket.setdefaulttimeout(before)
    with theirs, stream:
        stream.socket.settimeout(0.2)
        with pytest.raises(TimeoutError):
            stream.socket.recv(1)
        theirs.sendall(b"late")
        assert stream.socket.recv(4) == b"late"


def test_a_slow_object_has_all_the_time_in_which_it_takes_something() -> None:
    """The time for a clean end is without progress, not for everything that is left."""
    taken, go_on = bytearray(), threading.Semaphore(0)

    class Slow(Clogged):
        def send(self, data: Any) -> int:
            go_on.acquire()
            if self.closed.is_set():
                raise BrokenPipeError
            taken.extend(data[:100])
            return len(data[:100])

        sendall = None  # type: ignore[assignment]

        def close(self) -> None:
            super().close()
            go_on.release()

    stream = as_stream(Slow())
    bridge = stream._bridge  # type: ignore[attr-defined]
    stream.socket.send(b"x" * 1000)
    sent, waits = bridge._sent, []

    class InSteps:
        """The wait, in which it takes a piece, whatever the machine does meanwhile."""

        def is_set(self) -> bool:
            return sent.is_set()

        def set(self) -> None:
            sent.set()

        def wait(self, seconds: float) -> None:
            waits.append(seconds)
            before = bridge._passed
            go_on.release()
            wait_until(lambda: bridge._passed > before)
            if len(taken) == 1000:
                assert sent.wait(10)

    bridge._sent = InSteps()
    stream.close()
    assert len(taken) == 1000
    assert len(waits) == 10
