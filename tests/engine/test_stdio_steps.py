"""``relay.engine.stdio`` step by step: what a transfer waits for, how each part of it ends, and its limits."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
from types import SimpleNamespace
from typing import ClassVar

import pytest

import relay
from relay.engine import stdio as module
from relay.engine.descriptors import Readiness, SinkError, SourceError
from relay.engine.stdio import _Exchange, _failure, _reset_text, _State, _text, _until
from relay.streams.cancellation import Cancellation

NOW = 1234.5
SOURCE, SOCKET, SINK = 900, 901, 902  # numbers of descriptors, of which none is open


class Copier:
    """Copies as the test decides: what it waits for next, or an error; and how many bytes that moves."""

    def __init__(self):
        self.moved, self.outcomes, self.closed = 0, [], 0

    def move(self):
        outcome, size = self.outcomes.pop(0)
        self.moved += size
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    def close(self):
        self.closed += 1


class Direction:
    """A direction whose events the test sets."""

    def __init__(self, source, sink):
        self.source, self.sink = source, sink
        self.copier, self.wait_for, self.ended, self.interests = Copier(), Readiness.SOURCE, None, {}

    def interest(self, descriptor):
        return self.interests.get(descriptor, 0)


class Interests:
    """Notes what is waited for; its events are the test's."""

    def __init__(self, wake=-1):
        self.wake, self.calls, self.events = wake, [], []

    def set(self, *given):
        self.calls.append(given)

    def wait(self, milliseconds):
        self.calls.append(("wait", milliseconds))
        return self.events.pop(0)


class Stream:
    """A stream that notes its end."""

    answered, half_close, settle, failure, target, drained, size = True, True, None, None, "db:5432", None, 0

    def __init__(self):
        self.calls = []
        self.socket = SimpleNamespace(
            setblocking=lambda flag: self.calls.append(("setblocking", flag)),
            setsockopt=lambda *given: self.calls.append(given),
            fileno=lambda: SOCKET,
            family=socket.AF_INET,
        )

    def queued(self):
        return self.size

    def close(self):
        self.calls.append("close")

    def reset(self):
        self.calls.append("reset")


@pytest.fixture
def clock(monkeypatch):
    """The time, which passes as the test says."""
    found = SimpleNamespace(now=NOW)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: found.now))
    return found


@pytest.fixture
def eofs(monkeypatch):
    """Notes which sockets get an EOF."""
    found = []
    monkeypatch.setattr(module, "shut_down", found.append)
    return found


@pytest.fixture
def stream():
    return Stream()


@pytest.fixture
def make(stream, clock, eofs, monkeypatch):
    monkeypatch.setattr(module, "Direction", Direction)
    monkeypatch.setattr(module, "Interests", Interests)
    return lambda idle=None, linger=None: _Exchange(stream, SOURCE, SINK, idle, linger)


@pytest.fixture
def one(make):
    return make()


# -- the beginning and the end -------------------------------------------------------------------------------------


def test_it_begins(one, stream):
    assert stream.calls == [("setblocking", False), (socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)]
    assert (one._up.source, one._up.sink, one._down.source, one._down.sink) == (SOURCE, SOCKET, SOCKET, SINK)
    assert (one._idle, one._linger, one._last, one._queued) == (None, None, NOW, 0)
    assert (one._write_error, one._lost, one._state) == (None, False, _State.COPYING)
    assert one._interests.wake == -1
    assert not hasattr(stream, "received")


def test_a_unix_socket_takes_a_piece_at_once(make, stream):
    stream.socket.family = socket.AF_UNIX
    make()
    assert stream.calls[1:] == [(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 19)]


def test_a_socket_that_has_no_urgent_data_will_do(make, stream):
    def refuse(*_):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    stream.socket.setsockopt = refuse
    make()


def test_a_stream_that_has_not_answered_can_count(make, stream):
    stream.answered = False
    one = make()
    one._down.copier.moved = 7
    assert stream.received() == 7


@pytest.mark.parametrize(("moved", "answered"), [(0, False), (1, True)])
def test_its_end(make, stream, moved, answered):
    stream.answered = False
    one = make()
    one._down.copier.moved = moved
    one.close()
    assert (one._up.copier.closed, one._down.copier.closed) == (1, 1)
    assert stream.answered is answered


