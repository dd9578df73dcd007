"""``close()`` is prompt, whatever the SSH connection is doing, and leaves nothing."""

import contextlib
import socket
import time

import pytest
from helpers import PROMPT, WAIT, Thread, ended, ending, exchange, flood, refusing, wait_until

import relay

LONG = 3 * PROMPT  # seconds; what a close could wait for instead


@pytest.fixture
def slow(monkeypatch):
    """A long back-off."""
    for module in ("relay.carriers.retry", "relay.transports.ssh.listener"):
        monkeypatch.setattr(f"{module}._BACKOFF", (LONG, LONG))
    monkeypatch.setattr("relay.carriers.retry._MAX_BACKOFF_WITH_WAITERS", LONG)


@contextlib.contextmanager
def prompt():
    begin = time.monotonic()
    yield
    assert time.monotonic() - begin < PROMPT


def test_with_live_streams(far_end, over_ssh):
    rig = over_ssh(far_end.url)
    pairs = [rig.connect() for _ in range(20)]
    for client, far in pairs:
        exchange(client, far)
    with prompt():
        rig.tunnel.close()
    for client, far in pairs:
        assert ending(client) == "reset"
        ending(far)
    assert ended(rig.tunnel, 20) == ["closed"] * 20


def test_with_bulk_under_way_and_stalled_readers(far_end, over_ssh):
    rig = over_ssh(far_end.url)
    pairs = [rig.connect() for _ in range(4)]
    sending = [Thread(flood, client) for client, _ in pairs]
    reading = [Thread(ending, far) for _, far in pairs[::2]]
    wait_until(lambda: all(one.received for one in rig.tunnel.connections()))
    with prompt():
        rig.tunnel.close()
    for thread in sending:
        with pytest.raises(ConnectionError):
            thread.result()
    for thread in reading:
        thread.result()


def test_with_a_frozen_server(mortal_far_end, over_ssh):
    rig = over_ssh(mortal_far_end.address(keepalive=LONG))
    client, far = rig.connect()
    exchange(client, far)
    mortal_far_end.freeze()
    rig.client().sendall(b"x")
    wait_until(lambda: rig.tunnel.stats().active == 2)
    with prompt():
        rig.tunnel.close()


def test_while_it_connects(backend, listener, tmp_path):
    """A server that accepts and says nothing."""
    host, port = listener.getsockname()
    url = f"ssh://me@{host}:{port}?backend={backend}&config=/dev/null"
    tunnel = relay.Tunnel(relay.listen(":0"), relay.target("127.0.0.1:9", via=[url]), connect_timeout=LONG)
    with socket.create_connection(tunnel.address, WAIT) as client:
        with listener.accept()[0]:
            with prompt():
                tunnel.close()
        assert ending(client) == "reset"


def test_while_it_backs_off(backend, slow):
    with refusing() as (host, port):
        factory = relay.ssh(f"ssh://me@{host}:{port}?backend={backend}&config=/dev/null", "127.0.0.1", 9)
        tunnel = relay.Tunnel(relay.listen(":0"), factory, connect_timeout=LONG)
        with socket.create_connection(tunnel.address, WAIT) as client:
            wait_until(lambda: factory.state == "backing off")
            with prompt():
                tunnel.close()
            assert ending(client) == "reset"


def test_when_it_has_failed(far_end, tmp_path):
    (tmp_path / "hosts").touch()
    factory = relay.ssh(far_end.address(known_hosts=tmp_path / "hosts"), "127.0.0.1", 9)
    tunnel = relay.Tunnel(relay.listen(":0"), factory)
    with pytest.raises(relay.HostKeyError):
        factory.ready()
    assert factory.state == "failed"
    with prompt():
        tunnel.close()


def test_before_anything_was_opened(far_end):
    tunnel = relay.Tunnel(relay.listen(":0"), relay.target("127.0.0.1:9", via=[far_end.url]))
    with prompt():
        tunnel.close()
    assert far_end.logins == 0


def test_of_a_listener(mortal_far_end):
    listener = relay.ssh_listen(mortal_far_end.url)
    accepting = Thread(listener.accept)
    with prompt():
        listener.close()
    with pytest.raises(OSError, match="Bad file"):
        accepting.result()
    listener = relay.ssh_listen(mortal_far_end.address(keepalive=LONG))
    mortal_far_end.freeze()
    with prompt():
        listener.close()


def test_of_a_listener_whose_server_is_gone(mortal_far_end, slow):
    listener = relay.ssh_listen(mortal_far_end.url)
    mortal_far_end.down()
    wait_until(lambda: listener.state != "up")
    with prompt():
        listener.close()


def test_of_a_socket_of_connect(far_end, echo_server):
    """The connection closes with the last socket."""
    client = relay.connect("{}:{}".format(*echo_server.address), via=[far_end.url])
    with prompt():
        client.close()
