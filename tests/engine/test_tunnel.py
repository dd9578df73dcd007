"""The members of a tunnel; what it promises end to end is in ``promises/``."""

from __future__ import annotations

import pydoc
import queue
import re
import socket
import ssl
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from helpers import (
    WAIT,
    Certificates,
    Relayed,
    Server,
    Thread,
    ended,
    ending,
    exchange,
    fate_of_client,
    receive_exactly,
    refusing,
    wait_until,
)

import relay
from relay.access.proxy_header import build_local
from relay.engine import changes
from relay.engine.managed_tunnel import ManagedTunnel
from relay.engine.records import REASONS, ConnectionRecord
from relay.streams.dialer import Dialer
from relay.testing import FakeListener

MEMBERS = {"address", "close", "join", "kill", "pause", "ping", "resume"} | {
    "connections",
    "metrics",
    "recent",
    "stats",
}
OF_I2P = {"b32", "dest", "session", "state"}


@pytest.mark.parametrize(
    ("kind", "members"),
    [
        (relay.Tunnel, MEMBERS),
        (relay.TunnelServer, MEMBERS | OF_I2P | {"wait_published"}),
        (relay.TunnelClient, MEMBERS | OF_I2P | {"remotedest"}),
    ],
)
def test_it_has_no_members_but_those_for_users(kind: type, members: set[str]) -> None:
    assert {name for name in dir(kind) if not name.startswith("_")} == members
    help_text = pydoc.plain(pydoc.render_doc(kind))
    private = "accepted|close_stream|is_on_relay_thread|make_stream|connection_over|unlimited|original"
    assert not re.findall(rf"\b({private})\b *(?:\(|$)", help_text, re.MULTILINE)


def test_nor_has_an_instance(echo_server: Server) -> None:
    with relay.Tunnel(relay.listen(":0"), echo_server.factory()) as tunnel:
        assert {name for name in dir(tunnel) if not name.startswith("_")} == MEMBERS | {"name"}


def test_a_tunnel_says_where_it_listens_and_what_it_is(echo_server: Server) -> None:
    with relay.Tunnel(relay.listen(":0"), echo_server.factory(), name="to the echo") as tunnel:
        host, port = tunnel.address
        assert host == "127.0.0.1"
        assert repr(tunnel) == f"<Tunnel 'to the echo' at 127.0.0.1:{port}, 0 connections, open>"
        assert "to the echo" in [thread.name for thread in threading.enumerate()]
        tunnel.pause()
        assert repr(tunnel).endswith("paused>")
    assert repr(tunnel).endswith("closed>")


def test_records_tell_who_where_when_how_much_and_why(relayed: Callable[..., Relayed]) -> None:
    made = relayed()
    begin = time.time()
    client, far = made.connect()
    wait_until(lambda: made.tunnel.connections()[0].connect_time is not None)
    (record,) = made.tunnel.connections()
    assert (record.peer, record.target) == (client.getsockname(), "{}:{}".format(*made.target.getsockname()))
    assert uuid.UUID(record.id).version == 7
    assert abs(record.started - begin) < WAIT and 0 < record.age < WAIT
    assert record.connect_time is not None and 0 <= record.connect_time < WAIT and record.first_byte is None
    with pytest.raises(AttributeError):
        record.age = 0  # type: ignore[misc]
    exchange(client, far, b"four")
    (record,) = made.tunnel.connections()
    assert (record.received, record.sent, record.engine, record.state, record.reason) == (4, 4, "copy", "open", None)
    assert record.first_byte is not None and record.connect_time <= record.first_byte < WAIT
    far.shutdown(socket.SHUT_WR)
    assert client.recv(1) == b""
    assert made.tunnel.connections()[0].state == "half-closed"
    client.close()
    assert ended(made.tunnel) == ["done"]
    (closed,) = made.tunnel.recent()
    assert (closed.received, closed.sent, closed.state, closed.reason) == (4, 4, "closed", "done")
    same = ("id", "started", "connect_time", "first_byte")
    assert [getattr(closed, name) for name in same] == [getattr(record, name) for name in same]
    assert (record.by, closed.by, closed.rule) == (None, "target", None)
    assert made.tunnel.connections() == []


def test_one_connection_is_killed_by_its_id(relayed: Callable[..., Relayed]) -> None:
    made = relayed()
    (one, _), (other, other_far) = made.connect(), made.connect()
    found = {record.peer: record.id for record in made.tunnel.connections()}
    text = found[one.getsockname()]
    assert not made.tunnel.kill("") and not made.tunnel.kill(text[:-1] + "x")
    assert not made.tunnel.kill(f"f{text[1:]}")  # another time, but the same number
    assert made.tunnel.kill(text.upper())
    assert made.tunnel.recent()[0].id == text  # it has ended when the call returns
    assert ending(one) == "reset"
    assert [(record.reason, record.by) for record in made.tunnel.recent()] == [("killed", "admin")]
    assert not made.tunnel.kill(text)
    exchange(other, other_far)
    made.tunnel.close()
    assert not made.tunnel.kill(found[other.getsockname()])