class Exchange:
    """A transfer that ends as the test says."""

    calls: ClassVar[list[object]] = []
    outcomes = (True, True)

    def __init__(self, *given):
        self.calls[:] = [given]

    def run(self, cancel):
        self.calls.append(("run", cancel))
        return self._outcome(0)

    def drain(self, cancel):
        self.calls.append(("drain", cancel))
        return self._outcome(1)

    def _outcome(self, number):
        outcome = self.outcomes[number]
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    def close(self):
        self.calls.append("close")


@pytest.mark.parametrize(
    ("outcomes", "steps", "ended"),
    [
        ((True, True), ["run", "drain", "close"], True),
        ((False, None), ["run", "close"], False),
        ((True, False), ["run", "drain", "close"], False),
        ((KeyboardInterrupt(), None), ["run", "close"], None),
        ((True, ValueError()), ["run", "drain", "close"], None),
    ],
)
def test_a_stream_is_closed_or_reset(stream, monkeypatch, outcomes, steps, ended):
    monkeypatch.setattr(module, "_Exchange", Exchange)
    monkeypatch.setattr(Exchange, "outcomes", outcomes)
    cancel = object()
    if ended is None:
        with pytest.raises((KeyboardInterrupt, ValueError)):
            module.carry(stream, 5, 6, idle_timeout=2, linger=0, cancel=cancel)
    else:
        assert module.carry(stream, 5, 6, idle_timeout=2, linger=0, cancel=cancel) is ended
    assert Exchange.calls[0] == (stream, 5, 6, 2.0, 0.0)
    assert [call if isinstance(call, str) else call[0] for call in Exchange.calls[1:]] == steps
    assert {call[1] for call in Exchange.calls[1:] if not isinstance(call, str)} == {cancel}
    assert stream.calls == ["close" if ended else "reset"]


def test_standard_input_and_output_are_the_client_if_no_other_is_given(stream, monkeypatch):
    monkeypatch.setattr(module, "_Exchange", Exchange)
    module.carry(stream)
    assert Exchange.calls[0] == (stream, 0, 1, None, None)


@pytest.mark.parametrize(("options", "text"), [({"idle_timeout": 0}, "^idle_timeout"), ({"linger": -1}, "^linger")])
def test_a_limit_that_cannot_be(stream, options, text):
    with pytest.raises(ValueError, match=text):
        module.carry(stream, **options)
    assert stream.calls == ["reset"]


# -- waiting -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("up", "down", "down_ended", "masks"),
    [
        ({}, {}, False, [(SOCKET, -1), (SOURCE, -1), (SINK, 0)]),
        ({SOURCE: 1}, {SOCKET: 1}, False, [(SOCKET, 1), (SOURCE, 1), (SINK, 0)]),
        ({SOCKET: 4}, {SOCKET: 1}, False, [(SOCKET, 5), (SOURCE, -1), (SINK, 0)]),
        ({SOCKET: 4}, {SINK: 4}, False, [(SOCKET, 4), (SOURCE, -1), (SINK, 4)]),
        ({SOURCE: 1}, {}, True, [(SOCKET, 0), (SOURCE, 1), (SINK, -1)]),
        ({SOCKET: 4}, {}, True, [(SOCKET, 4), (SOURCE, -1), (SINK, -1)]),
    ],
)
def test_what_is_watched(one, up, down, down_ended, masks):
    one._up.interests, one._down.interests = up, down
    one._down.ended = NOW if down_ended else None
    one._watch()
    assert one._interests.calls == masks


def test_a_copy_waits_and_moves(make, monkeypatch):
    one = make()
    moved, events = [], [{1: 2}, {3: 4}]
    interests = Interests()
    interests.events = list(events)
    wakes = []
    monkeypatch.setattr(module, "Interests", lambda wake: wakes.append(wake) or interests)

    def move(found):
        moved.append(found)
        if len(moved) == 2:
            one._state = _State.DONE

    monkeypatch.setattr(one, "_move", move)
    assert one.run(None) is True
    assert (moved, wakes) == (events, [-1])
    assert [call for call in interests.calls if call[0] == "wait"] == [("wait", None)] * 2


