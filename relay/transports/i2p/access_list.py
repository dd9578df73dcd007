"""Access lists: destinations that are allowed or denied, and files of them that are read again when they change."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from ...addresses.destinations import b32_of, check_destination
from ..files import open_regular

__all__ = ["AccessList"]

logger = logging.getLogger("relay")

Entries = Sequence["str | os.PathLike[str]"] | str | os.PathLike[str] | None

EXPECTED = "expected a destination in base64, its .b32.i2p address of 52 characters, or a file of these"


class AccessList:
    """Allowed and denied destinations; ``deny`` takes precedence. True if there is any list.

    Each entry is a destination in base64, its ``.b32.i2p`` address, or the path of a file with one of these on each
    line; ``#`` begins a comment. A file is read again when it has changed. If it cannot be read, or has an invalid
    line, the previous content stays in force, with a warning. So replace a file by a rename, never by writing to it.

    :param allow: destinations that are allowed; ``None`` for all, an empty list for none.
    :param deny: destinations that are denied.
    :raises TypeError: if an entry has the wrong type.
    :raises ValueError: if an entry is none of the above, or a file is invalid; the error names file and line.
    """

    def __init__(self, allow: Entries = None, deny: Entries = None) -> None:
        self._allow = None if allow is None else [_source(entry, "allow") for entry in _entries(allow)]
        self._deny = [_source(entry, "deny") for entry in _entries(deny)]

    def __bool__(self) -> bool:
        return self._allow is not None or bool(self._deny)

    def refusal(self, peer: str) -> str | None:
        """Return why a peer is rejected.

        :param peer: its destination, in base64.
        :returns: the reason, for the log; ``None`` if the peer is allowed.
        """
        if not self:
            return None
        try:
            address = b32_of(peer)
        except ValueError:
            return "the peer has no valid destination"
        if _has(self._deny, address):
            return f"{address} is denied"
        if self._allow is not None and not _has(self._allow, address):
            return f"{address} is not allowed"
        return None


def _entries(given: Entries) -> Iterable[str | os.PathLike[str]]:
    if given is None:
        return ()
    return (given,) if isinstance(given, (str, os.PathLike)) else given


class _Source(Protocol):
    """One entry of a list."""

    def addresses(self) -> frozenset[str]: ...


def _has(sources: Iterable[_Source], address: str) -> bool:
    return any(address in source.addresses() for source in sources)


def _source(entry: str | os.PathLike[str], name: str) -> _Source:
    if not isinstance(entry, (str, os.PathLike)):
        raise TypeError(f"{name}: {EXPECTED}, got {type(entry).__name__}")
    path = os.path.abspath(os.path.expanduser(entry))
    if isinstance(entry, os.PathLike):
        return _File(path)
    try:
        return _Fixed(_address(entry))
    except ValueError as error:
        if entry and os.path.lexists(path):
            return _File(path)
        raise ValueError(f"{name}: {_shortened(entry)!r} is neither a destination nor a file: {error}") from None


def _address(text: str) -> str:
    """Return the address of 52 characters and ``.b32.i2p`` for a destination in base64 or for that address itself."""
    destination = check_destination(text)
    if not destination.endswith(".i2p"):
        return b32_of(destination)
    if not destination.endswith(".b32.i2p"):
        raise ValueError("a name may be reassigned to another destination; use its .b32.i2p address")
    if len(destination) != 60:
        raise ValueError(
            "the address of an encrypted lease set does not identify a peer; use the address of 52 characters"
        )
    return destination


def _shortened(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:80]}…"


class _Fixed:
    def __init__(self, address: str) -> None:
        self._addresses = frozenset([address])

    def addresses(self) -> frozenset[str]:
        return self._addresses


class _File:
    """A file of destinations, with its last valid content."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._trouble = ""  # the last warning, while it is true
        try:
            self._read()
        except OSError as error:
            raise ValueError(f"{path}: {error.strerror}; {EXPECTED}") from None

    def addresses(self) -> frozenset[str]:
        """Return the addresses that the file has now."""
        try:
            if _identity(os.stat(self._path)) != self._seen:
                self._read()
            self._trouble = ""
        except OSError as error:
            self._warn(f"{self._path}: {error.strerror}")
        except ValueError as error:
            self._warn(str(error))
        return self._addresses

    def _read(self) -> None:
        with open_regular(self._path) as file:
            seen = _identity(os.fstat(file.fileno()))
            lines = file.readlines()
        self._seen = seen  # also if it is invalid, so that it is not read for every client
        self._addresses = frozenset(_addresses(self._path, lines))

    def _warn(self, trouble: str) -> None:
        if trouble != self._trouble:
            self._trouble = trouble
            logger.warning("%s; the previous list stays in force", trouble)


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return status.st_mtime_ns, status.st_size, status.st_ino


def _addresses(path: str, lines: Iterable[bytes]) -> Iterator[str]:
    for number, line in enumerate(lines, 1):
        text = line.partition(b"#")[0].decode("utf-8", "replace").strip()
        if text:
            try:
                yield _address(text)
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from None
