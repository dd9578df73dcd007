"""``relay.transports.i2p.opening``: a stream to another destination, and everything that may come in its place."""

import copy
import errno
import os
import queue
import threading
import time

import pytest
from helpers import PROMPT, WAIT, Thread, receive_all, receive_exactly, wait_until
from sam_rig import DEST, OK, Opened, io_thread_ends

from relay.addresses.destinations import b32_of
from relay.errors import CarrierError, ConnectError, SAMError, can_retry
from relay.eventloop.background import IOThread
from relay.transports.i2p import opening as module
from relay.transports.i2p.messages import UnreachableError
from relay.transports.i2p.opening import SETTLE

B32 = b32_of(DEST)


@pytest.fixture
def quick(times):
    times(stream_again=(0.01, 0.02))


def connects(opened):
    return [line for line in opened.scripted.asked if line.startswith("STREAM CONNECT")]


# -- a stream ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("self_contained", [False, True])
def test_a_stream(opened, self_contained):
    with opened.open(self_contained=self_contained).stream() as stream:
        far = opened.scripted.stream()
        stream.socket.sendall(b"ping")
        assert receive_exactly(far, 4) == b"ping"
        far.sendall(b"pong")
        assert receive_exactly(stream.socket, 4) == b"pong"
        assert opened.session.streams == 1
        assert stream.target == f"i2p://{B32}" and not stream.half_close
        assert stream.failure() is None and stream.settle == SETTLE and not stream.answered
    assert receive_all(far) == b""
    wait_until(lambda: opened.session.streams == 0)
    assert connects(opened) == [f"STREAM CONNECT ID=ours DESTINATION={DEST} SILENT=false"]


def test_a_port_is_told(opened):
    with opened.open(port=81).stream() as stream:
        assert stream.target == f"i2p://{B32}:81"
    assert connects(opened)[0].endswith(" SILENT=false TO_PORT=81")


@pytest.mark.parametrize("self_contained", [False, True])
def test_what_comes_with_the_answer_is_not_lost(opened, self_contained):
    def answer(far):
        far.say(OK, more=b"220 STREAM STATUS\nready\n")
        opened.scripted.streams.put(far)
        far.over.wait()

    opened.scripted.answers.append(answer)
    with opened.open(self_contained=self_contained).stream() as stream:
        assert receive_exactly(stream.socket, 24) == b"220 STREAM STATUS\nready\n"


def test_the_end_of_the_holders_bytes_is_kept_from_the_router(opened):
    with opened.open(self_contained=True).stream() as stream:
        far = opened.scripted.stream()
        stream.socket.sendall(b"request")
        stream.socket.shutdown(1)
        assert receive_exactly(far, 7) == b"request"
        far.sendall(b"reply")
        assert receive_exactly(stream.socket, 5) == b"reply"


@pytest.mark.parametrize("self_contained", [False, True])
def test_it_knows_that_its_session_was_lost(opened, self_contained):
    with opened.open(self_contained=self_contained).stream() as stream:
        opened.far_control.close()
        opened.lost.get(timeout=WAIT)
        assert isinstance(stream.failure(), CarrierError)


def test_nothing_is_left_of_a_stream(opened):
    for self_contained in (False, True):
        opened.open(self_contained=self_contained).stream().close()
    opened.session.close()
    io_thread_ends()
    assert opened.session.streams == 0 and not opened.bridge.deadlines._due


def test_what_no_line_can_say_is_a_value_error(opened):
    with pytest.raises(ValueError, match="newline"):
        opened.open("a\nSTREAM CONNECT")
    assert opened.session.streams == 0


def test_what_lies_under_it_is_let_go_with_it(opened):
    closed = threading.Event()
    reach = opened.scripted.dialer.dial

    def dial(deadline, done, **options):
        def told(outcome):
            outcome.on_close = closed.set
            done(outcome)

        return reach(deadline, told, **options)

    opened.scripted.dialer.dial = dial
    for self_contained in (False, True):
        closed.clear()
        stream = opened.open(self_contained=self_contained).stream()
        assert not closed.is_set()
        stream.close()
        assert closed.wait(WAIT)