def test_the_metrics_are_those_of_the_records(relayed: Callable[..., Relayed]) -> None:
    made = relayed()
    client, far = made.connect()
    exchange(client, far, b"four")
    metrics = made.tunnel.metrics()
    assert (metrics.accepted, metrics.received, metrics.sent) == (1, 4, 4)
    assert metrics.states == {"connecting": 0, "open": 1, "half-closed": 0}
    assert metrics.ended == dict.fromkeys(REASONS, 0) and not sum(metrics.connect_times.counts)
    client.close()
    far.close()
    ended(made.tunnel)
    metrics = made.tunnel.metrics()
    assert sum(metrics.states.values()) == 0 and sum(metrics.ended.values()) == 1
    assert sum(metrics.connect_times.counts) == sum(metrics.ages.counts) == 1
    with refusing() as address, relay.Tunnel(relay.listen(":0"), relay.tcp(*address)) as tunnel:
        assert fate_of_client(tunnel.address) == "reset"
        assert ended(tunnel) == ["refused"]
        metrics = tunnel.metrics()
        assert metrics.ended["refused"] == 1
        assert (sum(metrics.connect_times.counts), sum(metrics.ages.counts)) == (0, 1)  # it was never open


def test_a_connection_that_has_no_stream_yet_has_a_record(echo_server: Server) -> None:
    go = threading.Event()

    def factory() -> socket.socket:
        go.wait(WAIT)
        return socket.create_connection(echo_server.address)

    with relay.Tunnel(relay.listen(":0"), factory) as tunnel, socket.create_connection(tunnel.address) as client:
        wait_until(tunnel.connections)
        (record,) = tunnel.connections()
        assert (record.target, record.state) == (None, "connecting")
        go.set()
        client.sendall(b"x")
        assert receive_exactly(client, 1) == b"x"
        assert tunnel.connections()[0].target == "{}:{}".format(*echo_server.address)


def exchange_with_echo(client: socket.socket) -> None:
    client.settimeout(WAIT)
    client.sendall(b"ping")
    assert receive_exactly(client, 4) == b"ping"


def test_system_exit_in_accept_does_not_end_the_accepting(echo_server: Server) -> None:
    listener = FakeListener()
    listener.fail(SystemExit("a bug"))
    with relay.Tunnel(listener, echo_server.factory()), listener.connect() as client:
        exchange_with_echo(client)


def test_on_end_gets_the_record_of_each_connection(relayed: Callable[..., Relayed]) -> None:
    seen: queue.SimpleQueue[tuple[ConnectionRecord, str]] = queue.SimpleQueue()
    made = relayed(name="seen", on_end=lambda record: seen.put((record, threading.current_thread().name)))
    client, far = made.connect()
    exchange(client, far)
    client.close()
    far.close()
    record, where = seen.get(timeout=WAIT)
    assert [record] == made.tunnel.recent()
    assert record.reason == "done"
    assert where == "seen on_end"


@pytest.mark.parametrize("drain", [0.0, 10.0])
def test_close_returns_after_on_end_has_got_every_record(relayed: Callable[..., Relayed], drain: float) -> None:
    seen: list[str | None] = []
    go = threading.Event()
    made = relayed(on_end=lambda record: (go.wait(WAIT), seen.append(record.reason)))
    pairs = [made.connect() for _ in range(5)]
    for pair in pairs:
        exchange(*pair)
    closing = Thread(made.tunnel.close, drain)
    if drain:
        for client, far in pairs:
            client.close()
            far.close()
    wait_until(lambda: not made.tunnel.connections())
    assert closing.is_alive()
    go.set()
    closing.result()
    assert len(seen) == 5
    assert set(seen) == ({"done"} if drain else {"closed"})


def test_a_tunnel_can_be_closed_in_on_end(echo_server: Server) -> None:
    joined: list[bool] = []

    def end(record: ConnectionRecord) -> None:
        tunnel.close()
        tunnel.join()
        joined.append(True)

    tunnel = relay.Tunnel(relay.listen(":0"), echo_server.factory(), on_end=end)
    with socket.create_connection(tunnel.address, timeout=WAIT):
        pass
    tunnel.join(WAIT)
    assert repr(tunnel).endswith("closed>")
    assert joined == [True]


