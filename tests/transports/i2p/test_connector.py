"""Sessions are created, re-created and replaced."""

import contextlib
import dataclasses
import functools
import logging
import math
import threading
import time

import pytest
from helpers import WAIT, exchange, makes, refusing, wait_until
from sam_rig import DEST, KEY, OK

from relay.addresses.destinations import PrivateKey
from relay.addresses.i2p import I2PRouter
from relay.addresses.i2p_parser import parse_sam
from relay.carriers.dialer import wait_until_up
from relay.carriers.link import CarrierState
from relay.errors import AuthenticationError, CarrierError, ConnectError, SAMError, can_retry
from relay.streams.promise import Promise
from relay.testing import SAMBridge
from relay.transports.chain import network
from relay.transports.i2p import connector
from relay.transports.i2p.connector import ReplacementPolicy, make_carrier, options_of
from relay.transports.i2p.key_file import KeyFile
from relay.transports.i2p.opening import open_stream
from relay.transports.i2p.routers import Routers
from relay.transports.i2p.session import Session

MADE = f"SESSION STATUS RESULT=OK DESTINATION={KEY.base64}"


@pytest.fixture(autouse=True)
def prompt(times):
    times(back_off=(0.01, 0.02), back_off_with_waiters=0.02, remembered=(0.0, 0.0))


class Key:
    """A key of no file, of which a program has had a session so many seconds ago."""

    path = None

    def __init__(self, seconds_since_session=math.inf, key=KEY):
        self.key = key
        self.seconds_since_session = seconds_since_session

    def __call__(self):
        return self

    def mark_session_ended(self):
        pass

    def close(self):
        pass


def no_keys():
    return None


@pytest.fixture
def make():
    def make(where, keys=no_keys, **options):
        sam = where if isinstance(where, str | list) else getattr(where, "sam", None) or where.name
        made = make_carrier("here", I2PRouter(sam=parse_sam(sam), **options), network(), keys)
        made.begin()
        return made

    def close(made):
        made.close()
        assert made.join(WAIT)

    yield from makes(make, close)


def up(carrier, patient=False):
    return wait_until_up(carrier, time.monotonic() + WAIT, None, wait_for_reconnect=patient)


def failure(carrier):
    with pytest.raises(OSError) as caught:  # noqa: PT011  (each test looks at it)
        up(carrier)
    text = str(caught.value)
    assert text.startswith("here: ")
    assert "\n" not in text and len(text) < 400
    assert KEY.base64[100:140] not in text
    return caught.value


def asked(scripted):
    return [line for line in scripted.asked if line.startswith("SESSION CREATE")]


# -- how one is made --


def test_what_a_session_is_asked_for_is_written_out(scripted, make):
    session = up(make(scripted, session="my shop", in_depth=1, out_depth=0))
    words = asked(scripted)[0].split()
    options = dict(word.split("=", 1) for word in words[2:])
    assert options.pop("ID") == session.id
    assert len(session.id) == 16
    assert options == {
        "STYLE": "STREAM",
        "DESTINATION": "TRANSIENT",
        "SIGNATURE_TYPE": "7",
        "i2cp.leaseSetEncType": "4,0",
        "inbound.length": "1",
        "outbound.length": "0",
        "inbound.quantity": "3",
        "outbound.quantity": "3",
        "inbound.nickname": "my_shop",
    }
    assert session.destination == KEY.destination


def test_every_option_can_be_another(scripted):
    router = I2PRouter(options=(("i2cp.leaseSetEncType", "6,4,0"), ("inbound.quantity", "1"), ("outbound.length", "2")))
    options = options_of(router)
    assert options["i2cp.leaseSetEncType"] == "6,4,0"
    assert (options["inbound.quantity"], options["outbound.quantity"]) == ("1", "3")
    assert (options["inbound.length"], options["outbound.length"]) == ("3", "2")
    assert "inbound.nickname" not in options


def test_with_keys_the_session_is_theirs_and_the_signature_is_no_question(scripted, make):
    up(make(scripted, Key()))
    assert f"DESTINATION={KEY.base64} " in asked(scripted)[0]
    assert "SIGNATURE_TYPE" not in asked(scripted)[0]


@pytest.fixture
def open_key(tmp_path):
    """Opens the file of the keys."""
    return functools.partial(KeyFile.open, tmp_path / "keys.dat", lambda: KEY)


def test_keys_are_held_until_it_is_closed_over_all_losses(scripted, make, open_key):
    carrier = make(scripted, open_key)
    first = up(carrier)
    scripted.controls[-1].close()
    wait_until(lambda: carrier.link not in (None, first))
    with pytest.raises(SAMError, match="in use"):
        open_key()
    carrier.close()
    assert carrier.join(WAIT)
    with open_key() as file:
        assert file.seconds_since_session < WAIT


