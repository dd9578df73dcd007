"""``relay.transports.tor.replies``: the replies of tor's control port."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.transports.tor.replies import LONGEST, Reply, ReplyError, ReplyReader, quoted, words_of

INFO = b'250-AUTH METHODS=COOKIE,SAFECOOKIE COOKIEFILE="/run/tor/cookie"\r\n250-VERSION Tor="0.4.9"\r\n250 OK\r\n'
DATA = b"250+info=\r\n250 no end\r\n..\r\n.\r\n250 OK\r\n"


def read(data, step):
    reader = ReplyReader()
    return [reply for begin in range(0, len(data), step) for reply in reader.feed(data[begin : begin + step])]


@pytest.mark.parametrize("step", [1, 7, 1000])
def test_replies_in_whatever_pieces(step):
    first, second, third = read(INFO + b"515 Authentication failed\r\n" + DATA, step)
    assert first.is_ok and first.lines[0] == 'AUTH METHODS=COOKIE,SAFECOOKIE COOKIEFILE="/run/tor/cookie"'
    assert second == Reply(515, ("Authentication failed",)) and not second.is_ok
    assert third == Reply(250, ("info=", "OK")) and third.value("info") == ""


@pytest.mark.parametrize("data", [b"HTTP/1.1 400\r\n", b"25x", b"250=\r\n", b"250 OK\n", b"2500 OK\r\n", b"\r\n"])
@pytest.mark.parametrize("step", [1, 1000])
def test_what_is_no_reply(data, step):
    with pytest.raises(ReplyError):
        read(data, step)


ENDLESS = {
    "line": b"250-" + b"x" * LONGEST,
    "lines": b"250-x\r\n" * (LONGEST // 4),
    "data": b"250+\r\n" + bytes(LONGEST),
}


@pytest.mark.parametrize("data", ENDLESS.values(), ids=ENDLESS)
def test_a_reply_without_end(data):
    with pytest.raises(ReplyError, match="more than"):
        read(data, 4096)


def test_the_words_of_a_line():
    words = words_of(r'METHODS=NULL COOKIEFILE="/a b/\"c\"\\\101\n" flag X=')
    assert words == {"METHODS": "NULL", "COOKIEFILE": '/a b/"c"\\A\n', "flag": "", "X": ""}


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"])))
def test_a_quoted_text_is_read_as_it_was(text):
    assert words_of(f"X={quoted(text)} Y=1") == {"X": text, "Y": "1"}
