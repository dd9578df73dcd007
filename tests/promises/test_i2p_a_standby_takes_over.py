"""Several machines with the keys of one destination: one serves it, another one takes over, and cuts no stream."""

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
from relay.addresses.i2p import I2PRouter
from relay.addresses.parse import parse_listen
from relay.cli.doctor.probe import RouteProbe
from relay.cli.doctor.report import Status
from relay.streams import accept_queue
from relay.streams.promise import Promise
from relay.testing import SAMBridge
from relay.transports.i2p import key_file, messages, probe, standby
from relay.transports.i2p.probe import OtherRelay

KEY = PrivateKey.generate()


@pytest.fixture
def personality(request):
    """Return what the bridges are like."""
    return "java" if getattr(request, "param", "double") == "java_double" else "i2pd"


@pytest.fixture
def machines(monkeypatch, times, serve, tmp_path, personality):
    """Two machines, each with a bridge, a copy of the keys and a service that sends its letter; and a client's bridge.

    A bridge finds at once that a destination has ended, so that no probe waits for an answer.
    """
    monkeypatch.setattr(messages.ServedElsewhereError, "pause", 0.01)
    # The answer: for a probe that is under way when a bridge ends.
    times(ask_again=1.0, probe_reach=1.0, probe_answer=3.0, ask_nobody_before=0.0, remembered=(0.0, 0.0))
    with contextlib.ExitStack() as stack:
        clients = stack.enter_context(SAMBridge(personality=personality, lease_life=0.0))
        yield [Machine(stack, clients, personality, serve, tmp_path, name) for name in ("a", "b")]


class Machine:
    """One machine."""

    def __init__(self, stack, clients, personality, serve, folder, name):
        self._stack, self._clients = stack, clients
        self.letter = name.encode()
        self._port = serve(letter(self.letter)).address[1]
        made = SAMBridge(personality=personality, network=clients, lease_life=0.0)
        self.bridge = stack.enter_context(made)
        self.keys = folder / f"{name}.dat"
        self.keys.write_bytes(KEY.data)
        os.chmod(self.keys, 0o600)
        self.states = []

    def start(self, *before, **options):
        """Publish the destination, or stand by.

        :param before: other bridges, which are asked before.
        """
        given = {"keys": self.keys, "on_state": self.states.append, **SHORT, **options}
        self.server = relay.TunnelServer("", self._port, [*before, self.bridge.sam], standby=True, **given)
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


@pytest.mark.parametrize("personality", ["double", "java_double"], indirect=True)
def test_one_serves_and_the_other_takes_over_and_is_not_cut_when_the_first_one_returns(machines, caplog):
    caplog.set_level(logging.DEBUG)
    first, second = machines
    first.start()
    assert first.server.state in ("up", "published")
    tunnel = first.client(first.server.dest)
    second.start()
    assert (second.server.state, second.server.dest) == ("standing by", first.server.dest)
    assert "another relay serves it; standing by" in caplog.text
    with served_by(tunnel)[0] as client:
        assert repeats(client)
        for _ in range(3):  # questions
            caplog.clear()
            wait_until(lambda: "another relay serves it; standing by; trying again" in caplog.text)
        first.bridge.kill()
        second.wait_for("published")
    assert [state for state, _ in itertools.groupby(second.states)] == second.states, second.states
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


def test_of_two_that_serve_it_at_once_the_one_that_no_client_reaches_ends(machines, monkeypatch, times, caplog):
    times(check_after=(0.01,), check_shared=(0.01, 0.01))
    first, second = machines
    first.start()
    tunnel = first.client(first.server.dest)
    monkeypatch.setattr(standby, "ROUNDS", ())  # as if the network were in two parts
    second.start()
    assert second.server.dest == first.server.dest
    monkeypatch.setattr(standby, "ROUNDS", (1, 2))
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
    waits = standby.Standby("here", I2PRouter(), None)
    error = waits._served(OtherRelay(ahead))
    assert str(error) == "here: another relay serves it; standing by"
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert [line[: len(text)] for line, text in zip(lines, told, strict=True)] == told


class FakeProber:
    """A session whose questions have the given results; they are gone at its end."""

    made = []  # noqa: RUF012  (each test has its own)

    def __init__(self, *arguments):
        self.results, self.closed = [], False
        self.made.append(self)

    def ask(self, is_first):
        result = Promise()
        result.put(self.results.pop(0))
        return result

    def end_probe(self):
        assert not self.closed

    def close(self):
        self.closed = True


NO_ANSWER = standby._Found("no reply", None, None)
ANSWER = standby._Found("another relay answers", OtherRelay(0.0), None)
UNKNOWN = standby._Found("the session ended", None, relay.ConnectError("the session ended"))


@pytest.fixture
def probers(monkeypatch):
    monkeypatch.setattr(FakeProber, "made", [])
    monkeypatch.setattr(standby, "_Prober", FakeProber)
    return FakeProber.made