def test_a_key_that_the_router_rejects_is_named_by_its_file(scripted, make, open_key, tmp_path):
    scripted.answers.append("SESSION STATUS RESULT=INVALID_KEY")
    assert f"the router rejects the private key in {tmp_path}/keys.dat" in str(failure(make(scripted, open_key)))


def test_keys_of_which_no_session_was_made_need_no_rest(make, open_key):
    with refusing() as (host, port):
        carrier = make(f"{host}:{port}", open_key)
        error = failure(carrier)
        carrier.close()
        assert carrier.join(WAIT)
    assert (type(error), error.reason) == (ConnectError, "refused")
    with open_key() as file:
        assert file.seconds_since_session == math.inf


def test_keys_that_are_not_to_be_had_are_the_error(scripted, make):
    def broken():
        raise SAMError("here: the file is damaged")

    carrier = make(scripted, broken)
    assert failure(carrier).result == ""
    assert carrier.state is CarrierState.FAILED
    assert not scripted.asked


def test_that_it_takes_long_is_told_now_and_then(bridge, make, times, caplog):
    caplog.set_level(logging.INFO, "relay")
    times(progress=0.02)
    bridge.hold_answers("SESSION CREATE")
    carrier = make(bridge)
    wait_until(lambda: caplog.text.count("here: the router is still building tunnels, after ") >= 2)
    bridge.release_answers()
    up(carrier)


def test_an_attempt_has_an_end_all_the_same(bridge, make, times):
    times(attempt=0.2, late_answer=0.0)
    bridge.settings.build_time = 60.0
    error = failure(make(bridge))
    assert isinstance(error, ConnectError)
    assert error.reason == "connect_timeout"


def test_it_is_given_up_at_once_whatever_it_waits_for(bridge, make):
    bridge.settings.build_time = 10 * WAIT
    carrier = make(bridge)
    wait_until(lambda: any(command.words[0] == "SESSION" for command in bridge.commands))
    carrier.close()
    assert carrier.join(WAIT)


# -- what the bridge answers --


@pytest.mark.parametrize(
    ("hello", "answer", "kind", "result"),
    [
        ("HTTP/1.1 400 Bad Request", None, SAMError, ""),
        ("HELLO REPLY RESULT=NOVERSION", None, SAMError, "NOVERSION"),
        ("HELLO REPLY RESULT=I2P_ERROR", None, AuthenticationError, None),
        (None, "SESSION STATUS RESULT=INVALID_KEY", SAMError, "INVALID_KEY"),
    ],
)
def test_what_no_time_mends_is_final(scripted, make, hello, answer, kind, result):
    scripted.hello = [hello] * (hello is not None)
    scripted.answers.extend([answer] * (answer is not None))
    carrier = make(scripted, Key(), user="me", password=lambda: "wrong!")
    error = failure(carrier)
    assert (type(error), getattr(error, "result", None), carrier.state) == (kind, result, CarrierState.FAILED)
    assert "wrong!" not in str(error)
    assert scripted.hellos == ["HELLO VERSION MIN=3.1 MAX=3.3 USER=me PASSWORD=wrong!"]


def test_silence_instead_of_hello(scripted, make, times):
    times(reach=0.1, late_answer=0.0)
    scripted.hello = [None] * 10
    assert failure(make(scripted)).reason == "connect_timeout"


def test_an_id_that_is_taken_is_another_one_at_once(bridge, make):
    bridge.refuse_sessions(3, "DUPLICATED_ID")
    carrier = make(bridge)
    up(carrier)
    ids = [command.options["ID"] for command in bridge.commands if command.words == ("SESSION", "CREATE")]
    assert len(set(ids)) == 4


def test_a_router_where_every_id_is_taken_is_an_error(bridge, make):
    bridge.refuse_sessions(4, "DUPLICATED_ID")
    error = failure(make(bridge))
    assert error.result == "DUPLICATED_ID" and can_retry(error)
    assert "reports each new session ID as in use" in str(error)


def test_a_destination_that_another_session_has_is_tried_for_a_while_at_the_start(bridge, make, times):
    times(duplicate_again=0.01)
    bridge.refuse_sessions(3, "DUPLICATED_DEST")
    up(make(bridge, Key()))


def test_and_not_for_longer(bridge, make, times):
    times(duplicate_again=0.01, duplicate=0.1)
    bridge.refuse_sessions(10000, "DUPLICATED_DEST")
    error = failure(make(bridge, Key()))
    assert error.result == "DUPLICATED_DEST"
    assert "another program" in str(error)


