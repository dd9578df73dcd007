"""``relay.transports.i2p.messages``: SAM as values, and whatever bytes there are."""

import copy
import pickle

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import relay
from relay.addresses.destinations import PrivateKey
from relay.transports.i2p.messages import (
    LONGEST,
    Message,
    MessageError,
    UnreachableError,
    dest_generate,
    hello,
    naming_lookup,
    parse,
    parse_peer,
    ping,
    pong,
    session_create,
    shown,
    stream_accept,
    stream_connect,
    stream_forward,
    unreachable,
)

KEY = PrivateKey.generate()
FUZZED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

# Parsing.


@pytest.mark.parametrize(
    ("line", "words", "options"),
    [
        ("HELLO REPLY RESULT=OK VERSION=3.1", "HELLO REPLY", {"RESULT": "OK", "VERSION": "3.1"}),
        ("STREAM STATUS RESULT=OK", "STREAM STATUS", {"RESULT": "OK"}),
        ("STREAM STATUS  RESULT=OK\t X=1 ", "STREAM STATUS", {"RESULT": "OK", "X": "1"}),
        ("NAMING REPLY VALUE=abc== NAME=x RESULT=OK", "NAMING REPLY", {"VALUE": "abc==", "NAME": "x", "RESULT": "OK"}),
        ('A B M="two words" N=1', "A B", {"M": "two words", "N": "1"}),
        (r'A B M="a \"b\" \\ c:\d"', "A B", {"M": r'a "b" \ c:\d'}),
        (r"A B M=c:\dir N=a\\b", "A B", {"M": r"c:\dir", "N": r"a\\b"}),
        ('A B M=5"disk N="" O=', "A B", {"M": '5"disk', "N": "", "O": ""}),
        ("A B X=1 X=2", "A B", {"X": "1"}),
        ("A B C D=1", "A B", {"C": "", "D": "1"}),
        ("A B MESSAGE=Unknown STYLE", "A B", {"MESSAGE": "Unknown", "STYLE": ""}),
        (
            "SESSION STATUS RESULT=I2P_ERROR MESSAGE=schön",
            "SESSION STATUS",
            {"RESULT": "I2P_ERROR", "MESSAGE": "schön"},
        ),
        ("QUIT", "QUIT", {}),
        ("HELLO RESULT=OK", "HELLO", {"RESULT": "OK"}),
    ],
)
@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_a_line_is_read(line, words, options, end):
    message = parse((line + end).encode())
    assert message.words == tuple(words.split())
    assert list(message.options.items()) == list(options.items())
    assert message.text == ""
    assert message.result == options.get("RESULT", "")


@pytest.mark.parametrize(
    ("line", "text"),
    [(b"PING", ""), (b"PING ", ""), (b"PING ABC", "ABC"), (b"PING a  b=c\r\n", "a  b=c"), (b'PONG "x\n', '"x')],
)
def test_the_text_of_a_ping_is_taken_as_it_is(line, text):
    assert parse(line) == Message((line[:4].decode(),), {}, text)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"", "not SAM"),
        (b"HTTP/1.1 400 Bad Request\r\n", "not SAM: 'HTTP/1.1 400 Bad Request'"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "not SAM"),
        (b"hello reply RESULT=OK", "not SAM"),
        (b" STREAM STATUS", "not SAM"),
        (b"STREAM STATUS =OK", "STREAM STATUS: an option without a name"),
        (b'SESSION STATUS M="a b', "SESSION STATUS: a quoted value that does not end"),
        (b'SESSION STATUS M="a"b', "continues after its closing quote"),
        (b'SESSION STATUS M="a\\"', "does not end"),
        (b"STREAM STATUS M=\xff", "not valid UTF-8"),
        (b"STREAM STATUS M=a\0b", "control characters"),
        (b"STREAM STATUS M=\x1b[31m", "control characters"),
        (b"STREAM STATUS M=\x7f", "control characters"),
        (b"STREAM STATUS M=a\r", "control characters"),
        (b"STREAM STATUS M=\xc2\x9b31m", "control characters"),
        (b"STREAM STATUS\nSTREAM STATUS\n", "control characters"),
        (b"STREAM STATUS M=" + b"x" * LONGEST, "more than 8192 bytes"),
    ],
)
def test_what_is_no_sam_is_said_in_one_short_line(line, problem):
    with pytest.raises(MessageError, match=problem) as raised:
        parse(line)
    assert isinstance(raised.value, relay.SAMError)
    assert raised.value.result == ""
    assert len(str(raised.value)) < 160
    assert str(raised.value).isprintable()
    assert raised.value.__context__ is None or raised.value.__suppress_context__


