"""``relay.transports.i2p.bridge``: conversations that have said HELLO, and those that are kept ready."""

import math
import queue
import threading
import time

import pytest
from helpers import WAIT, Thread, black_hole, closed, refusing, wait_until
from sam_rig import HELLO, io_thread_ends

import relay
from relay.errors import AuthenticationError, ConnectError, SAMError
from relay.eventloop.background import IOThread
from relay.streams.dialer import Dialer
from relay.transports.i2p import bridge as module
from relay.transports.i2p.bridge import MAX_IDLE, Bridge
from relay.transports.i2p.conversation import Conversation
from relay.transports.i2p.messages import Message, ping
from relay.transports.tcp import tcp


@pytest.fixture
def bridge(scripted):
    yield from closed(scripted.bridge())


class Meeting:
    """A conversation that was asked for."""

    def __init__(self, bridge, seconds=WAIT):
        self.told = queue.SimpleQueue()
        deadline = None if seconds is None else time.monotonic() + seconds
        self.give_up = bridge.open_conversation(deadline, self.told.put)

    def outcome(self):
        return self.told.get(timeout=WAIT)


def meet(bridge):
    outcome = Meeting(bridge).outcome()
    assert isinstance(outcome, Conversation), outcome
    return outcome


def works(conversation):
    """Return whether it is answered."""
    told = queue.SimpleQueue()
    conversation.ask(ping("x"), time.monotonic() + WAIT, told.put)
    return getattr(told.get(timeout=WAIT), "words", None) == ("PONG",)


def warm(bridge):
    """Make a spare connection."""
    for _ in range(2):
        meet(bridge).close()
    wait_until(lambda: len(bridge.idle.ready) == 1)


def far_end(scripted, conversation):
    """Return the bridge's side of a conversation; connections may be served in another order than they are made."""
    name = conversation.stream.socket.getsockname()
    return next(end for end in scripted.ends if end.peer == name)


def fill(bridge):
    """Do as a client does that has been served."""
    filled = threading.Event()
    bridge.deadlines.loop.call(lambda: (bridge.fill(), filled.set()))
    assert filled.wait(WAIT)


def test_a_conversation_has_said_hello(scripted, bridge):
    conversation = meet(bridge)
    assert works(conversation)
    assert scripted.hellos == ["HELLO VERSION MIN=3.1 MAX=3.3"]
    assert bridge.version == "3.3"
    conversation.close()


def test_who_logs_in_says_who_he_is(scripted):
    bridge = scripted.bridge(("me", "se cret"))
    meet(bridge).close()
    assert scripted.hellos == ['HELLO VERSION MIN=3.1 MAX=3.3 USER=me PASSWORD="se cret"']
    assert "se cret" not in repr(bridge)
    bridge.close()


def error_of(bridge, seconds=WAIT):
    error = Meeting(bridge, seconds).outcome()
    assert isinstance(error, OSError), error
    assert "\n" not in str(error) and str(error).startswith(f"{bridge.name}: ")
    return error


def test_nobody_there():
    with refusing() as address:
        bridge = Bridge("i2p:?sam=x", tcp(*address), None)
        error = error_of(bridge)
        bridge.close()
    assert isinstance(error, ConnectError) and error.reason == "refused"
    assert str(error).startswith(
        "i2p:?sam=x: no SAM bridge there (connection refused); check that a router is running there"
    )
    assert "[sam] enabled = true" in str(error) and "Java" in str(error)


def test_no_answer_to_the_connect():
    with black_hole() as hole:
        bridge = Bridge("i2p:?sam=x", tcp(*hole.getsockname()), None)
        error = error_of(bridge, 0.05)
        bridge.close()
    assert isinstance(error, ConnectError) and error.reason == "connect_timeout"
    assert str(error).startswith("i2p:?sam=x: no answer in time; check that the host is up"), "its name is said once"


@pytest.mark.parametrize("seconds", [None, 5.0])
def test_silence(scripted, bridge, times, seconds):
    times(hello=0.05)
    scripted.hello = [None]
    error = error_of(bridge, seconds)
    assert isinstance(error, ConnectError) and error.reason == "connect_timeout"
    assert "no answer in time; check that a router is running there" in str(error)