def test_what_another_program_has_at_one_router_is_not_created_at_the_next_one(bridge, make, times):
    times(duplicate=0.0)
    bridge.refuse_sessions(10000, "DUPLICATED_DEST")
    with SAMBridge(network=bridge) as other:
        assert f"{bridge.sam}: the router already has" in str(failure(make([bridge.sam, other.sam], Key())))
        assert not other.commands


def test_a_router_that_ends_each_session_at_once_is_left(scripted, bridge, make, monkeypatch):
    ended = threading.Event()

    def lost_at_once(*values):
        *others, lost = values
        session = Session(*others, lambda error: (lost(error), ended.set()))
        assert ended.wait(WAIT)  # before the attempt has returned
        return session

    monkeypatch.setattr(connector, "Session", lost_at_once)
    scripted.answers.append(lambda end: end.say(MADE))
    carrier = make([scripted.name, bridge.sam])
    wait_until(lambda: bridge.sessions)
    assert up(carrier, patient=True).destination == bridge.sessions[0].destination
    assert len(asked(scripted)) == 1


def test_after_a_loss_it_is_waited_out(bridge, make):
    carrier = make(bridge, Key())
    first = up(carrier)
    bridge.refuse_sessions(3, "DUPLICATED_DEST")
    bridge.cut()
    wait_until(lambda: carrier.link not in (None, first))


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ('SESSION STATUS RESULT=I2P_ERROR MESSAGE="no tunnels"', "(I2P_ERROR: no tunnels)"),
        ("SESSION STATUS RESULT=OK", "reports no valid destination"),
        (f"SESSION STATUS RESULT=OK DESTINATION={DEST}", "reports no valid destination"),
        ("SESSION STATUS RESULT=OK DESTINATION=%%%", "reports no valid destination"),
        ("STREAM STATUS RESULT=OK", "(OK)"),
        ("PONG", "(PONG)"),
        (f"SESSION STATUS RESULT={'X' * 5000}", "(XXX"),
        ("nonsense", "not SAM"),
    ],
)
def test_other_answers_are_an_error_in_one_line(scripted, make, answer, said):
    scripted.answers.extend([answer] * 9)  # the first attempt may be over before its end is waited for
    assert said in str(failure(make(scripted)))
    assert len(asked(scripted)) >= 1


# -- keys that a router still remembers --


def test_after_a_loss_the_keys_are_left_alone_for_a_while(bridge, make, times, caplog):
    caplog.set_level(logging.INFO, "relay")
    times(remembered=(0.3, 1.0))
    carrier = make(bridge, Key())
    first = up(carrier)
    begun = time.monotonic()
    bridge.cut()
    wait_until(lambda: carrier.link not in (None, first))
    assert time.monotonic() - begun > 0.3
    assert "waiting 0 s, until the router has forgotten" in caplog.text


def test_not_where_there_are_none(bridge, make, times):
    times(remembered=(10 * WAIT, 10 * WAIT))
    carrier = make(bridge)
    first = up(carrier)
    bridge.cut()
    wait_until(lambda: carrier.link not in (None, first))


def test_nor_by_a_router_that_has_ended_itself_however_soon_it_is_back(bridge, make, times):
    times(remembered=(10 * WAIT, 10 * WAIT), back_off=(0.3, 0.3))
    carrier = make(bridge, Key())
    first = up(carrier)
    bridge.kill()
    wait_until(lambda: carrier.state is CarrierState.BACKING_OFF)
    bridge.restart()  # before it is tried again, so that no attempt has met a closed port since
    wait_until(lambda: carrier.link not in (None, first))


def test_also_what_another_program_has_used_just_before(bridge, make, times):
    times(remembered=(0.5, 1.0))
    begun = time.monotonic()
    up(make(bridge, Key(seconds_since_session=0.2)))
    assert time.monotonic() - begun > 0.25
    times(remembered=(10 * WAIT, 20 * WAIT))
    up(make(bridge, Key(seconds_since_session=11 * WAIT)))  # no time is left to wait


def test_a_session_that_was_not_reachable_makes_the_wait_longer_and_a_sound_one_normal_again(monkeypatch, times):
    times(remembered=(10.0, 35.0))
    monkeypatch.setattr(connector, "time", dataclasses.make_dataclass("Clock", ["monotonic"])(lambda: 1000.0))
    router, other = routers = Routers("here", parse_sam(["a:1", "b:1"])).all
    keys = connector._KeyUse("here", Key(), routers)
    keys.open()

    def wait_after(*verdicts):
        for is_sound in verdicts:
            keys.on_verdict(is_sound)
        keys.on_session_end(router)
        assert keys.remembered_for(other) < 0, "the session was not there"
        return keys.remembered_for(router)

    assert wait_after() == 10
    assert wait_after(False) == 20
    assert wait_after(False, False) == 35
    assert wait_after(True) == 10


