"""Several machines with the keys of one destination: one serves it, another one takes over, and cuts no stream."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import socket
import threading
import time

import pytest
from group_rig import letter, repeats
from helpers import WAIT, receive_exactly, wait_until
from i2p_restarts import STANDBY
from i2p_world import SHORT

import relay
from relay.addresses.destinations import PrivateKey
from relay.addresses.parse import parse_listen
from relay.cli.doctor.probe import RouteProbe
from relay.cli.doctor.report import Status
from relay.testing import SAMBridge
from relay.transports.i2p import connector, key_file, probe, reachability, standby
from relay.transports.i2p.probe import OtherRelay

KEY = PrivateKey.generate()


@pytest.fixture
def machines(monkeypatch, serve, tmp_path):
    """Two machines, each with a bridge, a copy of the keys and a service that sends its letter; and a client's bridge.

    A bridge finds at once that a destination has ended, so that no probe waits for an answer.
    """
    monkeypatch.setattr(standby.ServedElsewhereError, "pause", 0.01)
    monkeypatch.setattr(standby, "AGAIN", 0.1)
    monkeypatch.setattr(probe, "REACH", 0.1)
    monkeypatch.setattr(probe, "ANSWER", 3.0)  # for a probe that is under way when a bridge ends
    monkeypatch.setattr(standby, "AT_ONCE", 0.0)
    monkeypatch.setattr(connector, "_REMEMBERED", (0.0, 0.0))
    with contextlib.ExitStack() as stack:
        clients = stack.enter_context(SAMBridge(lease_life=0.0))
        yield [Machine(stack, clients, serve, KEY, tmp_path, name) for name in ("a", "b")]


class Machine:
    """One machine."""

    def __init__(self, stack, clients, serve, key, folder, name):
        self._stack, self._clients = stack, clients
        self.letter = name.encode()
        self._port = serve(letter(self.letter)).address[1]
        self.bridge = stack.enter_context(SAMBridge(network=clients, lease_life=0.0))
        self._keys = folder / f"{name}.dat"
        self._keys.write_bytes(key.data)
        os.chmod(self._keys, 0o600)
        self.states = []

    def start(self):
        """Publish the destination, or stand by."""
        options = {"keys": self._keys, "on_state": self.states.append, **SHORT}
        while True:
            try:
                self.server = relay.TunnelServer("", self._port, self.bridge.sam, standby=True, **options)
                break
            except relay.ConnectError:  # the machine is too busy for such short times
                continue
        self._stack.enter_context(self.server)

    def wait_for(self, state):
        wait_until(lambda: self.states[-1:] == [state])

    def client(self, dest):
        """A tunnel to the destination, on the third machine."""
        return self._stack.enter_context(relay.TunnelClient("", 0, dest, self._clients.sam, **SHORT))


def served_by(tunnel):
    """The connection of a client, and the letter of the machine that serves it."""
    client = socket.create_connection(tunnel.address, WAIT)
    return client, receive_exactly(client, 1)


def test_one_serves_and_the_other_takes_over_and_is_not_cut_when_the_first_one_returns(machines, caplog):
    caplog.set_level(logging.INFO)
    first, second = machines
    first.start()
    assert first.server.state in ("up", "published")
    tunnel = first.client(first.server.dest)
    second.start()
    assert (second.server.state, second.server.dest) == ("standing by", first.server.dest)
    assert "another relay serves it; standing by" in caplog.text
    with served_by(tunnel)[0] as client:
        assert repeats(client)
        first.bridge.kill()
        second.wait_for("published")
    assert [state for state, _ in itertools.groupby(second.states)] == second.states, "a state is reported once"
    assert set(second.states) == {"connecting", "standing by", "up", "published"}
    assert "no other relay serves it any more; taking over" in caplog.text
    client, which = served_by(tunnel)
    with client:
        assert which == second.letter
        caplog.clear()
        first.bridge.restart()
        wait_until(lambda: "another relay serves it; standing by" in caplog.text)
        assert repeats(client)
        second.server.close()
        first.wait_for("published")
    client, which = served_by(tunnel)
    client.close()
    assert which == first.letter


def test_of_two_that_serve_it_at_once_the_one_that_no_client_reaches_ends(machines, monkeypatch, caplog):
    monkeypatch.setattr(reachability, "AFTER", (0.01,))
    monkeypatch.setattr(reachability, "SHARED", (0.01, 0.01))
    first, second = machines
    first.start()
    tunnel = first.client(first.server.dest)
    monkeypatch.setattr(standby, "MISSES", 0)  # as if the network were in two parts
    second.start()
    assert second.server.dest == first.server.dest
    monkeypatch.setattr(standby, "MISSES", 3)
    wait_until(lambda: "another relay with the same keys serves it as well; standing by" in caplog.text)
    first.wait_for("standing by")
    client, which = served_by(tunnel)
    with client:
        assert which == second.letter
        second.wait_for("published")


@pytest.mark.parametrize(
    ("ahead", "told"),
    [
        (0, []),
        (60, ["here: the clock here is 60 s behind the other relay's: when this one takes over, no client finds it"]),
        (-60, ["here: the clock of the other relay is 60 s behind this one: when the other one takes over, no client"]),
    ],
)
def test_a_clock_that_is_behind_is_told(ahead, told, caplog):
    waits = standby.Standby("here", None, None)
    error = waits._served(OtherRelay(ahead))
    assert str(error) == "here: another relay serves it; standing by"
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert [line[: len(text)] for line, text in zip(lines, told, strict=True)] == told


def test_doctor_compares_the_clock_with_that_of_the_relay_that_serves_it(machines, monkeypatch):
    first, second = machines
    first.start()
    monkeypatch.setattr(probe, "REACH", WAIT)
    place = parse_listen(f"i2p:?sam={second.bridge.sam}&in_depth=0&out_depth=0")
    route = RouteProbe((place.router,), threading.Event())
    deadline = time.monotonic() + WAIT
    found = route.other_relay(place, KEY, deadline)
    assert (found.status, found.text) == (Status.OK, "a relay serves it; its clock agrees with this one")
    monkeypatch.setattr(probe, "OtherRelay", lambda ahead: OtherRelay(ahead + 60))
    found = route.other_relay(place, KEY, deadline)
    assert (found.status, found.advice) == (Status.FAILED, "set the clocks (NTP)")
    assert "no client finds it" in found.text
    first.server.close()
    first.server.join()
    monkeypatch.setattr(probe, "REACH", 0.5)
    assert route.other_relay(place, KEY, deadline).status is Status.SKIPPED
    second.bridge.kill()
    found = route.other_relay(place, KEY, deadline)
    assert (found.status, found.advice) != (Status.FAILED, "")
    route.close()


def test_a_relay_that_is_started_again_at_once_asks_nobody(machines, monkeypatch):
    monkeypatch.setattr(standby, "AT_ONCE", WAIT)
    first, second = machines
    first.start()
    second.start()
    first.server.close()
    first.server.join()
    first.states.clear()
    monkeypatch.setattr(standby.Standby, "_ask", lambda *arguments: 1 / 0)
    first.start()
    assert first.server.state in ("up", "published")


def test_a_relay_that_was_killed_asks(machines, monkeypatch):
    monkeypatch.setattr(standby, "AT_ONCE", WAIT)
    first, second = machines
    first.start()
    monkeypatch.setattr(key_file.KeyFile, "was_left", property(lambda self: True))
    second.start()
    assert second.server.state == "standing by"


def test_a_key_that_the_other_machines_do_not_have_is_not_made(machines, tmp_path):
    file = tmp_path / "none.dat"
    with pytest.raises(relay.SAMError, match=r"none\.dat: no such file; copy it from the other machine"):
        relay.i2p_listen(standby=True, keys=file, sam=machines[0].bridge.sam)
    assert not file.exists()


def test_a_new_destination_has_no_standby():
    with pytest.raises(ValueError, match="standby: other machines cannot have the keys of a new destination"):
        relay.i2p_listen(standby=True)


@pytest.mark.timeout(1300)
@pytest.mark.parametrize("scenario", STANDBY)
def test_over_real_routers(i2p_restarts, scenario, record_property):
    seconds, problem = i2p_restarts[scenario]
    assert not problem, problem
    record_property("measured", f"{scenario.replace('_', ' ')}: served again after {seconds:.1f} s")
