"""Attempts: how they are given up, and what factories hand over that is not what it seems."""

from __future__ import annotations

import contextlib
import functools
import select
import socket
import struct
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from helpers import WAIT, Server, black_hole, ending, fate_of_client, receive_exactly, refusing, wait_until

import relay
from relay.engine.attempt import Plan, keywords_of
from relay.streams.connect import SocketDialer
from relay.streams.dialer import Dialer
from relay.streams.promise import Cancellation
from relay.streams.stream import StreamPath


def reset(client: socket.socket) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


@pytest.mark.parametrize("asked_first", [True, False])
def test_a_cancellation_can_be_waited_for(asked_first: bool) -> None:
    cancel = Cancellation()
    if asked_first:
        assert not select.select([cancel], [], [], 0)[0]
    assert not cancel.is_set()
    cancel.set()
    cancel.set()
    assert cancel.is_set()
    assert select.select([cancel], [], [], 5)[0]
    cancel.close()
    cancel.set()


def connected(server: Server) -> socket.socket:
    return socket.create_connection(server.address)


def test_a_socket_that_its_maker_closes_ends_its_connection_and_gives_the_slot_back(echo_server: Server) -> None:
    made: list[socket.socket] = []

    def factory() -> socket.socket:
        made.append(connected(echo_server))
        return made[-1]

    with relay.Tunnel(relay.listen(":0"), factory, nconnect=1) as tunnel:
        with socket.create_connection(tunnel.address, timeout=WAIT) as client:
            client.sendall(b"x")
            assert receive_exactly(client, 1) == b"x"
            made[0].close()
            client.sendall(b"y")
            assert ending(client) == "reset"
        with socket.create_connection(tunnel.address, timeout=WAIT) as client:
            client.sendall(b"z")
            assert receive_exactly(client, 1) == b"z"
        assert tunnel.recent()[0].reason == "target_reset"


