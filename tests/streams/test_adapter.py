"""Objects with the socket interface as kernel sockets; that bytes and ends pass is in the promises."""

from __future__ import annotations

import queue
import select
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from helpers import BLOCK, WAIT, Certificates, Thread, TLSEnd, receive_all, receive_exactly, wait_until

from relay.eventloop.sockets import unsent
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


def test_short_sends_of_an_object_lose_nothing() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.settimeout(WAIT)
        stream = as_stream(HalfClosing(ours))
        stream.socket.setblocking(True)
        thread = threading.Thread(target=lambda: (stream.socket.sendall(BLOCK), stream.socket.shutdown(1)))
        thread.start()
        assert receive_exactly(theirs, len(BLOCK)) == BLOCK
        assert theirs.recv(1) == b""
        thread.join(WAIT)
        stream.close()


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
    monkeypatch.setattr("relay.streams.adapter._PATIENCE", 0.05)
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
    """What it is given for a clean end is without progress, not for everything that is left."""
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


class HeldTLS:
    """A bridge of an SSLSocket whose thread begins when the test calls :meth:`work`, in the test's own thread."""

    def __init__(self, certificates: Certificates, listener: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        plain = socket.socket()
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 14)
        plain.connect(listener.getsockname())
        self.connection = listener.accept()[0]
        self.connection.settimeout(WAIT)
        shaking = Thread(TLSEnd, self.connection, certificates.server(), True)
        self.made = certificates.client().wrap_socket(plain, server_hostname="localhost")
        self.peer: TLSEnd = shaking.result()
        with monkeypatch.context() as patched:
            idle = SimpleNamespace(start=lambda: None)
            patched.setattr("relay.streams.adapter.threading", SimpleNamespace(Thread=lambda **_: idle))
            self.stream = as_stream(self.made)
        self.work: Callable[[], None] = self.stream._bridge._work  # type: ignore[attr-defined]

    def close(self) -> None:
        self.stream.reset()
        self.stream._bridge._inner.close()  # type: ignore[attr-defined]
        self.made.close()
        self.connection.close()


@pytest.fixture
def held_tls(certificates: Certificates, listener: socket.socket, monkeypatch: pytest.MonkeyPatch) -> Iterator[HeldTLS]:
    held = HeldTLS(certificates, listener, monkeypatch)
    yield held
    held.close()


def fill(sock: socket.socket) -> bytes:
    """Send as much as it takes, far more than a connection of few buffers; returns that."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 19)
    sent = 0
    while select.select([], [sock], [], 0)[1]:
        sent += sock.send(BLOCK[sent : sent + 4096])
    return BLOCK[:sent]


def test_what_was_sent_to_an_ssl_socket_arrives_though_the_engine_is_gone_and_the_peer_still_sends(
    held_tls: HeldTLS,
) -> None:
    held_tls.peer.sendall(b"too late")
    held_tls.stream.socket.sendall(b"last words")
    held_tls.stream.close()
    wait_until(lambda: select.select([held_tls.made], [], [], 0)[0])
    held_tls.work()
    assert receive_all(held_tls.peer) == b"last words"


class Impatient:
    """A poller whose time is over at once while the peer takes what waits in the kernel."""

    def __init__(self, held: HeldTLS, takes: list[bool]) -> None:
        self._poll = select.poll()
        self.register, self.unregister = self._poll.register, self._poll.unregister
        self._held = held
        self.takes = takes
        self.reading: Thread | None = None
        self.taken = bytearray()

    def poll(self, milliseconds: float | None) -> list[tuple[int, int]]:
        if milliseconds is None:
            return self._poll.poll()
        if events := self._poll.poll(0):
            return events
        if not self.takes:
            self.reading = self.reading or Thread(receive_all, self._held.peer)
            return self._poll.poll(WAIT * 1000)
        if self.takes.pop(0):
            before = unsent(self._held.made)
            while unsent(self._held.made) == before:
                self._held.peer._incoming.write(self._held.connection.recv(1024))
        return []


def wait_as(poller: Impatient, monkeypatch: pytest.MonkeyPatch) -> None:
    values = {name: getattr(select, name) for name in ("POLLIN", "POLLOUT", "POLLHUP")}
    monkeypatch.setattr("relay.streams.adapter.select", SimpleNamespace(poll=lambda: poller, **values))


def test_a_slow_peer_of_an_ssl_socket_has_all_the_time_in_which_it_takes_something(
    held_tls: HeldTLS, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = fill(held_tls.stream.socket)
    held_tls.stream.close()
    poller = Impatient(held_tls, [True] * 3)
    wait_as(poller, monkeypatch)
    held_tls.work()
    assert len(poller.takes) <= 1  # of three, whatever the sizes of the buffers
    reading = poller.reading or Thread(receive_all, held_tls.peer)
    assert reading.result() == sent


def test_a_peer_of_an_ssl_socket_that_takes_nothing_is_given_up(
    held_tls: HeldTLS, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(held_tls.stream.socket)
    held_tls.stream.close()
    wait_as(Impatient(held_tls, [True, False, False]), monkeypatch)
    held_tls.work()
    assert isinstance(held_tls.stream.failure(), TimeoutError)  # type: ignore[misc]
    with pytest.raises(ConnectionResetError):
        receive_all(held_tls.peer)


def test_the_goodbye_of_an_ssl_socket_waits_for_room(held_tls: HeldTLS, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it the peer would find a transfer cut that was whole."""
    unwrap, full = held_tls.made.unwrap, [True]

    def unwrap_when_there_is_room() -> None:
        if full:
            full.clear()
            raise ssl.SSLWantWriteError
        unwrap()

    monkeypatch.setattr(held_tls.made, "unwrap", unwrap_when_there_is_room)
    held_tls.stream.close()
    held_tls.work()
    assert receive_all(held_tls.peer) == b""