def test_it_stops_when_it_is_cancelled(make, monkeypatch):
    one = make()
    interests = Interests()
    interests.events = [{7: 1}]
    wakes = []
    monkeypatch.setattr(module, "Interests", lambda wake: wakes.append(wake) or interests)
    assert one.run(SimpleNamespace(fileno=lambda: 7)) is False
    assert wakes == [7]


@pytest.mark.parametrize(("passed", "looks"), [(4.9, 0), (5.0, 1), (6.0, 1)])
def test_a_limit_is_looked_at_when_it_is_due(make, clock, monkeypatch, passed, looks):
    one = make(idle=5.0)
    interests = Interests()
    interests.events = [{}]
    monkeypatch.setattr(module, "Interests", lambda wake: interests)
    looked = []

    def move(events):
        clock.now = NOW + passed
        one._state = _State.DONE

    monkeypatch.setattr(one, "_move", move)
    monkeypatch.setattr(one, "_look_at_limits", lambda: looked.append(True))
    one.run(None)
    assert len(looked) == looks
    assert interests.calls[-1] == ("wait", 5001.0)


@pytest.mark.parametrize(
    ("idle", "linger", "last", "up", "down", "due"),
    [
        (None, None, NOW, None, None, None),
        (5.0, None, NOW, None, None, NOW + 5),
        (None, 3.0, NOW, None, None, None),
        (None, 3.0, NOW, NOW + 1, None, NOW + 4),
        (None, 3.0, NOW, None, NOW + 2, NOW + 5),
        (None, 3.0, NOW + 4, NOW + 1, None, NOW + 7),
        (5.0, 3.0, NOW, NOW + 1, None, NOW + 4),
        (2.0, 3.0, NOW, NOW + 1, None, NOW + 2),
        (None, 0.0, NOW, NOW + 1, None, NOW + 1),
    ],
)
def test_the_next_limit(make, idle, linger, last, up, down, due):
    one = make(idle, linger)
    one._last, one._up.ended, one._down.ended = last, up, down
    assert one._due() == due


def test_the_input_has_a_moment_to_end_without_a_reader(make):
    one = make(idle=5.0)
    one._state, one._down.ended = _State.READER_GONE, NOW + 1
    assert one._due() == pytest.approx(NOW + 1.3)


@pytest.mark.parametrize(("due", "wait"), [(None, None), (NOW, 1.0), (NOW - 5, 1.0), (NOW + 2, 2001.0)])
def test_the_time_to_wait(clock, due, wait):
    assert _until(due) == wait


# -- moving --------------------------------------------------------------------------------------------------------

IN, OUT, HUP, ERR, INVALID = select.POLLIN, select.POLLOUT, select.POLLHUP, select.POLLERR, select.POLLNVAL
WAITS_FOR_SOURCE, WAITS_FOR_SINK = Readiness.SOURCE, Readiness.SINK


@pytest.fixture
def steps(one, monkeypatch):
    """Notes which steps a turn takes."""
    found = []
    for name in ("_move_up", "_move_down", "_reader_gone", "_on_hang_up"):
        monkeypatch.setattr(one, name, lambda name=name: found.append(name))
    return found


