"""``relay.streams.dialer``: streams that begin at once and are reported later, in a tunnel and out of one."""

import gc
import socket
import threading
import time

import pytest
from helpers import WAIT, Thread, ended, fate_of_client, makes, wait_until

import relay
from relay.engine.attempt import Attempt
from relay.streams.dialer import Dialer, Upgrade
from relay.streams.promise import CallbackChain, Cancellation, Promise
from relay.streams.stream import HANDSHAKE


class FakeDialer(Dialer):
    """Tells what the test says, at once or from a thread; by itself it hands out socketpairs."""

    def __init__(self, *outcomes, later=False):
        super().__init__("the target")
        self.outcomes = list(outcomes)
        self.later = later
        self.far = []
        self.asked = []
        self.given_up = threading.Event()
        self.closed = False

    def dial(self, deadline, done, *, self_contained=False, wait_for_reconnect=True):
        self.asked.append((deadline, self_contained, wait_for_reconnect))
        outcome = self.outcomes.pop(0) if self.outcomes else self.make()
        if outcome is None:
            return self.given_up.set
        if self.later:
            Thread(done, outcome)
        else:
            done(outcome)
        return self.given_up.set

    def make(self):
        near, far = socket.socketpair()
        near.setblocking(False)
        far.settimeout(WAIT)
        self.far.append(far)
        return relay.Stream(near, target=self.target)

    def close(self):
        self.closed = True
        for far in self.far:
            far.close()


@pytest.fixture
def dialer():
    """Makes dialers that are closed with the test."""
    yield from makes(FakeDialer)


REFUSED = relay.ConnectError("the target: connection refused", reason="refused")


@pytest.mark.parametrize("later", [False, True])
def test_a_call_waits(dialer, later):
    factory = dialer(later=later)
    with factory(deadline=time.monotonic() + WAIT) as stream:
        assert stream.target == "the target"
    with factory():
        pass
    assert [wait_for_reconnect for _, _, wait_for_reconnect in factory.asked] == [True, False], (
        "patient where there is a deadline"
    )


def test_a_call_raises_what_it_is_told(dialer):
    factory = dialer(REFUSED, REFUSED)
    for _ in range(2):
        with pytest.raises(relay.ConnectError, match="the target: connection refused") as caught:
            factory()
        assert caught.value.reason == "refused"
        assert caught.value is not REFUSED, "others may be told the same"


class Odd(relay.RelayError):
    """An error that cannot be copied."""

    def __init__(self, what, why):
        super().__init__(f"{what}: {why}")


def test_an_error_keeps_its_cause_and_may_be_odd(dialer):
    refused = relay.ConnectError("refused")
    refused.__cause__ = cause = ValueError("why")
    with pytest.raises(relay.ConnectError) as caught:
        dialer(refused)()
    assert caught.value.__cause__ is cause
    with pytest.raises(Odd, match="this: that"):
        dialer(Odd("this", "that"))()


class Holding(FakeDialer):
    def dial(self, deadline, done, **options):
        return lambda: done


def test_the_log_says_why_there_was_no_stream_in_time(dialer, caplog):
    class Troubled(FakeDialer):
        last_error = "ssh://b: connection refused"

    factory = Upgrade(Troubled(None), "better")
    with relay.Tunnel(relay.listen(":0"), factory, connect_timeout=0.05, name="t") as tunnel:
        assert fate_of_client(tunnel.address) == "reset"
        assert ended(tunnel) == ["connect_timeout"]
    assert "t: better: not connected in time: ssh://b: connection refused (client 127.0.0.1:" in caplog.text
    assert dialer().last_error is None


@pytest.mark.parametrize("factory", [Holding(), Upgrade(FakeDialer(*[None] * 20), "better")])
def test_nothing_is_left_of_attempts_that_were_given_up(factory):
    def attempts():
        return sum(isinstance(one, Attempt) for one in gc.get_objects())

    with relay.Tunnel(relay.listen(":0"), factory) as tunnel:
        gc.collect()
        before = attempts()
        gc.disable()
        try:
            for _ in range(20):
                relay.eventloop.sockets.reset(socket.create_connection(tunnel.address, timeout=WAIT))
            ended(tunnel, 20)
            wait_until(lambda: attempts() - before < 3)
        finally:
            gc.enable()


def test_steps_tell_once():
    told = []
    steps = CallbackChain(told.append)
    steps.finish(REFUSED)
    steps.finish(REFUSED)
    assert told == [REFUSED]


def test_a_bug_in_a_step_is_the_outcome(caplog):
    told, given = [], []
    steps = CallbackChain(told.append)
    steps.begin(lambda done: given.append(done) or (lambda: None), lambda outcome: {}[outcome])
    near, far = socket.socketpair()
    given[0](relay.Stream(near))
    assert str(told[0]) == "a bug in relay; the log has it" and told[0].reason == "factory_error"
    assert "a step of a connect failed" in caplog.text and "KeyError" in caplog.text
    with far:
        assert far.recv(1) == b""


def test_a_bug_in_an_explanation_leaves_the_error_as_it_is(dialer, caplog):
    with pytest.raises(relay.ConnectError, match="refused"):
        Upgrade(dialer(REFUSED, later=True), explain=lambda error: {}[error])()
    assert "KeyError" in caplog.text


