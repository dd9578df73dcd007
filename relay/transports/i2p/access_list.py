"""Who is let in: lists of destinations, and files of them that are read again when they change."""

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

ALLOWED = "it is a destination in base64, its .b32.i2p address of 52 characters, or a file of these"


class AccessList:
    """Tells who is let in. A destination that is denied is not, also if it is allowed as well.

    Each entry is a destination in base64, its ``.b32.i2p`` address, or the path of a file with one of these in a line;
    there ``#`` begins a comment. A file is read again when it has changed; one that cannot be read any more, or has a
    line that makes no sense, counts as it was, with a warning. Who writes one moves it into its place whole.

    :param allow: who is let in; ``None`` for everybody, an empty list for nobody.
    :param deny: who is not.
    :raises ValueError: for an entry that is none of these, and for a file that is wrong; it names file and line.
    """

    def __init__(self, allow: Entries = None, deny: Entries = None) -> None:
        self._allow = None if allow is None else [_source(entry, "allow") for entry in _entries(allow)]
        self._deny = [_source(entry, "deny") for entry in _entries(deny)]

    def refusal(self, peer: str) -> str | None:
        """Why somebody is not let in.

        :param peer: the destination, in base64.
        :returns: a reason for the log; ``None`` for who is let in.
        """
        if self._allow is None and not self._deny:
            return None
        try:
            address = b32_of(peer)
        except ValueError:
            return "who connects has no valid destination"
        if _has(self._deny, address):
            return f"{address} is denied"
        if self._allow is not None and not _has(self._allow, address):
            return f"{address} is not among those who are allowed"
        return None


def _entries(given: Entries) -> Iterable[str | os.PathLike[str]]:
    if given is None:
        return ()
    return (given,) if isinstance(given, (str, os.PathLike)) else given


class _Source(Protocol):
    """Something that has addresses."""

    def addresses(self) -> frozenset[str]: ...


def _has(sources: Iterable[_Source], address: str) -> bool:
    return any(address in source.addresses() for source in sources)


def _source(entry: str | os.PathLike[str], name: str) -> _Source:
    if not isinstance(entry, (str, os.PathLike)):
        raise TypeError(f"{name}: an entry of type {type(entry).__name__}; {ALLOWED}")
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
    """The 52 characters and ``.b32.i2p`` of a destination that is given in base64 or by this address."""
    destination = check_destination(text)
    if not destination.endswith(".i2p"):
        return b32_of(destination)
    if not destination.endswith(".b32.i2p"):
        raise ValueError("a name may come to mean somebody else; write the .b32.i2p address that it stands for")
    if len(destination) != 60:
        raise ValueError(
            "the address of an encrypted lease set does not tell who connects; write that of 52 characters"
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
    """A file of destinations, as it was when it last made sense."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._trouble = ""  # that was warned of, and lasts
        try:
            self._read()
        except OSError as error:
            raise ValueError(f"{path}: {error.strerror}; {ALLOWED}") from None

    def addresses(self) -> frozenset[str]:
        """Those that are in it now."""
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
        self._seen = seen  # also of what makes no sense, so that it is not read for every client
        self._addresses = frozenset(_addresses(self._path, lines))

    def _warn(self, trouble: str) -> None:
        if trouble != self._trouble:
            self._trouble = trouble
            logger.warning("%s; who is let in stays as it was", trouble)


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