@pytest.mark.parametrize(
    ("up", "down", "events", "taken"),
    [
        (WAITS_FOR_SOURCE, WAITS_FOR_SOURCE, {}, []),
        (WAITS_FOR_SOURCE, WAITS_FOR_SOURCE, {SOURCE: IN}, ["_move_up"]),
        (WAITS_FOR_SOURCE, WAITS_FOR_SOURCE, {SOURCE: HUP}, ["_move_up"]),
        (WAITS_FOR_SOURCE, WAITS_FOR_SOURCE, {SOCKET: IN}, ["_move_down"]),
        (WAITS_FOR_SOURCE, WAITS_FOR_SOURCE, {SOCKET: HUP}, ["_move_down"]),
        (WAITS_FOR_SOURCE, WAITS_FOR_SOURCE, {SOCKET: ERR}, ["_move_down"]),
        (WAITS_FOR_SOURCE, WAITS_FOR_SOURCE, {SOCKET: INVALID}, ["_move_down"]),
        (WAITS_FOR_SOURCE, WAITS_FOR_SOURCE, {SOCKET: OUT}, []),
        (WAITS_FOR_SINK, WAITS_FOR_SOURCE, {SOCKET: OUT}, ["_move_up"]),
        (WAITS_FOR_SINK, WAITS_FOR_SOURCE, {SOCKET: IN}, ["_move_down"]),
        (WAITS_FOR_SINK, WAITS_FOR_SOURCE, {SOCKET: IN | OUT}, ["_move_down", "_move_up"]),
        (WAITS_FOR_SINK, WAITS_FOR_SOURCE, {SOCKET: HUP}, ["_move_down", "_move_up"]),
        (WAITS_FOR_SINK, WAITS_FOR_SOURCE, {SOURCE: IN}, []),
        (WAITS_FOR_SOURCE, WAITS_FOR_SINK, {SOCKET: IN}, []),
        (WAITS_FOR_SOURCE, WAITS_FOR_SINK, {SINK: OUT}, ["_move_down"]),
        (WAITS_FOR_SOURCE, WAITS_FOR_SINK, {SINK: ERR}, ["_move_down"]),
        (WAITS_FOR_SOURCE, WAITS_FOR_SOURCE, {SINK: ERR}, ["_reader_gone"]),
        (WAITS_FOR_SOURCE, WAITS_FOR_SOURCE, {SINK: HUP, SOURCE: IN}, ["_reader_gone", "_move_up"]),
        (WAITS_FOR_SOURCE, WAITS_FOR_SOURCE, {SINK: OUT}, []),
    ],
)
def test_which_directions_move(one, steps, up, down, events, taken):
    one._up.wait_for, one._down.wait_for = up, down
    one._move(events)
    assert steps == taken


@pytest.mark.parametrize(
    ("up_ended", "events", "taken"),
    [
        (False, {SOCKET: HUP}, ["_on_hang_up"]),
        (False, {SOCKET: IN}, []),
        (False, {SOCKET: HUP, SOURCE: IN}, ["_move_up"]),
        (False, {}, []),
        (True, {SOCKET: HUP}, []),
        (True, {SOURCE: IN}, []),
    ],
)
def test_after_the_end_of_the_stream(one, steps, up_ended, events, taken):
    one._down.ended = NOW
    one._up.ended = NOW if up_ended else None
    one._move(events)
    assert steps == taken


def test_a_turn_that_ends_it_moves_no_more(one, steps, monkeypatch):
    def move_down():
        one._state = _State.DONE

    monkeypatch.setattr(one, "_move_down", move_down)
    one._move({SOCKET: IN, SOURCE: IN})
    assert steps == []


@pytest.mark.parametrize("name", ["up", "down"])
@pytest.mark.parametrize(("moved", "last"), [(0, NOW), (5, NOW + 9)])
def test_a_byte_that_moves_has_a_time(one, clock, name, moved, last):
    direction = one._up if name == "up" else one._down
    direction.copier.moved = 3
    direction.copier.outcomes = [(Readiness.SINK, moved)]
    clock.now = NOW + 9
    (one._move_up if name == "up" else one._move_down)()
    assert (direction.wait_for, one._last) == (Readiness.SINK, last)


def caused(error, cause):
    error.__cause__ = cause
    return error


def test_an_input_that_cannot_be_read(one):
    cause = OSError(errno.EIO, "Input/output error")
    one._up.copier.outcomes = [(caused(SourceError(), cause), 0)]
    with pytest.raises(relay.RelayError, match=r"^standard input: Input/output error$") as caught:
        one._move_up()
    assert isinstance(caught.value.__cause__, SourceError)


def test_an_output_that_cannot_be_written(one):
    cause = OSError(errno.ENOSPC, "No space left on device")
    one._down.copier.outcomes = [(caused(SinkError(), cause), 0)]
    with pytest.raises(relay.RelayError, match=r"^standard output: No space left on device$") as caught:
        one._move_down()
    assert caught.value.__cause__ is cause
    assert one._lost is False


def test_an_output_whose_reader_is_gone(one, clock):
    one._down.copier.outcomes = [(caused(SinkError(), BrokenPipeError()), 5)]
    clock.now = NOW + 9
    one._move_down()
    assert (one._lost, one._state, one._down.ended, one._last) == (True, _State.READER_GONE, NOW + 9, NOW + 9)


def test_a_stream_that_fails(one):
    one._down.copier.outcomes = [(caused(SourceError(), ConnectionResetError(errno.ECONNRESET, "reset")), 0)]
    with pytest.raises(relay.RelayError, match=r"^db:5432: the connection was reset; the transfer was cut$") as caught:
        one._move_down()
    assert isinstance(caught.value.__cause__, SourceError)


