"""The one form of sizes of memory."""

import pytest

from relay.addresses.size import parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("65536", 65536),
        ("0", 0),
        ("7B", 7),
        ("512kB", 512_000),
        ("4MiB", 4 << 20),
        ("4 MiB", 4 << 20),
        ("3KiB", 3 << 10),
        ("2MB", 2_000_000),
        ("1GB", 10**9),
        ("1GiB", 1 << 30),
    ],
)
def test_a_size_is_a_number_with_a_unit(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "MiB", "4M", "4mib", "1.5MiB", "-1", "4  MiB", "none", "1e3", "9999999999999"])
def test_anything_else_is_named_with_an_example(text):
    with pytest.raises(ValueError, match="expected a size such as 4MiB or 512kB, got '"):
        parse_size(text)


def test_the_least_size_is_named():
    assert parse_size("64KiB", 64 << 10) == 64 << 10
    with pytest.raises(ValueError, match="must be 64KiB or more, got 65535"):
        parse_size("65535", 64 << 10)