@pytest.mark.parametrize(
    ("answer", "kind", "text"),
    [
        ("HELLO REPLY RESULT=NOVERSION", SAMError, "supports none of SAM 3.1 to 3.3; update the router"),
        ('HELLO REPLY RESULT=I2P_ERROR MESSAGE="no such user"', AuthenticationError, "it reports: no such user"),
        ("HELLO REPLY RESULT=I2P_ERROR", AuthenticationError, "it reports: I2P_ERROR"),
        (f'HELLO REPLY RESULT=I2P_ERROR MESSAGE="{"x" * 5000}"', AuthenticationError, "it reports: xxx"),
        ("HELLO REPLY", AuthenticationError, "it reports: nothing"),
        ("HTTP/1.0 400 Bad Request", SAMError, "not a SAM bridge"),
        ("220 mail.example ESMTP", SAMError, "not a SAM bridge"),
        ("SESSION STATUS RESULT=OK", SAMError, "not a SAM bridge (it sent SESSION STATUS)"),
        ("x" * 20000, SAMError, "not a SAM bridge (a line of more than 8192 bytes"),
        ('HELLO REPLY RESULT="OK', SAMError, "not a SAM bridge"),
    ],
)
def test_what_is_no_bridge_or_wants_none_of_us(scripted, bridge, answer, kind, text):
    scripted.hello = [answer]
    error = error_of(bridge)
    assert isinstance(error, kind) and text in str(error)
    assert len(str(error)) < 300
    assert str(error).count(bridge.name) == 1
    assert not bridge.idle.ready and len(scripted.hellos) == 1, "it is asked once"


def test_a_way_that_cannot_be_begun_is_told():
    class Broken(Dialer):
        def dial(self, deadline, done, **options):
            raise OSError(24, "Too many open files")

    bridge = Bridge("b", Broken("x"), None)
    error = error_of(bridge)
    assert isinstance(error, ConnectError) and str(error) == "b: Too many open files"
    bridge.close()


def test_a_refusal_on_the_way_stays_what_it_is():
    denied = relay.HostKeyError("ssh://b: the host key has changed")

    class Denied(Dialer):
        def dial(self, deadline, done, **options):
            done(denied)
            return lambda: None

    bridge = Bridge("b", Denied("x"), None)
    assert Meeting(bridge).outcome() is denied
    bridge.close()


def test_who_gives_up_while_it_connects_is_not_told():
    with black_hole() as hole:
        bridge = Bridge("b", tcp(*hole.getsockname()), None)
        meeting = Meeting(bridge, None)
        meeting.give_up()
        meeting.give_up()
        wait_until(lambda: len(IOThread.clients()) == 1)
        bridge.close()
    assert meeting.told.empty()


def test_giving_up_what_is_there_does_nothing(scripted, bridge):
    meeting = Meeting(bridge)
    conversation = meeting.outcome()
    meeting.give_up()
    assert works(conversation)
    conversation.close()


def test_giving_up_races_with_the_answer(scripted):
    for _ in range(100):
        bridge = scripted.bridge()
        meeting = Meeting(bridge)
        meeting.give_up()
        bridge.close()
        if not meeting.told.empty():
            meeting.outcome().close()
        io_thread_ends()
        assert meeting.told.empty()


# -- spares -----------------------------------------------------------------------------------------------------------


def test_none_is_kept_before_it_is_known_that_any_is_needed(scripted, bridge):
    meet(bridge).close()
    assert not bridge.idle.ready and not bridge.idle.connecting and len(scripted.hellos) == 1


def test_one_is_enough_for_one_at_a_time(scripted, bridge):
    warm(bridge)
    for _ in range(50):
        meeting = Meeting(bridge)
        conversation = meeting.told.get_nowait()
        assert works(conversation)
        conversation.close()
        fill(bridge)
        wait_until(lambda: len(bridge.idle.ready) == 1)
    assert bridge.idle.wanted == 1 and len(scripted.hellos) == 53, "two were made before one was kept"


def test_there_are_more_for_more_at_a_time(scripted, bridge):
    meet(bridge).close()
    for _ in range(8):
        for meeting in [Meeting(bridge) for _ in range(16)]:
            meeting.outcome().close()
        wait_until(lambda: fill(bridge) or len(bridge.idle.ready) == bridge.idle.wanted)
    assert bridge.idle.wanted == MAX_IDLE
    before = len(scripted.hellos)
    conversations = [Meeting(bridge).told.get_nowait() for _ in range(16)]
    fill(bridge)
    wait_until(lambda: len(bridge.idle.ready) == MAX_IDLE)
    assert len(scripted.hellos) == before + 16
    for conversation in conversations:
        assert works(conversation)
        conversation.close()


def test_a_spare_that_the_bridge_has_closed_is_not_handed_out(scripted, bridge):
    warm(bridge)
    stop, go = threading.Event(), threading.Event()
    bridge.deadlines.loop.call(lambda: (stop.set(), go.wait(WAIT)))  # so that relay has not seen it yet
    assert stop.wait(WAIT)
    for end in list(scripted.ends):
        end.close()
    wait_until(lambda: not bridge.idle.ready[0].alive)
    meeting = Meeting(bridge)
    go.set()
    conversation = meeting.outcome()
    assert works(conversation)
    conversation.close()