def test_a_stream_that_takes_no_more(one, clock):
    error = BrokenPipeError()
    one._up.copier.outcomes = [(caused(SinkError(), error), 5)]
    clock.now = NOW + 9
    one._move_up()
    assert (one._write_error, one._state) == (error, _State.INPUT_ENDED)
    assert (one._up.ended, one._last) == (NOW + 9, NOW + 9)


# -- ends ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("half_close", [True, False])
def test_the_input_ends(one, stream, clock, eofs, half_close):
    stream.half_close = half_close
    one._up.copier.outcomes = [(Readiness.NOTHING, 0)]
    clock.now = NOW + 9
    one._move_up()
    assert (one._up.ended, one._state, eofs) == (NOW + 9, _State.INPUT_ENDED, [SOCKET] if half_close else [])


def test_the_input_ends_after_the_stream(one, eofs):
    one._state = _State.STREAM_ENDED
    one._input_ended()
    assert (one._state, eofs) == (_State.DONE, [])


@pytest.mark.parametrize("lost", [True, False])
@pytest.mark.parametrize("how", ["_input_ended", "_on_write_error", "_on_hang_up"])
def test_the_input_ends_without_a_reader(one, how, lost):
    one._state, one._lost = _State.READER_GONE, lost
    step = (lambda: one._on_write_error(OSError())) if how == "_on_write_error" else getattr(one, how)
    if lost:
        with pytest.raises(BrokenPipeError, match="standard output: its reader has closed it") as caught:
            step()
        assert caught.value.errno == errno.EPIPE
    else:
        step()
        assert one._state is _State.DONE


@pytest.mark.parametrize("lost", [True, False])
def test_the_reader_goes_after_the_input(one, lost):
    one._state, one._lost = _State.INPUT_ENDED, lost
    if lost:
        with pytest.raises(BrokenPipeError, match="its reader has closed it"):
            one._reader_gone()
    else:
        one._reader_gone()
        assert one._state is _State.DONE
    assert one._down.ended == NOW


@pytest.fixture
def output(one, monkeypatch):
    """Notes that the output is closed, and whether the input is a terminal."""
    found = SimpleNamespace(closed=0, is_terminal=False)

    def close():
        found.closed += 1

    monkeypatch.setattr(one, "_close_output", close)
    monkeypatch.setattr(module.os, "isatty", lambda descriptor: descriptor == SOURCE and found.is_terminal)
    return found


@pytest.mark.parametrize(
    ("state", "half_close", "is_terminal", "following"),
    [
        (_State.COPYING, True, False, _State.STREAM_ENDED),
        (_State.COPYING, False, False, _State.DONE),
        (_State.COPYING, True, True, _State.DONE),
        (_State.INPUT_ENDED, True, False, _State.DONE),
    ],
)
def test_the_stream_ends(one, stream, clock, output, state, half_close, is_terminal, following):
    one._state, stream.half_close, output.is_terminal = state, half_close, is_terminal
    one._down.copier.outcomes = [(Readiness.NOTHING, 0)]
    clock.now = NOW + 9
    one._move_down()
    assert (one._state, one._down.ended) == (following, NOW + 9)
    assert output.closed == (following is _State.STREAM_ENDED)


@pytest.mark.parametrize(
    ("answered", "moved", "up_ended", "half_close", "is_empty"),
    [
        (False, 0, None, True, True),
        (False, 0, NOW, False, True),
        (False, 0, None, False, True),
        (False, 0, NOW, True, False),
        (True, 0, None, True, False),
        (False, 1, None, True, False),
    ],
)
def test_a_stream_that_ends_before_any_byte(one, stream, output, answered, moved, up_ended, half_close, is_empty):
    stream.answered, stream.half_close = answered, half_close
    one._down.copier.moved, one._up.ended = moved, up_ended
    if is_empty:
        text = "^db:5432: closed before sending any data; check that the service is running$"
        with pytest.raises(relay.ConnectError, match=text):
            one._stream_ended()
    else:
        one._stream_ended()
        assert one._down.ended == NOW


