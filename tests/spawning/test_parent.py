"""``relay.spawning.parent``: the program's side of a tunnel in a child, when the child or the program misbehaves."""

import contextlib
import logging
import os
import signal
import socket
import threading

import pytest
from helpers import WAIT, Thread, receive_exactly, wait_until

import relay
from relay.spawning import child_tunnel, worker_slot


@pytest.fixture
def tunnel(echo_server):
    with relay.spawn(":0", "{}:{}".format(*echo_server.address), name="tested") as made:
        yield made


@contextlib.contextmanager
def stopped(tunnel):
    """The child does nothing meanwhile."""
    os.kill(tunnel.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(tunnel.pid, signal.SIGCONT)


def test_a_child_that_does_not_answer(tunnel, monkeypatch):
    monkeypatch.setattr(child_tunnel, "_ANSWER", 0.1)
    with stopped(tunnel):
        for call in (tunnel.stats, tunnel.pause):
            with pytest.raises(relay.RelayError, match=rf"tested: the child process {tunnel.pid} did not answer"):
                call()
        asking = [Thread(tunnel.recent) for _ in range(3)]
        for thread in asking:
            with pytest.raises(relay.RelayError, match="did not answer"):
                thread.result()
    monkeypatch.setattr(child_tunnel, "_ANSWER", WAIT)
    assert tunnel.connections() == []  # and not what it now answers to the calls before
    assert tunnel.stats().accepted == 0


def test_a_child_that_does_not_end_is_killed(tunnel, monkeypatch):
    monkeypatch.setattr(worker_slot, "_END", 0.1)
    with stopped(tunnel):
        tunnel.close()
        with pytest.raises(ProcessLookupError):
            os.kill(tunnel.pid, 0)
    with pytest.raises(relay.RelayError, match="was killed by signal 9"):
        tunnel.stats()
    tunnel.close()


def test_many_threads_ask_at_once(tunnel):
    calls = [tunnel.stats, tunnel.connections, tunnel.recent, tunnel.pause, tunnel.resume] * 6
    asking = [Thread(call) for call in calls]
    answers = [thread.result() for thread in asking]
    assert answers == [(0, 0, 0, 0, {}, 0, 0), [], [], None, None] * 6


def test_asking_while_it_dies(tunnel):
    def ask():
        while True:
            tunnel.stats()

    asking = [Thread(ask) for _ in range(4)]
    tunnel.stats()
    os.kill(tunnel.pid, signal.SIGKILL)
    for thread in asking:
        with pytest.raises(relay.RelayError, match="was killed by signal 9"):
            thread.result()


def test_a_hop_that_is_no_use_is_told_in_one_line(tmp_path, caplog, capfd):
    via = f"ssh://me@127.0.0.1:1?keyfile={tmp_path}/none&config=/dev/null"
    with relay.spawn(":0", "127.0.0.1:1", via=[via], name="tested") as made:
        with socket.create_connection(made.address):
            wait_until(lambda: made.stats().failed == {"factory_error": 1})
        wait_until(lambda: [record for record in caplog.records if record.levelno == logging.ERROR])
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.getMessage().endswith(
        f": ssh://me@127.0.0.1:1: keyfile={tmp_path}/none: no such file; check the path"
    )
    assert (record.exc_info, record.exc_text) == (None, None)
    assert capfd.readouterr().err == ""


def test_a_log_filter_that_raises_ends_nothing(tunnel, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "relay")
    tunnel.stats()  # hands the new level on
    raised = []
    monkeypatch.setattr(threading, "excepthook", lambda args: raised.append(args.exc_value))

    def broken(record):
        raise LookupError("broken filter")

    logging.getLogger("relay").addFilter(broken)
    try:
        for _ in range(2):
            relay.connect("{}:{}".format(*tunnel.address)).close()
        wait_until(lambda: len(raised) == 2)
    finally:
        logging.getLogger("relay").removeFilter(broken)
    assert [type(error) for error in raised] == [LookupError] * 2
    assert tunnel.stats().accepted == 2


def test_a_slow_log_handler_delays_nobody(tunnel, caplog):
    caplog.set_level(logging.INFO, "relay")
    tunnel.stats()  # hands the new level on
    gate = threading.Event()

    class Slow(logging.Handler):
        def emit(self, record):
            gate.wait(WAIT)

    slow = Slow()
    logging.getLogger("relay").addHandler(slow)
    try:
        for _ in range(50):
            with relay.connect("{}:{}".format(*tunnel.address)) as client:
                client.settimeout(WAIT)
                client.sendall(b"ping")
                assert receive_exactly(client, 4) == b"ping"
        wait_until(lambda: tunnel.stats().active == 0)
        assert len(caplog.records) <= 1
        gate.set()
        wait_until(lambda: len(caplog.records) == 50)
    finally:
        gate.set()
        logging.getLogger("relay").removeHandler(slow)


def test_the_state_is_in_its_repr(echo_server):
    tunnel = relay.spawn(":0", "{}:{}".format(*echo_server.address), name="seen")
    pid, address = tunnel.pid, tunnel.address
    assert repr(tunnel) == f"<ChildTunnel 'seen' at {address}, process {pid}, open>"
    tunnel.close()
    assert repr(tunnel) == f"<ChildTunnel 'seen' at {address}, process {pid}, closed>"
    other = relay.spawn(":0", "{}:{}".format(*echo_server.address))
    os.kill(other.pid, signal.SIGKILL)
    other.join(WAIT)
    assert repr(other) == f"<ChildTunnel 'relay child {other.pid}' at {other.address}, process {other.pid}, lost>"


def test_join_has_a_timeout(tunnel):
    tunnel.join(0.01)
    with relay.connect("{}:{}".format(*tunnel.address)) as client:
        client.settimeout(WAIT)
        exchange_with_echo(client)


def exchange_with_echo(client):
    client.sendall(b"ping")
    assert receive_exactly(client, 4) == b"ping"
