"""``relay.transports.i2p.session``: a session's life, its keepalive probes, and the names it knows."""

import queue
import threading

import pytest
from helpers import WAIT, receive_exactly, wait_until
from sam_rig import DEST, KEY, io_thread_ends

from relay.errors import CarrierError
from relay.transports.i2p import session as module
from relay.transports.i2p.messages import UnreachableError

ENDED = "the session: the router has ended the session"


def test_it_knows_who_it_is(opened):
    session = opened.session
    assert session.destination == KEY.destination
    assert repr(session) == f"<SAM session ours of {KEY.b32}>"
    assert KEY.base64 not in repr(vars(session))


def test_it_is_lost_with_its_control_socket(opened):
    assert opened.session.failure() is None
    opened.far_control.close()
    error = opened.lost.get(timeout=WAIT)
    assert isinstance(error, CarrierError) and str(error) == ENDED
    assert opened.session.failure() is error
    opened.session.lose(CarrierError("again"))
    assert opened.lost.empty() and opened.session.failure() is error


def test_its_failure_is_known_before_anybody_has_looked(opened):
    stop, go = threading.Event(), threading.Event()
    opened.bridge._io_thread.loop.call(lambda: (stop.set(), go.wait(WAIT)))
    assert stop.wait(WAIT)
    opened.far_control.close()
    wait_until(lambda: opened.session.failure() is not None)
    assert str(opened.session.failure()) == ENDED and opened.lost.empty()
    go.set()
    opened.lost.get(timeout=WAIT)


def test_closing_it_is_no_loss(opened):
    opened.session.close()
    opened.session.close()
    assert opened.far_control.over.wait(WAIT)
    io_thread_ends()
    assert opened.lost.empty()
    assert str(opened.session.failure()) == "the session: the session was closed"


def test_it_is_idle_when_no_stream_is_open(opened):
    session = opened.session
    idle = threading.Event()
    session.when_idle(idle.set)
    assert idle.is_set(), "at once"
    idle.clear()
    session.enter()
    session.enter()
    session.when_idle(idle.set)
    session.leave()
    assert not idle.is_set()
    session.leave()
    assert idle.is_set()


def test_it_is_idle_when_it_is_lost(opened):
    idle = threading.Event()
    opened.session.enter()
    opened.session.when_idle(idle.set)
    opened.far_control.close()
    assert idle.wait(WAIT)
    idle.clear()
    opened.session.when_idle(idle.set)
    assert idle.is_set(), "and from then on"
    opened.session.leave()


@pytest.mark.parametrize("line", ["SESSION STATUS RESULT=I2P_ERROR MESSAGE=x", "DATAGRAM RECEIVED SIZE=1", "PONG late"])
def test_what_is_not_for_us_is_passed_over(opened, line):
    opened.far_control.say(line, "PING x")
    wait_until(lambda: "PONG x" in opened.scripted.asked)
    assert opened.session.rtt is None
    assert opened.session.failure() is None


@pytest.mark.parametrize("garbage", [b"\x00\xff\n", b"no sam at all\n", b"x" * 20000])
def test_garbage_is_its_end(opened, garbage):
    opened.far_control.sendall(garbage)
    assert isinstance(opened.lost.get(timeout=WAIT), CarrierError)
    assert len(str(opened.session.failure())) < 200


def test_a_flood_of_pings_is_survived(opened):
    opened.scripted.pongs = False
    for _ in range(2000):
        opened.far_control.sendall(b"PING %s\n" % (b"x" * 1000))
    opened.far_control.say("PING last")
    wait_until(lambda: "PONG last" in opened.scripted.asked)


# -- keepalive probes -------------------------------------------------------------------------------------------------


def test_a_bridge_that_answers_pings_is_pinged(opened):
    session, asked = opened.session, opened.scripted.asked
    session.check()
    wait_until(lambda: session._keepalive.can_ping)
    assert asked[1:] == ["PING relay", "PING relay"], "twice, on a conversation that nobody needs"
    for _ in range(2 * module._MISSED):
        session.check()
        wait_until(lambda: session._keepalive._missed == 0)
    assert asked[-1] == "PING ours" and opened.lost.empty()
    assert 0 < session.rtt < WAIT