def test_a_stream_without_a_name(one, stream):
    stream.answered, stream.target = False, None
    with pytest.raises(relay.ConnectError, match="^the stream: closed"):
        one._stream_ended()


def test_a_failure_that_is_known_a_moment_later(one, stream, monkeypatch):
    waited = []
    monkeypatch.setattr(module.select, "select", lambda *given: waited.append(given))
    stream.settle, stream.failure = 0.25, lambda: relay.CarrierError("lost")
    with pytest.raises(relay.CarrierError, match="lost"):
        one._stream_ended()
    assert waited == [([], [], [], 0.25)]


def test_the_error_that_was_kept(one, output):
    one._write_error = OSError(errno.ETIMEDOUT, "Connection timed out")
    with pytest.raises(relay.RelayError, match=r"^db:5432: the connection was lost \(Connection timed out\)$"):
        one._stream_ended()


def test_bytes_that_are_refused_after_the_end_of_the_stream(one, stream):
    one._state = _State.STREAM_ENDED
    with pytest.raises(relay.RelayError, match="^db:5432: the connection was reset; the transfer was cut$"):
        one._on_write_error(BrokenPipeError(errno.EPIPE, "Broken pipe"))
    assert one._up.ended == NOW
    failure = relay.CarrierError("lost")
    stream.failure = lambda: failure
    with pytest.raises(relay.CarrierError) as caught:
        one._on_write_error(BrokenPipeError())
    assert caught.value is failure


@pytest.mark.parametrize("is_one_socket", [True, False])
def test_the_output_becomes_the_null_device(one, ends, eofs, is_one_socket):
    near, _ = ends
    read, write = os.pipe()
    sink = os.dup(near.fileno()) if is_one_socket else os.dup(write)
    os.close(write)
    one._up.source, one._down.sink = near.fileno(), sink
    before = len(os.listdir("/proc/self/fd"))
    one._close_output()
    assert len(os.listdir("/proc/self/fd")) == before
    assert one._interests.calls == [(sink, -1)]
    assert one._down.copier.closed == 1
    assert eofs == ([sink] if is_one_socket else [])
    assert os.readlink(f"/proc/self/fd/{sink}") == os.devnull
    assert not os.get_inheritable(sink)
    assert os.read(sink, 1) == b""
    if not is_one_socket:
        assert os.read(read, 1) == b"", "its reader sees the end"
    for descriptor in (read, sink):
        os.close(descriptor)


def test_a_hang_up_after_the_end_of_the_stream(one, ends):
    near, _ = ends
    one._state, one._up.sink = _State.STREAM_ENDED, near.fileno()
    one._on_hang_up()
    assert one._state is _State.DONE
    assert near.fileno() >= 0