def test_a_socket_that_is_handed_over_twice_fails_the_second_time(
    echo_server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    one = connected(echo_server)
    with relay.Tunnel(relay.listen(":0"), lambda: one) as tunnel:
        first = socket.create_connection(tunnel.address, timeout=WAIT)
        with first:
            first.sendall(b"x")
            assert receive_exactly(first, 1) == b"x"
            assert fate_of_client(tunnel.address) == "reset"
            assert ended_with(tunnel, "factory_error")
        wait_until(lambda: tunnel.stats().active == 0)
    assert "a bug in relay" not in caplog.text


def ended_with(tunnel: relay.Tunnel, reason: str) -> bool:
    wait_until(tunnel.recent)
    return tunnel.recent()[0].reason == reason


def test_a_socket_that_listens_is_refused_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening, relay.Tunnel(relay.listen(":0"), listening.dup) as tunnel:
        assert fate_of_client(tunnel.address) == "reset"
        assert ended_with(tunnel, "factory_error")


# -- the plan of a factory -------------------------------------------------------------------------------------------


def with_keywords(a: int, peer: int, identity: int = 0, *, destination: int, deadline: int = 0, cancel: int) -> None:
    """Name all of them."""


class Callee:
    """An object that can be called."""

    def __call__(self, deadline: Any = None) -> None:
        """Make no stream."""


NO_SIGNATURE = type("NoSignature", (), {"__signature__": "wrong", "__call__": lambda self: None})()


@pytest.mark.parametrize(
    ("factory", "names"),
    [
        (with_keywords, {"peer", "identity", "destination", "deadline", "cancel"}),
        (functools.partial(with_keywords, cancel=1), {"peer", "identity", "destination", "deadline", "cancel"}),
        (lambda peer=None: None, {"peer"}),
        (Callee(), {"deadline"}),
        (dict.get, set()),
        (lambda peer, /: None, set()),
        (lambda *peer: None, set()),
        (lambda **cancel: None, set()),
        (lambda other: None, set()),
        (int, set()),
        (NO_SIGNATURE, set()),
    ],
)
def test_the_keywords_of_a_factory(factory: Any, names: set[str]) -> None:
    assert keywords_of(factory) == names


class Selecting(Dialer):
    """A dialer that selects another one for each client."""

    def select(self, request: Any) -> Dialer:
        return self


@pytest.mark.parametrize(
    ("factory", "per_client", "needs"),
    [
        (lambda: None, False, False),
        (lambda deadline, cancel: None, False, False),
        (lambda peer: None, False, True),
        (lambda identity: None, False, True),
        (lambda destination: None, False, True),
        (lambda: None, True, True),
        (Dialer("a"), False, False),
        (Selecting("a"), False, True),
    ],
)
def test_a_stream_may_depend_on_its_client(factory: Any, per_client: bool, needs: bool) -> None:
    assert Plan(factory, per_client=per_client).needs_client is needs


@pytest.mark.parametrize("count", [1, 2])
def test_one_literal_address_is_connected_to_at_once(count: int) -> None:
    where = SimpleNamespace(family=socket.AF_INET)
    plan = Plan(SocketDialer("db:5432", lambda: [where] * count, literal=True))  # type: ignore[arg-type,list-item]
    assert len(plan.endpoints) == count
    assert plan.endpoint is (where if count == 1 else None)


@pytest.mark.parametrize("blocks", [True, False])
def test_a_factory_that_does_not_block_is_called_in_the_relay_thread(echo_server: Server, blocks: bool) -> None:
    threads: list[str] = []

    def factory() -> socket.socket:
        threads.append(threading.current_thread().name)
        return connected(echo_server)

    with relay.Tunnel(relay.listen(":0"), factory if blocks else relay.nonblocking(factory), name="it") as tunnel:
        with socket.create_connection(tunnel.address, timeout=WAIT) as client:
            client.sendall(b"x")
            assert receive_exactly(client, 1) == b"x"
    assert (threads == ["it"]) is not blocks


# -- a socket that a factory has made, and that is not connected yet -------------------------------------------------


class Beginning:
    """A factory that begins to connect."""

    def __init__(self, address: Any, **about: Any) -> None:
        self.address, self.about = address, about
        self.made: list[socket.socket] = []

    def __call__(self) -> relay.Stream:
        made = socket.socket()
        made.setblocking(False)
        made.connect_ex(self.address)
        self.made.append(made)
        return relay.Stream(made, **self.about)


@pytest.mark.parametrize("name", ["db:5432", None])
def test_a_connect_that_is_under_way_is_waited_for(name: str | None) -> None:
    with black_hole() as listening, contextlib.ExitStack() as stack:
        closed = threading.Event()
        factory = Beginning(listening.getsockname(), target=name, on_close=closed.set)
        tunnel = stack.enter_context(relay.Tunnel(relay.listen(":0"), factory))
        client = stack.enter_context(socket.create_connection(tunnel.address, timeout=WAIT))
        client.sendall(b"x")
        wait_until(lambda: factory.made)
        place = factory.made[0].getsockname()
        far = stack.enter_context(listening.accept()[0])
        while far.getpeername() != place:  # those that fill the backlog come first
            far = stack.enter_context(listening.accept()[0])
        far.settimeout(WAIT)
        assert receive_exactly(far, 1) == b"x"
        assert tunnel.connections()[0].target == (name or "{}:{}".format(*listening.getsockname()))
        far.close()
        assert ending(client) == "end of file"
        client.close()
        assert closed.wait(WAIT)


def test_a_connect_that_is_under_way_is_given_up_with_its_client(caplog: pytest.LogCaptureFixture) -> None:
    with black_hole() as listening:
        factory = Beginning(listening.getsockname(), target="db:5432")
        with relay.Tunnel(relay.listen(":0"), factory) as tunnel:
            with socket.create_connection(tunnel.address, timeout=WAIT) as client:
                wait_until(lambda: [one.target for one in tunnel.connections()] == ["db:5432"])
                reset(client)
            assert ended_with(tunnel, "client_reset")
            assert factory.made[0].fileno() < 0
            assert caplog.messages == []


@pytest.mark.parametrize("name", ["db:5432", None])
def test_a_connect_that_fails_names_the_target(name: str | None, caplog: pytest.LogCaptureFixture) -> None:
    with refusing() as address, relay.Tunnel(relay.listen(":0"), Beginning(address, target=name), name="it") as tunnel:
        assert fate_of_client(tunnel.address) == "reset"
        assert ended_with(tunnel, "refused")
    assert f"{name or 'the target'}: connection refused" in caplog.text


@pytest.mark.parametrize("name", ["db:5432", None])
def test_a_socket_that_does_not_connect_is_the_factorys_fault(
    name: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    with relay.Tunnel(relay.listen(":0"), lambda: relay.Stream(socket.socket(), target=name)) as tunnel:
        assert fate_of_client(tunnel.address) == "reset"
        assert ended_with(tunnel, "factory_error")
    text = "the factory returned a socket that is neither connected nor connecting"
    assert f"{name or 'the target'}: {text}" in caplog.text


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_target_that_refuses_is_named(host: str, caplog: pytest.LogCaptureFixture) -> None:
    with refusing() as (_, port), relay.Tunnel(relay.listen(":0"), relay.tcp(host, port)) as tunnel:
        assert fate_of_client(tunnel.address) == "reset"
        assert ended_with(tunnel, "refused")
    assert f"{host}:{port}: connection refused" in caplog.text


def test_a_name_that_is_not_found_is_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with relay.Tunnel(relay.listen(":0"), relay.tcp("no-such-host.invalid", 80)) as tunnel:
        assert fate_of_client(tunnel.address) == "reset"
        assert ended_with(tunnel, "unreachable")
    assert "no-such-host.invalid" in caplog.text


# -- a dialer ---------------------------------------------------------------------------------------------------------


class Dialing(Dialer):
    """A dialer whose streams the test makes, at once or later; notes what it is asked for, and what is given up."""

    def __init__(self, *outcomes: Any) -> None:
        super().__init__("db:5432")
        self.outcomes = [*outcomes]
        self.asked: list[Any] = []
        self.given_up: list[Any] = []

    def dial(self, deadline: float | None, done: Any, **options: Any) -> Any:
        self.asked.append((deadline, done, options))
        if self.outcomes:
            outcome = self.outcomes.pop(0)
            if callable(outcome):
                outcome = outcome(done)
            if outcome is not None:
                done(outcome)
        return lambda: self.given_up.append(done)


def serves(client: socket.socket, far: socket.socket) -> bool:
    client.sendall(b"x")
    return receive_exactly(far, 1) == b"x"


def from_another_thread(outcome: Any) -> Callable[[Any], None]:
    def later(done: Any) -> None:
        thread = threading.Thread(target=done, args=[outcome])
        thread.start()
        thread.join()

    return later


@pytest.mark.parametrize("when", ["at once", "in another thread while it begins", "later"])
def test_a_dialed_stream_may_come_at_any_time(ends: tuple[socket.socket, socket.socket], when: str) -> None:
    near, far = ends
    near.setblocking(False)
    far.settimeout(WAIT)
    stream = relay.Stream(near)
    now = {"at once": stream, "later": None}.get(when, from_another_thread(stream))
    dialer = Dialing(now)
    with (
        relay.Tunnel(relay.listen(":0"), dialer) as tunnel,
        socket.create_connection(tunnel.address, timeout=WAIT) as client,
    ):
        wait_until(lambda: dialer.asked)
        if when == "later":
            dialer.asked[0][1](stream)
        assert serves(client, far)
        client.shutdown(socket.SHUT_WR)
        assert ending(far) == "end of file"
    assert dialer.given_up == []


def test_a_dial_that_fails_ends_its_connection(caplog: pytest.LogCaptureFixture) -> None:
    error = relay.ConnectError("db:5432: there is none", reason="unreachable")
    dialer = Dialing(error, None, lambda done: 1 / 0)
    with relay.Tunnel(relay.listen(":0"), dialer) as tunnel:
        assert fate_of_client(tunnel.address) == "reset"
        assert ended_with(tunnel, "unreachable")
        assert "db:5432: there is none" in caplog.text
        with socket.create_connection(tunnel.address, timeout=WAIT) as client:
            wait_until(lambda: len(dialer.asked) == 2)
            dialer.asked[1][1](error)
            assert ending(client) == "reset"
        assert fate_of_client(tunnel.address) == "reset"
        wait_until(lambda: len(tunnel.recent()) == 3)
        assert [record.reason for record in tunnel.recent()] == ["unreachable", "unreachable", "factory_error"]
    assert dialer.given_up == []


def test_a_dialed_stream_that_is_none_ends_its_connection(
    listener: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    dialer = Dialing()
    with (
        relay.Tunnel(relay.listen(":0"), dialer) as tunnel,
        socket.create_connection(tunnel.address, timeout=WAIT) as client,
    ):
        wait_until(lambda: dialer.asked)
        dialer.asked[0][1](relay.Stream(listener.dup()))
        assert ending(client) == "reset"
        assert ended_with(tunnel, "factory_error")
    assert "ValueError: the factory returned a listening socket; return a connected one" in caplog.text


@pytest.mark.parametrize("is_closed", [False, True])
def test_a_dial_is_given_up_with_its_client_and_a_stream_that_comes_late_is_reset(
    listener: socket.socket, is_closed: bool
) -> None:
    dialer = Dialing()
    with relay.Tunnel(relay.listen(":0"), dialer) as tunnel:
        with socket.create_connection(tunnel.address, timeout=WAIT) as client:
            wait_until(lambda: dialer.asked)
            reset(client)
        assert ended_with(tunnel, "client_reset")
        done = dialer.asked[0][1]
        assert dialer.given_up == [done]
        if is_closed:
            tunnel.close()
        late = socket.create_connection(listener.getsockname(), timeout=WAIT)
        far, _ = listener.accept()
        with far:
            far.settimeout(WAIT)
            done(relay.Stream(late))
            assert ending(far) == "reset"
        done(OSError("late"))


@pytest.mark.parametrize("warm", [0, 1])
def test_only_a_client_waits_for_a_lost_carrier(warm: int) -> None:
    """A dial for a warm stream leaves its back-off as it is."""
    dialer = Dialing()
    with relay.Tunnel(relay.listen(":0"), dialer, warm=warm, connect_timeout=WAIT) as tunnel:
        with contextlib.nullcontext() if warm else socket.create_connection(tunnel.address, timeout=WAIT):
            wait_until(lambda: dialer.asked)
            assert dialer.asked[0][0] is not None
            assert dialer.asked[0][2] == {"wait_for_reconnect": not warm}


@pytest.mark.parametrize(("own", "route"), [(None, ("of the dialer",)), (("of the stream",), ("of the stream",))])
def test_the_path_of_a_dialed_stream_is_in_its_record(
    ends: tuple[socket.socket, socket.socket], own: Any, route: Any
) -> None:
    stream = relay.Stream(ends[0])
    ends[0].setblocking(False)
    stream.path = StreamPath((), route=own)
    dialer = Dialing(stream)
    dialer.route = ("of the dialer",)  # type: ignore[assignment]
    with (
        relay.Tunnel(relay.listen(":0"), dialer) as tunnel,
        socket.create_connection(tunnel.address, timeout=WAIT) as client,
    ):
        ends[1].settimeout(WAIT)
        assert serves(client, ends[1])
        connection = next(iter(tunnel._relay.all_connections))  # type: ignore[attr-defined]
        assert (connection.summary.path, connection.summary.route) == (stream.path, route)
