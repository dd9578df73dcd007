"""``relay.cli.single``: the tunnel of a command line, on a thread of the test; no process is started."""

from __future__ import annotations

import logging
import signal
import threading
from contextlib import contextmanager

import pytest
from group_rig import _Signals
from helpers import WAIT, receive_all, wait_until

from relay.addresses.parse import parse_listen, parse_target
from relay.cli import single
from relay.cli.options import Options
from relay.cli.plan import make_plan
from relay.cli.single import SingleTunnel
from relay.errors import ConnectError


@pytest.fixture
def signals():
    with _Signals() as made:
        yield made


def planned(listen, target, **options):
    return make_plan(parse_listen(listen), parse_target(target), Options(**options), name="tunnel")


@contextmanager
def relaying(tunnel):
    """Relay on a thread; the error that it raises is in the list."""
    raised = []

    def relay():
        try:
            tunnel.relay()
        except Exception as error:  # noqa: BLE001  (the test looks at it)
            raised.append(error)

    thread = threading.Thread(target=relay)
    thread.start()
    try:
        yield raised
    finally:
        if thread.is_alive() and not tunnel.is_ending:
            tunnel.stop()
        thread.join(WAIT)
        assert not thread.is_alive()


def member(tunnel):
    return tunnel.members[0]


def test_it_prints_its_title_and_its_address_without_a_name(signals, echo_server, capsys, caplog):
    caplog.set_level(logging.INFO, "relay.cli")
    target = "{}:{}".format(*echo_server.address)
    tunnel = SingleTunnel(planned(":0", target), signals, "listening on ")
    with relaying(tunnel) as raised:
        wait_until(lambda: member(tunnel).opened is not None)
        address = member(tunnel).opened.tunnel.address
        with member(tunnel).opened.make_send() as stream:
            stream.socket.settimeout(WAIT)
            stream.socket.sendall(b"hello")
            stream.socket.shutdown(1)
            assert receive_all(stream.socket) == b"hello"
    assert raised == []
    assert capsys.readouterr().out.splitlines()[0] == f"listening on 127.0.0.1:{address[1]} → {target}"
    assert not any("tunnels listen" in line for line in caplog.messages)


def test_its_failure_is_raised(signals, listener):
    taken = "{}:{}".format(*listener.getsockname())
    tunnel = SingleTunnel(planned(taken, "127.0.0.1:1"), signals, "")
    with relaying(tunnel) as raised:
        wait_until(lambda: raised)
    assert "Address already in use" in str(raised[0])


def test_a_signal_before_it_is_open_ends_it_without_a_failure(signals, caplog, monkeypatch):
    caplog.set_level(logging.INFO, "relay.cli")
    tunnel = SingleTunnel(planned(":0", "127.0.0.1:1"), signals, "")
    ended = []
    monkeypatch.setattr(tunnel, "_end", ended.append)
    tunnel._on_signal(signal.SIGTERM)
    assert ended == [0]
    assert caplog.messages == ["SIGTERM: closing before there was an answer"]


def test_a_server_that_cannot_be_reached_yet_is_tried_again(signals):
    tunnel = SingleTunnel(planned(":0", "127.0.0.1:1"), signals, "")
    tunnel._on_postponed(tunnel._members[0], ConnectError("ssh://me@x: no route"))
    assert tunnel.members[0].problem == "ssh://me@x: no route; trying again"


@pytest.mark.parametrize(("listen", "count"), [("i2p:", 1), (":0", 0)])
def test_only_a_destination_that_takes_its_time_is_explained_and_only_once(signals, monkeypatch, listen, count):
    said = []
    monkeypatch.setattr(single, "SLOW", 0.0)
    monkeypatch.setattr(single, "report_slow", lambda **_: said.append(1))
    monkeypatch.setattr(signals, "wait", lambda timeout=None: None)
    tunnel = SingleTunnel(planned(listen, "127.0.0.1:1"), signals, "")
    for _ in range(3):
        tunnel._wait()
    assert len(said) == count