def test_a_call_can_be_cancelled(dialer):
    factory, cancel = dialer(None), Cancellation()
    call = Thread(lambda: factory(cancel=cancel))
    wait_until(lambda: factory.asked)
    cancel.set()
    with pytest.raises(relay.ConnectError, match="given up"):
        call.result()
    assert factory.given_up.is_set()
    cancel.close()


def test_a_call_whose_deadline_nobody_keeps_ends(dialer, monkeypatch):
    monkeypatch.setattr("relay.streams.promise.LATE", 0.01)
    with pytest.raises(relay.ConnectError, match="no answer in time"):
        dialer(None)(deadline=time.monotonic() + 0.01)


def test_connect_gives_a_socket_that_lasts(dialer):
    factory = dialer()
    with factory.open_socket(None) as made:
        assert isinstance(made, socket.socket)
    assert factory.asked == [(None, True, False)]


def test_an_answer_that_comes_too_late_is_closed(dialer):
    answer = Promise()
    assert answer.get(time.monotonic() - 5, None) is None
    stream = dialer().make()
    answer.put(stream)
    assert stream.fileno() == -1


def upgraded(factory, upgrade):
    return Upgrade(factory, "better", begin=upgrade)


def test_an_upgrade_makes_another_stream(dialer):
    inner, other = dialer(later=True), dialer()

    def upgrade(stream, deadline, done):
        stream.close()
        Thread(lambda: done(other.make()))
        return lambda: None

    with upgraded(inner, upgrade)() as stream:
        assert stream.socket.getpeername() == other.far[0].getsockname()
        assert [number for number, _ in stream.path.steps] == [1, HANDSHAKE]
    assert inner.far[0].recv(1) == b""


def test_a_stream_that_is_not_upgraded_is_closed(dialer):
    def upgrade(stream, deadline, done):
        raise OSError("no room")

    inner = dialer()
    with pytest.raises(OSError, match="no room"):
        upgraded(inner, upgrade)()
    assert inner.far[0].recv(1) == b""


def test_steps_that_were_given_up_begin_nothing():
    steps = CallbackChain(lambda outcome: pytest.fail("it was given up"))
    steps.give_up()
    assert not steps.begin(lambda told: pytest.fail("it was given up"), None)


def test_an_upgrade_can_be_given_up(dialer):
    given_up = threading.Event()
    inner = dialer()

    def upgrade(stream, deadline, done):
        stream.close()
        return given_up.set

    steps = upgraded(inner, upgrade).dial(None, lambda outcome: pytest.fail("it was given up"))
    steps()
    assert given_up.is_set()


def test_it_closes_what_is_inside(dialer):
    inner = dialer()
    upgraded(inner, None).close()
    assert inner.closed


def test_what_is_given_up_while_it_begins_is_undone(dialer):
    undone = threading.Event()
    steps = CallbackChain(lambda outcome: pytest.fail("it was given up"))

    def begin(told):
        steps.give_up()
        return undone.set

    steps.begin(begin, lambda outcome: pytest.fail("it was given up"))
    assert undone.is_set()
    stream = dialer().make()
    steps.finish(stream)
    assert stream.fileno() == -1


def test_giving_up_what_is_finished_does_nothing():
    outcomes, undone = [], []
    steps = CallbackChain(outcomes.append)

    def begin(told):
        told(REFUSED)
        return lambda: undone.append(1)

    steps.begin(begin, steps.finish)
    steps.give_up()
    assert outcomes == [REFUSED]
    assert not undone


# -- in the thread of an engine ---------------------------------------------------------------------------------------


def test_a_dialer_serves_every_engine_unless_it_makes_a_difference(dialer):
    made = dialer()
    assert made.on("home") is made


def test_an_upgrade_runs_in_the_thread_of_the_engine_that_asked(dialer):
    begun = []

    def begin_on(home, stream, deadline, done):
        begun.append((home, deadline))
        done(stream)
        return lambda: None

    upgrade = Upgrade(dialer(), begin=lambda *_: pytest.fail("in another thread"), begin_on=begin_on)
    outcomes = []
    upgrade.on("home").dial(7.0, outcomes.append)
    assert begun == [("home", 7.0)]
    with outcomes[0]:
        assert outcomes[0].path.steps[-1][0] == HANDSHAKE


def test_an_upgrade_that_needs_a_kernel_socket_gets_one(dialer):
    inner = Upgrade(dialer(), begin=lambda *_: None, begin_on=lambda *_: None)
    outer = Upgrade(inner, begin=lambda *_: None)
    assert outer.on("home") is outer


def test_clearer_errors_leave_the_way_of_the_inner_dialer_open(dialer):
    explained = ConnectionRefusedError("clearer")
    refused = dialer(ConnectionRefusedError("less clear"))
    inner = Upgrade(refused, begin=lambda *_: None, begin_on=lambda *_: None)
    outer = Upgrade(inner, explain=lambda error: explained)
    chosen = outer.on("home")
    assert chosen is not outer
    assert chosen.inner is not inner
    assert outer.inner is inner, "other callers still get kernel sockets"
    outcomes = []
    chosen.dial(None, outcomes.append)
    assert outcomes == [explained]