@pytest.mark.parametrize(
    ("first", "second", "outcome", "closed"),
    [
        ([ANSWER], [], "standing by", [False, False]),
        ([NO_ANSWER, ANSWER], [ANSWER], "standing by", [False, False]),
        ([NO_ANSWER, ANSWER], [NO_ANSWER], "standing by", [False, False]),
        ([NO_ANSWER, NO_ANSWER], [ANSWER], "standing by", [True, False]),
        ([NO_ANSWER, UNKNOWN], [ANSWER], "standing by", [True, False]),
        (
            [NO_ANSWER, NO_ANSWER],
            [UNKNOWN],
            "cannot ask whether another relay serves it: the session ended",
            [True] * 2,
        ),
        ([NO_ANSWER, None], [NO_ANSWER], "no answer in time", [True] * 2),
        ([UNKNOWN], [], "cannot ask whether another relay serves it: the session ended", [True] * 2),
        ([NO_ANSWER, NO_ANSWER], [NO_ANSWER], None, [True] * 2),
    ],
)
def test_it_takes_over_after_three_questions_without_an_answer_from_two_sessions(
    first, second, outcome, closed, probers, monkeypatch
):
    waits = standby.Standby("here", I2PRouter(), None)
    waits._prepare(2)
    probers[0].results, probers[1].results = first, second
    deadline = time.monotonic() + WAIT
    if outcome is None:
        assert waits.wait(deadline, threading.Event()) == deadline
    else:
        with pytest.raises(relay.RelayError, match=outcome):
            waits.wait(deadline, threading.Event())
    assert [prober.closed for prober in probers] == closed
    assert first == second == [], "each was asked what it should be asked"
    waits.close()
    assert all(prober.closed for prober in probers)


def test_doctor_compares_the_clock_with_that_of_the_relay_that_serves_it(machines, monkeypatch, times):
    first, second = machines
    first.start()
    times(probe_reach=WAIT)
    router = parse_listen(f"i2p:?sam={second.bridge.sam}&in_depth=0&out_depth=0").router
    route = RouteProbe((router,), threading.Event())
    deadline = time.monotonic() + WAIT
    found = route.other_relay(KEY, deadline)
    assert (found.status, found.text) == (Status.OK, "a relay serves it; its clock agrees with this one")
    monkeypatch.setattr(probe, "OtherRelay", lambda ahead: OtherRelay(ahead + 60))
    found = route.other_relay(KEY, deadline)
    assert (found.status, found.advice) == (Status.FAILED, "set the clocks (NTP)")
    assert "no client finds it" in found.text
    first.server.close()
    first.server.join()
    times(probe_reach=0.5)
    assert route.other_relay(KEY, deadline).status is Status.SKIPPED
    second.bridge.kill()
    found = route.other_relay(KEY, deadline)
    assert found.status is Status.FAILED
    assert "no SAM bridge there (connection refused)" in found.text
    route.close()


def test_a_relay_that_is_started_again_at_once_asks_nobody(machines, monkeypatch, times):
    times(ask_nobody_before=WAIT)
    first, second = machines
    first.start()
    second.start()
    first.server.close()
    first.server.join()
    first.states.clear()
    monkeypatch.setattr(standby.Standby, "_ask", lambda *arguments: 1 / 0)
    first.start()
    assert first.server.state in ("up", "published")


def test_a_relay_that_has_stood_by_asks_when_it_is_started_again(machines, times):
    first, second = machines
    first.start()
    second.start()
    first.bridge.kill()
    second.wait_for("published")
    first.bridge.restart()
    first.wait_for("standing by")
    first.server.close()
    first.server.join()
    times(ask_nobody_before=WAIT)
    first.start()
    assert first.server.state == "standing by"


def test_of_several_routers_the_next_one_is_asked(machines, reserved):
    first, second = machines
    first.start()
    nowhere = f"127.0.0.1:{reserved}"
    with pytest.raises(relay.ConnectError, match="cannot ask whether another relay serves it: .*no SAM bridge there"):
        relay.i2p_listen(standby=True, keys=second.keys, sam=nowhere)
    second.start(nowhere)
    assert second.server.state == "standing by"


def test_a_login_that_is_rejected_is_final(machines):
    first, _ = machines
    with SAMBridge(personality="java", user="u", password="p") as bridge, pytest.raises(relay.AuthenticationError):
        relay.i2p_listen(standby=True, keys=first.keys, sam=bridge.sam)


@pytest.mark.parametrize("option", ["i2cp.leaseSetType=5", "i2cp.dontPublishLeaseSet=true"])
def test_a_destination_that_strangers_cannot_reach_has_no_standby(machines, option):
    name, _, value = option.partition("=")
    with pytest.raises(ValueError, match=f"standby: other machines cannot reach a destination with {option}"):
        relay.i2p_listen(standby=True, keys=machines[0].keys, **{name: value})


def test_a_relay_with_more_clients_than_it_accepts_is_not_down(machines):
    first, second = machines
    listener = relay.i2p_listen(standby=True, keys=first.keys, sam=first.bridge.sam, **SHORT)
    with contextlib.closing(listener), contextlib.ExitStack() as stack:
        tunnel = second.client(listener.dest)
        for _ in range(accept_queue.MOST + 1):
            stack.enter_context(socket.create_connection(tunnel.address, WAIT))
        wait_until(lambda: listener._queue.is_full)
        second.start()
        assert second.server.state == "standing by"


def test_a_relay_that_was_killed_asks(machines, monkeypatch, times):
    times(ask_nobody_before=WAIT)
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
@pytest.mark.parametrize(("scenario", "end"), list(zip(STANDBY, ["served again", "one of two stands by"], strict=True)))
def test_over_real_routers(i2p_restarts, scenario, end, record_property):
    seconds, problem = i2p_restarts[scenario]
    if problem:
        pytest.fail(problem, pytrace=False)
    record_property("measured", f"{scenario.replace('_', ' ')}: {end} after {seconds:.1f} s")
