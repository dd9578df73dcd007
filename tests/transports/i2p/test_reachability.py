"""That a destination can be reached: what is proved, when, and what follows when it is not."""

import itertools
import queue
import threading
import time

import pytest
from helpers import WAIT, Thread, exchange, wait_until
from listener_rig import Listening, States, accept, make_prompt
from state_table import each_row_of

from relay.addresses.i2p import I2PRouter
from relay.addresses.i2p_parser import parse_sam
from relay.carriers.dialer import wait_until_up
from relay.carriers.link import CarrierState
from relay.testing import SAMBridge
from relay.transports.chain import network
from relay.transports.i2p import probe, reachability
from relay.transports.i2p.connector import make_carrier
from relay.transports.i2p.probe import OwnStreams
from relay.transports.i2p.reachability import ReachabilityMonitor


@pytest.fixture(autouse=True)
def prompt(monkeypatch, times):
    make_prompt(times)
    times(probe_answer=5.0, find=2.0, find_again=2.0)


@pytest.fixture
def soon(times):
    """Proofs that follow each other at once."""
    times(check_after=(0.02, 0.02, 0.02), check_seldom=(0.2, 0.2))


@pytest.fixture
def fall_due(times):
    """``fall_due(listener)``: the next proof falls due, and is made or not; none does so by itself."""
    times(check_after=(1000.0, 1000.0, 1000.0), check_seldom=(1000.0, 1000.0))

    def now(there):
        schedule = there._monitor._schedule
        before = schedule.successes
        there._call(lambda: there._monitor._due(time.monotonic()))
        wait_until(lambda: schedule.successes > before)

    return now


def proofs(bridge):
    """Return how many streams were begun."""
    return sum(command.words == ("STREAM", "CONNECT") for command in bridge.commands)


def creations(bridge):
    """Return how many sessions were asked for, with keys of their own and without."""
    options = [command.options for command in bridge.commands if command.words == ("SESSION", "CREATE")]
    transient = sum("SIGNATURE_TYPE" in one for one in options)
    return len(options) - transient, transient


def break_proofs(monkeypatch, there, answer=b"", count=1000):
    """Answer no proof, or with this, so many times."""
    left = [count]
    real = there._monitor.answers

    def answers(stream, peer):
        if peer not in there._monitor._own._peers or not left[0]:
            return real(stream, peer)
        left[0] -= 1
        stream.socket.send(answer)
        stream.close()
        return True

    monkeypatch.setattr(there._monitor, "answers", answers)


# -- what is proved, and when --


@pytest.mark.parametrize("personality", ["i2pd", "java"])
@pytest.mark.parametrize("way", ["accept", "forward"])
def test_it_is_published_as_soon_as_a_stream_from_another_session_is_answered(personality, way):
    with SAMBridge(personality=personality, publish_time=0.3) as bridge:
        listen = Listening(bridge)
        begun = time.monotonic()
        there = listen(accept=way)
        assert there.state == "up"
        assert not there.wait_published(0.1)
        assert there.wait_published(WAIT)
        assert time.monotonic() - begun > 0.3
        assert len(there._queue) == 0, "it keeps its own streams to itself"
        listen.close()


def test_the_session_of_the_proof_is_made_beside_the_one_that_is_proved(bridge, listen):
    bridge.hold_answers("SESSION CREATE")
    there = listen(start=False)
    starting = Thread(there.start)
    wait_until(lambda: creations(bridge) == (1, 1))
    bridge.release_answers()
    starting.result()
    assert there.wait_published(WAIT)


def test_it_has_the_same_depths_a_name_of_nobody_and_few_tunnels(bridge, listen):
    there = listen(session="", in_depth=1, out_depth=2, options=(("i2cp.gzip", "false"), ("inbound.quantity", "5")))
    assert there.wait_published(WAIT)
    (own,) = [one.options for one in bridge.sessions if one.destination != there.dest]
    assert own["DESTINATION"] == "TRANSIENT"
    assert (own["inbound.length"], own["outbound.length"]) == ("1", "2")
    assert (own["inbound.quantity"], own["outbound.quantity"]) == ("2", "2")
    assert own["i2cp.gzip"] == "false"
    assert own["i2cp.leaseSetEncType"] == "4,0"


def test_it_is_proved_again_and_again_and_the_other_session_goes_in_between(bridge, listen, soon):
    there = listen()
    assert there.wait_published(WAIT)
    wait_until(lambda: proofs(bridge) >= 4)
    wait_until(lambda: len(bridge.sessions) == 1)
    wait_until(lambda: proofs(bridge) >= 6)
    assert creations(bridge)[0] == 1
    assert creations(bridge)[1] >= 3, "for each late one"
    assert there.state == "published"


