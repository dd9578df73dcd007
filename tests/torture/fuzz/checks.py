"""Demands of every target on a parser: its own kind of error, on one printable line; the same however it is cut."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

FOLDER = tempfile.TemporaryDirectory(prefix="relay-fuzz-")
_LONGEST = 20_000  # characters of an error; it repeats a part of what it is about


class FindingError(AssertionError):
    """A parser did what it must not do."""


@contextlib.contextmanager
def rejecting(*errors: type[Exception]) -> Iterator[None]:
    """Accept these errors, and none besides."""
    try:
        yield
    except errors as error:
        one_line(str(error))


def one_line(text: str) -> None:
    """Check a text for a terminal or a log."""
    if not text or not text.isprintable() or len(text) > _LONGEST:
        raise FindingError(f"not one printable line: {text[:200]!r}")


def equal(one: object, other: object, why: str) -> None:
    """Check that two results are one."""
    if one != other:
        raise FindingError(f"{why}: {one!r} and {other!r}")


def pieces(data: bytes) -> tuple[bytes, list[bytes]]:
    """Return what follows the first byte, and the same cut to pieces of the length that this byte says."""
    size, rest = (data[0] % 64 + 1 if data else 1), data[1:]
    return rest, [rest[start : start + size] for start in range(0, len(rest), size)]


def text_of(data: bytes) -> str:
    """Return the text of a command line or a file name, which need not be UTF-8."""
    return data.decode("utf-8", "surrogateescape")


def one_of(data: bytes, choices: list[Callable[[bytes], object]]) -> None:
    """Call the function that the first byte chooses with the rest."""
    if data:
        choices[data[0] % len(choices)](data[1:])


def file_of(data: bytes) -> str:
    """Return the path of a file with these bytes, which is owner-only; each call overwrites the one before."""
    file = Path(FOLDER.name, "input")
    file.write_bytes(data)
    file.chmod(0o600)
    return str(file)