@pytest.mark.parametrize("tail", ["PASSWORD", "PRIV", "DESTINATION", "i2cp.leaseSetPrivKey"])
def test_no_error_repeats_a_value(tail):
    with pytest.raises(MessageError) as raised:
        parse(f'SESSION STATUS {tail}="sesame'.encode())
    assert "sesame" not in str(raised.value)


def test_a_long_line_of_quotes_takes_no_time():
    """The parser goes over a line once; one that tried again from each quote would not end before the time-out."""
    for line in (b'A B M="' + b'\\"' * 4000, b"A B " + b'M="" ' * 1600, b"A B " + b'"' * 8000, b"A B " + b"x " * 4000):
        try:
            parse(line)
        except MessageError:
            pass


# Building.


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: hello(), "HELLO VERSION MIN=3.1 MAX=3.3"),
        (lambda: hello("3.2", "3.2", "me", "a b"), 'HELLO VERSION MIN=3.2 MAX=3.2 USER=me PASSWORD="a b"'),
        (lambda: hello(user="me", password=r'"\x'), r'HELLO VERSION MIN=3.1 MAX=3.3 USER=me PASSWORD="\"\\x"'),
        (lambda: hello(user="a\tb", password=r"c:\d"), 'HELLO VERSION MIN=3.1 MAX=3.3 USER="a\tb" PASSWORD="c:\\\\d"'),
        (
            lambda: session_create(id="s", options={"inbound.length": "1"}),
            "SESSION CREATE STYLE=STREAM ID=s DESTINATION=TRANSIENT SIGNATURE_TYPE=7 inbound.length=1",
        ),
        (lambda: session_create(id="s", destination="key="), "SESSION CREATE STYLE=STREAM ID=s DESTINATION=key="),
        (
            lambda: session_create("RAW", id="s", options={"SIGNATURE_TYPE": "11"}),
            "SESSION CREATE STYLE=RAW ID=s DESTINATION=TRANSIENT SIGNATURE_TYPE=11",
        ),
        (lambda: stream_connect("s", "there"), "STREAM CONNECT ID=s DESTINATION=there SILENT=false"),
        (
            lambda: stream_connect("s", "there", from_port=0, to_port=80),
            "STREAM CONNECT ID=s DESTINATION=there SILENT=false FROM_PORT=0 TO_PORT=80",
        ),
        (lambda: stream_accept("s"), "STREAM ACCEPT ID=s SILENT=false"),
        (lambda: stream_forward("s", 7000), "STREAM FORWARD ID=s PORT=7000 SILENT=false"),
        (lambda: stream_forward("s", 7000, host="::1"), "STREAM FORWARD ID=s PORT=7000 HOST=::1 SILENT=false"),
        (lambda: naming_lookup("ME"), "NAMING LOOKUP NAME=ME"),
        (lambda: dest_generate(), "DEST GENERATE SIGNATURE_TYPE=7"),
        (lambda: ping(), "PING"),
        (lambda: pong(), "PONG"),
        (lambda: ping(" x  y"), "PING  x  y"),
        (lambda: pong("1 = 1"), "PONG 1 = 1"),
        (lambda: Message(("A", "B"), {"K": "", "L": "ä"}), "A B K= L=ä"),
    ],
)
def test_a_message_is_one_line(make, line):
    message = make()
    assert message.encode() == f"{line}\n".encode()
    assert parse(message.encode()) == message


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        (naming_lookup("a\nb"), "NAME: has a control character"),
        (naming_lookup("a\0b"), "NAME: has"),
        (naming_lookup("a\udc80"), "half a surrogate pair"),
        (naming_lookup("x" * LONGEST), f"a line of {LONGEST + 20} bytes"),
        (ping("a\r"), "PING: has"),
        (Message(()), "not a SAM command"),
        (Message(("a",)), "not a SAM command"),
        (Message(("A", "B", "C")), "not a SAM command"),
        (Message(("PING", "B")), "a text, no second word"),
        (Message(("PING",), {"A": "B"}), "no options"),
        (Message(("A", "B"), text="x"), "options and no text"),
        (Message(("A", "B"), {"": "x"}), "option '': expected"),
        (Message(("A", "B"), {"a b": "x"}), "option 'a b': expected"),
        (Message(("A", "B"), {"a\n": "x"}), "option name: has"),
    ],
)
def test_what_no_line_can_say_is_refused(message, problem):
    with pytest.raises(ValueError, match=problem):
        message.encode()


