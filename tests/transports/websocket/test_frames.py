"""Frames of WebSockets, beside those of wsproto, in whatever pieces they come."""

import unittest.mock

import pytest
import websockets.speedups

pytest.importorskip("wsproto")

from hypothesis import given, settings
from hypothesis import strategies as st
from wsproto.frame_protocol import FrameProtocol, ParseFailed

from relay.transports.websocket import frames
from relay.transports.websocket.frames import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    TEXT,
    Decoder,
    FrameError,
    close_payload,
    code_of,
    frame,
    mask,
)

SIZES = st.sampled_from([0, 1, 2, 3, 4, 5, 125, 126, 127, 511, 512, 513, 65534, 65535, 65536, 70001])


def decoded(data, cut, *, is_masked):
    decoder = Decoder(is_masked=is_masked)
    return [(kind, bytes(part)) for at in range(0, len(data), cut) for kind, part in decoder.feed(data[at : at + cut])]


def messages(found):
    """Join the parts of each message."""
    whole = []
    for kind, part in found:
        if kind == CONTINUATION:
            whole[-1] = (whole[-1][0], whole[-1][1] + part)
        else:
            whole.append((kind, part))
    return whole


@settings(max_examples=60)
@given(SIZES, st.booleans(), st.integers(1, 70000), st.binary(min_size=4, max_size=4))
def test_what_was_sent_arrives_and_wsproto_reads_it(size, is_masked, cut, key):
    data = (key * (size // 4 + 1))[:size]
    sent = frame(BINARY, data, prefix=b"\x00", is_masked=is_masked)
    cut = max(cut, size // 100)
    assert messages(decoded(sent, cut, is_masked=is_masked)) == [(BINARY, b"\x00" + data)]
    theirs = FrameProtocol(client=not is_masked, extensions=[])
    theirs.receive_bytes(sent)
    assert b"".join(bytes(one.payload) for one in theirs.received_frames()) == b"\x00" + data


@pytest.mark.parametrize("in_c", [True, False])
@given(data=st.binary(max_size=2000), key=st.binary(min_size=4, max_size=4))
def test_a_mask_is_its_own_inverse(in_c, data, key):
    """With the package websockets and without it."""
    with unittest.mock.patch.object(frames, "apply_mask", websockets.speedups.apply_mask if in_c else None):
        assert mask(mask(data, key), key) == data
        for given in (data, bytearray(data), memoryview(data)):
            assert bytes(mask(given, key)) == bytes(byte ^ key[at % 4] for at, byte in enumerate(data))


@pytest.mark.parametrize("size", [511, 512, 513, 514, 600])
def test_a_mask_without_the_package(monkeypatch, size):
    monkeypatch.setattr(frames, "apply_mask", None)
    data, key = bytes(range(256)) * 3, b"\x01\x20\x83\xff"
    assert mask(data[:size], key) == bytes(byte ^ key[at % 4] for at, byte in enumerate(data[:size]))


def test_each_frame_has_another_key():
    assert len({frame(BINARY, b"", is_masked=True)[2:6] for _ in range(20)}) == 20


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (frame(BINARY, b"x"), "without a mask"),
        (b"\xc2\x80\0\0\0\0", "bits of an extension"),
        (b"\x83\x80\0\0\0\0", "unknown kind 3"),
        (b"\x09\x80\0\0\0\0", "too long or in parts"),
        (b"\x89\xfe\0\x7e\0\0\0\0", "too long or in parts"),
        (b"\x80\x80\0\0\0\0", "no message"),
        (b"\x02\x80\0\0\0\0\x82\x80\0\0\0\0", "does not continue"),
        (b"\x82\xfe\0\x7d\0\0\0\0", "invalid length"),
        (b"\x82\xff\0\0\0\0\0\0\xff\xff\0\0\0\0", "invalid length"),
        (b"\x82\xff\xff\0\0\0\0\0\0\0\0\0\0\0", "invalid length"),
    ],
)
def test_what_is_no_frame_is_rejected(sent, said):
    with pytest.raises(FrameError, match=said):
        decoded(sent, 1, is_masked=True)
    theirs = FrameProtocol(client=False, extensions=[])
    with pytest.raises(ParseFailed):
        theirs.receive_bytes(sent)
        list(theirs.received_frames())


def test_a_server_does_not_mask():
    with pytest.raises(FrameError, match="with a mask"):
        decoded(frame(BINARY, b"x", is_masked=True), 100, is_masked=False)


def test_control_frames_come_between_the_parts_of_a_message():
    sent = (
        b"\x01\x02ab"
        + frame(PING, b"?")
        + b"\x00\x00"
        + b"\x80\x01c"
        + frame(TEXT, b"")
        + frame(CLOSE, close_payload(1000))
    )
    for cut in range(1, len(sent) + 1):
        found = decoded(sent, cut, is_masked=False)
        assert [one for one in found if one[0] == PING] == [(PING, b"?")]
        assert messages([one for one in found if one[0] != PING]) == [
            (BINARY, b"abc"),
            (BINARY, b""),
            (CLOSE, b"\x03\xe8"),
        ]


def fed(*pieces, is_masked=False):
    """The frames that a decoder returns for each piece."""
    decoder = Decoder(is_masked=is_masked)
    return [[(kind, bytes(part)) for kind, part in decoder.feed(piece)] for piece in pieces]


def test_what_looks_like_a_whole_message_may_be_a_part_of_one():
    short = frame(BINARY, b"ab")
    assert fed(b"\x82\x08", short, short) == [[], [(BINARY, short)], [(CONTINUATION, short)]]
    first, *others = fed(b"\x82\x7e", b"\x82\x03abc", bytes(0x8203 - 3), short)
    assert (first, [len(part) for found in others for _, part in found]) == ([], [3, 0x8203 - 3, 2])
    assert [kind for found in others for kind, _ in found] == [BINARY, CONTINUATION, BINARY]
    with pytest.raises(FrameError, match="does not continue"):
        fed(b"\x02\x01x", short)
    masked = frame(BINARY, b"abcdef", is_masked=True)
    assert fed(masked[:-4], masked[-4:], is_masked=True) == [[(BINARY, b"ab")], [(CONTINUATION, b"cdef")]]
    assert fed(b"\x82\x05\x03xy", b"zz") == [[(BINARY, b"\x03xy")], [(CONTINUATION, b"zz")]]


@pytest.mark.parametrize("is_masked", [False, True])
def test_a_piece_may_end_anywhere_and_nothing_waits_for_more_than_its_header(is_masked):
    short, empty = (frame(BINARY, data, is_masked=is_masked) for data in (b"ab", b""))
    assert fed(short + b"\x82", is_masked=is_masked) == [[(BINARY, b"ab")]]
    assert fed(empty, is_masked=is_masked) == [[(BINARY, b"")]]
    assert fed(empty + b"\x82", is_masked=is_masked) == [[(BINARY, b"")]]
    long = frame(BINARY, bytes(300), is_masked=is_masked)
    for size in range(1, 9):
        pieces = short + long[:size], long[size:]
        found = [one for piece in fed(*pieces, is_masked=is_masked) for one in piece]
        assert messages(found) == [(BINARY, b"ab"), (BINARY, bytes(300))]
    half = fed(long[:100], long[100:], is_masked=is_masked)
    assert [len(part) for ((_, part),) in half] == [100 - (8 if is_masked else 4), len(long) - 100]


@pytest.mark.parametrize(
    ("sent", "is_masked", "said"),
    [(b"\x00\x01x", False, "no message"), (b"\x82\x00" + bytes(5), True, "without a mask")],
)
def test_a_short_message_is_checked_too(sent, is_masked, said):
    with pytest.raises(FrameError, match=said):
        fed(sent, is_masked=is_masked)


@pytest.mark.parametrize(
    "payload",
    [b"\x03", b"\x03\xe7", b"\x03\xec", b"\x03\xed", b"\x03\xee", b"\x03\xf7", b"\x07\xd0", b"\x13\x88"],
)
def test_codes_that_no_close_may_have(payload):
    with pytest.raises(FrameError, match="invalid code"):
        code_of(payload)


def test_codes_of_closes():
    assert [code_of(one) for one in (b"", b"\x03\xe8", b"\x03\xf3x", b"\x0f\xa0")] == [1005, 1000, 1011, 4000]
    assert [code_of(close_payload(code)) for code in (1003, 1007, 3000, 4999)] == [1003, 1007, 3000, 4999]
    assert close_payload(1000, "x" * 200) == b"\x03\xe8" + b"x" * 123, "a control frame has at most 125 bytes"