def test_one_that_answers_no_more_is_dead(opened):
    session = opened.session
    session.check()
    wait_until(lambda: session._keepalive.can_ping)
    opened.scripted.pongs = False
    for check in range(module._MISSED):
        session.check()
        assert session.is_doubtful is (check > 0)
        assert opened.lost.empty()
    session.check()
    assert str(opened.lost.get(timeout=WAIT)) == "the session: the router does not respond"
    session.check()


@pytest.mark.parametrize("end", ["close", "silence", "nonsense", "once"])
def test_one_that_does_not_know_pings_is_not_pinged(opened, end):
    session = opened.session
    if end == "silence":
        opened.scripted.pongs = False
    elif end == "once":
        opened.scripted.answers += ["PONG relay", lambda far: far.close()]
    else:
        opened.scripted.answers.append(lambda far: far.close() if end == "close" else far.say("I2P_ERROR"))
    session.check()
    wait_until(lambda: "PING relay" in opened.scripted.asked)
    for _ in range(9):
        session.check()
    assert session._keepalive.can_ping is False and opened.lost.empty()
    assert "PING ours" not in opened.scripted.asked


def test_a_bridge_that_could_not_be_asked_is_asked_again(opened):
    session = opened.session
    opened.scripted.hello = ["nonsense"]
    session.check()
    wait_until(lambda: session._keepalive.can_ping is None)
    assert len(opened.scripted.hellos) == 2 and "PING relay" not in opened.scripted.asked
    session.check()
    wait_until(lambda: session._keepalive.can_ping)


# -- names ------------------------------------------------------------------------------------------------------------


def looked_up(session, name):
    told = queue.SimpleQueue()
    session.look_up(name, told.put)
    return told.get(timeout=WAIT)


def test_a_name_is_looked_up_once(opened):
    opened.scripted.names["echo.i2p"] = DEST
    session = opened.session
    assert session.known("echo.i2p") is None
    for _ in range(3):
        assert looked_up(session, "echo.i2p") == DEST
    assert opened.scripted.asked.count("NAMING LOOKUP NAME=echo.i2p") == 1
    assert session.known("echo.i2p") == DEST


def test_a_name_is_looked_up_again_after_a_while(opened, times):
    times(name_is_fresh=0.0)
    opened.scripted.names["echo.i2p"] = DEST
    for _ in range(2):
        assert looked_up(opened.session, "echo.i2p") == DEST
    assert opened.scripted.asked.count("NAMING LOOKUP NAME=echo.i2p") == 2


def test_names_that_are_kept_are_bounded(opened, monkeypatch):
    monkeypatch.setattr(module, "_NAMES", 3)
    for number in range(5):
        opened.scripted.names[f"{number}.i2p"] = DEST
        looked_up(opened.session, f"{number}.i2p")
    assert [opened.session.known(f"{number}.i2p") for number in range(5)] == [None, None, DEST, DEST, DEST]


def test_an_unknown_name(opened):
    error = looked_up(opened.session, "nobody.i2p")
    assert isinstance(error, UnreachableError) and error.reason == "unreachable" and error.result == "KEY_NOT_FOUND"
    assert str(error) == "nobody.i2p: the router does not know this name"


def test_a_look_up_that_ends_without_an_answer(opened, times):
    opened.scripted.answers.append(lambda far: far.close())
    assert isinstance(looked_up(opened.session, "x.i2p"), OSError)
    times(look_up=0.05)
    opened.scripted.answers.append("")
    error = looked_up(opened.session, "x.i2p")
    assert str(error) == "x.i2p: name lookup timed out" and error.reason == "connect_timeout"


def test_who_wants_to_know_is_told_of_silence_and_answers(opened, times):
    times(silent=0.05)
    silent, answered = queue.SimpleQueue(), queue.SimpleQueue()

    class Observer:
        def on_silence(self, session, dest):
            silent.put((session, dest))

        def on_reply(self, dest):
            answered.put(dest)

    opened.session.observer = Observer()
    with opened.open().stream():
        assert silent.get(timeout=WAIT) == (opened.session, DEST)
        opened.scripted.stream()
    times(silent=WAIT)
    with opened.open(self_contained=True).stream() as stream:
        opened.scripted.stream().sendall(b"x")
        assert receive_exactly(stream.socket, 1) == b"x"
        opened.pass_deadlines()
        assert answered.get(timeout=WAIT) == DEST
    assert silent.empty()


# -- streams that answer, and those that do not -----------------------------------------------------------------------
