"""``relay.streams.ssl_bridge``: an ``ssl.SSLSocket`` of a user, whose thread runs in the test's own."""

from __future__ import annotations

import select
import socket
import ssl
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
from helpers import BLOCK, WAIT, Certificates, Thread, TLSEnd, closed, receive_all, wait_until

from relay.eventloop.sockets import unsent
from relay.streams.adapter import as_stream


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
            patched.setattr("relay.streams.ssl_bridge.threading", SimpleNamespace(Thread=lambda **_: idle))
            self.stream = as_stream(self.made)
        self.work: Callable[[], None] = self.stream._bridge._work  # type: ignore[attr-defined]

    def close(self) -> None:
        self.stream.reset()
        self.stream._bridge._inner.close()  # type: ignore[attr-defined]
        self.made.close()
        self.connection.close()


@pytest.fixture
def held_tls(certificates: Certificates, listener: socket.socket, monkeypatch: pytest.MonkeyPatch) -> Iterator[HeldTLS]:
    yield from closed(HeldTLS(certificates, listener, monkeypatch))


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
    monkeypatch.setattr("relay.streams.ssl_bridge.select", SimpleNamespace(poll=lambda: poller, **values))


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