def test_a_bad_on_end_is_named_and_leaves_the_listener_with_the_caller(listener: socket.socket) -> None:
    with pytest.raises(TypeError, match="on_end: expected a callable, got str"):
        relay.Tunnel(listener, relay.tcp("127.0.0.1", 1), on_end="print")  # type: ignore[arg-type]
    assert listener.fileno() >= 0


@pytest.mark.parametrize("name", [None, ""])
def test_a_tunnel_without_a_name_has_the_next_number(echo_server: Server, name: str | None) -> None:
    made = [relay.Tunnel(relay.listen(":0"), echo_server.factory(), name=name) for _ in range(2)]
    numbers = [int(tunnel.name.removeprefix("relay tunnel ")) for tunnel in made]
    for tunnel in made:
        tunnel.close()
    assert numbers[1] == numbers[0] + 1


def test_a_name_that_is_no_text(listener: socket.socket) -> None:
    with pytest.raises(TypeError, match="^name: expected text, got int$"):
        relay.Tunnel(listener, relay.tcp("127.0.0.1", 1), name=5)  # type: ignore[arg-type]


class Probed(Dialer):
    """A dialer of several targets that are probed."""

    def introduce_probes(self, header: bytes) -> None:
        self.header = header


@pytest.mark.parametrize("way_in", ["tcp", "tls"])
def test_a_tunnel_may_be_paused_at_first(echo_server: Server, certificates: Certificates, way_in: str) -> None:
    """As it is in the process that takes a paused tunnel over."""
    query = f"?cert={certificates.cert}&key={certificates.key}" if way_in == "tls" else ""
    receive = relay.listen(f"{way_in}://127.0.0.1:0{query}")
    with ManagedTunnel(receive, echo_server.factory(), paused=True) as tunnel:
        assert repr(tunnel).endswith("paused>")
        with socket.create_connection(tunnel.address[:2], timeout=WAIT) as client:
            assert not tunnel.stats().accepted
            tunnel.resume()
            if way_in == "tls":
                client = ssl.create_default_context(cafile=str(certificates.ca)).wrap_socket(
                    client, server_hostname="localhost"
                )
            with client:
                exchange_with_echo(client)


# -- options, each at the tunnel itself; what they promise is elsewhere ----------------------------------------------


@pytest.mark.parametrize(
    ("make_send", "warm"), [(relay.unix("/nowhere"), 0), (relay.tcp("192.0.2.1", 1), 0), (relay.tcp("127.0.0.1", 1), 1)]
)
def test_a_source_that_cannot_be_is_named(listener: socket.socket, make_send: Any, warm: int) -> None:
    with pytest.raises(ValueError, match="^source: " if not warm else "^(source|warm): "):
        relay.Tunnel(listener, make_send, source="peer", warm=warm)
    assert listener.fileno() >= 0


def test_the_end_of_a_tunnel_logs_how_many_lines_were_left_out(caplog: pytest.LogCaptureFixture) -> None:
    clients = 70
    with refusing() as address, relay.Tunnel(relay.listen(":0"), relay.tcp(*address), name="web") as tunnel:
        for _ in range(clients):
            assert fate_of_client(tunnel.address) == "reset"
    lines = [message for message in caplog.messages if message.startswith("web: ")]
    left_out = [int(found[1]) for line in lines if (found := re.search(r"; (\d+) more like this", line))]
    assert 0 < len(lines) + sum(left_out) == clients > len(lines)


def test_the_probes_of_a_tunnels_targets_begin_with_its_header(listener: socket.socket) -> None:
    first, second, alone = Probed("db:5432"), Probed("db:5433"), Probed("db:5434")
    first.alternatives = second.alternatives = ("another",)  # type: ignore[assignment]
    with relay.Tunnel(listener, first, send_proxy="v2") as tunnel:
        assert first.header == build_local("v2")
        changes.update(tunnel, send_proxy="v1", linger=None)
        assert first.header == build_local("v1")
        changes.reroute(tunnel, second, None)
        assert second.header == build_local("v1")
        changes.update(tunnel, linger=None)
        assert second.header == b""
        changes.reroute(tunnel, alone, None)
    assert not hasattr(alone, "header"), "it has one target, which is not probed"


def test_a_handshake_has_the_time_of_a_connect() -> None:
    receive = relay.socks_listen("127.0.0.1", 0)
    with relay.Tunnel(receive, relay.dynamic(), connect_timeout=20.0) as tunnel:
        assert receive.handshake_timeout == 20.0
        changes.update(tunnel, connect_timeout=10.0, linger=None)
        assert receive.handshake_timeout == 10.0