def test_a_reset_after_the_end_of_the_stream(one, monkeypatch):
    found = []
    monkeypatch.setattr(one, "_failure_or", lambda error: found.append(error) or relay.RelayError("the error"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
        far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        far.close()
        poller = select.poll()
        poller.register(near, 0)
        assert poller.poll(10_000)
        one._state, one._up.sink = _State.STREAM_ENDED, near.fileno()
        with near, pytest.raises(relay.RelayError, match="^the error$"):
            one._on_hang_up()
    (error,) = found
    assert (error.errno, error.strerror) == (errno.ECONNRESET, os.strerror(errno.ECONNRESET))


# -- the last bytes ------------------------------------------------------------------------------------------------


def test_nothing_is_waited_for_where_the_kernel_sends(one, eofs):
    assert one.drain(None) is True
    assert (eofs, one._state) == ([], _State.COPYING)


@pytest.mark.parametrize("cancelled", [True, False])
def test_what_was_sent_leaves_this_process(one, stream, eofs, cancelled):
    cancel = Cancellation()

    def drained(done):
        assert one._state is _State.DRAINING
        assert eofs == [SOCKET]
        (cancel.set if cancelled else done)()

    stream.drained = drained
    cancel.fileno()  # which opens it
    before = len(os.listdir("/proc/self/fd"))
    assert one.drain(cancel) is not cancelled
    assert len(os.listdir("/proc/self/fd")) == before
    cancel.close()


def test_a_failure_by_then(one, stream):
    stream.drained = lambda done: done()
    failure = relay.CarrierError("lost")
    stream.failure = lambda: failure
    with pytest.raises(relay.CarrierError) as caught:
        one.drain(None)
    assert caught.value is failure


@pytest.mark.parametrize("cancellable", [True, False])
def test_its_limits_are_looked_at_meanwhile(make, stream, monkeypatch, cancellable):
    one = make(idle=0.001)
    looked = []

    def look():
        looked.append(True)
        if len(looked) == 2:
            done[0]()

    done = []
    stream.drained = done.append
    monkeypatch.setattr(one, "_look_at_limits", look)
    with contextlib.closing(Cancellation()) as cancel:
        assert one.drain(cancel if cancellable else None) is True
    assert len(looked) == 2


# -- limits --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("idle", "state", "passed"), [(None, _State.COPYING, 99), (5.0, _State.COPYING, 4.9), (5.0, _State.DONE, 99)]
)
def test_no_limit_is_reached(make, clock, idle, state, passed):
    one = make(idle)
    one._state = state
    clock.now = NOW + passed
    one._look_at_limits()
    assert one._state is state


def test_a_time_without_a_byte(make, clock):
    one = make(idle=5.0)
    clock.now = NOW + 5
    text = r"^db:5432: no byte has moved for 5 s \(--idle-timeout\); check the target$"
    with pytest.raises(relay.RelayError, match=text):
        one._look_at_limits()


@pytest.mark.parametrize("state", [_State.INPUT_ENDED, _State.DRAINING])
@pytest.mark.parametrize("half_close", [True, False])
def test_a_time_after_one_end(make, stream, clock, state, half_close):
    one = make(idle=50.0, linger=3.0)
    one._state, one._up.ended, stream.half_close = state, NOW, half_close
    clock.now = NOW + 3
    if half_close or state is _State.DRAINING:
        text = r"^db:5432: no byte has come for 3 s after one end \(--linger\); check the target$"
        with pytest.raises(relay.RelayError, match=text):
            one._look_at_limits()
    else:
        one._look_at_limits()
        assert one._state is _State.DONE, "that was the answer"


def test_an_input_that_goes_on_without_a_reader(one, clock):
    one._state, one._down.ended = _State.READER_GONE, NOW
    clock.now = NOW + 0.3
    with pytest.raises(BrokenPipeError, match="its reader has closed it") as caught:
        one._look_at_limits()
    assert caught.value.errno == errno.EPIPE


@pytest.mark.parametrize(("idle", "linger"), [(5.0, None), (None, 5.0)])
def test_bytes_that_leave_the_kernel_have_moved(make, stream, clock, idle, linger):
    one = make(idle, linger)
    one._up.ended = NOW
    stream.size = 100
    clock.now = NOW + 5
    one._look_at_limits()
    assert (one._queued, one._last) == (100, NOW + 5)
    clock.now = NOW + 10
    with pytest.raises(relay.RelayError):
        one._look_at_limits()
    one._queued, stream.size = 100, 0
    with pytest.raises(relay.RelayError):
        one._look_at_limits()


def test_a_limit_of_no_time_leaves_no_time_for_them(make, stream, clock):
    one = make(linger=0.0)
    one._up.ended = NOW
    stream.size = 100
    with pytest.raises(relay.RelayError):
        one._look_at_limits()
    assert one._queued == 0
    one = make(idle=5.0, linger=0.0)
    one._up.ended = NOW
    clock.now = NOW + 5
    with pytest.raises(relay.RelayError, match="no byte has come for 0 s"):
        one._look_at_limits()
    assert (one._queued, one._last) == (100, NOW + 5)


# -- texts ---------------------------------------------------------------------------------------------------------


def test_texts():
    assert _text(OSError(errno.EPIPE, "Broken pipe")) == "Broken pipe"
    assert _text(OSError("strange")) == "strange"
    assert _text(ValueError("odd")) == "odd"
    assert _text(None) == "None"
    cut = "the connection was reset; the transfer was cut"
    for number in (errno.EPIPE, errno.ECONNRESET):
        assert _reset_text(OSError(number, "text")) == cut
    assert _reset_text(OSError(errno.EIO, "text")) == "the connection was lost (text)"
    assert _reset_text(ValueError("odd")) == "the connection was lost (odd)"


def test_a_stream_may_know_why_it_failed(stream):
    assert _failure(stream) is None
    stream.failure = lambda: "why"
    assert _failure(stream) == "why"