def test_the_verdict_on_a_session_reaches_its_keys(bridge, make, times):
    times(remembered=(0.1, 1.0))
    carrier = make(bridge, Key())
    link = up(carrier)
    for _ in range(2):
        link.record_result(False)
    begun = time.monotonic()
    link.lose(CarrierError("here: given up"))
    wait_until(lambda: carrier.link not in (None, link))
    assert time.monotonic() - begun > 0.4


def test_the_wait_is_over_at_once_when_it_is_closed(bridge, make, times):
    times(remembered=(10 * WAIT, 10 * WAIT))
    carrier = make(bridge, Key())
    up(carrier)
    bridge.cut()
    wait_until(lambda: carrier.state is CarrierState.CONNECTING)
    carrier.close()
    assert carrier.join(WAIT)
    wait_until(lambda: bridge.connections == 0)


# -- sessions that are unresponsive --


def stream(session, dest):
    """A stream from a session."""
    answer = Promise()
    open_stream(session, dest, None, time.monotonic() + WAIT, answer.put)
    return answer.get(time.monotonic() + WAIT, None)


def test_a_session_whose_streams_are_not_answered_is_replaced_beside_it(scripted, make, times):
    times(silent=0.05)
    carrier = make(scripted)
    old = up(carrier)
    with contextlib.closing(stream(old, DEST)) as silent:
        with contextlib.closing(scripted.stream()) as far:
            wait_until(lambda: carrier.link is not old)
            assert carrier.link is not None, "there is always one"
            silent.socket.settimeout(WAIT)
            exchange(silent.socket, far)
            assert old.failure() is None
    wait_until(lambda: scripted.controls[0].over.is_set())
    assert not scripted.controls[1].over.is_set()


def test_one_with_keys_is_not_for_it_would_be_the_same(scripted, make, times):
    times(silent=0.02)
    carrier = make(scripted, Key())
    session = up(carrier)
    with contextlib.closing(stream(session, DEST)), contextlib.closing(scripted.stream()):
        threading.Event().wait(0.1)
        assert carrier.link is session


class Replaced:
    """Counts what a policy replaces, by a clock of its own."""

    def __init__(self, monkeypatch):
        self.count = 0
        self.now = 1000.0
        self.policy = ReplacementPolicy()
        self.policy.renew = self.renew
        clock = dataclasses.make_dataclass("Clock", ["monotonic"])(lambda: self.now)
        monkeypatch.setattr(connector, "time", clock)

    def renew(self, session, why):
        self.count += 1

    def silent(self, dest=DEST, after=0.0):
        self.now += after
        before = self.count
        self.policy.on_silence(None, dest)
        return self.count > before


@pytest.fixture
def replaced(monkeypatch):
    return Replaced(monkeypatch)


def test_replacing_gets_rarer_while_it_does_not_help(replaced):
    for after, is_replaced in (0, True), (29, False), (2, True), (59, False), (2, True):
        assert replaced.silent(after=after) is is_replaced
    for _ in range(20):
        replaced.silent(after=900)
    assert not replaced.silent(after=899)
    assert replaced.silent(after=2)
    replaced.policy.on_reply(DEST)
    assert replaced.silent(), "as prompt as at first"


def test_each_destination_counts_for_itself_and_not_without_bound(replaced):
    assert all(replaced.silent(f"{number}") for number in range(900))
    assert not replaced.silent("0")
    assert all(replaced.silent(f"{number}") for number in range(900, 3000))
    assert replaced.silent("0"), "it was forgotten"


# -- the log --


def test_a_quiet_one_says_nothing_that_users_see(scripted, caplog):
    caplog.set_level(logging.INFO, "relay")
    scripted.answers.append("SESSION STATUS RESULT=I2P_ERROR")
    carrier = make_carrier("here", I2PRouter(sam=parse_sam(scripted.name)), network(), no_keys, quiet=True)
    carrier.begin()
    up(carrier, patient=True)
    carrier.close()
    assert carrier.join(WAIT)
    assert caplog.records == []


def test_no_key_is_in_the_log(scripted, make, caplog):
    caplog.set_level(logging.DEBUG)
    key = PrivateKey.generate()
    scripted.answers.extend(["SESSION STATUS RESULT=I2P_ERROR", MADE, OK])
    carrier = make(scripted, Key(key=key))
    up(carrier, patient=True)
    carrier.close()
    assert key.base64[600:640] not in caplog.text
    assert key.base64[600:640] not in repr(vars(carrier))