def test_a_spare_that_the_bridge_closes_is_forgotten(scripted, bridge):
    warm(bridge)
    far_end(scripted, bridge.idle.ready[0]).close()
    wait_until(lambda: not bridge.idle.ready)
    conversation = meet(bridge)
    assert works(conversation)
    conversation.close()


def test_a_spare_that_is_closed_while_it_is_taken_is_replaced_or_told(scripted):
    for _ in range(50):
        bridge = scripted.bridge()
        warm(bridge)
        closing = Thread(far_end(scripted, bridge.idle.ready[0]).close)
        conversation = meet(bridge)
        told = queue.SimpleQueue()
        conversation.ask(ping("x"), time.monotonic() + WAIT, told.put)
        assert isinstance(told.get(timeout=WAIT), (Message, ConnectError))
        closing.result()
        conversation.close()
        bridge.close()
        io_thread_ends()
        assert told.empty()


def test_a_spare_that_is_pinged_is_kept(scripted, bridge):
    warm(bridge)
    far_end(scripted, bridge.idle.ready[0]).say("PING are you there")
    conversation = meet(bridge)
    assert works(conversation)
    conversation.close()


def test_half_of_those_that_were_needed_stay_and_none_that_nobody_needs(scripted, bridge):
    meet(bridge).close()
    for meeting in [Meeting(bridge) for _ in range(16)]:
        meeting.outcome().close()
    wait_until(lambda: fill(bridge) or 1 < len(bridge.idle.ready) == bridge.idle.wanted)
    loop, quiet = bridge.deadlines.loop, threading.Event()
    for rests, left in (2, bridge.idle.wanted // 2), (4, 0):
        loop.call(lambda rests=rests: loop.timers.run(time.monotonic() + rests * module.REST))
        wait_until(lambda left=left: (len(bridge.idle.ready), bridge.idle.wanted) == (left, left))
    wait_until(lambda: len(IOThread.clients()) == 1)
    loop.call(lambda: loop.timers.first == math.inf and quiet.set())
    assert quiet.wait(WAIT), "and nothing is left that would wake anybody"


def test_one_that_comes_when_it_is_no_longer_needed_is_closed(scripted, bridge):
    meet(bridge).close()
    scripted.hello = [HELLO, None]
    meet(bridge).close()
    wait_until(lambda: len(scripted.hellos) == 3)
    bridge.idle.wanted = 0
    late = scripted.ends[-1]
    late.say(HELLO)
    assert late.over.wait(WAIT)
    assert not bridge.idle.connecting and not bridge.idle.ready


def test_a_spare_that_cannot_be_made_is_not_asked_for_again_and_again(scripted, bridge):
    meet(bridge).close()
    scripted.hello = [HELLO, *["nonsense"] * 100]
    meet(bridge).close()
    wait_until(lambda: len(scripted.hellos) == 3 and not bridge.idle.connecting)
    assert isinstance(Meeting(bridge).outcome(), SAMError)
    assert len(scripted.hellos) == 4 and not bridge.idle.ready and not bridge.idle.connecting


def test_a_bridge_that_has_come_back_is_not_overrun(scripted, bridge):
    meet(bridge).close()
    bridge.idle.wanted = MAX_IDLE
    scripted.hello = [HELLO, *[None] * MAX_IDLE]
    meet(bridge).close()
    wait_until(lambda: len(bridge.idle.connecting) == 2 and len(scripted.hellos) == 4)


def test_closing_closes_the_spares_and_no_conversation(scripted):
    bridge = scripted.bridge()
    warm(bridge)
    conversation = meet(bridge)
    bridge.close()
    bridge.close()
    wait_until(lambda: len(IOThread.clients()) == 1)
    assert works(conversation)
    conversation.close()
    io_thread_ends()


def test_closing_closes_those_that_come(scripted):
    for _ in range(30):
        bridge = scripted.bridge()
        meet(bridge).close()
        meeting = Meeting(bridge)
        bridge.close()
        meeting.outcome().close()
        io_thread_ends()


def test_closing_does_not_wait_for_those_that_never_come(scripted, times):
    times(hello=10 * WAIT)
    bridge = scripted.bridge()
    meet(bridge).close()
    scripted.hello = [HELLO, None]
    meet(bridge).close()
    wait_until(lambda: len(scripted.hellos) == 3)
    bridge.close()
    io_thread_ends()


def test_one_that_is_closed_begins_none(scripted, bridge):
    meet(bridge).close()
    bridge.close()
    assert str(error_of(bridge)) == f"{bridge.name}: the connection to the bridge was closed"
    io_thread_ends()
    assert not bridge.idle.ready and not bridge.idle.connecting and len(scripted.hellos) == 1
