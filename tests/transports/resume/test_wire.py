"""The bytes of the resume protocol: read as they were written, in whatever pieces; anything else is rejected."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.transports.resume.wire import (
    CONTROL,
    DATA,
    END,
    FIN,
    KNOWN,
    LONGEST_FRAME,
    LONGEST_HELLO,
    MAGIC,
    NEW,
    REFUSED,
    UNKNOWN,
    Answer,
    Decoder,
    Hello,
    ProtocolError,
    frame,
    number,
    read_answer,
    read_hello,
    read_number,
    word_of,
)

NUMBERS = st.one_of(st.integers(0, 300), st.integers(0, 2**63 - 1))
TOKENS = st.binary(min_size=16, max_size=16)
WORDS = st.text("abcz_", min_size=1, max_size=32)
HELLOS = st.one_of(NUMBERS.map(Hello), st.builds(Hello, NUMBERS, TOKENS, NUMBERS))
ANSWERS = st.one_of(
    st.builds(lambda token, window, kept: Answer(NEW, token, window=window, kept=kept), TOKENS, NUMBERS, NUMBERS),
    st.builds(lambda received, window: Answer(KNOWN, received=received, window=window), NUMBERS, NUMBERS),
    st.just(Answer(UNKNOWN)),
    WORDS.map(lambda word: Answer(REFUSED, word=word)),
)
FRAMES = st.one_of(
    st.tuples(NUMBERS, st.just(DATA), st.binary(max_size=300)),
    st.tuples(NUMBERS, st.just(FIN), st.just(b"")),
    st.tuples(NUMBERS, st.just(END), WORDS.map(str.encode)),
    st.tuples(NUMBERS, st.just(CONTROL), st.binary(min_size=1, max_size=10)),
)


@pytest.mark.parametrize(
    ("value", "data"),
    [(0, "00"), (127, "7f"), (128, "8001"), (300, "ac02"), (2**63 - 1, "ffffffffffffffff7f")],
)
def test_a_number_has_the_bytes_of_the_documentation(value, data):
    assert number(value).hex() == data
    assert read_number(number(value), 0) == (value, len(number(value)))


@given(NUMBERS)
def test_a_number_without_its_last_byte_is_not_there_yet(value):
    assert read_number(number(value)[:-1], 0) is None


@pytest.mark.parametrize("data", ["8000", "ff00", "8080808080808080808001"])
def test_a_number_has_one_form_and_a_bound(data):
    with pytest.raises(ProtocolError, match="a number"):
        read_number(bytes.fromhex(data), 0)


@given(HELLOS, st.binary(max_size=3))
def test_a_greeting_is_read_as_it_was_written(hello, rest):
    data = hello.encode()
    assert len(data) <= LONGEST_HELLO
    assert read_hello(data + rest) == (hello, len(data))
    assert all(read_hello(data[:size]) is None for size in range(len(data)))


@given(ANSWERS, st.binary(max_size=3))
def test_an_answer_is_read_as_it_was_written(answer, rest):
    data = answer.encode()
    assert read_answer(data + rest) == (answer, len(data))
    assert all(read_answer(data[:size]) is None for size in range(len(data)))


@pytest.mark.parametrize("read", [read_hello, read_answer])
@pytest.mark.parametrize("data", [b"SSH-2.0", b"HTTP/1.1 400", b"relay-resume/2\n", MAGIC + b"\x09", b"\x05"])
def test_a_stranger_is_no_end(read, data):
    with pytest.raises(ProtocolError):
        read(data)


def test_a_refusal_has_a_word():
    with pytest.raises(ProtocolError, match="word"):
        read_answer(MAGIC + b"\x03\x04no!!")


@given(st.lists(FRAMES, max_size=8), st.integers(1, 40))
def test_frames_are_read_as_they_were_written_in_whatever_pieces(frames, cut):
    data = b"".join(frame(*one) for one in frames)
    decoder, found = Decoder(), []
    for at in range(0, len(data), cut):
        for ack, kind, payload in decoder.feed(data[at : at + cut]):
            if ack == -1:
                found[-1][2] += bytes(payload)
            else:
                found.append([ack, kind, bytes(payload)])
    assert [tuple(one) for one in found] == frames


def test_a_frame_without_a_payload_has_none():
    assert frame(5, FIN) == b"\x05\x01"


@pytest.mark.parametrize(
    ("kind", "size"), [(DATA, LONGEST_FRAME + 1), (FIN, 1), (END, 0), (END, 33), (CONTROL, 0), (CONTROL, 11)]
)
def test_a_frame_of_another_size_is_rejected_by_its_head(kind, size):
    with pytest.raises(ProtocolError, match=f"with {size} bytes"):
        Decoder().feed(b"\x00" + number(size << 2 | kind))


def test_what_waits_for_its_rest_is_bounded():
    decoder = Decoder()
    assert decoder.feed(frame(2**63 - 1, END, b"x" * 32)[:-1]) == []
    assert decoder.feed(b"x") == [(2**63 - 1, END, b"x" * 32)]


@pytest.mark.parametrize("word", [b"", b"Reset", b"a b", b"a" * 33, b"a\n", b"\xff"])
def test_a_reason_is_a_word(word):
    with pytest.raises(ProtocolError):
        word_of(word)
