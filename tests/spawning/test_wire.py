"""``relay.spawning.wire``: what a program and its child say to each other."""

import itertools
import logging
import socket
import ssl
import time

import pytest
from helpers import Thread
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import relay
from relay.engine.records import ConnectionRecord
from relay.spawning.wire import (
    Channel,
    encode,
    from_error,
    from_log_record,
    to_address,
    to_error,
    to_log_record,
    to_record,
)


@pytest.fixture
def pair():
    near, far = socket.socketpair()
    with near, far:
        yield near, far


def over_the_wire(value):
    """``value`` as the other side gets it."""
    near, far = socket.socketpair()
    with near, far:
        sending = Thread(Channel(near).send, {"value": value})
        received = Channel(far).receive(time.monotonic() + 10)
        sending.result()
        assert received is not None
        return received["value"]


def test_messages_arrive_one_by_one(pair):
    near, far = pair
    for number in range(3):
        Channel(near).send({"number": number})
    near.close()
    channel = Channel(far)
    assert [channel.receive(), channel.receive(), channel.receive()] == [{"number": 0}, {"number": 1}, {"number": 2}]
    assert channel.receive() is None
    assert channel.receive() is None


def test_a_message_that_the_end_cut_short_is_none(pair):
    near, far = pair
    near.sendall(encode({"whole": 1}) + encode({"cut": 2})[:-1])
    near.close()
    channel = Channel(far)
    assert channel.receive() == {"whole": 1}
    assert channel.receive() is None


def test_a_deadline_loses_nothing(pair):
    near, far = pair
    line = encode({"text": "slowly"})
    channel = Channel(far)
    near.sendall(line[:5])
    with pytest.raises(TimeoutError):
        channel.receive(time.monotonic())
    near.sendall(line[5:])
    assert channel.receive(time.monotonic() + 10) == {"text": "slowly"}


def test_a_peer_that_takes_nothing(pair):
    with pytest.raises(TimeoutError):
        Channel(pair[0]).send({"much": "x" * (1 << 22)}, time.monotonic() + 0.05)


def test_a_peer_that_is_gone(pair):
    near, far = pair
    far.close()
    with pytest.raises(BrokenPipeError):
        Channel(near).send({})


def test_a_large_message(pair):
    value = ["x" * 1000, 1, None, {"a": [True, 0.5]}] * 2000
    assert over_the_wire(value) == value


@pytest.mark.parametrize(
    "address", [("127.0.0.1", 80), ("::1", 80, 0, 0), "/run/socket", "", b"\0abstract\xff\n", "/run/\udcff\n", None]
)
def test_every_kind_of_address(address):
    assert to_address(over_the_wire(address)) == address


def test_a_record():
    record = ConnectionRecord(("127.0.0.1", 5), None, 0.25, 1 << 60, 0, "copy", "closed", "done")
    record = record._replace(hop_times=(("1:ssh", 0.5), ("2:target", 0.25)), carrier="ssh://a", attempts=2)
    assert to_record(over_the_wire(record)) == record
    assert type(to_record(over_the_wire(record)).peer) is tuple


@pytest.mark.parametrize(
    "error",
    [
        relay.AddressError("no port"),
        relay.ConnectError("refused", reason="refused"),
        relay.SAMError("no", result="I2P_ERROR"),
        relay.RelayError("something"),
        ValueError("nconnect: 0"),
        TypeError("name: 7"),
        OSError(98, "in use"),
        PermissionError(13, "not allowed", "/run/socket"),
        TimeoutError("timed out"),
        socket.gaierror(-2, "not known"),
        UnicodeDecodeError("ascii", b"\xff", 0, 1, "not ascii"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_stays_what_it_was(error):
    came = to_error(over_the_wire(from_error(error)))
    assert type(came) is type(error)
    assert str(came) == str(error)
    assert came.args == error.args
    assert vars(came) == vars(error)
    for name in ("errno", "strerror", "filename"):
        assert getattr(came, name, None) == getattr(error, name, None)


class OwnValueError(ValueError):
    """One that the other side does not know."""


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (OwnValueError("of its own"), ValueError, "of its own"),
        (ssl.SSLError(1, "no start line"), relay.RelayError, "SSLError: no start line"),
        (KeyError("what"), relay.RelayError, "KeyError: 'what'"),
    ],
)
def test_an_unknown_error_becomes_the_nearest_one(error, kind, text):
    came = to_error(over_the_wire(from_error(error)))
    assert type(came) is kind
    assert text in str(came)


def log_record(text, *args, **extra):
    return logging.getLogger("relay.test").makeRecord(
        "relay.test", logging.INFO, __file__, 7, text, args, extra.pop("exc_info", None), extra=extra
    )


def test_a_log_record_is_written_out():
    record = log_record("%s of %d", "one", 2, anything=object())
    came = to_log_record(over_the_wire(from_log_record(record)))
    assert came.getMessage() == "one of 2"
    for name in ("name", "levelno", "levelname", "pathname", "lineno", "created", "process", "threadName"):
        assert getattr(came, name) == getattr(record, name)
    assert "object object" in came.anything


def test_a_log_record_with_its_traceback_and_its_connection():
    connection = ConnectionRecord(("::1", 5, 0, 0), "db:5432", 1.5, 1, 2, "splice", "closed", "idle")
    try:
        raise LookupError("deep down")
    except LookupError as error:
        record = log_record("failed", exc_info=(type(error), error, error.__traceback__), connection=connection)
    came = to_log_record(over_the_wire(from_log_record(record)))
    assert came.connection == connection
    assert "LookupError: deep down" in logging.Formatter().format(came)
    assert "Traceback" in logging.Formatter().format(came)


PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
NESTED = PLAIN | st.lists(PLAIN, max_size=3) | st.dictionaries(st.text(), PLAIN, max_size=3)
VALUES = NESTED | st.lists(NESTED, max_size=3) | st.dictionaries(st.text(), NESTED, max_size=3)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    messages=st.lists(st.dictionaries(st.text(), VALUES), max_size=5), cuts=st.lists(st.integers(0, 500), max_size=9)
)
def test_whatever_the_pieces_the_messages_are_the_same(messages, cuts):
    wire = b"".join(map(encode, messages))
    places = sorted({0, len(wire), *(cut % (len(wire) + 1) for cut in cuts)})
    near, far = socket.socketpair()
    with near, far:
        channel, came = Channel(far), []
        for start, end in itertools.pairwise(places):
            near.sendall(wire[start:end])
            while len(came) < wire[:end].count(b"\n"):
                came.append(channel.receive(time.monotonic() + 10))
        assert came == messages
