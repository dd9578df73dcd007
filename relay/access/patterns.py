"""Patterns of names in certificates: ``*`` is one segment, ``**`` any number of them, as in ghostunnel.

The segments of a DNS name are its labels; those of a URI are what stands between its slashes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

_WILD = frozenset({"*", "**"})


def dns_segments(name: str) -> list[str]:
    """Return the labels of a DNS name, in lower case, the last one first."""
    return name.removesuffix(".").lower().split(".")[::-1]


def uri_segments(uri: str) -> list[str]:
    """Return the segments of a URI; its scheme and its authority in lower case, RFC 3986, section 6.2.2.1."""
    segments = uri.split("/")
    if len(segments) >= 3 and not segments[1]:
        segments[0], segments[2] = segments[0].lower(), segments[2].lower()
    if len(segments) > 3 and not segments[-1]:
        segments.pop()  # a slash at the end has no meaning here
    return segments


def check_pattern(segments: Sequence[str]) -> None:
    """Check a pattern.

    :param segments: those of the pattern.
    :raises ValueError: if a wildcard is only a part of a segment, or two have no order.
    """
    for segment in segments:
        if "*" in segment and segment not in ("*", "**"):
            raise ValueError("a wildcard stands for a whole segment; write * between two dots or slashes")
    if segments.count("**") > 1:
        raise ValueError("** is there twice; once is enough")


def matches(pattern: Sequence[str], segments: Sequence[str]) -> bool:
    """Return whether a pattern matches a name; the cost is linear.

    :param pattern: its segments, which have been checked.
    :param segments: those of the name.
    """
    if "**" not in pattern:
        return len(pattern) == len(segments) and _all_match(pattern, segments)
    where = list(pattern).index("**")
    after = len(pattern) - where - 1
    if len(segments) < where + after:
        return False
    return _all_match(pattern[:where], segments[:where]) and (
        not after or _all_match(pattern[-after:], segments[-after:])
    )


def _all_match(pattern: Sequence[str], segments: Sequence[str]) -> bool:
    return all(one == segment or (one == "*" and segment) for one, segment in zip(pattern, segments, strict=True))


class PatternSet:
    """A set of patterns; those without a wildcard are found at once.

    :param place: the number of the segment that tells most names apart: 0 for DNS names, whose first segment is the
        top label; 2 for URIs, whose third segment is the authority.
    :param patterns: each as its text and its segments.
    """

    __slots__ = ("_place", "_exact", "_patterns")

    def __init__(self, place: int, patterns: Iterable[tuple[str, tuple[str, ...]]] = ()) -> None:
        self._place = place
        self._exact: dict[tuple[str, ...], str] = {}
        self._patterns: dict[str, list[tuple[str, tuple[str, ...]]]] = {}
        for text, segments in patterns:
            if _WILD.intersection(segments):
                self._patterns.setdefault(self._key(segments), []).append((text, segments))
            else:
                self._exact[segments] = text

    def __bool__(self) -> bool:
        return bool(self._exact or self._patterns)

    def find(self, segments: Sequence[str]) -> str | None:
        """Return the text of a pattern that matches a name with these segments; ``None`` if there is none."""
        for text, pattern in self._candidates(segments):
            if matches(pattern, segments):
                return text
        return self._exact.get(tuple(segments))

    def find_wider(self, segments: Sequence[str]) -> str | None:
        """Return the text of another pattern of the set that matches all that a pattern with these segments does."""
        for text, pattern in self._candidates(segments):
            if pattern != tuple(segments) and _covers(pattern, segments):
                return text
        return None

    def find_covering(self, segments: Sequence[str]) -> str | None:
        """Return the text of a pattern that matches all that a pattern with these segments does."""
        for text, pattern in self._candidates(segments):
            if pattern == tuple(segments):
                return text
        return self.find_wider(segments) or self._exact.get(tuple(segments))

    def _candidates(self, segments: Sequence[str]) -> Iterable[tuple[str, tuple[str, ...]]]:
        if not self._patterns:
            return ()
        # Two lists instead of all: of 100,000 patterns few share the segment that tells names apart.
        keys = dict.fromkeys((self._key(segments), ""))
        return itertools.chain.from_iterable(self._patterns.get(key, ()) for key in keys)

    def _key(self, segments: Sequence[str]) -> str:
        """Return the segment that tells most names apart; empty if a pattern may match several of them."""
        if len(segments) <= self._place or _WILD.intersection(segments[: self._place + 1]):
            return ""
        return segments[self._place]


def _covers(pattern: Sequence[str], segments: Sequence[str]) -> bool:
    """Return whether a pattern matches all that another one matches."""
    if "**" in segments:
        if "**" not in pattern:
            return False
        mine, other = list(pattern).index("**"), list(segments).index("**")
        if mine > other or len(pattern) - mine > len(segments) - other:
            return False
    return matches(pattern, segments)