def test_the_longest_line_is_both_written_and_read():
    message = naming_lookup("x" * (LONGEST - len(b"NAMING LOOKUP NAME=\n")))
    assert len(message.encode()) == LONGEST
    assert parse(message.encode()) == message
    with pytest.raises(MessageError, match="more than 8192 bytes"):
        parse(message.encode()[:-1] + b"x\n")


def test_the_head_of_a_session_is_no_option():
    with pytest.raises(ValueError, match="ID: not a session option"):
        session_create(id="s", options={"ID": "t"})


@pytest.mark.parametrize("problem", ["\n", "\udc80"])
def test_no_secret_is_in_what_is_raised(problem):
    with pytest.raises(ValueError) as raised:  # noqa: PT011  (whatever it says, it does not say that)
        hello(user="me", password=f"sesame{problem}").encode()
    assert "sesame" not in repr(raised.value)
    assert raised.value.__context__ is None or raised.value.__suppress_context__


@pytest.mark.parametrize(
    "message",
    [
        hello(user="me", password="sesame"),
        session_create(id="s", destination="sesame"),
        session_create(id="s", options={"i2cp.leaseSetPrivKey": "sesame", "i2cp.leaseSetClient.psk.1": "a:sesame"}),
        session_create(id="s", options={"i2cp.leaseSetSecret": "sesame"}),
        Message(("SESSION", "STATUS"), {"RESULT": "OK", "DESTINATION": "sesame"}),
        Message(("DEST", "REPLY"), {"PUB": "p", "PRIV": "sesame"}),
    ],
)
def test_a_repr_shows_no_secret(message):
    assert "sesame" not in repr(message)
    assert "***" in repr(message)


def test_a_repr_shows_the_rest():
    assert repr(session_create(id="s")) == (
        "<SESSION CREATE STYLE='STREAM' ID='s' DESTINATION='TRANSIENT' SIGNATURE_TYPE='7'>"
    )
    assert repr(stream_connect("s", "x" * 600)) == f"<STREAM CONNECT ID='s' DESTINATION='{'x' * 60}…' SILENT='false'>"
    assert repr(ping("a\nb")) == "<PING a b>"
    assert repr(Message((), {"DESTINATION": "x"})) == "<DESTINATION='x'>"
    assert repr(Message(("A",), {"PASSWORD": "x", "B": "y"})) == "<A PASSWORD=*** B='y'>"


def test_what_is_shown_is_short_and_printable():
    assert shown("a\x1b[31m\nb\u202e") == r"a\x1b[31m b\u202e"
    assert shown("x" * 60) == "x" * 60
    assert shown("x" * 61) == "x" * 60 + "…"


def test_messages_are_values():
    assert len({ping("a"), ping("a"), stream_accept("s"), stream_accept("s")}) == 2
    assert stream_accept("s") != stream_accept("t")


# Who connected.


@pytest.mark.parametrize(
    ("ports", "port", "to_port"),
    [("", 0, 0), (" FROM_PORT=1 TO_PORT=65535", 1, 65535), (" TO_PORT=2 X=y", 0, 2), (" FROM_PORT=", 0, 0)],
)
@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_who_connected_is_read(ports, port, to_port, end):
    peer = parse_peer(f"{KEY.destination}{ports}{end}".encode())
    assert peer == KEY.destination
    assert (peer.port, peer.to_port) == (port, to_port)
    assert peer.place == (f"{KEY.b32}:{port}" if port else KEY.b32)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("", "expected the peer's destination, got ''"),
        ("example.i2p", "got 'example.i2p'"),
        (KEY.b32, "expected the peer's destination"),
        pytest.param(KEY.base64, "expected the peer's destination", id="private key"),
        pytest.param(KEY.destination[:-4], "expected the peer's destination", id="cut"),
        *(
            pytest.param(f"{KEY.destination} {option}", problem, id=option)
            for option, problem in [
                ("FROM_PORT=x", "FROM_PORT of the peer: expected .* got 'x'"),
                ("TO_PORT=65536", "TO_PORT of the peer: expected .* got '65536'"),
                ("TO_PORT=-1", "TO_PORT"),
                ("TO_PORT=²", "TO_PORT"),
                ("=", "^the peer's destination: an option without a name"),
            ]
        ),
        ("HTTP/1.1 200 OK", "expected the peer"),
        ("STREAM STATUS =", "an option without a name"),
    ],
)
def test_who_connected_may_be_nobody(line, problem):
    with pytest.raises(MessageError, match=problem) as raised:
        parse_peer(line.encode())
    assert raised.value.result == ""
    assert len(str(raised.value)) < 160


