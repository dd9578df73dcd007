"""Letting clients in: what is refused, batches, and what happens when it fails."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import sys
import threading
import time
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from helpers import WAIT, Server, ending, few_descriptors, receive_exactly, wait_until

import relay
from relay.engine import acceptor, changes
from relay.engine.acceptor import check_listener
from relay.eventloop.poller import IN
from relay.streams.listener import PushingListener
from relay.testing import FakeListener
from relay.transports.proxies.socks_server import SOCKSListener


def test_a_socket_is_no_tls_socket_while_another_thread_imports_ssl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ssl", ModuleType("ssl"))  # as it is in the first moment
    with socket.create_server(("127.0.0.1", 0)) as listening:
        check_listener(listening)
        with relay.Stream(socket.create_connection(listening.getsockname())):
            pass


class Flaky(socket.socket):
    """A listening socket whose accept fails as often as the test says."""

    failures: list[OSError]

    def accept(self) -> tuple[socket.socket, Any]:
        if self.failures:
            raise self.failures.pop()
        return super().accept()


def flaky(*failures: OSError) -> Flaky:
    listening = Flaky()
    listening.failures = [*failures]
    listening.bind(("127.0.0.1", 0))
    listening.listen()
    return listening


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> Callable[[float, float], None]:
    """Pauses after a failure that tests can wait for; returns what makes others of them."""

    def pause(first: float, longest: float) -> None:
        monkeypatch.setattr(acceptor, "_BACKOFF", (first, longest))

    pause(0.01, 0.02)
    return pause


def is_served(address: Any) -> bool:
    with socket.create_connection(address, timeout=WAIT) as client:
        return is_repeated(client)


def is_repeated(client: socket.socket) -> bool:
    """Return whether the far end repeats what a client says."""
    client.settimeout(WAIT)
    client.sendall(b"x")
    return receive_exactly(client, 1) == b"x"


RAISE = "; raise the limit of open files (ulimit -n)"


@pytest.mark.parametrize(
    ("number", "hint"),
    [(errno.EMFILE, RAISE), (errno.ENFILE, RAISE), (errno.ENOBUFS, ""), (errno.ENOMEM, ""), (errno.EPERM, "")],
)
def test_accepting_goes_on_after_a_failure_with_one_warning(
    echo_server: Server, number: int, hint: str, short_pauses: Any, caplog: pytest.LogCaptureFixture
) -> None:
    listening = flaky(*(OSError(number, "no") for _ in range(20)))  # without an end of its growth they take hours
    with relay.Tunnel(listening, echo_server.factory(), name="it") as tunnel:
        assert is_served(tunnel.address)
        assert tunnel.metrics().accept_errors == {errno.errorcode[number]: 20}
        listening.failures = [OSError("strange")]
        assert is_served(tunnel.address)
    assert caplog.messages == [f"it: cannot accept for now: no{hint}", "it: cannot accept for now: strange"]


@pytest.mark.parametrize("kind", ["socket", "object"])
def test_each_pause_after_a_failure_is_twice_the_one_before(
    echo_server: Server, kind: str, short_pauses: Any, caplog: pytest.LogCaptureFixture
) -> None:
    short_pauses(0.01, 0.05)
    failures = [OSError(errno.EPERM, "no") for _ in range(5)]
    receive: Any = flaky(*failures) if kind == "socket" else FakeListener()
    if kind == "object":
        for failure in failures:
            receive.fail(failure)
    begun = time.monotonic()
    with relay.Tunnel(receive, echo_server.factory(), name="it") as tunnel:
        with receive.connect() if kind == "object" else socket.create_connection(tunnel.address) as client:
            assert is_repeated(client)
        assert tunnel.metrics().accept_errors == {"EPERM": 5}
    assert time.monotonic() - begun >= 0.01 + 0.02 + 0.04 + 0.05 + 0.05
    assert len(caplog.messages) == 1


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EPERM])
def test_room_is_made_where_a_descriptor_is_what_it_lacks(echo_server: Server, number: int, short_pauses: Any) -> None:
    """A client that has made no request yet goes for one that may."""
    listening = flaky()
    with (
        relay.Tunnel(SOCKSListener(listening), echo_server.factory()) as tunnel,
        socket.create_connection(tunnel.address, timeout=WAIT) as silent,
    ):
        wait_until(lambda: tunnel.stats().accepted == 1)
        listening.failures = [OSError(number, "no")]
        with socket.create_connection(tunnel.address, timeout=WAIT):
            wait_until(lambda: tunnel.stats().accepted == 2)
            if number == errno.EMFILE:
                assert ending(silent) == "reset"
            else:
                assert len(tunnel.connections()) == 2


def test_a_tunnel_that_is_paused_after_a_failure_accepts_nobody(echo_server: Server, short_pauses: Any) -> None:
    listening = flaky(OSError(errno.EPERM, "no"))
    with relay.Tunnel(listening, echo_server.factory()) as tunnel:
        with socket.create_connection(tunnel.address, timeout=WAIT) as client:
            wait_until(lambda: not listening.failures)
            tunnel.pause()
            before = tunnel.stats().accepted
            assert not select.select([client], [], [], 0.05)[0]  # the time is what is looked at
            assert tunnel.stats().accepted == before
            tunnel.resume()
            assert is_repeated(client)


class Stubborn(FakeListener):
    """A listener whose end fails."""

    def close(self) -> None:
        super().close()
        raise ZeroDivisionError


@pytest.mark.parametrize("pushes", [False, True])
def test_a_listener_that_cannot_be_closed_is_told(
    echo_server: Server, pushes: bool, caplog: pytest.LogCaptureFixture
) -> None:
    relay.Tunnel(StubbornDeliverer() if pushes else Stubborn(), echo_server.factory(), name="it").close()
    assert caplog.messages == ["it: closing the listener failed"]
    assert "ZeroDivisionError" in caplog.text


def test_an_object_is_asked_for_clients_on_a_thread_of_its_own(echo_server: Server) -> None:
    receive = FakeListener()
    with relay.Tunnel(receive, echo_server.factory(), name="it"), receive.connect() as client:
        assert is_repeated(client)
        (thread,) = [thread for thread in threading.enumerate() if thread.name == "it accept"]
        assert thread.daemon
    assert not thread.is_alive()


def test_what_an_object_returns_that_is_no_stream_is_an_error_of_its_own(
    echo_server: Server, short_pauses: Any
) -> None:
    receive = FakeListener()
    receive.put("no stream")
    with relay.Tunnel(receive, echo_server.factory()) as tunnel, receive.connect() as client:
        assert is_repeated(client)
        assert tunnel.metrics().accept_errors == {"other": 1}


def test_the_end_of_a_tunnel_ends_the_pause_of_its_listener(
    echo_server: Server, short_pauses: Any, caplog: pytest.LogCaptureFixture
) -> None:
    short_pauses(WAIT * 10, WAIT * 10)
    receive = FakeListener()
    receive.fail(OSError(errno.EPERM, "no"))
    with relay.Tunnel(receive, echo_server.factory(), name="it") as tunnel:
        wait_until(lambda: caplog.messages)
    tunnel.join(WAIT)
    assert "it accept" not in [thread.name for thread in threading.enumerate()]
    assert caplog.messages == ["it: the listener failed: [Errno 1] no"]
    assert "Traceback" in caplog.text


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: socket.socket(type=socket.SOCK_DGRAM), ValueError, "expected a stream socket, got SOCK_DGRAM"),
        (socket.socket, ValueError, r"the socket does not listen; call its listen\(\) first"),
        (
            lambda: SimpleNamespace(accept=int),
            TypeError,
            "expected a listening socket, or an object with .* got Simple",
        ),
        (lambda: SimpleNamespace(close=int), TypeError, ".* got SimpleNamespace"),
        (lambda: SimpleNamespace(accept=1, close=int), TypeError, ".* got SimpleNamespace"),
    ],
)
def test_what_is_no_listener(make: Any, error: type[Exception], text: str) -> None:
    wrong = make()
    with pytest.raises(error, match=f"^mine: {text}"):
        check_listener(wrong, "mine")
    if isinstance(wrong, socket.socket):
        wrong.close()
        with pytest.raises(ValueError, match="^receive: the socket is closed; pass a listening one"):
            check_listener(wrong)


@pytest.mark.parametrize("fails", ["the accept", "a spare descriptor"])
def test_the_backlog_of_a_listener_that_fails_is_tried_once(echo_server: Server, fails: str) -> None:
    """The clients still wait there; another try would end more half-open connections for nothing."""
    listening, other = flaky(), relay.listen(":0")
    with (
        relay.Tunnel(listening, echo_server.factory()) as tunnel,
        socket.socket() as client,
        contextlib.ExitStack() as stack,
    ):

        def relisten(thread: Any, now: float) -> None:
            client.connect(tunnel.address)
            if fails == "the accept":
                listening.failures = [OSError(errno.EMFILE, "no") for _ in range(3)]
            else:
                stack.enter_context(few_descriptors(0))
            changes.relisten(tunnel, other, None)
            stack.close()

        changes.in_thread(tunnel, relisten)
        assert tunnel.metrics().accept_errors == {"EMFILE": 1}
        assert is_served(tunnel.address)


def test_a_client_that_is_gone_before_it_is_accepted_is_nothing(
    echo_server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        relay.Tunnel(flaky(ConnectionAbortedError(errno.ECONNABORTED, "gone")), echo_server.factory()) as tunnel,
        socket.create_connection(tunnel.address, timeout=WAIT) as client,
    ):
        assert is_repeated(client)
    assert caplog.records == []


def test_a_storm_is_accepted_in_growing_batches(echo_server: Server, caplog: pytest.LogCaptureFixture) -> None:
    with relay.Tunnel(relay.listen(":0"), echo_server.factory()) as tunnel:
        tunnel.pause()
        clients = [socket.create_connection(tunnel.address, timeout=WAIT) for _ in range(200)]
        tunnel.resume()
        wait_until(lambda: tunnel.stats().accepted == 200)
        assert changes.in_thread(tunnel, lambda thread, now: thread._acceptor._batch) > 1
        for client in clients:
            client.close()
        assert is_served(tunnel.address)
        assert caplog.messages == []


def test_a_listening_socket_that_somebody_else_has_closed_costs_no_connection(
    echo_server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    receive = relay.listen(":0")
    with (
        relay.Tunnel(receive, echo_server.factory()) as tunnel,
        socket.create_connection(tunnel.address, timeout=WAIT) as client,
    ):
        assert is_repeated(client)
        number = receive.fileno()
        receive.close()
        ours, theirs = socket.socketpair()
        with ours, theirs:
            assert number in (ours.fileno(), theirs.fileno()), "the number was to be somebody else's"
            seen = threading.Event()
            loop = changes.in_thread(tunnel, lambda thread, now: thread.loop)
            loop.call(lambda: loop.watch(number, IN, lambda event, now: seen.set()))
            tunnel.pause()
            tunnel.resume()
            (theirs if ours.fileno() == number else ours).send(b"x")
            assert seen.wait(WAIT), "another socket was taken for the listening one"
            changes.in_thread(tunnel, lambda thread, now: loop.forget(number))
        assert is_repeated(client)
    text = "the listening socket was closed by other code; no client is accepted any more"
    assert f"{tunnel.name}: {text}" in caplog.messages


def test_a_tunnel_without_clients_holds_three_descriptors(echo_server: Server) -> None:
    """Its listener, its poller and its eventfd: thousands of tunnels share the limit of one process."""

    def held() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = held()
    with relay.Tunnel(relay.listen(":0"), echo_server.factory()) as tunnel:
        tunnel.pause()
        tunnel.resume()
        assert held() == before + 3
        with socket.create_connection(tunnel.address, timeout=WAIT) as client:
            assert is_repeated(client)
            assert changes.in_thread(tunnel, lambda thread, now: thread.release_spare_fd()), (
                "the first client opens one"
            )


def test_a_client_is_not_accepted_before_there_is_a_spare_descriptor(echo_server: Server, short_pauses: Any) -> None:
    with relay.Tunnel(relay.listen(":0"), echo_server.factory()) as tunnel, socket.socket() as client:
        client.settimeout(WAIT)
        with few_descriptors(0):
            client.connect(tunnel.address)
            wait_until(lambda: tunnel.metrics().accept_errors.get("EMFILE", 0) > 2)
            assert tunnel.stats().accepted == 0
        assert is_repeated(client)


class Deliverer(PushingListener):
    """A listener that pushes its streams, in a thread of its own or in the loop's."""

    pushes_streams = True

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.taker: Any = None
        self.loop: Any = None
        self.waiting: list[relay.Stream] = []
        self.over = threading.Event()

    def deliver(self, taker: Any, loop: Any = None) -> None:
        self.calls.append("deliver" if taker is not None else "keep")
        self.taker, self.loop = taker, loop
        while taker is not None and self.waiting:
            taker(self.waiting.pop(0), "somebody")

    def bring(self) -> socket.socket:
        """A client; returns its end."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.settimeout(WAIT)
        stream = relay.Stream(ours)
        if self.taker is not None:
            self.taker(stream, "somebody")
        else:
            self.waiting.append(stream)
        return theirs

    def accept(self) -> tuple[relay.Stream, str]:
        self.calls.append("accept")
        self.over.wait()
        raise OSError(errno.EBADF, "closed")

    def accept_any(self) -> tuple[relay.Stream, str]:
        self.calls.append("any")
        return self.accept()

    def join(self, timeout: float) -> None:
        self.calls.append("join")

    def close(self) -> None:
        self.calls.append("close")
        self.over.set()


class StubbornDeliverer(Deliverer):
    """The same, whose end fails."""

    def close(self) -> None:
        super().close()
        raise ZeroDivisionError


def test_a_listener_that_delivers_needs_no_thread(echo_server: Server) -> None:
    """Its clients may come on a thread of its own, or on that of the tunnel."""
    receive = Deliverer()
    with relay.Tunnel(receive, echo_server.factory(), name="t") as tunnel:
        wait_until(lambda: receive.taker is not None)
        assert receive.loop is changes.in_thread(tunnel, lambda thread, now: thread.loop)
        assert "t accept" not in [thread.name for thread in threading.enumerate()]
        for client in (receive.bring(), changes.in_thread(tunnel, lambda thread, now: receive.bring())):
            with client:
                assert is_repeated(client)
        assert {record.peer for record in tunnel.connections() + tunnel.recent()} == {"somebody"}
    assert receive.calls == ["deliver", "keep", "close", "join"]


def test_a_paused_tunnel_has_nobody_delivered(echo_server: Server) -> None:
    receive = Deliverer()
    with relay.Tunnel(receive, echo_server.factory()) as tunnel:
        tunnel.pause()
        assert receive.taker is None
        with receive.bring() as client:
            assert tunnel.stats().accepted == 0
            tunnel.resume()
            assert is_repeated(client)


def delivered_late(receive: Deliverer, tunnel: relay.Tunnel, end: Callable[[], object]) -> socket.socket:
    """End or pause a tunnel while a client is on its way to it; return the client."""
    wait_until(lambda: receive.taker is not None)
    take = receive.taker
    end()
    receive.taker = take
    client = receive.bring()
    receive.taker = None
    return client


def test_a_client_on_its_way_waits_for_the_end_of_a_pause(echo_server: Server) -> None:
    receive = Deliverer()
    with relay.Tunnel(receive, echo_server.factory()) as tunnel:
        with delivered_late(receive, tunnel, tunnel.pause) as client:
            assert tunnel.stats().accepted == 0
            tunnel.resume()
            assert is_repeated(client)


@pytest.mark.parametrize("paused", [False, True])
def test_a_client_on_its_way_to_a_tunnel_that_closes_is_reset(echo_server: Server, paused: bool) -> None:
    receive = Deliverer()
    tunnel = relay.Tunnel(receive, echo_server.factory())
    with delivered_late(receive, tunnel, tunnel.pause if paused else tunnel.close) as client:
        tunnel.close()
        assert ending(client) == "reset"


def test_with_a_limit_of_connections_each_is_asked_for(echo_server: Server) -> None:
    receive = Deliverer()
    with relay.Tunnel(receive, echo_server.factory(), nconnect=5):
        wait_until(lambda: receive.calls == ["any", "accept"])
    assert receive.calls == ["any", "accept", "close", "join"]


def test_a_listener_of_somebody_elses_is_not_joined(echo_server: Server) -> None:
    receive = Deliverer()
    receive.pushes_streams = False

    class Plain:
        accept = receive.accept
        close = receive.close
        join = receive.join

    with relay.Tunnel(Plain(), echo_server.factory()):
        pass
    assert "join" not in receive.calls


def test_a_limit_that_a_reload_sets_makes_it_ask_for_each(echo_server: Server) -> None:
    receive = Deliverer()
    with relay.Tunnel(receive, echo_server.factory()) as tunnel:
        wait_until(lambda: receive.taker is not None)
        limits = {"timeout": None, "connect_timeout": WAIT, "idle_timeout": None, "linger": 60.0}
        changes.update(tunnel, nconnect=-1, **limits)  # type: ignore[arg-type]
        assert receive.calls == ["deliver"]
        changes.update(tunnel, nconnect=5, **limits)  # type: ignore[arg-type]
        wait_until(lambda: receive.calls == ["deliver", "keep", "any", "accept"])