# -- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "reason", "result", "text"),
    [
        ("CANT_REACH_PEER", "unreachable", "CANT_REACH_PEER", "unreachable; check that its server is up"),
        ("PEER_NOT_FOUND", "unreachable", "PEER_NOT_FOUND", "not found"),
        ("TIMEOUT", "connect_timeout", "TIMEOUT", "no answer in time"),
        ("INVALID_KEY", "unreachable", "INVALID_KEY", "the router does not know this name or destination"),
        ("I2P_ERROR", "unreachable", "I2P_ERROR", "the router refuses the stream (I2P_ERROR)"),
        ("ALIEN", "unreachable", "ALIEN", "the router refuses the stream (ALIEN)"),
        ("X" * 5000, "unreachable", "X" * 5000, "the router refuses the stream (XXXX"),
    ],
)
def test_a_refusal(opened, answer, reason, result, text):
    opened.scripted.answers.append(f"STREAM STATUS RESULT={answer}")
    error = opened.open(patient=False).error()
    assert isinstance(error, UnreachableError) and isinstance(error, ConnectError) and isinstance(error, SAMError)
    assert error.reason == reason and error.result == result
    assert error.passing is (answer != "INVALID_KEY"), "a retry may find a destination, not a name"
    assert str(error).startswith(f"i2p://{B32}: {text}")
    assert opened.session.streams == 0 and opened.lost.empty()


@pytest.mark.parametrize(("dest", "result"), [(DEST, "CANT_REACH_PEER"), (DEST, "ALIEN"), ("echo.i2p", "INVALID_KEY")])
def test_what_the_router_says_to_a_refusal_is_in_its_text(opened, dest, result):
    opened.scripted.answers.append(f'STREAM STATUS RESULT={result} MESSAGE="Peer \u202e not found"')
    text = str(opened.open(dest, patient=False).error())
    assert text.endswith(r"; the router reports: Peer \u202e not found"), text


def test_such_an_error_can_be_copied():
    error = UnreachableError("text", reason="connect_timeout", result="TIMEOUT")
    made = copy.copy(error)
    assert made is not error and (str(made), made.reason, made.result) == ("text", "connect_timeout", "TIMEOUT")


@pytest.mark.parametrize("how", ["close", "reset"])
def test_an_end_in_place_of_an_answer(opened, how):
    opened.scripted.answers.append(lambda far: getattr(far, how)())
    error = opened.open().error()
    assert isinstance(error, ConnectError) and error.reason == "unreachable"
    assert "the connection to the bridge was lost" in str(error)


@pytest.mark.parametrize("said", ["", "STREAM STATUS RESULT=O"])
def test_silence_ends_with_the_deadline(opened, said):
    opened.scripted.answers.append(lambda far: (far.sendall(said.encode()), far.over.wait()))
    begun = opened.open()
    wait_until(lambda: connects(opened))
    opened.pass_deadlines()
    error = begun.error()
    assert error.reason == "connect_timeout"
    assert str(error) == f"i2p://{B32}: the router did not connect in time"


def test_silence_ends_also_where_nobody_has_a_deadline(opened, times):
    times(stream_answer=0.05)
    opened.scripted.answers.append(lambda far: far.over.wait())
    assert opened.open(seconds=None).error().reason == "connect_timeout"


def test_a_session_that_the_router_does_not_know_is_lost(opened):
    opened.scripted.answers.append("STREAM STATUS RESULT=INVALID_ID")
    error = opened.open().error()
    assert isinstance(error, CarrierError) and str(error) == "the session: the router no longer knows the session"
    assert opened.lost.get(timeout=WAIT) is error is opened.session.failure()


def test_a_session_that_ends_meanwhile_is_the_reason(opened):
    def answer(far):
        opened.far_control.close()
        opened.lost.get(timeout=WAIT)
        far.close()

    opened.scripted.answers.append(answer)
    assert isinstance(opened.open().error(), CarrierError)


def test_a_session_that_has_ended_is_the_reason(opened):
    opened.far_control.close()
    opened.lost.get(timeout=WAIT)
    opened.scripted.hello = ["nonsense"] * 9
    assert isinstance(opened.open().error(), CarrierError)


# -- patience ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("result", ["CANT_REACH_PEER", "PEER_NOT_FOUND", "TIMEOUT", "I2P_ERROR"])
def test_what_may_be_reached_later_is_tried_again(opened, quick, result):
    opened.scripted.answers += [f"STREAM STATUS RESULT={result}"] * 3
    opened.open().stream().close()
    assert len(connects(opened)) == 4


def test_it_is_tried_again_until_the_deadline_and_the_reason_told(opened, quick):
    opened.scripted.answers += ["STREAM STATUS RESULT=CANT_REACH_PEER"] * 1000
    begun = time.monotonic()
    error = opened.open(seconds=1.0).error()
    assert time.monotonic() - begun > 0.5
    assert error.result == "CANT_REACH_PEER" and 1 < len(connects(opened)) < 120