def test_an_accept_that_fails_late_says_why():
    with pytest.raises(MessageError, match="STREAM ACCEPT failed: I2P_ERROR") as raised:
        parse_peer(b'STREAM STATUS RESULT=I2P_ERROR MESSAGE="gone"\n')
    assert raised.value.result == "I2P_ERROR"


def test_a_peer_is_its_destination_wherever_it_goes():
    peer = parse_peer(f"{KEY.destination} FROM_PORT=1 TO_PORT=2".encode())
    for same in (copy.copy(peer), copy.deepcopy(peer), pickle.loads(pickle.dumps(peer))):
        assert (same, same.port, same.to_port, same.b32) == (KEY.destination, 1, 2, KEY.b32)


@pytest.mark.parametrize(
    ("result", "reason", "passing"),
    [
        ("TIMEOUT", "connect_timeout", True),
        ("CANT_REACH_PEER", "unreachable", True),
        ("INVALID_KEY", "unreachable", False),
        ("KEY_NOT_FOUND", "unreachable", False),
    ],
)
def test_a_stream_that_the_router_did_not_open(result, reason, passing):
    error = unreachable("x: it is not there", result)
    assert (str(error), error.result, error.reason, error.passing) == ("x: it is not there", result, reason, passing)
    assert isinstance(error, relay.ConnectError) and isinstance(error, relay.SAMError)
    bare = UnreachableError("x")
    assert (bare.result, bare.reason, bare.passing) == ("", "unreachable", True)


# Whatever bytes there are.

SAYABLE = st.text(st.characters(exclude_categories=["Cs", "Cc"]) | st.just("\t"), max_size=40)
WORD = st.from_regex(r"[A-Z]{1,12}", fullmatch=True)
WORDS = st.one_of(st.tuples(WORD), st.tuples(WORD, WORD)).filter(lambda words: words[0] not in ("PING", "PONG"))
OPTION_NAME = SAYABLE.map(lambda text: "".join(c for c in text if c not in " \t=")).filter(bool)
MESSAGES = st.one_of(
    st.builds(Message, WORDS, st.dictionaries(OPTION_NAME, SAYABLE, max_size=6)),
    st.builds(ping, SAYABLE),
    st.builds(pong, SAYABLE),
)
PIECES = st.lists(
    st.sampled_from(
        [
            *(b"STREAM", b"STATUS", b"PING", b" ", b"  ", b"\t", b"=", b'"', b"\\", b"\r", b"\n", b"\0", b"\xff"),
            *(b"\xc3\xbc", b"RESULT=OK", b'MESSAGE="', b"FROM_PORT=", b"1", KEY.destination.encode(), b"x" * 100),
        ]
    )
).map(b"".join)


@FUZZED
@given(MESSAGES)
@example(Message(("A", "B"), {"k": '" \\" \\', "l": "\\", "m": " "}))
@example(Message(("A",), {"B": "", "C": ""}))
def test_every_message_comes_back(message):
    line = message.encode()
    assert line.count(b"\n") == 1
    assert parse(line) == message
    assert list(parse(line).options) == list(message.options)


@pytest.mark.parametrize("read", [parse, parse_peer])
@FUZZED
@given(line=st.binary(max_size=200) | PIECES)
def test_whatever_comes_there_is_no_error_but_ours(read, line):
    try:
        read(line)
    except MessageError as error:
        assert len(str(error)) < 200
        assert str(error).isprintable()


@FUZZED
@given(st.text() | SAYABLE)
def test_whatever_is_to_be_said_is_said_or_refused(value):
    try:
        line = naming_lookup(value).encode()
    except ValueError as error:
        assert not isinstance(error, UnicodeError)
    else:
        assert parse(line).options["NAME"] == value


@FUZZED
@given(PIECES)
def test_what_was_understood_once_is_understood_again(line):
    try:
        message = parse(line)
        again = parse(message.encode())
    except (MessageError, ValueError):
        return
    assert again == message
    assert isinstance(repr(message), str)