def test_while_others_come_nothing_more_is_proved(bridge, listen, clients, fall_due):
    there = listen()
    assert there.wait_published(WAIT)
    factory, begun = clients.factory(there), proofs(bridge)
    for number in range(1, 7):
        with clients.connect(factory):
            accept(there)[0].close()
        fall_due(there)
        assert proofs(bridge) - begun == number, "the clients' own"
    fall_due(there)
    assert proofs(bridge) - begun == 7, "nobody has come"


def test_others_do_not_make_it_published(bridge, listen, clients, soon, monkeypatch, times):
    """That word is for what was seen to work, there and back."""
    times(probe_answer=0.05)
    there = listen(start=False)
    with monkeypatch.context() as broken:
        broken.setattr(OwnStreams, "reply_to", lambda self, stream, peer: peer in self._peers)
        there.start(WAIT)
        near = clients.connect(there)
        far, _ = accept(there)
        with near, far:
            begun = proofs(bridge)
            while proofs(bridge) < begun + 4:
                exchange(near.socket, far.socket)
            assert there.state == "up"
    assert there.wait_published(WAIT)
    assert creations(bridge)[0] == 1


def test_bytes_of_streams_that_are_open_are_proof_enough(bridge, listen, clients, fall_due):
    there = listen()
    assert there.wait_published(WAIT)
    with clients.connect(there) as near:
        far, _ = accept(there)
        with far:
            begun = proofs(bridge)
            for _ in range(6):
                threading.Event().wait(0.02)  # the kernel's times have ticks of up to 10 ms
                exchange(near.socket, far.socket)
                fall_due(there)
            assert proofs(bridge) == begun
            threading.Event().wait(0.02)
            fall_due(there)  # the last bytes may have come since the check before this one, or not
            begun = proofs(bridge)
            fall_due(there)
            assert proofs(bridge) == begun + 1, "nothing has come"


@pytest.mark.parametrize(
    "option", ["i2cp.leaseSetType=5", "i2cp.dontPublishLeaseSet=True", "i2cp.enableAccessList=true"]
)
def test_what_others_cannot_reach_under_its_own_name_is_not_judged(bridge, listen, option):
    there = listen(options=(tuple(option.split("=")),))
    assert not there.wait_published(0.1)
    assert there.state == "up"
    assert proofs(bridge) == 0
    assert creations(bridge) == (1, 0)


# -- what follows when it is not --


def test_a_destination_that_cannot_be_found_for_a_while_is_waited_for(bridge, listen):
    bridge.fail_connects(2)
    states = States()
    there = listen(states=states)
    assert states.wait_for("published")[0] == ["up"]
    assert there.state == "published"


def test_a_session_that_only_seems_to_be_there_is_made_again(bridge, listen, clients, caplog, times):
    """Trap 1: of the keys of a session that has just ended another one comes at once, and is dead soon."""
    times(check_after=(0.1, 0.2, 0.2), probe_answer=0.2, find=0.3, find_again=0.3, remembered=(0.05, 4.0))
    bridge.settings.remember = 0.15
    bridge.settings.zombie_life = 0.05
    there = listen()
    assert there.wait_published(WAIT)
    (ours,) = [one for one in bridge.sessions if one.destination == there.dest]
    bridge.cut(ours.id)
    wait_until(lambda: "session is not reachable from I2P" in caplog.text)
    wait_until(lambda: there.state == "published" and there._monitor._schedule.successes > 3)
    with clients.connect(there) as near:
        far, _ = accept(there)
        with far:
            exchange(near.socket, far.socket)


def test_a_proof_is_not_made_from_a_session_that_knew_the_last_one(bridge, listen, caplog):
    """Trap 2: who has met a destination does not notice that it has begun a new life."""
    caplog.set_level("INFO", "relay")
    bridge.settings.stale = 60.0
    states = States()
    there = listen(states=states)
    states.wait_for("published")
    (ours,) = [one for one in bridge.sessions if one.destination == there.dest]
    bridge.cut(ours.id)
    states.wait_for("up")
    assert states.wait_for("published")[0] == []
    assert creations(bridge) == (2, 2)
    assert "self-check" not in caplog.text