def test_the_pauses_become_shorter_towards_the_deadline(opened, times):
    """A destination that appears before the deadline is reached, also if the next pause were longer than that."""
    times(stream_again=(10.0, 10.0))
    opened.scripted.answers.append("STREAM STATUS RESULT=CANT_REACH_PEER")
    opened.open(seconds=4.0).stream().close()
    assert len(connects(opened)) == 2


@pytest.mark.parametrize("options", [{"patient": False}, {"seconds": None}])
def test_who_is_not_patient_is_told_at_once(opened, quick, options):
    opened.scripted.answers.append("STREAM STATUS RESULT=CANT_REACH_PEER")
    assert opened.open(**options).error().result == "CANT_REACH_PEER"
    assert len(connects(opened)) == 1


def test_what_no_time_mends_is_told_at_once(opened, quick):
    opened.scripted.answers.append("STREAM STATUS RESULT=INVALID_KEY")
    assert opened.open().error().result == "INVALID_KEY"


@pytest.fixture
def closed_door(opened):
    """The next so many connects to the bridge are refused."""
    reach = opened.scripted.dialer.dial

    def dial(deadline, done, **options):
        if not times:
            return reach(deadline, done, **options)
        times.pop()
        done(ConnectError("b: connection refused", reason="refused"))
        return lambda: None

    times = []
    opened.scripted.dialer.dial = dial
    return times


def test_a_bridge_that_lets_nobody_in_for_a_while_is_tried_again(opened, quick, closed_door):
    closed_door += [1] * 5
    opened.open().stream().close()
    assert not closed_door


@pytest.mark.parametrize("options", [{"patient": False}, {"seconds": None}, {"seconds": 0.05}])
def test_a_bridge_that_lets_nobody_in_is_told(opened, quick, closed_door, options):
    closed_door += [1] * 999
    error = opened.open(**options).error()
    assert error.reason == "refused" and "no SAM bridge there (connection refused)" in str(error)


def test_a_bridge_that_will_not_have_us_is_not_tried_again(opened, quick):
    opened.scripted.hello = ["HELLO REPLY RESULT=I2P_ERROR"] * 9
    assert "check the SAM user and password" in str(opened.open().error())


def test_no_thread_to_wait_is_told(opened, monkeypatch):
    def refuse(member):
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    def answer(far):
        monkeypatch.setattr(IOThread, "acquire", refuse)
        far.say("STREAM STATUS RESULT=CANT_REACH_PEER")

    opened.scripted.answers.append(answer)
    assert opened.open().error().errno == errno.EAGAIN
    monkeypatch.undo()


def test_no_descriptor_for_a_passage_is_told(opened, monkeypatch):
    def refuse(stream, over):
        stream.close()
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(module, "self_contained", refuse)
    assert opened.open(self_contained=True).error().errno == errno.EMFILE
    assert opened.session.streams == 0
    assert opened.scripted.stream().recv(1) == b""


# -- names ------------------------------------------------------------------------------------------------------------


def test_a_name_that_it_does_not_take_there_is_looked_up(opened):
    opened.scripted.names["echo.i2p"] = DEST
    opened.scripted.answers.append("STREAM STATUS RESULT=INVALID_KEY")
    with opened.open("echo.i2p").stream() as stream:
        assert stream.target == "i2p://echo.i2p"
    opened.open("echo.i2p").stream().close()
    destinations = [line.split("DESTINATION=")[1].split(" ")[0] for line in connects(opened)]
    assert destinations == ["echo.i2p", DEST, DEST], "and known from then on"


@pytest.mark.parametrize("result", ["INVALID_KEY", "KEY_NOT_FOUND"])
def test_an_unknown_name(opened, result):
    opened.scripted.answers.append(f"STREAM STATUS RESULT={result}")
    error = opened.open("nobody.i2p").error()
    assert error.result == result and str(error).startswith("i2p://nobody.i2p: the router does not know this name")
    assert len(connects(opened)) == 1


@pytest.mark.parametrize("value", ["echo.i2p", "x", "A" * 8000, f"{DEST[:516]}/{'A' * 7500}"])
def test_a_name_whose_destination_is_none_is_not_looked_up_for_ever(opened, value):
    opened.scripted.names["echo.i2p"] = value
    opened.scripted.answers.append("STREAM STATUS RESULT=INVALID_KEY")
    assert opened.open("echo.i2p").error().result == "INVALID_KEY"
    assert len(opened.scripted.asked) == 3


