"""The one form of durations."""

import math

import pytest

from relay.addresses.duration import parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("0", 0),
        ("1.5s", 1.5),
        ("250 ms", 0.25),
        ("10m", 600),
        ("1.5h", 5400),
        ("2d", 172_800),
        ("1w", 604_800),
        ("999999999.999999999", 1e9),
        ("-1m", -60),
        ("none", math.inf),
    ],
)
def test_a_duration_is_a_number_with_a_unit(text, seconds):
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "m",
        "10  m",
        "10 ",
        "10mm",
        "10M",
        "1e3",
        "nan",
        "inf",
        ".5",
        "5.",
        "+5",
        "ten",
        "1h30m",
        "\N{DIGIT FIVE}\n",
        "٥",
    ],
)
def test_anything_else_is_none(text):
    with pytest.raises(ValueError, match="^expected a time such as 90, 1.5s, 10m or 2h, got '"):
        parse_duration(text)


def test_its_error_is_safe_to_print():
    with pytest.raises(ValueError, match=r"got '5\\x1b\[2J'$"):
        parse_duration("5\x1b[2J")