def test_the_session_of_the_proof_is_doubted_first(bridge, listen, monkeypatch, caplog):
    caplog.set_level("INFO", "relay")
    there = listen()
    assert there.wait_published(WAIT)
    before = creations(bridge)
    break_proofs(monkeypatch, there, b"somebody else's words\n", count=1)
    there._call(lambda: there._monitor._due(time.monotonic()))
    wait_until(lambda: there._monitor._schedule.successes > 1)
    assert "a stream ended before its reply" in caplog.text
    assert creations(bridge)[1] == before[1] + 1
    assert creations(bridge)[0] == before[0]
    assert there.state == "published"


def test_a_session_whose_streams_move_is_not_given_up(bridge, listen, clients, monkeypatch, times, soon):
    times(probe_answer=0.1)
    there = listen()
    assert there.wait_published(WAIT)
    break_proofs(monkeypatch, there)
    with clients.connect(there) as near:
        far, _ = accept(there)
        with far:
            until = time.monotonic() + 1.0
            while time.monotonic() < until:
                exchange(near.socket, far.socket)
                threading.Event().wait(0.01)
    assert creations(bridge)[0] == 1


@pytest.mark.parametrize("personality", ["i2pd", "java"])
def test_a_session_that_the_router_never_publishes_is_made_again_and_how_its_streams_come_is_not_doubted(
    personality, times, caplog
):
    """A stream that the router could not even open says nothing about STREAM FORWARD."""
    times(find=0.3, find_again=0.3)
    with SAMBridge(personality=personality, publish_time=1e6) as bridge:
        listen, states = Listening(bridge), States()
        there = listen(start=False, states=states)
        starting = Thread(there.start)
        states.wait_for("up")
        bridge.settings.publish_time = 0.0  # of the next session, as that of the proof has been made
        states.wait_for("published")
        starting.result()
        listen.close()
        assert creations(bridge)[0] == 2
        ways = [command.words for command in bridge.commands if command.words[1:] in (("ACCEPT",), ("FORWARD",))]
        assert ways in ([("STREAM", "FORWARD")] * 2, [("STREAM", "ACCEPT")] * 2)  # as the kernel allows
    assert "session is not reachable from I2P" in caplog.text


def test_a_session_that_is_found_late_is_not_given_up(times):
    times(find=0.2, find_again=WAIT)
    with SAMBridge(publish_time=1.0) as bridge:
        listen = Listening(bridge)
        assert listen().wait_published(WAIT)
        listen.close()
        assert creations(bridge)[0] == 1
        assert creations(bridge)[1] == 2, "the session of the proof was doubted"


def test_without_them_it_is(bridge, listen, monkeypatch, times, soon):
    """So that the test before can fail."""
    times(probe_answer=0.1)
    there = listen()
    assert there.wait_published(WAIT)
    break_proofs(monkeypatch, there)
    wait_until(lambda: creations(bridge)[0] >= 2)


def test_while_nobody_accepts_it_is_not_judged(bridge, listen, clients, monkeypatch, times, soon):
    times(probe_answer=0.1)
    monkeypatch.setattr("relay.streams.accept_queue.MOST", 1)
    there = listen()
    assert there.wait_published(WAIT)
    break_proofs(monkeypatch, there)
    with clients.connect(there):
        wait_until(lambda: there._receiver._incoming.paused)
        begun = proofs(bridge)
        wait_until(lambda: proofs(bridge) > begun + 2)
        assert creations(bridge)[0] == 1


def test_the_end_of_the_other_session_says_nothing(bridge, listen, soon):
    there = listen()
    assert there.wait_published(WAIT)
    for _ in range(3):
        for one in bridge.sessions:
            if one.destination != there.dest:
                bridge.cut(one.id)
        threading.Event().wait(0.05)
    assert there.wait_published(WAIT)
    assert creations(bridge)[0] == 1


def test_its_end_in_the_middle_of_a_proof_says_nothing(bridge, listen, soon, monkeypatch, times, caplog):
    caplog.set_level("DEBUG", "relay")
    there = listen()
    assert there.wait_published(WAIT)
    kept = []
    times(probe_answer=WAIT)
    monkeypatch.setattr(there._monitor, "answers", lambda stream, peer: kept.append(stream) or True)
    wait_until(lambda: kept)
    monkeypatch.undo()
    make_prompt(times)
    for one in bridge.sessions:
        if one.destination != there.dest:
            bridge.cut(one.id)
    wait_until(lambda: "self-check: " in caplog.text)
    for stream in kept:
        stream.close()
    told = [record for record in caplog.records if "self-check: " in record.getMessage()]
    assert {record.levelname for record in told} == {"DEBUG"}
    assert "has ended the session" in told[0].getMessage()
    assert creations(bridge)[0] == 1


