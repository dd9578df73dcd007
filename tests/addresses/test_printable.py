"""``relay.addresses.printable``: what peers say reaches no log or terminal as it is."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from relay.addresses.printable import one_line, originator, printable


@given(st.text() | st.binary().map(lambda some: some.decode("utf-8", "surrogateescape")), st.integers(0, 20))
def test_it_is_one_line_of_what_is_printable_and_no_longer_than_allowed(text: str, longest: int) -> None:
    assert printable(text).isprintable()
    assert printable(text).encode("utf-8") is not None  # no lone surrogates are left
    cut = printable(text, longest)
    assert cut.isprintable()
    assert cut == (printable(text) if len(text) <= longest else printable(text[:longest]) + "…")


def test_what_is_printable_stays() -> None:
    assert printable("bücher → 日本 /a path") == "bücher → 日本 /a path"
    assert printable("\x1b[2J\u202e\x9b\r\n\t\u2028") == r"\x1b[2J\u202e\x9b\r\n\t\u2028"


@given(st.text() | st.binary(), st.integers(1, 20))
def test_words_of_a_peer_are_one_line(text: str | bytes, longest: int) -> None:
    assert one_line(text, longest).isprintable()


def test_white_space_in_words_of_a_peer_is_one_space() -> None:
    assert one_line(b" until 9\r\n\tcall B\xc3\xb6b \x1b[2J\xff\n", 99) == "until 9 call B\xf6b \\x1b[2J\ufffd"
    assert one_line("\n" * 50 + "words", 3) == ""
    assert one_line("words", 3) == "wor…"


@given(st.text())
def test_an_originator_is_fit_for_a_log(text: str) -> None:
    assert originator(text) == text if text.isprintable() else "unknown"


def test_an_originator_is_no_longer_than_a_host_name() -> None:
    assert originator("x" * 255) == "x" * 255
    assert originator("x" * 256) == "unknown"