def test_a_look_up_has_the_time_of_its_stream(opened):
    opened.scripted.answers += ["STREAM STATUS RESULT=INVALID_KEY", lambda far: far.over.wait()]
    begun = opened.open("echo.i2p", seconds=WAIT / 4)
    wait_until(lambda: len(opened.scripted.asked) == 3)
    opened.pass_deadlines(WAIT / 4)
    error = begun.error()
    assert error.reason == "connect_timeout" and can_retry(error), "nobody has said that there is no such name"
    assert str(error) == "i2p://echo.i2p: name lookup timed out"


def test_a_look_up_whose_connection_is_lost_says_nothing_about_the_name(opened):
    opened.scripted.answers += ["STREAM STATUS RESULT=INVALID_KEY", lambda far: None]
    error = opened.open("echo.i2p").error()
    assert can_retry(error) and "does not know" not in str(error)
    assert len(opened.scripted.asked) == 3


def test_an_address_whose_look_up_takes_too_long_is_tried_again(opened, quick):
    opened.scripted.answers += ["STREAM STATUS RESULT=INVALID_KEY", lambda far: far.over.wait()]
    begun = opened.open(B32, seconds=4 * WAIT)
    wait_until(lambda: len(opened.scripted.asked) == 3)
    opened.pass_deadlines()
    begun.stream().close()
    assert len(connects(opened)) == 2


# -- giving up --------------------------------------------------------------------------------------------------------


def given_up(opened, begun):
    begun.give_up()
    begun.give_up()
    wait_until(lambda: opened.session.streams == 0)
    assert begun.told.empty()


@pytest.fixture
def late(opened):
    """The next conversation, and what takes it: the bridge has answered, so that nothing can cancel it any more."""
    reach, told = opened.bridge.open_conversation, queue.SimpleQueue()

    def open_conversation(deadline, on_conversation):
        reach(deadline, lambda conversation: told.put((conversation, on_conversation)))
        return lambda: None

    opened.bridge.open_conversation = open_conversation
    return told


@pytest.mark.parametrize("what", ["stream", "name"])
def test_a_conversation_that_comes_after_it_was_given_up_is_closed(opened, late, what):
    opened.scripted.answers.append("STREAM STATUS RESULT=INVALID_KEY")
    begun = opened.open("echo.i2p")
    if what == "name":
        conversation, on_conversation = late.get(timeout=WAIT)
        on_conversation(conversation)
    conversation, on_conversation = late.get(timeout=WAIT)
    given_up(opened, begun)
    on_conversation(conversation)
    wait_until(lambda: not conversation.alive, PROMPT)


def test_who_gives_up_before_the_router_has_answered(opened):
    ended = threading.Event()
    opened.scripted.answers.append(lambda far: far.line() or ended.set())
    begun = opened.open()
    wait_until(lambda: connects(opened))
    given_up(opened, begun)
    assert ended.wait(WAIT), "the router sees it"


def test_who_gives_up_between_two_attempts(opened, times):
    times(stream_again=(5.0, 5.0))
    opened.scripted.answers.append("STREAM STATUS RESULT=CANT_REACH_PEER")
    begun = opened.open()
    wait_until(lambda: connects(opened))
    wait_until(lambda: any(type(one).__name__ == "_Pause" for one in IOThread.clients()))
    given_up(opened, begun)
    wait_until(lambda: not any(type(one).__name__ == "_Pause" for one in IOThread.clients()))


def test_who_gives_up_while_a_name_is_looked_up(opened):
    ended = threading.Event()
    opened.scripted.answers += ["STREAM STATUS RESULT=INVALID_KEY", lambda far: far.line() or ended.set()]
    begun = opened.open("echo.i2p")
    wait_until(lambda: len(opened.scripted.asked) == 3)
    given_up(opened, begun)
    assert ended.wait(WAIT), "the router sees it"


@pytest.mark.parametrize("self_contained", [False, True])
def test_giving_up_races_with_the_answer(opened, self_contained):
    for turn in range(100):
        begun = opened.open(self_contained=self_contained)
        if turn % 2:
            wait_until(lambda turn=turn: len(connects(opened)) > turn // 2)
        begun.give_up()
        if not begun.told.empty():
            begun.outcome().close()
        wait_until(lambda: opened.session.streams == 0)


def test_closing_the_session_races_with_streams(scripted):
    for _ in range(30):
        opened = Opened(scripted)
        begun = [opened.open(seconds=5.0) for _ in range(4)]
        closing = Thread(opened.session.close)
        for one in begun:
            outcome = one.outcome()
            if isinstance(outcome, OSError):
                assert isinstance(outcome, (CarrierError, ConnectError))
            else:
                outcome.close()
        closing.result()
        opened.close()