def test_a_bridge_that_makes_no_second_session_leaves_it_up(bridge, listen, caplog, times):
    times(probe_head_start=WAIT)
    bridge.settings.publish_time = 0.2
    there = listen()
    bridge.refuse_sessions(1000, "I2P_ERROR")
    for one in bridge.sessions:
        if one.destination != there.dest:
            bridge.cut(one.id)
    wait_until(lambda: creations(bridge)[1] > 4)
    assert there.state == "up"
    bridge.refuse_sessions(0)
    assert there.wait_published(WAIT)
    assert creations(bridge)[0] == 1
    assert "I2P_ERROR" not in caplog.text, "that is of no interest to users"


def test_it_is_asked_for_ever_more_rarely_then(bridge, listen, monkeypatch, times):
    times(probe_head_start=WAIT, check_again=0.1, check_rarely=100.0)
    monkeypatch.setattr(probe, "make_carrier", make_none)
    there = listen()
    wait_until(lambda: there._monitor._schedule._backoff.failures > 2)
    assert there.state == "up"


def make_none(name, router, below, keys, *, quiet):
    raise OSError("there are no threads")


# -- the prover by itself --


class Target:
    """A target of a monitor, which notes what is asked and reported."""

    def __init__(self):
        self.told = queue.SimpleQueue()
        self.switches = self.paused = self.traffic = False

    def on_reachable(self):
        self.told.put("reachable")

    def switch_to_accept(self, why):
        self.told.put(why)
        return self.switches

    def was_paused(self, since):
        return self.paused

    def had_traffic(self, since):
        return self.traffic


def make_monitor(bridge, name="here"):
    target = Target()
    return ReachabilityMonitor(name, I2PRouter(sam=parse_sam(bridge.sam)), network(), target, target.on_reachable)


@pytest.fixture
def prover(bridge):
    made = make_monitor(bridge)
    yield made
    done = threading.Event()
    made._io_thread.loop.call(lambda: (made.close(), done.set()))
    assert done.wait(WAIT)


@pytest.mark.parametrize("alive", [True, False])
def test_what_others_did_during_a_proof_outweighs_it(bridge, prover, alive, times):
    times(probe_answer=0.1)
    prover._target.traffic = alive
    lost = threading.Event()
    carrier = make_carrier("here", I2PRouter(sam=parse_sam(bridge.sam)), network(), lambda: None)
    carrier.begin()
    try:
        session = wait_until_up(carrier, None, None, wait_for_reconnect=False)  # where no program accepts
        carrier.subscribe(lambda state, error: state is CarrierState.BACKING_OFF and lost.set())
        prover._io_thread.loop.call(lambda: prover.watch(session))
        if alive:
            wait_until(lambda: prover._schedule.successes)
            assert not lost.is_set()
        else:
            assert lost.wait(WAIT)
            prover._io_thread.loop.call(prover.forget)
        assert "no reply" in prover._target.told.get(timeout=WAIT) if not alive else prover._target.told.empty()
    finally:
        carrier.close()
        assert carrier.join(WAIT)


# -- its table --

NAMES = [state.value for state in reachability.State]
TABLE = each_row_of(reachability, NAMES)


@pytest.fixture
def table(prover, monkeypatch):
    """A monitor that only records its actions."""
    performed = []
    monkeypatch.setattr(prover, "_perform", lambda action, problem: performed.append((action.value, problem)))
    yield prover, performed
    monkeypatch.undo()


@pytest.mark.parametrize(("state", "event", "following", "action"), TABLE)
def test_every_row(table, state, event, following, action):
    monitor, performed = table
    monitor.state = reachability.State(state)
    monitor._handle(reachability.Event(event), "the problem")
    assert monitor.state.value == following
    assert performed == [(action, "the problem")]


@pytest.mark.parametrize(
    ("state", "event"),
    sorted(set(itertools.product(NAMES, [event.value for event in reachability.Event])) - {row[:2] for row in TABLE}),
)
def test_what_is_not_in_the_table_changes_nothing(table, state, event):
    monitor, performed = table
    monitor.state = reachability.State(state)
    monitor._handle(reachability.Event(event))
    assert monitor.state.value == state
    assert not performed


def test_the_table_is_whole():
    assert {row[:2] for row in TABLE} == {(state.value, event.value) for state, event in reachability.TRANSITIONS}
    assert {action for _, action in reachability.TRANSITIONS.values()} == set(reachability.Action)
